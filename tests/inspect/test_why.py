"""``wit why`` on a run whose every pair has another fate."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.cli import main
from pipeline.core import paths, tables
from pipeline.core.contracts import (
    CANDIDATES,
    DROPPED,
    EMBEDDINGS,
    NEIGHBOURS,
    PAIRS,
    QUERIES,
    SHARDS,
    pair_id,
)
from pipeline.core.fakes import fake_table, finished_folder, jpeg, picture, write_fake_shard
from pipeline.core.stage import RunOptions, StageResult, run_stage
from pipeline.select.config import SelectConfig

QUERY_TEXTS = ["red", "dog", "apple", "new york", "rare"]
CAP = 5
SELECT = (
    "--rules",
    "clip",
    "--language",
    "none",
    "--max-images-per-caption",
    "30",
    "--cap",
    str(CAP),
    "--seed",
    "3",
)


def url(name: object) -> str:
    return f"http://x.test/{name}.jpg"


def candidate(name: object, text: str, **more: Any) -> dict[str, Any]:
    row = {"pair_id": pair_id(url(name), text), "url": url(name), "text": text, "text_source": "alt"}
    return {**row, "rights": [], "origin": "crawl.warc.gz", "origin_offset": 7, **more}


def candidate_rows() -> list[dict[str, Any]]:
    return [
        *(candidate(i, "a red dog") for i in range(20)),
        candidate("rare", "a rare red dog"),
        candidate("both", "a New&nbsp;York apple", page_url="http://x.test/1"),
        candidate("both", "a New&nbsp;York apple", page_url="http://x.test/2"),
        candidate("both", "a  New York  apple"),
        candidate("both", "IMG_2041.JPG"),
        candidate("nothing", "a lighthouse"),
        *(candidate(f"repeated{i}", "one apple") for i in range(40)),
    ]


def make(folder: str, stage: str, contract: str, files: dict[str, pa.Table], **extra: Any) -> None:
    """A finished folder of a stage with these rows dropped."""

    def body(out: str) -> StageResult:
        for name, table in files.items():
            tables.write_table(paths.join(out, name), table, DROPPED)
        lost = sum(table.num_rows for table in files.values())
        return StageResult(rows=4, rows_in=4 + lost, extra=extra)

    options = RunOptions(quiet=True)
    config = SelectConfig(candidates="c", queries="q")
    run_stage(body, stage=stage, contract=contract, config=config, inputs=[], out=folder, options=options)


def fetched(pairs: list[dict[str, Any]], folder: str) -> None:
    """Shards of some pairs; the first could not be got."""
    rows = []
    for number, pair in enumerate(pairs):
        failed = number == 0
        row = {
            "key": f"{number:09d}", "pair_id": pair["pair_id"], "url": pair["url"], "caption": pair["text"],
            "status": "failed_to_download" if failed else "success",
            "error_message": "http_4xx: 404" if failed else None,
            "http_status": 404 if failed else 200,
            **dict.fromkeys(("width", "height", "original_width", "original_height"), None if failed else 64),
            "query_ids": pair["query_ids"], "query_id": pair["query_id"],
        }  # fmt: skip
        rows.append((row, jpeg(picture("red", "cross"))))

    def body(out: str) -> StageResult:
        write_fake_shard(out, 3, rows)
        return StageResult(rows=len(rows), rows_in=len(rows))

    config = SelectConfig(candidates="c", queries="q")
    options = RunOptions(quiet=True)
    run_stage(body, stage="fetch", contract=SHARDS.id, config=config, inputs=[], out=folder, options=options)


@pytest.fixture(scope="module", params=["cap", "sample"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run's folder, by each mode of the balance."""
    root = tmp_path_factory.mktemp(request.param)
    table = pa.Table.from_pylist(candidate_rows(), schema=CANDIDATES.schema)
    candidates = finished_folder(str(root / "candidates"), CANDIDATES, table)
    lost = tables.dropped_table("candidates", [("bad_url", "http://[broken", "crawl.warc.gz@7")])
    tables.write_table(str(root / "candidates" / "dropped" / "part-00000.parquet"), lost, DROPPED)
    listed = [{"query_id": i, "query": q, "sources": ["word"]} for i, q in enumerate(QUERY_TEXTS)]
    queries = finished_folder(
        str(root / "queries"), QUERIES, pa.Table.from_pylist(listed, schema=QUERIES.schema)
    )
    inputs = ["--candidates", candidates, "--queries", queries, "--out", str(root / "pairs")]
    assert main(["select", "--quiet", *inputs, *SELECT, "--mode", request.param]) == 0
    pairs = tables.read_folder(str(root / "pairs"), PAIRS).to_pylist()
    fetched(pairs, str(root / "shards"))
    lone = tables.dropped_table("dedup embed", [("decode_error", pairs[1]["pair_id"], "broken")])
    make(
        str(root / "embeddings" / "train"), "dedup embed", EMBEDDINGS.id, {"dropped/part-00000.parquet": lone}
    )
    near = [("noto", "a.png", 0, pairs[2]["pair_id"], 0.99), ("noto", "b.png", 3, pairs[2]["pair_id"], 0.5)]
    rows = [dict(zip(NEIGHBOURS.schema.names, row, strict=True)) for row in near]
    finished_folder(
        str(root / "neighbours"), NEIGHBOURS, pa.Table.from_pylist(rows, schema=NEIGHBOURS.schema)
    )
    overlap = {"noto": {"n_all": 9, "n_overlap": 1, "threshold": 0.9}}
    make(str(root / "overlaps"), "dedup report", "overlaps/1", {})
    (root / "overlaps" / "overlap.json").write_text(json.dumps({"datasets": overlap}))
    blank = tables.dropped_table("train", [("missing_image", pairs[3]["pair_id"], None)])
    make(str(root / "checkpoint"), "train", "checkpoint/1", {"dropped/part-00000.parquet": blank})
    return root


