"""Every query that a text contains, as whole words, overlapping.

The paper (2.2) searches for pairs "whose text includes one of a set of queries". Both ways of comparing cut text
and query into words by the same rule; a query is contained where its words follow one another. So one trie of
words serves both, and only the cutting differs:

* ``clean``: the words of :mod:`pipeline.core.tokens`: case-folded, punctuation apart.
* ``metaclip``: MetaCLIP's published rule. Text gets a space at both ends and round each of ``, . ; : ? ! ```, tabs
  and line ends become spaces, and an entry matches where ``" entry "`` is a substring. Cutting at every single
  space (empty words kept) makes that the same as consecutive words. Case counts, and an entry that holds one of
  those signs can never match.

The work is done by :mod:`pipeline.select.search`, compiled; where numba cannot be imported,
:mod:`pipeline.select.plain` does the same more slowly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.select.plain import PlainMatcher
from pipeline.select.plain import metaclip_words as metaclip_words

try:
    from pipeline.select import search, table

    COMPILED = True
except ImportError:  # no numba for this machine
    COMPILED = False

MODES = ("clean", "metaclip")


@dataclass(frozen=True, slots=True)
class Matches:
    """Which texts contain which queries, ascending by text and then by query; each pair once.

    Attributes:
        rows: int64[m], index of the text in the batch.
        query_ids: int32[m].
    """

    rows: np.ndarray
    query_ids: np.ndarray


class Matcher:
    """Finds queries in batches of texts.

    Args:
        queries: ``(query_id, query)``, or a table with these columns.
        mode: ``clean`` or ``metaclip``.
        stored: A file that :meth:`store` wrote; it is used if it was made of just these queries in this mode.

    Raises:
        ValueError: An unknown mode, or an id below 0 or above 2³¹ - 2.
    """

    def __init__(
        self, queries: Iterable[tuple[int, str]] | pa.Table, mode: str = "clean", *, stored: str | None = None
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} must be one of {', '.join(MODES)}")
        self._mode = mode
        ids, listed = _columns(queries)
        self._plain: PlainMatcher | None = None
        if not COMPILED:
            self._plain = PlainMatcher(zip(ids.tolist(), _strings(listed), strict=True), mode)
            return
        self._identity = table.identity(ids, listed, mode)
        found = table.read(stored, self._identity) if stored is not None else None
        self._table = table.build(ids, listed, spaced=mode == "metaclip") if found is None else found

    def store(self, path: str) -> None:
        """Writes what was built from the queries, for other processes to map; nothing where nothing is compiled."""
        if self._plain is None:
            table.write(path, self._table, self._identity)

    def match(self, texts: Sequence[str] | pa.Array | pa.ChunkedArray) -> Matches:
        """All matches in a batch of texts; a null contains nothing, not even the empty query.

        Raises:
            pyarrow.ArrowInvalid: An Arrow array whose strings are not UTF-8.
        """
        held = _bytes(texts)
        missing = held.is_null().to_numpy(zero_copy_only=False) if held.null_count else None
        if missing is not None:
            held = held.fill_null(b"")
        if self._plain is not None:
            counts, ids = self._plain.match(_strings(held))
        else:
            counts, ids = search.find(self._table, held, spaced=self._mode == "metaclip")
        rows = np.repeat(np.arange(len(held)), counts)
        if missing is None:
            return Matches(rows, ids)
        there = ~missing[rows]
        return Matches(rows[there], ids[there])


def _columns(queries: Iterable[tuple[int, str]] | pa.Table) -> tuple[np.ndarray, pa.Array]:
    """int32[n] and ``large_binary``."""
    if isinstance(queries, pa.Table):
        numbers, texts = queries["query_id"].to_numpy(), queries["query"]
    else:
        pairs = list(queries)
        numbers, texts = np.array([number for number, _ in pairs], np.int64), [text for _, text in pairs]
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= 2**31 - 1):
        raise ValueError("query_id must lie between 0 and 2**31 - 2")
    return numbers.astype(np.int32), _bytes(texts)


def _bytes(texts: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
    """Texts as ``large_binary`` of UTF-8; lone surrogates, which only Python's strings hold, as three bytes."""
    if not isinstance(texts, pa.Array | pa.ChunkedArray):
        try:
            return pa.array(texts, pa.large_string()).cast(pa.large_binary())
        except UnicodeEncodeError:
            return pa.array([t.encode(errors="surrogatepass") for t in texts], pa.large_binary())
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    texts = texts.cast(pa.large_string())
    texts.validate(full=True)  # compiled code reads what the first byte of a character promises
    return texts.cast(pa.large_binary())


def _strings(texts: pa.Array) -> list[str]:
    return [text.decode(errors="surrogatepass") for text in texts.to_pylist()]
