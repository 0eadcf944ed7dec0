"""Packed rows on their way to the part that decides over them: in sorted files, whose names go through the engine.

Unlike :class:`pipeline.core.spill.Spill` this holds tables as they come and splits what it holds at once: rows are few
bytes, parts may be thousands, and a table for each row and part would cost more than the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from pipeline.core.spill import Chunk, read_chunks, split, write_chunks
from pipeline.select.decide import part_of, sources_of, values

HELD_BYTES: Final = 64 << 20
STRETCH_BYTES: Final = 128 << 20
"""More than a part has, unless many rows share what it is cut by."""
PartOf = Callable[[pa.Table], np.ndarray]
"""int64[n]: the part of each row."""


@dataclass(frozen=True)
class ByHash:
    """Parts are equal ranges of a column of hashes.

    Args:
        column: The column.
        parts: How many parts.
    """

    column: str
    parts: int

    def __call__(self, rows: pa.Table) -> np.ndarray:
        """The part of each row."""
        return part_of(values(rows, self.column), self.parts)


@dataclass(frozen=True)
class BySource:
    """Parts are stretches of the files that rows came from.

    Args:
        files: How many files a part has.
    """

    files: int

    def __call__(self, rows: pa.Table) -> np.ndarray:
        """The part of each row."""
        return sources_of(rows) // self.files


class Spread(beam.DoFn):
    """Tables of one schema to ``(part, chunk)``.

    Args:
        folder: Where the files go; whoever runs the pipeline removes it.
        part_of: The part of each row.
    """

    def __init__(self, folder: str, part_of: PartOf) -> None:
        self._folder, self._part_of = folder, part_of

    def start_bundle(self) -> None:
        """Starts with nothing held."""
        self._held: list[pa.Table] = []
        self._bytes = 0

    def process(self, element: pa.Table) -> Iterator[tuple[int, Chunk]]:
        """Takes rows; writes when enough are held."""
        if not element.num_rows:
            return
        self._held.append(element)
        self._bytes += element.nbytes
        if self._bytes >= HELD_BYTES:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Writes the rest."""
        window = GlobalWindow()
        for chunk in self._flush():
            yield WindowedValue(chunk, window.max_timestamp(), (window,))

    def _flush(self) -> list[tuple[int, Chunk]]:
        if not self._held:
            return []
        rows = pa.concat_tables(self._held).combine_chunks()
        self.start_bundle()
        return write_chunks(self._folder, [(n, [t]) for n, t in split(rows, self._part_of(rows))])


@dataclass(eq=False)
class Gather(beam.PTransform[Any, Any]):
    """Rows of several collections to ``(part, chunks)``: all that is of a part, in files.

    Args:
        folder: Where the files go.
        part_of: The part of each row.
    """

    folder: str
    part_of: PartOf

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pcolls: Any) -> beam.PCollection[Any]:
        """Writes each collection's rows, then brings the names together."""
        given = pcolls if isinstance(pcolls, tuple) else (pcolls,)
        written = [
            rows
            | f"Spread{n}"
            >> beam.ParDo(Spread(self.folder, self.part_of)).with_output_types(tuple[int, Chunk])
            for n, rows in enumerate(given)
        ]
        joined = written[0] if len(written) == 1 else written | "All" >> beam.Flatten()
        return joined | "ByPart" >> beam.GroupByKey()


def gathered(chunks: Iterable[Chunk]) -> pa.Table:
    """The rows of a part as one table."""
    return pa.concat_tables(read_chunks(chunks))


def stretches(chunks: Iterable[Chunk]) -> Iterator[pa.Table]:
    """The rows of a part as tables of some :data:`STRETCH_BYTES` of their files."""
    held: list[Chunk] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += chunk[2] - chunk[1]
        if size >= STRETCH_BYTES:
            yield gathered(held)
            held, size = [], 0
    if held:
        yield gathered(held)
