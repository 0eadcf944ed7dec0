from __future__ import annotations

import json
import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.core import tables
from pipeline.core.contracts import QUERIES
from queries import wordnet
from queries.config import QueriesConfig
from queries.wordnet import Synset


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {r["query"]: r for r in tables.read_folder(str(out), QUERIES).to_pylist()}


def test_a_preset_fills_what_is_not_given() -> None:
    paper, metaclip = QueriesConfig(), QueriesConfig(preset="metaclip")
    assert (paper.bigram_min_count, paper.pmi_min, paper.views_min, paper.synset_terms) == (
        None, 5.0, 1, "first_lemma",
    )  # fmt: skip
    assert (metaclip.bigram_min_count, metaclip.pmi_min, metaclip.views_min, metaclip.synset_terms) == (
        1, 30.0, 70, "metaclip",
    )  # fmt: skip
    assert (paper.min_count, metaclip.min_count) == (100, 100)
    assert metaclip.least_bigram_count(5_000_000_000) == 1
    own = QueriesConfig(preset="metaclip", pmi_min=5.0, views_min=1, synset_terms="all_lemmas")
    assert (own.pmi_min, own.views_min, own.synset_terms) == (5.0, 1, "all_lemmas")
    with pytest.raises(ValueError, match="views_min must be at least 1, not 0"):
        QueriesConfig(preset="metaclip", views_min=0)


def test_metaclips_synset_terms() -> None:
    synsets = [
        Synset("n1", ("Mr. Moto",)),
        Synset("n2", (".22 caliber", "x")),
        Synset("n3", ("X-ray", "y")),
        Synset("n4", ("mr",)),
    ]
    found = list(wordnet.terms(synsets, "metaclip"))
    assert found[:3] == [("mr", "n1"), ("x-ray", "n3"), ("mr", "n4")]
    assert found[3:] == [(str(n), None) for n in range(100)]


def test_metaclips_list_has_its_known_number(tmp_path: Path) -> None:
    """MetaCLIP's table 1 (arXiv 2309.16671): 86,654 from WordNet, with the numerals."""
    out = tmp_path / "out"
    assert main(["queries", "--preset", "metaclip", "--out", str(out), "--quiet"]) == 0
    found, made = rows(out), json.loads((out / "manifest.json").read_text())
    assert len(found) == 86_654
    assert all(row["sources"] == ["synset"] for row in found.values())
    assert (made["rows"], made["rows_in"], made["dropped"]) == (86_654, 86_654, {})
    assert found["99"]["synsets"] is None
    # Spelling stays and is what tells entries apart; a dot cuts.
    assert {"x-ray", "x ray", "jack-o'-lantern", "et al", "mr"} <= set(found)
    assert not {"mr. moto", "22 caliber", ".22 caliber", ""} & set(found)
    assert len({row["query"] for row in found.values() if row["synsets"] is None}) == 100


def test_entries_merge_by_spelling(small_wiki: Any, tmp_path: Path) -> None:
    net = Path(small_wiki.wordnet)
    (net / "data.noun").write_text("00000001 00 n 02 San-Francisco 0 dog 0 000 | g\n")
    preset = ["--preset", "metaclip", "--views-min", "50", "--pmi-min", "2", "--min-count", "50"]
    sources = ["--wikipedia", *small_wiki.dumps, "--pageviews", *small_wiki.views, "--wordnet", str(net)]
    assert main(["queries", *sources, *preset, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    found = rows(tmp_path / "out")
    assert found["san-francisco"]["sources"] == ["synset"]
    assert found["san francisco"]["sources"] == ["bigram"]
    # In the paper's reading both are one query.
    assert main(["queries", *sources, "--min-count", "50", "--out", str(tmp_path / "paper"), "--quiet"]) == 0
    found = rows(tmp_path / "paper")
    assert found["san francisco"]["sources"] == ["bigram", "synset"]
    assert "san-francisco" not in found


def test_a_pair_of_rare_words_is_a_bigram_of_the_preset_alone(tmp_path: Path) -> None:
    text = "bao jingyan and old bob. " + "and so on. " * 100
    page = f"<page><title>A</title><ns>0</ns><revision><text>{text}</text></revision></page>"
    (tmp_path / "dump.xml").write_text(f"<mediawiki>{page}</mediawiki>")
    sources = ["--wikipedia", str(tmp_path / "dump.xml"), "--wordnet", "none", "--quiet"]
    metaclip = ["--preset", "metaclip", "--pmi-min", "8"]
    assert main(["queries", *sources, *metaclip, "--out", str(tmp_path / "metaclip")]) == 0
    # 305 words: a pair of words that occur once has log2(305) = 8.25 bits, one of "and" at most 1.6.
    found = rows(tmp_path / "metaclip")
    assert {q for q, r in found.items() if r["sources"] == ["bigram"]} == {"bao jingyan", "old bob"}
    assert found["bao jingyan"]["count"] == 1
    assert "bao" not in found
    # At 30 bits no corpus of fewer than 2^30 words has any.
    assert main(["queries", *sources, "--preset", "metaclip", "--out", str(tmp_path / "thirty")]) == 0
    assert {q for q, r in rows(tmp_path / "thirty").items() if r["pmi"] is not None} == set()
    assert main(["queries", *sources, "--bigram-min-count", "1", "--out", str(tmp_path / "paper")]) == 0
    assert "bao jingyan" not in rows(tmp_path / "paper")


def test_no_pair_that_reaches_the_pmi_is_lost_with_the_frequent_words(tmp_path: Path) -> None:
    """The preset counts pairs of words rare enough to reach its PMI alone; that must lose none."""
    draw = random.Random(3)
    words = [f"w{i}" for i in range(400)]
    lines = [draw.choices(words, [1 / (i + 1) for i in range(400)], k=8) for _ in range(300)]
    text = ".\n".join(" ".join(line) for line in lines)
    page = f"<page><title>A</title><ns>0</ns><revision><text>{text}</text></revision></page>"
    (tmp_path / "dump.xml").write_text(f"<mediawiki>{page}</mediawiki>")
    single, pairs = (
        Counter(w for line in lines for w in line),
        Counter(p for line in lines for p in pairwise(line)),
    )
    scores = {
        f"{a} {b}": math.log2(n * single.total() / (single[a] * single[b])) for (a, b), n in pairs.items()
    }
    for least in (3.0, 6.5, 9.0):
        out = tmp_path / str(least)
        given = ["--wikipedia", str(tmp_path / "dump.xml"), "--wordnet", "none", "--pmi-min", str(least)]
        assert main(["queries", "--preset", "metaclip", *given, "--out", str(out), "--quiet"]) == 0
        found = {q: r["pmi"] for q, r in rows(out).items() if r["pmi"] is not None}
        assert found == pytest.approx({pair: score for pair, score in scores.items() if score >= least})
        assert len(found) > 40
