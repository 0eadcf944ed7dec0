"""Strangers' text stays text, in its own box, at a bounded length."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.markup import highlighted, picture, plain, plural, shown


@given(st.text(st.characters(), max_size=400), st.integers(1, 60))
def test_text_is_escaped_bounded_and_encodable(text: str, limit: int) -> None:
    made = shown(text, limit)
    inside = made.removeprefix('<bdi dir="auto">').removesuffix("</bdi>")
    assert "<" not in inside
    assert ">" not in inside
    assert '"' not in inside
    made.encode()
    told = html.unescape(inside)
    assert len(told) <= limit + 1
    assert not re.search("[\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]", plain(text, limit))


@given(st.text(st.characters(), max_size=300), st.text(st.characters(), max_size=20), st.integers(1, 60))
def test_highlighting_adds_one_mark_at_most(text: str, query: str, limit: int) -> None:
    made = highlighted(text, query, limit)
    made.encode()
    assert re.sub(r"</?mark>|</?bdi( dir=\"auto\")?>", "", made).count("<") == 0
    assert made.count("<mark>") == made.count("</mark>") <= 1


@pytest.mark.parametrize(
    ("caption", "query", "told"),
    [
        ("A Red-Circle on a table", "red circle", "A <mark>Red-Circle</mark> on a table"),
        ("scarred circle", "red", "scarred circle"),
        ("cats & <b>dogs</b>", "dogs", "cats &amp; &lt;b&gt;<mark>dogs</mark>&lt;/b&gt;"),
        ("snake_case words", "case", "snake_<mark>case</mark> words"),
        ("nothing here", None, "nothing here"),
        ("(.*)", ".*", "(<mark>.*</mark>)"),
    ],
)
def test_the_query_is_marked_where_it_stands(caption: str, query: str | None, told: str) -> None:
    assert highlighted(caption, query) == f'<bdi dir="auto">{told}</bdi>'


def test_a_long_caption_is_cut_around_the_query() -> None:
    made = highlighted("word " * 200 + "needle " + "hay " * 200, "needle", 60)
    assert "<mark>needle</mark>" in made
    assert made.count("…") == 2
    assert len(made) < 140


def test_a_megabyte_is_cut_quickly() -> None:
    assert len(plain("x" * 1_000_000, 160)) == 161
    assert len(plain(" " * 1_000_000, 160)) <= 161
    assert len(highlighted("a b " * 250_000, "needle")) < 300


def test_piled_marks_are_thinned() -> None:
    assert plain("e" + "\u0301" * 50 + "nd") == "e" + "\u0301" * 3 + "nd"


def test_right_to_left_text_is_kept_and_its_overrides_are_not() -> None:
    assert plain("\u202eabc\u202c \u200fשלום") == "abc שלום"


def test_a_picture_without_data_says_so() -> None:
    assert "not at hand" in picture(None, "x")
    assert 'alt="&quot;&gt;&lt;script&gt;"' in picture("data:image/webp;base64,AA", '"><script>')


def test_plural() -> None:
    assert plural(1, "query", "queries") == "1 query"
    assert plural(1200, "pair") == "1,200 pairs"
