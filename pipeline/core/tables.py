"""Batched Parquet reading and writing under the contracts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core import manifest, paths
from pipeline.core.contracts import DROPPED, Contract
from pipeline.core.errors import InputError

BATCH_ROWS = 16_384
PART_ROWS = 1_000_000


def part_name(index: int) -> str:
    """Name of a folder's part by number."""
    return f"part-{index:05d}.parquet"


def write_table(path: str, table: pa.Table, contract: Contract) -> int:
    """Writes a table atomically under its contract and returns its rows.

    Equal tables give equal bytes: one row-group size, one compression, no times.
    """
    conformed = contract.conform(table)
    with paths.open_atomic(path) as file:
        pq.write_table(conformed, file, row_group_size=65_536, store_schema=True, **_encoding(conformed))
    return int(conformed.num_rows)


def _encoding(table: pa.Table) -> dict[str, Any]:
    """Vectors are written as they are, unless they have few values, as those of hashes.

    Of 10,000 vectors of 256 numbers packing saves a fiftieth of the bytes, and they take half as long again to read; if
    the numbers are two, it leaves a thirtieth of the bytes.
    """
    vectors = {name for name in table.column_names if _many_valued(table.column(name))}
    if not vectors:
        return {"compression": "zstd"}
    others = [name for name in table.column_names if name not in vectors]
    return {"compression": dict.fromkeys(others, "zstd"), "use_dictionary": others}


def _many_valued(column: pa.ChunkedArray) -> bool:
    """Whether it holds vectors, and more than a tenth of the numbers of the first ones are different."""
    lists = (pa.types.is_list, pa.types.is_fixed_size_list)
    if not any(of(column.type) for of in lists) or not pa.types.is_floating(column.type.value_type):
        return False
    first = pc.list_flatten(column.slice(0, 64)).to_numpy()
    return bool(10 * len(np.unique(first)) > len(first))


class PartWriter:
    """Streams tables into ``part-*.parquet`` of at most ``part_rows`` rows; use as a context manager.

    Args:
        folder: Output folder.
        contract: What the rows are.
        part_rows: Rows per part.
    """

    def __init__(self, folder: str, contract: Contract, *, part_rows: int = PART_ROWS) -> None:
        self.folder, self.contract, self.part_rows = folder, contract, part_rows
        self.rows = 0
        self.parts = 0
        self._held: list[pa.Table] = []
        self._held_rows = 0

    def __enter__(self) -> PartWriter:
        return self

    def write(self, table: pa.Table) -> None:
        """Adds rows; full parts are written at once."""
        self._held.append(self.contract.conform(table))
        self._held_rows += table.num_rows
        while self._held_rows >= self.part_rows:
            joined = pa.concat_tables(self._held)
            self._flush(joined.slice(0, self.part_rows))
            rest = joined.slice(self.part_rows)
            self._held, self._held_rows = [rest], rest.num_rows

    def _flush(self, table: pa.Table) -> None:
        write_table(paths.join(self.folder, part_name(self.parts)), table, self.contract)
        self.parts += 1
        self.rows += table.num_rows

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and (self._held_rows or not self.parts):
            self._flush(pa.concat_tables(self._held) if self._held else self.contract.empty())


def part_files(folder: str, contract: Contract) -> list[str]:
    """The parts of a finished folder, checked against the contract.

    Raises:
        UnfinishedInputError: The folder has no manifest.
        ContractError: The manifest or a part follows another contract.
        InputError: The folder has a manifest and no part.
    """
    manifest.read(folder, made_by=contract.made_by, contract=contract.id)
    files = [
        f
        for f in paths.list_files(folder, suffixes=(".parquet",))
        if f.rsplit("/", 1)[0] == folder.rstrip("/") and f.rsplit("/", 1)[1].startswith("part-")
    ]
    if not files:
        raise InputError("the folder has a manifest but no part-*.parquet", where=folder)
    for file in files:
        contract.check(read_schema(file), where=file)
    return files


