from __future__ import annotations

import math
import random
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.contracts import QUERIES
from pipeline.core.tokens import tokens
from queries import merge
from queries.config import QueriesConfig
from queries.merge import QueryList


def make(
    *,
    words: dict[str, int] | None = None,
    synsets: list[tuple[str, str]] | None = None,
    bigrams: dict[str, tuple[int, float]] | None = None,
    titles: dict[str, int] | None = None,
    size: int = 100,
    share: float = 0.62,
) -> QueryList:
    counted = pa.table({"word": list(words or {}), "count": list((words or {}).values())})
    scored = pa.table(
        {
            "bigram": pa.array(list(bigrams or {}), pa.string()),
            "count": pa.array([c for c, _ in (bigrams or {}).values()], pa.int64()),
            "pmi": pa.array([p for _, p in (bigrams or {}).values()], pa.float64()),
        }
    )
    views = pa.table(
        {
            "title": pa.array(list(titles or {}), pa.string()),
            "views": pa.array(list((titles or {}).values()), pa.int64()),
        }
    )
    return merge.build(
        words=merge.word_entries(counted),
        synsets=merge.synset_entries(synsets or []),
        bigrams=list(merge.bigram_entries(merge.ranked_bigrams(scored, "pmi", 0), size)),
        titles=list(merge.title_entries(views, size)),
        config=QueriesConfig(size=size, bigram_share=share),
    )


def reasons(made: QueryList) -> Counter[str]:
    return Counter(reason for reason, _, _ in made.dropped)


def test_a_query_names_all_its_sources() -> None:
    made = make(
        words={"dog": 500, "york": 200},
        synsets=[
            ("dog", "n02084071"),
            ("Dog", "n00000001"),
            ("New_York".replace("_", " "), "n09119277"),
            ("dog", "v1"),
        ],
        bigrams={"new york": (90, 9.5)},
        titles={"Dog": 70, "New York": 80, "Spider-Man": 60},
    )
    assert made.table.to_pylist() == [
        {"query_id": 0, "query": "dog", "sources": ["word", "title", "synset"], "count": 500, "pmi": None, "views": 70,
         "synsets": ["n00000001", "n02084071", "v1"]},
        {"query_id": 1, "query": "new york", "sources": ["bigram", "title", "synset"], "count": 90, "pmi": 9.5,
         "views": 80, "synsets": ["n09119277"]},
        {"query_id": 2, "query": "spider-man", "sources": ["title"], "count": None, "pmi": None, "views": 60,
         "synsets": None},
        {"query_id": 3, "query": "york", "sources": ["word"], "count": 200, "pmi": None, "views": None,
         "synsets": None},
    ]  # fmt: skip
    # Entries: 2 words, 2 distinct terms, 1 bigram, 3 titles.
    assert made.entries == 8
    assert reasons(made) == {"same_query": 4}
    assert made.taken == {"word": 2, "bigram": 0, "title": 1, "synset": 1}


def test_entries_of_the_same_words_are_one_query() -> None:
    made = make(bigrams={"spider man": (5, 9.0)}, titles={"Spider-Man": 3, "Spider Man": 4, "!!!": 9})
    (row,) = made.table.to_pylist()
    assert (row["query"], row["sources"], row["views"]) == ("spider man", ["bigram", "title"], 7)
    assert reasons(made) == {"same_query": 2, "no_words": 1}
    # Without a plain spelling the first source's stands.
    (row,) = make(synsets=[("jack-o'-lantern", "n1")], titles={"Jack o'-Lantern": 1}).table.to_pylist()
    assert row["query"] == "jack-o'-lantern"


def test_the_room_is_shared_and_left_over() -> None:
    bigrams = {f"a b{i:02d}": (5, 10.0 - i / 10) for i in range(30)}
    titles = {f"Title {i:02d}": 100 - i for i in range(30)}
    made = make(words={"a": 100}, bigrams=bigrams, titles=titles, size=21)
    assert made.table.num_rows == 21
    assert made.taken == {"word": 1, "bigram": 12, "title": 8, "synset": 0}  # round(20 * 0.62)
    assert made.thresholds == {"count": 100, "bigram_count": 5, "pmi": 10.0 - 1.1, "views": 93}
    assert reasons(made) == {"below_cut": 9 + 13}  # 21 best of each entered
    few_titles = make(bigrams=bigrams, titles=dict(list(titles.items())[:2]), size=20)
    assert few_titles.taken["title"] == 2
    assert few_titles.taken["bigram"] == 18
    few_bigrams = make(bigrams=dict(list(bigrams.items())[:2]), titles=titles, size=20)
    assert few_bigrams.taken == {"word": 0, "bigram": 2, "title": 18, "synset": 0}


