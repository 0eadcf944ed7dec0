"""The benchmark's two tables of failures: what it takes for a texture's loss, halves, and pairs that look alike."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.detector_failures import alike, below, halves, loss
from benchmarks.detector_pictures import EMOJI, Item
from pipeline.core.fakes import picture


def test_fine_detail_is_lost_by_halving_and_shapes_are_not() -> None:
    rows, columns = np.mgrid[:64, :64]
    grains = Image.fromarray(((rows + columns) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert loss(grains) == pytest.approx(1, abs=0.01)
    assert loss(picture("red", "circle", size=64)) < 0.2


def test_each_picture_is_halved_by_each_filter() -> None:
    made, places = halves([picture("red", "circle", size=64), picture("blue", "square", size=40)])
    assert [image.size for image in made] == [(32, 32), (20, 20)] * 6
    assert places.tolist() == [0, 1] * 6


def test_pairs_are_one_thing_drawn_twice_and_the_nearest_of_a_source() -> None:
    first, second = (package.replace("/", " ") for package in EMOJI)
    items = [
        Item(f"{first} redcircle", False, picture("red", "circle", size=48, seed=1)),
        Item(f"{first} bluesquare", False, picture("blue", "square", size=48, seed=2)),
        Item(f"{second} red-circle", False, picture("red", "circle", size=48, seed=3)),
        Item(f"{second} cross", False, picture("red", "cross", size=48, seed=4)),
        Item(f"{second} other-circle", False, picture("blue", "circle", size=48, seed=5)),
    ]
    drawn, near = alike(items)
    assert drawn.tolist() == [[0, 2]]
    assert [2, 4] in near.tolist()
    assert {
        len({items[a].name.rpartition(" ")[0], items[b].name.rpartition(" ")[0]}) for a, b in near.tolist()
    } == {1}


def test_share_of_pairs_below_a_threshold() -> None:
    embeddings = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    pairs = np.array([[0, 1], [0, 2]])
    assert below(embeddings, pairs, 0.7) == 0.5
    assert below(embeddings, pairs, 0.9) == 1.0