def read_schema(file: str) -> pa.Schema:
    """A Parquet file's schema.

    Raises:
        InputError: The file is not Parquet or is damaged.
    """
    with paths.open_input(file, decompress=False) as opened:
        try:
            return pq.read_schema(opened)
        except (pa.ArrowException, OSError) as error:
            raise InputError("not a readable Parquet file", where=file, found=str(error)) from error


def read_batches(
    files: Iterable[str], *, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Streams record batches of Parquet files in order; memory is bounded by a batch and a row group.

    Raises:
        InputError: A file is damaged.
    """
    for file in files:
        with paths.open_input(file, decompress=False) as opened:
            try:
                yield from pq.ParquetFile(opened).iter_batches(batch_size=batch_rows, columns=columns)
            except (pa.ArrowException, OSError) as error:
                raise InputError("damaged Parquet file", where=file, found=str(error)) from error


def read_files(files: Sequence[str], *, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of some Parquet files as one table."""
    tables = []
    for file in files:
        with paths.open_input(file, decompress=False) as opened:
            try:
                tables.append(pq.read_table(opened, columns=None if columns is None else list(columns)))
            except (pa.ArrowException, OSError) as error:
                raise InputError("damaged Parquet file", where=file, found=str(error)) from error
    return pa.concat_tables(tables)


def find_rows(files: Sequence[str], columns: Sequence[str], where: pc.Expression) -> pa.Table:
    """The rows of some Parquet files that a condition chooses; row groups that cannot hold any are not read.

    Args:
        files: Parquet files of one file system.
        columns: What to return; ``__filename`` is the file.
        where: Condition on any columns.

    Raises:
        InputError: A file is damaged or lacks a column.
    """
    import pyarrow.dataset as ds  # brings pandas with it, which most commands can do without

    fs, _ = paths.filesystem(files[0])
    names = [paths.filesystem(file)[1] for file in files]
    try:
        return ds.dataset(names, format="parquet", filesystem=fs).to_table(
            columns=list(columns), filter=where
        )
    except (pa.ArrowException, OSError) as error:
        folder = files[0].rpartition("/")[0]
        raise InputError("damaged Parquet file", where=folder, found=str(error)) from error


def read_folder(folder: str, contract: Contract, *, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a finished folder as one table; for small tables only."""
    return read_files(part_files(folder, contract), columns=columns)


def dropped_table(stage: str, rows: Iterable[tuple[str, str, str | None]]) -> pa.Table:
    """A ``dropped`` table from ``(reason, id, detail)`` rows."""
    listed = list(rows)
    reasons, ids, details = zip(*listed, strict=True) if listed else ((), (), ())
    return pa.table(
        {
            "stage": pa.array([stage] * len(listed), pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "id": pa.array([_valid(i) for i in ids], pa.string()),
            "detail": pa.array([None if d is None else _valid(d)[:500] for d in details], pa.string()),
        },
        schema=DROPPED.schema,
    )


def _valid(text: str) -> str:
    return text.encode(errors="replace").decode()


def count_dropped(folder: str) -> dict[str, int]:
    """Dropped rows of a stage's folder by reason, read from ``dropped/``; exact on every engine."""
    counts: dict[str, int] = {}
    inner = paths.join(folder, "dropped")
    if not paths.exists(inner):
        return counts
    for batch in read_batches(paths.list_files(inner, suffixes=(".parquet",)), columns=["reason"]):
        for entry in batch.column("reason").value_counts():
            reason = cast(str, entry["values"].as_py())
            counts[reason] = counts.get(reason, 0) + entry["counts"].as_py()
    return dict(sorted(counts.items()))


def count_rows(files: Iterable[str]) -> int:
    """Rows of Parquet files, from their footers."""
    total = 0
    for file in files:
        with paths.open_input(file, decompress=False) as opened:
            total += pq.ParquetFile(opened).metadata.num_rows
    return total
