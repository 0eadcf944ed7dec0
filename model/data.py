"""Batches of training samples: their order, their crops, and the position from which a run goes on.

Shards are indexed once (byte offset of every image), so a position in training is two integers and resuming there
is exact. Each epoch takes every image once: a keyed draw chooses which of an image's captions the epoch uses. The
same image twice in a batch, with two captions, would be a false negative for the contrastive loss.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from model.decoding import Decoders, Request, ShardReader
from model.images import BadImageError, Decoder, decode_pixels, square
from model.shards import Index
from model.tokenizer import Tokenizer, trim
from pipeline.core.errors import InputError, UsageError

REASONS = ("missing_image", "corrupt_image", "empty_caption")
DAMAGE = ("missing_image", "corrupt_image")  # what `--max-bad-fraction` is about
WINDOW_SHARDS = 64  # shards whose samples are mixed: reads stay near each other on disks and object stores
CHUNK = 32  # images that a worker takes at once


def epoch_order(index: Index, *, seed: int, epoch: int, query_cap: int | None = None) -> np.ndarray:
    """Sample numbers of one epoch, one per image, in the order they are seen; a function of its arguments alone.

    Args:
        index: The samples.
        seed: Of the order and of the choice among captions.
        epoch: Number of the epoch.
        query_cap: At most so many images of each query, others in each epoch; how many there are in all is the
            same in every epoch. Images without a query are not counted.
    """
    draw = np.random.default_rng([seed, epoch])
    by_group = np.lexsort((draw.random(len(index.group)), index.group))
    first = np.flatnonzero(np.diff(index.group[by_group], prepend=-1))
    chosen = by_group[first]
    window = draw.permutation(len(index.tars))[index.shard[chosen]] // WINDOW_SHARDS
    order = chosen[np.lexsort((draw.random(len(chosen)), window))]
    if query_cap is None:
        return order
    return order[_within_cap(_group_query(index)[index.group[order]], draw, query_cap)]


def _group_query(index: Index) -> np.ndarray:
    """The query of each group: its first sample's, so that an epoch's length does not depend on its captions."""
    firsts = np.unique(index.group, return_index=True)[1]
    return index.query[firsts]


def _within_cap(queries: np.ndarray, draw: np.random.Generator, cap: int) -> np.ndarray:
    """Which of some images stay when each query keeps a random ``cap`` of its own."""
    by_query = np.lexsort((draw.random(len(queries)), queries))
    grouped = queries[by_query]
    starts = np.flatnonzero(np.diff(grouped, prepend=-2))
    rank = np.arange(len(grouped)) - np.repeat(starts, np.diff(starts, append=len(grouped)))
    kept = np.empty(len(queries), dtype=bool)
    kept[by_query] = (rank < cap) | (grouped < 0)
    return kept


@dataclass(frozen=True)
class Batch:
    """What a step trains on.

    Attributes:
        images: uint8 [B, S, S, 3].
        tokens: int64 [B, L], L up to the longest text of the batch.
        samples: int64 [B], sample numbers in the index.
    """

    images: np.ndarray
    tokens: np.ndarray
    samples: np.ndarray


class Loader:
    """Endless batches; its state is a position, so that a resumed run sees the same batches.

    With several ranks each takes every ``ranks``-th place of the same order, so that all their batches together are
    the batch of one.

    Args:
        index: The samples.
        tokenizer: For the captions.
        batch_size: Samples of a batch of all ranks together; at most the number of different images.
        image_size: Pixels of the random square crop.
        short_side: Pixels to which an image's short side is resized first.
        seed: Of order, captions and crops.
        cache_bytes: Keep decoded images in memory if all of them fit into this many bytes (without workers).
        max_corrupt_share: Stop when more than this share of all samples proves corrupt.
        decoder: What decodes and resizes; see :func:`model.images.decode_pixels`.
        workers: Processes that read and decode; with 0 this one does. The batches are the same.
        query_cap: See :func:`epoch_order`.
        rank: Number of this process among ``ranks``.
        ranks: Processes that train together; divides the batch size.
    """

    def __init__(
        self,
        index: Index,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        image_size: int,
        short_side: int,
        seed: int,
        cache_bytes: int,
        max_corrupt_share: float,
        decoder: Decoder = "fast",
        workers: int = 0,
        query_cap: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.index, self.tokenizer, self.batch_size = index, tokenizer, batch_size
        self.image_size, self.short_side, self.seed = image_size, short_side, seed
        self.decoder, self.query_cap, self.rank, self.ranks = decoder, query_cap, rank, ranks
        self.max_corrupt = max_corrupt_share * index.rows_in
        self.epoch, self.place = 0, 0
        self.corrupt: dict[int, str] = {}
        self._order = epoch_order(index, seed=seed, epoch=0, query_cap=query_cap)
        self.images_per_epoch = len(self._order)
        self._check_batch()
        # Images are seldom square: half as much again is the allowance for the long side.
        self._keep = index.groups * short_side**2 * 3 * 1.5 <= cache_bytes and not workers
        self._kept: dict[int, np.ndarray] = {}
        self._reader = ShardReader()
        self._draws = (-1, -1, np.empty((0, 2)))
        self._decoders = (
            Decoders(workers, chunk=CHUNK, image_size=image_size, short_side=short_side, decoder=decoder)
            if workers
            else None
        )
        self._asked: deque[list[int]] = deque()  # places of each chunk that the workers have
        self._ahead = 0  # first place that was not yet asked for
        self._ready: deque[tuple[int, np.ndarray | str]] = deque()  # answered places

    def _check_batch(self) -> None:
        if self.batch_size > self.images_per_epoch:
            raise UsageError(
                "the batch is larger than the number of different images",
                where="train.batch_size",
                expected=f"at most {self.images_per_epoch:,}",
                found=f"{self.batch_size:,}",
                hint="set batch_size",
            )
        if self.batch_size % self.ranks:
            raise UsageError(
                "the batch cannot be shared equally",
                where="train.batch_size",
                expected=f"a multiple of the {self.ranks} processes",
                found=f"{self.batch_size:,}",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; what is left over is seen in other epochs."""
        return self.images_per_epoch // self.batch_size

    def go_to(self, epoch: int, place: int) -> None:
        """Sets the position: the epoch and the first place of its order that no batch has taken."""
        if self._decoders is not None:
            self._decoders.forget()
        self._asked.clear()
        self._ready.clear()
        self.epoch, self.place = epoch, place
        self._ahead = self._mine(place)
        self._order = epoch_order(self.index, seed=self.seed, epoch=epoch, query_cap=self.query_cap)

    def _mine(self, place: int) -> int:
        """The first place of this rank from a place on."""
        return place + (self.rank - place) % self.ranks

    def next_batch(self) -> Batch:
        """The next full batch (this rank's part of it); a batch never reaches across two epochs.

        Raises:
            InputError: Too many samples are corrupt.
        """
        wanted = self.batch_size // self.ranks
        while True:
            start = self.place
            samples: list[int] = []
            images = np.empty((wanted, self.image_size, self.image_size, 3), dtype=np.uint8)
            for place, found in self._images():
                # The next place of any rank is behind this one's, whichever rank this is.
                self.place = place - self.rank + self.ranks
                sample = int(self._order[place])
                if isinstance(found, str):
                    self._count_corrupt(sample, found)
                    continue
                images[len(samples)] = found
                samples.append(sample)
                if len(samples) == wanted:
                    texts = [self.index.captions[s].as_py() for s in samples]
                    return Batch(images, trim(self.tokenizer(texts)), np.array(samples))
            if start == 0:
                raise InputError(
                    "too few images can be decoded for one batch", found=f"{len(samples)} of {wanted}"
                )
            self.go_to(self.epoch + 1, 0)

    def _count_corrupt(self, sample: int, why: str) -> None:
        self.corrupt[sample] = why
        if len(self.corrupt) > self.max_corrupt:
            raise InputError(
                "too many corrupt images",
                where=self.index.tars[self.index.shard[sample]],
                found=f"{len(self.corrupt):,} of {self.index.rows_in:,}, the last: {why}",
                hint="check the shards or raise max_corrupt_share",
            )

    def _images(self) -> Iterator[tuple[int, np.ndarray | str]]:
        """This rank's places from the position on, each with its crop or with why there is none."""
        if self._decoders is None:
            for place in range(self._mine(self.place), len(self._order), self.ranks):
                sample = int(self._order[place])
                if sample in self.corrupt:
                    continue
                try:
                    yield place, square(self._pixels(sample), self.image_size, *self._crop_at(place))
                except BadImageError as error:
                    yield place, str(error)
            return
        while True:
            while not self._ready:
                self._ask_ahead(self._decoders)
                if not self._asked:
                    return
                places = self._asked.popleft()
                self._ready.extend(zip(places, self._decoders.answer(), strict=True))
            place, found = self._ready.popleft()
            if int(self._order[place]) not in self.corrupt:
                yield place, found

    def _ask_ahead(self, decoders: Decoders) -> None:
        while decoders.room and self._ahead < len(self._order):
            places: list[int] = []
            while len(places) < CHUNK and self._ahead < len(self._order):
                if int(self._order[self._ahead]) not in self.corrupt:
                    places.append(self._ahead)
                self._ahead += self.ranks
            if places:
                decoders.ask([self._request(place) for place in places])
                self._asked.append(places)

    def _request(self, place: int) -> Request:
        sample = int(self._order[place])
        across, down = self._crop_at(place)
        index = self.index
        tar = index.tars[index.shard[sample]]
        return Request(tar, int(index.offset[sample]), int(index.size[sample]), across, down)

    def _crop_at(self, place: int) -> tuple[float, float]:
        """Where the crop of a place lies, in [0, 1) both ways: a function of seed, epoch and place alone."""
        block = place // self.batch_size * self.batch_size
        if self._draws[:2] != (self.epoch, block):
            draw = np.random.default_rng([self.seed, self.epoch, block])
            self._draws = (self.epoch, block, draw.random((self.batch_size, 2)))
        across, down = self._draws[2][place - block]
        return float(across), float(down)

    def _pixels(self, sample: int) -> np.ndarray:
        group = int(self.index.group[sample])
        kept = self._kept.get(group)
        if kept is None:
            data = self._reader.read(
                self.index.tars[self.index.shard[sample]],
                int(self.index.offset[sample]),
                int(self.index.size[sample]),
            )
            kept = decode_pixels(data, short_side=self.short_side, decoder=self.decoder)
            if self._keep:
                self._kept[group] = kept
        return kept

    def close(self) -> None:
        """Closes the shards and ends the workers."""
        self._reader.close()
        if self._decoders is not None:
            self._decoders.close()
            self._decoders = None

    def dropped(self) -> list[tuple[str, str, str]]:
        """(reason, pair_id, detail) of every row that could not be used so far."""
        corrupt = [
            (
                "corrupt_image",
                self.index.pair_ids[s].as_py(),
                f"{self.index.tars[self.index.shard[s]]}: {why}",
            )
            for s, why in sorted(self.corrupt.items())
        ]
        return [*self.index.dropped, *corrupt]
