"""The tokenizer gives OpenAI's ids."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.tokenizer import fuzz_corpus
from model.tokenizer import _WORDS, Tokenizer, byte_order, clean, merge_table, trim, whole_words

# Made with OpenAI's own tokenizer: entities, mojibake, emoji, scripts, control characters, special tokens.
GOLDEN: list[tuple[str, list[int]]] = [
    (text, ids) for text, ids in json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text())
]
TOKENIZER = Tokenizer()


@pytest.mark.parametrize(("text", "ids"), GOLDEN)
def test_ids_are_openais(text: str, ids: list[int]) -> None:
    assert TOKENIZER.encode(text) == ids


def test_vocabulary() -> None:
    table = merge_table()
    assert sorted(table.values()) == list(range(512, 49_406))
    assert sorted(byte_order()) == list(range(256))
    assert (TOKENIZER.start, TOKENIZER.end) == (49_406, 49_407)


def test_rows_are_framed_padded_and_cut() -> None:
    rows = TOKENIZER(["a cat", "", "cat " * 100])
    assert rows.shape == (3, 77)
    assert rows.dtype == np.int64
    assert rows[0, :5].tolist() == [49406, 320, 2368, 49407, 0]
    assert rows[1, :3].tolist() == [49406, 49407, 0]
    assert rows[2].tolist() == [49406, *[2368] * 75, 49407]
    assert trim(rows[:2]).shape == (2, 4)
    assert trim(rows).shape == (3, 77)


def test_smaller_vocabulary_has_the_most_frequent_merges() -> None:
    small = Tokenizer(vocab_size=2_000)
    assert (small.start, small.end) == (1_998, 1_999)
    assert small.encode("the cat") == TOKENIZER.encode("the cat")[:1] + small.encode("cat")
    assert max(small.encode("a supercalifragilistic emoji 犬")) < 1_998


def reference_merge(word: str) -> list[int]:
    """The definition, slowly: merge the earliest pair of the table until none is left."""
    order = byte_order()
    ids = [order.index(b) for b in word.encode()]
    ids[-1] += 256
    table = merge_table()
    while True:
        pairs = [table[p] for p in pairwise(ids) if p in table]
        if not pairs:
            return ids
        best = min(pairs)
        for place in range(len(ids) - 1):
            if table.get((ids[place], ids[place + 1])) == best:
                ids[place : place + 2] = [best]
                break


@settings(deadline=None)
@given(st.text(alphabet="abcdeinorst", min_size=1, max_size=24))
def test_merging_follows_the_definition(word: str) -> None:
    assert Tokenizer().encode(word) == reference_merge(word)


@settings(deadline=None)
@given(st.text(max_size=60).filter(lambda t: t.isascii() and t.isprintable() and "&" not in t))
def test_fast_path_equals_full_cleaning(text: str) -> None:
    import html

    import ftfy

    assert " ".join(clean(text).split()) == " ".join(html.unescape(ftfy.fix_text(text)).lower().split())


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_gives_valid_rows(text: str) -> None:
    row = TOKENIZER([text])[0]
    end = int(row.argmax())
    assert row[0] == 49_406
    assert row[end] == 49_407
    assert not row[end + 1 :].any()
    assert TOKENIZER.encode(text) == TOKENIZER.encode(text)


def test_whole_words_are_what_merging_gives() -> None:
    words = whole_words()
    assert len(words) > 30_000
    assert words["photo"] == 1125
    some = sorted(words)[::97]
    assert [reference_merge(w) for w in some] == [[words[w]] for w in some]
    assert [TOKENIZER._merged(w) for w in words] == [[i] for i in words.values()]


def test_fuzz_corpus_follows_the_definition() -> None:
    import html

    import ftfy
    import regex

    for text in fuzz_corpus(600, seed=1):
        cleaned = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        cleaned = regex.sub(r"\s+", " ", cleaned).strip().lower()
        specials = {"<|startoftext|>": [49_406], "<|endoftext|>": [49_407]}
        wanted = [i for word in _WORDS.findall(cleaned) for i in specials.get(word) or reference_merge(word)]
        assert TOKENIZER.encode(text) == wanted, repr(text)


def test_a_full_cache_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer()
    monkeypatch.setattr("model.tokenizer._MAX_CACHED", 1)
    texts = ["supercalifragilistic words", "words, words!", "supercalifragilistic"]
    assert [tokenizer.encode(t) for t in texts] == [TOKENIZER.encode(t) for t in texts]
