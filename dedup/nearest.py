"""The k nearest rows of blocks that stream past, exactly: a matrix product, and a look at those values that may count.

A block's product is made and looked at tile by tile (:mod:`dedup.tiles`). What may count is computed again in double
precision in a fixed order, rounded to :data:`dedup.tiles.DECIMALS` and put into the list, ties by id. So the result
is a function of the vectors alone: neither the cut into blocks nor the processor's way to multiply leaves a trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.tiles import EMPTY, SCALE, Kept, Tiles, dots, slack
from pipeline.core.alphabet import compiled


@dataclass(frozen=True, kw_only=True)
class Best:
    """The k nearest rows of some queries so far, best first.

    Attributes:
        key: int32 [N, k], similarity times ``SCALE``; ``EMPTY`` where there are fewer.
        ids: Objects [N, k], ids of the rows; ``None`` where there are fewer.
    """

    key: np.ndarray
    ids: np.ndarray

    @classmethod
    def nothing(cls, queries: int, k: int) -> Best:
        """Lists that hold nothing yet."""
        return cls(key=np.full((queries, k), EMPTY, np.int32), ids=np.full((queries, k), None, object))

    @property
    def similarity(self) -> np.ndarray:
        """float32 [N, k]."""
        return (self.key / SCALE).astype(np.float32)

    def slice(self, first: int, last: int) -> Best:
        """The lists of some queries; a view."""
        return Best(key=self.key[first:last], ids=self.ids[first:last])

    def update(self, rows: np.ndarray, other: Best) -> None:
        """Takes in what was found for some queries: ``rows`` int64 [M] are theirs, ``other`` is [M, k]."""
        made = merged(Best(key=self.key[rows], ids=self.ids[rows]), other)
        self.key[rows], self.ids[rows] = made.key, made.ids


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows that are compared at once, in the order of their ids.

    Attributes:
        values: float32 [M, d], rows of length 1.
        ids: Objects [M].
    """

    values: np.ndarray
    ids: np.ndarray


def block(values: np.ndarray, ids: Sequence[str], k: int) -> Block:
    """Sorts rows by id; of rows with the same vector only the first k can be among a query's k nearest.

    Args:
        values: float32 [M, d].
        ids: Ids of the M rows.
        k: Neighbours wanted.
    """
    order = pc.array_sort_indices(pa.array(ids, pa.string())).to_numpy()
    if len(values):
        _, group, times = np.unique(row_hashes(values), return_inverse=True, return_counts=True)
        if times.max() > k:
            group = equal_rows(values)
            place = np.empty(len(order), np.int64)
            place[order] = np.arange(len(order))
            by_group = np.lexsort((place, group))
            starts = np.flatnonzero(np.diff(group[by_group], prepend=-1))
            within = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
            kept = np.zeros(len(values), bool)
            kept[by_group[within < k]] = True
            order = order[kept[order]]
    return Block(values=np.ascontiguousarray(values[order]), ids=np.array(ids, dtype=object)[order])


class Finds:
    """What one block has for some queries, beside what their lists already admit.

    Args:
        best: The queries' lists so far.
    """

    def __init__(self, best: Best) -> None:
        self._kept = Kept(
            least=best.key[:, -1].astype(np.int64),
            key=np.full(best.key.shape, EMPTY, np.int32),
            place=np.zeros(best.key.shape, np.int64),
        )
        self._tiles = Tiles()

    def compare(self, queries: np.ndarray, base: np.ndarray, places: np.ndarray, first: int = 0) -> None:
        """Compares some of the queries with some of the block's rows.

        Args:
            queries: float32 [N, d], the queries from number ``first`` on.
            base: float32 [M, d].
            places: int64 [M], rising: the rows' places in the block.
            first: Number of the first of these queries.
        """
        mine = Kept(*(array[first : first + len(queries)] for array in self._kept))
        self._tiles.compare(queries, base, places, mine)

    def into(self, best: Best, ids: np.ndarray) -> None:
        """Merges them into the queries' lists; ``ids`` are the block's."""
        rows = np.flatnonzero(self._kept.key[:, 0] != EMPTY)
        if len(rows):
            key, found = self._kept.key[rows], ids[self._kept.place[rows]]
            found[key == EMPTY] = None
            best.update(rows, Best(key=key, ids=found))


def nearest(queries: np.ndarray, base: np.ndarray, ids: Sequence[str], k: int) -> Best:
    """Each query's k nearest rows by inner product, ties by id.

    Args:
        queries: float32 [N, d].
        base: float32 [M, d].
        ids: Ids of the M rows.
        k: Neighbours wanted.
    """
    best = Best.nothing(len(queries), k)
    compare(best, np.ascontiguousarray(queries), block(base, ids, k))
    return best


