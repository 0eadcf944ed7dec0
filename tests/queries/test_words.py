from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import InputError
from queries import words


def test_merge_adds_up_and_sorts() -> None:
    one = pa.table({"word": ["b", "a"], "count": [2, 1]})
    two = pa.table({"word": ["c", "b"], "count": [1, 1]})
    assert words.merge([one, two]).to_pylist() == words.merge([two, one]).to_pylist()
    assert words.merge([one, two]).to_pydict() == {"word": ["a", "b", "c"], "count": [1, 3, 1]}
    assert words.merge([]).num_rows == 0


def test_counts_given_as_a_table(tmp_path: Path) -> None:
    rows = [
        ("Dog", 5),
        ("dog", 7),
        ("new york", 9),
        ("null", 3),
        ("", 4),
        ("c++", 2),
        ("São", 1),
        ("bad", -1),
    ]
    tsv = tmp_path / "counts.tsv"
    tsv.write_text("word\tcount\n" + "".join(f"{w}\t{n}\n" for w, n in rows))
    packed = tmp_path / "counts.tsv.gz"
    packed.write_bytes(gzip.compress(tsv.read_bytes()))
    parquet = tmp_path / "counts.parquet"
    pq.write_table(pa.table({"count": [n for _, n in rows], "word": [w for w, _ in rows]}), parquet)
    for path in (tsv, packed, parquet):
        table, skipped = words.read_counts(str(path))
        assert table.to_pylist() == [
            {"word": "dog", "count": 12}, {"word": "null", "count": 3}, {"word": "são", "count": 1},
        ]  # fmt: skip
        assert skipped == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"term\tn\na\t1\n", "no such column in the word counts"),
        (b"word\tcount\na\tmany\n", "not readable word counts"),
        (b"word\tcount\n", "hold no word"),
        (b"", "not readable word counts"),
        (b"PAR1 not really", "not readable word counts"),
        (gzip.compress(b"word\tcount\n" + b"a\t1\n" * 1000, mtime=0)[:40], "not readable word counts"),
    ],
)
def test_bad_tables(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "counts"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        words.read_counts(str(path))
