"""Raw downloads between fetching and shard writing, so that a retried shard never asks the web again.

``.staging/<groups>/`` holds, for each group of hosts, parts (``00003-1f0c22ab-000007.bin``: bodies one after the
other, with a ``.parquet`` of that name: one row per URL with its place in them) and, when the group is finished,
``00003.parquet``: its pairs with what came of their URLs. Every file appears whole and an index after its bodies,
so what a killed run leaves behind can be trusted and is not fetched again. The middle of a part's name is drawn
anew for each attempt: an engine that runs a group twice at once mixes nothing up.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import paths, tables
from pipeline.fetch.client import Answer
from pipeline.fetch.policy import Target

FOLDER = ".staging"
PART_URLS = 256
PART_BYTES = 32 * 2**20
PART_SECONDS = 60.0

RESULT = pa.schema(
    [
        pa.field("fetch_url", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("http_status", pa.int32()),
        pa.field("sha256", pa.string()),
        pa.field("bodies", pa.string()),  # file name of the bodies
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
    ]
)


def write_parquet(path: str, table: pa.Table) -> None:
    """Writes an internal table atomically."""
    with paths.open_atomic(path) as file:
        pq.write_table(table, file, compression="zstd")


class GroupStaging:
    """The staged answers of one group of hosts.

    Args:
        folder: The staging folder.
        group: Number of the group.
    """

    def __init__(self, folder: str, group: int) -> None:
        self.folder, self.group = folder, group
        self._rows: list[dict[str, Any]] = []
        self._bodies = bytearray()
        self._attempt = uuid.uuid4().hex[:8]
        self._part = 0
        self._since = time.monotonic()

    @property
    def pairs_file(self) -> str:
        """The group's pairs with what came of them; its presence says that the group is finished."""
        return paths.join(self.folder, f"{self.group:05d}.parquet")

    def _indexes(self) -> list[str]:
        if not paths.exists(self.folder):
            return []
        head = f"{self.group:05d}-"
        files = paths.list_files(self.folder, suffixes=(".parquet",))
        return [f for f in files if f.rsplit("/", 1)[1].startswith(head)]

    def results(self) -> pa.Table:
        """All staged rows of the group (:data:`RESULT`), without bodies."""
        files = self._indexes()
        return tables.read_files(files).cast(RESULT) if files else RESULT.empty_table()

    def write(self, answers: Iterable[tuple[Target, Answer]]) -> Iterator[int]:
        """Stages answers as they come and yields 1 for each; memory is bounded by a part."""
        for target, answer in answers:
            self._add(target, answer)
            old = time.monotonic() - self._since > PART_SECONDS
            if len(self._rows) >= PART_URLS or len(self._bodies) >= PART_BYTES or old:
                self.flush()
            yield 1
        self.flush()

    def _add(self, target: Target, answer: Answer) -> None:
        refusal = answer.refusal
        self._rows.append(
            {
                "fetch_url": target.url,
                "reason": None if refusal is None else refusal.reason,
                "detail": None if refusal is None else refusal.detail,
                "http_status": answer.http_status,
                "sha256": hashlib.sha256(answer.body).hexdigest() if refusal is None else None,
                "bodies": self._name() + ".bin" if refusal is None else None,
                "offset": len(self._bodies),
                "length": len(answer.body) if refusal is None else 0,
            }
        )
        if refusal is None:
            self._bodies += answer.body

    def _name(self) -> str:
        return f"{self.group:05d}-{self._attempt}-{self._part:06d}"

    def flush(self) -> None:
        """Writes what is held as the next part: bodies first, then the index that names them."""
        if self._rows:
            paths.write_bytes(paths.join(self.folder, self._name() + ".bin"), bytes(self._bodies))
            table = pa.Table.from_pylist(self._rows, schema=RESULT)
            write_parquet(paths.join(self.folder, self._name() + ".parquet"), table)
            self._part += 1
        self._rows, self._bodies, self._since = [], bytearray(), time.monotonic()


def group_files(folder: str) -> list[str]:
    """The pairs files of all finished groups."""
    return [f for f in paths.list_files(folder, suffixes=(".parquet",)) if "-" not in f.rsplit("/", 1)[1]]


class Bodies:
    """Reads staged bodies by their place; keeps the last file open. Use as a context manager.

    Args:
        folder: The staging folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._name: str | None = None
        self._file: Any = None

    def __enter__(self) -> Bodies:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, name: str, offset: int, length: int) -> bytes:
        """The bytes of one body."""
        if name != self._name:
            if self._file is not None:
                self._file.close()
            self._file = paths.open_input(paths.join(self.folder, name), decompress=False)
            self._name = name
        self._file.seek(offset)
        data: bytes = self._file.read(length)
        return data
