"""The pictures a detector is trained on: kept encoded on disk, with a thumbnail of each in memory.

Pictures with the same bytes or the same URL form one group: they are never each other's negative, and a group is
either trained on or held out as a whole.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO

import numpy as np
from PIL import Image

from dedup import images
from dedup.detector import decode, prepare
from pipeline.core.progress import tick

THUMBNAIL_PX = 8
UNREADABLE = "unreadable-image"


@dataclass(frozen=True)
class Lost:
    """A picture that could not be used."""

    id: str
    detail: str


class Collection:
    """Readable pictures of some chunks; use as a context manager, which removes its temporary file.

    Args:
        largest_px: Pictures are given no larger than this; 0 leaves them as they are.

    Attributes:
        ids: Id of each picture.
        groups: int64 [N]: equal numbers are the same picture.
        sources: int64 [N]: equal numbers come from the same site or folder.
        thumbnails: float32 [N, 192], centred, of length 1.
        lost: Pictures that could not be decoded.
        read: Pictures that came in.
    """

    def __init__(self, *, largest_px: int = 0) -> None:
        self.largest_px = largest_px
        self.ids: list[str] = []
        self.groups = np.zeros(0, np.int64)
        self.sources = np.zeros(0, np.int64)
        self.thumbnails = np.zeros((0, 3 * THUMBNAIL_PX**2), np.float32)
        self.keys: list[bytes] = []
        self.lost: list[Lost] = []
        self.read = 0
        self._places: list[tuple[int, int]] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Collection:
        self._file = tempfile.TemporaryFile()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self.ids)

    def fill(self, chunks: Sequence[images.Chunk], *, max_images: int, seed: int) -> None:
        """Reads all pictures of the chunks, or a sample of them by keyed hash of their ids."""
        assert self._file is not None, "enter the collection first"
        total = sum(chunk.rows for chunk in chunks)
        # A hash below this share is taken: no list of all ids is needed, and a re-run takes the same ones.
        limit = 2**64 if total <= max_images else 2**64 * max_images // total
        names: dict[bytes, int] = {}
        groups: list[int] = []
        places: dict[str, int] = {}
        sources: list[int] = []
        thumbnails: list[np.ndarray] = []
        end = 0
        for picture in _pictures(chunks):
            if keyed_hash(picture.id.encode(), seed) >= limit:
                continue
            self.read += 1
            tick()
            try:
                if picture.data is None:
                    raise ValueError(picture.problem)
                small = prepare(decode(picture.data), THUMBNAIL_PX)
            except ValueError as error:
                self.lost.append(Lost(picture.id, str(error)))
                continue
            data = picture.data
            key = hashlib.sha256(data).digest()
            marks = [key] + ([picture.same.encode()] if picture.same else [])
            group = next((names[m] for m in marks if m in names), len(names))
            for mark in marks:
                names.setdefault(mark, group)
            groups.append(group)
            sources.append(places.setdefault(picture.source, len(places)))
            thumbnails.append(small.reshape(-1))
            self.ids.append(picture.id)
            self.keys.append(key)
            self._file.write(data)
            self._places.append((end, len(data)))
            end += len(data)
        self._file.flush()
        self.groups, self.sources = np.array(groups, np.int64), np.array(sources, np.int64)
        if thumbnails:
            self.thumbnails = _centred(np.stack(thumbnails).astype(np.float32))

    def image(self, index: int) -> Image.Image:
        """One picture, decoded; safe to call from several threads."""
        assert self._file is not None
        start, length = self._places[index]
        image = decode(os.pread(self._file.fileno(), length, start))
        if self.largest_px:
            image.thumbnail((self.largest_px, self.largest_px), Image.Resampling.BOX)
        return image

    def distinct(self) -> np.ndarray:
        """Index of the first picture of each group: a picture seen again teaches nothing new."""
        return np.sort(np.unique(self.groups, return_index=True)[1])

    def split(self, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Distinct pictures to train on and distinct pictures held out, by keyed hash of their bytes."""
        limit = int(share * 2**64)
        chosen = self.distinct()
        out = np.array([keyed_hash(self.keys[i], seed) < limit for i in chosen.tolist()], bool)
        return chosen[~out], chosen[out]


def _pictures(chunks: Sequence[images.Chunk]) -> Iterator[images.Picture]:
    for chunk in chunks:
        yield from images.read(chunk)


def keyed_hash(key: bytes, seed: int) -> int:
    """A number below 2**64 that depends on key and seed alone."""
    made = hashlib.blake2b(key, digest_size=8, key=f"dedup {seed}".encode())
    return int.from_bytes(made.digest(), "big")


def _centred(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels - pixels.mean(axis=1, keepdims=True)
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)


def draw_batch(
    thumbnails: np.ndarray,
    batch_size: int,
    neighbour_share: float,
    draw: np.random.Generator,
    *,
    per_group: int = 8,
) -> np.ndarray:
    """Chooses a batch: part of it groups of look-alikes, the rest at random; no index twice.

    Pictures drawn at random soon differ so much that a batch teaches nothing; look-alikes are what an audit must
    tell from copies.

    Args:
        thumbnails: float32 [N, D], rows of length 1.
        batch_size: Wanted size; N at most.
        neighbour_share: Share of the batch in groups of look-alikes.
        draw: Source of chance.
        per_group: Pictures in a group.

    Returns:
        int64 [min(batch_size, N)], without repeats.
    """
    count = len(thumbnails)
    order = draw.permutation(count)
    if count <= batch_size:
        return order
    seeds = order[: int(batch_size * neighbour_share) // per_group]
    chosen: dict[int, None] = {}
    if len(seeds):
        likeness = thumbnails[seeds] @ thumbnails.T
        near = np.argpartition(-likeness, min(per_group, count - 1), axis=1)[:, :per_group]
        chosen = dict.fromkeys(np.concatenate([seeds[:, None], near], axis=1).ravel().tolist())
    for index in order.tolist():
        if len(chosen) >= batch_size:
            break
        chosen.setdefault(index)
    return np.array(list(chosen)[:batch_size], np.int64)
