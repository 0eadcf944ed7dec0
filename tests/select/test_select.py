"""``wit select`` from end to end, on tables that say what should happen to each row."""

from __future__ import annotations

import errno
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import cli
from pipeline.core import tables
from pipeline.core.contracts import CANDIDATES, PAIRS, QUERIES, QUERY_COUNTS, pair_id
from pipeline.core.fakes import fake_folder, finished_folder
from pipeline.select import stage as select_stage
from pipeline.select.filter import REASONS

ROWS = [  # text, page language, reason it is dropped for
    ("A red &amp; shiny apple", "en", None),
    ("two apples and a dog", "en", None),
    ("dog", "en", None),
    ("New York at night", "en", None),
    ("IMG_2041.JPG", "en", "file_name"),
    ("f/2.8, 1/60 s, ISO 400", "en", "camera_settings"),
    ("click to enlarge", "en", "boilerplate"),
    ("*", "en", "too_short"),
    ("der Hund auf der Straße", "en", "not_english"),
    ("犬の写真", "ja", "not_english"),
    ("a nude dog", "en", "offensive"),
    ("the lighthouse", "en", "no_query"),
]
WORDS = ["red", "apple", "dog", "shiny", "night", "two", "new york", "york"]


def candidate(url: str, text: str, language: str | None = "en", **more: Any) -> dict[str, Any]:
    row = {
        "pair_id": pair_id(url, text),
        "url": url,
        "text": text,
        "text_source": "alt",
        "page_language": language,
    }
    return {**row, "rights": [], "origin": "test", "origin_offset": 0, **more}


def candidates_folder(path: Path, rows: list[dict[str, Any]]) -> str:
    return finished_folder(str(path), CANDIDATES, pa.Table.from_pylist(rows, schema=CANDIDATES.schema))


def queries_folder(path: Path, words: list[str]) -> str:
    rows = [{"query_id": i, "query": w, "sources": ["word"]} for i, w in enumerate(words)]
    return finished_folder(str(path), QUERIES, pa.Table.from_pylist(rows, schema=QUERIES.schema))


def run(candidates: str, queries: str, out: Path, *more: str) -> int:
    arguments = ["select", "--quiet", "--candidates", candidates, "--queries", queries, "--out", str(out)]
    return cli.main([*arguments, *more])


def result(out: Path) -> tuple[list[dict[str, Any]], Counter[str], dict[str, Any]]:
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rows_in"] == manifest["rows"] + sum(manifest["dropped"].values())
    assert set(manifest["dropped"]) <= set(REASONS)
    assert not (out / ".work").exists()
    pairs: list[dict[str, Any]] = tables.read_folder(str(out), PAIRS).to_pylist()
    assert manifest["rows"] == len(pairs)
    assert [p["pair_id"] for p in pairs] == sorted({p["pair_id"] for p in pairs})
    return pairs, Counter(manifest["dropped"]), manifest


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}


def test_each_row_goes_where_it_should(tmp_path: Path) -> None:
    rows = [candidate(f"http://x.test/{i}.jpg", text, language) for i, (text, language, _) in enumerate(ROWS)]
    candidates, queries = candidates_folder(tmp_path / "c", rows), queries_folder(tmp_path / "q", WORDS)
    assert run(candidates, queries, tmp_path / "out") == 0
    pairs, dropped, manifest = result(tmp_path / "out")
    assert dropped == Counter(reason for _, _, reason in ROWS if reason)
    by_url = {p["url"]: p for p in pairs}
    apple = by_url["http://x.test/0.jpg"]
    assert (apple["text"], apple["language"], apple["query_ids"]) == ("A red & shiny apple", "en", [0, 1, 3])
    assert apple["pair_id"] == pair_id("http://x.test/0.jpg", "A red &amp; shiny apple")
    # Rarest first: "dog" is contained twice, "two" once; "apples" is another word than "apple".
    assert by_url["http://x.test/1.jpg"]["query_ids"] == [2, 5]
    assert by_url["http://x.test/1.jpg"]["query_id"] == 5
    counts = pq.read_table(tmp_path / "out" / "query-counts.parquet")
    QUERY_COUNTS.check(counts.schema, where="query-counts.parquet")
    assert counts.column("matched").to_pylist() == [1, 1, 2, 1, 1, 1, 1, 1]
    assert sum(counts.column("selected").to_pylist()) == len(pairs) == 4
    assert manifest["queries_matched"] == 8
    assert manifest["queries_capped"] == 0
    assert manifest["language"]["backend"] == "cascade"
    lost = tables.read_files([str(p) for p in (tmp_path / "out" / "dropped").glob("*.parquet")]).to_pylist()
    assert {(r["id"], r["reason"]) for r in lost} == {
        (rows[i]["pair_id"], reason) for i, (_, _, reason) in enumerate(ROWS) if reason
    }


