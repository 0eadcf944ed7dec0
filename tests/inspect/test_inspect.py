from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.core.contracts import PAIRS, QUERIES
from pipeline.core.fakes import fake_folder, finished_folder
from pipeline.core.tokens import tokens
from pipeline.inspect import doctor
from pipeline.select.match import Matcher
from pipeline.text.clean import clean

WORDS = "word\tcount\ndog\t5000\ncat\t300\nzebra\t99\nyeti\t7\n"
VIEWS = """\
en.wikipedia Dog 1 desktop 900 A1
en.wikipedia Mercury_(planet) 1 desktop 500 A1
en.wikipedia Cat 1 desktop 400 A1
en.wikipedia 1984 1 desktop 300 A1
en.wikipedia Fuck 1 desktop 200 A1
en.wikipedia Abba 1 desktop 50 A1
en.wikipedia U2 1 desktop 45 A1
en.wikipedia Unseen_thing 1 desktop 12 A1
"""
PAGE = "<page><title>{}</title><ns>0</ns>{}<revision><text>{}</text></revision></page>"


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A list of two words, five titles and the shipped WordNet's synsets left out."""
    folder = tmp_path_factory.mktemp("counted")
    (folder / "words.tsv").write_text(WORDS)
    (folder / "views").write_text(VIEWS)
    arguments = ["--word-counts", str(folder / "words.tsv"), "--pageviews", str(folder / "views")]
    more = ["--wordnet", "none", "--size", "6", "--views-min", "40", "--out", str(folder / "list")]
    assert main(["queries", *arguments, *more, "--quiet"]) == 0
    return str(folder / "list")


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A list out of a small dump, its redirects and views, and the shipped WordNet."""
    folder = tmp_path_factory.mktemp("dumped")
    text = (
        "red panda. " * 40
        + "blue whale. " * 25
        + "red whale. " * 3
        + "rare. "
        + "a few words and one yeti. " * 30
    )
    pages = [
        PAGE.format("Panda", "", text),
        PAGE.format("Whale", "", "whale"),
        PAGE.format("Bear", '<redirect title="Panda"/>', ""),
    ]
    (folder / "dump.xml").write_text(f"<mediawiki>{''.join(pages)}</mediawiki>")
    lines = [f"en.wikipedia {t} 1 desktop {v} A1\n" for t, v in (("Panda", 60), ("Bear", 30), ("Lion", 12))]
    (folder / "views").write_text("".join(lines))
    arguments = ["--wikipedia", str(folder / "dump.xml"), "--pageviews", str(folder / "views")]
    more = [
        "--min-count",
        "25",
        "--bigram-min-count",
        "20",
        "--pmi-min",
        "3.2",
        "--out",
        str(folder / "list"),
    ]
    assert main(["queries", *arguments, *more, "--quiet"]) == 0
    return str(folder / "list")


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["inspect", *arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found: dict[str, Any] = json.loads(printed.out)
    return found


def why(capsys: pytest.CaptureFixture[str], folder: str, text: str, *more: str) -> list[str]:
    (one,) = asked(capsys, folder, "--why", text, *more)["why"]
    assert one["text"] == text
    return [f"in: {one['in_list']}", *one["reasons"]]


def test_sources_overlaps_and_cuts(counted: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, counted, "--top", "2")
    assert found["queries"] == 6
    assert found["sources"] == [
        {"source": "word", "queries": 2, "alone": 0},
        {"source": "bigram", "queries": 0, "alone": 0},
        {"source": "title", "queries": 6, "alone": 4},
        {"source": "synset", "queries": 0, "alone": 0},
    ]
    assert found["overlaps"] == [
        {"sources": ["title"], "queries": 4},
        {"sources": ["word", "title"], "queries": 2},
    ]
    assert found["borderline"] == {
        "word": {
            "measure": "count",
            "last_in": [{"query": "cat", "count": 300}, {"query": "dog", "count": 5000}],
            "first_out": [{"query": "zebra", "count": 99}, {"query": "yeti", "count": 7}],
        },
        "bigram": {"measure": "pmi", "last_in": [], "first_out": None},
        "title": {
            "measure": "views",
            "last_in": [{"query": "abba", "views": 50}, {"query": "fuck", "views": 200}],
            "first_out": [{"query": "U2", "views": 45}, {"query": "Unseen thing", "views": 12}],
        },
    }


def test_the_doctor(counted: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, counted)["doctor"]
    assert {name: finding["count"] for name, finding in found.items()} == {
        "never_match": 0, "same_to_matching": 0, "offensive": 1, "disambiguated": 1, "short": 0, "numbers": 1,
    }  # fmt: skip
    assert found["offensive"]["examples"] == ["f***"]
    assert asked(capsys, counted, "--plain")["doctor"]["offensive"]["examples"] == ["fuck"]
    assert found["disambiguated"]["examples"] == ["mercury (planet)"]
    assert found["numbers"]["examples"] == ["1984"]


def listed(folder: Path, queries: list[str]) -> str:
    """A finished list of given queries, as somebody else's tool might make it."""
    rows = [{"query_id": i, "query": q, "sources": ["title"]} for i, q in enumerate(queries)]
    return finished_folder(str(folder), QUERIES, pa.Table.from_pylist(rows, schema=QUERIES.schema))


