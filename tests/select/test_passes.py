"""Duplicates, captions and balance over many parts: the bytes of one part, and what the rules say row by row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import paths, tables
from pipeline.core.contracts import CANDIDATES
from pipeline.core.spill import split, write_chunks
from pipeline.select import choice, kept, passes, shuffle
from pipeline.select import stage as select_stage
from pipeline.select.choice import Outcome, choose, write_ranked
from pipeline.select.config import SelectConfig
from pipeline.select.decide import (
    DUPLICATE,
    HASHES,
    REPEATED,
    fates,
    packed,
    part_of,
    place_in_group,
    rows_of,
    sources_of,
    thinned,
    united,
    values,
)
from pipeline.select.kept import Fates, write_fates
from pipeline.select.shuffle import ByHash, BySource
from tests.select.test_balance import deferred_acceptance
from tests.select.test_select import WORDS, candidate, candidates_folder, files, queries_folder, run

QUERIES = 5
# Few different values, so that rows meet in all ways.
ROW = st.tuples(
    *[st.integers(0, 3)] * 5, st.lists(st.integers(0, QUERIES - 1), unique=True, min_size=1, max_size=3)
)
TABLES = st.lists(ROW, max_size=30)


def table(rows: list[tuple[Any, ...]], source: int = 0) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * 6
    named: dict[str, Any] = {n: pa.array(c, pa.uint64()) for n, c in zip(HASHES, columns, strict=False)}
    return packed(pa.table({**named, "query_ids": pa.array(columns[5], pa.list_(pa.int32()))}), source)


def fate_of(*told: pa.Table) -> dict[int, int]:
    whole = pa.concat_tables(told)
    return dict(zip(values(whole, "place").tolist(), values(whole, "fate").tolist(), strict=True))


@given(TABLES, st.integers(1, 3))
def test_duplicates_and_captions_as_the_rules_say(rows: list[tuple[Any, ...]], most: int) -> None:
    fate: dict[int, int] = {}
    seen: Counter[int] = Counter()
    first: dict[tuple[int, int], int] = {}
    for place in sorted(range(len(rows)), key=lambda i: (rows[i][4], i)):
        if first.setdefault(rows[place][:2], place) != place:
            fate[place] = DUPLICATE
    for place in sorted(first.values(), key=lambda i: (rows[i][3], rows[i][4], i)):
        seen[rows[place][2]] += 1
        if seen[rows[place][2]] > most:
            fate[place] = REPEATED
    left, doubled = united(table(rows))
    left, repeated = thinned(left, most)
    assert fate_of(doubled, repeated) == fate
    assert sorted({*values(left, "place").tolist(), *fate}) == list(range(len(rows)))


@given(TABLES, st.integers(1, 3), st.integers(1, 4), st.randoms(use_true_random=False))
def test_what_falls_out_of_a_part_falls_out_of_the_whole(
    rows: list[tuple[Any, ...]], most: int, parts: int, random: Any
) -> None:
    whole = table(rows)
    for divide in (united, lambda t: thinned(t, most)):
        left, lost = divide(whole)
        cut = np.array([random.randrange(parts) for _ in rows], dtype=np.int64)
        pieces = [divide(piece) for _, piece in split(whole, cut)]
        random.shuffle(pieces)
        again, more = divide(pa.concat_tables([whole.slice(0, 0), *(p[0] for p in pieces)]).combine_chunks())
        assert sorted(values(again, "place").tolist()) == values(left, "place").tolist()
        assert fate_of(more, *(p[1] for p in pieces)) == fate_of(lost)


@given(st.lists(st.integers(0, 2**64 - 1)), st.integers(1, 9))
def test_parts_follow_one_another_as_hashes_do(hashes: list[int], parts: int) -> None:
    given_hashes = np.array(hashes, dtype=np.uint64)
    found = part_of(given_hashes, parts)
    assert ((found >= 0) & (found < parts)).all()
    assert (np.diff(found[np.argsort(given_hashes)]) >= 0).all()
    exact = [h * parts >> 64 for h in hashes]
    assert (np.abs(found - np.array(exact, dtype=np.int64)) <= 1).all()


def test_a_caption_of_many_parts_is_not_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table([(i, i, 7, (i * 37) % 101, i, [i % QUERIES]) for i in range(100)])
    whole, lost = thinned(rows, 4)
    pieces = [(0, [rows.slice(start, 5)]) for start in range(0, 100, 5)]
    chunks = [chunk for _, chunk in write_chunks(str(tmp_path), pieces)]
    seen: list[int] = []

    def noted(given_rows: pa.Table, most: int) -> tuple[pa.Table, pa.Table]:
        seen.append(given_rows.num_rows)
        return thinned(given_rows, most)

    monkeypatch.setattr(passes, "thinned", noted)
    monkeypatch.setattr(shuffle, "STRETCH_BYTES", 2 * (chunks[0][2] - chunks[0][1]))
    *told, left = passes.Thin(4).process((0, chunks))
    assert max(seen) <= 4 + 3 * 5
    assert left.sort_by("place").equals(whole.combine_chunks())
    assert fate_of(*(one.value for one in told)) == fate_of(lost)


def test_place_in_group() -> None:
    groups, order = np.array([5, 3, 5, 5, 3, 8]), np.array([9, 2, 1, 4, 0, 7])
    assert place_in_group([groups], [order]).tolist() == [2, 1, 0, 1, 0, 0]
    assert place_in_group([groups[:0]], [order[:0]]).tolist() == []
    # The second value is part of the group's name.
    assert place_in_group([groups, np.array([1, 1, 1, 2, 2, 2])], [order]).tolist() == [1, 0, 0, 0, 0, 0]


def test_places_hold_file_and_row() -> None:
    rows = packed(table([(0, 0, 0, 0, 0, [1])] * 3), 70_000)
    assert sources_of(rows).tolist() == [70_000] * 3
    assert rows_of(rows).tolist() == [0, 1, 2]
    assert BySource(1_000)(rows).tolist() == [70] * 3


def test_fates_meet_their_rows(tmp_path: Path) -> None:
    path = str(tmp_path / "fates.arrow")
    assert [v.tolist() for v in Fates(path).of(3, 2)] == [[-1, -1], [-1, -1]]
    places = np.array([(4 << 32) + 1, 3 << 32, (4 << 32) + 2], dtype=np.uint64)
    told = fates(places, np.array([7, -2, -1], np.int32), np.array([-1, -1, 9], np.int32))
    write_fates(path, told)
    once = Path(path).read_bytes()
    write_fates(path, told.take(pa.array([2, 0, 1])))
    assert Path(path).read_bytes() == once
    assert [v.tolist() for v in Fates(path).of(4, 4)] == [[-1, 7, -1, -1], [-1, -1, 9, -1]]
    assert [v.tolist() for v in Fates(path).of(3, 1)] == [[-2], [-1]]
    assert [v.tolist() for v in Fates(path).of(5, 1)] == [[-1], [-1]]


def chosen(
    rows: pa.Table, parts: int, config: SelectConfig, queries: int
) -> tuple[dict[int, tuple[int, int]], Outcome]:
    """What is chosen of rows that lie in so many parts."""
    folder = f"memory://choice-{parts}"
    numbers = []
    for number, part in split(rows, ByHash("pair_hash", parts)(rows)):
        write_ranked(folder, number, part, queries)
        numbers.append(number)
    found: dict[int, tuple[int, int]] = {}
    steps = choose(folder, numbers[::-1], config, queries)
    while True:
        try:
            told = next(steps)
        except StopIteration as end:
            paths.remove(folder)
            outcome: Outcome = end.value
            return found, outcome
        names = ("place", "fate", "reserve")
        for place, *fate in zip(*(values(told, name).tolist() for name in names), strict=True):
            found[place] = (fate[0], fate[1])


@pytest.mark.parametrize("mode", ["cap", "sample"])
@pytest.mark.parametrize("seed", range(3))
def test_parts_choose_as_deferred_acceptance_says(mode: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    n, queries, cap = 600, 40, 9
    lists = [
        draw.choice(queries, size=1 + draw.integers(6), replace=False, p=_zipf(queries)).tolist()
        for _ in range(n)
    ]
    hashes = draw.integers(0, 2**64, n, dtype=np.uint64)
    rows = table([(i, i, i, int(h), i, ids) for i, (h, ids) in enumerate(zip(hashes, lists, strict=True))])
    reserve = 0.5 if mode == "cap" else 0.0
    config = SelectConfig(candidates="-", queries="-", cap=cap, mode=mode, reserve=reserve)  # type: ignore[arg-type]
    with mock.patch.object(choice, "BATCH_ROWS", 7):
        whole, outcome = chosen(rows, 1, config, queries)
        for parts in (2, 13):
            again, same = chosen(rows, parts, config, queries)
            assert again == whole
            for name in ("matched", "selected", "capped"):
                assert getattr(same, name).tolist() == getattr(outcome, name).tolist()
            assert same.reserved == outcome.reserved
    if mode == "sample":
        assert 0 < outcome.selected.sum() < n
        return
    rank = np.empty(n, np.int64)
    rank[np.argsort(hashes)] = np.arange(n)
    told, capped = deferred_acceptance(lists, cap, rank, queries)
    larger, _ = deferred_acceptance(lists, config.reserve_cap, rank, queries)
    expected = {
        i: (told[i], larger[i] if told[i] < 0 else -1) for i in range(n) if told[i] >= 0 or larger[i] >= 0
    }
    assert whole == expected
    assert set(np.flatnonzero(outcome.capped).tolist()) == capped
    assert outcome.reserved == sum(1 for fate, _ in expected.values() if fate < 0) > 0


def _zipf(queries: int) -> np.ndarray:
    weights = 1 / np.arange(1, queries + 1)
    return np.asarray(weights / weights.sum())


def test_the_outcome_is_written_whole(tmp_path: Path) -> None:
    numbers = np.arange(4, dtype=np.int64)
    Outcome(numbers, numbers * 2, numbers > 2, 5).write(str(tmp_path / "o"))
    found = Outcome.read(str(tmp_path / "o"))
    assert found.matched.tolist() == [0, 1, 2, 3]
    assert found.selected.tolist() == [0, 2, 4, 6]
    assert found.capped.tolist() == [False, False, False, True]
    assert found.reserved == 5


def crowd(folder: Path) -> str:
    """Candidates in several files of several row groups: rows found twice near and far, captions that many share."""
    texts = [
        "a red apple",
        "the dog at night",
        "a shiny red dog",
        "two red dogs in new york",
        "night in york",
    ]
    rows = [candidate(f"http://x.test/{i}.jpg", texts[i % 5]) for i in range(150)]
    rows += [
        candidate(f"http://x.test/{i}.jpg", texts[i % 5], page_url=f"http://p.test/{i}")
        for i in range(0, 150, 3)
    ]
    rows += [candidate(f"http://x.test/{i}.jpg", texts[i % 5].upper()) for i in range(0, 150, 7)]
    rows += [candidate("http://x.test/logo.png", "a red dog")] * 20  # the very same row, again and again
    rows += [
        candidate(f"http://y.test/{i}.jpg", f"a {word} dog number {i}") for i, word in enumerate(WORDS * 4)
    ]
    rows += [
        candidate(f"http://z.test/{i}.jpg", text) for i, text in enumerate(["IMG_1.JPG", "das Haus", "*"] * 5)
    ]
    order = np.random.default_rng(1).permutation(len(rows))
    made = candidates_folder(folder, [rows[i] for i in order])
    whole = tables.read_files([str(folder / "part-00000.parquet")])
    for number, start in enumerate(range(0, whole.num_rows, 100)):
        part = CANDIDATES.conform(whole.slice(start, 100))
        pq.write_table(part, folder / f"part-{number:05d}.parquet", row_group_size=23 + 20 * number)
    return made


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> list[passes.Layout]:
    """Everything is cut as small as it can be."""
    layouts = []
    layout_of = select_stage.layout_of

    def noted(*given: Any) -> passes.Layout:
        layouts.append(layout_of(*given))
        return layouts[-1]

    monkeypatch.setattr(select_stage, "layout_of", noted)
    for module, name, value in (
        (select_stage, "PACKED_ROWS", 20),
        (select_stage, "GROUP_ROWS", 150),
        (select_stage, "BATCH_ROWS", 11),
        (shuffle, "HELD_BYTES", 4_000),
        (shuffle, "STRETCH_BYTES", 3_000),
        (choice, "BATCH_ROWS", 5),
        (kept, "BATCH_ROWS", 7),
    ):
        monkeypatch.setattr(module, name, value)
    return layouts


@pytest.mark.parametrize(
    "more", [("--reserve", "0.5"), ("--mode", "sample")], ids=["cap and reserve", "sample"]
)
def test_many_small_parts_give_the_bytes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(select_stage, "PART_ROWS", 50)  # of the result: the same in both
    candidates, queries = crowd(tmp_path / "c"), queries_folder(tmp_path / "q", WORDS)
    arguments = ("--cap", "12", "--max-images-per-caption", "21", *more)
    assert run(candidates, queries, tmp_path / "whole", *arguments) == 0
    layouts = request.getfixturevalue("small_parts")
    assert run(candidates, queries, tmp_path / "cut", *arguments) == 0
    (layout,) = layouts
    assert layout.parts > 10
    assert 1 < len(layout.groups) < layout.sources
    whole = files(tmp_path / "whole")
    assert len([name for name in whole if name.startswith("dropped/")]) > 3
    assert files(tmp_path / "cut") == whole
    assert list((tmp_path / "cut").glob(".*")) == []
    manifests = [paths.read_bytes(str(tmp_path / name / "manifest.json")) for name in ("whole", "cut")]
    assert all(b'"duplicate"' in m and b'"caption_repeated"' in m and b'"over_cap"' in m for m in manifests)
