"""Offensive texts by a word list: whole words of LDNOOBW's English list, case-folded.

It is a word list and no more: English only, blind to images and to what decent words say, and it also hits
medical and art captions. It does not find illegal material; hash lists and image scorers belong to the fetch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Final

from pipeline.core.tokens import fold, tokens

LIST: Final = "blocklist_en.txt"


@functools.lru_cache(maxsize=1)
def _terms() -> tuple[Mapping[str, tuple[tuple[str, ...], ...]], frozenset[str]]:
    """Terms by their first word, and terms without words (emoji)."""
    lines = (resources.files("pipeline.text") / LIST).read_text(encoding="utf-8").splitlines()
    by_first: dict[str, list[tuple[str, ...]]] = {}
    bare: set[str] = set()
    for line in lines:
        words = tuple(tokens(line))
        if words:
            by_first.setdefault(words[0], []).append(words)
        elif line.strip():
            bare.add(fold(line.strip()))
    return {first: tuple(found) for first, found in by_first.items()}, frozenset(bare)


def offensive_term(text: str) -> str | None:
    """The first listed term that a text contains as whole words, or ``None``."""
    by_first, bare = _terms()
    words = tokens(text)
    for place, word in enumerate(words):
        for term in by_first.get(word, ()):
            if tuple(words[place : place + len(term)]) == term:
                return " ".join(term)
    if not text.isascii():
        return next((sign for sign in sorted(bare) if sign in text), None)
    return None
