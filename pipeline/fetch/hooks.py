"""What a user may add to the images' rules: sums of images that must not be stored, and a scorer."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from pipeline.core import paths
from pipeline.core.errors import InputError, UsageError
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.images import Stored
from pipeline.fetch.policy import Refusal

Scorer = Callable[[list[bytes]], Sequence[float]]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BATCH = 64


def read_deny_list(path: str) -> frozenset[str]:
    """SHA-256 sums of a file, lower-case hex: one a line, as ``sha256sum`` prints them; ``#`` begins a comment.

    Raises:
        InputError: The file cannot be read, or a line holds something else.
    """
    lines = paths.read_bytes(path).decode("utf-8", errors="replace").splitlines()
    sums = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip().lower()
        if not text:
            continue
        found = text.split()[0]
        if not _SHA256.fullmatch(found):
            raise InputError(
                "not a SHA-256 sum",
                where=f"{path}, line {number}",
                found=repr(line[:80]),
                expected="64 hex characters",
            )
        sums.add(found)
    return frozenset(sums)


def denied(path: str | None) -> Callable[[bytes], Refusal | None]:
    """The check of downloaded bodies against a deny list; without a list it lets everything through.

    Raises:
        InputError: The list cannot be read.
    """
    sums = read_deny_list(path) if path else frozenset()

    def check(body: bytes) -> Refusal | None:
        if sums and hashlib.sha256(body).hexdigest() in sums:
            return Refusal("blocklisted_hash")
        return None

    return check


def check(config: FetchConfig) -> None:
    """Looks at the deny list and the scorer before anything is fetched.

    Raises:
        InputError: The deny list cannot be read.
        UsageError: The scorer cannot be imported.
    """
    denied(config.deny_hashes)
    if config.image_scorer:
        load_scorer(config.image_scorer)


def load_scorer(name: str) -> Scorer:
    """Imports ``package.module:function``.

    Raises:
        UsageError: There is no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"image_scorer is {name!r}: {error}",
            hint="name an importable function as package.module:function",
        ) from error
    if not callable(found):
        raise UsageError(f"image_scorer is {name!r}, which is no function", hint="name a function")
    return found


def scored(results: Iterable[Stored | Refusal], config: FetchConfig) -> Iterator[Stored | Refusal]:
    """Gives each image its score, in batches, and refuses those above ``max_image_score``; order is kept.

    Raises:
        UsageError: The scorer cannot be imported, or its scores are not one finite number per image.
    """
    if not config.image_scorer:
        yield from results
        return
    scorer = load_scorer(config.image_scorer)
    rest = iter(results)
    while batch := list(itertools.islice(rest, _BATCH)):
        images = [found for found in batch if isinstance(found, Stored)]
        scores = iter(_scores(scorer, images, config))
        for found in batch:
            yield judged(found, next(scores), config) if isinstance(found, Stored) else found


def judged(image: Stored, score: float, config: FetchConfig) -> Stored | Refusal:
    """An image with its score, or its refusal."""
    if score > config.max_image_score:
        return Refusal("image_scored", f"{score:.6g}")
    return dataclasses.replace(image, score=score)


def _scores(scorer: Scorer, images: list[Stored], config: FetchConfig) -> list[float]:
    scores = [float(s) for s in scorer([i.jpeg for i in images])] if images else []
    if len(scores) != len(images) or not all(map(math.isfinite, scores)):
        raise UsageError(
            f"image_scorer {config.image_scorer!r} returned {len(scores)} scores for {len(images)} images",
            hint="return one finite number per image",
        )
    return scores
