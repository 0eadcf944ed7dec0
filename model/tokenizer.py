"""CLIP's tokenizer: lower-cased byte-pair encoding of 49,408 entries, ids identical to OpenAI's (paper 2.4).

The merges ship in ``vocabulary/`` (MIT, (c) 2021 OpenAI). Ids: 256 bytes, 256 bytes that end a word, one id per
merge in the order of the file, start of text, end of text.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Iterable
from functools import cache
from importlib import resources
from itertools import pairwise

import ftfy
import numpy as np
import regex

from model.presets import VOCABULARY

CONTEXT_LENGTH = 77
_MERGES = VOCABULARY - 2 * 256 - 2
_MAX_CACHED = 1 << 20
_WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
_SPACE = regex.compile(r"\s+")


def byte_order() -> list[int]:
    """Bytes in the order of their ids: printable Latin-1 first, then the others (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [b for b in range(256) if b not in set(printable)]


def _byte_symbols() -> list[str]:
    """How the merges file spells the byte of each id."""
    symbols, unprintable = [], 0
    for byte in byte_order():
        if 0x21 <= byte < 0x7F or 0xA1 <= byte < 0xAD or byte >= 0xAE:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(256 + unprintable))
            unprintable += 1
    return symbols


@cache
def _vocabulary() -> tuple[dict[tuple[int, int], int], dict[str, int]]:
    """Pair of ids to the id of their merge, and the merges file's spelling of every entry to its id."""
    packed = resources.files("model").joinpath("vocabulary/bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")[1 : _MERGES + 1]
    ids: dict[str, int] = {}
    for i, symbol in enumerate(_byte_symbols()):
        ids[symbol], ids[symbol + "</w>"] = i, 256 + i
    table: dict[tuple[int, int], int] = {}
    for merged, line in enumerate(lines, start=512):
        left, right = line.split()
        table[ids[left], ids[right]] = merged
        ids[left + right] = merged
    return table, ids


def merge_table() -> dict[tuple[int, int], int]:
    """Pair of ids to the id of their merge; a lower id merges earlier."""
    return _vocabulary()[0]


@cache
def whole_words() -> dict[str, int]:
    """Words of ASCII letters that are one entry of the vocabulary; merging their bytes ends there, as a test shows."""
    spelt = {s.removesuffix("</w>"): i for s, i in _vocabulary()[1].items() if s.endswith("</w>")}
    return {word: i for word, i in spelt.items() if word.isascii() and word.isalpha()}


def clean(text: str) -> str:
    """OpenAI's cleaning: mend encodings, unescape HTML twice, collapse white space, lower case."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.strip().lower()  # nothing for ftfy and html to do
    mended = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _SPACE.sub(" ", mended).strip().lower()


class Tokenizer:
    """Texts to ids.

    Args:
        context_length: Columns of the result; longer texts lose their end but keep the end token.
        vocab_size: Entries; fewer than 49,408 leave out the rarest merges, and the two special ids stay the highest.
    """

    def __init__(self, *, context_length: int = CONTEXT_LENGTH, vocab_size: int = VOCABULARY) -> None:
        self.context_length = context_length
        self.start, self.end = vocab_size - 2, vocab_size - 1
        self._table = {pair: i for pair, i in merge_table().items() if i < self.start}
        self._byte_ids = [0] * 256
        for i, byte in enumerate(byte_order()):
            self._byte_ids[byte] = i
        self._specials = {"<|startoftext|>": [self.start], "<|endoftext|>": [self.end]}
        self._forget()

    def _forget(self) -> None:
        self._words = {word: [i] for word, i in whole_words().items() if i < self.start}
        self._chunks = dict(self._words)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the start and end tokens."""
        ids: list[int] = []
        for chunk in clean(text).split(" "):  # no word of the pattern holds white space
            found = self._chunks.get(chunk)
            ids += self._chunk(chunk) if found is None else found
        return ids

    def _chunk(self, chunk: str) -> list[int]:
        ids: list[int] = []
        for word in _WORDS.findall(chunk):
            found = self._words.get(word)
            if found is None:
                found = self._words[word] = self._merged(word)
            ids += found
        if len(self._chunks) + len(self._words) >= _MAX_CACHED:
            self._forget()
        self._chunks[chunk] = ids
        return ids

    def _merged(self, word: str) -> list[int]:
        if word in self._specials:
            return self._specials[word]
        ids = [self._byte_ids[b] for b in word.encode()]
        ids[-1] += 256
        get = self._table.get
        merges = [get(pair, VOCABULARY) for pair in pairwise(ids)]
        while merges:
            best = min(merges)
            if best == VOCABULARY:
                break
            place = merges.index(best)
            while True:
                # One merge touches its two neighbours only. Equal pairs merge from left to right, as OpenAI's do.
                ids[place : place + 2] = [best]
                del merges[place]
                if place:
                    merges[place - 1] = get((ids[place - 1], best), VOCABULARY)
                if place < len(merges):
                    merges[place] = get((best, ids[place + 1]), VOCABULARY)
                try:
                    place = merges.index(best, place)
                except ValueError:
                    break
        return ids

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """Ids [N, context_length] int64: start, text, end, zeros."""
        flat: list[int] = []
        lengths: list[int] = []
        room = self.context_length - 2
        for text in texts:
            ids = self.encode(text)[:room]
            lengths.append(len(ids) + 2)
            flat.append(self.start)
            flat += ids
            flat.append(self.end)
        out = np.zeros((len(lengths), self.context_length), dtype=np.int64)
        # One assignment for all rows: numpy's cost for each row would be as much as the merging.
        out[np.arange(self.context_length) < np.array(lengths, dtype=np.int64)[:, None]] = flat
        return out


def trim(tokens: np.ndarray) -> np.ndarray:
    """Cuts the columns that are padding in every row: the text tower does not see them."""
    # The end token is the highest id of a row, so its place is the row's length.
    longest = int(tokens.argmax(axis=1).max()) + 1 if len(tokens) else 0
    return tokens[:, :longest]
