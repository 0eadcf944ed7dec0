"""The last pass: matched rows meet their fate, and become pairs, reserve or dropped rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from pipeline.core import counters, paths, tables
from pipeline.core.contracts import PAIRS
from pipeline.core.progress import tick
from pipeline.core.worklog import working
from pipeline.select.balance import NOT_KEPT
from pipeline.select.decide import FATES, rows_of, sources_of, values
from pipeline.select.filter import STAGE

BATCH_ROWS: Final = 65_536
KINDS: Final = ("reserve", "dropped")
Sorted = Iterator[Any]
"""Tables of the main output, and tagged ones."""
_LZ4: Final = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True)
class Work:
    """The names of what lies between the passes.

    Attributes:
        folder: The hidden folder of the output.
    """

    folder: str

    def at(self, name: str) -> str:
        """A file or folder in it."""
        return paths.join(self.folder, name)

    @property
    def outcome(self) -> str:
        """What the choice was, query by query."""
        return self.at("outcome.npz")

    def matched(self, source: int) -> str:
        """Rows of a file of candidates that passed the filter."""
        return self.at(f"matched/{source:06d}.parquet")

    def lost(self, source: int) -> str:
        """Rows of it that did not."""
        return self.at(f"lost/{source:06d}.parquet")

    def fates(self, group: int) -> str:
        """What became of the matched rows of some files."""
        return self.at(f"fates/{group:06d}.arrow")


def write_fates(path: str, fates: pa.Table) -> None:
    """Writes rows of :data:`pipeline.select.decide.FATE` in the order of their places."""
    with (
        paths.open_atomic(path) as file,
        pa.ipc.new_file(file, fates.schema, options=_LZ4) as writer,
    ):
        writer.write_table(fates.take(pa.array(np.argsort(values(fates, "place")))).combine_chunks())


class Fates:
    """What became of the rows of some files.

    Args:
        path: Of :func:`write_fates`; without the file all are over the cap.
    """

    def __init__(self, path: str) -> None:
        self._source = self._row = np.zeros(0, np.int64)
        self._fate = self._reserve = np.zeros(0, np.int32)
        if paths.exists(path):
            with paths.open_input(path, decompress=False) as file:
                held = pa.ipc.open_file(file).read_all().combine_chunks()
            self._source, self._row = sources_of(held), rows_of(held)
            self._fate, self._reserve = values(held, "fate"), values(held, "reserve")

    def of(self, source: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """int32[rows] and int32[rows]: fate and reserve of each row of a file."""
        fate, reserve = (np.full(rows, NOT_KEPT, dtype=np.int32) for _ in range(2))
        first, end = np.searchsorted(self._source, [source, source + 1])
        fate[self._row[first:end]] = self._fate[first:end]
        reserve[self._row[first:end]] = self._reserve[first:end]
        return fate, reserve


def counting_for(rows: pa.Table, query_ids: np.ndarray) -> pa.Table:
    """``pairs/1`` of the rows that count for a query."""
    keep = np.flatnonzero(query_ids >= 0)
    named = rows.take(pa.array(keep)).append_column("query_id", pa.array(query_ids[keep], pa.int32()))
    return named.select(PAIRS.schema.names)


def turned_away(rows: pa.Table, fate: np.ndarray) -> pa.Table:
    """``dropped`` rows of those that count for none."""
    rest = np.flatnonzero(fate < 0)
    ids = rows.column("pair_id").take(pa.array(rest)).to_pylist()
    texts = rows.column("text").take(pa.array(rest)).to_pylist()
    reasons = [FATES[int(f)] for f in fate[rest]]
    return tables.dropped_table(STAGE, zip(reasons, ids, texts, strict=True))


class Part(beam.DoFn):
    """Numbers of groups of files to tables of pairs, ``reserve`` and ``dropped``.

    Args:
        work: Where everything lies.
        files: How many files a group has.
        sources: How many files there are.
    """

    def __init__(self, work: Work, files: int, sources: int) -> None:
        self._work, self._files, self._sources = work, files, sources

    def process(self, element: int) -> Sorted:
        """Reads each file once more."""
        fates = Fates(self._work.fates(element))
        first = element * self._files
        with working(STAGE, f"write {element:06d}"):
            for source in range(first, min(first + self._files, self._sources)):
                yield from self._parted(source, fates)
                for batch in tables.read_batches([self._work.lost(source)], batch_rows=BATCH_ROWS):
                    yield TaggedOutput("dropped", pa.Table.from_batches([batch]))
                    tick(batch.num_rows)

    def _parted(self, source: int, fates: Fates) -> Sorted:
        path = self._work.matched(source)
        fate, reserve = fates.of(source, tables.count_rows([path]))
        start = 0
        for batch in tables.read_batches([path], batch_rows=BATCH_ROWS):
            rows, here = pa.Table.from_batches([batch]), slice(start, start + batch.num_rows)
            start += batch.num_rows
            for code, reason in FATES.items():
                counters.count(STAGE, reason, int((fate[here] == code).sum()))
            counters.count_rows(STAGE, rows_out=int((fate[here] >= 0).sum()))
            yield counting_for(rows, fate[here])
            if (reserve[here] >= 0).any():
                yield TaggedOutput("reserve", counting_for(rows, reserve[here]))
            yield TaggedOutput("dropped", turned_away(rows, fate[here]))
            tick(batch.num_rows)
