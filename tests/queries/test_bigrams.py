from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.collocations import BigramAssocMeasures, BigramCollocationFinder

from queries import bigrams
from queries.config import QueriesConfig
from queries.lexicon import Lexicon

TOY = "new york is a city . york is old , new york is new . a city in new york"


def score(text: str) -> dict[tuple[str, str], float]:
    """PMI of every pair of a text by our own way: read, count, score."""
    lexicon = Lexicon()
    lexicon.add(text)
    found = lexicon.take()
    counts = bigrams.count(found.tokens)
    scores = bigrams.pmi(counts, found.counts, int(found.counts.sum()))
    names = found.words.to_pylist()
    pairs = zip(*bigrams.unpack(counts[0]), strict=True)
    return {(names[a], names[b]): float(s) for (a, b), s in zip(pairs, scores, strict=True)}


def test_pmi_is_nltks() -> None:
    found = score(TOY.replace(".", "").replace(",", ""))
    finder = BigramCollocationFinder.from_words(TOY.replace(".", "").replace(",", "").split())
    expected = dict(finder.score_ngrams(BigramAssocMeasures.pmi))
    assert found.keys() == expected.keys()
    for pair, value in expected.items():
        assert found[pair] == pytest.approx(value, abs=1e-12)


def test_npmi_by_hand() -> None:
    # c_ab = 3, N = 17: PMI / -log2(3 / 17). Words that occur only together reach 1.
    pmi = np.array([math.log2(3 * 17 / (4 * 4)), math.log2(17 / 3)])
    found = bigrams.npmi(pmi, np.array([3, 3]), 17)
    assert found.tolist() == pytest.approx([math.log(51 / 16) / -math.log(3 / 17), 1.0])


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=40))
def test_npmi_is_a_share(corpus: list[str]) -> None:
    scores = score(" ".join(corpus))
    joint = Counter(itertools.pairwise(corpus))
    values = bigrams.npmi(np.array(list(scores.values())), np.array([joint[p] for p in scores]), len(corpus))
    assert len(values) == len(joint)
    # N counts words, of which there is one more than pairs: the bound is met but for that.
    assert ((values > -1 - 1e-9) & (values < 1 + 1 / math.log2(len(corpus) / (len(corpus) - 1)))).all()


def test_pmi_by_hand() -> None:
    # 17 words, "new" 4 times, "york" 4 times, together 3 times.
    assert score(TOY)["new", "york"] == pytest.approx(math.log2(3 * 17 / (4 * 4)))


def test_no_pair_crosses_punctuation_or_line_ends() -> None:
    found = score(TOY)
    assert ("city", "york") not in found
    assert ("old", "new") not in found
    assert set(score("a b\nc d - e f-g (h i) j/k")) == {
        ("a", "b"),
        ("c", "d"),
        ("e", "f"),
        ("f", "g"),
        ("h", "i"),
    }


def test_words_outside_the_vocabulary_pair_with_nothing() -> None:
    keys, counts = bigrams.count(np.array([0, -1, 1, 0, 1], np.int32))
    pairs = zip(*(x.tolist() for x in bigrams.unpack(keys)), counts.tolist(), strict=True)
    assert sorted(pairs) == [(0, 1, 1), (1, 0, 1)]


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))))
def test_packing_can_be_undone(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, np.int32).reshape(-1, 2).T
    assert list(zip(*(x.tolist() for x in bigrams.unpack(bigrams.pack(first, second))), strict=True)) == pairs


@given(st.lists(st.integers(-1, 5), max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_counts_do_not_depend_on_batches_and_partitions(corpus: list[int], cut: int, partitions: int) -> None:
    expected = Counter((a, b) for a, b in itertools.pairwise(corpus) if a >= 0 and b >= 0)
    # Batches overlap by one word here, so that no pair is lost between them; dumps are cut between articles.
    pieces = [np.array(corpus[i : i + cut + 1]) for i in range(0, max(len(corpus) - 1, 0), cut)]
    by_part: dict[int, list[bigrams.Counts]] = {}
    for piece in pieces:
        keys, numbers = bigrams.count(piece)
        assert (keys[1:] > keys[:-1]).all()
        for part, (start, end) in enumerate(itertools.pairwise(bigrams.edges(keys, partitions))):
            by_part.setdefault(part, []).append((keys[start:end], numbers[start:end]))
    found: Counter[tuple[int, int]] = Counter()
    for several in by_part.values():
        random.Random(0).shuffle(several)
        keys, numbers = bigrams.merge(several)
        assert (keys[1:] > keys[:-1]).all()
        for a, b, n in zip(*bigrams.unpack(keys), numbers, strict=True):
            found[int(a), int(b)] += int(n)
    assert found == expected


def test_merging_nothing() -> None:
    keys, numbers = bigrams.merge([])
    assert len(keys) == len(numbers) == 0


def test_the_minimum_scales_with_the_corpus() -> None:
    config = QueriesConfig()
    assert config.least_bigram_count(5_000_000_000) == 100
    assert config.least_bigram_count(2_500_000_000) == 50
    assert config.least_bigram_count(462_060) == 3
    assert QueriesConfig(bigram_min_count=7).least_bigram_count(10**12) == 7


def test_enough() -> None:
    counts = (np.array([1, 2, 3]), np.array([5, 2, 9]))
    enough = bigrams.enough(counts, np.array([6.0, 7.0, 1.0]), min_count=3, pmi_min=5)
    assert enough.tolist() == [True, False, False]
