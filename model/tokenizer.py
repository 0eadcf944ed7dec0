"""CLIP's tokenizer: lower-cased byte-pair encoding of 49,408 entries, ids identical to OpenAI's (paper 2.4).

The merges ship in ``vocabulary/`` (MIT, (c) 2021 OpenAI). Ids: 256 bytes, 256 bytes that end a word, one id per
merge in the order of the file, start of text, end of text.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Iterable, Sequence
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
def merge_table() -> dict[tuple[int, int], int]:
    """Pair of ids to the id of their merge; a lower id merges earlier."""
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
    return table


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
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the start and end tokens."""
        ids: list[int] = []
        for chunk in clean(text).split(" "):  # no word of the pattern holds white space
            found = self._cache.get(chunk)
            if found is None:
                found = [i for word in _WORDS.findall(chunk) for i in self._word(word)]
                if len(self._cache) >= _MAX_CACHED:
                    self._cache.clear()
                self._cache[chunk] = found
            ids += found
        return ids

    def _word(self, word: str) -> Sequence[int]:
        if word in self._specials:
            return self._specials[word]
        ids = [self._byte_ids[b] for b in word.encode()]
        ids[-1] += 256
        while len(ids) > 1:
            merges = [self._table.get(pair, VOCABULARY) for pair in pairwise(ids)]
            best = min(merges)
            if best == VOCABULARY:
                break
            ids = _merge(ids, merges, best)
        return ids

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """Ids [N, context_length] int64: start, text, end, zeros."""
        encoded = [self.encode(t)[: self.context_length - 2] for t in texts]
        out = np.zeros((len(encoded), self.context_length), dtype=np.int64)
        for row, ids in zip(out, encoded, strict=True):
            row[0] = self.start
            row[1 : len(ids) + 1] = ids
            row[len(ids) + 1] = self.end
        return out


def _merge(ids: list[int], merges: list[int], best: int) -> list[int]:
    """Every occurrence of the best pair merged, from left to right without overlaps."""
    out, place = [], 0
    while place < len(ids):
        if place < len(merges) and merges[place] == best:
            out.append(best)
            place += 2
        else:
            out.append(ids[place])
            place += 1
    return out


def trim(tokens: np.ndarray) -> np.ndarray:
    """Cuts the columns that are padding in every row: the text tower does not see them."""
    # The end token is the highest id of a row, so its place is the row's length.
    longest = int(tokens.argmax(axis=1).max()) + 1 if len(tokens) else 0
    return tokens[:, :longest]
