"""``wit plan`` against the real selection, on candidates whose queries are as unequal as words are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cli
from pipeline.core import tables
from pipeline.core.contracts import CANDIDATES, PAIRS, QUERIES, QUERY_COUNTS, pair_id
from pipeline.core.fakes import fake_folder, fake_shards, fake_table, finished_folder
from pipeline.core.scaling import RATES
from pipeline.fetch.config import FetchConfig
from pipeline.select.plan import CAPS, WEBTEXT_WORDS, Costs
from pipeline.select.pool import host_of, sampled

WORDS = [
    f"{a}{b}" for a in ("ba", "de", "fi", "go", "lu", "mo", "na", "pe") for b in ("ck", "lt", "nd", "rs")
]
PLAIN = ("--rules", "none", "--language", "none", "--max-images-per-caption", "40")
MODES = pytest.mark.parametrize("mode", ["cap", "sample"])


def texts(count: int) -> list[str]:
    """Texts of two to five words, each word half as frequent as the one before the last."""
    draw = np.random.default_rng(7)
    weights = 0.75 ** np.arange(len(WORDS))
    sizes = draw.integers(2, 6, count)
    picked = draw.choice(len(WORDS), size=(count, 5), p=weights / weights.sum())
    return [" ".join(WORDS[i] for i in row[:size]) for row, size in zip(picked, sizes, strict=True)]


@pytest.fixture(scope="module")
def given_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Candidates (some found twice, some opted out) and queries."""
    root = tmp_path_factory.mktemp("plan")
    rows: list[dict[str, Any]] = []
    for i, text in enumerate(texts(4_000)):
        url = f"http://host{i % 7 * (i % 3)}.test/{i // 2}.jpg"
        row = {
            "pair_id": pair_id(url, text),
            "url": url,
            "text": text,
            "text_source": "alt",
            "origin": "made",
        }
        rows += [{**row, "rights": ["noai"] if i % 10 == 0 else []}] * (2 if i % 20 == 0 else 1)
    table = pa.Table.from_pylist(rows, schema=CANDIDATES.schema)
    candidates = finished_folder(str(root / "candidates"), CANDIDATES, table)
    listed = [{"query_id": i, "query": w, "sources": ["word"]} for i, w in enumerate([*WORDS, "absent"])]
    queries = finished_folder(
        str(root / "queries"), QUERIES, pa.Table.from_pylist(listed, schema=QUERIES.schema)
    )
    return candidates, queries


def flags(folders: tuple[str, str]) -> list[str]:
    return ["--candidates", folders[0], "--queries", folders[1], *PLAIN]


