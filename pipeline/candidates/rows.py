"""Tables of URL and text: Parquet, CSV, TSV and JSONL."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.candidates.found import Lost, Pair, place
from pipeline.candidates.page import collapse
from pipeline.candidates.urls import UrlError, absolute_url
from pipeline.core import json_input, paths
from pipeline.core.errors import InputError

_PACKED = ("", ".gz", ".bz2", ".zst")
SUFFIXES = (".parquet", *(f".{kind}{p}" for kind in ("csv", "tsv", "jsonl", "ndjson") for p in _PACKED))
# A split is read by one worker at a time: large enough to be worth the trip, small enough to share out.
SPLIT_ROWS = 200_000
_FIELD_CHARS = 10_000_000


@dataclass(frozen=True, slots=True)
class TablePart:
    """A piece of a table that one worker reads.

    Attributes:
        path: The file.
        origin: How the result names it.
        kind: ``parquet``, ``csv``, ``tsv`` or ``jsonl``.
        groups: Row groups of a Parquet file; empty for the others.
        first_row: Number of the first row in the file.
    """

    path: str
    origin: str
    kind: str
    groups: tuple[int, ...] = ()
    first_row: int = 0


def kind_of(path: str) -> str:
    """A table's kind by its name.

    Raises:
        InputError: No kind that we read.
    """
    name = path.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return "jsonl" if ".ndjson" in suffix else suffix.split(".")[1]
    raise InputError("not a table that we read", where=path, expected="Parquet, CSV, TSV or JSONL")


def table_parts(path: str, origin: str, url_column: str, text_column: str) -> list[TablePart]:
    """The pieces of one table.

    Raises:
        InputError: Not readable as its name says, or a column is missing.
    """
    kind = kind_of(path)
    if kind == "jsonl":
        return [TablePart(path, origin, kind)]
    if kind != "parquet":
        with _open_text(path) as file:
            try:
                header = next(_lines(file, kind), None)
            except (OSError, EOFError, csv.Error) as error:
                raise InputError("cannot read the header", where=path, found=str(error)) from error
        if header is None:
            raise InputError("the table is empty: it has no header line", where=path)
        _need(path, header, url_column, text_column)
        return [TablePart(path, origin, kind)]
    with paths.open_input(path, decompress=False) as file:
        try:
            metadata = pq.ParquetFile(file).metadata
        except (pa.ArrowException, OSError) as error:
            raise InputError("not a readable Parquet file", where=path, found=str(error)) from error
        _need(path, metadata.schema.to_arrow_schema().names, url_column, text_column)
        rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    return _row_group_parts(path, origin, rows)


def _row_group_parts(path: str, origin: str, rows: Sequence[int]) -> list[TablePart]:
    parts: list[TablePart] = []
    groups: list[int] = []
    first = held = 0
    for group, count in enumerate(rows):
        groups.append(group)
        held += count
        if held >= SPLIT_ROWS or group == len(rows) - 1:
            parts.append(TablePart(path, origin, "parquet", tuple(groups), first))
            first, groups, held = first + held, [], 0
    return parts


def _need(path: str, found: Sequence[str], *wanted: str) -> None:
    for name, flag in zip(wanted, ("--url-column", "--text-column"), strict=True):
        if name not in found:
            raise InputError(
                f"no column {name!r}",
                where=path,
                found=", ".join(map(str, found))[:300],
                hint=f"name it with {flag}",
            )


def read_table(
    part: TablePart, url_column: str, text_column: str, *, max_text_chars: int
) -> Iterator[Pair | Lost]:
    """Pairs of a piece of a table, and the rows that were lost."""
    rows = _parquet_rows if part.kind == "parquet" else _json_rows if part.kind == "jsonl" else _csv_rows
    for item in rows(part, url_column, text_column):
        if isinstance(item, Lost):
            yield item
            continue
        number, url, text = item
        where = place(part.origin, number)
        text = collapse(text) if isinstance(text, str) else ""
        if not text:
            yield Lost("no_text", str(url)[:200], where)
        elif len(text) > max_text_chars:
            yield Lost("text_too_long", str(url)[:200], f"{len(text)} characters; {where}")
        else:
            try:
                absolute = absolute_url(url if isinstance(url, str) else "", None)
            except UrlError as error:
                yield Lost(error.reason, str(url)[:200], where)
                continue
            yield Pair(absolute, text, "caption", None, None, (), part.origin, number)


_Row = tuple[int, object, object]


def _parquet_rows(part: TablePart, url_column: str, text_column: str) -> Iterator[_Row | Lost]:
    number = part.first_row
    with paths.open_input(part.path, decompress=False) as file:
        opened = pq.ParquetFile(file)
        for group in part.groups:
            count = opened.metadata.row_group(group).num_rows
            done = 0
            try:
                for batch in opened.iter_batches(row_groups=[group], columns=[url_column, text_column]):
                    urls = batch.column(url_column).to_pylist()
                    texts = batch.column(text_column).to_pylist()
                    for url, text in zip(urls, texts, strict=True):
                        yield number + done, url, text
                        done += 1
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                yield from _lost_rows(part.origin, number + done, count - done, str(error))
            number += count


def _lost_rows(origin: str, first: int, count: int, detail: str) -> Iterator[Lost]:
    for number in range(first, first + count):
        yield Lost("parse_error", place(origin, number), detail)


def _csv_rows(part: TablePart, url_column: str, text_column: str) -> Iterator[_Row | Lost]:
    with _open_text(part.path) as file:
        lines = _lines(file, part.kind)
        header = next(lines)
        url, text = header.index(url_column), header.index(text_column)
        number = -1
        while True:
            number += 1
            try:
                row = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                yield Lost("parse_error", place(part.origin, number), str(error))
                continue
            except (OSError, EOFError) as error:
                yield Lost("truncated", place(part.origin, number), str(error))
                return
            if not row:
                continue
            if len(row) <= max(url, text):
                yield Lost("parse_error", place(part.origin, number), f"{len(row)} of {len(header)} columns")
            else:
                yield number, row[url], row[text]


@contextlib.contextmanager
def _open_text(path: str) -> Iterator[io.TextIOWrapper]:
    with (
        paths.open_input(path) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="") as text,
    ):
        yield text


def _lines(text: io.TextIOWrapper, kind: str) -> Iterator[list[str]]:
    # The csv module's limit is one number per process; this is the only place that sets it.
    csv.field_size_limit(_FIELD_CHARS)
    if kind == "tsv":  # in the field's TSV files a quote is a character like any other
        return csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(text)


def _json_rows(part: TablePart, url_column: str, text_column: str) -> Iterator[_Row | Lost]:
    with paths.open_input(part.path) as file:
        number = -1
        while True:
            number += 1
            try:
                line = file.readline(_FIELD_CHARS)
            except (OSError, EOFError) as error:
                yield Lost("truncated", place(part.origin, number), str(error))
                return
            if not line:
                return
            if not line.strip():
                continue
            try:
                row = json_input.loads(line)
                yield number, row[url_column], row.get(text_column)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                yield Lost("parse_error", place(part.origin, number), f"{type(error).__name__}: {error}")
