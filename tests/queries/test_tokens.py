from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.tokens import fold, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A photo of São Paulo.", ["a", "photo", "of", "são", "paulo"]),
        ("Sa\u0303o Paulo", ["são", "paulo"]),  # decomposed: NFC first
        ("the dog’s o'clock 'quoted'", ["the", "dog's", "o'clock", "quoted"]),
        ("Spider-Man_2: AC/DC", ["spider", "man", "2", "ac", "dc"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("İstanbul", ["i̇stanbul"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("1️⃣ ❤️ 东京", ["1", "东京"]),
        ("", []),
        ("…!?_", []),
    ],
)
def test_words_of_known_texts(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@given(st.text())
def test_tokens_are_stable_folded_words(text: str) -> None:
    found = tokens(text)
    assert tokens(" ".join(found)) == found
    assert fold(fold(text)) == fold(text)
    for word in found:
        assert unicodedata.is_normalized("NFC", word)
        assert fold(word) == word
        assert not re.search(r"[\s_]", word)


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Nd", "Zs", "Po", "Pd"])))
def test_texts_without_marks_follow_the_plain_pattern(text: str) -> None:
    folded = fold(text)
    if not any(unicodedata.combining(c) for c in folded):
        assert tokens(text) == re.findall(r"[^\W_]+(?:'[^\W_]+)*", folded)
