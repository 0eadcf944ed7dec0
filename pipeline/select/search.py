"""The compiled matcher: one pass over Arrow's bytes against a :class:`~pipeline.select.table.Table`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.core.alphabet import Alphabet, alphabet, compiled
from pipeline.select.cut import (
    BLOCK_BYTES,
    BLOCK_TEXTS,
    LONG,
    Room,
    buffers,
    cut,
    folded,
    has_chunks,
    key_of,
    room_for,
    shift_of,
    signs,
    spread,
)
from pipeline.select.plain import BLANKS, SIGNS
from pipeline.select.table import CHILDREN, LISTED, NODE, Table

_0, _1, _3, _7, _32 = (np.uint64(n) for n in (0, 1, 3, 7, 32))
_FEW = 16  # numbers that are sorted by comparing each with each


def find(table: Table, texts: pa.Array, *, spaced: bool) -> tuple[np.ndarray, np.ndarray]:
    """All matches in a batch of texts.

    Args:
        table: Made with the same ``spaced``.
        texts: ``large_binary`` of valid UTF-8 (lone surrogates as three bytes), without nulls.
        spaced: Whether words are told by MetaCLIP's spacing rule.

    Returns:
        int64[n], matches of each text; int32[m], their queries, ascending within a text.
    """
    special = np.zeros(0 if spaced else len(texts), np.bool_)
    counts, ids = _find(table, texts, spaced, special)
    if not special.any():
        return counts, ids
    rows = np.flatnonzero(special)
    again, found = _find(table, folded(texts.take(pa.array(rows)).to_pylist()), spaced, special[:0])
    # Up to now these rows have none.
    ids = np.insert(ids, np.repeat(np.cumsum(counts)[rows], again), found)
    counts[rows] = again
    return counts, ids


def _find(table: Table, texts: pa.Array, spaced: bool, special: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`find`, without the texts that it marks as special."""
    data, offsets = buffers(texts)
    counts = np.zeros(len(texts), np.int64)
    if not len(texts):
        return counts, np.zeros(0, np.int32)
    longest = int(np.diff(offsets).max())
    room = room_for(max(longest, min(BLOCK_BYTES, int(offsets[-1] - offsets[0]))), BLOCK_TEXTS)
    apart, known = signs(" " + BLANKS, SIGNS), alphabet()
    values = (np.empty(len(room.begins), np.uint64), np.empty(len(room.begins), np.uint64))
    found = []
    row, size = 0, 1024 + int(offsets[-1] - offsets[0]) // 4
    while row < len(texts):
        ids = np.empty(size, np.int32)
        row, filled = _search(
            data, offsets, row, spaced, apart, known, table, room, special, *values, counts, ids
        )
        found.append(ids[:filled])
        size *= 2
    return counts, np.concatenate(found) if len(found) > 1 else found[0]


