"""The matcher against plain Python and naive oracles, and what its stored table is trusted for."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.core.alphabet import alphabet
from pipeline.core.tokens import fold, tokens
from pipeline.select import cut, match, search, table
from pipeline.select.match import MODES, Matcher, Matches
from pipeline.select.plain import PlainMatcher

HOSTILE = st.text(
    st.sampled_from(
        "ab AB,.;:?!`'’\"()-_\t\n\r\0 é\u0301\u0327ßſİŉŐǰΐᾳς中한ᄀ\u1161\u11a8"
        "क\u093e\u094dשׁ\u0627ﬁ½²👩\u200d\u3000\ud800Ⱥ"
    ),
    max_size=24,
)
# Words around the eight bytes that are read at once, of characters of one to four bytes.
LONG_WORDS = st.lists(
    st.tuples(st.sampled_from(["a", "é", "中", "𝒳", "'", "\0"]), st.integers(0, 18)).map(
        lambda p: p[0] * p[1]
    ),
    max_size=5,
).map(" ".join)
TEXT = HOSTILE | LONG_WORDS | st.text(max_size=12)
BOTH = pytest.mark.parametrize("mode", MODES)


def found(matches: Matches) -> set[tuple[int, int]]:
    assert matches.rows.dtype == np.int64
    assert matches.query_ids.dtype == np.int32
    pairs = list(zip(matches.rows.tolist(), matches.query_ids.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    return set(pairs)


def plainly(queries: Sequence[str], texts: Sequence[str], mode: str) -> set[tuple[int, int]]:
    counts, ids = PlainMatcher(enumerate(queries), mode).match(texts)
    rows = np.repeat(np.arange(len(texts)), counts)
    return set(zip(rows.tolist(), ids.tolist(), strict=True))


def metaclip_oracle(queries: list[str], texts: list[str]) -> set[tuple[int, int]]:
    """MetaCLIP's rule as its paper and code describe it: substrings of the spaced text."""
    spaced = []
    for text in texts:
        line = f" {text} "
        for sign in ",.;:?!`":
            line = line.replace(sign, f" {sign} ")
        for sign in "\t\n\r":
            line = line.replace(sign, " ")
        spaced.append(line)
    return {
        (r, q) for r, line in enumerate(spaced) for q, query in enumerate(queries) if f" {query} " in line
    }


def clean_oracle(queries: list[str], texts: list[str]) -> set[tuple[int, int]]:
    def joined(text: str) -> str:
        return "\0" + "\0".join(tokens(text)) + "\0"

    return {
        (r, q)
        for r, text in enumerate(texts)
        for q, query in enumerate(queries)
        if tokens(query) and joined(query) in joined(text)
    }


@settings(max_examples=400)
@given(st.lists(TEXT, max_size=8), st.lists(TEXT, max_size=6))
@example(["a", "", " ", "a b", "a  b", "b,", ","], ["a b", "a  b", "a,b", "", " ", "a\tb", "xa b"])
@example(["foo bar"], ["foo, bar"])
def test_metaclip_is_the_substring_rule(queries: list[str], texts: list[str]) -> None:
    expected = metaclip_oracle(queries, texts)
    assert found(Matcher(enumerate(queries), "metaclip").match(texts)) == expected
    assert plainly(queries, texts, "metaclip") == expected


@settings(max_examples=400)
@given(st.lists(TEXT, max_size=8), st.lists(TEXT, max_size=6))
def test_clean_finds_every_query_as_whole_words(queries: list[str], texts: list[str]) -> None:
    expected = clean_oracle(queries, texts)
    assert found(Matcher(enumerate(queries)).match(texts)) == expected
    assert plainly(queries, texts, "clean") == expected


QUERIES = [
    "new york",
    "new york city",
    "york",
    "city hall",
    "st. louis",
    "spider-man",
    "New York",
    "o'clock",
    "...",
]


