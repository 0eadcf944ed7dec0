"""The matcher against naive oracles."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.tokens import tokens
from pipeline.select.match import Matcher, Matches

HOSTILE = st.text(st.sampled_from("ab AB,.;:?!`'’\"()-_\t\n\r\0 é\u0301ßS中👩\u200d"), max_size=24)


def found(matches: Matches) -> set[tuple[int, int]]:
    pairs = list(zip(matches.rows.tolist(), matches.query_ids.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    return set(pairs)


def metaclip_oracle(queries: list[str], texts: list[str]) -> set[tuple[int, int]]:
    """MetaCLIP's rule as its paper and code describe it: substrings of the spaced text."""
    spaced = []
    for text in texts:
        line = f" {text} "
        for sign in ",.;:?!`":
            line = line.replace(sign, f" {sign} ")
        for sign in "\t\n\r":
            line = line.replace(sign, " ")
        spaced.append(line)
    return {
        (r, q) for r, line in enumerate(spaced) for q, query in enumerate(queries) if f" {query} " in line
    }


def clean_oracle(queries: list[str], texts: list[str]) -> set[tuple[int, int]]:
    def joined(text: str) -> str:
        return "\0" + "\0".join(tokens(text)) + "\0"

    return {
        (r, q)
        for r, text in enumerate(texts)
        for q, query in enumerate(queries)
        if tokens(query) and joined(query) in joined(text)
    }


@settings(max_examples=400)
@given(st.lists(HOSTILE, max_size=8), st.lists(HOSTILE, max_size=6))
@example(["a", "", " ", "a b", "a  b", "b,", ","], ["a b", "a  b", "a,b", "", " ", "a\tb", "xa b"])
@example(["foo bar"], ["foo, bar"])
def test_metaclip_is_the_substring_rule(queries: list[str], texts: list[str]) -> None:
    assert found(Matcher(enumerate(queries), "metaclip").match(texts)) == metaclip_oracle(queries, texts)


@settings(max_examples=400)
@given(st.lists(HOSTILE, max_size=8), st.lists(HOSTILE, max_size=6))
def test_clean_finds_every_query_as_whole_words(queries: list[str], texts: list[str]) -> None:
    assert found(Matcher(enumerate(queries)).match(texts)) == clean_oracle(queries, texts)


QUERIES = [
    "new york",
    "new york city",
    "york",
    "city hall",
    "st. louis",
    "spider-man",
    "New York",
    "o'clock",
    "...",
]


@pytest.mark.parametrize(
    ("text", "clean", "metaclip"),
    [
        ("New York City Hall", [0, 1, 2, 3, 6], [6]),
        ("new york city hall", [0, 1, 2, 3, 6], [0, 1, 2, 3]),
        ("the new yorker", [], []),
        ("view of St. Louis, Missouri", [4], []),
        ("Spider-Man at 5 o’clock", [5, 7], []),
        ('"york" (york)', [2], []),
        ("new, york", [0, 2, 6], [2]),
        ("...", [], []),
        ("", [], []),
    ],
)
def test_known_texts(text: str, clean: list[int], metaclip: list[int]) -> None:
    for mode, expected in (("clean", clean), ("metaclip", metaclip)):
        matches = Matcher(enumerate(QUERIES), mode).match(["nothing", text])
        assert matches.query_ids.tolist() == expected
        assert set(matches.rows.tolist()) <= {1}


def test_large_texts_and_long_queries() -> None:
    text = "word " * 200_000 + "end"
    matches = Matcher([(7, "word word word"), (9, "end"), (11, "word end"), (13, "end word")]).match([text])
    assert matches.query_ids.tolist() == [7, 9, 11]
