"""Where pictures come from: shards, ImageFolders, plain folders, single files and Parquet tables of pictures.

A source is planned as a list of chunks; a chunk is small to send to a worker, is read in a fixed order, and gives
encoded pictures one at a time, so memory is bounded by one picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import manifest, paths, tables, tars
from pipeline.core.contracts import SHARDS
from pipeline.core.errors import ContractError, InputError, UnfinishedInputError, UsageError
from pipeline.core.stage import MARKER

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FILES_PER_CHUNK = 256
MEMBERS = ("jpg", "jpeg", "webp", "png", "gif", "bmp")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One encoded picture.

    Attributes:
        id: ``pair_id`` in shards, path relative to its folder elsewhere.
        label: Class folder or ``label`` column, if there is one.
        source: Where it comes from: the site in shards, the folder or table elsewhere.
        same: Pictures with an equal mark are the same one (URL in shards); ``None`` where only bytes can tell.
        data: Encoded bytes; ``None`` if they are not there.
        problem: Why there are no bytes.
    """

    id: str
    label: str | None
    source: str
    same: str | None
    data: bytes | None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Pictures that are read together, in a fixed order.

    Attributes:
        kind: ``shard``, ``files`` or ``table``.
        dataset: Name of the data set they belong to.
        root: Folder that ids are relative to, or the table's path.
        names: Files relative to ``root``; the shard's stem; or the row group's number.
        rows: Pictures in it.
    """

    kind: str
    dataset: str
    root: str
    names: tuple[str, ...]
    rows: int


def plan(sources: Sequence[str], *, dataset: str | None = None) -> list[Chunk]:
    """Plans PATH arguments into chunks, in a fixed order.

    Args:
        sources: Folders, files, globs or URLs.
        dataset: Name for all of them; else each path's own last name.

    Raises:
        UsageError: No path, or two pictures of one data set would have the same id.
        InputError: A path is missing, empty, or unfinished; ContractError: it holds something else.
    """
    if not sources:
        raise UsageError("no pictures given", hint="pass --images PATH")
    chunks: list[Chunk] = []
    loose: dict[str, list[str]] = {}
    for source in sources:
        name = dataset or dataset_name(source)
        if not paths.is_folder(source):
            for file in paths.expand([source], what="pictures"):
                if file.lower().endswith(".parquet"):
                    chunks += _plan_table(file, dataset or dataset_name(file))
                else:
                    root, _, base = file.rpartition("/")
                    loose.setdefault(root or ".", []).append(base)
        elif paths.exists(paths.join(source, manifest.NAME)) or paths.exists(paths.join(source, MARKER)):
            chunks += _plan_shards(source, name)
        else:
            chunks += _plan_folder(source, name)
    for root, names in sorted(loose.items()):
        chunks += _file_chunks(root, sorted(set(names)), dataset or dataset_name(root))
    _check_unique(chunks)
    return chunks


def dataset_name(path: str) -> str:
    """A path's last name without suffix."""
    base = path.rstrip("/").rpartition("/")[2]
    stem, dot, _ = base.rpartition(".")
    return stem if dot and stem else base or "images"


