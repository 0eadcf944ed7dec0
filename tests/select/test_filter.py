"""The filter's batches: any text goes somewhere, and each row's fate is its own."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.contracts import CANDIDATES, QUERIES, pair_id
from pipeline.core.tokens import fold
from pipeline.select.config import SelectConfig
from pipeline.select.filter import MATCHED, REASONS, SHORT, Tools, filter_and_match, make_tools
from pipeline.select.plain import PlainMatcher
from pipeline.text.clean import clean

WORDS = ["red", "apple", "dog", "red dog", "שלום", "👩", "a", "x", "犬"]
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text("a\0\x01\n\r\x85\u200d\u202e\ufdd0\ufeff\U0010ffffאב👩🇸é\u0301 &<%+;,.", max_size=30),
    st.lists(
        st.sampled_from(
            [*WORDS, "Red", "DOG", "שלום", "&amp;", "<b>", "the", "nude", "IMG_1.jpg", "🙂", "\0"]
        ),
        max_size=8,
    ).map(" ".join),
)
BATCH = st.lists(st.tuples(TEXT, st.sampled_from([None, "en", "de", ""])), max_size=12)
TOOLS: dict[tuple[str, str, str], Tools] = {}


def tools(rules: str, language: str, matching: str) -> Tools:
    key = (rules, language, matching)
    if key not in TOOLS:
        settings_: dict[str, Any] = {"rules": rules, "language": language, "matching": matching}
        config = SelectConfig(candidates="c", queries="q", **settings_)
        rows = [{"query_id": i, "query": word, "sources": ["word"]} for i, word in enumerate(WORDS)]
        TOOLS[key] = make_tools(pa.Table.from_pylist(rows, schema=QUERIES.schema), config)
    return TOOLS[key]


def batch(found: list[tuple[str, str | None]]) -> pa.Table:
    rows: list[dict[str, object]] = [
        {
            "pair_id": pair_id(f"http://x.test/{i}", text), "url": f"http://x.test/{i}", "text": text,
            "text_source": "alt", "page_language": page, "rights": [], "origin": "t", "origin_offset": i,
        }
        for i, (text, page) in enumerate(found)
    ]  # fmt: skip
    return CANDIDATES.conform(pa.Table.from_pylist(rows, schema=CANDIDATES.schema))


@pytest.mark.parametrize("rules", ["clip", "none"])
@pytest.mark.parametrize("language", ["none", "fasttext-lite", "cascade"])
@pytest.mark.parametrize("matching", ["clean", "metaclip"])
@settings(max_examples=60, deadline=None)
@example(found=[])
@example(found=[("", None), ("\0", "en"), ("\u202e\ufeff", None)])
@given(found=BATCH)
def test_any_text_goes_somewhere(
    rules: str, language: str, matching: str, found: list[tuple[str, str | None]]
) -> None:
    used = tools(rules, language, matching)
    table = batch(found)
    matched, dropped = filter_and_match(table, used)
    assert matched.schema == MATCHED
    ids = matched["pair_id"].to_pylist() + dropped["id"].to_pylist()
    assert sorted(ids) == sorted(table["pair_id"].to_pylist())
    assert set(dropped["reason"].to_pylist()) <= set(REASONS)
    texts = dict(zip(table["pair_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    plain = PlainMatcher(enumerate(WORDS), matching)
    for row in matched.to_pylist():
        assert row["text"] == clean(texts[row["pair_id"]])
        assert row["query_ids"] == plain.match([row["text"]])[1].tolist() != []
    # A row's fate does not depend on the rows beside it, nor on what was judged before.
    alone = [filter_and_match(table.slice(i, 1), used) for i in range(len(found))]
    assert (
        pa.concat_tables([MATCHED.empty_table(), *(m for m, _ in alone)]).to_pylist() == matched.to_pylist()
    )


def test_a_megabyte_of_text() -> None:
    for text in (
        "red dog " * 125_000,
        "x" * 1_000_000,
        "\0" * 1_000_000,
        "👩\u200d" * 250_000,
        "שלום " * 200_000,
    ):
        matched, dropped = filter_and_match(batch([(text, None)] * 2), tools("none", "none", "clean"))
        assert matched.num_rows + dropped.num_rows == 2
        matched, dropped = filter_and_match(batch([(text, None)]), tools("clip", "cascade", "clean"))
        assert dropped["reason"].to_pylist()[0] in {"too_long", "empty"}
        assert len(text) > SHORT


def test_hashes_tell_candidates_apart() -> None:
    rows = batch([("red dog", None), ("Red DOG", ""), ("red dogs", None), ("red dog", "en")])
    rows = rows.set_column(1, "url", pa.array(["http://x.test/0"] * 4))
    matched, _ = filter_and_match(rows, tools("none", "none", "clean"))
    keys = list(zip(matched["key_high"].to_pylist(), matched["key_low"].to_pylist(), strict=True))
    folded = [fold(text) for text in matched["text"].to_pylist()]
    assert [a == b for a in keys for b in keys] == [a == b for a in folded for b in folded]
    assert len(set(matched["tie"].to_pylist())) == 4
    # What is missing is no empty text, and nothing moves from one column to the next.
    moved = {"page_url": ["a", "", None], "page_language": ["", "a", None]}
    three = batch([("red dog", None)] * 3)
    for name, values in moved.items():
        three = three.set_column(three.column_names.index(name), name, pa.array(values, pa.string()))
    three = three.set_column(three.column_names.index("url"), "url", pa.array(["u"] * 3))
    three = three.set_column(three.column_names.index("origin_offset"), "origin_offset", pa.array([0] * 3))
    matched, _ = filter_and_match(three, tools("none", "none", "clean"))
    assert len(set(matched["tie"].to_pylist())) == 3
