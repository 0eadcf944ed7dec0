"""Tiles of a matrix product, looked at while they lie in the cache, and the few values of them that may count.

Compiled code reads each tile once, against what each query's product must reach; all but a few values end there. Those
are noted in single precision, and the k greatest raise what the next must reach. What is left of a query's notes at the
end is computed again in double precision in a fixed order, rounded and put into the query's list.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.core.alphabet import compiled

# Similarities closer than this are equal, and ids decide.
DECIMALS = 5
SCALE = 10**DECIMALS
# Key of a place in a list that holds nothing.
EMPTY = -(2**31)
ROWS, COLUMNS = 512, 384  # a tile of 768 KB: what is looked at still lies in a level-2 cache of 1 MB
_GLANCE = 64
_ROOM = 64  # products of a query that are noted before they are settled
# Unit round-off of float32: d of it bound the error of a product of two vectors of length 1 in any order of sums.
_ROUND_OFF = 6.1e-8


class Kept(NamedTuple):
    """What counts so far for N queries.

    Attributes:
        least: int64 [N], the smallest key that still counts.
        key: int32 [N, k], falling; ``EMPTY`` where there are fewer.
        place: int64 [N, k], where those rows lie.
    """

    least: np.ndarray
    key: np.ndarray
    place: np.ndarray


class _Noted(NamedTuple):
    """What may count, of the rows that N queries have met since they were last settled.

    Attributes:
        floor: float32 [N], what a product must reach.
        top: float32 [N, k], the greatest products, falling.
        held: int64 [N], how many are noted.
        product: float32 [N, ``_ROOM``], the noted ones.
        row: int32 [N, ``_ROOM``], their rows, rising.
    """

    floor: np.ndarray
    top: np.ndarray
    held: np.ndarray
    product: np.ndarray
    row: np.ndarray


class Tiles:
    """Compares queries with rows, tile by tile, in memory that is used again."""

    def __init__(self) -> None:
        self._tile = np.empty(ROWS * COLUMNS, np.float32)
        self._product = np.empty((ROWS, _ROOM), np.float32)
        self._row = np.empty((ROWS, _ROOM), np.int32)

    def compare(self, queries: np.ndarray, base: np.ndarray, places: np.ndarray, kept: Kept) -> None:
        """Takes what counts into ``kept``, a view of N queries' lists.

        Args:
            queries: float32 [N, d], rows of length 1.
            base: float32 [M, d], likewise.
            places: int64 [M], rising: what the lists call the rows.
            kept: The queries' lists.
        """
        # A product of two matrices that both lie row by row spares turning the second for each tile.
        starts = range(0, len(base), COLUMNS)
        turned = [np.ascontiguousarray(base[j : j + COLUMNS].T) for j in starts]
        off = slack(queries.shape[1])
        for i in range(0, len(queries), ROWS):
            some = queries[i : i + ROWS]
            mine = Kept(*(array[i : i + ROWS] for array in kept))
            noted = _Noted(
                floor=((mine.least - 0.5) / SCALE - off).astype(np.float32),
                top=np.full(mine.key.shape, -np.inf, np.float32),
                held=np.zeros(len(some), np.int64),
                product=self._product[: len(some)],
                row=self._row[: len(some)],
            )
            for j, columns in zip(starts, turned, strict=True):
                tile = self._tile[: len(some) * columns.shape[1]].reshape(len(some), -1)
                np.matmul(some, columns, out=tile)
                _note(tile, j, some, base, places, off, noted, mine)
            _settle_all(some, base, places, noted, mine)


def slack(dimension: int) -> float:
    """What a float32 product of two rows of length 1 may be off by."""
    return (dimension + 4) * _ROUND_OFF


def dots(first: np.ndarray, second: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Inner products of some rows of two blocks, each in double precision and the same order.

    Args:
        first: float32 [N, d].
        second: float32 [M, d].
        rows: int64 [P], rows of the first.
        columns: int64 [P], rows of the second.

    Returns:
        float64 [P].
    """
    found = np.empty(len(rows))
    _dots(_plain(first), _plain(second), _plain(rows), _plain(columns), found)
    return found


def _plain(values: np.ndarray) -> np.ndarray:
    """The values row by row and read-only, as Arrow's buffers are, so that one compiled version serves all."""
    view = np.ascontiguousarray(values).view()
    view.flags.writeable = False
    return view


