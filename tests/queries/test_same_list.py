"""The list is the same bytes on another engine and after a kill; and views of every kind of file add up."""

from __future__ import annotations

import bz2
import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.core import tables
from pipeline.core.contracts import QUERIES
from queries import runners_up

OPTIONS = ("--min-count", "50", "--pmi-min", "0", "--views-min", "20", "--quiet")


def command(wiki: Any, out: Path) -> list[str]:
    sources = ["--wikipedia", *wiki.dumps, "--pageviews", *wiki.views, "--wordnet", wiki.wordnet]
    return ["queries", *sources, "--out", str(out), *OPTIONS]


def content(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*.parquet"))}


@pytest.mark.slow
def test_another_engine_makes_the_same_bytes(small_wiki: Any, tmp_path: Path) -> None:
    portable = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")
    assert main(command(small_wiki, tmp_path / "one")) == 0
    assert main([*command(small_wiki, tmp_path / "two"), "--", *portable]) == 0
    one = content(tmp_path / "one")
    assert one == content(tmp_path / "two")
    assert sorted(one) == [
        "counts/bigrams.parquet", "counts/titles.parquet", "counts/words.parquet", "dropped/part-00000.parquet",
        "part-00000.parquet",
    ]  # fmt: skip
    engines = [json.loads((tmp_path / n / "manifest.json").read_text())["engine"] for n in ("one", "two")]
    assert engines == ["FnApiRunner", "PortableRunner"]


@pytest.mark.slow
@pytest.mark.parametrize("last", ["passes.count_bigrams", "merge.build", "runners_up.collect"])
def test_killed_and_made_again(small_wiki: Any, tmp_path: Path, last: str) -> None:
    """kill -9 after the first pass, before the merge, and while the side tables are written."""
    module, name = last.split(".")
    script = (
        f"import os, sys\nfrom queries import {module}\nfrom pipeline.cli import main\n"
        f"{module}.{name} = lambda *_, **__: os.kill(os.getpid(), 9)\nmain(sys.argv[1:])"
    )
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", script, *command(small_wiki, out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (out / "unfinished.json").exists()
    assert (out / "work").exists()
    assert not (out / "manifest.json").exists()
    assert main(command(small_wiki, out)) == 0
    assert main(command(small_wiki, tmp_path / "fresh")) == 0
    assert content(out) == content(tmp_path / "fresh")
    assert not (out / "work").exists()


def test_views_of_every_kind_of_file(tmp_path: Path) -> None:
    """Daily, monthly and hourly files; codes, redirects, junk, other namespaces and broken lines in one."""
    names = "<namespaces><namespace key='100'>Portal</namespace></namespaces>"
    site = f"<siteinfo><dbname>enwiki</dbname>{names}</siteinfo>"
    pages = "".join(
        f"<page><title>{title}</title><ns>0</ns>{redirect}<revision><text>text</text></revision></page>"
        for title, redirect in [
            ("Café", ""), ("Dog", ""), ("Hound", '<redirect title="Dog"/>'), ("2001: A Space Odyssey", ""),
            ("Main Page", ""), ("Lost", '<redirect title="Nowhere at all"/>'),
        ]
    )  # fmt: skip
    (tmp_path / "dump.xml").write_text(f"<mediawiki>{site}{pages}</mediawiki>", encoding="utf-8")
    monthly = b"""\
en.wikipedia Dog 4269567 desktop 100 A60,B40
en.wikipedia Dog 4269567 mobile-web 20 A20
en.wikipedia Caf%C3%A9 1 desktop 7 A7
en.wikipedia Hound null desktop 1000 A1000
en.wikipedia Portal:Dogs 1 desktop 500 A500
en.wikipedia Main_Page 1 desktop 90000 A90000
en.wikipedia - null desktop 70000 A70000
en.wikipedia \xff\xfe 1 desktop 60000 A60000
en.wikipedia Dog desktop
en.wikipedia Dog 1 desktop many A1
en.wikipedia Nobody_wrote_this 1 desktop 44 A44
en.wikipedia Lost 1 desktop 33 A33
fr.wikipedia Dog 1 desktop 5000 A5000
"""
    daily = "en.wikipedia dog 4269567 mobile-app 3 A3\nen.wikipedia 2001:_A_Space_Odyssey 5 desktop 8 A8\n"
    hourly = "en Dog 2 0\nen.m Caf\u00e9 1 0\nen.b Dog 900 0\nde Dog 900 0\n"
    files = {
        "pageviews-202401-user.bz2": bz2.compress(monthly),
        "pageviews-20240101-user.bz2": bz2.compress(daily.encode()),
        "pageviews-20240101-010000.gz": gzip.compress(hourly.encode()),
    }
    for name, content_ in files.items():
        (tmp_path / name).write_bytes(content_)
    out = tmp_path / "out"
    given = ["--wikipedia", str(tmp_path / "dump.xml"), "--pageviews", *(str(tmp_path / n) for n in files)]
    assert main(["queries", *given, "--wordnet", "none", "--out", str(out), "--quiet"]) == 0
    found = {r["query"]: r["views"] for r in tables.read_folder(str(out), QUERIES).to_pylist()}
    assert found == {"café": 7 + 1, "dog": 100 + 20 + 1000 + 3 + 2, "2001: a space odyssey": 8}
    made = json.loads((out / "manifest.json").read_text())
    assert made["problems"] == [
        {"file": "pageviews-202401-user.bz2", "reason": "not a page view line", "offset": None, "times": 2}
    ]
    # The portal, the main page, "-" and the bytes that are no text.
    assert made["counted"]["pageviews"]["junk_titles"] == 4
    assert made["counted"]["pageviews"]["bad_lines"] == 2
    states = tables.read_files([runners_up.side_table(str(out), "titles")]).to_pylist()
    assert [tuple(row.values()) for row in states] == [
        ("Hound", 1000, "redirect", "Dog"),
        ("Nobody wrote this", 44, "not_in_dump", None),
        ("Lost", 33, "redirect", "Nowhere at all"),
    ]


def test_a_truncated_page_view_file_counts_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"en.wikipedia Title_{i} 1 desktop {i + 1} A1\n" for i in range(60_000)).encode()
    whole = b"".join(bz2.compress(lines[a : a + 900_000]) for a in range(0, len(lines), 900_000))
    (tmp_path / "pageviews.bz2").write_bytes(whole[: len(whole) * 2 // 3])
    out = tmp_path / "out"
    arguments = ["queries", "--pageviews", str(tmp_path / "pageviews.bz2"), "--wordnet", "none"]
    assert main([*arguments, "--out", str(out), "--quiet"]) == 0
    made = json.loads((out / "manifest.json").read_text())
    assert 10_000 < made["rows"] < 60_000
    (problem,) = made["problems"]
    assert problem["reason"] == "truncated bzip2 stream"
    assert problem["offset"] > 0
    assert "lost: pageviews.bz2: truncated bzip2 stream at byte" in capsys.readouterr().err