def test_titles_of_the_same_words_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Ball", "Fußball-Liga", "Rock 'n' Roll", "Spider-Man", "Spider-Man 2"]
    lines = "".join(f"en {n.replace(' ', '_')} {9 - i} 0\n" for i, n in enumerate(names))
    (tmp_path / "views").write_text(lines, encoding="utf-8")
    out = str(tmp_path / "out")
    given = ["--pageviews", str(tmp_path / "views"), "--wordnet", "none", "--size", "1", "--out", out]
    assert main(["queries", *given, "--quiet"]) == 0
    for text, title in [("fussball liga", 1), ("rock 'n' roll", 2), ("SPIDER MAN", 3)]:
        said = f"title {names[title]!r} with {9 - title} views, the cut is at 9"
        assert said in why(capsys, out, text)
    assert "title: none that was viewed" in why(capsys, out, "spider")


def test_what_can_never_match_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = listed(
        tmp_path / "q", ["!!!", "cat", "dr. no", "fish%20chips", "salt &amp; pepper", "x ray", "x-ray"]
    )
    found = asked(capsys, folder, "--top", "9")["doctor"]
    # "salt & pepper" and "fish chips" are what captions say: their escaped spellings hold other words.
    assert found["never_match"] == {
        "count": 3,
        "examples": [
            {"query": "!!!", "why": "it holds no word"},
            {"query": "fish%20chips", "why": "in a caption it is cleaned to 'fish chips'"},
            {"query": "salt &amp; pepper", "why": "in a caption it is cleaned to 'salt & pepper'"},
        ],
    }
    assert found["same_to_matching"] == {"count": 2, "examples": [["x ray", "x-ray"]]}
    found = asked(capsys, folder, "--matching", "metaclip", "--top", "9")["doctor"]
    assert [e["query"] for e in found["never_match"]["examples"]] == [
        "!!!", "dr. no", "fish%20chips", "salt &amp; pepper",
    ]  # fmt: skip
    assert found["never_match"]["examples"][1]["why"] == (
        "it holds ., round which MetaCLIP's rule puts spaces"
    )
    assert found["same_to_matching"]["count"] == 0
    assert found["lower_case_only"]["count"] == 6
    assert why(capsys, folder, "!!!")[-1] == "never matches (clean): it holds no word"
    assert why(capsys, folder, "Dr. No", "--matching", "metaclip")[-1] == (
        "never matches (metaclip): it holds ., round which MetaCLIP's rule puts spaces"
    )


QUERIES_DRAWN = st.lists(
    st.text("ab .-&%!", min_size=1, max_size=6).map(str.strip).filter(bool), unique=True, max_size=12
)


