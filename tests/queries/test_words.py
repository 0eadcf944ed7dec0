from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.core.tokens import tokens
from queries import words

# Words, marks and spaces in any mixture, with what is special to the pieces.
TEXTS = st.text(
    alphabet=st.one_of(st.sampled_from("ab'’-–_. \n\"é1"), st.characters(exclude_categories=["Cs"]))
)


@given(TEXTS)
def test_pieces_hold_the_tokenisers_words_in_order(text: str) -> None:
    counted = words.count(words.encode(words.pieces(text)))
    assert dict(zip(counted["word"].to_pylist(), counted["count"].to_pylist(), strict=True)) == Counter(
        tokens(text)
    )
    vocabulary = pa.array(sorted(set(tokens(text))), pa.string())
    places = words.places(words.encode(words.pieces(text)), vocabulary)
    assert [vocabulary[int(p)].as_py() for p in places if p >= 0] == tokens(text)


def test_marks() -> None:
    assert words.pieces("Spider-Man's web - a “great” one\n two--x") == [
        "spider", "man's", "web", "-", "a", "“", "great", "”", "one", "\n ", "two", "--", "x",
    ]  # fmt: skip


def test_merge_adds_up_and_sorts() -> None:
    one = words.count(words.encode(words.pieces("b a b")))
    two = words.count(words.encode(words.pieces("c b")))
    assert words.merge([one, two]).to_pylist() == words.merge([two, one]).to_pylist()
    assert words.merge([one, two])["count"].to_pylist() == [1, 3, 1]
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
        (gzip.compress(b"word\tcount\n" + b"a\t1\n" * 1000)[:40], "not readable word counts"),
    ],
)
def test_bad_tables(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "counts"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        words.read_counts(str(path))
