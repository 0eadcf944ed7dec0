"""What a run has downloaded and decoded so far, so that nothing is asked of the web or decoded twice.

``.staging/raw/`` holds parts of downloads: bodies one after the other (``1-00003-1f0c22ab-000007.bin``) and, when
the part is full, an index of that name (``.parquet``: one row per URL with its place). Until then each answer
stands in a journal (``.jsonl``) as soon as it has come, so a killed run loses the requests in flight and no more.
``.staging/decoded/`` holds the same parts with encoded images instead of bodies; an attempt at a part adds letters of
its own to the name of its images. Every index appears whole and after its bodies, so what a killed run leaves behind
can be trusted. A part's name holds the groups of hosts, the group, and letters drawn anew for each attempt: an engine
that runs a group twice at once mixes nothing up.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import IO, Any, Final, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipeline.core import paths, tables
from pipeline.fetch.client import Answer
from pipeline.fetch.policy import Target

FOLDER: Final = ".staging"
RAW: Final = "raw"
DECODED: Final = "decoded"
SPILLED: Final = "spill"
PART_URLS = 512
PART_BYTES = 64 * 2**20
PART_SECONDS = 60.0  # only where a part cannot be written bit by bit
OPEN_FILES: Final = 64
_HERE: Final = "@/"  # begins the names of bodies that lie in the staging folder itself


def spill_folder(work: str) -> str:
    """Where rows on their way to a part or shard wait; emptied after each pass."""
    return paths.join(work, SPILLED)


# One row per URL: what the web said and, after decoding, what image it is.
ROW = pa.schema(
    [
        pa.field("fetch_url", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("http_status", pa.int32()),
        pa.field("sha256", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("final_url", pa.string()),
        pa.field("content_type", pa.string()),
        pa.field("etag", pa.string()),
        pa.field("last_modified", pa.string()),
        pa.field("source", pa.string()),  # the folder that it was taken over from; null: the web
        pa.field("width", pa.int32()),  # null: not decoded yet, or no image
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("exif", pa.string()),
        pa.field("phash", pa.string()),
        pa.field("image_rights", pa.string()),
        pa.field("image_score", pa.float64()),
        pa.field("bodies", pa.string()),  # file that holds the body or the image
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
    ]
)
STAGED: Final = ("fetch_url", "reason", "source")
Row = dict[str, Any]


def write_parquet(path: str, table: pa.Table) -> None:
    """Writes an internal table atomically."""
    with paths.open_atomic(path) as file:
        pq.write_table(table, file, compression="zstd")


def row_of(url: str, answer: Answer) -> Row:
    """What is known of a URL after its request, without a place."""
    refusal, body = answer.refusal, answer.body
    taken = refusal is None
    return {
        "fetch_url": url,
        "reason": None if refusal is None else refusal.reason,
        "detail": None if refusal is None else refusal.detail,
        "http_status": answer.http_status,
        "sha256": hashlib.sha256(body).hexdigest() if taken else None,
        "bytes": len(body) if taken else None,
        "final_url": answer.final_url,
        "content_type": answer.content_type,
        "etag": answer.etag,
        "last_modified": answer.last_modified,
    }


def indexes(folder: str, prefix: str = "") -> list[str]:
    """The index files of a folder of parts, sorted."""
    if not paths.exists(folder):
        return []
    return [
        f for f in paths.list_files(folder, suffixes=(".parquet",)) if f.rsplit("/", 1)[1].startswith(prefix)
    ]


class GroupStaging:
    """The downloads of one group of hosts.

    Args:
        work: The staging folder.
        groups: Number of groups of this run.
        group: Number of the group.
    """

    def __init__(self, work: str, groups: int, group: int) -> None:
        self.folder = paths.join(work, RAW)
        self.prefix = f"{groups}-{group:05d}-"
        self._attempt = uuid.uuid4().hex[:8]
        self._parts = 0
        self._local = isinstance(paths.filesystem(self.folder)[0], LocalFileSystem)

    def done(self) -> list[pa.Table]:
        """What is staged of the group: ``fetch_url``, ``reason`` and ``source``."""
        recover(self.folder, self.prefix)
        files = indexes(self.folder, self.prefix)
        return [tables.read_files(files, columns=list(STAGED))] if files else []

    def _name(self) -> str:
        self._parts += 1
        return f"{self.prefix}{self._attempt}-{self._parts:06d}"

    def take_over(self, rows: pa.Table) -> None:
        """Stages rows whose bodies lie elsewhere, or that have none (columns of :data:`ROW`)."""
        for start in range(0, rows.num_rows, PART_URLS):
            part = rows.slice(start, PART_URLS).select(ROW.names).cast(ROW)
            write_parquet(paths.join(self.folder, f"{self._name()}.parquet"), part)

    def write(self, answers: Iterable[tuple[Target, Answer]]) -> Iterator[int]:
        """Stages answers as they come and yields 1 for each; memory is bounded by a part."""
        part: _Part | None = None
        paths.make_folder(self.folder)
        try:
            for target, answer in answers:
                if part is None:
                    part = (_Journal if self._local else _Held)(self.folder, self._name())
                part.add(row_of(target.url, answer), answer.body if answer.refusal is None else b"")
                if part.full:
                    part.finish()
                    part = None
                yield 1
        finally:
            if part is not None:
                part.finish()


class _Part(ABC):
    """Bodies and rows of one part."""

    def __init__(self, folder: str, name: str) -> None:
        self.folder, self.name = folder, name
        self.rows: list[Row] = []
        self.size = 0
        self._since = time.monotonic()

    @property
    def full(self) -> bool:
        return len(self.rows) >= PART_URLS or self.size >= PART_BYTES

    def path(self, ending: str) -> str:
        return paths.join(self.folder, self.name + ending)

    def add(self, row: Row, body: bytes) -> None:
        bodies = f"{_HERE}{RAW}/{self.name}.bin" if row["reason"] is None else None
        row |= {"bodies": bodies, "offset": self.size, "length": len(body)}
        self.keep(row, body)
        self.rows.append(row)
        self.size += len(body)

    @abstractmethod
    def keep(self, row: Row, body: bytes) -> None:
        """Keeps an answer where a kill leaves it, or in memory until the part is finished."""

    def finish(self) -> None:
        write_parquet(self.path(".parquet"), pa.Table.from_pylist(self.rows, schema=ROW))


class _Journal(_Part):
    """A part on a local disk: each answer is there, body first, before the next request of its host is made."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(folder, name)
        self._bodies = self._open(".bin")
        self._journal = self._open(".jsonl")

    def _open(self, ending: str) -> IO[bytes]:
        return open(paths.filesystem(self.path(ending))[1], "wb", buffering=0)

    def keep(self, row: Row, body: bytes) -> None:
        with paths.output_errors(self.folder):
            _write_all(self._bodies, body)
            _write_all(self._journal, json.dumps(row).encode() + b"\n")

    def finish(self) -> None:
        with paths.output_errors(self.folder):
            os.fsync(self._bodies.fileno())
            self._bodies.close()
            self._journal.close()
        super().finish()
        paths.remove(self.path(".jsonl"))


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]