def asked(run: Path, text: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["why", text, "--run", str(run), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found: dict[str, Any] = json.loads(printed.out)
    assert (found["asked"], found["run"]) == (text, str(run))
    return found


def stages(found: dict[str, Any], number: int = 0) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in found["pairs"][number]["stages"]}


def outcomes(found: dict[str, Any], number: int = 0) -> list[tuple[str, str]]:
    return [(name, stage["outcome"]) for name, stage in stages(found, number).items()]


def pairs_of(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tables.read_folder(str(run / "pairs"), PAIRS).to_pylist()
    return found


def test_pairs_that_were_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [asked(run, pair["pair_id"], capsys) for pair in pairs_of(run)[:5]]
    start = [("candidates", "found"), ("select", "kept")]
    assert [outcomes(one)[2:] for one in kept] == [
        [("fetch", "dropped")],
        [("fetch", "kept"), ("dedup", "not compared"), ("train", "trained on")],
        [("fetch", "kept"), ("dedup", "overlap"), ("train", "trained on")],
        [("fetch", "kept"), ("dedup", "clean"), ("train", "dropped")],
        [("fetch", "kept"), ("dedup", "clean"), ("train", "trained on")],
    ]
    assert all(outcomes(one)[:2] == start for one in kept)
    assert stages(kept[0])["fetch"]["reasons"] == [
        "failed_to_download: http_4xx: 404 (HTTP 404); shard 00003, key 000000000"
    ]
    assert stages(kept[1])["dedup"]["reasons"] == ["decode_error: broken"]
    near = stages(kept[2])["dedup"]
    assert [(n["eval_id"], n["rank"], n["overlap"]) for n in near["neighbours"]] == [
        ("a.png", 0, True), ("b.png", 3, False),
    ]  # fmt: skip
    assert near["reasons"][0] == (
        "neighbour 1 of noto a.png, similarity 0.9900, the threshold is 0.9000: an overlap"
    )
    assert stages(kept[3])["train"]["reason"] == "missing_image"
    assert stages(kept[4])["fetch"]["shard"] == "00003"
    assert stages(kept[4])["train"]["reasons"] == ["one of 4 pairs"]


def test_the_balance_says_why_it_kept_or_lost_each_pair(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {pair["pair_id"]: pair for pair in pairs_of(run)}
    counts = tables.read_files([str(run / "pairs" / "query-counts.parquet")]).to_pylist()
    mode = run.name.rstrip("0123456789")
    seen: Counter[str] = Counter()
    for i in range(20):
        (pair,) = asked(run, url(i), capsys)["pairs"]
        select = {stage["stage"]: stage for stage in pair["stages"]}["select"]
        assert (select["outcome"] == "kept") == (pair["pair_id"] in kept)
        seen[select["outcome"]] += 1
        asked_for = select["queries"]
        assert [q["query"] for q in asked_for] == ["red", "dog"]  # 21 pairs each, so by their numbers
        for query in asked_for:
            assert query["matched"] == counts[query["query_id"]]["matched"]
            assert query["selected"] == counts[query["query_id"]]["selected"]
            if mode == "sample":
                assert query["probability"] == pytest.approx(CAP / query["matched"])
        answers = [q["answer"] for q in asked_for]
        if select["outcome"] == "kept":
            assert select["query_id"] == asked_for[answers.index("chosen")]["query_id"]
            continue
        assert select["reason"] == "over_cap"
        assert [s["stage"] for s in pair["stages"]] == ["candidates", "select"]
        if mode == "cap":
            assert answers == ["full", "full"]
            assert all(q["draw"] > q["last"] for q in asked_for)
        else:
            assert answers == ["not drawn", "not drawn"]
            assert all(q["draw"] >= q["probability"] for q in asked_for)
    assert min(seen["kept"], seen["dropped"]) >= 3


def test_a_pair_that_replaced_a_dead_link(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topped = tmp_path / "run"
    shutil.copytree(run, topped)
    lost = tables.read_files([str(p) for p in (run / "pairs/dropped").glob("*.parquet")]).to_pylist()
    drawn = next(row["id"] for row in lost if row["reason"] == "over_cap")
    row = tables.read_files([str(run / "shards/00003.parquet")]).to_pylist()[1] | {"pair_id": drawn}
    write_fake_shard(str(topped / "shards"), 4, [(row, jpeg(picture("red", "cross")))])
    found = asked(topped, drawn, capsys)
    assert outcomes(found)[:3] == [("candidates", "found"), ("select", "reserve"), ("fetch", "kept")]
    assert (
        "drawn from the reserve for a dead link (`wit fetch --top-up`)" in stages(found)["select"]["reasons"]
    )


def test_a_url_has_all_its_pairs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(run, url("both"), capsys)
    by_text = {stages(found, n)["candidates"]["text"]: stages(found, n) for n in range(len(found["pairs"]))}
    assert len(by_text) == 3
    assert len(by_text["a New&nbsp;York apple"]["candidates"]["places"]) == 2
    assert by_text["IMG_2041.JPG"]["select"]["reason"] == "file_name"
    spaced, escaped = (by_text[t]["select"] for t in ("a  New York  apple", "a New&nbsp;York apple"))
    assert {spaced["outcome"], escaped["outcome"]} == {"kept", "dropped"}
    lost, won = sorted((spaced, escaped), key=lambda s: s["outcome"])
    assert lost["reason"] == "duplicate"
    assert lost["reasons"] == [
        "another pair has its URL and, but for case, its cleaned text 'a New York apple'"
    ]
    assert ("found 2 times, kept once" in won["reasons"]) == (won is escaped)
    (one,) = asked(run, found["pairs"][0]["pair_id"], capsys)["pairs"]
    assert one == found["pairs"][0]


def test_other_fates(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stages(asked(run, url("nothing"), capsys))["select"]["reasons"] == ["no_query: a lighthouse"]
    rare = stages(asked(run, url("rare"), capsys))["select"]
    assert rare["queries"][0]["answer"] == "chosen"
    assert rare["query_id"] == QUERY_TEXTS.index("rare")
    told = [stages(asked(run, url(f"repeated{i}"), capsys))["select"] for i in range(40)]
    repeated = [one for one in told if one.get("reason") == "caption_repeated"]
    assert len(repeated) == 10
    assert repeated[0]["reasons"][1] == "more than 30 pictures have this text"
    found = asked(run, "http://[broken", capsys)
    assert found["pairs"] == []
    assert [row["reason"] for row in found["lost"]] == ["bad_url"]


def test_the_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", url("rare"), "--run", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{pair_id(url('rare'), 'a rare red dog')}  {url('rare')}"
    assert lines[1].split() == ["candidates", "found"]
    assert "    alt in crawl.warc.gz at 7" in lines[3]
    assert "counts for 'rare'" in "\n".join(lines)
    assert main(["why", "http://[broken", "--run", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "http://[broken: dropped before it became a pair", "  bad_url: crawl.warc.gz@7"
    ]  # fmt: skip


def test_a_run_of_some_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs that were selected elsewhere, without counts, candidates or a query list."""
    table = fake_table(PAIRS, 4)
    finished_folder(str(tmp_path / "pairs"), PAIRS, table)
    (tmp_path / "shards").mkdir()
    found = asked(tmp_path, table["url"][2].as_py(), capsys)
    assert outcomes(found) == [("select", "kept"), ("fetch", "unknown")]
    assert stages(found)["select"]["reasons"][1:] == ["counts for query 0", "query 0: chosen", "query 1"]
    assert stages(found)["fetch"]["reasons"] == ["shards: the folder is unfinished: it has no manifest.json"]


def test_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    finished_folder(str(damaged / "pairs"), PAIRS, fake_table(PAIRS, 500))
    part = damaged / "pairs" / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[40:3000] = b"\xff" * 2960
    part.write_bytes(bytes(data))
    for words, status, message in (
        (["f" * 32, "--run", str(run)], 1, "nothing in this run knows it, found no row in candidates, pairs, shards"),
        (["http://nowhere.test/", "--run", str(run)], 1, "http://nowhere.test/: nothing in this run knows it"),
        (["f" * 32, "--run", str(tmp_path / "gone")], 1, "no such folder"),
        (["f" * 32, "--run", str(tmp_path / "empty")], 1, "holds nothing of a run"),
        (["http://example.test/7.jpg", "--run", str(damaged)], 1, "damaged Parquet file"),
        (["f" * 32], 2, "--run"),
        ([], 2, "PAIR_ID|URL"),
    ):  # fmt: skip
        assert main(["why", *words]) == status
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
