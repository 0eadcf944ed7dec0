"""Running text as numbers: the tokeniser, the words' dictionary and their counts in one compiled pass.

What a word is, :mod:`pipeline.core.tokens` says; this module reads the same words out of UTF-8 many times
faster, and tests hold it to that.

A bigram ends at punctuation and at a line's end. A hyphen joins words as a space does ("spider-man"), unless it
stands free as a dash: doubled, or beside white space.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.core.alphabet import (
    APOSTROPHE,
    HYPHEN,
    LETTER,
    MARK,
    OTHER,
    SPACE,
    alphabet,
    compiled,
    decode,
    encode,
)
from pipeline.core.tokens import fold

BREAK = -1
"""Stands among the tokens where no bigram crosses: punctuation, the end of a line or of a text."""

# FNV-1a, and an odd constant (2⁶⁴ / golden ratio) that spreads it.
_HASH_START, _HASH_STEP = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@compiled
def _has_special(text: np.ndarray, special: np.ndarray) -> bool:
    place = 0
    while place < len(text):
        if text[place] < 0x80:
            place += 1
            continue
        point, length = decode(text, place)
        if special[point]:
            return True
        place += length
    return False


@compiled
def _copy_word(
    text: np.ndarray, place: int, folded: np.ndarray, kind: np.ndarray, letters: np.ndarray, end: int
) -> tuple[int, int, np.uint64]:
    """Appends the folded word that begins at a place; returns the place behind it, its new end and its hash."""
    mix = _HASH_START
    point, length = decode(text, place)
    while True:
        start = end
        end = encode(folded[point], letters, end)
        for i in range(start, end):
            mix = (mix ^ np.uint64(letters[i])) * _HASH_STEP
        place += length
        if place >= len(text):
            break
        point, length = decode(text, place)
        found = kind[point]
        if found in (LETTER, MARK):
            continue
        # An apostrophe belongs to the word if a letter follows it.
        if found != APOSTROPHE or place + length >= len(text):
            break
        following, following_length = decode(text, place + length)
        if kind[following] != LETTER:
            break
        letters[end] = 39
        mix = (mix ^ np.uint64(39)) * _HASH_STEP
        end += 1
        place += length
        point, length = following, following_length
    return place, end, mix ^ (mix >> np.uint64(29))


@compiled
def _find(
    mix: np.uint64, begin: int, end: int, words: int, slots: np.ndarray, hashes: np.ndarray, ends: np.ndarray,
    letters: np.ndarray,
) -> tuple[int, np.uint64]:  # fmt: skip
    """The number of the word whose letters are begin…end, or -1, and the slot where it is or would be."""
    last = np.uint64(len(slots) - 1)
    slot = mix & last
    while slots[slot] >= 0:
        word = slots[slot]
        start = ends[word]
        if hashes[word] == mix and ends[word + 1] - start == end - begin:
            i = 0
            while i < end - begin and letters[start + i] == letters[begin + i]:
                i += 1
            if i == end - begin:
                return word, slot
        slot = (slot + np.uint64(1)) & last
    return -1, slot


@compiled
def _read(
    text: np.ndarray, folded: np.ndarray, kind: np.ndarray, slots: np.ndarray, hashes: np.ndarray,
    ends: np.ndarray, letters: np.ndarray, counts: np.ndarray, tokens: np.ndarray, words: int, placed: int,
) -> tuple[int, int]:  # fmt: skip
    """Adds a text's tokens and words; returns how many tokens and words there are now."""
    tokens[placed] = BREAK
    placed += 1
    broken = True
    before = OTHER
    place = 0
    while place < len(text):
        point, length = decode(text, place)
        found = kind[point]
        if found == LETTER:
            begin = ends[words]
            place, end, mix = _copy_word(text, place, folded, kind, letters, begin)
            word, slot = _find(mix, begin, end, words, slots, hashes, ends, letters)
            if word < 0:
                word = words
                slots[slot], hashes[word], ends[word + 1], counts[word] = word, mix, end, 0
                words += 1
            counts[word] += 1
            if broken and tokens[placed - 1] != BREAK:
                tokens[placed] = BREAK
                placed += 1
            tokens[placed] = word
            placed += 1
            broken, before = False, LETTER
            continue
        # A hyphen joins words as a space does, unless it stands free as a dash: beside a space or another one.
        if found == SPACE:
            broken |= before == HYPHEN
        elif found == HYPHEN:
            broken |= before in (HYPHEN, SPACE)
        else:
            broken = True
        # After a line's end a hyphen stands free too; the line's end has broken already.
        before = found
        place += length
    return words, placed


