"""Training samples straight from the builder's shards.

Shards are indexed once (byte offset of every image), so a position in training is two integers and resuming
there is exact. Each epoch takes every image once: rows with equal image bytes form a group, and a keyed draw
chooses which of the group's captions the epoch uses. The same image twice in a batch, with two captions, would be
a false negative for the contrastive loss.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa

from model.images import BadImageError, crop, decode
from model.tokenizer import Tokenizer, trim
from pipeline.core import manifest, paths, tables
from pipeline.core.contracts import SHARDS
from pipeline.core.errors import ContractError, InputError, UsageError

REASONS = ("missing_image", "corrupt_image", "empty_caption")
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
WINDOW_SHARDS = 64  # shards whose samples are mixed: reads stay near each other on disks and object stores
_COLUMNS = ["key", "pair_id", "url", "caption", "status", "sha256"]
_OPEN_FILES = 2 * WINDOW_SHARDS


@dataclass(frozen=True)
class Index:
    """Where every usable sample lies; arrays run over samples.

    Attributes:
        tars: Paths of the shards.
        shard: int32, number of the sample's shard in ``tars``.
        offset: int64, first byte of the image.
        size: int64, bytes of the image.
        group: int64, dense; samples of a group show the same image.
        pair_ids: Their ids.
        captions: Their texts.
        rows_in: Rows that the shards offer (status ``success``).
        dropped: (reason, pair_id, detail) of rows that cannot be used, found while indexing.
    """

    tars: tuple[str, ...]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    group: np.ndarray
    pair_ids: pa.Array
    captions: pa.Array
    rows_in: int
    dropped: tuple[tuple[str, str, str], ...]

    @property
    def groups(self) -> int:
        """Number of different images."""
        return int(self.group.max()) + 1 if len(self.group) else 0


def shard_files(folders: Sequence[str]) -> list[str]:
    """The Parquet files of finished shards folders, one per shard.

    Raises:
        UsageError: No folder was given.
        InputError: A folder is missing, unfinished, of another contract, or empty.
    """
    if not folders:
        raise UsageError("no shards to train on", hint="pass --shards DIR")
    found: list[str] = []
    for folder in folders:
        made = manifest.read(folder, made_by=SHARDS.made_by)
        if made.contract != SHARDS.id:
            raise ContractError(
                "another contract",
                where=folder,
                expected=SHARDS.id,
                found=made.contract,
                hint=f"make it with `{SHARDS.made_by}`",
            )
        root = folder.rstrip("/")
        names = [f for f in paths.list_files(folder, suffixes=(".parquet",)) if f.rsplit("/", 1)[0] == root]
        if not names:
            raise InputError("the folder has a manifest but no shards", where=folder)
        found += names
    return found


def tar_members(path: str) -> dict[str, tuple[int, int]]:
    """Byte offset and size of each key's image in a shard; a truncated tar gives what stands before the break."""
    members: dict[str, tuple[int, int]] = {}
    with paths.open_input(path, decompress=False) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    key, _, ending = info.name.rpartition("/")[2].partition(".")
                    if info.isfile() and ending.lower() in IMAGE_ENDINGS:
                        members[key] = (info.offset_data, info.size)
        except (tarfile.TarError, EOFError):
            return members  # rows whose image is not found are dropped one by one
    return members


def read_index(folders: Sequence[str]) -> Index:
    """Indexes finished shards folders; memory is about 200 bytes a sample, captions included.

    Raises:
        InputError: A folder or file is missing, unfinished or of another contract, or no sample is usable.
    """
    tars: list[str] = []
    shard: list[int] = []
    offset: list[int] = []
    size: list[int] = []
    pictures: list[str] = []
    pair_ids: list[str] = []
    captions: list[str] = []
    dropped: list[tuple[str, str, str]] = []
    rows_in = 0
    for parquet in shard_files(folders):
        SHARDS.check(tables.read_schema(parquet), where=parquet)
        tar = parquet.removesuffix(".parquet") + ".tar"
        if not paths.exists(tar):
            raise InputError("the shard's tar is missing", where=tar, hint=f"make it with `{SHARDS.made_by}`")
        members = tar_members(tar)
        for batch in tables.read_batches([parquet], columns=_COLUMNS):
            for key, pair, url, caption, status, sha in zip(
                *(batch.column(c).to_pylist() for c in _COLUMNS), strict=True
            ):
                if status != "success":
                    continue
                rows_in += 1
                if not caption.strip():
                    dropped.append(("empty_caption", pair, f"{tar} {key}"))
                elif key not in members:
                    dropped.append(("missing_image", pair, f"{tar} {key}"))
                else:
                    shard.append(len(tars))
                    offset.append(members[key][0])
                    size.append(members[key][1])
                    pictures.append(sha or url)
                    pair_ids.append(pair)
                    captions.append(caption)
        tars.append(tar)
    if not shard:
        raise InputError(
            "the shards hold no usable sample", where=", ".join(folders), found=f"{len(dropped)} dropped"
        )
    return Index(
        tars=tuple(tars),
        shard=np.array(shard, dtype=np.int32),
        offset=np.array(offset, dtype=np.int64),
        size=np.array(size, dtype=np.int64),
        group=np.unique(np.array(pictures), return_inverse=True)[1].astype(np.int64),
        pair_ids=pa.array(pair_ids),
        captions=pa.array(captions, pa.large_string()),
        rows_in=rows_in,
        dropped=tuple(dropped),
    )


