"""Inverted lists over the evaluation side: a training picture is compared with the nearest lists only.

As in FAISS's IVFFlat, k-means cuts the indexed side into lists, and a picture that streams past visits the ``probes``
lists whose centroids lie nearest, which is decided in double precision where single cannot. What it is compared with,
it is compared with exactly, by :mod:`dedup.nearest`. So a picture's neighbours do not depend on its block.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from dedup import tiles
from dedup.nearest import Best, Block, Finds


@dataclass(frozen=True, kw_only=True)
class Lists:
    """The evaluation side cut into lists.

    Attributes:
        centroids: float32 [L, d].
        order: int64 [N], rows of the evaluation side, list by list.
        starts: int64 [L + 1], where each list begins in ``order``.
    """

    centroids: np.ndarray
    order: np.ndarray
    starts: np.ndarray

    def to_bytes(self) -> bytes:
        """As an ``npz`` file."""
        buffer = io.BytesIO()
        np.savez(buffer, centroids=self.centroids, order=self.order, starts=self.starts)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Lists:
        """Reads what :meth:`to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            return cls(centroids=held["centroids"], order=held["order"], starts=held["starts"])


def centroids(values: np.ndarray, count: int) -> np.ndarray:
    """Centroids of length 1 by k-means: float32 [N, d] -> float32 [count, d]; equal input gives equal centroids."""
    return _trained(values, count)[0]


def _trained(values: np.ndarray, count: int) -> tuple[np.ndarray, Any]:
    import faiss

    faiss.omp_set_num_threads(1)  # sums of several threads have no fixed order
    means = faiss.Kmeans(
        values.shape[1], count, niter=10, seed=1, spherical=True, min_points_per_centroid=1, verbose=False
    )
    means.train(values)
    return np.array(means.centroids, np.float32).reshape(count, -1), means.index


def make(values: np.ndarray) -> Lists:
    """Cuts embeddings into 2 √N lists by k-means: float32 [N, d]; equal input gives equal lists."""
    count = max(1, min(len(values), round(2 * len(values) ** 0.5)))
    trained, index = _trained(values, count)
    _, nearest = index.search(values, 1)
    of = nearest[:, 0]
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(count + 1))
    return Lists(centroids=trained, order=order, starts=starts)


def compare(best: Best, queries: np.ndarray, block: Block, lists: Lists, probes: int) -> None:
    """Takes a block into the neighbours of those queries whose lists its rows visit.

    Args:
        best: Neighbours so far, in the order of ``queries``.
        queries: float32 [N, d], in the order of ``lists.order``.
        block: The rows that stream past.
        lists: The lists.
        probes: Lists that each row visits.
    """
    row, of = visited(block.values, lists.centroids, probes)
    by_list = np.argsort(of, kind="stable")  # rows stay in the order of their ids
    ends = np.searchsorted(of[by_list], np.arange(len(lists.centroids) + 1))
    finds = Finds(best)
    for number in np.flatnonzero((np.diff(ends) > 0) & (np.diff(lists.starts) > 0)):
        rows = row[by_list[ends[number] : ends[number + 1]]]
        first, last = lists.starts[number], lists.starts[number + 1]
        finds.compare(queries[first:last], block.values[rows], rows, int(first))
    finds.into(best, block.ids)


def visited(values: np.ndarray, centroids: np.ndarray, probes: int) -> tuple[np.ndarray, np.ndarray]:
    """The lists that each row visits, whichever rows are beside it: the nearest ones, ties by number.

    Args:
        values: float32 [N, d], rows of length 1.
        centroids: float32 [L, d], rows of length 1.
        probes: Lists that each row visits.

    Returns:
        Rows and lists, int64 [P] each, rows rising.
    """
    last = min(probes, len(centroids))
    nearness = values @ centroids.T
    cut = np.partition(nearness, len(centroids) - last, axis=1)[:, [len(centroids) - last]]
    # A product and the cut may each be off by the slack.
    off = np.float32(2 * tiles.slack(values.shape[1]))
    chosen, maybe = nearness > cut + off, nearness >= cut - off
    room = last - chosen.sum(axis=1)
    maybe &= ~chosen
    open_rows = maybe.sum(axis=1) > room
    chosen[~open_rows] |= maybe[~open_rows]
    maybe[~open_rows] = False
    row, of = np.nonzero(maybe)
    order = np.lexsort((of, -tiles.dots(values, centroids, row, of), row))
    row, of = row[order], of[order]
    taken = np.arange(len(row)) - np.searchsorted(row, row) < room[row]
    chosen[row[taken], of[taken]] = True
    found = np.nonzero(chosen)
    return found[0], found[1]
