"""Which matched rows are balanced: one of each group of duplicates, and no more images of a caption than allowed.

All that these and the balance need of a row is 48 bytes of hashes and places and the numbers of its queries: a
*packed* row. What happens to it is its *fate*. Both functions below choose by the rows' own values, so they may be used
on some rows first and on what these leave together with others afterwards: what falls out of a part would have fallen
out of the whole.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.select.balance import NOT_KEPT

DUPLICATE: Final = -2
REPEATED: Final = -3
FATES: Final = {NOT_KEPT: "over_cap", DUPLICATE: "duplicate", REPEATED: "caption_repeated"}
HASHES: Final = ("key_high", "key_low", "caption_hash", "pair_hash", "tie")
PACKED: Final = pa.schema(
    [
        *(pa.field(name, pa.uint64()) for name in (*HASHES, "place")),
        pa.field("query_ids", pa.large_list(pa.int32())),
    ]
)
"""``key_high, key_low``: of URL and cleaned text; ``caption_hash``: of the cleaned text; ``pair_hash``: keyed, of the
pair; ``tie``: of the whole candidate; ``place``: its file's number in the upper half, its row there in the lower."""
FATE: Final = pa.schema(
    [("place", pa.uint64()), ("fate", pa.int32()), ("reserve", pa.int32())],
)
"""``fate``: the query a row counts for, or a negative number of :data:`FATES`; a row that has none is over the cap.
``reserve``: the query that a row over the cap would count for under the larger cap, else -1."""
_ROW_BITS: Final = np.uint64(32)
_LOW: Final = np.uint64(2**32 - 1)


def packed(matched: pa.Table, source: int) -> pa.Table:
    """Packs all matched rows of a file.

    Args:
        matched: Rows of the first pass, or their columns :data:`HASHES` and ``query_ids``.
        source: The file's number.
    """
    place = np.arange(matched.num_rows, dtype=np.uint64) + (np.uint64(source) << _ROW_BITS)
    columns = {name: matched.column(name) for name in (*HASHES, "query_ids")} | {"place": pa.array(place)}
    return pa.table([columns[name].cast(PACKED.field(name).type) for name in PACKED.names], schema=PACKED)


def sources_of(rows: pa.Table) -> np.ndarray:
    """int64[n]: number of each row's file."""
    return (values(rows, "place") >> _ROW_BITS).astype(np.int64)


def rows_of(rows: pa.Table) -> np.ndarray:
    """int64[n]: each row's place in its file."""
    return (values(rows, "place") & _LOW).astype(np.int64)


def part_of(hashes: np.ndarray, parts: int) -> np.ndarray:
    """int64[n]: which of equal ranges of hashes each falls into, so that parts follow one another as hashes do."""
    high = hashes >> np.uint64(32)
    return ((high * np.uint64(parts)) >> np.uint64(32)).astype(np.int64)


def values(rows: pa.Table, name: str) -> np.ndarray:
    """A column of numbers as an array."""
    column = rows.column(name)
    return column.chunk(0).to_numpy() if column.num_chunks == 1 else column.to_numpy()


def lists(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """``indptr``, int64[n + 1], and ``query_ids``, int32[m], of the rows."""
    column = rows.column("query_ids")
    lengths = pc.list_value_length(column).to_numpy()
    return np.r_[0, np.cumsum(lengths, dtype=np.int64)], pc.list_flatten(column).to_numpy()


def united(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Leaves one row of each URL and cleaned text, and says that the others are duplicates."""
    groups = [values(rows, name) for name in ("key_high", "key_low")]
    return _divided(rows, place_in_group(groups, _values(rows, "tie", "place")) == 0, DUPLICATE)


def thinned(rows: pa.Table, most: int) -> tuple[pa.Table, pa.Table]:
    """Leaves so many rows of each caption, and says that the others repeat it."""
    order = _values(rows, "pair_hash", "tie", "place")
    return _divided(rows, place_in_group([values(rows, "caption_hash")], order) < most, REPEATED)


def ranked(rows: pa.Table) -> pa.Table:
    """The rows in the order in which they choose, with what the balance needs of them."""
    order = np.lexsort(_values(rows, "pair_hash", "tie", "place")[::-1])
    return rows.select(["place", "pair_hash", "query_ids"]).take(pa.array(order)).combine_chunks()


def fates(places: np.ndarray, fate: np.ndarray, reserve: np.ndarray | None = None) -> pa.Table:
    """Rows of :data:`FATE`."""
    held = np.full(len(places), NOT_KEPT, dtype=np.int32) if reserve is None else reserve
    return pa.table([pa.array(places), pa.array(fate), pa.array(held)], schema=FATE)


def place_in_group(groups: list[np.ndarray], order: list[np.ndarray]) -> np.ndarray:
    """int64[n]: how many rows of the same group come before each row.

    Args:
        groups: Arrays whose values together name a row's group.
        order: Arrays that order the rows of a group, the most important first.
    """
    place = np.zeros(len(groups[0]), dtype=np.int64)
    # Most rows are alone; they need not be ordered by all that orders the others.
    first = np.argsort(groups[0])
    in_order = groups[0][first]
    same = in_order[1:] == in_order[:-1]
    several = first[np.r_[same, False] | np.r_[False, same]] if len(first) else first
    groups, order = ([keys[several] for keys in given] for given in (groups, order))
    sorting = np.lexsort((*order[::-1], *groups[::-1]))
    new = np.zeros(len(sorting), dtype=bool)
    new[:1] = True
    for keys in groups:
        in_order = keys[sorting]
        new[1:] |= in_order[1:] != in_order[:-1]
    starts = np.flatnonzero(new)
    lengths = np.diff(np.r_[starts, len(sorting)])
    place[several[sorting]] = np.arange(len(sorting)) - np.repeat(starts, lengths)
    return place


def _values(rows: pa.Table, *names: str) -> list[np.ndarray]:
    return [values(rows, name) for name in names]


def _divided(rows: pa.Table, kept: np.ndarray, fate: int) -> tuple[pa.Table, pa.Table]:
    lost = values(rows, "place")[~kept]
    return rows.filter(pa.array(kept)), fates(lost, np.full(len(lost), fate, dtype=np.int32))
