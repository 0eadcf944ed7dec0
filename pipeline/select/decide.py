"""Which matched rows are pairs: duplicates, repeated captions and balance, on packed arrays.

All that these need of a row is a few hashes and the numbers of its queries, some 70 bytes for a row of five queries,
so that ten million matched rows are decided in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    held: dict[str, list[np.ndarray]] = {name: [] for name in (*columns, "lengths")}
    for batch in tables.read_batches(files, columns=columns):
        for name in columns[:-1]:
            held[name].append(batch.column(name).to_numpy())
        lists = batch.column("query_ids")
        held["lengths"].append(np.diff(lists.offsets.to_numpy()))
        held["query_ids"].append(lists.flatten().to_numpy())
    joined = {
        name: np.concatenate(chunks) if chunks else np.zeros(0, np.uint64) for name, chunks in held.items()
    }
    return Packed(
        key=np.stack([joined["key_high"], joined["key_low"]], axis=1),
        caption=joined["caption_hash"],
        pair=joined["pair_hash"],
        tie=joined["tie"],
        indptr=np.r_[0, np.cumsum(joined["lengths"])].astype(np.int64),
        query_ids=joined["query_ids"].astype(np.int32),
    )


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