@compiled
def _dot(first: np.ndarray, second: np.ndarray, room: np.ndarray) -> float:
    """The inner product of two rows float32 [d]; ``room`` is float64 [d]."""
    # Products of two float32 are exact, and become vector instructions; the order of the sums is ours.
    for i in range(len(first)):
        room[i] = np.float64(first[i]) * np.float64(second[i])
    a, b, c, e = 0.0, 0.0, 0.0, 0.0
    whole = len(first) // 4 * 4
    for i in range(0, whole, 4):
        a += room[i]
        b += room[i + 1]
        c += room[i + 2]
        e += room[i + 3]
    for i in range(whole, len(first)):
        a += room[i]
    return (a + b) + (c + e)


@compiled
def _dots(
    first: np.ndarray, second: np.ndarray, rows: np.ndarray, columns: np.ndarray, found: np.ndarray
) -> None:
    room = np.empty(first.shape[1])
    for i in range(len(rows)):
        found[i] = _dot(first[rows[i]], second[columns[i]], room)


@compiled
def _hits(values: np.ndarray, floor: float) -> int:
    """How many of some values reach the floor."""
    # A count over a known number of values is what becomes vector instructions: eight times as fast as a maximum.
    hits = np.int32(0)
    for j in range(_GLANCE):
        hits += np.int32(1) if values[j] >= floor else np.int32(0)
    return int(hits)


@compiled
def _hit(values: np.ndarray, floor: float) -> int:
    """Where the only one is: a sum, for the same reason."""
    at = np.int32(0)
    for j in range(_GLANCE):
        at += np.int32(j) if values[j] >= floor else np.int32(0)
    return int(at)


@compiled
def _note(
    tile: np.ndarray,
    first: int,
    queries: np.ndarray,
    base: np.ndarray,
    places: np.ndarray,
    slack: float,
    noted: _Noted,
    kept: Kept,
) -> None:
    """Notes what may count of a tile: products [N, M] of the queries with ``base`` from row ``first`` on."""
    k, room = noted.top.shape[1], noted.product.shape[1]
    # Two similarities are each off by the slack, and their keys differ if they are more than a unit apart.
    below = 2 * slack + 1.1 / SCALE
    for i in range(tile.shape[0]):
        row, top, floor, n = tile[i], noted.top[i], noted.floor[i], noted.held[i]
        for start in range(0, len(row), _GLANCE):
            end = min(start + _GLANCE, len(row))
            begin = start
            if end - start == _GLANCE:
                hits = _hits(row[start:end], floor)
                if hits == 0:
                    continue
                if hits == 1:
                    begin = start + _hit(row[start:end], floor)
                    end = begin + 1
            for j in range(begin, end):
                product = row[j]
                if product < floor:
                    continue
                noted.product[i, n], noted.row[i, n] = product, first + j
                n += 1
                if product > top[k - 1]:
                    m = k - 1
                    while m > 0 and top[m - 1] < product:
                        top[m] = top[m - 1]
                        m -= 1
                    top[m] = product
                    floor = max(floor, np.float32(top[k - 1] - below))
                if n == room:
                    _settle(i, n, floor, queries[i], base, places, noted, kept)
                    floor = max(floor, np.float32((kept.least[i] - 0.5) / SCALE - slack))
                    n = 0
        noted.floor[i], noted.held[i] = floor, n


@compiled
def _settle(
    i: int,
    count: int,
    floor: float,
    query: np.ndarray,
    base: np.ndarray,
    places: np.ndarray,
    noted: _Noted,
    kept: Kept,
) -> None:
    """Puts what counts of query ``i``'s notes into its list."""
    key, place, k = kept.key[i], kept.place[i], kept.key.shape[1]
    room = np.empty(len(query))
    for n in range(count):
        if noted.product[i, n] < floor:
            continue
        row = noted.row[i, n]
        found = np.int64(np.rint(_dot(query, base[row], room) * SCALE))
        if found < kept.least[i]:
            continue
        # Rows come in the order of ids: among equals the first stays first.
        at = k - 1
        while at > 0 and key[at - 1] < found:
            key[at], place[at] = key[at - 1], place[at - 1]
            at -= 1
        key[at], place[at] = found, places[row]
        if key[k - 1] != EMPTY:
            kept.least[i] = max(kept.least[i], key[k - 1] + 1)


@compiled
def _settle_all(queries: np.ndarray, base: np.ndarray, places: np.ndarray, noted: _Noted, kept: Kept) -> None:
    for i in range(len(queries)):
        if noted.held[i]:
            _settle(i, noted.held[i], noted.floor[i], queries[i], base, places, noted, kept)
