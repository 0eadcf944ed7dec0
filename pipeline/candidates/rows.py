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
from pipeline.candidates.layouts import Columns, Layout
from pipeline.candidates.page import collapse
from pipeline.candidates.ranges import MOST_LINE_BYTES, WHOLE, LineRange, line_ranges, open_range
from pipeline.candidates.urls import UrlError, absolute_url
from pipeline.core import json_input, paths
from pipeline.core.errors import InputError

_PACKED = ("", ".gz", ".bz2", ".zst")
SUFFIXES = (".parquet", *(f".{kind}{p}" for kind in ("csv", "tsv", "jsonl", "ndjson") for p in _PACKED))
# A split is read by one worker at a time: large enough to be worth the trip, small enough to share out.
SPLIT_ROWS = 200_000
# JSONL rows with the same keys share what is known of them; a file where each has others must not fill the memory.
_MOST_SHAPES = 1_000


@dataclass(frozen=True, slots=True)
class TablePart:
    """A piece of a table that one worker reads.

    Attributes:
        path: The file.
        origin: How the result names it.
        kind: ``parquet``, ``csv``, ``tsv`` or ``jsonl``.
        groups: Row groups of a Parquet file; empty for the others.
        first_row: Number of the first row in the file.
        names: Columns of a CSV or TSV file; empty for the others.
        lines: The lines of a TSV or JSONL file; a CSV file is read whole, as its quoted fields may hold line ends.
    """

    path: str
    origin: str
    kind: str
    groups: tuple[int, ...] = ()
    first_row: int = 0
    names: tuple[str, ...] = ()
    lines: LineRange = WHOLE


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
        return [TablePart(path, origin, kind, first_row=r.line, lines=r) for r in line_ranges(path)]
    if kind != "parquet":
        with _open_text(path, WHOLE) as file:
            try:
                first = next(_lines(file, kind), None)
            except (OSError, EOFError, csv.Error) as error:
                raise InputError("cannot read the first line", where=path, found=str(error)) from error
        if first is None:
            raise InputError("the table is empty", where=path)
        names = _names(first, layout)
        _need(path, names, layout)
        ranges = line_ranges(path) if kind == "tsv" else [WHOLE]
        # Rows are counted behind the header line, if there is one.
        rows = [max(r.line - (0 if layout.header else 1), 0) for r in ranges]
        return [
            TablePart(path, origin, kind, first_row=row, names=tuple(names), lines=r)
            for row, r in zip(rows, ranges, strict=True)
        ]
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
        number, url, texts, scores, marker = item
        if layout.only is not None and str(marker) != layout.only[1]:
            detail = f"{layout.only[0]} is {str(marker)[:50]}; {place(part.origin, number)}"
            yield Lost("not_an_image", str(url)[:200], detail)
            continue
        if layout.scores and (why := _broken(layout, scores)) is not None:
            yield Lost("score", str(url)[:200], f"{why}; {place(part.origin, number)}")
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


def _broken(layout: Layout, scores: Sequence[object]) -> str | None:
    """The first limit that a row breaks."""
    broken = (limit.broken(score) for limit, score in zip(layout.scores, scores, strict=True))
    return next((why for why in broken if why is not None), None)


# Number, URL, texts with their kinds, scores, and the value of the layout's `only` column.
_Row = tuple[int, object, list[tuple[object, str]], Sequence[object], object]


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
    ends = 1 + len(columns.sources)
    texts = list(zip(values[1:ends], columns.sources, strict=True))
    scores = values[ends : ends + len(columns.scores)]
    return number, values[0], texts, scores, values[-1] if columns.only else None


def _lost_rows(origin: str, first: int, count: int, detail: str) -> Iterator[Lost]:
    for number in range(first, first + count):
        yield Lost("parse_error", place(origin, number), detail)


def _csv_rows(part: TablePart, layout: Layout) -> Iterator[_Row | Lost]:
    with _open_text(part.path, part.lines) as file:
        lines = _lines(file, part.kind)
        names = part.names
        columns = layout.columns(names)
        places = [names.index(name) for name in columns.wanted]
        if part.lines.start == 0 and not layout.header:
            next(lines)
        number = part.first_row - 1
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
def _open_text(path: str, lines: LineRange) -> Iterator[io.TextIOWrapper]:
    with (
        open_range(path, lines) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="") as text,
    ):
        yield text


def _lines(text: io.TextIOWrapper, kind: str) -> Iterator[list[str]]:
    # The csv module's limit is one number per process; this is the only place that sets it.
    csv.field_size_limit(MOST_LINE_BYTES)
    bounded = iter(lambda: text.readline(MOST_LINE_BYTES), "")
    if kind == "tsv":  # in the field's TSV files a quote is a character like any other
        return csv.reader(bounded, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(bounded)


def _json_rows(part: TablePart, layout: Layout) -> Iterator[_Row | Lost]:
    texts = [name for names, _ in layout.texts for name in names]
    texts += [limit.column for limit in layout.scores]
    known: dict[tuple[str, ...], Columns] = {}
    with open_range(part.path, part.lines) as file:
        number = part.first_row - 1
        while True:
            number += 1
            try:
                line = file.readline(MOST_LINE_BYTES)
            except (OSError, EOFError) as error:
                yield Lost("truncated", place(part.origin, number), str(error))
                return
            if not line:
                return
            if not line.strip():
                continue
            try:
                row = json_input.loads(line)
                # A row without its text or score is a row without a text or score, not one that cannot be read.
                names = tuple(row)
                if (columns := known.get(names)) is None:
                    columns = layout.columns([*names, *texts])
                    if len(known) < _MOST_SHAPES:
                        known[names] = columns
                yield _row(number, [row.get(name) for name in columns.wanted], columns)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                yield Lost("parse_error", place(part.origin, number), f"{type(error).__name__}: {error}")
