from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.alphabet import alphabet, compiled
from pipeline.core.tokens import WORD, fold, tokens
from queries.lexicon import BREAK, Batch, Lexicon

# The same in plain Python: words, and marks between them where bigrams end.
MARK = r"[^\w\s-]+|\n\s*|(?<=\s)-+|--+|-(?=\s)"
PIECES = re.compile(f"{WORD}|{MARK}")
IS_WORD = re.compile(WORD)

# Words, marks and spaces in any mixture, with what is special to either route.
TEXTS = st.text(
    alphabet=st.one_of(
        st.sampled_from("ab'’-–_. \n\t\"é1\u0301\u0345ǆǅßİſKΩ각각\u0e33नि😀𝐀𐐀"),
        st.characters(exclude_categories=["Cs"]),
    )
)


def expected(texts: list[str]) -> list[str | None]:
    """Words in order, ``None`` where bigrams end; one for each text's start."""
    found: list[str | None] = []
    for text in texts:
        one: list[str | None] = [None]
        for piece in PIECES.findall(fold(text)):
            word = piece if IS_WORD.fullmatch(piece) else None
            if word is not None or one[-1] is not None:
                one.append(word)
        found += one[:-1] if len(one) > 1 and one[-1] is None else one
    return found


def read(texts: list[str], partitions: int = 1) -> Batch:
    collected = Lexicon()
    for text in texts:
        collected.add(text)
    return collected.take(partitions)


def spelt(batch: Batch) -> list[str | None]:
    names = batch.words.to_pylist()
    return [None if token == BREAK else names[token] for token in batch.tokens]


@given(st.lists(TEXTS, max_size=4), st.integers(1, 5))
def test_the_compiled_tokeniser_is_the_plain_one(texts: list[str], partitions: int) -> None:
    batch = read(texts, partitions)
    assert [w for w in spelt(batch) if w] == [w for text in texts for w in tokens(text)]
    assert spelt(batch) == expected(texts)
    assert dict(zip(batch.words.to_pylist(), batch.counts.tolist(), strict=True)) == Counter(
        w for text in texts for w in tokens(text)
    )


def test_every_code_point_alone_and_inside_a_word() -> None:
    points = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    # Texts of their own: a special one would send all its neighbours to the plain route.
    special = alphabet().special
    plain = "".join(f"{c} a{c}b\n" for c in points if not special[ord(c)])
    assert spelt(read([plain])) == expected([plain])
    rest = [f"{c} a{c}b" for c in points if special[ord(c)]]
    assert spelt(read(rest)) == expected(rest)
    assert not any(unicodedata.combining(c) for c in points if not special[ord(c)])


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("Spider-Man's web", ["spider man's", "man's web"]),
        ("a - b -c- d--e–f", []),
        ("a\nb. c  d\te_f", ["c d", "d e", "e f"]),
        ("“great” one’s (two)", []),
        ("a-\nb -", []),
    ],
)
def test_where_bigrams_end(text: str, pairs: list[str]) -> None:
    found = spelt(read([text]))
    assert [f"{a} {b}" for a, b in itertools.pairwise(found) if a and b] == pairs


def test_large_texts_and_many_words() -> None:
    texts = [" ".join(f"w{i:x}" for i in range(n, n + 40_000)) for n in (0, 20_000, 500_000)]
    batch = read([*texts, "İ" * 300_000, "ȿ" * 300_000], partitions=7)
    assert spelt(batch) == expected([*texts, "İ" * 300_000, "ȿ" * 300_000])
    assert batch.counts.sum() == 120_002


def test_a_words_partition_is_its_own() -> None:
    def by_part(batch: Batch) -> dict[str, int]:
        spans = zip(batch.edges[:-1], batch.edges[1:], strict=True)
        return {w: part for part, (a, b) in enumerate(spans) for w in batch.words[a:b].to_pylist()}

    names = [f"word{i}" for i in range(50)]
    one, two = by_part(read([" ".join(names)], 3)), by_part(read(["x", " ".join(names[::-1])], 3))
    assert set(one.values()) == {0, 1, 2}
    assert one.items() <= two.items()


def test_taking_empties_the_lexicon() -> None:
    collected = Lexicon()
    collected.add("one two")
    assert collected.take().words.to_pylist() == ["one", "two"]
    assert spelt(collected.take()) == []
    collected.add("three")
    assert spelt(collected.take()) == [None, "three"]


def test_a_read_only_install_compiles_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: bool) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr("numba.njit", refuse)
    assert compiled(len) is len
