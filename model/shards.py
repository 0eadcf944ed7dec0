"""What there is to train on: the builder's shards, img2dataset's folders and plain WebDataset tars, as one index.

Every caption is a sample; samples that show the same image form a group, which an epoch sees once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.tar_index import listing
from pipeline.core import manifest, paths, tables
from pipeline.core.contracts import SHARDS
from pipeline.core.errors import ContractError, InputError, UnfinishedInputError, UsageError

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
_COLUMNS = ["key", "pair_id", "url", "caption", "status", "sha256", "query_id"]


@dataclass(frozen=True)
class Index:
    """Where every usable sample lies; arrays run over samples.

    Attributes:
        tars: Paths of the shards.
        shard: int32, number of the sample's shard in ``tars``.
        offset: int64, first byte of the image.
        size: int64, bytes of the image.
        group: int64, dense; samples of a group show the same image.
        query: int32, the query that the sample counts for; -1 where none is known.
        pair_ids: Their ids; in shards that others made, their keys.
        captions: Their texts.
        rows_in: Captions that the shards offer (of images stored with success).
        dropped: (reason, pair_id, detail) of captions that cannot be used, found while indexing.
    """

    tars: tuple[str, ...]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    group: np.ndarray
    query: np.ndarray
    pair_ids: pa.Array
    captions: pa.Array
    rows_in: int
    dropped: tuple[tuple[str, str, str], ...]

    @property
    def groups(self) -> int:
        """Number of different images."""
        return int(self.group.max()) + 1 if len(self.group) else 0


@dataclass
class _Rows:
    """Samples while they are collected."""

    shard: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    picture: list[str] = field(default_factory=list)
    query: list[int] = field(default_factory=list)
    pair_ids: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    dropped: list[tuple[str, str, str]] = field(default_factory=list)
    rows_in: int = 0

    def add(
        self, shard: int, tar: str, key: str, pair: str, caption: str, place: tuple[int, int] | None,
        picture: str, query: int,
    ) -> None:  # fmt: skip
        self.rows_in += 1
        if not caption.strip():
            self.dropped.append(("empty_caption", pair, f"{tar} {key}"))
        elif place is None:
            self.dropped.append(("missing_image", pair, f"{tar} {key}"))
        else:
            self.shard.append(shard)
            self.offset.append(place[0])
            self.size.append(place[1])
            self.picture.append(picture)
            self.query.append(query)
            self.pair_ids.append(pair)
            self.captions.append(caption)


def shard_files(folders: Sequence[str]) -> list[str]:
    """The shards' tars, in order: of finished folders of ours, of img2dataset's folders, and tars named one by one.

    Raises:
        UsageError: No folder was given.
        InputError: A folder is missing, unfinished, of another contract, or empty.
    """
    if not folders:
        raise UsageError("no shards to train on", hint="pass --shards DIR")
    found: list[str] = []
    for folder in folders:
        if folder.endswith(".tar") or any(sign in folder for sign in "*?["):
            found += paths.expand([folder], suffixes=(".tar",), what="shards")
        else:
            found += _in_folder(folder)
    return found


def _in_folder(folder: str) -> list[str]:
    root = folder.rstrip("/")
    here = (
        [f for f in paths.list_files(folder) if f.rsplit("/", 1)[0] == root] if paths.exists(folder) else []
    )
    names = set(here)
    tables_here = [f for f in here if f.endswith(".parquet")]
    if f"{root}/{manifest.NAME}" not in names and any(f.endswith(".tar") for f in here):
        _refuse_unfinished(folder, names, tables_here)
        return [f for f in here if f.endswith(".tar")]
    manifest.read(folder, made_by=SHARDS.made_by, contract=SHARDS.id)
    if not tables_here:
        raise InputError("the folder has a manifest but no shards", where=folder)
    for table in tables_here:
        tar = table.removesuffix(".parquet") + ".tar"
        if tar not in names:
            raise InputError("the shard's tar is missing", where=tar, hint=f"make it with `{SHARDS.made_by}`")
    return [f.removesuffix(".parquet") + ".tar" for f in tables_here]


def _refuse_unfinished(folder: str, names: set[str], tables_here: Sequence[str]) -> None:
    """A folder without a manifest may be somebody else's, but not half of ours or half of img2dataset's."""
    if f"{folder.rstrip('/')}/unfinished.json" in names or (tables_here and _is_ours(tables_here[0])):
        raise UnfinishedInputError(
            "the folder is unfinished: it has no manifest.json",
            where=folder,
            hint=f"finish it with `{SHARDS.made_by}`",
        )
    if not any(f.endswith("_stats.json") for f in names):
        return
    for tar in sorted(f for f in names if f.endswith(".tar")):
        if tar.removesuffix(".tar") + "_stats.json" not in names:
            raise UnfinishedInputError(
                "the shard is unfinished: img2dataset writes its _stats.json last",
                where=tar,
                hint="finish it with img2dataset or remove it",
            )


def _is_ours(parquet: str) -> bool:
    return any(k.startswith(b"wit.") for k in tables.read_schema(parquet).metadata or {})


def tar_members(path: str) -> dict[str, dict[str, tuple[int, int]]]:
    """First byte and size of each key's members by ending; a damaged tar gives what stands before the damage."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, offset, size in listing(path):  # rows whose image is not found are dropped one by one
        key, _, ending = name.decode("utf-8", "replace").rpartition("/")[2].partition(".")
        found.setdefault(key, {})[ending.lower()] = (offset, size)
    return found


