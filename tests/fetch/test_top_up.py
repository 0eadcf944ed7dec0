from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.core import manifest, tables
from pipeline.core.beam import run_pipeline
from pipeline.core.contracts import PAIRS, QUERY_COUNTS, pair_id
from pipeline.core.fakes import fake_table, jpeg, picture
from pipeline.core.stage import RunOptions, StageResult, run_stage
from pipeline.fetch.top_up import Pool
from pipeline.select.balance import NOT_KEPT, Wishes, balance_cap, choose_cap, pair_hash, rank_of
from tests.fetch.hostile import Site
from tests.fetch.test_reuse import FAST, asked_for
from tests.fetch.test_stage import FLAGS, assert_same, fetch, rows_of

QUERIES = 4
Lists = list[list[int]]
WISH = st.lists(st.integers(0, QUERIES - 1), unique=True, min_size=1, max_size=3)
WISH_LISTS = st.lists(WISH, min_size=1, max_size=40)


def arrays(wishes: Lists) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(w) for w in wishes]
    return np.r_[0, np.cumsum(lengths)].astype(np.int64), np.array([q for w in wishes for q in w], np.int32)


def pool_of(wishes: Lists, cap: int, matched: np.ndarray) -> Pool:
    ids = [f"{i:03d}" for i in range(len(wishes))]
    rank = rank_of(pair_hash(ids, 0), np.arange(len(ids), dtype=np.uint64))
    return Pool(pa.array(ids, pa.string()), rank, *arrays(wishes), matched, cap)


def topped_up(pool: Pool, dead: set[str]) -> tuple[dict[str, int], set[str]]:
    """What rounds of drawing end with: living pairs with their query, and all that were attempted."""
    attempted: set[str] = set()
    while True:
        failed = pa.array(sorted(attempted & dead), pa.string())
        query = dict(zip(pool.ids.to_pylist(), pool.selected(failed).tolist(), strict=True))
        chosen = {i for i, q in query.items() if q != NOT_KEPT}
        if not chosen - attempted:
            return {i: query[i] for i in chosen}, attempted
        assert not (attempted - dead) - chosen  # a pair that was fetched stays selected
        attempted |= chosen


@settings(max_examples=300, deadline=None)
@given(
    wishes=st.lists(
        st.lists(st.integers(0, QUERIES - 1), unique=True, min_size=1, max_size=3), min_size=1, max_size=40
    ),
    cap=st.integers(1, 5),
    dead=st.sets(st.integers(0, 39)),
)
def test_it_ends_with_the_balance_of_the_living(wishes: Lists, cap: int, dead: set[int]) -> None:
    matched = np.bincount(arrays(wishes)[1], minlength=QUERIES).astype(np.int64)
    pool = pool_of(wishes, cap, matched)
    names = {f"{i:03d}" for i in dead}
    found, attempted = topped_up(pool, names)
    living = [i for i in range(len(wishes)) if i not in dead]
    asked_for = Wishes(*arrays([wishes[i] for i in living]), matched)
    wanted = choose_cap(asked_for, pool.rank[living], cap=cap).query_id
    assert found == {f"{i:03d}": q for i, q in zip(living, wanted.tolist(), strict=True) if q != NOT_KEPT}
    # No more than needed: whoever is not dead was selected in the end.
    assert attempted - names == set(found)


@settings(max_examples=150, deadline=None)
@given(
    wishes=st.lists(
        st.lists(st.integers(0, QUERIES - 1), unique=True, min_size=1, max_size=3), min_size=1, max_size=40
    ),
    cap=st.integers(1, 4),
    more=st.integers(1, 4),
    dead=st.sets(st.integers(0, 39), max_size=6),
)
def test_a_reserve_is_as_good_as_all_candidates_until_it_is_used_up(
    wishes: Lists, cap: int, more: int, dead: set[int]
) -> None:
    matched = np.bincount(arrays(wishes)[1], minlength=QUERIES).astype(np.int64)
    everything = pool_of(wishes, cap, matched)
    indptr, query_ids = arrays(wishes)
    larger = balance_cap(indptr, query_ids, everything.rank, queries=QUERIES, cap=cap + more)
    inside = np.flatnonzero(larger.query_id != NOT_KEPT)
    few = pool_of([wishes[i] for i in inside], cap, matched)
    few = dataclasses.replace(few, ids=everything.ids.take(pa.array(inside)), rank=everything.rank[inside])
    names = {f"{i:03d}" for i in dead}
    found, _ = topped_up(few, names)
    filled = np.bincount(list(found.values()), minlength=QUERIES)
    if (filled[larger.capped] >= cap).all():  # no query that had more candidates is short
        assert found == topped_up(everything, names)[0]


