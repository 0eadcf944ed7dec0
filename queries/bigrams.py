"""Bigrams with high pointwise mutual information: exact counts as packed integers.

A pair of neighbouring words is one uint64, ``first << 32 | second`` of the words' places in the vocabulary, mixed by
an odd factor: that can be undone, and sorted mixed keys lie sorted by partition too. A corpus is an int32 array of
places in which -1 stands for everything else (rare words, punctuation, line ends). A pair with a -1 in it does not
exist, so no bigram crosses punctuation or a line end.

PMI(a, b) = log2(c_ab · N / (c_a · c_b)), with N all words of the corpus, as nltk and MetaCLIP define it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

NOTHING = -1
_SHIFT = np.uint64(32)
_MASK = np.uint64(0xFFFFFFFF)
# An odd constant (2⁶⁴ / golden ratio) spreads neighbouring pairs over the partitions; its inverse modulo 2⁶⁴.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_GATHER = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))

Counts = tuple[np.ndarray, np.ndarray]
"""Packed keys uint64[n], ascending and distinct, and their counts int64[n]."""


def count(places: np.ndarray) -> Counts:
    """Counts neighbouring pairs.

    Args:
        places: int[n], the corpus as places in the vocabulary; -1 for everything else.
    """
    first, second = places[:-1], places[1:]
    real = (first != NOTHING) & (second != NOTHING)
    keys = np.sort(pack(first[real], second[real]))
    starts = _starts(keys)
    return keys[starts], np.diff(starts, append=len(keys))


def pack(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int[n], int[n] -> packed keys uint64[n]."""
    return ((first.astype(np.uint64) << _SHIFT) | second.astype(np.uint64)) * _SPREAD


def unpack(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packed keys uint64[n] -> first int64[n], second int64[n]."""
    pairs = keys * _GATHER
    return (pairs >> _SHIFT).astype(np.int64), (pairs & _MASK).astype(np.int64)


def edges(keys: np.ndarray, partitions: int) -> np.ndarray:
    """Where each partition begins among ascending keys, int64[partitions + 1].

    A key's partition depends on the key alone: partitions are equal ranges of the mixed keys.
    """
    begins = [np.uint64((part << 64) // partitions) for part in range(partitions)]
    return np.append(np.searchsorted(keys, np.array(begins, np.uint64)), len(keys))


def merge(several: Iterable[Counts]) -> Counts:
    """Adds counts up; the order they come in leaves no trace."""
    listed = list(several)
    keys = np.concatenate([k for k, _ in listed]) if listed else np.zeros(0, np.uint64)
    numbers = np.concatenate([n for _, n in listed]) if listed else np.zeros(0, np.int64)
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], numbers[order]
    starts = _starts(keys)
    return keys[starts], np.add.reduceat(numbers, starts) if len(keys) else numbers


def _starts(keys: np.ndarray) -> np.ndarray:
    """Places in ascending keys where another key begins, int64[distinct]."""
    return np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])


def pmi(counts: Counts, word_counts: np.ndarray, corpus_tokens: int) -> np.ndarray:
    """Pointwise mutual information in bits.

    Args:
        counts: Pairs and their joint counts [n].
        word_counts: int64[vocabulary], occurrences of each word.
        corpus_tokens: N, all words of the corpus, those outside the vocabulary too.

    Returns:
        float64[n].
    """
    keys, joint = counts
    first, second = unpack(keys)
    a, b = word_counts[first].astype(np.float64), word_counts[second].astype(np.float64)
    return np.log2(joint * float(corpus_tokens) / (a * b))


def npmi(pmi: np.ndarray, joint: np.ndarray, corpus_tokens: int) -> np.ndarray:
    """Normalised PMI: PMI / −log2(c_ab / N); 1 for words that occur only together, 0 for independent ones.

    Args:
        pmi: Bits, float64[n].
        joint: Counts of the pairs [n].
        corpus_tokens: N as for :func:`pmi`.

    Returns:
        float64[n].
    """
    return pmi / -np.log2(joint / float(corpus_tokens))


def enough(counts: Counts, scores: np.ndarray, *, min_count: int, pmi_min: float) -> np.ndarray:
    """bool[n]: which pairs are frequent enough and bound strongly enough."""
    return (counts[1] >= min_count) & (scores >= pmi_min)
