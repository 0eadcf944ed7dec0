"""Tables of words and their occurrences: added up, or read where somebody has counted already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.core import paths
from pipeline.core.errors import InputError
from pipeline.core.tokens import fold, tokens
from queries.streams import DAMAGE

COUNTS = pa.schema(
    [pa.field("word", pa.string(), nullable=False), pa.field("count", pa.int64(), nullable=False)]
)


def merge(several: Iterable[pa.Table]) -> pa.Table:
    """Adds up tables of ``word``, ``count``; sorted by word."""
    listed = list(several)
    if not listed:
        return COUNTS.empty_table()
    added = pa.concat_tables(listed).group_by("word").aggregate([("count", "sum")])
    return added.rename_columns(["word", "count"]).select(["word", "count"]).sort_by("word").cast(COUNTS)


def read_counts(path: str) -> tuple[pa.Table, int]:
    """A table of counted words, folded as the tokeniser folds.

    Args:
        path: Parquet, or TSV (gz, bz2, zstd) with a header line ``word<TAB>count``.

    Returns:
        ``word``, ``count`` sorted by word, each a single word of the tokeniser; and how many rows were not one
        (phrases, symbols, negative or missing counts) and were left out.

    Raises:
        InputError: The file is unreadable or lacks the columns.
    """
    table = _read_table(path)
    missing = [c for c in ("word", "count") if c not in table.column_names]
    if missing:
        raise InputError(
            "no such column in the word counts", where=path, expected="word, count", found=", ".join(table.column_names)
        )  # fmt: skip
    try:
        table = table.select(["word", "count"]).cast(
            pa.schema([("word", pa.string()), ("count", pa.int64())])
        )
    except pa.ArrowException as error:
        raise InputError("the word counts have the wrong type", where=path, found=str(error)) from error
    table = pa.table({"word": pc.fill_null(table["word"], ""), "count": pc.fill_null(table["count"], -1)})
    folded = list(_single_words(table["word"].to_pylist()))
    good = pc.and_(pa.array([w is not None for w in folded], pa.bool_()), pc.greater_equal(table["count"], 0))
    kept = pa.table([pa.array([w or "" for w in folded], pa.string()), table["count"]], schema=COUNTS).filter(
        good
    )
    if not kept.num_rows:
        raise InputError("the word counts hold no word", where=path)
    return merge([kept]), table.num_rows - kept.num_rows


def _single_words(found: Iterable[str]) -> Iterator[str | None]:
    for text in found:
        words = tokens(text)
        yield words[0] if len(words) == 1 and words[0] == fold(text).strip() else None


def _read_table(path: str) -> pa.Table:
    with paths.open_input(path, decompress=False) as file:
        magic = file.read(4)
    try:
        with paths.open_input(path, decompress=magic != b"PAR1") as file:
            if magic == b"PAR1":
                return pq.read_table(file)
            return pa_csv.read_csv(
                file,
                parse_options=pa_csv.ParseOptions(delimiter="\t", quote_char=False),
                # A word may be "null" or "nan": only an empty field is missing.
                convert_options=pa_csv.ConvertOptions(
                    column_types={"word": pa.string(), "count": pa.int64()}, null_values=[""]
                ),
            )
    except (pa.ArrowException, *DAMAGE) as error:
        raise InputError(
            "not readable word counts", where=path, expected="Parquet or TSV", found=error
        ) from error
