"""A list is filled to exactly its size when the sources suffice, and says what is missing when they do not."""

from __future__ import annotations

import bz2
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.cli import main
from pipeline.core import tables
from pipeline.core.contracts import QUERIES
from queries import merge, runners_up
from queries.config import QueriesConfig


def write_counts(path: Path, counts: dict[str, int]) -> str:
    path.write_text("word\tcount\n" + "".join(f"{w}\t{c}\n" for w, c in counts.items()))
    return str(path)


def write_views(path: Path, views: dict[str, int]) -> str:
    lines = "".join(f"en.wikipedia {title} 1 desktop {v} A1\n" for title, v in views.items())
    path.write_bytes(bz2.compress(lines.encode(), 1))
    return str(path)


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return found


def test_filled_to_the_last_query(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = write_counts(tmp_path / "c.tsv", {f"w{i}": 100 + i for i in range(50)})
    # Half of the titles are words already, and each of the others has a twin of the same words.
    views = {f"W{i}": 10_000 + i for i in range(50)} | {
        f"T{i}{end}": 500 - i for i in range(150) for end in ("", "!")
    }
    sources = ["--word-counts", counts, "--pageviews", write_views(tmp_path / "v.bz2", views)]
    command = ["queries", *sources, "--wordnet", "none", "--out"]
    assert main([*command, str(tmp_path / "full"), "--size", "200"]) == 0
    made = manifest(tmp_path / "full")
    assert (made["rows"], made["missing"], made["fill_with"]) == (200, 0, [])
    assert made["brought_in"] == {"word": 50, "bigram": 0, "title": 150, "synset": 0}
    assert "short of" not in capsys.readouterr().err
    assert main([*command, str(tmp_path / "short"), "--size", "201"]) == 0
    assert manifest(tmp_path / "short")["missing"] == 1
    said = capsys.readouterr().err
    assert (
        "1 short of --size 201; to fill it: bigrams: --wikipedia; titles: more page view files; synsets:"
        in said
    )
    assert main([*command, str(tmp_path / "views"), "--size", "201", "--views-min", "400"]) == 0
    assert "titles: more page view files, or a lower --views-min" in capsys.readouterr().err


def test_titles_enter_until_there_are_enough_queries() -> None:
    views = pa.table({"title": ["A!", "A?", "A", "B", "!!!", "C", "D"], "views": [9, 8, 7, 6, 5, 4, 3]})
    assert [e.title for e in merge.title_entries(views, 3)] == ["A!", "A?", "A", "B", "!!!", "C"]
    made = merge.build(
        words=[], synsets=[], bigrams=[], titles=list(merge.title_entries(views, 3)), config=QueriesConfig(size=3)
    )  # fmt: skip
    assert made.table["query"].to_pylist() == ["a", "b", "c"]
    assert made.thresholds["views"] == 4
    assert sorted(made.titles) == ["A", "A!", "A?", "B", "C"]


def test_a_bigram_that_its_title_brings_in_does_not_lower_the_bigrams_cut() -> None:
    scored = pa.table({"bigram": ["good pair", "weak pair"], "count": [9, 9], "pmi": [9.0, 1.0]})
    titles = pa.table({"title": ["Weak pair"], "views": [70]})
    made = merge.build(
        words=[], synsets=[], bigrams=list(merge.bigram_entries(merge.ranked_bigrams(scored, "pmi", 0), 2)),
        titles=list(merge.title_entries(titles, 2)), config=QueriesConfig(size=2, bigram_share=0.5),
    )  # fmt: skip
    assert made.table.select(["query", "sources", "pmi"]).to_pylist() == [
        {"query": "good pair", "sources": ["bigram"], "pmi": 9.0},
        {"query": "weak pair", "sources": ["bigram", "title"], "pmi": 1.0},
    ]
    assert (made.thresholds["pmi"], made.thresholds["views"]) == (9.0, 70)
    assert made.taken == {"word": 0, "bigram": 1, "title": 1, "synset": 0}


def test_what_is_left_out_stands_beside_the_list(tmp_path: Path) -> None:
    counts = write_counts(tmp_path / "c.tsv", {"dog": 100, "cat": 99, "bat": 3})
    views = write_views(tmp_path / "v.bz2", {"Dog": 50, "Cow": 40, "Hen": 30, "Elk": 5})
    out = tmp_path / "out"
    options = ["--wordnet", "none", "--size", "2", "--views-min", "10", "--out", str(out), "--quiet"]
    assert main(["queries", "--word-counts", counts, "--pageviews", views, *options]) == 0
    assert tables.read_folder(str(out), QUERIES)["query"].to_pylist() == ["cow", "dog"]
    left = {name: runners_up.side_table(str(out), name) for name in ("words", "bigrams", "titles")}
    assert tables.read_files([left["words"]]).to_pylist() == [
        {"word": "cat", "count": 99}, {"word": "bat", "count": 3},
    ]  # fmt: skip
    assert [tuple(r.values()) for r in tables.read_files([left["titles"]]).to_pylist()] == [
        ("Hen", 30, "article", None), ("Elk", 5, "article", None),
    ]  # fmt: skip
    assert not Path(left["bigrams"]).exists()
    # Another configuration in the same folder leaves nothing of the first.
    more = ["--wordnet", "none", "--out", str(out), "--quiet", "--overwrite"]
    assert main(["queries", "--word-counts", counts, *more]) == 0
    assert not Path(left["titles"]).exists()


@pytest.mark.slow
def test_half_a_million_from_real_counts(tmp_path: Path) -> None:
    """105,966 words of English Wikipedia as of 2012, WordNet, and made-up titles out of such words."""
    real = pytest.importorskip("wikiwords", reason="PyPI's wikiwords (GPL) is not installed")
    counts: dict[str, int] = real.occdb.db
    names = sorted(counts)
    titles = {
        f"{a.capitalize()}_{b}": 1 + n for n, (a, b) in enumerate(zip(names * 4, names[7:] * 4, strict=False))
    }
    titles |= {
        f"{a.capitalize()}_of_{b}": n for n, (a, b) in enumerate(zip(names * 4, names[9:] * 4, strict=False))
    }
    titles |= {
        f"{a.capitalize()}_{b}_{n % 7}": n for n, (a, b) in enumerate(zip(names, names[3:], strict=False))
    }
    titles |= {f"{a.capitalize()}_and_{b}": 9 for a, b in zip(names, names[5:], strict=False)}
    out = tmp_path / "out"
    sources = [
        "--word-counts", write_counts(tmp_path / "c.tsv", counts),
        "--pageviews", write_views(tmp_path / "v.bz2", titles),
    ]  # fmt: skip
    assert main(["queries", *sources, "--out", str(out), "--quiet"]) == 0
    made = manifest(out)
    assert (made["rows"], made["missing"]) == (500_000, 0)
    assert made["sources"]["word"] == sum(c >= 100 for c in counts.values()) == 105_966
    assert made["sources"]["synset"] == 86_405
    assert made["rows_in"] == made["rows"] + sum(made["dropped"].values())
    assert tables.read_folder(str(out), QUERIES).num_rows == 500_000
