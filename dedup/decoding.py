"""A chunk's pictures on their way to the detector: equal files once, decoded in threads, in batches, in their order."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dedup import confounders, images
from dedup.backends import Backend
from dedup.collection import UNREADABLE
from dedup.detector import decode, size
from pipeline.core.progress import tick

MISSING = "missing-image"
Lost = tuple[str, str, str | None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A picture that is decoded, or what kept it from being so.

    Attributes:
        picture: Where it comes from; its bytes are let go.
        pixels: What an embedding is made from; ``None`` if there is no picture.
        width: Pixels of the stored picture.
        height: Pixels of the stored picture.
        spread: As of :func:`dedup.confounders.spread`.
        lost: Reason and detail of a picture that is not there.
    """

    picture: images.Picture
    pixels: np.ndarray | None = None
    width: int = 0
    height: int = 0
    spread: float = 0.0
    lost: tuple[str, str | None] | None = None


class Once:
    """A chunk's pictures without those whose bytes came before; what became of the first goes for all of them.

    The same file lies on many pages of the web.

    Args:
        pictures: All of them.
    """

    def __init__(self, pictures: Iterable[images.Picture]) -> None:
        self._pictures = pictures
        self._waiting: deque[bytes | None] = deque()
        self._repeated: list[tuple[images.Picture, bytes]] = []
        self._rows: dict[bytes, int] = {}
        self._lost: dict[bytes, tuple[str, str | None]] = {}
        self._count = 0

    def __iter__(self) -> Iterator[images.Picture]:
        """Yields the first of each."""
        seen: set[bytes] = set()
        for picture in self._pictures:
            key = None if picture.data is None else hashlib.sha256(picture.data).digest()
            if key in seen and key is not None:
                self._repeated.append((dataclasses.replace(picture, data=None), key))
                tick()
                continue
            if key is not None:
                seen.add(key)
            self._waiting.append(key)
            yield picture

    def note(self, batch: Sequence[Prepared]) -> None:
        """Takes down what became of pictures, in the order in which they were given out."""
        for one in batch:
            key = self._waiting.popleft()
            if key is not None and one.lost is not None:
                self._lost[key] = one.lost
            elif key is not None:
                self._rows[key] = self._count
            self._count += one.lost is None

    def again(self, table: pa.Table) -> tuple[pa.Table, list[Lost]]:
        """Adds those that were left out to the table of the others; those without an embedding are dropped rows."""
        lost = [
            (self._lost[key][0], p.id, self._lost[key][1]) for p, key in self._repeated if key in self._lost
        ]
        kept = [(p, self._rows[key]) for p, key in self._repeated if key in self._rows]
        if not kept:
            return table, lost
        more = table.combine_chunks().take(pa.array([row for _, row in kept], pa.int64()))
        for name, values in (("id", [p.id for p, _ in kept]), ("label", [p.label for p, _ in kept])):
            place = table.schema.get_field_index(name)
            more = more.set_column(place, table.schema.field(place), pa.array(values, pa.string()))
        return pa.concat_tables([table, more]), lost


def prepare(picture: images.Picture, backend: Backend) -> Prepared:
    """Decodes a picture."""
    known = dataclasses.replace(picture, data=None)
    if picture.data is None:
        return Prepared(picture=known, lost=(MISSING, picture.problem))
    try:
        image = decode(picture.data)
        pixels = backend.prepare(image)
        width, height = size(picture.data)
    except ValueError as error:
        return Prepared(picture=known, lost=(UNREADABLE, str(error)))
    return Prepared(
        picture=known, pixels=pixels, width=width, height=height, spread=confounders.spread(image)
    )


def prepared(
    pictures: Iterable[images.Picture], backend: Backend, ahead: int, threads: int
) -> Iterator[Prepared]:
    """Decodes pictures in threads, at most ``ahead`` before the one that is taken; their order stays."""
    waiting: deque[Future[Prepared]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for picture in pictures:
            waiting.append(pool.submit(prepare, picture, backend))
            if len(waiting) > ahead:
                tick()
                yield waiting.popleft().result()
        while waiting:
            tick()
            yield waiting.popleft().result()


def batches(pictures: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Groups pictures in their order; the last group may be smaller."""
    held: list[Prepared] = []
    for picture in pictures:
        held.append(picture)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
