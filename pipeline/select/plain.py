"""The matcher in plain Python: what the compiled one is held to, and what stands in for it where numba is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from pipeline.core.tokens import tokens

SIGNS: Final = ",.;:?!`"
BLANKS: Final = "\t\n\r"
_WRAPPED: Final = str.maketrans({**{c: f" {c} " for c in SIGNS}, **dict.fromkeys(BLANKS, " ")})


def metaclip_words(text: str) -> list[str]:
    """The pieces between single spaces after MetaCLIP's spacing; empty ones stay."""
    return text.translate(_WRAPPED).split(" ")


def _entry_words(query: str) -> list[str]:
    return query.split(" ")


class _Node:
    __slots__ = ("ids", "next")

    def __init__(self) -> None:
        self.ids: tuple[int, ...] = ()
        self.next: dict[str, _Node] = {}


class PlainMatcher:
    """A trie of words in dictionaries.

    Args:
        queries: ``(query_id, query)``.
        mode: ``clean`` or ``metaclip``.
    """

    def __init__(self, queries: Iterable[tuple[int, str]], mode: str) -> None:
        of_text, of_query = _CUTTERS[mode]
        self._cut = of_text
        self._root = _Node()
        for query_id, query in queries:
            words = of_query(query)
            if not words:
                continue  # nothing but punctuation: no text can contain it
            node = self._root
            for word in words:
                found = node.next.get(word)
                if found is None:
                    found = node.next[word] = _Node()
                node = found
            node.ids = (*node.ids, query_id)

    def match(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """int64[n], matches of each text; int32[m], their queries."""
        counts = np.zeros(len(texts), np.int64)
        ids: list[int] = []
        first = self._root.next
        for row, text in enumerate(texts):
            words = self._cut(text)
            here: set[int] = set()
            for place, word in enumerate(words):
                node = first.get(word)
                following = place + 1
                while node is not None:
                    here.update(node.ids)
                    if following == len(words) or not node.next:
                        break
                    node = node.next.get(words[following])
                    following += 1
            counts[row] = len(here)
            ids += sorted(here)
        return counts, np.array(ids, np.int32)


_Cutter = Callable[[str], list[str]]
_CUTTERS: Final[dict[str, tuple[_Cutter, _Cutter]]] = {
    "clean": (tokens, tokens),
    "metaclip": (metaclip_words, _entry_words),
}
