"""Bigrams with high pointwise mutual information: exact counts as packed integers.

A pair of neighbouring words is one int64, ``first << 32 | second``, of the words' places in the vocabulary; a
corpus is an int32 array of places in which -1 stands for everything else (rare words, punctuation, line ends).
A pair with a -1 in it does not exist, so no bigram crosses punctuation or a line end.

PMI(a, b) = log2(c_ab · N / (c_a · c_b)), with N all words of the corpus, as nltk and MetaCLIP define it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

NOTHING = -1
_SHIFT = 32
_MASK = (1 << _SHIFT) - 1
# An odd constant (2⁶⁴ / golden ratio) spreads neighbouring keys over the partitions.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)

Counts = tuple[np.ndarray, np.ndarray]
"""Packed keys int64[n], ascending and distinct, and their counts int64[n]."""


def count(places: np.ndarray) -> Counts:
    """Counts neighbouring pairs.

    Args:
        places: int[n], the corpus as places in the vocabulary; -1 for everything else.
    """
    if len(places) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    first, second = places[:-1], places[1:]
    real = (first != NOTHING) & (second != NOTHING)
    keys, counts = np.unique(pack(first[real], second[real]), return_counts=True)
    return keys, counts.astype(np.int64)


def pack(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int[n], int[n] -> packed keys int64[n]."""
    return (first.astype(np.int64) << _SHIFT) | second.astype(np.int64)


def unpack(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packed keys int64[n] -> first int64[n], second int64[n]."""
    return keys >> _SHIFT, keys & _MASK


def split(counts: Counts, partitions: int) -> Iterator[tuple[int, Counts]]:
    """Splits counts by key; a key's partition depends on the key alone."""
    keys, numbers = counts
    if not len(keys):
        return
    parts = ((keys.astype(np.uint64) * _SPREAD) >> np.uint64(_SHIFT)) % np.uint64(partitions)
    order = np.argsort(parts, kind="stable")
    edges = np.searchsorted(parts[order], np.arange(partitions + 1))
    for part in range(partitions):
        chosen = order[edges[part] : edges[part + 1]]
        if len(chosen):
            yield part, (keys[chosen], numbers[chosen])


def merge(several: Iterable[Counts]) -> Counts:
    """Adds counts up; the order they come in leaves no trace."""
    listed = list(several)
    keys = np.concatenate([k for k, _ in listed]) if listed else np.zeros(0, np.int64)
    numbers = np.concatenate([n for _, n in listed]) if listed else np.zeros(0, np.int64)
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], numbers[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    return keys[starts], np.add.reduceat(numbers, starts) if len(keys) else numbers


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
