"""Embeddings in memory: reading ``embeddings/1``, whole or block by block, and refusing what cannot be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dedup.tiles import dots
from pipeline.core import manifest, paths, tables
from pipeline.core.contracts import EMBEDDINGS
from pipeline.core.errors import ContractError, InputError

# Carried along from the evaluation side, as ``eval_label`` and so on, for the report.
FACTS = pa.schema(
    [("label", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("spread", pa.float32())]
)
_COLUMNS = ("id", "embedding")
# Rows whose length is this close to 1 stay as they are: single precision brings rows no closer.
_ROUNDING = 1e-6
# Number of a file, first row, rows.
NumberedBlock = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Names:
    """What embeddings are called, in the order of their files.

    Attributes:
        datasets: Name of the data set of each row.
        ids: Id of each row.
    """

    datasets: tuple[str, ...]
    ids: tuple[str, ...]


def common_extra(folders: Sequence[str]) -> dict[str, Any]:
    """The detector's entries of some embeddings' manifests, which must agree where they are given.

    Raises:
        ContractError: Two folders were made by different detectors or have different dimensions.
    """
    found: dict[str, Any] = {}
    names = {"detector_sha256": "detectors", "dimension": "dimensions"}
    for folder in folders:
        extra = manifest.read(folder, made_by=EMBEDDINGS.made_by).extra
        for key in ("detector_sha256", "dimension", "threshold"):
            value = extra.get(key)
            if value is not None and found.setdefault(key, value) != value and key in names:
                raise ContractError(
                    f"embeddings of different {names[key]} cannot be compared",
                    where=folder,
                    expected=found[key],
                    found=value,
                    hint=f"make both sides with the same `{EMBEDDINGS.made_by} --detector`",
                )
    return found


def read_names(files: Sequence[str]) -> Names:
    """Data sets and ids of all rows of some files."""
    found = tables.read_files(files, columns=["dataset", "id"])
    return Names(
        datasets=tuple(found.column("dataset").to_pylist()), ids=tuple(found.column("id").to_pylist())
    )


def read_values(files: Iterable[str], *, what: str = "the evaluation sets") -> np.ndarray:
    """All embeddings of some files: float32 [N, d].

    Raises:
        InputError: As of :func:`vectors`, or files of different dimensions.
    """
    held: list[np.ndarray] = []
    for file in files:
        for batch in tables.read_batches([file], columns=_COLUMNS):
            if batch.num_rows:
                held.append(vectors(batch, where=file))
                check_dimension(held[0].shape[1], held[-1].shape[1], what)
    return np.concatenate(held) if held else np.zeros((0, 0), np.float32)


def vectors(batch: pa.RecordBatch, *, where: str) -> np.ndarray:
    """The ``embedding`` column as float32 [N, d]; rows not quite of length 1, as of half precision, are brought to it.

    Raises:
        InputError: Rows of different length, values that are not numbers, or rows that are not of length 1.
    """
    column = batch.column("embedding")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if not len(column):
        return np.zeros((0, 0), np.float32)
    if column.null_count or len(flat) % len(column):
        raise InputError("embeddings of different dimensions in one file", where=where)
    if not pa.types.is_fixed_size_list(column.type):
        lengths = set(pc.list_value_length(column).to_pylist())
        if len(lengths) != 1:
            check_dimension(min(lengths), max(lengths), where)
    found = flat.astype(np.float32, copy=False).reshape(len(column), -1)
    rows = np.arange(len(found))
    length = np.sqrt(dots(found, found, rows, rows))
    off = np.abs(length - 1)
    if not (off <= 1e-3).all():  # NaN is not either
        _refuse(found, length, batch, where)
    # Otherwise equal rows might be less alike than a threshold, and rows of one direction would not be equal.
    wrong = off > (0 if flat.dtype == np.float16 else _ROUNDING)
    return np.divide(found, length[:, None], where=wrong[:, None], out=found.copy()) if wrong.any() else found


def _refuse(found: np.ndarray, length: np.ndarray, batch: pa.RecordBatch, where: str) -> None:
    whole = np.isfinite(found).all(axis=1)
    if not whole.all():
        row = int(np.flatnonzero(~whole)[0])
        raise InputError(
            "an embedding holds NaN or infinity",
            where=f"{where}, id {batch.column('id')[row].as_py()!r}",
            hint=f"make the folder again with `{EMBEDDINGS.made_by}`",
        )
    row = int(np.abs(length - 1).argmax())
    raise InputError(
        "an embedding is not L2-normalised",
        where=f"{where}, id {batch.column('id')[row].as_py()!r}",
        expected="length 1",
        found=f"{length[row]:.4f}",
    )


def check_dimension(expected: int, found: int, where: str) -> None:
    """Checks that two sides have one dimension.

    Raises:
        InputError: They have not.
    """
    if expected != found:
        raise InputError(
            "embeddings of different dimensions",
            where=where,
            expected=expected,
            found=found,
            hint=f"make both sides with the same `{EMBEDDINGS.made_by} --detector`",
        )


def plan_blocks(files: Sequence[str], block_rows: int) -> list[tuple[str, int, int]]:
    """(file, first row, rows) of each block of the training side; those of a file are about equally large.

    A small rest of each file would be every other block, and an engine that deals them out in turns would give one of
    two workers nothing else.
    """
    blocks = []
    for file in files:
        rows = tables.count_rows([file])
        step = -(-rows // max(1, -(-rows // block_rows)))
        blocks += [(file, start, min(step, rows - start)) for start in range(0, rows, step or 1)]
    return blocks


def numbered_blocks(files: Sequence[str], block_rows: int) -> list[NumberedBlock]:
    """As :func:`plan_blocks`, with numbers of files."""
    return [
        (number, start, rows)
        for number, file in enumerate(files)
        for _, start, rows in plan_blocks([file], block_rows)
    ]


def read_block(file: str, start: int, rows: int, block_rows: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Ids and embeddings of some rows of a file, in blocks; memory is bounded by a block and a row group.

    Args:
        file: Parquet file of ``embeddings/1``.
        start: First row.
        rows: How many.
        block_rows: Rows of a block at most; the last may be smaller.

    Raises:
        InputError: The file is damaged, or as of :func:`vectors`.
    """
    with paths.open_input(file, decompress=False) as opened:
        try:
            parquet = pq.ParquetFile(opened)
            groups: list[int] = []
            first, place = 0, 0
            for i in range(parquet.num_row_groups):
                end = place + parquet.metadata.row_group(i).num_rows
                if place < start + rows and end > start:
                    first = first if groups else place
                    groups.append(i)
                place = end
            place = first
            for batch in parquet.iter_batches(batch_size=block_rows, row_groups=groups, columns=_COLUMNS):
                low, high = max(start - place, 0), min(start + rows - place, batch.num_rows)
                place += batch.num_rows
                if low < high:
                    wanted = batch.slice(low, high - low)
                    yield wanted.column("id").to_pylist(), vectors(wanted, where=file)
        except (pa.ArrowException, OSError) as error:
            raise InputError("damaged Parquet file", where=file, found=str(error)) from error


def read_facts(files: Iterable[str]) -> pa.Table:
    """What is known of each row of some embeddings beside its vector, in their order; nulls where it is not."""
    held = []
    for file in files:
        columns = tables.read_schema(file).names
        found = tables.read_files([file], columns=[n for n in FACTS.names if n in columns])
        rows = tables.count_rows([file])
        held.append(
            pa.table(
                [
                    found.column(f.name).cast(f.type) if f.name in columns else pa.nulls(rows, f.type)
                    for f in FACTS
                ],
                schema=FACTS,
            )
        )
    return pa.concat_tables(held)