def test_what_is_there_already_takes_no_room() -> None:
    made = make(
        synsets=[("new york", "n1")],
        bigrams={"new york": (9, 9.0), "united states": (9, 8.0), "los angeles": (9, 7.0)},
        titles={"United States": 50, "Cat": 40, "Cow": 30},
        size=3,
        share=0.5,
    )
    assert made.table["query"].to_pylist() == ["cat", "new york", "united states"]
    assert made.thresholds["pmi"] == 8.0


def test_words_and_synsets_are_kept_whatever_the_size() -> None:
    made = make(
        words={"a": 1, "b": 1}, synsets=[("c", "n1")], bigrams={"a b": (1, 1.0)}, titles={"D": 1}, size=2
    )
    assert made.table["query"].to_pylist() == ["a", "b", "c"]
    assert reasons(made) == {"below_cut": 2}


def test_ties_are_broken_by_count_then_text() -> None:
    bigrams = {"b b": (5, 7.0), "c c": (6, 7.0), "a a": (5, 7.0)}
    assert make(bigrams=bigrams, size=1, share=1.0).table["query"].to_pylist() == ["c c"]
    assert make(bigrams=bigrams, size=2, share=1.0).table["query"].to_pylist() == ["a a", "c c"]
    assert make(titles={"B": 1, "A": 1}, size=1).table["query"].to_pylist() == ["a"]


def test_npmi_ranks_and_cuts() -> None:
    scored = pa.table({"bigram": ["rare pair", "common pair"], "count": [3, 300], "pmi": [12.0, 11.0]})
    n = 1_000_000
    by_pmi = list(merge.bigram_entries(merge.ranked_bigrams(scored, "pmi", n), 2))
    assert [(e.text, e.npmi) for e in by_pmi] == [("rare pair", None), ("common pair", None)]
    by_npmi = list(merge.bigram_entries(merge.ranked_bigrams(scored, "npmi", n), 2))
    assert [e.text for e in by_npmi] == ["common pair", "rare pair"]
    assert by_npmi[0].npmi == pytest.approx(11 / math.log2(n / 300))
    config = QueriesConfig(size=1, bigram_share=1.0)
    made = merge.build(words=[], synsets=[], bigrams=by_npmi, titles=[], config=config)
    assert made.table.select(["query", "pmi"]).to_pylist() == [{"query": "common pair", "pmi": 11.0}]
    assert made.thresholds["npmi"] == by_npmi[0].npmi
    assert made.dropped == [("below_cut", "rare pair", f"bigram: npmi {12 / math.log2(n / 3):.3f}")]


NAMES = st.sampled_from(["dog", "cat", "new york", "New-York", "Dog", "a b c", "!!!", "São Paulo", "x y"])


@given(
    st.dictionaries(NAMES.filter(lambda n: tokens(n) == [n]), st.integers(100, 999)),
    st.lists(st.tuples(NAMES, st.sampled_from(["n1", "n2", "v3"]))),
    st.dictionaries(
        st.sampled_from(["new york", "x y", "cat dog"]), st.tuples(st.integers(3, 9), st.floats(5, 9))
    ),
    st.dictionaries(NAMES, st.integers(1, 9)),
    st.integers(1, 8),
    st.randoms(),
)
def test_the_list_adds_up_in_any_order(
    words: dict[str, int],
    synsets: list[tuple[str, str]],
    bigrams: dict[str, tuple[int, float]],
    titles: dict[str, int],
    size: int,
    draw: random.Random,
) -> None:
    made = make(words=words, synsets=synsets, bigrams=bigrams, titles=titles, size=size)
    QUERIES.check(made.table.schema, where="list")
    queries = made.table["query"].to_pylist()
    assert queries == sorted(set(queries))
    assert made.table["query_id"].to_pylist() == list(range(len(queries)))
    assert len({tuple(tokens(q)) for q in queries}) == len(queries)
    assert made.entries == len(queries) + len(made.dropped)
    assert {reason for reason, _, _ in made.dropped} <= set(merge.REASONS)
    mandatory = {" ".join(tokens(n)) for n in [*words, *(t for t, _ in synsets)]} - {""}
    # Filled to its size if there are as many different queries.
    keys = mandatory | set(bigrams) | ({" ".join(tokens(n)) for n in titles} - {""})
    assert len(queries) == min(max(size, len(mandatory)), len(keys))

    def shuffled(found: dict[str, object]) -> dict[str, object]:
        items = list(found.items())
        draw.shuffle(items)
        return dict(items)

    draw.shuffle(synsets)
    again = make(
        words=shuffled(words),  # type: ignore[arg-type]
        synsets=synsets,
        bigrams=shuffled(bigrams),  # type: ignore[arg-type]
        titles=shuffled(titles),  # type: ignore[arg-type]
        size=size,
    )
    assert again.table.equals(made.table)
    assert sorted(map(str, again.dropped)) == sorted(map(str, made.dropped))
