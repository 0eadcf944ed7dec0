"""Rows on their way to a part wait in files: what goes through an engine's shuffle are names of files.

A local engine keeps its shuffle in memory, so rows in it would bound a laptop's run by its memory.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from pipeline.core import paths

SPILL_BYTES = 32 << 20

# A spilled chunk: its file, and which record batch of the file it is.
Chunk = tuple[str, int]


def write_chunks(
    folder: str, tables_by_part: Sequence[tuple[int, Sequence[pa.Table]]]
) -> list[tuple[int, Chunk]]:
    """Writes rows of several parts as one Arrow file, each part's as one record batch; returns where they are.

    Each call makes a file of a new name: what a retried bundle wrote twice, its result names once.
    """
    path = paths.join(folder, f"{uuid.uuid4().hex}.tmp")
    schema = tables_by_part[0][1][0].schema
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    chunks: list[tuple[int, Chunk]] = []
    with paths.open_atomic(path) as file, pa.ipc.new_file(file, schema, options=options) as writer:
        for part, held in tables_by_part:
            for batch in pa.concat_tables(held).combine_chunks().to_batches():
                writer.write_batch(batch)
                chunks.append((part, (path, len(chunks))))
    return chunks


def read_chunks(chunks: Iterable[Chunk]) -> list[pa.Table]:
    """The rows of each chunk."""
    found = []
    for path, index in chunks:
        with paths.open_input(path, decompress=False) as file:
            found.append(pa.Table.from_batches([pa.ipc.open_file(file).get_batch(index)]))
    return found


class Spill(beam.DoFn):
    """``(part, table)`` to ``(part, chunk)``; tables may be of several schemas.

    Args:
        folder: Where the files go; whoever runs the pipeline removes it.
        held_bytes: Rows of so many bytes are held until they are written.
    """

    def __init__(self, folder: str, held_bytes: int = SPILL_BYTES) -> None:
        self._folder, self._held_bytes = folder, held_bytes

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