@pytest.mark.parametrize(
    ("text", "clean", "metaclip"),
    [
        ("New York City Hall", [0, 1, 2, 3, 6], [6]),
        ("new york city hall", [0, 1, 2, 3, 6], [0, 1, 2, 3]),
        ("the new yorker", [], []),
        ("view of St. Louis, Missouri", [4], []),
        ("Spider-Man at 5 o’clock", [5, 7], []),
        ('"york" (york)', [2], []),
        ("new, york", [0, 2, 6], [2]),
        ("...", [], []),
        ("", [], []),
    ],
)
def test_known_texts(text: str, clean: list[int], metaclip: list[int]) -> None:
    for mode, expected in (("clean", clean), ("metaclip", metaclip)):
        matches = Matcher(enumerate(QUERIES), mode).match(["nothing", text])
        assert matches.query_ids.tolist() == expected
        assert set(matches.rows.tolist()) <= {1}


@settings(max_examples=300)
@given(st.data(), st.lists(TEXT, min_size=1, max_size=6), st.sampled_from(MODES))
def test_queries_cut_out_of_the_texts(data: st.DataObject, texts: list[str], mode: str) -> None:
    """Random queries seldom match; these mostly do."""
    queries = []
    for text in data.draw(st.lists(st.sampled_from(texts), max_size=8)):
        begin = data.draw(st.integers(0, len(text)))
        queries.append(text[begin : data.draw(st.integers(begin, len(text)))])
    oracle = clean_oracle if mode == "clean" else metaclip_oracle
    assert found(Matcher(enumerate(queries), mode).match(texts)) == oracle(queries, texts)


@BOTH
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_arrow_arrays_of_any_kind_slice_and_nulls(mode: str, kind: pa.DataType) -> None:
    texts = ["dog", None, "a İstanbul cat", "", None, "hot dog", "dog"]
    queries = ["dog", "hot dog", "İstanbul", "cat", ""]
    whole = pa.array(texts, pa.string()).cast(kind)
    matcher = Matcher(enumerate(queries), mode)
    for begin in range(len(texts) + 1):
        for end in range(begin, len(texts) + 1):
            there = [(n, t) for n, t in enumerate(texts[begin:end]) if t is not None]
            expected = {(there[r][0], q) for r, q in plainly(queries, [t for _, t in there], mode)}
            assert found(matcher.match(whole[begin:end])) == expected
            chunks = pa.chunked_array([whole[begin:end], whole[:0], whole[end:]], whole.type)
            assert expected <= found(matcher.match(chunks))


@BOTH
def test_empty_everything(mode: str) -> None:
    assert found(Matcher([], mode).match([])) == set()
    assert found(Matcher([], mode).match(["dog", ""])) == set()
    assert found(Matcher([(0, "dog")], mode).match([])) == set()
    assert found(Matcher([(0, "dog")], mode).match(pa.array([None, None], pa.string()))) == set()
    assert found(Matcher([(0, ""), (1, "...")], mode).match(["", "..."])) == (
        {(0, 0), (1, 0)} if mode == "metaclip" else set()
    )


@BOTH
def test_queries_of_the_same_words_and_ids_in_any_order(mode: str) -> None:
    matcher = Matcher([(9, "hot dog"), (4, "dog"), (7, "dog"), (5, "hot dog"), (4, "dog")], mode)
    assert found(matcher.match(["hot dog", "dog dog"])) == {(0, 4), (0, 5), (0, 7), (0, 9), (1, 4), (1, 7)}


def test_more_matches_than_there_is_room_for() -> None:
    same = Matcher((n, "dog") for n in range(5000))
    assert same.match(["dog", "cat", "dog dog"]).query_ids.tolist() == [*range(5000), *range(5000)]
    nested = [" ".join("a" * n) for n in range(1, 400)]
    matches = Matcher(enumerate(nested)).match([nested[-1]] * 3)
    assert matches.query_ids.tolist() == [*range(399)] * 3


def test_every_code_point_alone_and_between_letters() -> None:
    """Beside the hostile ones: what the tables say of a character is what Python says of it."""
    points = [chr(p) for p in range(0x20000) if not 0xD800 <= p < 0xE000]
    texts = [f"{c} a{c}b" for c in points]
    words = sorted({w for t in texts for w in tokens(t)})
    assert found(Matcher(enumerate(words)).match(texts)) == plainly(words, texts, "clean")