def _check_unique(chunks: Sequence[Chunk]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for chunk in chunks:
        if chunk.kind != "files":
            continue
        for name in chunk.names:
            before = seen.setdefault((chunk.dataset, name), chunk.root)
            if before != chunk.root:
                raise UsageError(
                    f"two pictures of data set {chunk.dataset!r} have the id {name!r}",
                    where=chunk.root,
                    found=f"also in {before}",
                    hint="embed the folders one by one, each with its own --dataset",
                )


def _plan_shards(folder: str, dataset: str) -> list[Chunk]:
    manifest.read(folder, made_by=SHARDS.made_by, contract=SHARDS.id)
    chunks = []
    for file in paths.list_files(folder, suffixes=(".parquet",)):
        stem = file.rpartition("/")[2].removesuffix(".parquet")
        if file != paths.join(folder, f"{stem}.parquet") or not stem.isdigit():
            continue
        SHARDS.check(tables.read_schema(file), where=file)
        rows = tables.read_files([file], columns=["status"]).column("status").to_pylist().count("success")
        if not paths.exists(paths.join(folder, f"{stem}.tar")):
            raise InputError("a shard's tar is missing", where=paths.join(folder, f"{stem}.tar"))
        chunks.append(Chunk(kind="shard", dataset=dataset, root=folder, names=(stem,), rows=rows))
    if not chunks:
        raise InputError("the folder holds no shards", where=folder, expected="files like 00000.parquet")
    return chunks


def _plan_folder(folder: str, dataset: str) -> list[Chunk]:
    files = paths.list_files(folder, suffixes=SUFFIXES)
    prefix = len(folder.rstrip("/")) + 1
    if files:
        return _file_chunks(folder, [f[prefix:] for f in files], dataset)
    if paths.list_files(folder, suffixes=(".tar",)):
        raise UnfinishedInputError(
            "the folder has shards but no manifest.json",
            where=folder,
            hint=f"finish it with `{SHARDS.made_by}`",
        )
    found = paths.list_files(folder, suffixes=(".parquet",))
    if not found:
        raise InputError(
            "the folder holds no pictures", where=folder, expected=f"files ending in {', '.join(SUFFIXES)}"
        )
    return [chunk for file in found for chunk in _plan_table(file, dataset)]


def _file_chunks(root: str, names: Sequence[str], dataset: str) -> list[Chunk]:
    return [
        Chunk(kind="files", dataset=dataset, root=root, names=tuple(part), rows=len(part))
        for start in range(0, len(names), FILES_PER_CHUNK)
        for part in [names[start : start + FILES_PER_CHUNK]]
    ]


def _plan_table(file: str, dataset: str) -> list[Chunk]:
    schema = tables.read_schema(file)
    if "image" not in schema.names or not any(n in schema.names for n in ("id", "pair_id")):
        raise ContractError(
            "not a table of pictures",
            where=file,
            expected="columns `image` (binary) and `id` or `pair_id`",
            found=", ".join(schema.names),
        )
    kind = schema.field("image").type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ContractError(
            "column 'image' has the wrong type",
            where=file,
            expected="binary",
            found=schema.field("image").type,
        )
    with paths.open_input(file, decompress=False) as opened:
        footer = pq.ParquetFile(opened).metadata
        return [
            Chunk(
                kind="table", dataset=dataset, root=file, names=(str(i),), rows=footer.row_group(i).num_rows
            )
            for i in range(footer.num_row_groups)
        ]


def read(chunk: Chunk) -> Iterator[Picture]:
    """Streams a chunk's pictures in their fixed order; what cannot be read comes with its problem."""
    return {"shard": _read_shard, "files": _read_files, "table": _read_table}[chunk.kind](chunk)


def _read_shard(chunk: Chunk) -> Iterator[Picture]:
    base = paths.join(chunk.root, chunk.names[0])
    columns = ["key", "pair_id", "url", "status"]
    rows = tables.read_files([f"{base}.parquet"], columns=columns).to_pylist()
    waiting = {row["key"]: row for row in rows if row["status"] == "success"}
    problem = "the tar has no picture of this key"
    try:
        for sample in tars.read_shard(f"{base}.tar"):
            row = waiting.pop(sample.key, None)
            if row is None:
                continue
            data = next((sample.members[m] for m in MEMBERS if m in sample.members), None)
            yield _shard_picture(row, data, None if data is not None else problem)
    except InputError as error:
        problem = str(error)
    for row in waiting.values():
        yield _shard_picture(row, None, problem)


def _shard_picture(row: dict[str, Any], data: bytes | None, problem: str | None) -> Picture:
    return Picture(
        id=row["pair_id"],
        label=None,
        source=_site(row["url"]),
        same=row["url"],
        data=data,
        problem=problem,
    )


def _site(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:  # as of brackets that are no IPv6 address
        return url


def _read_files(chunk: Chunk) -> Iterator[Picture]:
    for name in chunk.names:
        label = name.partition("/")[0] if "/" in name else None
        data, problem = None, None
        try:
            data = paths.read_bytes(paths.join(chunk.root, name))
        except (InputError, OSError) as error:
            problem = str(error)
        yield Picture(id=name, label=label, source=chunk.root, same=None, data=data, problem=problem)


def _read_table(chunk: Chunk) -> Iterator[Picture]:
    with paths.open_input(chunk.root, decompress=False) as opened:
        file = pq.ParquetFile(opened)
        names = file.schema_arrow.names
        key = "id" if "id" in names else "pair_id"
        columns = [key, "image", *(["label"] if "label" in names else [])]
        try:
            for batch in file.iter_batches(64, row_groups=[int(chunk.names[0])], columns=columns):
                for row in batch.to_pylist():
                    data = row["image"]
                    data = data.get("bytes") if isinstance(data, dict) else data
                    label = row.get("label")
                    yield Picture(
                        id=str(row[key]),
                        label=None if label is None else str(label),
                        source=chunk.root,
                        same=None,
                        data=data,
                        problem=None if data is not None else "the image is null",
                    )
        except (pa.ArrowException, OSError) as error:
            raise InputError("damaged Parquet file", where=chunk.root, found=str(error)) from error
