from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Iterator, Sequence
from itertools import count

import pytest

from pipeline.core.errors import UsageError
from pipeline.core.fakes import jpeg, picture
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.decode import decoder_for
from pipeline.fetch.hooks import scored
from pipeline.fetch.images import Stored
from pipeline.fetch.policy import Refusal

CONFIG = FetchConfig(image_size=64, min_image_size=8, image_scorer="a_scorer:by_length", max_image_score=0.5)


def image(n: int) -> Stored:
    return Stored(b"x" * n, 1, 1, 1, 1, "{}")


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A module ``a_scorer``; the sizes of the batches that its functions were called with."""
    seen: list[int] = []

    def by_length(images: list[bytes]) -> Sequence[float]:
        seen.append(len(images))
        return [len(i) / 100 for i in images]

    module = types.ModuleType("a_scorer")
    module.__dict__.update(
        by_length=by_length,
        short=lambda images: [0.0],
        odd=lambda images: [float("nan")] * len(images),
        value=3,
    )
    monkeypatch.setitem(sys.modules, "a_scorer", module)
    return seen


def test_scores_are_kept_and_high_ones_refused_in_order(batches: list[int]) -> None:
    results: list[Stored | Refusal] = [image(10), Refusal("not_image"), image(50), image(51)]
    assert list(scored(results, CONFIG)) == [
        dataclasses.replace(image(10), score=0.1),
        Refusal("not_image"),
        dataclasses.replace(image(50), score=0.5),
        Refusal("image_scored", "0.51"),
    ]
    assert batches == [3]


def test_batches_are_bounded(batches: list[int]) -> None:
    endless: Iterator[Stored] = (image(n % 40) for n in count())
    results = scored(endless, CONFIG)
    assert next(results) == dataclasses.replace(image(0), score=0.0)
    assert batches == [64]
    assert len(list(scored([image(1)] * 150, CONFIG))) == 150
    assert list(scored([Refusal("not_image")], CONFIG)) == [Refusal("not_image")]
    assert batches == [64, 64, 64, 22]


def test_the_decoder_scores_what_it_stored(batches: list[int]) -> None:
    with decoder_for(CONFIG) as decoder:
        (found,) = decoder.decode([jpeg(picture("red", "circle", size=64))])
    assert (
        found.reason == "image_scored" if isinstance(found, Refusal) else found.score == len(found.jpeg) / 100
    )
    assert batches == [1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("a_scorer:f", "has no attribute 'f'"),
        ("a_scorer", "package.module:function"),
        (":", "package.module:function"),
        ("a_scorer:value", "which is no function"),
        ("a_scorer:short", "returned 1 scores for 2 images"),
        ("a_scorer:odd", "one finite number per image"),
    ],
)
def test_a_wrong_scorer_is_named(batches: list[int], name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(scored([image(1), image(2)], dataclasses.replace(CONFIG, image_scorer=name)))
