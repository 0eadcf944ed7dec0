"""The benchmarks' dump: the same bytes every time, read as the real cut is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import dump
from pipeline.core.tokens import tokens
from queries import wikipedia
from queries.wikipedia import Page
from queries.wikitext import plain_text

pytestmark = pytest.mark.skipif(not dump.CUT.exists(), reason="examples/world is not in this checkout")


def read(path: Path) -> tuple[list[Page], dict[str, int]]:
    counts: dict[str, int] = Counter()
    splits = wikipedia.plan([str(path)])
    return [p for split in splits for p in wikipedia.read(split, [], counts)], counts


def words(pages: list[Page]) -> Counter[str]:
    return Counter(w for p in pages if p.target is None for w in tokens(plain_text(p.text)))


@pytest.mark.slow
def test_a_made_dump_is_the_cut_in_other_orders_and_words(tmp_path: Path) -> None:
    whole, counts = read(dump.CUT)
    total = dump.make(tmp_path / "made.xml.bz2", 12, plain=tmp_path / "made.xml")
    assert total == (tmp_path / "made.xml").stat().st_size
    pages, made_counts = read(tmp_path / "made.xml.bz2")
    assert read(tmp_path / "made.xml") == (pages, made_counts)
    assert made_counts == {name: 2 * number for name, number in counts.items()}
    first, second = pages[: len(whole)], pages[len(whole) :]
    assert [p.text for p in first] != [p.text for p in whole]
    assert {p.title for p in first}.isdisjoint(p.title for p in second)
    real, one, two = words(whole), words(first), words(second)
    # Where an editor left markup open, another order of the sentences hides others of them.
    assert ((one - real) + (real - one)).total() < 0.01 * real.total()
    # As many words, a good part of them new.
    assert abs(two.total() - one.total()) < 0.01 * one.total()
    assert len(two.keys() - one.keys()) > 5_000
    # Other processes made it.
    assert "".join(dump.pages_of(1)) in (tmp_path / "made.xml").read_text()
