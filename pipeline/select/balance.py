"""Balancing: at most ``cap`` pairs per query (the paper's 2.2), or MetaCLIP's sampling.

Input of both is a sparse matrix of pairs and the queries they contain (``indptr``, ``query_ids``), and a rank:
the order of the pairs by a keyed hash of (seed, ``pair_id``). Neither depends on the order of the input.

``cap``: every kept pair counts for exactly one of its queries, and no query counts more than ``cap`` pairs. Pairs
propose to their queries from the rarest on; a query keeps the first ``cap`` proposers by rank and refuses the
others, who propose to their next query, until nobody is left who can. (This is deferred acceptance, Gale and
Shapley 1962. Since all queries rank alike it has one stable outcome: the same as letting the pairs choose one
after another by rank, each the rarest of its queries that is not full. That is how it is done, by :class:`Room`: what
it must know is how much room each query has left, so pairs may stream past.) Hence a pair is lost only if all its
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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

try:
    from pipeline.core.alphabet import compiled
except ImportError:  # no numba for this machine: the same, slowly

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is."""
        return function


BLOCK: Final = 2**22
"""Queries of pairs that are counted at a time: numpy makes wider numbers of them first."""
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
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
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def rank_of(pair_hashes: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """int64[n]: each pair's place in the order of their hashes; ``ties`` (uint64[n]) decides between equal ones."""
    rank = np.empty(len(pair_hashes), dtype=np.int64)
    rank[np.lexsort((ties, pair_hashes))] = np.arange(len(pair_hashes))
    return rank


def rarity(matched: np.ndarray) -> np.ndarray:
    """int32[q]: each query's place in the order from the rarest on (equally rare: by id)."""
    place = np.empty(len(matched), dtype=np.int32)
    place[np.argsort(matched, kind="stable")] = np.arange(len(matched), dtype=np.int32)
    return place


@compiled
def _choose(
    order: np.ndarray, indptr: np.ndarray, query_ids: np.ndarray,
    place: np.ndarray, room: np.ndarray, capped: np.ndarray, outcome: np.ndarray,
) -> None:  # fmt: skip
    """Each pair in turn takes the rarest of its queries that is not full; a full one's place is ``-1 - place``."""
    for pair in order:
        best, query, refused = len(place), -1, False
        for k in range(indptr[pair], indptr[pair + 1]):
            here = place[query_ids[k]]
            if here < 0:
                refused = True
            elif here < best:
                best, query = here, query_ids[k]
        if refused:
            for k in range(indptr[pair], indptr[pair + 1]):
                here = place[query_ids[k]]
                if here < 0 and -1 - here < best:
                    capped[query_ids[k]] = True
        outcome[pair] = query
        if query >= 0:
            room[query] -= 1
            if room[query] == 0:
                place[query] = -1 - place[query]


class Room:
    """What is left of the queries' cap, while pairs choose in the order of rank: the whole state of the balance.

    Args:
        matched: int64[q], pairs that contain each query, of all that will be asked.
        cap: Most pairs per query, at least 1.

    Attributes:
        capped: bool[q], queries that turned a pair away so far.
    """

    def __init__(self, matched: np.ndarray, cap: int) -> None:
        self._place = rarity(matched)
        self._cap, self._room = cap, np.full(len(matched), cap, dtype=np.int64)
        self.capped = np.zeros(len(matched), dtype=np.bool_)

    @property
    def selected(self) -> np.ndarray:
        """int64[q]: pairs that count for each query so far."""
        return self._cap - self._room

    def choose(
        self, indptr: np.ndarray, query_ids: np.ndarray, order: np.ndarray | None = None
    ) -> np.ndarray:
        """int32[n]: the query that each of the next pairs counts for, or -1.

        Args:
            indptr: int64[n + 1]; pair i contains ``query_ids[indptr[i]:indptr[i + 1]]``, in any order.
            query_ids: int32[m].
            order: int64[n], who chooses first; as they stand unless given.
        """
        outcome = np.empty(len(indptr) - 1, dtype=np.int32)
        order = np.arange(len(outcome)) if order is None else order
        given = [_read_only(order), _read_only(indptr), _read_only(query_ids)]
        _choose(*given, self._place, self._room, self.capped, outcome)
        return outcome


@compiled
def _draw(
    indptr: np.ndarray, query_ids: np.ndarray, pair_hashes: np.ndarray,
    place: np.ndarray, matched: np.ndarray, cap: int, outcome: np.ndarray,
) -> None:  # fmt: skip
    """Each pair takes the rarest of its queries whose draw succeeds; numbers as :func:`draw` has them."""
    for pair in range(len(outcome)):
        best, query = len(place), -1
        for k in range(indptr[pair], indptr[pair + 1]):
            here = place[query_ids[k]]
            if here < best:
                mixed = pair_hashes[pair] + (np.uint64(query_ids[k]) + np.uint64(1)) * _GOLDEN
                mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
                mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
                mixed ^= mixed >> np.uint64(31)
                if np.float64(mixed >> np.uint64(11)) * 2.0**-53 * matched[query_ids[k]] < cap:
                    best, query = here, query_ids[k]
        outcome[pair] = query


class Draws:
    """MetaCLIP's sampling: each query draws each of its pairs or not, whatever becomes of the others.

    Args:
        matched: int64[q], pairs that contain each query.
        cap: MetaCLIP's t.

    Attributes:
        capped: bool[q], queries that cannot draw all their pairs.
        selected: int64[q], pairs that count for each query so far.
    """

    def __init__(self, matched: np.ndarray, cap: int) -> None:
        self._place, self._matched, self._cap = rarity(matched), matched, cap
        self.capped = matched > cap
        self.selected = np.zeros(len(matched), dtype=np.int64)

    def choose(self, indptr: np.ndarray, query_ids: np.ndarray, pair_hashes: np.ndarray) -> np.ndarray:
        """int32[n]: the query that each of the next pairs counts for, the rarest whose draw succeeded, or -1.

        Args:
            indptr: int64[n + 1]; pair i contains ``query_ids[indptr[i]:indptr[i + 1]]``, in any order.
            query_ids: int32[m].
            pair_hashes: uint64[n], of :func:`pair_hash`.
        """
        outcome = np.empty(len(pair_hashes), dtype=np.int32)
        given = [_read_only(values) for values in (indptr, query_ids, pair_hashes)]
        with np.errstate(over="ignore"):  # where nothing is compiled
            _draw(*given, self._place, self._matched, self._cap, outcome)
        self.selected += np.bincount(outcome[outcome >= 0], minlength=len(self.selected))
        return outcome


def _read_only(values: np.ndarray) -> np.ndarray:
    # As Arrow's buffers are: one compiled version serves all.
    view = values.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True)