def selected(folder: Path, wishes: Lists, urls: list[str], *, cap: int, keep: int | None = None) -> str:
    """A folder as `wit select --reserve` makes it: pairs, all others in reserve, and counts."""
    rows = fake_table(PAIRS, len(urls)).to_pylist()
    for row, url, queries in zip(rows, urls, wishes, strict=True):
        row |= {"url": url, "query_ids": sorted(queries), "pair_id": pair_id(url, row["text"])}
    rows.sort(key=lambda r: str(r["pair_id"]))
    ids = [r["pair_id"] for r in rows]
    indptr, query_ids = arrays([r["query_ids"] for r in rows])
    rank = rank_of(pair_hash(ids, 7), np.arange(len(ids), dtype=np.uint64))
    found = balance_cap(indptr, query_ids, rank, queries=QUERIES, cap=cap)
    for row, query in zip(rows, found.query_id.tolist(), strict=True):
        row["query_id"] = query
    pairs = [r for r in rows if r["query_id"] != NOT_KEPT]
    reserve = [r | {"query_id": r["query_ids"][0]} for r in rows if r["query_id"] == NOT_KEPT][:keep]

    def body(out: str) -> StageResult:
        for name, made in (("", pairs), ("/reserve", reserve)):
            table = pa.Table.from_pylist(made, schema=PAIRS.schema)
            tables.write_table(f"{out}{name}/part-00000.parquet", table, PAIRS)
        counts = {
            "query_id": np.arange(QUERIES, dtype=np.int32),
            "matched": found.matched,
            "selected": found.selected,
        }
        tables.write_table(
            f"{out}/query-counts.parquet", pa.table(counts, schema=QUERY_COUNTS.schema), QUERY_COUNTS
        )
        return StageResult(rows=len(pairs), rows_in=len(pairs))

    config = Selected(cap=cap, seed=7)
    options = RunOptions(quiet=True)
    run_stage(
        body, stage="select", contract=PAIRS.id, config=config, inputs=[], out=str(folder), options=options
    )
    return str(folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selected:
    cap: int
    seed: int
    mode: str = "cap"


WISHES: Lists = [[i % QUERIES] if i % 3 else [i % QUERIES, (i + 1) % QUERIES] for i in range(60)]


def test_dead_links_are_replaced_until_queries_are_full(site: Site, tmp_path: Path) -> None:
    dead = {i for i in range(60) if i % 5 < 2}
    urls = [site.url(f"/{'missing' if i in dead else 'img'}/{i}.jpg") for i in range(60)]
    pairs = selected(tmp_path / "pairs", WISHES, urls, cap=6)
    done = fetch(pairs, tmp_path / "out", *FAST, "--top-up", "--rows-per-shard", "10")
    rows = rows_of(tmp_path / "out")
    alive = {r["url"]: r["query_id"] for r in rows if r["status"] == "success"}
    files = [str(tmp_path / f"pairs/{name}part-00000.parquet") for name in ("", "reserve/")]
    everyone = sorted(tables.read_files(files).to_pylist(), key=lambda r: str(r["pair_id"]))
    living = [r for r in everyone if "missing" not in r["url"]]
    counts = tables.read_files([str(tmp_path / "pairs/query-counts.parquet")]).column("matched").to_numpy()
    wishes = Wishes(*arrays([r["query_ids"] for r in living]), counts)
    rank = rank_of(pair_hash([r["pair_id"] for r in living], 7), np.arange(len(living), dtype=np.uint64))
    wanted = choose_cap(wishes, rank, cap=6).query_id.tolist()
    assert alive == {r["url"]: q for r, q in zip(living, wanted, strict=True) if q != NOT_KEPT}
    assert np.bincount(list(alive.values()), minlength=QUERIES).tolist() == [6] * QUERIES
    first = manifest.read(pairs).rows
    assert done.rows_in == len(rows) == first + done.extra["top_up"]["drawn"]
    assert done.rows == 24
    assert done.extra["top_up"]["queries_short"] == 0
    assert done.extra["top_up"]["rounds"] >= 1
    assert all(r["error_message"] for r in rows if r["status"] != "success")
    assert len({r["pair_id"] for r in rows}) == len(rows)


def test_an_exhausted_reserve_leaves_queries_short(site: Site, tmp_path: Path) -> None:
    urls = [site.url(f"/{'missing' if i < 30 else 'img'}/{i}.jpg") for i in range(60)]
    done = fetch(
        selected(tmp_path / "pairs", WISHES, urls, cap=10, keep=5), tmp_path / "out", *FAST, "--top-up"
    )
    assert done.extra["top_up"]["queries_short"] == QUERIES
    assert done.rows < 40 < done.rows_in
    assert done.rows + sum(done.dropped.values()) == done.rows_in


def test_a_top_up_that_is_killed_and_retried_ends_the_same(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [site.url(f"/{'late' if i % 4 == 0 else 'img'}/{i}.jpg") for i in range(60)]
    pairs = selected(tmp_path / "pairs", WISHES, urls, cap=6)
    arguments = [*FAST, "--top-up", "--rows-per-shard", "10"]
    for i in range(0, 60, 4):  # unavailable at first
        site.add(f"/late/{i}.jpg", status=500)
    fetch(pairs, tmp_path / "calm", *arguments)
    asked_for(site)
    calls = 0

    def running(build: Any, options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (3, 6, 9, 11):
            raise KeyboardInterrupt
        run_pipeline(build, options)

    monkeypatch.setattr("pipeline.fetch.stage.run_pipeline", running)
    out = tmp_path / "out"
    statuses = [main(["fetch", "--pairs", pairs, "--out", str(out), *FLAGS, *arguments]) for _ in range(5)]
    assert statuses == [130] * 4 + [0]
    assert_same(tmp_path / "calm", out)
    monkeypatch.undo()
    for i in range(0, 60, 4):
        site.add(f"/late/{i}.jpg", _picture(i))
    asked_for(site)
    fetch(pairs, out, *arguments, "--retry")
    assert all(path.startswith("/late/") for path in asked_for(site))
    fetch(pairs, tmp_path / "at-once", *arguments)
    assert_same(tmp_path / "at-once", out)


def _picture(seed: int) -> bytes:
    return jpeg(picture("red", "circle", size=64, seed=seed))


def test_pairs_that_cannot_be_topped_up_are_one_line(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [site.url(f"/img/{i}.jpg") for i in range(60)]
    pairs = selected(tmp_path / "pairs", WISHES, urls, cap=6)

    def line() -> str:
        assert main(["fetch", "--pairs", pairs, "--out", str(tmp_path / "out"), *FLAGS, "--top-up"]) != 0
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    part = tmp_path / "pairs/reserve/part-00000.parquet"
    whole = tables.read_files([str(part)])
    tables.write_table(str(part), whole.slice(0, 0), PAIRS)
    counts = tmp_path / "pairs/query-counts.parquet"
    saved = counts.read_bytes()
    more = tables.read_files([str(tmp_path / "pairs/part-00000.parquet")]).to_pylist()
    extra = [r | {"pair_id": f"{i:032d}", "query_ids": [0]} for i, r in enumerate(more)]
    tables.write_table(str(part), pa.Table.from_pylist(extra, schema=PAIRS.schema), PAIRS)
    assert "do not belong together" in line()
    counts.unlink()
    assert "needs a reserve" in line()
    counts.write_bytes(saved)
    mode = tmp_path / "pairs/manifest.json"
    mode.write_text(mode.read_text().replace('"mode": "cap"', '"mode": "sample"'))
    assert "--mode cap" in line()