def many(count: int = 300) -> list[dict[str, Any]]:
    texts = [
        "a red apple",
        "the dog at night",
        "a shiny red dog",
        "two red dogs in new york",
        "a red &amp; red apple",
    ]
    return [candidate(f"http://x.test/{i}.jpg", texts[i % 5], ["en", None][i % 2]) for i in range(count)]


def test_duplicates_and_repeated_captions(tmp_path: Path) -> None:
    found_twice = candidate("http://x.test/a.jpg", "a red dog", page_url="http://x.test/2")
    rows = [
        candidate("http://x.test/a.jpg", "a red dog", page_url="http://x.test/1"),
        found_twice,
        candidate("http://x.test/a.jpg", "a  red&nbsp;dog"),  # another pair_id, the same cleaned text
        candidate("http://x.test/a.jpg", "A Red DOG", page_url="http://x.test/3"),
        candidate("http://x.test/b.jpg", "A RED DOG"),  # another picture
        candidate("http://x.test/a.jpg", "a red apple"),
        *(candidate(f"http://x.test/{i}.jpg", "a shiny dog") for i in range(7)),
    ]
    queries = queries_folder(tmp_path / "q", WORDS)
    out = tmp_path / "out"
    assert run(candidates_folder(tmp_path / "c", rows), queries, out, "--max-images-per-caption", "3") == 0
    pairs, dropped, _ = result(out)
    assert dropped == {"duplicate": 3, "caption_repeated": 4}
    assert Counter(p["text"].lower() for p in pairs) == {"a red dog": 2, "a red apple": 1, "a shiny dog": 3}
    assert Counter(p["url"] for p in pairs if p["text"].lower() == "a red dog") == {
        "http://x.test/a.jpg": 1,
        "http://x.test/b.jpg": 1,
    }
    turned = candidates_folder(tmp_path / "r", rows[::-1])
    assert run(turned, queries, tmp_path / "again", "--max-images-per-caption", "3") == 0
    assert files(tmp_path / "again") == files(out)


@pytest.mark.parametrize("mode", ["cap", "sample"])
def test_balance_and_seed(tmp_path: Path, mode: str) -> None:
    candidates, queries = candidates_folder(tmp_path / "c", many()), queries_folder(tmp_path / "q", WORDS)
    kept = {}
    for cap, seed in ((20, 0), (40, 0), (20, 1)):
        out = tmp_path / f"{cap}-{seed}"
        assert run(candidates, queries, out, "--cap", str(cap), "--mode", mode, "--seed", str(seed)) == 0
        pairs, dropped, manifest = result(out)
        kept[cap, seed] = {p["pair_id"] for p in pairs}
        assert set(dropped) == {"over_cap"}
        counts = pq.read_table(out / "query-counts.parquet")
        assert Counter(p["query_id"] for p in pairs) == Counter(
            {i: n for i, n in enumerate(counts.column("selected").to_pylist()) if n}
        )
        assert manifest["queries_capped"] >= 2
        if mode == "cap":
            assert max(counts.column("selected").to_pylist()) == cap
    assert kept[20, 0] != kept[20, 1]
    if mode == "sample":
        assert kept[20, 0] < kept[40, 0]


