"""Tables of URL and text: Parquet, CSV, TSV and JSONL."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.candidates.found import Lost, Pair, place
from pipeline.candidates.layouts import Columns, Layout
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


def table_parts(path: str, origin: str, layout: Layout) -> list[TablePart]:
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
                first = next(_lines(file, kind), None)
            except (OSError, EOFError, csv.Error) as error:
                raise InputError("cannot read the first line", where=path, found=str(error)) from error
        if first is None:
            raise InputError("the table is empty", where=path)
        _need(path, _names(first, layout), layout)
        return [TablePart(path, origin, kind)]
    with paths.open_input(path, decompress=False) as file:
        try:
            metadata = pq.ParquetFile(file).metadata
        except (pa.ArrowException, OSError) as error:
            raise InputError("not a readable Parquet file", where=path, found=str(error)) from error
        _need(path, metadata.schema.to_arrow_schema().names, layout)
        rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    return _row_group_parts(path, origin, rows)


def _names(first: list[str], layout: Layout) -> list[str]:
    """Names of the columns of a CSV or TSV file by its first line."""
    return layout.named(len(first)) if layout.header else first


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


def _need(path: str, found: Sequence[str], layout: Layout) -> None:
    try:
        layout.columns(found)
    except KeyError as error:
        wanted = " or ".join(map(repr, error.args[0]))
        raise InputError(
            f"no column {wanted}" if not layout.header else f"too few columns: no {wanted}",
            where=path,
            found=", ".join(map(str, found))[:300] if not layout.header else f"{len(found)} columns",
            hint="name the columns with --url-column and --text-column, or a known table with --layout",
        ) from error


def read_table(part: TablePart, layout: Layout, *, max_text_chars: int) -> Iterator[Pair | Lost]:
    """Pairs of a piece of a table, and the rows that were lost."""
    rows = _parquet_rows if part.kind == "parquet" else _json_rows if part.kind == "jsonl" else _csv_rows
    for item in rows(part, layout):
        if isinstance(item, Lost):
            yield item
            continue
        number, url, texts, marker = item
        if layout.only is not None and str(marker) != layout.only[1]:
            detail = f"{layout.only[0]} is {str(marker)[:50]}; {place(part.origin, number)}"
            yield Lost("not_an_image", str(url)[:200], detail)
            continue
        found = [
            (text, source) for t, source in texts if isinstance(t, str) and (text := collapse(layout.text(t)))
        ]
        if not found:
            yield Lost("no_text", str(url)[:200], place(part.origin, number))
        for text, source in found:
            if len(text) > max_text_chars:
                where = place(part.origin, number)
                yield Lost("text_too_long", str(url)[:200], f"{len(text)} characters; {where}")
                continue
            try:
                absolute = absolute_url(url if isinstance(url, str) else "", None)
            except UrlError as error:
                yield Lost(error.reason, str(url)[:200], place(part.origin, number))
                continue
            yield Pair(absolute, text, source, None, None, (), part.origin, number)


# Number, URL, texts with their kinds, and the value of the layout's `only` column.
_Row = tuple[int, object, list[tuple[object, str]], object]


def _parquet_rows(part: TablePart, layout: Layout) -> Iterator[_Row | Lost]:
    number = part.first_row
    with paths.open_input(part.path, decompress=False) as file:
        opened = pq.ParquetFile(file)
        columns = layout.columns(opened.schema_arrow.names)
        wanted = columns.wanted
        for group in part.groups:
            count = opened.metadata.row_group(group).num_rows
            done = 0
            try:
                for batch in opened.iter_batches(row_groups=[group], columns=list(dict.fromkeys(wanted))):
                    for values in zip(*(batch.column(name).to_pylist() for name in wanted), strict=True):
                        yield _row(number + done, values, columns)
                        done += 1
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                yield from _lost_rows(part.origin, number + done, count - done, str(error))
            number += count


def _row(number: int, values: Sequence[object], columns: Columns) -> _Row:
    """A row from the values of :attr:`Columns.wanted`."""
    texts = [(text, source) for text, (_, source) in zip(values[1:], columns.texts, strict=False)]
    return number, values[0], texts, values[-1] if columns.only else None


def _lost_rows(origin: str, first: int, count: int, detail: str) -> Iterator[Lost]:
    for number in range(first, first + count):
        yield Lost("parse_error", place(origin, number), detail)


def _csv_rows(part: TablePart, layout: Layout) -> Iterator[_Row | Lost]:
    with _open_text(part.path) as file:
        lines = _lines(file, part.kind)
        first = next(lines)
        names = _names(first, layout)
        columns = layout.columns(names)
        places = [names.index(name) for name in columns.wanted]
        if layout.header:
            lines = chain([first], lines)
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
            # Behind a header line stray columns at a row's end do no harm; without one they would shift all names.
            if len(row) <= max(places) or (layout.header and len(row) != len(names)):
                yield Lost("parse_error", place(part.origin, number), f"{len(row)} of {len(names)} columns")
            else:
                yield _row(number, [row[place] for place in places], columns)


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


def _json_rows(part: TablePart, layout: Layout) -> Iterator[_Row | Lost]:
    texts = [name for names, _ in layout.texts for name in names]
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
                # A row without its text is a row without a text, not one that cannot be read.
                columns = layout.columns([*row, *texts])
                yield _row(number, [row.get(name) for name in columns.wanted], columns)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                yield Lost("parse_error", place(part.origin, number), f"{type(error).__name__}: {error}")