def test_folding_makes_no_text_longer_than_there_is_room_for() -> None:
    known = alphabet()
    grown = [p for p in range(0x20000) if not known.special[p] and known.folded[p] != p]
    assert all(2 * len(chr(known.folded[p]).encode()) <= 3 * len(chr(p).encode()) for p in grown)
    texts = ["Ⱥ" * n for n in range(40)]
    assert found(Matcher(enumerate(texts)).match(texts)) == {(n, n) for n in range(1, 40)}
    assert fold("Ⱥ").encode() == "ⱥ".encode()


@BOTH
def test_no_hash_is_trusted(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = ["photograph", "photographs", "photography", "photographer x", "a photograph", "pho"]
    texts = ["a photography", "photograph x photographer x", "photographic", "photographx photographs pho"]

    def plain(module: object, *names: str) -> None:
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name).py_func)

    def colliding(wide: np.ndarray, begin: int, end: int) -> np.uint64:
        own = cut.key_of.py_func(wide, begin, end)  # type: ignore[attr-defined]
        return cut.LONG if own >= cut.LONG else own

    plain(table, "_number_words")
    plain(search, "_search", "_find_words")
    monkeypatch.setattr(table, "key_of", colliding)
    monkeypatch.setattr(search, "key_of", colliding)
    with np.errstate(over="ignore"):
        assert found(Matcher(enumerate(queries), mode).match(texts)) == plainly(queries, texts, mode)


@BOTH
def test_many_texts_in_many_blocks(mode: str) -> None:
    """Realistic sizes: many texts, lists of several queries, texts longer than a block among them."""
    rng = random.Random(0)
    known = [
        f"{a}{b}" for a in ("dog", "kä", "Straße", "o'", "日本") for b in ("", "s", "house", "ographically")
    ]
    queries = [" ".join(rng.choices(known, k=rng.randint(1, 4))) for _ in range(300)]
    texts = [
        " ".join(rng.choices([*known, "x", "a,b", "é\u0301"], k=rng.randint(0, 30))) for _ in range(1500)
    ]
    texts[100] = " ".join(texts[:700])
    assert found(Matcher(enumerate(queries), mode).match(texts)) == plainly(queries, texts, mode)


@BOTH
def test_a_megabyte(mode: str) -> None:
    texts = [
        "x" * 1_000_000,
        "é " * 400_000 + "dog",
        "\0" * 1_000_000 + " dog",
        "e\u0301 dog " * 100_000,
        ",dog" * 250_000,
    ]
    queries = ["dog", "é dog", "x" * 1_000_000, "x" * 999_999, "dog ,", "dog dog"]
    assert found(Matcher(enumerate(queries), mode).match(texts)) == plainly(queries, texts, mode)


def test_large_texts_and_long_queries() -> None:
    text = "word " * 200_000 + "end"
    matches = Matcher([(7, "word word word"), (9, "end"), (11, "word end"), (13, "end word")]).match([text])
    assert matches.query_ids.tolist() == [7, 9, 11]


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="mode='fuzzy' must be one of clean, metaclip"):
        Matcher([], "fuzzy")
    for wrong in (-1, 2**31 - 1):
        with pytest.raises(ValueError, match="query_id must lie between 0 and"):
            Matcher([(wrong, "dog")])
    assert Matcher([(2**31 - 2, "dog")]).match(["dog"]).query_ids.tolist() == [2**31 - 2]
    for broken in (b"dog \xe4\xb8", b"\xff", b"\xf0\x9f"):
        array = pa.StringArray.from_buffers(
            1, pa.py_buffer(np.array([0, len(broken)], np.int32)), pa.py_buffer(broken)
        )
        with pytest.raises(pa.ArrowInvalid, match="UTF8"):
            Matcher([(0, "dog")]).match(array)


