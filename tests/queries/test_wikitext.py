from __future__ import annotations

from collections import Counter
from pathlib import Path

import mwparserfromhell
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import walk
from pipeline.core.tokens import tokens
from queries import wikipedia
from queries.streams import Loss
from queries.wikipedia import Page
from queries.wikitext import plain_text

CUT = Path(__file__).parents[2] / "examples" / "world" / "text" / "enwiki-cut.xml.bz2"


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''Cats''' are [[animal]]s.", "Cats are animals."),
        ("a [[Felis catus|cat]] and [http://x.org the site], http://y.org/z b", "a cat and the site],  b"),
        ("a{{cite|{{x|y}}|{z}}} b", "a b"),
        ("a<!-- c [[d]] --> b<ref name=x>r {{y}}</ref> c<ref name=x /> d", "a b c d"),
        ("x\n{| class=w\n|-\n| a || b\n{|\n| in\n|}\n|}\ny", "x\n\ny"),
        ("[[File:A.jpg|thumb|a [[b|c]] caption [1] d]]text", "text"),
        ("[[Category:Cats]][[:Category:Dogs]]", ":Category:Dogs"),
        ("Fish &amp; chips&nbsp;now __NOTOC__<br/>next <b>bold</b>", "Fish & chips\xa0now \nnext bold"),
        ("open {{never closed and [[link", "open {{never closed and [[link"),
        ("open <ref>never closed", "open never closed"),
        ("<ref>one <ref>two</ref> three", "one  three"),
        ("{{{parameter|}}}left", "left"),
        ("a }} b |} c ]] d", "a }} b |} c ]] d"),
    ],
)  # fmt: skip
def test_known_markup(wikitext: str, expected: str) -> None:
    assert plain_text(wikitext) == expected


def test_the_wikis_own_names_of_files_and_categories() -> None:
    assert plain_text("[[Datei:A.jpg|mini|x]]Hund[[Kategorie:Hund]]", ("Datei", "Kategorie")) == "Hund"


MARKS = [
    "{{",
    "}}",
    "{{{",
    "{|\n",
    "\n|}",
    "[[",
    "[[a|",
    "[[File:",
    "<ref>",
    "<!--",
    "<b",
    "[http://a ",
    "{{a|[[",
]


@pytest.mark.parametrize("piece", MARKS)
def test_pathological_nesting_ends(piece: str) -> None:
    # Quadratic work on these would take hours, which the test run's own limit ends.
    assert isinstance(plain_text(piece * 200_000), str)
    assert isinstance(plain_text(piece * 50_000 + "}}" * 50_000 + "]]" * 50_000), str)


@given(
    st.lists(
        st.sampled_from(
            ["{{", "}}", "{|", "|}", "\n", "[[", "]]", "|", "<ref>", "</ref>", "a", " ", "{", "}"]
        )
    )
)
def test_any_markup_is_read(pieces: list[str]) -> None:
    wikitext = "".join(pieces)
    text = plain_text(wikitext)
    assert text.count("a") <= wikitext.count("a")


def read_cut() -> list[Page]:
    lost: list[Loss] = []
    counts: dict[str, int] = Counter()
    (split,) = wikipedia.plan([str(CUT)])
    pages = list(wikipedia.read(split, lost, counts))
    assert not lost
    assert counts == {"pages": 206, "articles": 106, "redirects": 99, "other_namespace": 1}
    return [p for p in pages if p.target is None]


@pytest.mark.slow
@pytest.mark.skipif(not CUT.exists(), reason="examples/world is not in this checkout")
def test_word_counts_agree_with_mwparserfromhell_on_real_articles() -> None:
    ours: Counter[str] = Counter()
    theirs: Counter[str] = Counter()
    for page in read_cut():
        ours.update(tokens(plain_text(page.text)))
        theirs.update(tokens("".join(walk(mwparserfromhell.parse(page.text)))))
    distance = sum(abs(ours[w] - theirs[w]) for w in ours.keys() | theirs.keys()) / sum(theirs.values())
    assert distance < 0.02
    frequent = [{w for w, n in counts.items() if n >= 100} for counts in (ours, theirs)]
    assert len(frequent[0] & frequent[1]) / len(frequent[0] | frequent[1]) >= 0.98
