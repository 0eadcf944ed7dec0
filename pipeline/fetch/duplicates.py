"""Pairs whose images have the same bytes: the first by ``pair_id`` stays, the others are marked."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import tables
from pipeline.core.beam import split_table
from pipeline.core.spill import Chunk, read_chunks
from pipeline.fetch.shards import MARKS

PART_PAIRS = 1_000_000


def hashes_of(file: str, partitions: int) -> list[tuple[int, pa.Table]]:
    """``pair_id``, ``sha256`` and ``text`` of pairs with an image, by the partition of their hash."""
    found: list[tuple[int, pa.Table]] = []
    for batch in tables.read_batches([file], columns=["pair_id", "sha256", "text", "reason"]):
        table = pa.Table.from_batches([batch]).filter(pc.is_null(batch.column("reason")))
        found += split_table(table.drop_columns(["reason"]), key="sha256", partitions=partitions)
    return found


def duplicate_marks(item: tuple[int, Iterable[Chunk]]) -> pa.Table:
    """Marks (:data:`~pipeline.fetch.shards.MARKS`) of the duplicates in one partition of hashes."""
    ordered = pa.concat_tables(read_chunks(item[1])).sort_by(
        [("sha256", "ascending"), ("pair_id", "ascending")]
    )
    made = []
    sha, first, texts = None, "", set[str]()
    for pair, found, text in zip(
        *(ordered.column(n).to_pylist() for n in ("pair_id", "sha256", "text")), strict=True
    ):
        if found != sha:
            sha, first, texts = found, pair, set()
        elif pair != first:
            made.append({"pair_id": pair, "duplicate_of": first, "repeats": text in texts})
        texts.add(text)
    return pa.Table.from_pylist(made, schema=MARKS)
