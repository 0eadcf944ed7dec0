"""Rows on their way to a part wait in files: what goes through an engine's shuffle are names of files.

A local engine keeps its shuffle in memory, so rows in it would bound a laptop's run by its memory.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from pipeline.core import paths

SPILL_BYTES = 32 << 20
READ_AT_ONCE, READ_BYTES = 64, 8 << 20

# A spilled chunk: its file, where it begins there, and where it ends. It says itself what its columns are: a file of
# many parts has no index that each of them would have to read.
Chunk = tuple[str, int, int]


def split(rows: pa.Table, part: np.ndarray) -> list[tuple[int, pa.Table]]:
    """The rows of each part, ascending by part, in the order in which they stand.

    Args:
        rows: Rows.
        part: int64[n], each one's part.
    """
    if not len(part):
        return []
    if part.min() == part.max():
        return [(int(part[0]), rows)]
    order = np.argsort(part, kind="stable")
    numbers, starts = np.unique(part[order], return_index=True)
    in_order = rows.take(pa.array(order)).combine_chunks()
    ends = np.r_[starts[1:], len(order)]
    return [
        (number, in_order.slice(start, end - start))
        for number, start, end in zip(numbers.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ]


def write_chunks(
    folder: str, tables_by_part: Sequence[tuple[int, Sequence[pa.Table]]]
) -> list[tuple[int, Chunk]]:
    """Writes rows of several parts as one file, each part's as an Arrow stream of its own; returns where they are.

    Each call makes a file of a new name: what a retried bundle wrote twice, its result names once.
    """
    path = paths.join(folder, f"{uuid.uuid4().hex}.tmp")
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    chunks: list[tuple[int, Chunk]] = []
    end = 0
    with paths.open_atomic(path) as file:
        for part, held in tables_by_part:
            rows = pa.concat_tables(held).combine_chunks()
            packed = pa.BufferOutputStream()
            with pa.ipc.new_stream(packed, rows.schema, options=options) as writer:
                writer.write_table(rows)
            data = packed.getvalue()
            file.write(data)
            chunks.append((part, (path, end, end + data.size)))
            end += data.size
    return chunks


def read_chunks(chunks: Iterable[Chunk]) -> list[pa.Table]:
    """The rows of each chunk."""
    return list(stream_chunks(chunks))


def stream_chunks(chunks: Iterable[Chunk]) -> Iterator[pa.Table]:
    """The rows of each chunk, one after the other; some megabytes of chunks are read at once."""
    asked: list[Chunk] = []
    for chunk in chunks:
        asked.append(chunk)
        if len(asked) == READ_AT_ONCE or sum(end - start for _, start, end in asked) > READ_BYTES:
            yield from _read(asked)
            asked = []
    yield from _read(asked)


def _read(chunks: Sequence[Chunk]) -> list[pa.Table]:
    return [pa.ipc.open_stream(data).read_all() for data in paths.read_ranges(chunks)]


class Spill(beam.DoFn):
    """``(part, table)`` to ``(part, chunk)``; tables may be of several schemas.

    Args:
        folder: Where the files go; whoever runs the pipeline removes it.
        held_bytes: Rows of so many bytes are held until they are written; :data:`SPILL_BYTES` unless given.
    """

    def __init__(self, folder: str, held_bytes: int | None = None) -> None:
        self._folder, self._held_bytes = folder, SPILL_BYTES if held_bytes is None else held_bytes

    def start_bundle(self) -> None:
        """Starts with nothing held."""
        self._held: dict[pa.Schema, dict[int, list[pa.Table]]] = {}
        self._bytes = 0

    def process(self, element: tuple[int, pa.Table]) -> Iterator[tuple[int, Chunk]]:
        """Takes rows; writes when enough are held."""
        part, table = element
        if not table.num_rows:
            return
        table = table.replace_schema_metadata(None)
        self._held.setdefault(table.schema, {}).setdefault(part, []).append(table)
        self._bytes += table.nbytes
        if self._bytes >= self._held_bytes:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Writes the rest."""
        window = GlobalWindow()
        for chunk in self._flush():
            yield WindowedValue(chunk, window.max_timestamp(), (window,))

    def _flush(self) -> list[tuple[int, Chunk]]:
        held = self._held
        self.start_bundle()
        return [
            chunk for parts in held.values() for chunk in write_chunks(self._folder, sorted(parts.items()))
        ]
