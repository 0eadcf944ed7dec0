from __future__ import annotations

import bz2
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.core import tables
from pipeline.core.contracts import DROPPED, QUERIES
from queries import merge, passes, wikipedia

WORLD = Path(__file__).parents[2] / "examples" / "world" / "text"


def command(wiki: Any, out: Path, *more: str) -> list[str]:
    return [
        "queries", "--wikipedia", *wiki.dumps, "--pageviews", *wiki.views, "--wordnet", wiki.wordnet,
        "--out", str(out), *more,
    ]  # fmt: skip


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {r["query"]: r for r in tables.read_folder(str(out), QUERIES).to_pylist()}


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return found


def content(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*.parquet"))}


def test_the_whole_list(small_wiki: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(command(small_wiki, out)) == 0
    found, made = rows(out), manifest(out)
    assert made["contract"] == "queries/1"
    assert found["word7"]["sources"] == ["word"]
    assert found["word7"]["count"] >= 100
    # "san" and "francisco" stand 60 times each: below --min-count, so the bigram is not scored.
    assert found["san francisco"] == {
        "query_id": found["san francisco"]["query_id"], "query": "san francisco", "sources": ["synset"],
        "count": None, "pmi": None, "views": None, "synsets": ["n00000002"],
    }  # fmt: skip
    assert found["dog"]["synsets"] == ["n00000001", "v00000001"]
    assert "galore" in found
    # Redirect's views and both files: 2 + 1,000; 60 + 5.
    assert found["title 1"]["views"] == 1002
    assert found["title 59"]["views"] == 65
    assert not {"hound", "nowhere"} & set(found)
    assert made["rows_in"] == made["rows"] + sum(made["dropped"].values())
    assert made["counted"]["wikipedia"] == {
        "pages": 61, "articles": 60, "redirects": 1, "tokens": made["corpus_tokens"],
    }  # fmt: skip
    assert made["problems"] == [
        {"file": "pageviews-202401-user.bz2", "reason": "not a page view line", "offset": None, "times": 1}
    ]
    assert made["missing"] == 500_000 - len(found)
    said = capsys.readouterr().err
    assert "lost: pageviews-202401-user.bz2: not a page view line" in said
    assert "short of --size 500,000; to fill it: words and bigrams: more of Wikipedia" in said
    assert not (out / "work").exists()
    assert main(command(small_wiki, out)) == 0
    assert "already done" in capsys.readouterr().err


def test_bigrams_and_the_cut(small_wiki: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(small_wiki, out, "--min-count", "50", "--size", "70", "--quiet")) == 0
    found, made = rows(out), manifest(out)
    assert made["rows"] == 70
    assert found["san francisco"]["sources"] == ["bigram", "synset"]
    assert found["san francisco"]["count"] == 60
    assert ("francisco the" in found, "word1 in" in found) == (False, False)
    # Views fall with the number, but for 1 (redirect) and 59 (hourly file).
    titles = sorted(
        (q for q, r in found.items() if r["sources"] == ["title"]), key=lambda q: -found[q]["views"]
    )
    assert titles[:3] == ["title 1", "title 59", "title 58"]
    assert made["thresholds"]["views"] == found[titles[-1]]["views"]
    dropped = tables.read_files([str(out / "dropped" / "part-00000.parquet")])
    DROPPED.check(dropped.schema, where="dropped")
    assert set(dropped["reason"].to_pylist()) == {"below_cut", "same_query"} <= set(merge.REASONS)
    assert made["missing"] == 0


@pytest.mark.slow
def test_workers_batches_and_order_leave_no_trace(
    small_wiki: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--min-count", "50", "--pmi-min", "-9", "--quiet")
    assert main(command(small_wiki, tmp_path / "one", *options)) == 0
    expected = content(tmp_path / "one")
    assert len(rows(tmp_path / "one")) > 500
    workers = ("--", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
    assert main(command(small_wiki, tmp_path / "two", *options, *workers)) == 0
    assert content(tmp_path / "two") == expected
    small_wiki.dumps.reverse()
    small_wiki.views.reverse()
    monkeypatch.setattr(passes, "BATCH_TOKENS", 2000)
    monkeypatch.setattr(wikipedia, "SPLIT_BYTES", 400)
    assert main(command(small_wiki, tmp_path / "three", *options)) == 0
    assert content(tmp_path / "three") == expected
    # Plain XML, in splits that cut pages in two.
    small_wiki.dumps[:] = [unpacked(Path(dump)) for dump in small_wiki.dumps]
    assert len(wikipedia.plan(small_wiki.dumps)) > 10
    assert main(command(small_wiki, tmp_path / "four", *options)) == 0
    assert content(tmp_path / "four") == expected


def unpacked(dump: Path) -> str:
    plain = dump.with_suffix("")
    plain.write_bytes(bz2.decompress(dump.read_bytes()))
    return str(plain)


def test_a_killed_run_starts_again(
    small_wiki: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(merge, "build", lambda **_: (_ for _ in ()).throw(MemoryError("killed")))
        assert main(command(small_wiki, out, "--quiet")) == 1
    assert not (out / "manifest.json").exists()
    (out / "work").mkdir()
    (out / "work" / "words-99999.parquet").write_bytes(b"left over")
    assert main(command(small_wiki, out, "--quiet")) == 0
    assert main(command(small_wiki, tmp_path / "fresh", "--quiet")) == 0
    assert content(out) == content(tmp_path / "fresh")


def test_words_from_a_table(small_wiki: Any, tmp_path: Path) -> None:
    counts = tmp_path / "counts.tsv"
    counts.write_text("word\tcount\nCat\t60\ncat\t50\nrare\t9\nnew york\t500\n")
    out = tmp_path / "out"
    arguments = ["queries", "--word-counts", str(counts), "--wordnet", "none", "--out", str(out)]
    assert main(arguments) == 0
    assert [(q, r["count"]) for q, r in rows(out).items()] == [("cat", 110)]
    made = manifest(out)
    assert made["corpus_tokens"] == 119
    assert made["counted"]["word_counts"] == {"words": 2, "not_a_word": 1}
    assert made["fill_with"] == [
        "bigrams: --wikipedia", "titles: --pageviews", "synsets: leave out `--wordnet none`"
    ]  # fmt: skip
    # With a dump beside it, the table says which words there are; bigrams come from the dump.
    both = command(small_wiki, tmp_path / "both", "--word-counts", str(counts), "--pmi-min", "-9", "--quiet")
    assert main(both) == 0
    found = rows(tmp_path / "both")
    assert "word7" not in found
    assert sum(r["sources"] == ["bigram"] for r in found.values()) > 100


def test_titles_without_a_dump(small_wiki: Any, tmp_path: Path) -> None:
    arguments = [
        "queries",
        "--pageviews",
        *small_wiki.views,
        "--wordnet",
        "none",
        "--views-min",
        "50",
        "--quiet",
    ]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    found = rows(tmp_path / "out")
    assert (found["hound"]["views"], found["title 59"]["views"], "title 3" in found) == (1000, 65, False)
    assert main([*arguments, "--out", str(tmp_path / "de"), "--project", "de", "--views-min", "1"]) == 0
    assert list(rows(tmp_path / "de")) == ["hund"]


def test_titles_that_the_dump_lacks_may_stay(small_wiki: Any, tmp_path: Path) -> None:
    assert main(command(small_wiki, tmp_path / "out", "--title-check", "none", "--quiet")) == 0
    found = rows(tmp_path / "out")
    assert (found["nowhere"]["views"], found["title 1"]["views"], "hound" in found) == (5, 1002, False)


def test_the_shipped_wordnet_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["queries", "--out", str(out)]) == 0
    made = manifest(out)
    assert made["counted"]["wordnet"] == {"synsets": 117_659}
    # 86,571 distinct terms, of which 166 read as the same words as another ("x-ray", "x ray").
    assert made["rows_in"] == 86_571
    assert made["rows"] == 86_405
    assert made["dropped"] == {"same_query": 166}
    assert (
        "words: --wikipedia or --word-counts; bigrams: --wikipedia; titles: --pageviews"
        in capsys.readouterr().err
    )
    # Without it the configuration's result differs, though paths are not hashed.
    assert main(["queries", "--wordnet", "none", "--out", str(out)]) == 2


def test_truncated_dump_is_counted_and_reported(
    small_wiki: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = Path(small_wiki.dumps[1])
    dump.write_bytes(dump.read_bytes()[:-300])
    assert main(command(small_wiki, tmp_path / "out")) == 0
    (problem,) = [p for p in manifest(tmp_path / "out")["problems"] if "truncated" in p["reason"]]
    assert problem["file"] == dump.name
    assert (
        f"lost: {dump.name}: truncated bzip2 stream at byte {problem['offset']:,}" in capsys.readouterr().err
    )
    assert 31 <= manifest(tmp_path / "out")["counted"]["wikipedia"]["articles"] < 60


def test_bad_input_ends_with_one_line(
    small_wiki: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "text.xml").write_text("this is not a dump")
    (folder / "empty.xml").write_text("<mediawiki></mediawiki>")
    (folder / "broken.xml.bz2").write_bytes(bz2.compress(b"<mediawiki><page><title>cut")[:-20])
    (folder / "views").write_text("not page views\n" * 5)
    out = ["--out", str(tmp_path / "out"), "--quiet"]
    cases: list[tuple[list[str], int, str]] = [
        (["--wordnet", "none"], 2, "no source to make queries from"),
        (["--wikipedia", str(tmp_path / "missing.xml")], 1, "missing.xml"),
        (["--wikipedia", str(folder / "text.xml")], 1, "text.xml: not a Wikipedia dump"),
        (["--wikipedia", str(folder / "empty.xml")], 1, "the dump holds no article, found 0 pages"),
        (["--wikipedia", str(folder / "broken.xml.bz2")], 1, "broken.xml.bz2: not a Wikipedia dump"),
        (["--pageviews", str(folder / "views")], 1, "views: not a page view file"),
        (["--wordnet", str(folder)], 1, "lacks data files"),
        (["--word-counts", str(folder / "views")], 1, "no such column in the word counts"),
        (["--size", "0"], 2, "size must be at least 1, not 0"),
        (["--bigram-share", "2"], 2, "bigram_share must lie between 0 and 1"),
        (["--set", "queries.min_cuont=3"], 2, "did you mean 'min_count'"),
        (["--wikipedia", *small_wiki.dumps, "--", "--nonsense=1"], 2, "--nonsense"),
    ]
    for arguments, status, said in cases:
        ours, *beam = " ".join(arguments).split(" -- ")
        words = ["queries", *ours.split(), *out, *(["--", *beam[0].split()] if beam else [])]
        assert main(words) == status, arguments
        error = capsys.readouterr().err
        assert said in error, arguments
        assert error.count("\n") == 1, error
        assert not (tmp_path / "out" / "manifest.json").exists()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(not WORLD.exists(), reason="examples/world is not in this checkout")
def test_the_small_world(tmp_path: Path) -> None:
    dump, views = WORLD / "enwiki-cut.xml.bz2", WORLD / "pageviews-201604-user.bz2"
    out = tmp_path / "out"
    arguments = ["queries", "--wikipedia", str(dump), "--pageviews", str(views), "--out", str(out), "--quiet"]
    assert main(arguments) == 0
    found, made = rows(out), manifest(out)
    assert made["counted"]["wikipedia"] == {
        "pages": 206, "articles": 106, "redirects": 99, "other_namespace": 1, "tokens": made["corpus_tokens"],
    }  # fmt: skip
    assert 455_000 < made["corpus_tokens"] < 470_000
    assert 500 < made["sources"]["word"] < 550
    assert made["sources"]["title"] == 106
    assert made["thresholds"]["bigram_min_count"] == 3
    assert {"alkali metal", "soviet union", "animal farm"} <= {q for q, r in found.items() if r["pmi"]}
    assert found["alabama"]["sources"] == ["word", "title", "synset"]
    assert pq.read_metadata(out / "part-00000.parquet").num_rows == made["rows"]
