"""What did not make the list: side tables in the stage's ``counts/`` folder, so that "why not" has a number.

    counts/words.parquet    word, count                   words below ``min_count``
    counts/bigrams.parquet  bigram, count, pmi            pairs below a minimum or below the cut
    counts/titles.parquet   title, views, state, target   articles below a minimum or below the cut, redirects
                                                          (their views went to ``target``), and titles that the
                                                          dump does not have

Each holds its most frequent rows, at most ``RUNNERS_UP``; rows that tie with the first one left out are left out
too. So a table is exact about itself: its footer's ``wit.least`` is a number from which on nothing is missing. As
bigrams are not ranked by their number, the ``RUNNERS_UP`` best of those below the cut are there besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import paths, tables
from pipeline.core.contracts import Contract

FOLDER = "counts"
RUNNERS_UP = 500_000
LEAST_KEY = b"wit.least"

ARTICLE, REDIRECT, NOT_IN_DUMP = "article", "redirect", "not_in_dump"


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


WORDS = Contract(
    "queries-words-out",
    1,
    pa.schema([_required("word", pa.string()), _required("count", pa.int64())]),
    made_by="wit queries",
)
BIGRAMS = Contract(
    "queries-bigrams-out",
    1,
    pa.schema(
        [_required("bigram", pa.string()), _required("count", pa.int64()), _required("pmi", pa.float64())]
    ),
    made_by="wit queries",
)
TITLES = Contract(
    "queries-titles-out",
    1,
    pa.schema(
        [
            _required("title", pa.string()),
            _required("views", pa.int64()),
            _required("state", pa.string()),  # article, redirect, not_in_dump
            pa.field("target", pa.string()),
        ]
    ),
    made_by="wit queries",
)


def least_kept(numbers: np.ndarray, most: int) -> int:
    """The least number such that at most ``most`` of them reach it; 0 if all may stay.

    Args:
        numbers: int64[n].
        most: How many may stay.
    """
    if len(numbers) <= most:
        return 0
    return int(np.partition(numbers, len(numbers) - most - 1)[len(numbers) - most - 1]) + 1


def most_frequent(numbers: np.ndarray, places: np.ndarray, *, parts: int) -> tuple[int, np.ndarray]:
    """The places that one partition may hand over, and from which number on they lack nothing.

    Args:
        numbers: int64[n].
        places: int64[m], places in ``numbers`` of what did not make it.
        parts: As for :func:`write_part`.
    """
    least = least_kept(numbers[places], _share(parts))
    return least, places[numbers[places] >= least]


def _share(parts: int) -> int:
    return 1000 + 2 * RUNNERS_UP // parts


def write_part(
    path: str, table: pa.Table, contract: Contract, *, by: str, parts: int, least: int = 0
) -> None:
    """Writes one partition's runners-up to the work folder.

    Args:
        path: File.
        table: Rows of this partition that did not make it.
        contract: What they are.
        by: Column of the numbers.
        parts: How many such partitions there are, split by a hash: each may keep twice its even share.
        least: From which number on the table lacks nothing already.
    """
    _write(path, [table], contract, by=by, most=_share(parts), least=least)


def collect(
    files: Sequence[str],
    more: pa.Table,
    path: str,
    contract: Contract,
    *,
    by: str,
    ranked: pa.Table | None = None,
) -> None:
    """Joins partitions' runners-up and those that the cut left out into one side table.

    Args:
        files: What :func:`write_part` wrote.
        more: Further rows.
        path: The side table.
        contract: What they are.
        by: Column of the numbers.
        ranked: Further rows, best first: the first ``RUNNERS_UP`` are there whatever their number.
    """
    least = max((least_of(f) for f in files), default=0)
    given = [tables.read_files([f]) for f in files]
    best = contract.empty() if ranked is None else ranked.slice(0, RUNNERS_UP)
    rest = contract.empty() if ranked is None else ranked.slice(RUNNERS_UP)
    _write(path, [*given, more, rest], contract, by=by, most=RUNNERS_UP, least=least, best=best)


def _write(
    path: str,
    several: Sequence[pa.Table],
    contract: Contract,
    *,
    by: str,
    most: int,
    least: int,
    best: pa.Table | None = None,
) -> None:
    names = contract.schema.names

    def joined(some: Sequence[pa.Table]) -> pa.Table:
        return pa.concat_tables(
            [contract.conform(t.select(names)).replace_schema_metadata(None) for t in some]
        )

    table = joined(several)
    table = table.filter(pc.greater_equal(table[by], least))
    least = max(least, least_kept(table[by].to_numpy(), most))
    table = table.filter(pc.greater_equal(table[by], least))
    if best is not None:
        table = joined([table, best])
    table = table.sort_by([(by, "descending"), (names[0], "ascending")])
    tables.write_table(path, table.replace_schema_metadata({LEAST_KEY: str(least).encode()}), contract)


def least_of(path: str) -> int:
    """From which number on a side table lacks nothing; 0 if it lacks nothing at all."""
    return int((tables.read_schema(path).metadata or {}).get(LEAST_KEY, b"0"))


def side_table(out: str, name: str) -> str:
    """Path of a side table of a finished list: ``words``, ``bigrams`` or ``titles``."""
    return paths.join(out, FOLDER, f"{name}.parquet")