@compiled
def _search(
    data: np.ndarray, offsets: np.ndarray, row: int, spaced: bool, apart: np.ndarray, known: Alphabet,
    table: Table, room: Room, special: np.ndarray, firsts: np.ndarray, seconds: np.ndarray,
    counts: np.ndarray, ids: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Searches the texts from ``row`` on until all are done or ``ids`` is full.

    Each step is done for a whole block before the next, so that the processor fetches many slots at a time.

    Returns:
        The first text that is not done, and how many ids the others have.
    """
    rows = len(offsets) - 1
    spare = np.empty(2 * _FEW, np.int64)
    filled = 0
    while row < rows:
        stop = row + 1
        while (
            stop < rows
            and stop - row < len(room.text_ends)
            and offsets[stop + 1] - offsets[row] <= BLOCK_BYTES
        ):
            stop += 1
        tokens = cut(data, offsets, row, stop, spaced, apart, known, room, special)
        _find_words(room, tokens, table, firsts)
        _find_pairs(firsts, tokens, table, seconds)
        token = 0
        for r in range(row, stop):
            begin = filled
            end = room.text_ends[r - row]
            if filled + end - token > len(ids):
                return r, begin
            filled = _collect(firsts, seconds, token, end, table, ids, filled)
            if filled > len(ids):
                return r, begin
            token = end
            filled = _sorted_once(ids, begin, filled, spare)
            counts[r] = filled - begin
        row = stop
    return row, filled


@compiled
def _find_words(room: Room, tokens: int, table: Table, found: np.ndarray) -> None:
    """The entry of each word, 0 for one that no query has."""
    slots = table.words
    last = len(slots) // 2 - 1
    shift = shift_of(last + 1)
    for t in range(tokens):
        begin, end = room.begins[t], room.ends[t]
        key = key_of(room.wide, begin, end)
        slot = np.int64(spread(key) >> shift)
        while True:
            entry = slots[2 * slot + 1]
            if entry == _0:
                break
            if slots[2 * slot] == key:
                if key < LONG:
                    break
                word = np.int64(entry & NODE)
                first, stop = table.word_starts[word - 1], table.word_starts[word]
                if has_chunks(room.wide, begin, end, table.word_chunks, first, stop):
                    break
            slot = (slot + 1) & last
        found[t] = entry


@compiled
def _find_pairs(firsts: np.ndarray, tokens: int, table: Table, found: np.ndarray) -> None:
    """The entry of each word and its follower, 0 if no query begins with them; across texts too."""
    slots, sieve = table.edges, table.sieve
    last = len(slots) // 2 - 1
    shift, sieve_shift = shift_of(last + 1), shift_of(8 * len(sieve))
    for t in range(tokens - 1):
        found[t] = _0
        node, word = firsts[t] & NODE, firsts[t + 1] & NODE
        key = (node << _32) | word
        mix = spread(key)
        place = mix >> sieve_shift
        # Most pairs end here, in the processor's cache.
        may_be = (sieve[np.int64(place >> _3)] >> np.uint8(place & _7)) & np.uint8(1)
        if may_be and node != _0 and word != _0:
            slot = np.int64(mix >> shift)
            while slots[2 * slot + 1] != _0 and slots[2 * slot] != key:
                slot = (slot + 1) & last
            found[t] = slots[2 * slot + 1]
    if tokens:
        found[tokens - 1] = _0


@compiled
def _collect(
    firsts: np.ndarray, seconds: np.ndarray, token: int, end: int, table: Table, ids: np.ndarray, filled: int
) -> int:
    """Adds the queries that begin at each of a text's words; counts on where ``ids`` is full."""
    slots = table.edges
    last = len(slots) // 2 - 1
    shift = shift_of(last + 1)
    while token < end:
        entry = firsts[token]
        if entry >> _32 < LISTED and filled < len(ids):
            ids[filled] = np.int32((entry >> _32) - _1)
            filled += entry >> _32 != _0
        else:
            filled = _add(entry, table, ids, filled)
        entry = seconds[token]
        token += 1
        following = token
        while entry != _0 and following < end:
            filled = _add(entry, table, ids, filled)
            following += 1
            if following >= end or entry & CHILDREN == _0 or firsts[following] == _0:
                break
            key = ((entry & NODE) << _32) | (firsts[following] & NODE)
            slot = np.int64(spread(key) >> shift)
            while slots[2 * slot + 1] != _0 and slots[2 * slot] != key:
                slot = (slot + 1) & last
            entry = slots[2 * slot + 1]
    return filled


@compiled
def _add(entry: np.uint64, table: Table, ids: np.ndarray, filled: int) -> int:
    """Adds the queries of an entry."""
    query = entry >> _32
    if query == _0:
        return filled
    if query < LISTED:
        if filled < len(ids):
            ids[filled] = np.int32(query - _1)
        return filled + 1
    which = np.int64(query - LISTED)
    for i in range(table.list_starts[which], table.list_starts[which + 1]):
        if filled < len(ids):
            ids[filled] = table.lists[i]
        filled += 1
    return filled


@compiled
def _sorted_once(ids: np.ndarray, begin: int, end: int, spare: np.ndarray) -> int:
    """Sorts numbers and takes out repeats; returns their new end."""
    size = end - begin
    if size > _FEW:
        ids[begin:end].sort()
        kept = begin
        for i in range(begin, end):
            if i == begin or ids[i] != ids[kept - 1]:
                ids[kept] = ids[i]
                kept += 1
        return kept
    for i in range(_FEW):
        spare[i] = np.int64(1) << 62
    for i in range(size):  # the place makes each differ from all others
        spare[i] = (np.int64(ids[begin + i]) << 4) | i
    for i in range(size):
        rank = 0
        for j in range(_FEW):  # without branches
            rank += spare[j] < spare[i]
        spare[_FEW + rank] = spare[i]
    kept = begin
    before = np.int64(-1)
    for i in range(size):
        number = spare[_FEW + i] >> 4
        ids[kept] = number
        kept += number != before
        before = number
    return kept
