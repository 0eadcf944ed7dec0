"""What the compiled matcher knows of a query list: a trie of words in flat arrays, stored as one file.

A node of the trie is a number: 1…w are the list's words (as first words of a query), those above follow others. An
*entry* is 64 bits about a node: its number (31), whether any node follows it (1), and its query (32): 0 for none,
the id plus one, or ``LISTED`` plus the place of a list of ids. Entries stand in tables of open addressing behind
their keys: a word's key (see :mod:`pipeline.select.cut`), or the numbers of a node and of the word that follows.

Nothing is trusted to a hash alone: words of one chunk and pairs of numbers are their own keys, and longer words are
compared chunk by chunk.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from pipeline.core import paths
from pipeline.core.alphabet import alphabet, compiled
from pipeline.select.cut import (
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
    store_chunks,
)

VERSION = 1
NODE, CHILDREN, LISTED = np.uint64(2**31 - 1), np.uint64(2**31), np.uint64(2**31)
_MAGIC = b"wit queries as a table\n"
_ALIGNED = 64
_FULL = 0.6  # words and pairs to slots: fewer steps to a word against more memory
_SIEVE_BITS = 8  # for each pair


class Table(NamedTuple):
    """The trie; all arrays are read-only.

    Attributes:
        words: uint64[2 s], key and entry of each slot; an entry of 0 is an empty slot.
        word_starts: int64[w + 1], where each word's chunks begin.
        word_chunks: uint64[c].
        edges: uint64[2 t], as ``words``, for a node and its follower.
        sieve: uint8[n], a bit for the hash of each pair that may be in ``edges``.
        list_starts: int64[l + 1], where each list of ids begins.
        lists: int32[i], ids of queries that are the same words.
    """

    words: np.ndarray
    word_starts: np.ndarray
    word_chunks: np.ndarray
    edges: np.ndarray
    sieve: np.ndarray
    list_starts: np.ndarray
    lists: np.ndarray


def identity(ids: np.ndarray, queries: pa.Array, mode: str) -> str:
    """What a table is made of: the list, the mode, and what the table's form and the folding depend on."""
    made_of = hashlib.sha256(f"{VERSION} {mode} {unicodedata.unidata_version} {len(ids)}\n".encode())
    data, offsets = buffers(queries)
    for part in (np.diff(offsets), data[offsets[0] : offsets[-1]], ids):
        made_of.update(np.ascontiguousarray(part).data)
    return made_of.hexdigest()