@pytest.mark.parametrize("reserve", [0.1, 0.5, 2])
def test_reserve_is_what_a_larger_cap_would_add(tmp_path: Path, reserve: float) -> None:
    candidates, queries = candidates_folder(tmp_path / "c", many()), queries_folder(tmp_path / "q", WORDS)
    out, plain, larger = tmp_path / "out", tmp_path / "plain", tmp_path / "larger"
    assert run(candidates, queries, out, "--cap", "21", "--reserve", str(reserve)) == 0
    assert run(candidates, queries, plain, "--cap", "21") == 0
    assert run(candidates, queries, larger, "--cap", str(21 + math.ceil(21 * reserve))) == 0
    pairs, dropped, manifest = result(out)
    assert (pairs, dropped) == result(plain)[:2]
    kept = {p["pair_id"]: p for p in result(larger)[0]}
    parts = [str(p) for p in sorted((out / "reserve").glob("part-*.parquet"))]
    PAIRS.check(tables.read_schema(parts[0]), where=parts[0])
    held = tables.read_files(parts).to_pylist()
    assert [r["pair_id"] for r in held] == sorted(r["pair_id"] for r in held)
    assert manifest["reserve_rows"] == len(held) > 0
    # Together, without overlap, they are the pairs of the larger cap, and each counts there for the query it names.
    ids = {r["pair_id"] for r in held}
    assert ids | {p["pair_id"] for p in pairs} == set(kept)
    assert not ids & {p["pair_id"] for p in pairs}
    assert held == [kept[r["pair_id"]] for r in held]
    assert not (plain / "reserve").exists()
    assert run(candidates, queries, out, "--cap", "21", "--overwrite") == 0
    assert files(out) == files(plain)


def test_metaclip_matching_minds_case_and_punctuation(tmp_path: Path) -> None:
    rows = [
        candidate("http://x.test/1", "a Red (dog) and a dog"),
        candidate("http://x.test/2", "Dog, red; Apple."),
    ]
    out = tmp_path / "out"
    queries = queries_folder(tmp_path / "q", WORDS)
    assert run(candidates_folder(tmp_path / "c", rows), queries, out, "--matching", "metaclip") == 0
    assert {p["url"]: p["query_ids"] for p in result(out)[0]} == {
        "http://x.test/1": [2],
        "http://x.test/2": [0],
    }


@pytest.mark.slow
def test_same_bytes_for_any_order_workers_and_engine(tmp_path: Path) -> None:
    rows = many() + [candidate(f"http://y.test/{i}.jpg", t, lang) for i, (t, lang, _) in enumerate(ROWS)]
    queries = queries_folder(tmp_path / "q", WORDS)
    straight = candidates_folder(tmp_path / "c", rows)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = candidates_folder(tmp_path / "s", [rows[i] for i in order])
    more = ("--cap", "20")
    assert run(straight, queries, tmp_path / "one", *more) == 0
    assert run(shuffled, queries, tmp_path / "two", *more) == 0
    workers = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    assert run(shuffled, queries, tmp_path / "three", *more, "--", *workers) == 0
    portable = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")
    assert run(straight, queries, tmp_path / "four", *more, "--", *portable) == 0
    first = files(tmp_path / "one")
    assert first == files(tmp_path / "two") == files(tmp_path / "three") == files(tmp_path / "four")
    result(tmp_path / "three")


def test_a_finished_folder_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    candidates, queries = candidates_folder(tmp_path / "c", many(10)), queries_folder(tmp_path / "q", WORDS)
    out = tmp_path / "out"
    assert run(candidates, queries, out) == 0
    before = (out / "manifest.json").read_bytes()
    assert run(candidates, queries, out) == 0
    assert (out / "manifest.json").read_bytes() == before
    assert run(candidates, queries, out, "--cap", "3") == 1
    assert "cap was 20000, is 3" in capsys.readouterr().err
    assert run(candidates, queries, out, "--cap", "3", "--overwrite") == 0
    assert json.loads((out / "manifest.json").read_text())["config"]["cap"] == 3


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    candidates, queries = candidates_folder(tmp_path / "c", many(10)), queries_folder(tmp_path / "q", WORDS)
    assert run(candidates, queries, tmp_path / "whole") == 0
    out = tmp_path / "out"
    (out / ".work" / "matched").mkdir(parents=True)
    (out / ".work" / "matched" / "99999-00000.parquet").write_bytes(b"half a file")
    (out / "part-00007.parquet").write_bytes(b"half a file")
    (out / "unfinished.json").write_text('{"stage": "select"}')
    assert run(candidates, queries, out) == 0
    assert files(out) == files(tmp_path / "whole")