class Wishes:
    """Which queries each pair may count for, and how rare they are: all that no cap can change.

    Attributes:
        indptr: int64[n + 1]; pair i contains ``query_ids[indptr[i]:indptr[i + 1]]``, in any order.
        query_ids: int32[m].
        matched: int64[q], pairs that contain each query.
    """

    indptr: np.ndarray
    query_ids: np.ndarray
    matched: np.ndarray


def counted(indptr: np.ndarray, query_ids: np.ndarray, *, queries: int) -> Wishes:
    """Wishes of pairs that are all there are.

    Args:
        indptr: int64[n + 1]; pair i contains ``query_ids[indptr[i]:indptr[i + 1]]``, without repeats.
        query_ids: int32[m].
        queries: Number of queries q; ids lie in [0, q).
    """
    return Wishes(indptr, query_ids, count_queries(query_ids, queries))


def count_queries(query_ids: np.ndarray, queries: int) -> np.ndarray:
    """int64[q]: how often each query occurs."""
    counts = np.zeros(queries, dtype=np.int64)
    for begin in range(0, len(query_ids), BLOCK):
        counts += np.bincount(query_ids[begin : begin + BLOCK], minlength=queries)
    return counts


def balance_cap(
    indptr: np.ndarray, query_ids: np.ndarray, rank: np.ndarray, *, queries: int, cap: int
) -> Balanced:
    """Choice by rank; see the module's text.

    Args:
        indptr: int64[n + 1]; pair i contains ``query_ids[indptr[i]:indptr[i + 1]]``, without repeats.
        query_ids: int32[m].
        rank: int64[n], a permutation: lower is kept first.
        queries: Number of queries q; ids lie in [0, q).
        cap: Most pairs per query.
    """
    return choose_cap(counted(indptr, query_ids, queries=queries), rank, cap=cap)


def choose_cap(asked_for: Wishes, rank: np.ndarray, *, cap: int) -> Balanced:
    """:func:`balance_cap` of pairs whose wishes are known; the larger the cap, the more pairs, and none is lost.

    Args:
        asked_for: The pairs and their queries.
        rank: int64[n], a permutation: lower is kept first.
        cap: Most pairs per query.
    """
    room = Room(asked_for.matched, cap)
    outcome = room.choose(asked_for.indptr, asked_for.query_ids, np.argsort(rank, kind="stable"))
    return Balanced(outcome, asked_for.matched, room.selected, room.capped)


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
    return choose_sample(counted(indptr, query_ids, queries=queries), pair_hashes, cap=cap)


def choose_sample(asked_for: Wishes, pair_hashes: np.ndarray, *, cap: int) -> Balanced:
    """:func:`balance_sample` of pairs whose wishes are known.

    Args:
        asked_for: The pairs and their queries.
        pair_hashes: uint64[n], of :func:`pair_hash`.
        cap: MetaCLIP's t.
    """
    draws = Draws(asked_for.matched, cap)
    outcome = draws.choose(asked_for.indptr, asked_for.query_ids, pair_hashes)
    return Balanced(outcome, asked_for.matched, draws.selected, draws.capped)