def build(ids: np.ndarray, queries: pa.Array, *, spaced: bool) -> Table:
    """Builds the table.

    Args:
        ids: int32[n], not negative.
        queries: ``large_binary`` of valid UTF-8, without nulls.
        spaced: Whether words are told by MetaCLIP's spacing rule.
    """
    data, offsets = buffers(queries if spaced else folded(queries.to_pylist()))
    room = room_for(int(offsets[-1] - offsets[0]), max(len(ids), 1))
    tokens = 0
    if len(ids):
        none = np.zeros(0, np.bool_)
        tokens = cut(data, offsets, 0, len(ids), spaced, signs(" ", ""), alphabet(), room, none)
    numbers = np.empty(tokens, np.int64)
    keys, starts = np.empty(tokens, np.uint64), np.zeros(tokens + 1, np.int64)
    chunks = np.empty(len(room.wide) + tokens, np.uint64)
    words = _number_words(room, tokens, _no_numbers(tokens), numbers, keys, starts, chunks)
    nodes, pairs = np.zeros(len(ids), np.int64), np.empty(tokens, np.uint64)
    edges = _number_nodes(numbers, room.text_ends[: len(ids)], words, _no_numbers(tokens), pairs, nodes)
    pairs = pairs[:edges]
    entries, list_starts, lists = _entries(ids, nodes, pairs, 1 + words + edges)
    sieve = np.zeros(_power_of_two(_SIEVE_BITS * edges) // 8, np.uint8)
    _fill_sieve(pairs, sieve)
    table = Table(
        words=_slots(keys[:words], entries[1 : words + 1]),
        word_starts=starts[: words + 1].copy(),
        word_chunks=chunks[: starts[words]].copy(),
        edges=_slots(pairs, entries[words + 1 :]),
        sieve=sieve,
        list_starts=list_starts,
        lists=lists,
    )
    for array in table:
        array.flags.writeable = False
    return table


def _entries(
    ids: np.ndarray, nodes: np.ndarray, pairs: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint64[size], the entry of each node; and the lists for nodes of several queries."""
    entries = np.arange(size, dtype=np.uint64)
    entries[(pairs >> np.uint64(32)).astype(np.int64)] |= CHILDREN
    order = np.lexsort((ids, nodes))
    order = order[nodes[order] > 0]  # nothing but punctuation: no text can contain it
    at, first, count = np.unique(nodes[order], return_index=True, return_counts=True)
    queries = ids[order[first]].astype(np.uint64) + np.uint64(1)
    several = count > 1
    queries[several] = LISTED + np.arange(several.sum(), dtype=np.uint64)
    entries[at] |= queries << np.uint64(32)
    starts = np.zeros(several.sum() + 1, np.int64)
    np.cumsum(count[several], out=starts[1:])
    return entries, starts, ids[order[np.repeat(several, count)]]


def _power_of_two(least: int) -> int:
    return 1 << max(4, (max(least, 1) - 1).bit_length())


def _no_numbers(count: int) -> np.ndarray:
    return np.full(_power_of_two(int(count / _FULL)), -1, np.int32)


def _slots(keys: np.ndarray, entries: np.ndarray) -> np.ndarray:
    slots = np.zeros(2 * _power_of_two(int(len(keys) / _FULL)), np.uint64)
    _fill(keys, entries, slots)
    return slots


@compiled
def _fill(keys: np.ndarray, entries: np.ndarray, slots: np.ndarray) -> None:
    last = len(slots) // 2 - 1
    shift = shift_of(last + 1)
    for i in range(len(keys)):
        slot = np.int64(spread(keys[i]) >> shift)
        while slots[2 * slot + 1] != 0:
            slot = (slot + 1) & last
        slots[2 * slot] = keys[i]
        slots[2 * slot + 1] = entries[i]


@compiled
def _fill_sieve(keys: np.ndarray, sieve: np.ndarray) -> None:
    shift = shift_of(8 * len(sieve))
    for i in range(len(keys)):
        place = np.int64(spread(keys[i]) >> shift)
        sieve[place >> 3] |= np.uint8(1 << (place & 7))


@compiled
def _number_words(
    room: Room, tokens: int, slots: np.ndarray, numbers: np.ndarray, keys: np.ndarray, starts: np.ndarray,
    chunks: np.ndarray,
) -> int:  # fmt: skip
    """Numbers the distinct words from 1 as they come, with their keys and chunks; returns how many there are."""
    last = len(slots) - 1
    shift = shift_of(len(slots))
    words = 0
    for t in range(tokens):
        begin, end = room.begins[t], room.ends[t]
        key = key_of(room.wide, begin, end)
        slot = np.int64(spread(key) >> shift)
        while slots[slot] >= 0:
            word = slots[slot]
            if keys[word] == key and (
                key < LONG or has_chunks(room.wide, begin, end, chunks, starts[word], starts[word + 1])
            ):
                break
            slot = (slot + 1) & last
        if slots[slot] < 0:
            slots[slot] = words
            keys[words] = key
            starts[words + 1] = store_chunks(room.wide, begin, end, chunks, starts[words])
            words += 1
        numbers[t] = slots[slot] + 1
    return words


@compiled
def _number_nodes(
    numbers: np.ndarray, text_ends: np.ndarray, words: int, slots: np.ndarray, pairs: np.ndarray,
    nodes: np.ndarray,
) -> int:  # fmt: skip
    """Numbers the nodes behind the words, with their pairs; ``nodes`` gets each query's own. Returns their number."""
    last = len(slots) - 1
    shift = shift_of(len(slots))
    edges = 0
    token = 0
    for query in range(len(text_ends)):
        end = text_ends[query]
        if token == end:
            continue
        node = numbers[token]
        for t in range(token + 1, end):
            pair = (np.uint64(node) << np.uint64(32)) | np.uint64(numbers[t])
            slot = np.int64(spread(pair) >> shift)
            while slots[slot] >= 0 and pairs[slots[slot]] != pair:
                slot = (slot + 1) & last
            if slots[slot] < 0:
                slots[slot] = edges
                pairs[edges] = pair
                edges += 1
            node = np.int64(words + 1 + slots[slot])
        nodes[query] = node
        token = end
    return edges


def write(path: str, table: Table, made_of: str) -> int:
    """Writes a table with the :func:`identity` of what it was made of; returns the file's bytes.

    The file appears under its name when it is complete, and says how long it is and what its bytes add up to.
    """
    arrays = [np.ascontiguousarray(array).view(np.uint8) for array in table]
    places, size = [], 0
    for array in arrays:
        places.append(size)
        size += -(-len(array) // _ALIGNED) * _ALIGNED
    body = np.zeros(size, np.uint8)
    for place, array in zip(places, arrays, strict=True):
        body[place : place + len(array)] = array
    head: dict[str, Any] = {
        "identity": made_of,
        "bytes": size,
        "sha256": hashlib.sha256(body.data).hexdigest(),
        "arrays": [[str(array.dtype), place, len(array)] for place, array in zip(places, table, strict=True)],
    }
    said = _MAGIC + json.dumps(head).encode() + b"\n"
    said += b" " * (-len(said) % _ALIGNED)
    with paths.open_atomic(path) as file:
        file.write(said)
        file.write(body.data)
    return len(said) + size


def read(path: str, made_of: str) -> Table | None:
    """The table of a file: mapped into memory where the file is local, so that processes share it.

    Returns:
        ``None`` unless the file is there, whole, and made of just this: then the table has to be built.
    """
    if not paths.exists(path):
        return None
    fs, name = paths.filesystem(path)
    if isinstance(fs, LocalFileSystem):
        file = np.memmap(name, np.uint8, "r") if paths.size(path) else np.zeros(0, np.uint8)
    else:
        file = np.frombuffer(paths.read_bytes(path), np.uint8)
    said = file[: len(_MAGIC) + 4096].tobytes()
    line = said[len(_MAGIC) :].partition(b"\n")[0]
    try:
        head = json.loads(line) if said.startswith(_MAGIC) else {}
    except ValueError:
        return None
    begin = -(-(len(_MAGIC) + len(line) + 1) // _ALIGNED) * _ALIGNED
    body = file[begin:]
    if head.get("identity") != made_of or len(body) != head["bytes"]:
        return None
    if hashlib.sha256(body.data).hexdigest() != head["sha256"]:
        return None
    arrays = []
    for kind, place, length in head["arrays"]:
        dtype = np.dtype(kind)
        array = np.asarray(body[place : place + length * dtype.itemsize]).view(dtype)
        array.flags.writeable = False
        arrays.append(array)
    return Table(*arrays)
