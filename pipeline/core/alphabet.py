"""What compiled code knows of characters, by code point, and how it is compiled.

Folding is by table, one code point to one; :func:`pipeline.core.tokens.fold` says what it is. A text with a code
point for which that is not enough, because it folds to several or may compose with a neighbour, is *special*: such
texts are folded in Python first, which changes nothing in the others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numba
import numpy as np

from pipeline.core.tokens import WORD, fold

# Kinds of a folded code point. A mark goes on with a word but begins none; a line's end is among the others.
OTHER, LETTER, MARK, APOSTROPHE, SPACE, HYPHEN = range(6)
_POINTS = 0x110000
_KNOWN_POINTS = 0x40000  # the planes above hold no letter, no space and nothing that folds or composes


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function; the machine code is kept beside the source, else in the user's cache folder.

    What is kept is made anew when the function's own file changes: it should call compiled functions of its own file
    alone.
    """
    try:
        return cast("Callable[..., Any]", numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # neither can be written to: each process compiles for itself
        return cast("Callable[..., Any]", numba.njit(nogil=True)(function))


class Alphabet(NamedTuple):
    """What is known of each code point.

    Attributes:
        folded: uint32[0x110000], what it folds to.
        kind: uint8[0x110000], the kind of what it folds to.
        special: bool[0x110000], whether it folds to several or may compose with a neighbour.
        word: bool[0x110000], whether ``\\w`` matches it as it stands.
        space: bool[0x110000], whether ``\\s`` matches it as it stands.
    """

    folded: np.ndarray
    kind: np.ndarray
    special: np.ndarray
    word: np.ndarray
    space: np.ndarray


@lru_cache(maxsize=1)
def alphabet() -> Alphabet:
    """The tables of this Python's Unicode."""
    folded = np.arange(_POINTS, dtype=np.uint32)
    kind = np.full(_POINTS, OTHER, np.uint8)
    special = np.zeros(_POINTS, np.bool_)
    special[0x1160:0x1200] = True  # vowels and endings of Hangul compose by rule, not by table
    inside = re.compile(WORD).fullmatch
    for point in (*range(0xD800), *range(0xE000, _KNOWN_POINTS)):  # surrogates are no text
        character = chr(point)
        if character.isalnum():
            kind[point] = LETTER
        elif character.isspace():
            kind[point] = SPACE
        elif unicodedata.category(character)[0] == "M" and inside(f"a{character}"):
            kind[point] = MARK
        if (lower := character.casefold()) != character:
            folded[point] = ord(fold(character)[0])
            special[point] |= len(lower) > 1
        if unicodedata.combining(character) or not unicodedata.is_normalized("NFC", character):
            special[point] = True
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            special[int(parts[1], 16)] = True
    word, space = kind == LETTER, kind == SPACE
    word[ord("_")] = True
    kind[ord("-")], kind[ord("'")], kind[ord("\n")] = HYPHEN, APOSTROPHE, OTHER
    for sign in "_’":
        folded[ord(sign)] = ord(fold(sign))
    return Alphabet(folded, kind[folded], special | special[folded], word, space)


@compiled
def decode(text: np.ndarray, place: int) -> tuple[np.uint32, int]:
    """A code point of UTF-8 and how many bytes it has."""
    first = np.uint32(text[place])
    if first < 0x80:
        return first, 1
    second = np.uint32(text[place + 1]) & np.uint32(0x3F)
    if first < 0xE0:
        return ((first & np.uint32(0x1F)) << np.uint32(6)) | second, 2
    third = np.uint32(text[place + 2]) & np.uint32(0x3F)
    if first < 0xF0:
        return ((first & np.uint32(0x0F)) << np.uint32(12)) | (second << np.uint32(6)) | third, 3
    fourth = np.uint32(text[place + 3]) & np.uint32(0x3F)
    high = ((first & np.uint32(0x07)) << np.uint32(18)) | (second << np.uint32(12))
    return high | (third << np.uint32(6)) | fourth, 4


@compiled
def encode(point: np.uint32, into: np.ndarray, place: int) -> int:
    """Writes a code point as UTF-8 and returns where it ends."""
    if point < 0x80:
        into[place] = point
        return place + 1
    if point < 0x800:
        into[place] = 0xC0 | (point >> 6)
        into[place + 1] = 0x80 | (point & 0x3F)
        return place + 2
    if point < 0x10000:
        into[place] = 0xE0 | (point >> 12)
        into[place + 1] = 0x80 | ((point >> 6) & 0x3F)
        into[place + 2] = 0x80 | (point & 0x3F)
        return place + 3
    into[place] = 0xF0 | (point >> 18)
    into[place + 1] = 0x80 | ((point >> 12) & 0x3F)
    into[place + 2] = 0x80 | ((point >> 6) & 0x3F)
    into[place + 3] = 0x80 | (point & 0x3F)
    return place + 4
