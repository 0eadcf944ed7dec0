"""Balancing: at most ``cap`` pairs per query (the paper's 2.2), or MetaCLIP's sampling.

Input of both is a sparse matrix of pairs and the queries they contain (``indptr``, ``query_ids``), and a rank:
the order of the pairs by a keyed hash of (seed, ``pair_id``). Neither depends on the order of the input.

``cap``: every kept pair counts for exactly one of its queries, and no query counts more than ``cap`` pairs. Pairs
propose to their queries from the rarest on; a query keeps the first ``cap`` proposers by rank and refuses the
others, who propose to their next query, until nobody is left who can. (This is deferred acceptance, Gale and
Shapley 1962. Since all queries rank alike it has one stable outcome: the same as letting the pairs choose one
after another by rank, each the rarest of its queries that is not full.) Hence a pair is lost only if all its
queries are full, with pairs of lower rank, and a larger cap only adds pairs: with more room nobody does worse. A pair
that is lost leaves no trace in the others, so the pairs kept under one cap and the full counts decide every smaller
cap. The paper's sentence, "including up to 20,000 (image, text) pairs per query", read strictly.

``sample``: a pair is kept if for any of its queries u(pair, query) < cap / matched(query), where u is uniform by
keyed hash. So P = 1 - Π(1 - min(1, cap / matched)), as in MetaCLIP, the expected number of *draws* per query is at
most ``cap`` while the number of kept pairs that contain a query may be far larger, and a larger cap only adds
pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

BLOCK: Final = 2**22
"""Queries of pairs that are worked on at a time: all else would need many times the memory of the pairs themselves."""
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_32: Final = np.uint64(32)
_LOW: Final = np.uint64(2**32 - 1)
NOT_KEPT: Final = -1


@dataclass(frozen=True, slots=True)
class Balanced:
    """The outcome.

    Attributes:
        query_id: int32[n], the query each pair counts for, or -1 for a pair that is not kept.
        matched: int64[q], pairs that contain each query.
        selected: int64[q], pairs that count for each query.
        capped: bool[q], queries that turned a pair away.
    """

    query_id: np.ndarray
    matched: np.ndarray
    selected: np.ndarray
    capped: np.ndarray


def pair_hash(pair_ids: Iterable[str], seed: int) -> np.ndarray:
    """uint64[n]: BLAKE2b of each ``pair_id``, keyed by the seed; equal on every machine."""
    key = seed.to_bytes(8, "little")
    digests = b"".join(
        hashlib.blake2b(p.encode(errors="replace"), digest_size=8, key=key).digest() for p in pair_ids
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def draw(pair_hashes: np.ndarray, query_ids: np.ndarray) -> np.ndarray:
    """float64[m] in [0, 1): one uniform number per (pair, query), by SplitMix64 of the pair's keyed hash."""
    with np.errstate(over="ignore"):
        mixed = pair_hashes + (query_ids.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def rank_of(pair_hashes: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """int64[n]: each pair's place in the order of their hashes; ``ties`` (uint64[n]) decides between equal ones."""
    rank = np.empty(len(pair_hashes), dtype=np.int64)
    rank[np.lexsort((ties, pair_hashes))] = np.arange(len(pair_hashes))
    return rank


@dataclass(frozen=True, slots=True)
class Wishes:
    """Which queries each pair may count for, in the order in which it asks them: all that no cap can change.

    Attributes:
        indptr: int64[n + 1]; pair i asks ``query_ids[indptr[i]:indptr[i + 1]]``.
        query_ids: int32[m], of each pair from the rarest on (equally rare: by id).
        matched: int64[q], pairs that contain each query.
    """

    indptr: np.ndarray
    query_ids: np.ndarray
    matched: np.ndarray


def rarest_first(
    indptr: np.ndarray, query_ids: np.ndarray, *, queries: int, matched: np.ndarray | None = None
) -> Wishes:
    """The pairs' queries in the order in which they are asked.

    Args:
        indptr: int64[n + 1]; pair i contains ``query_ids[indptr[i]:indptr[i + 1]]``, without repeats.
        query_ids: int32[m].
        queries: Number of queries q; ids lie in [0, q).
        matched: int64[q], where these pairs are only some of those that were counted.
    """
    if matched is None:
        matched = _counts(query_ids, queries)
    by_rarity = np.lexsort((np.arange(len(matched)), matched)).astype(np.int32)
    place = np.empty(len(matched), dtype=np.uint64)
    place[by_rarity] = np.arange(len(matched), dtype=np.uint64)
    wishes = np.empty(len(query_ids), dtype=np.int32)
    for first, end in _blocks(indptr):
        here = slice(indptr[first], indptr[end])
        # One number for the pair and the rarity of its query, so that values are sorted and not places.
        keys = (_owners(indptr, first, end).astype(np.uint64) << _32) | place[query_ids[here]]
        keys.sort()
        wishes[here] = by_rarity[keys & _LOW]
    return Wishes(indptr, wishes, matched)


def _counts(query_ids: np.ndarray, queries: int) -> np.ndarray:
    """int64[q]: how often each query occurs."""
    counts = np.zeros(queries, dtype=np.int64)
    for begin in range(0, len(query_ids), BLOCK):
        counts += np.bincount(query_ids[begin : begin + BLOCK], minlength=queries)
    return counts


def _blocks(indptr: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches of pairs with about :data:`BLOCK` queries together, at least one pair each."""
    first, rows = 0, len(indptr) - 1
    while first < rows:
        end = int(np.searchsorted(indptr, indptr[first] + BLOCK, side="right")) - 1
        end = min(rows, max(end, first + 1))
        yield first, end
        first = end


def _owners(indptr: np.ndarray, first: int, end: int) -> np.ndarray:
    """Which pair, from ``first`` on, each entry of a stretch belongs to."""
    return np.repeat(np.arange(end - first), np.diff(indptr[first : end + 1]))


def balance_cap(
    indptr: np.ndarray, query_ids: np.ndarray, rank: np.ndarray, *, queries: int, cap: int
) -> Balanced:
    """Deferred acceptance; see the module's text.

    Args:
        indptr: int64[n + 1]; pair i contains ``query_ids[indptr[i]:indptr[i + 1]]``, without repeats.
        query_ids: int32[m].
        rank: int64[n], a permutation: lower is kept first.
        queries: Number of queries q; ids lie in [0, q).
        cap: Most pairs per query.
    """
    return choose_cap(rarest_first(indptr, query_ids, queries=queries), rank, cap=cap)


def choose_cap(asked_for: Wishes, rank: np.ndarray, *, cap: int) -> Balanced:
    """:func:`balance_cap` of pairs whose wishes are known; the larger the cap, the more pairs, and none is lost.

    Args:
        asked_for: Of :func:`rarest_first`.
        rank: int64[n], a permutation: lower is kept first.
        cap: Most pairs per query.
    """
    indptr, wishes, matched = asked_for.indptr, asked_for.query_ids, asked_for.matched
    queries = len(matched)
    by_rank = np.argsort(rank, kind="stable")
    at, end = indptr[:-1][by_rank].copy(), indptr[1:][by_rank]
    # Everything below is in the order of rank, so that a stable sort by query leaves proposers in rank order.
    choice = np.full(len(at), NOT_KEPT, dtype=np.int32)
    able = at < end
    choice[able] = wishes[at[able]]
    held = np.bincount(choice[able], minlength=queries)
    capped = np.zeros(queries, dtype=bool)
    while (over := held > cap).any():
        proposers = np.flatnonzero((choice >= 0) & over[choice])
        proposers = proposers[np.argsort(choice[proposers], kind="stable")]
        asked = choice[proposers]
        starts = np.flatnonzero(np.r_[True, asked[1:] != asked[:-1]])
        place = np.arange(len(asked)) - np.repeat(starts, np.diff(np.r_[starts, len(asked)]))
        refused = proposers[place >= cap]
        capped |= over
        held[over] = cap
        at[refused] += 1
        more = at[refused] < end[refused]
        choice[refused[~more]] = NOT_KEPT
        moved = refused[more]
        choice[moved] = wishes[at[moved]]
        held += np.bincount(choice[moved], minlength=queries)
    outcome = np.full(len(rank), NOT_KEPT, dtype=np.int32)
    outcome[by_rank] = choice
    return _balanced(outcome, matched, capped)


def balance_sample(
    indptr: np.ndarray, query_ids: np.ndarray, pair_hashes: np.ndarray, *, queries: int, cap: int
) -> Balanced:
    """MetaCLIP's sampling by keyed hash; a kept pair counts for the rarest query whose draw succeeded.

    Args:
        indptr: As in :func:`balance_cap`.
        query_ids: int32[m].
        pair_hashes: uint64[n], of :func:`pair_hash`.
        queries: Number of queries.
        cap: MetaCLIP's t.
    """
    return choose_sample(rarest_first(indptr, query_ids, queries=queries), pair_hashes, cap=cap)


def choose_sample(asked_for: Wishes, pair_hashes: np.ndarray, *, cap: int) -> Balanced:
    """:func:`balance_sample` of pairs whose wishes are known.

    Args:
        asked_for: Of :func:`rarest_first`.
        pair_hashes: uint64[n], of :func:`pair_hash`.
        cap: MetaCLIP's t.
    """
    indptr, matched = asked_for.indptr, asked_for.matched
    outcome = np.full(len(pair_hashes), NOT_KEPT, dtype=np.int32)
    for first, end in _blocks(indptr):
        wishes = asked_for.query_ids[indptr[first] : indptr[end]]
        owner = first + _owners(indptr, first, end)
        won = np.flatnonzero(draw(pair_hashes[owner], wishes) * matched[wishes] < cap)[::-1]
        # The rarest comes first, so it is written last.
        outcome[owner[won]] = wishes[won]
    return _balanced(outcome, matched, matched > cap)


def _balanced(outcome: np.ndarray, matched: np.ndarray, capped: np.ndarray) -> Balanced:
    kept = outcome[outcome >= 0]
    selected = np.bincount(kept, minlength=len(matched)).astype(np.int64)
    return Balanced(outcome, matched, selected, capped)
