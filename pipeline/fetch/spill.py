"""Rows on their way to a part wait in files: what goes through an engine's shuffle are names, as a local one keeps
its shuffle in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from pipeline.core import paths
from pipeline.core.beam import SPILL_BYTES, Chunk, read_chunks, write_chunks

FOLDER = "spill"


class Spill(beam.DoFn):
    """``(part, table)`` to ``(part, chunk)``; tables may be of several schemas.

    Args:
        work: The staging folder; files go to its :data:`FOLDER` and are removed by whoever runs the pipeline.
    """

    def __init__(self, work: str) -> None:
        self._folder = paths.join(work, FOLDER)

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
        if self._bytes >= SPILL_BYTES:
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


def spilled(chunks: Iterable[Chunk]) -> list[pa.Table]:
    """The tables of some chunks."""
    return [read_chunks([chunk]) for chunk in chunks]