@compiled
def _fill(slots: np.ndarray, hashes: np.ndarray, words: int) -> None:
    last = np.uint64(len(slots) - 1)
    for word in range(words):
        slot = hashes[word] & last
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & last
        slots[slot] = word


class Batch(NamedTuple):
    """Texts as numbers.

    Attributes:
        words: Distinct words, string[v]; grouped by partition, within one in the order of their appearance.
        counts: int64[v], occurrences.
        edges: int64[partitions + 1], where each partition's words begin; a word's partition is its own function.
        tokens: int32[n], places in ``words``, or ``BREAK``.
    """

    words: pa.Array
    counts: np.ndarray
    edges: np.ndarray
    tokens: np.ndarray


class Lexicon:
    """Collects texts as tokens over a growing dictionary."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.words, self.placed = 0, 0
        self._slots = np.full(1 << 16, -1, np.int32)
        self._hashes = np.zeros(1 << 15, np.uint64)
        self._counts = np.zeros(1 << 15, np.int64)
        self._ends = np.zeros((1 << 15) + 1, np.int64)
        self._letters = np.zeros(1 << 18, np.uint8)
        self._tokens = np.zeros(1 << 16, np.int32)

    def add(self, text: str) -> None:
        """Reads one text; no bigram crosses from one text to the next."""
        data = text.encode(errors="replace")
        known = alphabet()
        array = np.frombuffer(data, np.uint8)
        if len(data) > len(text) and _has_special(array, known.special):
            array = np.frombuffer(fold(text).encode(errors="replace"), np.uint8)
        self._grow(len(array))
        self.words, self.placed = _read(
            array, known.folded, known.kind, self._slots, self._hashes, self._ends, self._letters,
            self._counts, self._tokens, self.words, self.placed,
        )  # fmt: skip

    def _grow(self, size: int) -> None:
        """Makes room for whatever a text of so many bytes can hold."""
        words = self.words + size // 2 + 1
        # Folding may lengthen a letter from two bytes to three.
        self._letters = _room(self._letters, int(self._ends[self.words]) + 2 * size + 4)
        self._tokens = _room(self._tokens, self.placed + size + 3)
        self._hashes = _room(self._hashes, words)
        self._counts = _room(self._counts, words)
        self._ends = _room(self._ends, words + 1)
        if 2 * words > len(self._slots):
            self._slots = np.full(1 << (4 * words - 1).bit_length(), -1, np.int32)
            _fill(self._slots, self._hashes, self.words)

    def take(self, partitions: int = 1) -> Batch:
        """What was collected, and an empty lexicon again."""
        hashes = self._hashes[: self.words]
        parts = ((hashes * _SPREAD) >> np.uint64(32)) % np.uint64(partitions)
        order = np.argsort(parts, kind="stable")
        new_places = np.empty(self.words + 1, np.int32)
        new_places[order] = np.arange(self.words, dtype=np.int32)
        new_places[-1] = BREAK  # where token -1 looks
        found = Batch(
            words=_strings(self._ends[: self.words + 1], self._letters).take(pa.array(order)),
            counts=self._counts[order],
            edges=np.searchsorted(parts[order], np.arange(partitions + 1)),
            tokens=new_places[self._tokens[: self.placed]],
        )
        self._clear()
        return found


def _room(array: np.ndarray, size: int) -> np.ndarray:
    if size <= len(array):
        return array
    grown = np.zeros(max(size, 2 * len(array)), array.dtype)
    grown[: len(array)] = array
    return grown


def _strings(ends: np.ndarray, letters: np.ndarray) -> pa.Array:
    buffers = [pa.py_buffer(ends.astype(np.int64)), pa.py_buffer(letters[: ends[-1]].copy())]
    return pa.LargeStringArray.from_buffers(len(ends) - 1, *buffers).cast(pa.string())