def compare(best: Best, queries: np.ndarray, rows: Block) -> None:
    """Takes a block into the lists of all queries: float32 [N, d]."""
    finds = Finds(best)
    finds.compare(queries, rows.values, np.arange(len(rows.values)))
    finds.into(best, rows.ids)


def merged(first: Best, second: Best) -> Best:
    """The k best of two lists for the same queries; associative and commutative."""
    key = np.empty_like(first.key)
    chosen = np.empty(key.shape, np.int64)
    tied = np.zeros(len(key), np.bool_)
    _merge(first.key, second.key, key, chosen, tied)
    ids = np.concatenate([first.ids, second.ids], axis=1)
    rows = np.flatnonzero(tied)
    if len(rows):
        keys = np.concatenate([first.key[rows], second.key[rows]], axis=1)
        encoded = pa.array(ids[rows].reshape(-1), pa.string()).dictionary_encode()
        rank = np.empty(len(encoded.dictionary), np.int64)
        rank[pc.array_sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
        number = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
        chosen[rows] = np.lexsort((rank[number].reshape(keys.shape), -keys.astype(np.int64)), axis=1)[
            :, : key.shape[1]
        ]
    return Best(key=key, ids=np.take_along_axis(ids, chosen, axis=1))


def equal_rows(values: np.ndarray) -> np.ndarray:
    """Numbers of groups of equal rows, by first appearance: float32 [N, d] -> int64 [N]."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    _, first, group = np.unique(row_hashes(values), return_index=True, return_inverse=True)
    # Two rows of one key that differ are no group: each of them stands alone.
    odd = np.flatnonzero((bits != bits[first[group]]).any(axis=1))
    group[odd] = len(first) + np.arange(len(odd))
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[group]


def near(first: np.ndarray, second: np.ndarray | None, threshold: float) -> tuple[np.ndarray, ...]:
    """The pairs of rows that are similar enough.

    Args:
        first: float32 [N, d], rows of length 1.
        second: float32 [M, d], likewise, or ``None`` for the pairs within the first, each once.
        threshold: Least similarity of a pair, once it is rounded.

    Returns:
        The pairs' rows, int64 [P] twice, and their similarities, float32 [P].
    """
    other = first if second is None else second
    least = _least_key(threshold)
    floor = np.float32((least - 0.5) / SCALE - slack(first.shape[1]))
    likeness = first @ other.T
    if second is None:
        likeness[np.tri(len(first), dtype=bool)] = EMPTY
    rows, columns = np.nonzero(likeness >= floor)
    key = np.rint(dots(first, other, rows, columns) * SCALE).astype(np.int64)
    chosen = key >= least
    return rows[chosen], columns[chosen], (key[chosen] / SCALE).astype(np.float32)


def lengths(values: np.ndarray) -> np.ndarray:
    """Each row's similarity to itself: float32 [N, d] -> float32 [N]."""
    rows = np.arange(len(values))
    return (np.rint(dots(values, values, rows, rows) * SCALE) / SCALE).astype(np.float32)


def _least_key(threshold: float) -> int:
    """The smallest key whose similarity, a float32, is at or above a threshold."""
    key = math.floor(threshold * SCALE) - 1
    while np.float32(key / SCALE) < np.float32(threshold):
        key += 1
    return key


def row_hashes(values: np.ndarray) -> np.ndarray:
    """A hash of each row's bits: float32 [N, d] -> uint64 [N]."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odds = np.random.default_rng(0).integers(1, 2**62, size=(values.shape[1],), dtype=np.uint64)
    return _hashes(bits, 2 * odds + 1)


@compiled
def _hashes(bits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    found = np.zeros(len(bits), np.uint64)
    for i in range(len(bits)):
        for j in range(bits.shape[1]):
            found[i] += np.uint64(bits[i, j]) * weights[j]  # wraps around, as a hash may
    return found


@compiled
def _merge(
    first: np.ndarray, second: np.ndarray, key: np.ndarray, chosen: np.ndarray, tied: np.ndarray
) -> None:
    """Merges falling keys [N, k] twice into [N, k], with their places in both lists; says where ids must decide."""
    k = first.shape[1]
    for row in range(len(first)):
        i, j = 0, 0
        for at in range(k):
            # i + j = at < k, so neither list is at its end.
            if first[row, i] == second[row, j] and first[row, i] != EMPTY:
                tied[row] = True
            if first[row, i] >= second[row, j]:
                key[row, at], chosen[row, at] = first[row, i], i
                i += 1
            else:
                key[row, at], chosen[row, at] = second[row, j], k + j
                j += 1
