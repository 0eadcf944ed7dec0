"""Predictions of any model, as ``eval_dataset, eval_id, correct``: Parquet, finished folders or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

import pyarrow as pa

from pipeline.core import paths, tables
from pipeline.core.contracts import PREDICTIONS
from pipeline.core.errors import ContractError, InputError


def read_predictions(sources: Iterable[str]) -> dict[str, dict[str, bool]]:
    """Predictions of Parquet files, finished folders, or CSV files, as {data set: {id: correct}}.

    Raises:
        InputError: A file is missing or damaged, or an id has two different answers.
        ContractError: A file has other columns.
    """
    found: dict[str, dict[str, bool]] = {}
    for source in sources:
        for name, key, correct in _prediction_rows(source):
            answers = found.setdefault(name, {})
            if answers.setdefault(key, correct) != correct:
                raise InputError("two different predictions of one picture", where=f"{source}: {name}/{key}")
    return found


def _prediction_rows(source: str) -> Iterable[tuple[str, str, bool]]:
    columns = PREDICTIONS.schema.names
    if paths.is_folder(source):
        files = tables.part_files(source, PREDICTIONS)
    else:
        files = paths.expand([source], what="predictions")
    for file in files:
        if not file.lower().endswith(".parquet"):
            yield from _csv_rows(file)
            continue
        schema = tables.read_schema(file)
        missing = [c for c in columns if c not in schema.names]
        if missing:
            raise ContractError(
                f"column {missing[0]!r} is missing",
                where=file,
                expected=f"{PREDICTIONS.id}: {', '.join(columns)}",
            )
        for batch in tables.read_batches([file], columns=columns):
            table = PREDICTIONS.conform(pa.Table.from_batches([batch]))
            yield from zip(*(table.column(c).to_pylist() for c in columns), strict=True)


def _csv_rows(file: str) -> Iterable[tuple[str, str, bool]]:
    words = {"1": True, "true": True, "0": False, "false": False}
    columns = PREDICTIONS.schema.names
    with paths.open_input(file) as opened:
        try:
            reader = csv.DictReader(io.TextIOWrapper(opened, encoding="utf-8", newline=""))
            if not set(columns) <= set(reader.fieldnames or ()):
                raise ContractError(
                    "not a table of predictions",
                    where=file,
                    expected=f"columns {', '.join(columns)}",
                    found=", ".join(reader.fieldnames or ()) or "nothing",
                )
            for line, row in enumerate(reader, start=2):
                correct = words.get((row["correct"] or "").strip().lower())
                if correct is None or row["eval_id"] is None:
                    raise InputError(
                        "cannot read `correct`",
                        where=f"{file}, line {line}",
                        expected="true, false, 1 or 0",
                        found=repr(row["correct"]),
                    )
                yield row["eval_dataset"], row["eval_id"], correct
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError("not a CSV file", where=file, found=str(error)) from error
