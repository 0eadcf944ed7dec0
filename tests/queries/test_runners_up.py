from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import tables
from queries import runners_up


def words(counts: dict[str, int]) -> pa.Table:
    return pa.table([list(counts), list(counts.values())], schema=runners_up.WORDS.schema)


def read(path: Path) -> dict[str, int]:
    table = tables.read_files([str(path)])
    runners_up.WORDS.check(tables.read_schema(str(path)), where=str(path))
    return dict(zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True))


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 12))
def test_the_most_frequent_and_no_half_ties(numbers: list[int], most: int) -> None:
    given_numbers = np.array(numbers, np.int64)
    least = runners_up.least_kept(given_numbers, most)
    kept = given_numbers[given_numbers >= least]
    assert len(kept) <= most
    # One less and too many would stay.
    assert least == 0 or np.sum(given_numbers >= least - 1) > most


def test_a_side_table_knows_from_where_on_it_lacks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners_up, "RUNNERS_UP", 4)
    monkeypatch.setattr(runners_up, "_share", lambda _: 3)
    parts = [str(tmp_path / f"rare_words-{n}.parquet") for n in range(2)]
    runners_up.write_part(
        parts[0], words({"a": 9, "b": 7, "c": 5, "d": 5}), runners_up.WORDS, by="count", parts=2
    )
    runners_up.write_part(parts[1], words({"e": 8, "f": 1}), runners_up.WORDS, by="count", parts=2)
    # "c" and "d" tie for the third place: neither stays, and the part says so.
    assert [runners_up.least_of(p) for p in parts] == [6, 0]
    assert read(Path(parts[0])) == {"a": 9, "b": 7}
    out = tmp_path / "words.parquet"
    runners_up.collect(parts, words({"g": 8}), str(out), runners_up.WORDS, by="count")
    # "f" goes because the other part may hold more like it.
    assert read(out) == {"a": 9, "e": 8, "g": 8, "b": 7}
    assert runners_up.least_of(str(out)) == 6
    runners_up.collect(parts, words({"g": 7}), str(out), runners_up.WORDS, by="count")
    assert list(read(out)) == ["a", "e", "b", "g"]  # by count, then by word
    runners_up.collect([], words({"g": 7}), str(out), runners_up.WORDS, by="count")
    assert (read(out), runners_up.least_of(str(out))) == ({"g": 7}, 0)


def test_the_best_below_the_cut_stay_whatever_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners_up, "RUNNERS_UP", 2)

    def pairs(*found: tuple[str, int, float]) -> pa.Table:
        return pa.table([list(c) for c in zip(*found, strict=True)], schema=runners_up.BIGRAMS.schema)

    rare, out = str(tmp_path / "rare_bigrams-0.parquet"), str(tmp_path / "bigrams.parquet")
    common = pairs(("of the", 90, 1.0), ("in the", 80, 1.0), ("by the", 70, 1.0))
    runners_up.write_part(rare, common, runners_up.BIGRAMS, by="count", parts=1)
    cut = pairs(("hot dog", 3, 9.0), ("red fox", 4, 8.0), ("old dog", 85, 7.0), ("big dog", 5, 6.0))
    runners_up.collect([rare], runners_up.BIGRAMS.empty(), out, runners_up.BIGRAMS, by="count", ranked=cut)
    left = tables.read_files([out])["bigram"].to_pylist()
    assert left == ["of the", "old dog", "red fox", "hot dog"]
    assert runners_up.least_of(out) == 81


def test_what_a_partition_may_hand_over() -> None:
    numbers = np.array([5, 1, 9, 3])
    least, places = runners_up.most_frequent(numbers, np.array([0, 1, 3]), parts=1)
    assert (least, places.tolist()) == (0, [0, 1, 3])
