"""Pairs meet what became of their URL: which URL a pair asks for, and the table of both.

A pair may ask for nothing: its URL is none, its page opted out, or it was taken down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import paths, tables
from pipeline.core.beam import split_table
from pipeline.core.contracts import PAIRS
from pipeline.core.errors import StageFailedError
from pipeline.core.spill import Chunk, Spill, read_chunks
from pipeline.fetch.policy import Refusal, Target, parse_url
from pipeline.fetch.staging import DECODED, ROW, best_of, indexes, read_rows, spill_folder, write_parquet

PAIR_COLUMNS: Final = (
    "pair_id", "url", "text", "query_ids", "query_id", "rights", "page_url", "text_source", "language",
)  # fmt: skip
PART_PAIRS: Final = 200_000
# Pairs with the row of their URL; a reason is there if any of the two is refused.
JOINED = pa.schema([*(PAIRS.schema.field(n) for n in PAIR_COLUMNS), *ROW])


def read_pairs(file: str, removed: Mapping[str, str]) -> Iterator[pa.Table]:
    """Tables of pairs with ``fetch_url`` and ``host``, or with the ``refused`` that forbids to ask."""
    for batch in tables.read_batches([file], columns=list(PAIR_COLUMNS)):
        yield addressed(pa.Table.from_batches([batch]), removed)


def addressed(table: pa.Table, removed: Mapping[str, str] | None = None) -> pa.Table:
    """Adds ``fetch_url``, ``host`` (empty if there is none), and ``refused``, ``refused_detail``.

    Args:
        table: Columns :data:`PAIR_COLUMNS`.
        removed: Why pairs were taken down, by ``pair_id``.
    """
    columns = (table.column(name).to_pylist() for name in ("pair_id", "url", "rights"))
    found = [
        Refusal("takedown", removed[pair]) if removed and pair in removed else verdict_on(url, rights)
        for pair, url, rights in zip(*columns, strict=True)
    ]
    added = {
        "fetch_url": [f.url if isinstance(f, Target) else None for f in found],
        "host": [f.host if isinstance(f, Target) else "" for f in found],
        "refused": [f.reason if isinstance(f, Refusal) else None for f in found],
        "refused_detail": [f.detail if isinstance(f, Refusal) else None for f in found],
    }
    for name, values in added.items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return table


def verdict_on(url: str, rights: Iterable[str]) -> Target | Refusal:
    """Whether a pair may be asked for at all: its URL's form, and the opt-outs of the page it stood on."""
    found = parse_url(url)
    marks = sorted(rights)
    return Refusal("optout_meta", ", ".join(marks)) if marks and isinstance(found, Target) else found


def answered(pairs: pa.Table, results: pa.Table) -> pa.Table:
    """Pairs with the row of their URL, or with the refusal they came with (:data:`JOINED`).

    Args:
        pairs: Of :func:`addressed`.
        results: Columns :data:`~pipeline.fetch.staging.ROW`, several rows for a URL or rows of other URLs too.

    Raises:
        StageFailedError: A URL has no row.
    """
    results = best_of(results)
    place = {url: i for i, url in enumerate(results.column("fetch_url").to_pylist())}
    rows = [place.get(url) if url is not None else None for url in pairs.column("fetch_url").to_pylist()]
    refused = pairs.column("refused").to_pylist()
    for row, reason, url in zip(rows, refused, pairs.column("fetch_url").to_pylist(), strict=True):
        if row is None and reason is None:
            raise StageFailedError(
                "a URL was not fetched", found=url, hint="this is a defect: please report it"
            )
    taken = results.take(pa.array(rows, pa.int64()))
    columns: dict[str, Any] = {
        **{n: pairs.column(n) for n in PAIR_COLUMNS},
        **{n: taken.column(n) for n in ROW.names},
        "reason": pc.coalesce(pairs.column("refused"), taken.column("reason")),
        "detail": pc.coalesce(pairs.column("refused_detail"), taken.column("detail")),
    }
    return pa.table(columns).select(JOINED.names).cast(JOINED)


def build_join(
    files: list[str],
    removed: Mapping[str, str],
    work: str,
    partitions: int,
    out: str,
    pipeline: beam.Pipeline,
) -> None:
    """Writes :data:`JOINED` tables of some pairs; a part holds all that share a URL.

    Args:
        files: Of pairs.
        removed: Why pairs were taken down, by ``pair_id``.
        work: The staging folder, with the decoded parts.
        partitions: Parts to write.
        out: Folder for them.
        pipeline: To build on.
    """
    pairs = (
        pipeline
        | "Files" >> beam.Create(files)
        | "Pairs" >> beam.FlatMap(read_pairs, removed)
        | "PairsByUrl" >> beam.FlatMap(_split_pairs, partitions).with_output_types(tuple[int, pa.Table])
    )
    rows = (
        pipeline
        | "Parts" >> beam.Create(indexes(paths.join(work, DECODED)))
        | "Rows" >> beam.FlatMap(read_rows)
        | "RowsByUrl"
        >> beam.FlatMap(split_table, key="fetch_url", partitions=partitions).with_output_types(
            tuple[int, pa.Table]
        )
    )
    (
        (pairs, rows)
        | "Both" >> beam.Flatten()
        | "Spill" >> beam.ParDo(Spill(spill_folder(work))).with_output_types(tuple[int, Any])
        | "ByUrl" >> beam.GroupByKey()
        | "Join" >> beam.Map(_join_part, out).with_output_types(int)
    )


def _split_pairs(table: pa.Table, partitions: int) -> list[tuple[int, pa.Table]]:
    key = pc.coalesce(table.column("fetch_url"), table.column("pair_id"))
    split = split_table(table.append_column("key", key), key="key", partitions=partitions)
    return [(part, rows.drop_columns(["key"])) for part, rows in split]


def _join_part(item: tuple[int, Iterable[Chunk]], out: str) -> int:
    part, chunks = item
    pairs: list[pa.Table] = []
    rows = [ROW.empty_table()]
    for chunk in read_chunks(chunks):
        (pairs if "pair_id" in chunk.column_names else rows).append(chunk)
    if not pairs:
        return 0
    joined = answered(pa.concat_tables(pairs), pa.concat_tables(rows))
    write_parquet(paths.join(out, f"{part:05d}.parquet"), joined.sort_by("pair_id"))
    return int(joined.num_rows)
