"""Every query that a text contains, as whole words, overlapping.

The paper (2.2) searches for pairs "whose text includes one of a set of queries". Both ways of comparing cut text
and query into words by the same rule; a query is contained where its words follow one another. So one trie of
words serves both, and only the cutting differs:

* ``clean``: the words of :mod:`pipeline.core.tokens`: case-folded, punctuation apart.
* ``metaclip``: MetaCLIP's published rule. Text gets a space at both ends and round each of ``, . ; : ? ! ```, tabs
  and line ends become spaces, and an entry matches where ``" entry "`` is a substring. Cutting at every single
  space (empty words kept) makes that the same as consecutive words. Case counts, and an entry that holds one of
  those signs can never match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.core.tokens import tokens

_WRAPPED: Final = str.maketrans({**{c: f" {c} " for c in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")})


def metaclip_words(text: str) -> list[str]:
    """The pieces between single spaces after MetaCLIP's spacing; empty ones stay."""
    return text.translate(_WRAPPED).split(" ")


def _entry_words(query: str) -> list[str]:
    return query.split(" ")


@dataclass(frozen=True, slots=True)
class Matches:
    """Which texts contain which queries, ascending by text and then by query; each pair once.

    Attributes:
        rows: int64[m], index of the text in the batch.
        query_ids: int32[m].
    """

    rows: np.ndarray
    query_ids: np.ndarray


class _Node:
    __slots__ = ("ids", "next")

    def __init__(self) -> None:
        self.ids: tuple[int, ...] = ()
        self.next: dict[str, _Node] = {}


class Matcher:
    """Finds queries in batches of texts.

    Args:
        queries: ``(query_id, query)``.
        mode: ``clean`` or ``metaclip``.
    """

    def __init__(self, queries: Iterable[tuple[int, str]], mode: str = "clean") -> None:
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

    def match(self, texts: Sequence[str]) -> Matches:
        """All matches in a batch of texts."""
        rows: list[int] = []
        found: list[int] = []
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
            rows += [row] * len(here)
            found += sorted(here)
        return Matches(np.array(rows, dtype=np.int64), np.array(found, dtype=np.int32))


_Cutter = Callable[[str], list[str]]
_CUTTERS: Final[dict[str, tuple[_Cutter, _Cutter]]] = {
    "clean": (tokens, tokens),
    "metaclip": (metaclip_words, _entry_words),
}
