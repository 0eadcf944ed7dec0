"""The balance of parts that follow one another in rank: each is read, decided and forgotten.

What is known across parts is how often each query is contained, counted as the parts are written, and how much room
each has left (:class:`pipeline.select.balance.Room`). So memory is that of some arrays of one number for each query,
and a stretch of rows.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.core import paths, worklog
from pipeline.select.balance import NOT_KEPT, Draws, Room, count_queries
from pipeline.select.config import SelectConfig
from pipeline.select.decide import fates, lists, ranked, values

BATCH_ROWS: Final = 2**18
_LZ4: Final = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the choice was, query by query.

    Attributes:
        matched: int64[q], pairs that contain each query, of all that were balanced.
        selected: int64[q], pairs that count for each query.
        capped: bool[q], queries that turned a pair away.
        reserved: Rows that only the larger cap would keep.
    """

    matched: np.ndarray
    selected: np.ndarray
    capped: np.ndarray
    reserved: int

    def write(self, path: str) -> None:
        """Writes what :meth:`read` reads."""
        file = io.BytesIO()
        np.savez(
            file,
            matched=self.matched,
            selected=self.selected,
            capped=self.capped,
            reserved=np.int64(self.reserved),
        )
        paths.write_bytes(path, file.getvalue())

    @staticmethod
    def read(path: str) -> Outcome:
        """The outcome that was written."""
        held = np.load(io.BytesIO(paths.read_bytes(path)))
        return Outcome(held["matched"], held["selected"], held["capped"], int(held["reserved"]))


def write_ranked(folder: str, part: int, rows: pa.Table, queries: int) -> None:
    """Writes a part in the order of rank, and how often it contains each query.

    Args:
        folder: Where to.
        part: Its number.
        rows: Packed rows.
        queries: Number of queries.
    """
    in_order = ranked(rows)
    counts = io.BytesIO()
    np.save(counts, count_queries(lists(in_order)[1], queries))
    paths.write_bytes(_counts(folder, part), counts.getvalue())
    with (
        paths.open_atomic(_rows(folder, part)) as file,
        pa.ipc.new_file(file, in_order.schema, options=_LZ4) as writer,
    ):
        writer.write_table(in_order, max_chunksize=BATCH_ROWS)


def choose(
    folder: str, parts: Sequence[int], config: SelectConfig, queries: int
) -> Generator[pa.Table, None, Outcome]:
    """The fates of all rows that are kept or stand in reserve; those without one are over the cap.

    Args:
        folder: Of :func:`write_ranked`.
        parts: Numbers of all parts.
        config: The selection.
        queries: Number of queries.

    Returns:
        The fates, and at the end, as the generator's value, the :class:`Outcome`.
    """
    matched = np.zeros(queries, dtype=np.int64)
    for part in parts:
        matched += np.load(io.BytesIO(paths.read_bytes(_counts(folder, part))))
    chosen = Draws(matched, config.cap) if config.mode == "sample" else Room(matched, config.cap)
    larger = Room(matched, config.reserve_cap) if config.reserve else None
    reserved = 0
    for rows in _read(folder, sorted(parts)):
        indptr, query_ids = lists(rows)
        if isinstance(chosen, Draws):
            fate = chosen.choose(indptr, query_ids, values(rows, "pair_hash"))
        else:
            fate = chosen.choose(indptr, query_ids)
        reserve = np.full(len(fate), NOT_KEPT, dtype=np.int32)
        if larger is not None:
            held = larger.choose(indptr, query_ids)
            reserve = np.where(fate == NOT_KEPT, held, NOT_KEPT)
            reserved += int((reserve >= 0).sum())
        told = (fate >= 0) | (reserve >= 0)
        yield fates(values(rows, "place")[told], fate[told], reserve[told])
    return Outcome(matched, chosen.selected, chosen.capped, reserved)


def _read(folder: str, parts: Iterable[int]) -> Iterator[pa.Table]:
    for part in parts:
        with paths.open_input(_rows(folder, part), decompress=False) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                worklog.advance(batch.num_rows)
                yield pa.Table.from_batches([batch])


def _rows(folder: str, part: int) -> str:
    return paths.join(folder, f"{part:06d}.arrow")


def _counts(folder: str, part: int) -> str:
    return paths.join(folder, f"{part:06d}.npy")