class _Held(_Part):
    """A part for an object store, where a file can only be written at once."""

    def __init__(self, folder: str, name: str) -> None:
        super().__init__(folder, name)
        self._held = bytearray()

    @property
    def full(self) -> bool:
        return super().full or time.monotonic() - self._since > PART_SECONDS

    def keep(self, row: Row, body: bytes) -> None:
        self._held += body

    def finish(self) -> None:
        paths.write_bytes(self.path(".bin"), bytes(self._held))
        super().finish()


def recover(folder: str, prefix: str = "") -> None:
    """Makes the index of parts that a killed run was still writing, from their journals.

    A line that was cut off, or whose body is not wholly there, does not count; nor does what comes after it.
    """
    if not paths.exists(folder):
        return
    for journal in paths.list_files(folder, suffixes=(".jsonl",)):
        stem = journal.removesuffix(".jsonl")
        if not journal.rsplit("/", 1)[1].startswith(prefix):
            continue
        if not paths.exists(f"{stem}.parquet") and paths.exists(f"{stem}.bin"):
            rows = list(_complete(paths.read_bytes(journal), f"{stem}.bin"))
            write_parquet(f"{stem}.parquet", pa.Table.from_pylist(rows, schema=ROW))
        paths.remove(journal)


def _complete(journal: bytes, bodies: str) -> Iterator[Row]:
    with paths.open_input(bodies, decompress=False) as file:
        for line in journal.splitlines(keepends=True):
            try:
                row = cast(Row, json.loads(line))
            except ValueError:
                return
            body = file.read(row["length"])
            whole = row["reason"] is not None or hashlib.sha256(body).hexdigest() == row["sha256"]
            if not line.endswith(b"\n") or len(body) < row["length"] or not whole:
                return
            yield row


def best_of(rows: pa.Table) -> pa.Table:
    """One row per URL: a group that ran twice at once staged some twice, and a success counts more than a failure."""
    failed = rows.column("reason").is_valid()
    ordered = rows.append_column("failed", failed).sort_by(
        [
            (name, "ascending")
            for name in ("fetch_url", "failed", "reason", "detail", "sha256", "bodies", "offset")
        ]
    )
    urls = ordered.column("fetch_url").to_pylist()
    first = [i for i, url in enumerate(urls) if not i or url != urls[i - 1]]
    return ordered.take(pa.array(first, pa.int64())).drop_columns(["failed"])


def read_rows(file: str) -> Iterator[pa.Table]:
    """The rows of an index file, a table at a time."""
    for batch in tables.read_batches([file]):
        yield pa.Table.from_batches([batch]).cast(ROW)


class Bodies:
    """Reads bodies and images by their place; keeps some files open. Use as a context manager.

    Args:
        work: The staging folder.
    """

    def __init__(self, work: str) -> None:
        self.work = work
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def path(self, name: str) -> str:
        """The file that a row's ``bodies`` names."""
        return paths.join(self.work, name.removeprefix(_HERE)) if name.startswith(_HERE) else name

    def read(self, row: Mapping[str, Any]) -> bytes:
        """The bytes of a row's body or image."""
        name = str(row["bodies"])
        if name not in self._files:
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[name] = paths.open_input(self.path(name), decompress=False)
        self._files.move_to_end(name)
        file = self._files[name]
        file.seek(row["offset"])
        return file.read(row["length"])


def decoded_bodies(name: str) -> str:
    """What rows call a file of images of a decoded part."""
    return f"{_HERE}{DECODED}/{name}.bin"
