"""The query doctor: entries that can never match, that are the same to the matcher, or that a reader would doubt.

Nothing here is guessed: each query is cleaned as a caption would be, and the matcher of ``wit select`` looks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.progress import tick
from pipeline.core.tokens import tokens
from pipeline.inspect.listed import QueryList
from pipeline.select.match import Matcher, metaclip_words
from pipeline.text.clean import clean
from pipeline.text.safety import offensive_term

_BATCH = 50_000


def examine(listed: QueryList, matching: str, *, top: int, masked: bool) -> dict[str, Any]:
    """All findings: how many queries, and examples.

    Args:
        listed: The list.
        matching: ``clean`` or ``metaclip``.
        top: Examples of each finding.
        masked: Whether offensive examples show first letters only.
    """
    found, equals = own_matches(listed.queries, matching)
    queries = listed.table["query"]
    # Nearly every query: an example would say nothing.
    cased = {"lower_case_only": _shown(queries, _cased(queries), 0)} if matching == "metaclip" else {}
    return {
        "never_match": _never(listed.queries, np.flatnonzero(~found), matching, top),
        "same_to_matching": {
            "count": len(np.unique(equals)),
            "examples": [[listed.queries[a], listed.queries[b]] for a, b in equals[:top]],
        },
        **cased,
        "offensive": _offensive(listed.queries, top, masked=masked),
        "disambiguated": _shown(queries, pc.match_substring_regex(queries, r"\([^()]+\)$"), top),
        "short": _shown(queries, pc.less_equal(pc.utf8_length(queries), 2), top),
        "numbers": _shown(
            queries, pc.match_substring_regex(queries, r"^[\p{Nd}\s.,]*\p{Nd}[\p{Nd}\s.,]*$"), top
        ),
    }


def own_matches(queries: Sequence[str], matching: str) -> tuple[np.ndarray, np.ndarray]:
    """Which queries are found in their own text, and which find one another.

    Args:
        queries: The list; a query's place is its id.
        matching: ``clean`` or ``metaclip``.

    Returns:
        bool[n]: found in its own text. int64[m, 2]: pairs a < b, each found in the other's text: no caption can tell
        them apart.
    """
    matcher = Matcher(enumerate(queries), matching)
    found = np.zeros(len(queries), bool)
    pairs: list[np.ndarray] = []
    for begin in range(0, len(queries), _BATCH):
        matches = matcher.match([clean(q) for q in queries[begin : begin + _BATCH]])
        rows, ids = matches.rows + begin, matches.query_ids.astype(np.int64)
        found[rows[rows == ids]] = True
        pairs.append(np.stack([rows, ids], axis=1)[rows != ids])
        tick(min(_BATCH, len(queries) - begin))
    return found, _mutual(np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64))


def _mutual(pairs: np.ndarray) -> np.ndarray:
    """int64[m, 2] -> the pairs a < b of which the reverse is there too, ascending."""
    rows, ids = pairs[:, 0], pairs[:, 1]
    up = rows < ids
    forward, backward = rows[up] << 32 | ids[up], ids[~up] << 32 | rows[~up]
    both = np.intersect1d(forward, backward)
    return np.stack([both >> 32, both & 0xFFFFFFFF], axis=1)


def why_never(query: str, matching: str) -> str:
    """Why a query is not found in its own text."""
    cleaned = clean(query)
    if cleaned != query:
        return f"in a caption it is cleaned to {cleaned!r}"
    if matching == "clean" or not query:
        return "it holds no word"
    signs = "".join(dict.fromkeys(c for c in query if c != " " and metaclip_words(c) != [c]))
    return f"it holds {signs}, round which MetaCLIP's rule puts spaces"


def _never(queries: Sequence[str], places: np.ndarray, matching: str, top: int) -> dict[str, Any]:
    examples = [{"query": queries[p], "why": why_never(queries[p], matching)} for p in places[:top]]
    return {"count": len(places), "examples": examples}


def _shown(queries: pa.ChunkedArray, which: pa.ChunkedArray, top: int) -> dict[str, Any]:
    """How many queries are chosen, and some of them from all over the list."""
    chosen = queries.filter(which)
    return {"count": len(chosen), "examples": _spread(chosen.to_pylist(), top)}


def _spread(found: Sequence[str], top: int) -> list[str]:
    return [found[i * len(found) // top] for i in range(top)] if len(found) > top else list(found)


def _cased(queries: pa.ChunkedArray) -> pa.ChunkedArray:
    """Queries with letters that captions may write as capitals, which MetaCLIP's rule tells apart."""
    return pc.not_equal(queries, pc.utf8_upper(queries))


def _offensive(queries: Sequence[str], top: int, *, masked: bool) -> dict[str, Any]:
    hits = [q for q in queries if offensive_term(q) is not None]
    examples = _spread(hits, top)
    return {"count": len(hits), "examples": [mask(q) for q in examples] if masked else examples}


def mask(query: str) -> str:
    """A query with all but the first letter of each word starred out."""
    return " ".join(word[0] + "*" * (len(word) - 1) for word in tokens(query)) or "*" * len(query)