def _image_places(path: str) -> dict[bytes, tuple[int, int]]:
    """First byte and size of each key's image, as :func:`tar_image` chooses it."""
    by_ending: dict[bytes, dict[bytes, tuple[int, int]]] = {e.encode(): {} for e in reversed(IMAGE_ENDINGS)}
    for name, offset, size in listing(path):
        key, _, ending = name.rpartition(b"/")[2].partition(b".")
        images = by_ending.get(ending.lower())
        if images is not None:
            images[key] = (offset, size)
    found: dict[bytes, tuple[int, int]] = {}
    for images in by_ending.values():  # the first of the endings is the last to write
        found.update(images)
    return found


def tar_image(parts: dict[str, tuple[int, int]] | None) -> tuple[int, int] | None:
    """First byte and size of the image among a key's members."""
    for ending in IMAGE_ENDINGS:
        if parts is not None and ending in parts:
            return parts[ending]
    return None


def read_index(folders: Sequence[str], *, captions: Sequence[str] = ("txt",)) -> Index:
    """Indexes shards; memory is about 200 bytes a sample, captions included.

    Args:
        folders: As :func:`shard_files` takes them.
        captions: In plain WebDataset tars, where a sample's captions are: endings of text members (``txt``), or
            ``json.FIELD`` for a string, or a list of strings, in its JSON member.

    Raises:
        InputError: A folder or file is missing, unfinished or of another contract, or no sample is usable.
    """
    rows = _Rows()
    tars = shard_files(folders)
    for number, tar in enumerate(tars):
        parquet = tar.removesuffix(".tar") + ".parquet"
        if paths.exists(parquet):
            _add_table(rows, number, tar, parquet)
        else:
            _add_plain(rows, number, tar, captions)
    if not rows.shard:
        raise InputError(
            "the shards hold no usable sample", where=", ".join(folders), found=f"{len(rows.dropped)} dropped"
        )
    return Index(
        tars=tuple(tars),
        shard=np.array(rows.shard, dtype=np.int32),
        offset=np.array(rows.offset, dtype=np.int64),
        size=np.array(rows.size, dtype=np.int64),
        group=np.unique(np.array(rows.picture), return_inverse=True)[1].astype(np.int64),
        query=np.array(rows.query, dtype=np.int32),
        pair_ids=pa.array(rows.pair_ids),
        captions=pa.array(rows.captions, pa.large_string()),
        rows_in=rows.rows_in,
        dropped=tuple(rows.dropped),
    )


def _add_table(rows: _Rows, number: int, tar: str, parquet: str) -> None:
    """A shard with a table: ours, or img2dataset's, which lacks some of our columns."""
    schema = tables.read_schema(parquet)
    if _is_ours(parquet):
        SHARDS.check(schema, where=parquet)
    needed = ("key", "caption", "status")
    missing = [c for c in needed if c not in schema.names]
    if missing:
        raise ContractError(
            "a shard's table lacks a column",
            where=parquet,
            expected=", ".join(needed),
            found=f"no {missing[0]}",
        )
    found = _image_places(tar)
    columns = [c for c in _COLUMNS if c in schema.names]
    for batch in tables.read_batches([parquet], columns=columns):
        kept = batch.filter(pc.equal(batch["status"], "success"))
        values = {c: kept[c].to_pylist() for c in columns}
        none = [None] * len(kept)
        ids, shas, urls, queries = (values.get(c, none) for c in ("pair_id", "sha256", "url", "query_id"))
        for key, caption, pair, sha, url, query in zip(
            map(str, values["key"]), values["caption"], ids, shas, urls, queries, strict=True
        ):
            rows.add(
                number, tar, key, str(pair or key), caption or "", found.get(key.encode()),
                str(sha or url or f"{tar} {key}"), query if isinstance(query, int) else -1,
            )  # fmt: skip


def _add_plain(rows: _Rows, number: int, tar: str, captions: Iterable[str]) -> None:
    """A WebDataset tar without a table: one sample per caption of each key."""
    with paths.open_input(tar, decompress=False) as file:
        for key, parts in tar_members(tar).items():
            image = tar_image(parts)
            texts: list[str] = []
            for source in captions:
                ending, _, name = source.partition(".")
                if ending in parts:
                    offset, size = parts[ending]
                    file.seek(offset)
                    texts += _texts(file.read(size), name)
            for text in texts or ([""] if image is not None else []):
                rows.add(number, tar, key, key, text, image, f"{tar} {key}", -1)


def _texts(data: bytes, name: str) -> list[str]:
    if not name:
        return [data.decode("utf-8", "replace").strip()]
    try:
        found = json.loads(data)[name]
    except (ValueError, KeyError, TypeError):
        return []
    return [t for t in (found if isinstance(found, list) else [found]) if isinstance(t, str)]
