"""What joins near-duplicates: links between pictures, made block by block and merged into connected components."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np

from dedup import nearest

# Rows compared with as many others at once: bounds the pairs held, however many are near.
_TILE = 2048
_NONE = -2.0
# A place in the training set: file and row number in it.
_ROW = 40


def place_of(number: int, row: np.ndarray | int) -> Any:
    """The place of a row of a file, rising with both; of int64 [N] rows, their places."""
    return (number << _ROW) + row


@dataclass(frozen=True, kw_only=True)
class Links:
    """Pictures that belong together.

    Attributes:
        row: int64 [N], rows of the training set, each once.
        to: int64 [N], a row of the same group, at most ``row``; following it leads to the group's smallest row.
        similarity: float32 [N], to the most similar other row seen so far.
    """

    row: np.ndarray
    to: np.ndarray
    similarity: np.ndarray

    @classmethod
    def none(cls) -> Links:
        """No links."""
        return cls(row=np.zeros(0, np.int64), to=np.zeros(0, np.int64), similarity=np.zeros(0, np.float32))

    def at(self, places: np.ndarray) -> Links:
        """The same links of rows that lie at some places of the training set."""
        return Links(row=places[self.row], to=places[self.to], similarity=self.similarity)


def link(first: np.ndarray, second: np.ndarray | None, threshold: float) -> Links:
    """A spanning forest over the pairs of two blocks that are similar enough.

    Args:
        first: float32 [N, d].
        second: float32 [M, d], or ``None`` to compare the first block with itself.
        threshold: Least similarity of a pair.

    Returns:
        Links of rows of the first block, and from N onwards of the second.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, columns, likeness = nearest.near(first, second, threshold)
    if not len(rows):
        return Links.none()
    if second is not None:
        columns += len(first)
    size = len(first) + (0 if second is None else len(second))
    ends = (rows.astype(np.int32), columns.astype(np.int32))
    graph = coo_matrix((np.ones(len(rows), np.int8), ends), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    best = np.full(size, _NONE, np.float32)
    np.maximum.at(best, rows, likeness)
    np.maximum.at(best, columns, likeness)
    linked = np.flatnonzero(best > _NONE)
    smallest = np.full(component.max() + 1, size)
    np.minimum.at(smallest, component[linked], linked)
    return Links(row=linked, to=smallest[component[linked]], similarity=best[linked])


def link_equals(values: np.ndarray, threshold: float) -> tuple[np.ndarray, Links]:
    """The first row of each distinct vector, and the links of all other rows to them.

    Args:
        values: float32 [N, d].
        threshold: Least similarity of a pair.
    """
    group = nearest.equal_rows(values)
    _, first = np.unique(group, return_index=True)
    rows = np.flatnonzero(np.bincount(group)[group] > 1)
    own = nearest.lengths(values[rows])
    rows, own = rows[own >= np.float32(threshold)], own[own >= np.float32(threshold)]
    return first, Links(row=rows, to=first[group[rows]], similarity=own)


def links_within(values: np.ndarray, places: np.ndarray, threshold: float) -> Iterator[Links]:
    """Links of all pairs of some rows, tile by tile.

    Args:
        values: float32 [N, d].
        places: int64 [N], rising: where the rows lie in the training set.
        threshold: Least similarity of a pair.
    """
    for i in range(0, len(values), _TILE):
        tile, at = values[i : i + _TILE], places[i : i + _TILE]
        yield link(tile, None, threshold).at(at)
        yield from links_between(tile, at, values[i + _TILE :], places[i + _TILE :], threshold)


def links_between(
    first: np.ndarray, at: np.ndarray, second: np.ndarray, where: np.ndarray, threshold: float
) -> Iterator[Links]:
    """Links of each row of one block with each of another, tile by tile.

    Args:
        first: float32 [N, d].
        at: int64 [N], where these lie in the training set.
        second: float32 [M, d].
        where: int64 [M], where those lie.
        threshold: Least similarity of a pair.
    """
    for i in range(0, len(first), _TILE):
        for j in range(0, len(second), _TILE):
            both = np.concatenate([at[i : i + _TILE], where[j : j + _TILE]])
            yield link(first[i : i + _TILE], second[j : j + _TILE], threshold).at(both)


def gathered(parts: Iterable[Links], rows: int) -> Links:
    """Merges links as they come; what is held stays in proportion to the ``rows`` of a block."""
    held, found = [Links.none()], 0
    for links in parts:
        held.append(links)
        found += len(links.row)
        if found > 8 * rows:
            held, found = [joined(held)], 0
    return joined(held)


def joined(parts: Sequence[Links]) -> Links:
    """Merges links: each row once, pointing at the smallest row of its group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, to = (np.concatenate([getattr(p, n) for p in parts]) for n in ("row", "to"))
    similarity = np.concatenate([p.similarity for p in parts])
    names, at = np.unique(np.concatenate([rows, to]), return_inverse=True)
    count = len(rows)
    if not count:
        return Links(row=rows.astype(np.int64), to=to.astype(np.int64), similarity=similarity)
    graph = coo_matrix((np.ones(count, np.int8), (at[:count], at[count:])), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    best = np.full(len(names), _NONE, np.float32)
    np.maximum.at(best, at[:count], similarity)
    # Names rise, so a component's first name is its smallest.
    _, first = np.unique(component, return_index=True)
    return Links(row=names, to=names[first][component], similarity=best)


class MergeLinks(beam.CombineFn):
    """Merges links of several blocks; associative and commutative."""

    def __init__(self) -> None:
        """Nothing to set."""

    def create_accumulator(self, *_: Any, **__: Any) -> list[Links]:
        """Nothing seen yet."""
        return []

    def add_input(self, mutable_accumulator: list[Links], element: Links, *_: Any, **__: Any) -> list[Links]:
        """Takes one block's links in."""
        return [joined([*mutable_accumulator, element])]

    def merge_accumulators(self, accumulators: Iterable[list[Links]], *_: Any, **__: Any) -> list[Links]:
        """Merges what several workers saw."""
        parts = [part for accumulator in accumulators for part in accumulator]
        return [joined(parts)] if parts else []

    def extract_output(self, accumulator: list[Links], *_: Any, **__: Any) -> Links | None:
        """The groups over all blocks; ``None`` if there was no block."""
        return accumulator[0] if accumulator else None