def test_what_a_killed_worker_was_writing_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that starts a task again does not clean up after the attempt that died."""
    run_pipeline = vars(select_stage)["run_pipeline"]

    def leaves_half_a_file(*given: Any) -> Any:
        found = run_pipeline(*given)
        for folder in ("matched", "lost"):
            written = tmp_path / "out" / ".work" / folder
            written.mkdir(exist_ok=True)
            (written / ".00000.parquet.0a1b2c3d.tmp").write_bytes(b"half a part")
        return found

    candidates, queries = candidates_folder(tmp_path / "c", many(20)), queries_folder(tmp_path / "q", WORDS)
    assert run(candidates, queries, tmp_path / "alone") == 0
    monkeypatch.setattr(select_stage, "run_pipeline", leaves_half_a_file)
    assert run(candidates, queries, tmp_path / "out") == 0
    assert files(tmp_path / "out") == files(tmp_path / "alone")


def test_what_another_configuration_left_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, queries = candidates_folder(tmp_path / "c", many(60)), queries_folder(tmp_path / "q", WORDS)
    assert run(candidates, queries, tmp_path / "whole", "--cap", "9") == 0
    run_pipeline, builds = vars(select_stage)["run_pipeline"], []

    def killed_before_it_writes(*given: Any) -> Any:
        builds.append(given)
        if len(builds) == 2:
            raise KeyboardInterrupt
        return run_pipeline(*given)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(select_stage, "run_pipeline", killed_before_it_writes)
        run(candidates, queries, out, "--cap", "2", "--reserve", "0.5", "--max-images-per-caption", "3")
    assert list((out / ".work" / "fates").iterdir())
    assert run(candidates, queries, out, "--cap", "9") == 0
    assert files(out) == files(tmp_path / "whole")


def test_a_full_disk_is_not_told_as_damaged_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(pq.ParquetWriter):
        def write_table(self, *_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    candidates, queries = candidates_folder(tmp_path / "c", many(5)), queries_folder(tmp_path / "q", WORDS)
    monkeypatch.setattr(pq, "ParquetWriter", Full)
    assert run(candidates, queries, tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert "the disk is full" in message
    assert "damaged" not in message


def test_row_groups_without_rows(tmp_path: Path) -> None:
    queries = queries_folder(tmp_path / "q", WORDS)
    for name, rows in (("some", many(20)), ("none", [])):
        candidates = candidates_folder(tmp_path / name, rows)
        assert run(candidates, queries, tmp_path / f"{name}-whole", "--cap", "3", "--reserve", "0.5") == 0
        part = tmp_path / name / "part-00000.parquet"
        whole = pq.read_table(part)
        with pq.ParquetWriter(part, whole.schema) as writer:
            for start, end in ((0, 0), (0, 7), (7, 7), (7, 20), (20, 20)) if rows else ():
                writer.write_table(whole.slice(start, end - start))
        assert pq.ParquetFile(part).num_row_groups == (5 if rows else 0)
        assert run(candidates, queries, tmp_path / f"{name}-cut", "--cap", "3", "--reserve", "0.5") == 0
        assert files(tmp_path / f"{name}-cut") == files(tmp_path / f"{name}-whole")


@pytest.mark.parametrize("text", ["the lighthouse", "IMG_1.JPG"], ids=["no query", "file names"])
def test_nothing_is_left(tmp_path: Path, text: str) -> None:
    rows = [candidate(f"http://x.test/{i}.jpg", text) for i in range(3)]
    candidates, queries = candidates_folder(tmp_path / "c", rows), queries_folder(tmp_path / "q", WORDS)
    assert run(candidates, queries, tmp_path / "out", "--reserve", "1") == 0
    pairs, dropped, manifest = result(tmp_path / "out")
    assert pairs == []
    assert dropped.total() == 3
    assert manifest["reserve_rows"] == 0


def test_no_candidates(tmp_path: Path) -> None:
    candidates, queries = candidates_folder(tmp_path / "c", []), queries_folder(tmp_path / "q", WORDS)
    assert run(candidates, queries, tmp_path / "out") == 0
    assert result(tmp_path / "out")[0] == []


def test_blocked_hosts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        candidate("http://img.bad.test/1.jpg", "a red apple"),
        candidate("http://x.test/ads/2.jpg", "a red apple"),
        candidate("http://x.test/3.jpg", "a red apple", page_url="http://bad.test/"),
        candidate("http://x.test/4.jpg", "a red apple", page_url="http://good.test/"),
        candidate("http://x.test/5.jpg", "a red apple"),
    ]
    inputs = candidates_folder(tmp_path / "candidates", rows), queries_folder(tmp_path / "queries", WORDS)
    denied = tmp_path / "denied.txt"
    denied.write_text("bad.test\n/ads/\n")
    more = ("--blocked-hosts", str(denied))
    assert run(*inputs, tmp_path / "out", *more) == 0
    pairs, dropped, manifest = result(tmp_path / "out")
    assert sorted(p["url"] for p in pairs) == ["http://x.test/4.jpg", "http://x.test/5.jpg"]
    assert dropped == {"blocked_host": 3}
    assert len(manifest["inputs"]) == 3
    details = tables.read_files([str(p) for p in (tmp_path / "out" / "dropped").glob("*.parquet")]).column(
        "detail"
    )
    assert sorted(details.to_pylist()) == ["/ads/", "bad.test", "bad.test"]
    denied.write_text("x.test\n/ads/\n")  # as long as before
    assert run(*inputs, tmp_path / "out", *more) == 1
    assert "other inputs" in capsys.readouterr().err
    assert run(*inputs, tmp_path / "out", *more, "--overwrite") == 0
    assert result(tmp_path / "out")[1] == {"blocked_host": 4}
    denied.write_text("x.test\n0.0.0.0 y.test\n")
    assert run(*inputs, tmp_path / "other", *more) == 1
    assert "denied.txt:2: not a host or a piece of an address" in capsys.readouterr().err


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = fake_folder(str(tmp_path / "c"), CANDIDATES, 5)
    queries = queries_folder(tmp_path / "q", WORDS)
    gaps = [{"query_id": i, "query": str(i), "sources": ["word"]} for i in (0, 2)]
    gapped = finished_folder(str(tmp_path / "g"), QUERIES, pa.Table.from_pylist(gaps, schema=QUERIES.schema))
    damaged = fake_folder(str(tmp_path / "d"), CANDIDATES, 2000)
    part = Path(damaged) / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[40:2000] = b"\xff" * 1960
    part.write_bytes(bytes(data))
    (tmp_path / "unfinished").mkdir()
    cases = [
        ((str(tmp_path / "none"), queries), 1, "no such folder"),
        ((str(tmp_path / "unfinished"), queries), 1, "no manifest.json"),
        ((queries, queries), 1, "expected candidates/1, found queries/1"),
        ((good, gapped), 1, "query_id is not dense"),
        ((damaged, queries), 1, "damaged Parquet file"),
        ((good, queries, "--cap", "0"), 2, "cap=0 must be at least 1"),
        ((good, queries, "--mode", "sample", "--reserve", "0.1"), 2, "needs mode='cap'"),
        ((good, queries, "--reserve", "-1"), 2, "reserve=-1.0 must lie between 0 and"),
        ((good, queries, "--mode", "cap", "--", "--no_such_option=1"), 2, "no_such_option"),
    ]
    for number, ((candidates, queried, *more), status, words) in enumerate(cases):
        out = tmp_path / f"out{number}"
        assert run(candidates, queried, out, *more) == status
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1
        assert not (out / "manifest.json").exists()
    assert cli.main(["select", "--queries", queries, "--out", str(tmp_path / "x")]) == 2
    assert "candidates is missing" in capsys.readouterr().err