def selected(folders: tuple[str, str], out: Path, *more: str) -> dict[str, Any]:
    assert cli.main(["select", *flags(folders), "--out", str(out), "--quiet", *more]) == 0
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return found


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["plan", *arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found: dict[str, Any] = json.loads(printed.out)
    return found


@MODES
def test_a_plan_of_all_candidates_is_the_selection(
    given_folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    found = planned(capsys, *flags(given_folders), "--mode", mode, "--cap", "100", "--cap", "20")
    assert [p["cap"] for p in found["plans"]] == [20, 100]
    for plan in found["plans"]:
        out = tmp_path / str(plan["cap"])
        made = selected(given_folders, out, "--mode", mode, "--cap", str(plan["cap"]))
        assert made["dropped"].keys() == {"duplicate", "caption_repeated", "over_cap"}
        pairs = tables.read_folder(str(out), PAIRS).to_pylist()
        counts = tables.read_files([str(out / "query-counts.parquet")]).to_pydict()
        over = sum(n for n in counts["matched"] if n > plan["cap"])
        asked = {p["url"] for p in pairs if not p["rights"]}
        hosts = [host_of(url) for url in asked]
        assert plan["pairs"] == made["rows"]
        assert plan["queries_capped"] == made["queries_capped"] > 5
        assert plan["head_share"] == pytest.approx(over / sum(counts["matched"]))
        assert plan["words"] == sum(len(p["text"].split()) for p in pairs)
        assert plan["words_of_webtext"] == pytest.approx(plan["words"] / WEBTEXT_WORDS)
        assert plan["not_fetchable"] == sum(bool(p["rights"]) for p in pairs)
        assert plan["urls"] == len(asked)
        assert plan["largest_host_urls"] == hosts.count(plan["largest_host"]) == max(map(hosts.count, hosts))
        assert plan["bytes"] == 27_000 * (made["rows"] - plan["not_fetchable"])
        assert plan["hours_largest_host"] == pytest.approx(plan["largest_host_urls"] / 3600)
        assert plan["hours_bandwidth"] == pytest.approx(plan["urls"] * 93_000 * 8 / 1e9 / 3600)
        assert found["eligible"] == made["rows"] + made["dropped"]["over_cap"]
        assert (found["read"], found["queries_matched"]) == (made["rows_in"], made["queries_matched"])


@MODES
def test_pairs_and_full_counts_tell_every_smaller_cap(
    given_folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    out = tmp_path / "pairs"
    selected(given_folders, out, "--mode", mode, "--cap", "100", "--seed", "5")
    caps = ("--cap", "10", "--cap", "60", "--cap", "100")
    whole = planned(capsys, *flags(given_folders), "--mode", mode, "--seed", "5", *caps)
    again = planned(capsys, "--pairs", str(out), *caps)
    assert again["plans"] == whole["plans"]
    assert again["mode"] == mode
    assert [p["cap"] for p in planned(capsys, "--pairs", str(out))["plans"]] == [100]
    target = whole["plans"][1]["pairs"]
    assert planned(capsys, "--pairs", str(out), "--target", str(target))["plans"][0]["pairs"] == target
    other = {"cap": "sample", "sample": "cap"}[mode]
    for words, message in (
        (["--cap", "101"], "turned away, expected a cap of at most 100, found 101"),
        (["--mode", other], "turned away, found --mode"),
        (["--target", "4000"], "no cap keeps so many pairs"),
    ):
        assert cli.main(["plan", "--pairs", str(out), *words]) == 1
        assert message in capsys.readouterr().err


def test_a_folder_that_turned_nothing_away_tells_all(
    given_folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs"
    selected(given_folders, out, "--cap", "5000")
    for mode in ("cap", "sample"):
        again = planned(capsys, "--pairs", str(out), "--mode", mode, "--cap", "20", "--cap", "9000")
        whole = planned(capsys, *flags(given_folders), "--mode", mode, "--cap", "20", "--cap", "9000")
        assert again["plans"] == whole["plans"]
    assert [p["cap"] for p in planned(capsys, "--pairs", str(out))["plans"]] == [*CAPS, None]


@MODES
def test_a_sample_comes_near(
    given_folders: tuple[str, str], capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    arguments = [*flags(given_folders), "--mode", mode, "--cap", "100", "--cap", "2000"]
    whole = planned(capsys, *arguments)["plans"]
    part = planned(capsys, *arguments, "--sample", "0.5")
    assert part["read"] < 0.55 * 4_200
    for one, other in zip(part["plans"], whole, strict=True):
        for name in ("pairs", "words", "bytes", "urls", "hours_bandwidth"):
            # Of 1,000 URLs: luck alone is 3%.
            assert one[name] == pytest.approx(other[name], rel=0.05)
    assert part["plans"][0]["head_share"] == pytest.approx(whole[0]["head_share"], rel=0.05)


@MODES
def test_the_target_is_met_by_the_least_cap(
    given_folders: tuple[str, str], capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    arguments = [*flags(given_folders), "--mode", mode]
    for target in (1, 500, 2_000):
        (plan,) = planned(capsys, *arguments, "--target", str(target))["plans"]
        assert plan["target"] == target <= plan["pairs"]
        if plan["cap"] > 1:
            (less,) = planned(capsys, *arguments, "--cap", str(plan["cap"] - 1))["plans"]
            assert less["pairs"] < target
    (sample,) = planned(capsys, *arguments, "--target", "2000", "--sample", "0.5")["plans"]
    assert sample["pairs"] >= 2_000
    assert sample["cap"] == pytest.approx(plan["cap"], rel=0.2)
    assert cli.main(["plan", *arguments, "--target", "1000000"]) == 1
    assert "no cap keeps so many pairs, expected 1,000,000 pairs" in capsys.readouterr().err


def test_costs_are_measured_on_shards(
    given_folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = fake_shards(str(tmp_path / "shards"), 20, per_shard=10)
    found = planned(capsys, *flags(given_folders), "--cap", "50", "--shards", shards, "--mbit-per-s", "10")
    size = sum(p.stat().st_size for p in Path(shards).glob("*.tar")) / 20
    assert found["assumed"]["image_bytes"] == size
    assert found["assumed"]["measured"] == shards
    (plan,) = found["plans"]
    assert plan["bytes"] == round((plan["pairs"] - plan["not_fetchable"]) * size)
    assert plan["hours_bandwidth"] == pytest.approx(plan["urls"] * 93_000 * 8 / 1e7 / 3600)
    assert cli.main(["plan", *flags(given_folders), "--cap", "50", "--shards", shards]) == 0
    assert f"measured on {shards}: " in capsys.readouterr().out


def test_the_table(given_folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *flags(given_folders), "--cap", "20", "--target", "2000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4,200 candidates read, ")
    assert lines[2].split()[:3] == ["cap", "pairs", "head"]
    assert lines[3].split()[0] == "20"
    assert lines[5].startswith("cap ")
    assert lines[5].endswith(" is the least that keeps 2,000 pairs")
    (assumed,) = (n for n, line in enumerate(lines) if line.startswith("assumed: 27,000"))
    assert lines[assumed].endswith("1 s between requests to a host, 1,000 Mbit/s")
    stages = [line.strip().split("  ")[0] for line in lines[assumed + 5 : -2]]
    assert stages == [name for name in RATES if name != "queries"]
    assert lines[-1].startswith("assumed: $0.07 a core-hour")
    assert cli.main(["plan", *flags(given_folders), "--sample", "0.01"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"a sample of [01]\.\d+% of the candidates", out)
    assert "some per cent too low" not in out
    assert [line.split()[0] for line in out.splitlines()[4:11]] == [*(f"{c:,}" for c in CAPS), "none"]
    assert cli.main(["plan", *flags(given_folders), "--sample", "0.1", "--cap", "50"]) == 0
    assert "cap 50 leaves a query 5 pairs in the sample" in capsys.readouterr().out


def test_nothing_to_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = fake_folder(str(tmp_path / "q"), QUERIES, 5)
    empty = fake_folder(str(tmp_path / "c"), CANDIDATES, 0)
    found = planned(capsys, "--candidates", empty, "--queries", queries)
    assert {p["pairs"] for p in found["plans"]} == {0}
    assert found["plans"][0]["largest_host"] is None
    out = tmp_path / "pairs"
    selected((empty, queries), out)
    again = planned(capsys, "--pairs", str(out))
    assert again["plans"] == found["plans"]
    counts = tables.read_files([str(out / "query-counts.parquet")])
    tables.write_table(str(out / "part-00000.parquet"), fake_table(PAIRS, 3), PAIRS)
    tables.write_table(str(out / "query-counts.parquet"), counts.slice(0, 1), QUERY_COUNTS)
    assert cli.main(["plan", "--pairs", str(out)]) == 1
    assert "name queries that were not counted" in capsys.readouterr().err


@given(st.lists(st.text(max_size=8)), st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_larger_sample_holds_the_smaller(urls: list[str], one: float, other: float) -> None:
    small, large = (sampled(urls, share) for share in sorted((one, other)))
    assert not (small & ~large).any()


def test_a_sample_is_as_large_as_asked() -> None:
    assert sampled([f"u{i}" for i in range(20_000)], 0.25).mean() == pytest.approx(0.25, abs=0.02)


def test_hosts() -> None:
    assert [host_of(u) for u in (" HTTP://A.test:80/x", "data:x", "http://[::1", "", "https:///x")] == [
        "a.test", "", "", "", "",
    ]  # fmt: skip


def test_the_gap_is_that_of_fetch() -> None:
    assert Costs().host_gap_s == FetchConfig().host_gap_s


def test_bad_input(
    given_folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = flags(given_folders)
    foreign = fake_folder(str(tmp_path / "pairs"), PAIRS, 5)
    nothing = fake_shards(str(tmp_path / "shards"), 0)
    gone = str(tmp_path / "gone")
    for words, status, message in (
        ([], 2, "candidates is missing: pass --candidates DIR"),
        (["--candidates", gone, "--queries", given_folders[1]], 1, "no such folder"),
        (["--candidates", given_folders[1], "--queries", given_folders[1]], 1, "expected candidates/1"),
        (["--pairs", gone], 1, "no such folder"),
        (["--pairs", given_folders[0]], 1, "expected pairs/1"),
        (["--pairs", foreign], 1, "not made by `wit select`"),
        (["--pairs", foreign, "--rules", "none"], 2, "--pairs is selected already, found --rules"),
        (["--pairs", foreign, "--sample", "0.5"], 2, "found --sample"),
        ([*both, "--cap", "0"], 2, "--cap must be at least 1, found 0"),
        ([*both, "--target", "-3"], 2, "--target must be at least 1, found -3"),
        ([*both, "--sample", "1.5"], 2, "--sample must be above 0 and at most 1"),
        ([*both, "--sample", "0.001", "--cap", "20"], 2, "--sample is too small for this cap"),
        ([*both, "--image-bytes", "0"], 2, "image_bytes=0.0 must be above 0"),
        ([*both, "--image-bytes", "1", "--shards", nothing], 2, "--shards measures what --image-bytes says"),
        ([*both, "--shards", nothing], 1, "no picture to measure"),
        ([*both, "--shards", given_folders[0]], 1, "expected shards/1"),
        ([*both, "--config", gone], 1, "cannot read the configuration file"),
        ([*both, "--cap", "x"], 2, "invalid int value"),
        ([*both, "--overwrite"], 2, "unrecognized arguments"),
    ):  # fmt: skip
        assert cli.main(["plan", *words]) == status, words
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""


def test_settings_come_from_a_run_file_too(
    given_folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(
        '[select]\ncap = 7\nmode = "sample"\nrules = "none"\nlanguage = "none"\n'
    )
    inputs = ["--candidates", given_folders[0], "--queries", given_folders[1]]
    found = planned(capsys, *inputs, "--config", str(tmp_path / "run.toml"), "--cap", "20")
    assert found["mode"] == "sample"
    assert (
        found["plans"]
        == planned(
            capsys, *inputs, "--rules", "none", "--language", "none", "--mode", "sample", "--cap", "20"
        )["plans"]
    )
