"""``--max-bad-fraction``: too much damage ends a stage with one line, and no reader accepts its folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import STAGES, load, main
from pipeline.core import manifest
from pipeline.core.command import Command
from pipeline.core.errors import StageFailedError, UnfinishedInputError
from pipeline.core.stage import check_damage
from pipeline.fetch import policy
from tests.fetch.hostile import Site, serving
from tests.fetch.test_stage import FLAGS, pairs_of


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Ten rows; two are no pictures' URLs, and one is policy's."""
    urls = [*(f"http://a.example/{i}.jpg" for i in range(7)), "http://", "nothing", "data:image/png;base64,x"]
    pq.write_table(pa.table({"url": urls, "text": ["a boat"] * 10}), tmp_path / "t.parquet")
    return f"--table {tmp_path}/t.parquet --url-column url --text-column text"


def test_too_much_damage_is_one_line_and_an_unfinished_folder(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["candidates", *table.split(), "--out", str(out), "--quiet", "--max-bad-fraction"]
    assert main([*words, "0.1"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(out) in line
    assert "expected at most 10.00% of 10, found 2 (20.00%), most of them bad_url (1)" in line
    assert "--max-bad-fraction" in line
    assert (out / "dropped").is_dir()
    with pytest.raises(UnfinishedInputError):
        manifest.read(str(out))
    assert main([*words, "0.3"]) == 0
    done = manifest.read(str(out))
    assert done.dropped == {"bad_url": 1, "blocked_scheme": 1, "relative_url": 1}
    assert done.config.get("max_bad_fraction") is None  # it cannot change the result


def test_without_a_limit_everything_may_be_damaged(table: str, tmp_path: Path) -> None:
    assert main(["candidates", *table.split(), "--out", str(tmp_path / "out"), "--quiet"]) == 0


@pytest.mark.parametrize("value", ["1.5", "-0.1", "many"])
def test_a_share_lies_between_0_and_1(value: str, table: str, tmp_path: Path) -> None:
    words = ["candidates", *table.split(), "--out", str(tmp_path / "o"), f"--max-bad-fraction={value}"]
    assert main(words) == 2


def test_the_limit_itself_is_allowed_and_nothing_of_nothing_is() -> None:
    check_damage("s", "o", {"a": 1}, 100, 0.01)
    check_damage("s", "o", {}, 0, 0.0)
    with pytest.raises(StageFailedError, match=r"1 \(1.00%\), most of them a"):
        check_damage("s", "o", {"a": 1}, 100, 0.0099)


def test_stages_that_drop_by_policy_alone_have_no_limit() -> None:
    commands = {name: load(name) for name in STAGES}
    limited = {n for n, c in commands.items() if isinstance(c, Command) and c.damage}
    assert limited >= {"queries", "candidates", "fetch", "dedup embed", "dedup train", "train"}
    assert not limited & {"select", "dedup search", "dedup groups", "dedup report", "export"}


def test_damaged_sources_of_queries_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views = tmp_path / "views"
    views.write_text(
        "".join(f"en.wikipedia Boat_{i} 1 desktop 5 A5\n" for i in range(8)) + "en.wikipedia Boat\n" * 2
    )
    words = ["queries", "--pageviews", str(views), "--title-check", "none", "--wordnet", "none", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "a"), "--max-bad-fraction", "0.15"]) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first == "queries: lost: views: not a page view line (2 times)"
    assert "expected at most 15.00% of 10, found 2" in last
    assert "`queries: lost:` name them" in last
    assert "dropped/" not in last
    assert main([*words, "--out", str(tmp_path / "b"), "--max-bad-fraction", "0.25"]) == 0
    assert capsys.readouterr().err == f"{first}\n", "said once"


def test_a_failing_web_counts_and_dead_links_do_not(tmp_path: Path) -> None:
    assert set(policy.REASONS) > policy.DAMAGE
    assert not policy.DAMAGE & {"http_4xx", "dns_nxdomain", "robots_disallow", "too_small", "duplicate"}
    with serving(Site()) as site:
        dead = [site.add(f"/dead/{i}", status=404) for i in range(4)]
        down = [site.add(f"/down/{i}", status=500) for i in range(2)]
        pairs = pairs_of(tmp_path / "pairs", [*dead, *down, *(site.url(f"/img/{i}.jpg") for i in range(4))])
        words = ["fetch", "--pairs", pairs, "--out", str(tmp_path / "out"), *FLAGS]
        words += ["--set", "fetch.backoff_base_s=0.01", "--max-bad-fraction"]
        assert main([*words, "0.1"]) == 1
        asked = sum(site.hits.values())
        assert main([*words, "0.2"]) == 0
        assert sum(site.hits.values()) == asked, "what was fetched is fetched"
    assert manifest.read(str(tmp_path / "out")).dropped == {"http_4xx": 4, "http_5xx": 2}
