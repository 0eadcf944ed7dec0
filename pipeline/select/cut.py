"""Texts cut into words by compiled code, over Arrow's bytes.

Both modes first bring a block of texts into a room of bytes where words can be compared as they stand: folded, with
zeros for all that is no part of a word (``clean``), or unchanged (``metaclip``). A word is then a span of that room.

Words are read eight bytes at a time. A word's *chunks* are its bytes in eights and a last chunk of the seven or fewer
that remain, with their number in the highest byte: so different words have different chunks. A word of one chunk is
its own *key*; a longer one's key is a hash with ones in the highest byte, and its chunks have to be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.core.alphabet import APOSTROPHE, LETTER, MARK, Alphabet, compiled, decode, encode
from pipeline.core.tokens import fold

BLOCK_BYTES = 8_192
"""Text that is cut and looked up in one go: few enough for all about it to stay in the processor's cache."""
BLOCK_TEXTS = 512

_0, _1, _3, _7, _8 = (np.uint64(n) for n in (0, 1, 3, 7, 8))
_32, _56, _63 = (np.uint64(n) for n in (32, 56, 63))
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio
LONG = np.uint64(0xFF00000000000000)
_BLANK, _QUOTE, _BEYOND, _CASE = (np.uint8(n) for n in (0, ord("'"), 1, 32))


class Room(NamedTuple):
    """Where a block's words are.

    Attributes:
        letters: uint8[bytes], the block's texts.
        wide: uint64[bytes / 8], the same memory.
        begins: int64[words], where each word begins in ``letters``.
        ends: int64[words].
        text_ends: int64[texts], how many words there are up to each text's end.
    """

    letters: np.ndarray
    wide: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    text_ends: np.ndarray