@given(QUERIES_DRAWN, st.sampled_from(["clean", "metaclip"]))
def test_same_means_found_in_one_another(queries: list[str], matching: str) -> None:
    found, equals = doctor.own_matches(queries, matching)
    hits = {
        (a, b)
        for a, query in enumerate(queries)
        for b, other in enumerate(queries)
        if len(Matcher([(0, other)], matching).match([clean(query)]).rows)
    }
    assert found.tolist() == [(a, a) in hits for a in range(len(queries))]
    assert {tuple(p) for p in equals.tolist()} == {(a, b) for a, b in hits if a < b and (b, a) in hits}


def test_batches_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = ["x-ray", "dog", "x ray", "!!!", "new york", "york", "X RAY"]
    whole = doctor.own_matches(queries, "clean")
    assert whole[1].tolist() == [[0, 2], [0, 6], [2, 6]]
    monkeypatch.setattr(doctor, "_BATCH", 2)
    for one, other in zip(whole, doctor.own_matches(queries, "clean"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_why_with_counts_and_views(counted: str, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = "synset: the list was made without WordNet"
    assert why(capsys, counted, "Cat") == [
        "in: True", "word: 300 occurrences; rank 2 of 2, the cut is at 300",
        "title: 400 views; rank 3 of 6, the cut is at 50", f"not by {nothing}",
    ]  # fmt: skip
    assert why(capsys, counted, "zebra") == [
        "in: False", "word: 99 occurrences, 100 asked", "title: none that was viewed", nothing
    ]  # fmt: skip
    assert why(capsys, counted, "okapi")[1] == "word: not in the corpus"
    assert why(capsys, counted, "u2")[1:3] == [
        "word: not in the corpus", "title 'U2' with 45 views, the cut is at 50",
    ]  # fmt: skip
    assert why(capsys, counted, "unseen  Thing")[1:3] == [
        "bigram: no --wikipedia was given", "title 'Unseen thing' with 12 views, 40 asked",
    ]  # fmt: skip
    assert why(capsys, counted, "mercury planet")[:2] == [
        "in: True", "the same words as the query 'mercury (planet)'"
    ]  # fmt: skip
    assert why(capsys, counted, "?!") == ["in: False", "no word to match: only punctuation or nothing"]


NO_TITLE, NO_LEMMA = "title: none that was viewed", "synset: no lemma of WordNet"
FURTHER = "synset: a further lemma of {} (--synset-terms all_lemmas takes it)"


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("Blue whale", [
            "in: True", "bigram: PMI 3.45, 25 times together; rank 1 of 6, the cut is at 3.406", "synset: n02064816",
            f"not by {NO_TITLE}",
        ]),
        ("red panda", [
            "in: False", "bigram: PMI 2.89, 3.2 asked (40 times together)", NO_TITLE,
            FURTHER.format("n02509815 'lesser panda'"),
        ]),
        ("red whale", ["in: False", "bigram: 3 times together, 20 asked (PMI -0.39)", NO_TITLE, NO_LEMMA]),
        ("red zebra", ["in: False", "bigram: 'zebra' is not in the corpus", NO_TITLE, NO_LEMMA]),
        ("panda red", ["in: False", "bigram: never next to each other", NO_TITLE, NO_LEMMA]),
        ("rare panda", ["in: False", "bigram: 'rare' occurs once, a bigram's words need 25", NO_TITLE, NO_LEMMA]),
        ("bear", [
            "in: True", "synset: n02131653, n09845191, v01432619, v01652157, v02301843 and 2 more",
            "not by word: not in the corpus",
            "not by title 'Bear' with 30 views: a redirect, they count for 'Panda'",
        ]),
        ("lion", [
            "in: True", "synset: n02129165, n10265070", "not by word: not in the corpus",
            "not by title 'Lion' with 12 views: the dump has no such page (--title-check none keeps it)",
        ]),
        ("panda", [
            "in: True", "word: 40 occurrences; rank 2 of 10, the cut is at 25", "title: 90 views; rank 1 of 1",
            f"not by {FURTHER.format(chr(110) + '02509815 ' + repr('lesser panda'))}",
        ]),
    ],
)  # fmt: skip
def test_why_with_a_dump(
    dumped: str, capsys: pytest.CaptureFixture[str], text: str, reasons: list[str]
) -> None:
    assert why(capsys, dumped, text) == reasons


def test_why_below_the_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "new york. new york. new york. los angeles. los angeles. red car. red bus. old car. "
    (tmp_path / "dump.xml").write_text(f"<mediawiki>{PAGE.format('Town', '', text * 3)}</mediawiki>")
    arguments = ["queries", "--wikipedia", str(tmp_path / "dump.xml"), "--wordnet", "none", "--quiet"]
    small = ["--min-count", "1", "--pmi-min", "0", "--size", "10", "--bigram-share", "1"]
    for measure in ("pmi", "npmi"):
        out = str(tmp_path / measure)
        assert main([*arguments, *small, "--bigram-measure", measure, "--out", out]) == 0
        reasons = why(capsys, out, "red car")
        found = asked(capsys, out)["borderline"]["bigram"]
        # 48 words; "new york" 9 times, "los angeles" 6, the others 3, of which "red" and "car" occur 6 times each.
        if measure == "pmi":
            assert [row["query"] for row in found["last_in"]] == ["los angeles", "old car"]
            assert [row["query"] for row in found["first_out"]] == ["red bus", "new york", "red car"]
            assert reasons[1] == "bigram: PMI 2.00, the cut is at 3 (3 times together)"
        else:
            assert [row["query"] for row in found["last_in"]] == ["los angeles", "new york"]
            assert [row["query"] for row in found["first_out"]] == ["old car", "red bus", "red car"]
            assert reasons[1] == "bigram: NPMI 0.500, the cut is at 1 (3 times together, PMI 2.00)"
            known = "bigram: PMI 2.42, 9 times together, NPMI 1.000; rank 1 of 2, the cut is at 1"
            assert why(capsys, out, "new york")[1] == known


def test_the_metaclip_preset_asks_for_rare_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "the bao jingyan. x-ray the x ray. " + "the dog is big. " * 40
    (tmp_path / "dump.xml").write_text(f"<mediawiki>{PAGE.format('X-ray', '', text)}</mediawiki>")
    (tmp_path / "views").write_text("en X-ray 100 0\n")
    sources = ["--wikipedia", str(tmp_path / "dump.xml"), "--pageviews", str(tmp_path / "views")]
    preset = ["--preset", "metaclip", "--min-count", "30", "--pmi-min", "6", "--wordnet", "none"]
    out = str(tmp_path / "out")
    assert main(["queries", *sources, *preset, "--out", out, "--quiet"]) == 0
    assert (
        why(capsys, out, "bao jingyan")[1]
        == "bigram: PMI 7.39, once together; rank 1 of 2, the cut is at 6.392"
    )
    assert why(capsys, out, "x ray")[0] == "in: True"
    assert why(capsys, out, "X-Ray")[:2] == ["in: True", "title: 100 views; rank 1 of 1, the cut is at 100"]
    assert why(capsys, out, "the dog")[1] == (
        "bigram: 'the' occurs 42 times, so its pairs reach PMI 2.00 at most, 6 asked; "
        "'dog' occurs 40 times, so its pairs reach PMI 2.07 at most, 6 asked"
    )
    assert why(capsys, out, "X RAY!")[:2] == ["in: False", "the same words as the query 'x ray'"]
    assert asked(capsys, out)["doctor"]["same_to_matching"]["examples"] == [["x ray", "x-ray"]]


def test_a_folder_without_side_tables(
    counted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(counted, tmp_path / "list")
    shutil.rmtree(tmp_path / "list" / "counts")
    reasons = why(capsys, str(tmp_path / "list"), "okapi")
    assert reasons[1] == "word: below its minimum or its cut; the folder has lost its counts/words.parquet"
    assert main(["inspect", str(tmp_path / "list")]) == 0
    assert "first out: unknown, the folder has no counts/ of this source" in capsys.readouterr().out
    (tmp_path / "list" / "counts").mkdir()
    (tmp_path / "list" / "counts" / "words.parquet").write_bytes(b"PAR1 not really")
    assert main(["inspect", str(tmp_path / "list"), "--why", "okapi"]) == 1
    assert "words.parquet" in capsys.readouterr().err


def test_text_is_aligned(dumped: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", dumped, "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{dumped}: 86,412 queries"
    assert lines[1] == (
        "preset paper, size 500,000, min_count 25, pmi_min 3.2, views_min 1, bigram_min_count 20, corpus_tokens 318"
    )
    assert lines[3:8] == [
        "  source  queries   alone",
        "  word         10       2",
        "  bigram        6       4",
        "  title         1       0",
        "  synset   86,405  86,396",
    ]
    assert "  first out  red panda     40  2.887" in lines
    assert "  never match                              0  0.00%" in lines
    assert main(["inspect", dumped, "--why", "okapi", "--why", "red  Panda"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("'okapi': in the list as query ")
    assert "'red  Panda': not in the list" in said
    assert "  bigram: PMI 2.89, 3.2 asked (40 times together)" in said


def test_any_list_can_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(capsys, fake_folder(str(tmp_path / "fake"), QUERIES, 8))["queries"] == 8
    assert asked(capsys, listed(tmp_path / "empty", []))["queries"] == 0
    assert main(["inspect", str(tmp_path / "empty")]) == 0
    assert "0 queries" in capsys.readouterr().out


def test_a_list_of_other_sources_and_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"query_id": 7, "query": "dog", "sources": ["mine", "word"], "count": 5},
        {"query_id": 3, "query": "cat", "sources": ["mine"]},
        {"query_id": 9, "query": "cow", "sources": ["word"], "count": 9},
    ]
    folder = finished_folder(str(tmp_path / "l"), QUERIES, pa.Table.from_pylist(rows, schema=QUERIES.schema))
    assert asked(capsys, folder)["overlaps"] == [
        {"sources": ["word"], "queries": 2}, {"sources": [], "queries": 1}
    ]  # fmt: skip
    assert why(capsys, folder, "dog")[:2] == ["in: True", "word: 5 occurrences; rank 2 of 2"]
    assert main(["inspect", folder]) == 0
    assert "none of these" in capsys.readouterr().out


def test_bad_input_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_folder(str(tmp_path / "pairs"), PAIRS, 3)
    fake_folder(str(tmp_path / "list"), QUERIES, 3)
    (tmp_path / "half").mkdir()
    cases: list[tuple[list[str], int, str]] = [
        ([], 2, "the following arguments are required: DIR"),
        ([str(tmp_path / "missing")], 1, "no such folder"),
        ([str(tmp_path / "half")], 1, "the folder is unfinished"),
        ([str(tmp_path / "pairs")], 1, "expected queries/1, found pairs/1"),
        ([str(tmp_path / "list"), "--top", "0"], 2, "--top must be at least 1"),
        ([str(tmp_path / "list"), "--matching", "guess"], 2, "invalid choice: 'guess'"),
        ([str(tmp_path / "list"), "--overwrite"], 2, "--overwrite"),
        ([str(tmp_path / "list"), "--", "--runner=x"], 2, "takes no Beam options"),
    ]
    for arguments, status, said in cases:
        assert main(["inspect", *arguments]) == status, arguments
        printed = capsys.readouterr()
        assert printed.out == ""
        assert said in printed.err, arguments
        assert printed.err.count("\n") == 1, printed.err


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    folder = fake_folder(str(tmp_path / "list"), QUERIES, 8)
    code = "import sys; from pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-c", code, "inspect", folder], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, b"")


def test_masks_keep_the_first_letters() -> None:
    assert doctor.mask("two words-here") == "t** w**** h***"
    assert doctor.mask("🖕") == "*"
    assert tokens("🖕") == []