@BOTH
def test_without_numba_plain_python_does_it(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts: list[str | None] = ["New York City Hall", "\ud800 york", None, "İstanbul, new york"]
    compiled = Matcher(enumerate(QUERIES), mode)
    monkeypatch.setattr(match, "COMPILED", False)
    plain = Matcher(enumerate(QUERIES), mode, stored=str(tmp_path / "matcher"))
    plain.store(str(tmp_path / "matcher"))
    assert not list(tmp_path.iterdir())
    spelt = [t for t in texts if t is not None]
    assert found(plain.match(spelt)) == found(compiled.match(spelt)) != set()
    array = pa.array(["new york", None, ""])
    assert found(plain.match(array)) == found(compiled.match(array)) != set()


def test_the_switch_is_the_import_of_numba() -> None:
    code = """
import sys
sys.modules["numba"] = None
from pipeline.select import match
assert not match.COMPILED
print(match.Matcher([(3, "hot dog")]).match(["a Hot-Dog"]).query_ids.tolist())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[3]\n"


LISTED = pa.table({"query_id": pa.array(range(9), pa.int32()), "query": QUERIES})


def stored(tmp_path: Path, mode: str = "clean") -> Path:
    path = tmp_path / "matcher"
    Matcher(LISTED, mode).store(str(path))
    return path


def built(monkeypatch: pytest.MonkeyPatch, queries: pa.Table, mode: str, path: str) -> bool:
    """Whether a matcher builds its table although there is a file."""
    calls = []
    build = table.build

    def counted(*args: object, **more: object) -> table.Table:
        calls.append(1)
        return build(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(table, "build", counted)
    matcher = Matcher(queries, mode, stored=path)
    monkeypatch.setattr(table, "build", build)
    fresh = Matcher(queries, mode)
    text = ["New York City Hall at 5 o’clock in new york"]
    assert found(matcher.match(text)) == found(fresh.match(text))
    return bool(calls)


@BOTH
def test_a_stored_table_is_mapped(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path, mode)
    assert not built(monkeypatch, LISTED, mode, str(path))
    assert path.read_bytes() == stored(tmp_path, mode).read_bytes()
    held = Matcher(LISTED, mode, stored=str(path))._table.words
    while isinstance(held.base, np.ndarray):
        held = held.base
    assert isinstance(held, np.memmap)


def test_a_remote_table_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Matcher(LISTED).store("memory://tables/matcher")
    assert not built(monkeypatch, LISTED, "clean", "memory://tables/matcher")
    assert built(monkeypatch, LISTED, "clean", "memory://tables/none")


def test_another_list_mode_or_version_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(stored(tmp_path))
    assert built(monkeypatch, LISTED, "metaclip", path)
    assert built(monkeypatch, LISTED.slice(0, 8), "clean", path)
    turned = pa.table({"query_id": LISTED["query_id"], "query": LISTED["query"].to_pylist()[::-1]})
    assert built(monkeypatch, turned, "clean", path)
    renumbered = pa.table({"query_id": pa.array(range(1, 10), pa.int32()), "query": LISTED["query"]})
    assert built(monkeypatch, renumbered, "clean", path)
    # The same bytes cut elsewhere are another list.
    assert table.identity(np.zeros(2, np.int32), pa.array([b"ab", b"c"], pa.large_binary()), "clean") != (
        table.identity(np.zeros(2, np.int32), pa.array([b"a", b"bc"], pa.large_binary()), "clean")
    )
    monkeypatch.setattr(table, "VERSION", 2)
    assert built(monkeypatch, LISTED, "clean", path)


def test_a_damaged_table_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path)
    whole = path.read_bytes()
    head = whole.index(b"\n", len(table._MAGIC))
    said = json.loads(whole[len(table._MAGIC) : head])
    wrong = {
        "nothing": b"",
        "a byte": whole[:1],
        "half the head": whole[: head // 2],
        "the head": whole[: head + 1],
        "all but a byte": whole[:-1],
        "a byte more": whole + b"\0",
        "another file": b"\x89PNG" + whole,
        "no JSON": whole.replace(b'{"', b"{{", 1),
        "a turned bit": whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:],
        "zeros": whole[: -said["bytes"]] + bytes(said["bytes"]),
    }
    for name, data in wrong.items():
        path.write_bytes(data)
        assert built(monkeypatch, LISTED, "clean", str(path)), name
    path.write_bytes(whole)
    assert not built(monkeypatch, LISTED, "clean", str(path))


def test_a_builder_killed_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import os, signal
import numpy as np
from pipeline.select import match, table
ended = os.replace
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
match.Matcher([(0, "dog")]).store({str(tmp_path / "matcher")!r})
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ran.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir() if re.fullmatch(r"\.matcher\.\w+\.tmp", p.name) is None] == []