def epoch_order(index: Index, *, seed: int, epoch: int) -> np.ndarray:
    """Sample numbers of one epoch, one per image, in the order they are seen; a function of its arguments alone."""
    draw = np.random.default_rng([seed, epoch])
    by_group = np.lexsort((draw.random(len(index.group)), index.group))
    first = np.flatnonzero(np.diff(index.group[by_group], prepend=-1))
    chosen = by_group[first]
    window = draw.permutation(len(index.tars))[index.shard[chosen]] // WINDOW_SHARDS
    return chosen[np.lexsort((draw.random(len(chosen)), window))]


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

    Args:
        index: The samples.
        tokenizer: For the captions.
        batch_size: Samples of a batch; at most the number of different images.
        image_size: Pixels of the random square crop.
        short_side: Pixels to which an image's short side is resized first.
        seed: Of order, captions and crops.
        cache_bytes: Keep decoded images in memory if all of them fit into this many bytes.
        max_corrupt_share: Stop when more than this share of all samples proves corrupt.
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
    ) -> None:
        if batch_size > index.groups:
            raise UsageError(
                "the batch is larger than the number of different images",
                where="train.batch_size",
                expected=f"at most {index.groups:,}",
                found=f"{batch_size:,}",
                hint="set batch_size",
            )
        self.index, self.tokenizer, self.batch_size = index, tokenizer, batch_size
        self.image_size, self.short_side, self.seed = image_size, short_side, seed
        self.max_corrupt = max_corrupt_share * index.rows_in
        self.epoch, self.place = 0, 0
        self.corrupt: dict[int, str] = {}
        # Images are seldom square: half as much again is the allowance for the long side.
        self._keep = index.groups * short_side**2 * 3 * 1.5 <= cache_bytes
        self._kept: dict[int, np.ndarray] = {}
        self._files: dict[int, IO[bytes]] = {}
        self._order = epoch_order(index, seed=seed, epoch=0)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; what is left over is seen in other epochs."""
        return self.index.groups // self.batch_size

    def go_to(self, epoch: int, place: int) -> None:
        """Sets the position: the epoch and how many samples of its order have been taken."""
        self.epoch, self.place = epoch, place
        self._order = epoch_order(self.index, seed=self.seed, epoch=epoch)

    def next_batch(self) -> Batch:
        """The next full batch; a batch never reaches across two epochs.

        Raises:
            InputError: Too many samples are corrupt.
        """
        while True:
            start = self.place
            draw = np.random.default_rng([self.seed, self.epoch, start])
            samples: list[int] = []
            pixels: list[np.ndarray] = []
            for sample, image in self._images():
                samples.append(sample)
                pixels.append(crop(image, self.image_size, *draw.random(2)))
                if len(samples) == self.batch_size:
                    texts = [self.index.captions[s].as_py() for s in samples]
                    return Batch(np.stack(pixels), trim(self.tokenizer(texts)), np.array(samples))
            if start == 0:
                raise InputError(
                    "too few images can be decoded for one batch",
                    found=f"{len(samples)} of {self.batch_size}",
                )
            self.go_to(self.epoch + 1, 0)

    def _images(self) -> Iterator[tuple[int, np.ndarray]]:
        while self.place < len(self._order):
            sample = int(self._order[self.place])
            self.place += 1
            if sample in self.corrupt:
                continue
            try:
                yield sample, self._pixels(sample)
            except BadImageError as error:
                self.corrupt[sample] = str(error)
                if len(self.corrupt) > self.max_corrupt:
                    raise InputError(
                        "too many corrupt images",
                        where=self.index.tars[self.index.shard[sample]],
                        found=f"{len(self.corrupt):,} of {self.index.rows_in:,}, the last: {error}",
                        hint="check the shards or raise max_corrupt_share",
                    ) from error

    def _pixels(self, sample: int) -> np.ndarray:
        group = int(self.index.group[sample])
        kept = self._kept.get(group)
        if kept is None:
            kept = np.asarray(decode(self._read(sample), short_side=self.short_side))
            if self._keep:
                self._kept[group] = kept
        return kept

    def _read(self, sample: int) -> bytes:
        shard = int(self.index.shard[sample])
        if shard not in self._files:
            if len(self._files) >= _OPEN_FILES:
                self.close()
            self._files[shard] = paths.open_input(self.index.tars[shard], decompress=False)
        file = self._files[shard]
        file.seek(int(self.index.offset[sample]))
        return file.read(int(self.index.size[sample]))

    def close(self) -> None:
        """Closes the shards."""
        for file in self._files.values():
            file.close()
        self._files.clear()

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
