"""Which matched rows are pairs: duplicates, repeated captions and balance, on packed arrays.

All that these need of a row is 48 bytes of hashes and places and the numbers of its queries: seven million rows with
seven queries each (what some ten million candidates leave) are 0.6 GB of arrays, and deciding them takes 1.8 GB at
most, because the balance works in blocks and sorts numbers, not places. So there is no filter before the exact
selection that would keep only rows with a good rank: a rank says nothing as long as a row's other queries have room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pipeline.core import tables
from pipeline.select.balance import NOT_KEPT, Balanced, balance_sample, choose_cap, rank_of, rarest_first
from pipeline.select.config import SelectConfig

DUPLICATE: Final = -2
REPEATED: Final = -3
FATES: Final = {NOT_KEPT: "over_cap", DUPLICATE: "duplicate", REPEATED: "caption_repeated"}


@dataclass(frozen=True, slots=True)
class Packed:
    """Matched rows as arrays: all that duplicates, captions and balance need to know.

    Attributes:
        key: uint64[n, 2], of URL and cleaned text.
        caption: uint64[n], of the cleaned text.
        pair: uint64[n], keyed hash of the pair.
        tie: uint64[n], hash of the whole candidate.
        indptr: int64[n + 1] into ``query_ids``.
        query_ids: int32[m].
    """

    key: np.ndarray
    caption: np.ndarray
    pair: np.ndarray
    tie: np.ndarray
    indptr: np.ndarray
    query_ids: np.ndarray


def pack(files: list[str]) -> Packed:
    """Reads the packed columns of the matched rows."""
    columns = ["key_high", "key_low", "caption_hash", "pair_hash", "tie", "query_ids"]
    rows = tables.count_rows(files)
    # Filled in place: columns that are joined in the end need twice the memory.
    held = Packed(
        key=np.empty((rows, 2), np.uint64),
        caption=np.empty(rows, np.uint64),
        pair=np.empty(rows, np.uint64),
        tie=np.empty(rows, np.uint64),
        indptr=np.zeros(rows + 1, np.int64),
        query_ids=np.zeros(0, np.int32),
    )
    targets = (held.key[:, 0], held.key[:, 1], held.caption, held.pair, held.tie)
    query_ids: list[np.ndarray] = []
    start = 0
    for batch in tables.read_batches(files, columns=columns):
        end = start + batch.num_rows
        for target, name in zip(targets, columns, strict=False):
            target[start:end] = batch.column(name).to_numpy()
        lists = batch.column("query_ids")
        lengths = np.diff(lists.offsets.to_numpy())
        held.indptr[start + 1 : end + 1] = held.indptr[start] + np.cumsum(lengths, dtype=np.int64)
        query_ids.append(lists.flatten().to_numpy().copy())
        start = end
    joined = np.concatenate(query_ids) if query_ids else held.query_ids
    return replace(held, query_ids=joined)


def place_in_group(groups: list[np.ndarray], order: list[np.ndarray]) -> np.ndarray:
    """int64[n]: how many rows of the same group come before each row.

    Args:
        groups: Arrays whose values together name a row's group.
        order: Arrays that order the rows of a group, the most important first.
    """
    sorting = np.lexsort((*order[::-1], *groups[::-1]))
    new = np.zeros(len(sorting), dtype=bool)
    new[:1] = True
    for values in groups:
        in_order = values[sorting]
        new[1:] |= in_order[1:] != in_order[:-1]
    starts = np.flatnonzero(new)
    place = np.empty(len(sorting), dtype=np.int64)
    place[sorting] = np.arange(len(sorting)) - np.repeat(starts, np.diff(np.r_[starts, len(sorting)]))
    return place


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of the matched rows.

    Attributes:
        fate: int32[n]: the query a row counts for, or a negative number of :data:`FATES`.
        balanced: The balance of the rows that were neither duplicates nor repeated captions.
        reserve: int32[n]: the query that a row over the cap would count for under the larger cap, else -1; ``None``
            without a reserve.
    """

    fate: np.ndarray
    balanced: Balanced
    reserve: np.ndarray | None = None


def decide(packed: Packed, config: SelectConfig, queries: int) -> Decision:
    """Unites duplicates, thins out repeated captions, balances the rest."""
    fate = np.full(len(packed.pair), DUPLICATE, dtype=np.int32)
    first = place_in_group([packed.key[:, 0], packed.key[:, 1]], [packed.tie]) == 0
    rows = np.flatnonzero(first)
    shared = place_in_group([packed.caption[rows]], [packed.pair[rows], packed.tie[rows]])
    fate[rows] = REPEATED
    rows = rows[shared < config.max_images_per_caption]
    lengths = np.diff(packed.indptr)
    indptr = np.r_[0, np.cumsum(lengths[rows])].astype(np.int64)
    kept = np.zeros(len(fate), dtype=bool)
    kept[rows] = True
    query_ids = packed.query_ids[np.repeat(kept, lengths)]
    pair, tie = packed.pair[rows], packed.tie[rows]
    if config.mode == "sample":
        balanced = balance_sample(indptr, query_ids, pair, queries=queries, cap=config.cap)
        fate[rows] = balanced.query_id
        return Decision(fate, balanced)
    wishes, rank = rarest_first(indptr, query_ids, queries=queries), rank_of(pair, tie)
    balanced = choose_cap(wishes, rank, cap=config.cap)
    fate[rows] = balanced.query_id
    if not config.reserve:
        return Decision(fate, balanced)
    larger = choose_cap(wishes, rank, cap=config.reserve_cap).query_id
    reserve = np.full(len(fate), NOT_KEPT, dtype=np.int32)
    reserve[rows] = np.where(balanced.query_id == NOT_KEPT, larger, NOT_KEPT)
    return Decision(fate, balanced, reserve)