def room_for(size: int, texts: int) -> Room:
    """Room for a block of so many bytes and texts."""
    # Beside the texts lie those that had to be folded by code point (at most 3 bytes for 2, and a zero); behind
    # them what is read with a word's last bytes.
    letters = np.zeros((3 * size + texts + 32) // 8 * 8, np.uint8)
    # Each sign is a word and may part two empty ones.
    words = 2 * size + texts + 1
    return Room(
        letters, letters.view(np.uint64), np.empty(words, np.int64), np.empty(words, np.int64),
        np.empty(texts, np.int64),
    )  # fmt: skip


def buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """uint8[bytes] and int64[n + 1], where each text begins in it, of a ``large_binary`` array."""
    _, offsets, data = texts.buffers()
    places = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    letters = np.frombuffer(data if data is not None and data.size else b"\0", np.uint8)
    for array in (letters, places):
        array.flags.writeable = False  # as most Arrow buffers are: one compiled version serves all
    return letters, places


def folded(texts: Sequence[bytes]) -> pa.Array:
    """Texts folded by Python, those of ASCII left as they are, as ``large_binary``."""
    return pa.array(
        [
            t if t.isascii() else fold(t.decode(errors="surrogatepass")).encode(errors="surrogatepass")
            for t in texts
        ],
        pa.large_binary(),
    )


def signs(blanks: str, wrapped: str) -> np.ndarray:
    """uint8[256]: 1 for bytes that only part words, 2 for those that are words too, 0 for the rest."""
    table = np.zeros(256, np.uint8)
    table[list(blanks.encode())] = 1
    table[list(wrapped.encode())] = 2
    return table


@compiled
def cut(
    data: np.ndarray, offsets: np.ndarray, row: int, stop: int, spaced: bool, signs: np.ndarray,
    known: Alphabet, room: Room, special: np.ndarray,
) -> int:  # fmt: skip
    """Cuts the texts row…stop, which the room must have place for; returns the number of words.

    A text with a special code point (see ``Alphabet``) has no words here and is marked in ``special``, bool[texts]:
    Python has to fold it. Where ``special`` is empty all texts are folded already.
    """
    base = offsets[row]
    size = offsets[stop] - base
    tokens = 0
    if spaced:
        room.letters[:size] = data[base : base + size]
        for r in range(row, stop):
            tokens = _cut_spaced(room, offsets[r] - base, offsets[r + 1] - base, signs, tokens)
            room.text_ends[r - row] = tokens
        return tokens
    _fold_block(data, base, size, room.letters)
    side = size
    for r in range(row, stop):
        begin, end = offsets[r] - base, offsets[r + 1] - base
        found, quotes, beyond = _cut_words(room, begin, end, tokens)
        if beyond:
            behind = _fold_text(data, offsets[r], offsets[r + 1], known, room.letters, side, len(special) > 0)
            if behind == side:
                special[r] = True
                found = tokens
            else:
                found, _, _ = _cut_words(room, side, behind, tokens)
            side = behind
        elif quotes:
            _clear_quotes(room.letters, begin, end)
            found, _, _ = _cut_words(room, begin, end, tokens)
        tokens = found
        room.text_ends[r - row] = tokens
    return tokens


@compiled
def _fold_block(data: np.ndarray, base: int, size: int, letters: np.ndarray) -> None:
    """Folds ASCII: letters, digits and apostrophes; zero for the rest of it, 1 for bytes beyond it."""
    for i in range(size):  # without branches, so that the compiler takes many bytes at a time
        byte = data[base + i]
        lower = byte | _CASE
        letter = np.uint8(lower - np.uint8(97)) < np.uint8(26)
        digit = np.uint8(byte - np.uint8(48)) < np.uint8(10)
        kept = letter or digit or byte == _QUOTE
        folded = lower if letter else byte
        folded = folded if kept else _BLANK
        letters[i] = _BEYOND if byte >= np.uint8(128) else folded


@compiled
def _cut_words(room: Room, begin: int, end: int, tokens: int) -> tuple[int, bool, bool]:
    """Adds the stretches without zeros; also returns whether there are apostrophes and bytes beyond ASCII."""
    closed = tokens
    outside: Any = np.uint8(1)  # numbers, not branches, which would be guessed wrong at every word's ends
    quotes: Any = np.uint8(0)
    beyond: Any = np.uint8(0)
    for i in range(begin, end):
        byte = room.letters[i]
        blank = np.uint8(byte == _BLANK)
        quotes |= np.uint8(byte == _QUOTE)
        beyond |= np.uint8(byte == _BEYOND)
        room.begins[tokens] = i
        room.ends[closed] = i
        tokens += outside & (blank ^ np.uint8(1))
        closed += blank & (outside ^ np.uint8(1))
        outside = blank
    room.ends[closed] = end
    return tokens, quotes, beyond


@compiled
def _clear_quotes(letters: np.ndarray, begin: int, end: int) -> None:
    """Leaves the apostrophes of an ASCII text that stand between letters or digits."""
    for i in range(begin, end):
        if letters[i] == _QUOTE:
            inside = i > begin and i + 1 < end and letters[i - 1] > _QUOTE and letters[i + 1] > _QUOTE
            letters[i] = _QUOTE if inside else _BLANK


@compiled
def _fold_text(
    data: np.ndarray, place: int, end: int, known: Alphabet, letters: np.ndarray, at: int, check: bool
) -> int:
    """Folds a text of any script to a place; returns the place behind it, or that place for a special text."""
    begin = at
    inside = False
    while place < end:
        point, length = decode(data, place)
        if check and known.special[point]:
            return begin
        kind = known.kind[point]
        place += length
        if kind == LETTER:
            inside = True
        elif kind == APOSTROPHE and inside and place < end:
            following, _ = decode(data, place)
            inside = known.kind[following] == LETTER
        else:
            inside = inside and kind == MARK
        if inside:
            at = encode(known.folded[point], letters, at)
        else:
            letters[at] = _BLANK
            at += 1
    letters[at] = _BLANK
    return at + 1


@compiled
def _cut_spaced(room: Room, begin: int, end: int, signs: np.ndarray, tokens: int) -> int:
    """Adds the pieces between blanks, empty ones too, and the signs."""
    room.begins[tokens] = begin
    for i in range(begin, end):
        sign = signs[room.letters[i]]
        room.ends[tokens] = i
        tokens += sign != 0
        begin = i + 1 if sign != 0 else begin
        if sign == 2:
            room.begins[tokens], room.ends[tokens] = i, i + 1
            tokens += 1
        room.begins[tokens] = begin
    room.ends[tokens] = end
    return tokens + 1


@compiled
def _load(wide: np.ndarray, place: int) -> np.uint64:
    """The eight bytes at a place, which need not be a multiple of eight."""
    unsigned = np.uint64(place)
    i = np.int64(unsigned >> _3)
    shift = (unsigned & _7) << _3
    return (wide[i] >> shift) | ((wide[i + 1] << _1) << (_63 - shift))


@compiled
def _last(wide: np.ndarray, begin: int, size: int) -> np.uint64:
    """The last chunk: less than eight bytes and their number."""
    unsigned = np.uint64(size)
    return (_load(wide, begin) & ((_1 << (unsigned << _3)) - _1)) | (unsigned << _56)


@compiled
def _mixed(mix: np.uint64, chunk: np.uint64) -> np.uint64:
    mix = (mix ^ chunk) * _SPREAD
    return mix ^ (mix >> _32)


@compiled
def key_of(wide: np.ndarray, begin: int, end: int) -> np.uint64:
    """A word's key; from ``LONG`` on it is a hash."""
    size = end - begin
    if size < 8:
        return _last(wide, begin, size)
    mix = _SPREAD
    while size >= 8:
        mix = _mixed(mix, _load(wide, begin))
        begin += 8
        size -= 8
    return (_mixed(mix, _last(wide, begin, size)) >> _8) | LONG


@compiled
def has_chunks(wide: np.ndarray, begin: int, end: int, chunks: np.ndarray, first: int, stop: int) -> bool:
    """Whether a word's chunks are those at first…stop."""
    size = end - begin
    if (size >> 3) + 1 != stop - first:
        return False
    while size >= 8:
        if _load(wide, begin) != chunks[first]:
            return False
        begin += 8
        size -= 8
        first += 1
    return _last(wide, begin, size) == chunks[first]


@compiled
def store_chunks(wide: np.ndarray, begin: int, end: int, chunks: np.ndarray, first: int) -> int:
    """Writes a word's chunks to a place and returns the place behind them."""
    size = end - begin
    while size >= 8:
        chunks[first] = _load(wide, begin)
        begin += 8
        size -= 8
        first += 1
    chunks[first] = _last(wide, begin, size)
    return first + 1


@compiled
def spread(key: np.uint64) -> np.uint64:
    """A key's hash; its high bits name the slot in a table."""
    return (key ^ (key >> np.uint64(29))) * _SPREAD


@compiled
def shift_of(size: int) -> np.uint64:
    """How far a hash of 64 bits is shifted to name one of 2^n places."""
    shift = 64
    while size > 1:
        size >>= 1
        shift -= 1
    return np.uint64(shift)
