"""The ledger: what came of every URL that was asked for, one row each, in ``ledger/part-*.parquet``.

It holds no times and no attempts, so equal answers give equal bytes; and no texts, so it can be kept and shared
where shards cannot. A later run takes from it what need not be asked again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import paths, tables
from pipeline.core.beam import finish_parts, split_table
from pipeline.core.contracts import Contract
from pipeline.fetch.policy import DOWNLOAD_REASONS, RETRYABLE
from pipeline.fetch.staging import ROW, best_of, read_rows

FOLDER: Final = "ledger"
PART_ROWS: Final = 500_000
_AS_STAGED: Final = (
    "http_status",
    "sha256",
    "bytes",
    "final_url",
    "content_type",
    "etag",
    "last_modified",
    "original_width",
    "original_height",
)

LEDGER = Contract(
    "ledger",
    1,
    pa.schema(
        [
            pa.field("fetch_url", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            ROW.field("reason"),
            ROW.field("detail"),
            pa.field("retryable", pa.bool_(), nullable=False),
            *(ROW.field(name) for name in _AS_STAGED),
        ]
    ),
    made_by="wit fetch",
)


def status_of(reason: str | None) -> str:
    """img2dataset's word for a reason."""
    if reason is None:
        return "success"
    return "failed_to_download" if reason in DOWNLOAD_REASONS else "failed_to_resize"


def ledger_table(rows: pa.Table) -> pa.Table:
    """Rows of the ledger from staged rows, in the order of URLs, one for each."""
    best = best_of(rows)
    reasons = best.column("reason")
    columns = {
        **{name: best.column(name) for name in LEDGER.schema.names if name in best.column_names},
        "status": pa.array([status_of(reason) for reason in reasons.to_pylist()], pa.string()),
        "retryable": pc.is_in(reasons, value_set=pa.array(sorted(RETRYABLE), pa.string())),
    }
    return LEDGER.conform(pa.table(columns).select(LEDGER.schema.names))


def build_ledger(files: list[str], partitions: int, out: str, pipeline: beam.Pipeline) -> None:
    """Writes the ledger from index files of decoded parts."""
    (
        pipeline
        | "Files" >> beam.Create(files)
        | "Read" >> beam.FlatMap(read_rows)
        | "ByUrl"
        >> beam.FlatMap(split_table, key="fetch_url", partitions=partitions).with_output_types(
            tuple[int, pa.Table]
        )
        | "Parts" >> beam.GroupByKey()
        | "Write" >> beam.Map(_write_part, out).with_output_types(int)
    )


def _write_part(item: tuple[int, Iterable[pa.Table]], out: str) -> int:
    part, chunks = item
    path = paths.join(out, FOLDER, tables.part_name(part))
    return tables.write_table(path, ledger_table(pa.concat_tables(list(chunks))), LEDGER)


def files_of(out: str) -> list[str]:
    """The parts of a folder's ledger, checked; none if it has no ledger.

    Raises:
        ContractError: A part is no ``ledger/1``.
    """
    folder = paths.join(out, FOLDER)
    files = paths.list_files(folder, suffixes=(".parquet",)) if paths.exists(folder) else []
    for file in files:
        LEDGER.check(tables.read_schema(file), where=file)
    return files


def totals(out: str) -> dict[str, int]:
    """What the manifest says of the ledger: its URLs, those worth asking again, and the bytes that came."""
    finish_parts(paths.join(out, FOLDER), LEDGER)
    found = {"urls": 0, "urls_retryable": 0, "bytes_downloaded": 0}
    for batch in tables.read_batches(files_of(out), columns=["retryable", "bytes"]):
        found["urls"] += batch.num_rows
        found["urls_retryable"] += pc.sum(batch.column("retryable")).as_py() or 0
        found["bytes_downloaded"] += pc.sum(batch.column("bytes")).as_py() or 0
    return found
