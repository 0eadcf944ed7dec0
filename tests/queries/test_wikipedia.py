from __future__ import annotations

import bz2
import gzip
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from queries import streams, wikipedia
from queries.streams import Loss
from queries.wikipedia import Page, Site

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <dbname>dewiki</dbname>
    <base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base>
    <case>first-letter</case>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Diskussion</namespace>
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""
TAIL = "</mediawiki>\n"


def page(title: str, text: str, *, ns: int = 0, redirect: str = "", model: str = "wikitext") -> str:
    target = f'<redirect title="{redirect}" />' if redirect else ""
    return (
        f"  <page>\n    <title>{title}</title>\n    <ns>{ns}</ns>\n    <id>1</id>\n    {target}\n    <revision>"
        f'<id>2</id><model>{model}</model><text bytes="3" xml:space="preserve">{text}</text></revision>\n  </page>\n'
    )


def many(count: int) -> list[str]:
    return [page(f"Page {i}", f"text &amp; number {i} " + f"word{i} " * (i % 50)) for i in range(count)]


def multistream(path: Path, pages: list[str], *, per_stream: int = 10, index: bool = False) -> Path:
    """A dump as MediaWiki packs it: header, streams of whole pages, tail."""
    groups = ["".join(pages[i : i + per_stream]) for i in range(0, len(pages), per_stream)]
    packed = [bz2.compress(part.encode()) for part in (HEAD, *groups, TAIL)]
    path.write_bytes(b"".join(packed))
    if index:
        places = [sum(map(len, packed[: i + 1])) for i in range(len(groups))]
        lines = "".join(
            f"{place}:{i}:Page: {i}\n" for i, place in enumerate(places) for _ in range(per_stream)
        )
        (path.parent / wikipedia.index_name(path.name)).write_bytes(bz2.compress(lines.encode()))
    return path


def read(*files: Path) -> tuple[list[Page], list[Loss], dict[str, int]]:
    lost: list[Loss] = []
    counts: dict[str, int] = Counter()
    splits = wikipedia.plan([str(f) for f in files])
    return [p for split in splits for p in wikipedia.read(split, lost, counts)], lost, counts


def test_what_counts_as_an_article(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    body = (
        page("Hund", "''Hunde'' &lt;b&gt; &amp;amp;")
        + page("Köter", "#WEITERLEITUNG [[Hund]]", redirect="Hund#Name")
        + page("Diskussion:Hund", "talk", ns=1)
        + page("Modul", "x", model="Scribunto")
        + page("Leer", "")
        + "<page><title>Bad<title></page>"
    )
    path.write_text(HEAD + body + TAIL)
    pages, lost, counts = read(path)
    assert pages == [Page("Hund", "''Hunde'' <b> &amp;"), Page("Köter", "", "Hund"), Page("Leer", "")]
    assert counts == {"pages": 6, "articles": 2, "redirects": 1, "other_namespace": 1, "other_model": 1}
    assert lost == [Loss(str(path), "page is not well-formed XML", None, 1)]


def test_the_site() -> None:
    site = wikipedia.read_site(HEAD.encode())
    assert (site.project, site.main_page, site.first_letter) == ("de", "Wikipedia:Hauptseite", True)
    assert site.namespaces == {"diskussion", "datei", "kategorie"}
    assert site.hidden == ("File", "Image", "Category", "Datei", "Kategorie")
    assert wikipedia.read_site(b"<mediawiki>") == Site()


def test_every_packing_holds_the_same_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikipedia, "SPLIT_BYTES", 1000)
    pages = many(95)
    whole = HEAD + "".join(pages) + TAIL
    (tmp_path / "plain.xml").write_text(whole)
    (tmp_path / "packed.xml.gz").write_bytes(gzip.compress(whole.encode()))
    (tmp_path / "single.xml.bz2").write_bytes(bz2.compress(whole.encode()))
    half = len(whole) // 2  # streams that cut pages in two, as pbzip2 makes them
    torn = b"".join(bz2.compress(part.encode()) for part in (whole[:half], whole[half:]))
    (tmp_path / "torn.xml.bz2").write_bytes(torn)
    multistream(tmp_path / "multistream.xml.bz2", pages)
    multistream(tmp_path / "multistream2.xml-p1p95.bz2", pages, index=True)
    expected = read(tmp_path / "plain.xml")
    assert len(expected[0]) == 95
    for path in [*sorted(tmp_path.glob("*.xml*bz2")), tmp_path / "packed.xml.gz"]:
        assert read(path) == expected, path
    assert len(wikipedia.plan([str(tmp_path / "single.xml.bz2")])) == 1
    assert len(wikipedia.plan([str(tmp_path / "plain.xml")])) > 2
    for name in ("multistream.xml.bz2", "multistream2.xml-p1p95.bz2"):
        splits = wikipedia.plan([str(tmp_path / name)])
        assert len(splits) > 2
        assert all(a.end == b.start for a, b in itertools.pairwise(splits))


def test_an_index_is_used_and_is_not_a_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikipedia, "SPLIT_BYTES", 1)
    path = multistream(tmp_path / "multistream1.xml-p1p50.bz2", many(50), index=True)
    index = tmp_path / "multistream-index1.txt-p1p50.bz2"
    assert index.exists()
    splits = wikipedia.plan([str(index), str(path)])
    assert len(splits) == 5  # one for each stream of pages
    pages, lost, _ = read(index, path)
    assert ([p.title for p in pages], lost) == ([f"Page {i}" for i in range(50)], [])
    with pytest.raises(InputError, match="only index files"):
        wikipedia.plan([str(index)])


@given(st.lists(st.integers(0, 4000), max_size=4))
def test_any_cut_of_a_multistream_file_reads_each_stream_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("cuts") / "multistream.xml.bz2"
    multistream(path, many(60), per_stream=7)
    size = path.stat().st_size
    edges = [0, *sorted(min(c, size) for c in cuts), size]
    found: list[bytes | streams.Gap] = []
    for start, end in itertools.pairwise(edges):
        found += streams.read(str(path), start, end, [])
    assert b"".join(c for c in found if isinstance(c, bytes)) == (HEAD + "".join(many(60)) + TAIL).encode()


def test_streams_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHUNK_BYTES", 64)
    path = multistream(tmp_path / "multistream.xml.bz2", many(60), per_stream=7)
    data = b"".join(c for c in streams.read(str(path), 0, path.stat().st_size, []) if isinstance(c, bytes))
    assert data == (HEAD + "".join(many(60)) + TAIL).encode()


def test_truncated_bz2_gives_what_was_readable(tmp_path: Path) -> None:
    path = multistream(tmp_path / "multistream.xml.bz2", many(60), per_stream=10)
    data = path.read_bytes()
    starts = [m.start() for m in streams.HEADER.finditer(data)]
    path.write_bytes(data[: starts[4] + 20])
    pages, lost, _ = read(path)
    assert len(pages) == 30
    assert lost == [Loss(str(path), "truncated bzip2 stream", starts[4])]


def test_a_damaged_stream_costs_its_own_pages_alone(tmp_path: Path) -> None:
    path = multistream(tmp_path / "multistream.xml.bz2", many(60), per_stream=10)
    data = bytearray(path.read_bytes())
    starts = [m.start() for m in streams.HEADER.finditer(data)]
    for place in range(starts[2] + 40, starts[2] + 60):
        data[place] ^= 0xFF
    path.write_bytes(data)
    pages, lost, _ = read(path)
    assert [p.title for p in pages] == [f"Page {i}" for i in range(60) if not 10 <= i < 20]
    assert [(loss.path, loss.offset) for loss in lost] == [(str(path), starts[2])]
    assert lost[0].reason.startswith("damaged bzip2 stream")


def test_truncated_single_stream_and_gzip(tmp_path: Path) -> None:
    whole = (HEAD + "".join(many(4000)) + TAIL).encode()
    packed = bz2.compress(whole, 1)
    (tmp_path / "a.xml.bz2").write_bytes(packed[: len(packed) * 2 // 3])
    pages, lost, _ = read(tmp_path / "a.xml.bz2")
    assert 0 < len(pages) < 4000
    assert lost == [Loss(str(tmp_path / "a.xml.bz2"), "truncated bzip2 stream", 0)]
    (tmp_path / "b.xml.gz").write_bytes(gzip.compress(whole)[:-20000])
    pages, lost, _ = read(tmp_path / "b.xml.gz")
    assert 0 < len(pages) < 4000
    assert lost[0].reason.startswith("cannot be decompressed to its end")
    (tmp_path / "c.xml").write_bytes(whole[:-100])
    pages, lost, _ = read(tmp_path / "c.xml")
    assert (len(pages), lost[0].reason) == (3999, "ends in the middle of a page")


def test_tables_with_title_and_text(tmp_path: Path) -> None:
    rows = [{"title": f"T{i}", "text": f"text {i}", "id": i} for i in range(5)]
    bad = [{"title": None, "text": "x"}, {"title": "x", "text": None}]
    pq.write_table(pa.Table.from_pylist(rows + bad), tmp_path / "a.parquet", row_group_size=2)
    lines = [json.dumps(r) for r in rows] + [
        "",
        "{broken",
        '{"title": "no text"}',
        '{"title": 1, "text": "x"}',
        '{"title": "T5", "text": "half a character: \\ud83d"}',
    ]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    expected = [Page(f"T{i}", f"text {i}", plain=True) for i in range(5)]
    cut = Page("T5", "half a character: \ufffd", plain=True)
    for name, reason, times, more in (
        ("a.parquet", "row without title and text", 2, []),
        ("b.jsonl.gz", "line is not JSON with title and text", 3, [cut]),
    ):
        pages, lost, counts = read(tmp_path / name)
        assert pages == expected + more
        assert lost == [Loss(str(tmp_path / name), reason, None, times)]
        assert counts == {"pages": len(pages) + times, "articles": len(pages)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the dump is an empty file"),
        (b"%PDF-1.4 something", "not a Wikipedia dump"),
        (b"<html><body>Wikipedia</body></html>", "not a Wikipedia dump"),
        (bz2.compress(b""), "not a Wikipedia dump"),
        (b"BZh9 not really", "not a Wikipedia dump"),
        (b"PAR1 not really", "not a readable Parquet file"),
    ],
)
def test_files_that_are_no_dumps(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "dump"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        wikipedia.plan([str(path)])


def test_parquet_without_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"title": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no such column, expected title, text"):
        wikipedia.plan([str(tmp_path / "a.parquet")])


@given(st.integers(1, 3000), st.integers(1, 200))
def test_a_plain_page_belongs_to_the_split_in_which_it_begins(split_bytes: int, chunk_bytes: int) -> None:
    data = (HEAD + "".join(many(20)) + TAIL).encode()
    found: list[bytes] = []
    lost: list[Loss] = []
    for start in range(0, len(data), split_bytes):
        chunks = iter([data[i : i + chunk_bytes] for i in range(start, len(data), chunk_bytes)])
        within = min(split_bytes, len(data) - start)
        found += wikipedia.fragments(chunks, "f", lost, within)
    assert found == list(wikipedia.fragments(iter([data]), "f", []))
    assert not lost


def test_plain_splits_stop_reading_behind_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHUNK_BYTES", 500)
    path = tmp_path / "dump.xml"
    path.write_text(HEAD + "".join(many(500)) + TAIL)
    read_bytes = 0

    def counting(*arguments: Any) -> Iterator[bytes | streams.Gap]:
        nonlocal read_bytes
        for chunk in original(*arguments):
            assert isinstance(chunk, bytes)
            read_bytes += len(chunk)
            yield chunk

    original = streams.read
    monkeypatch.setattr(streams, "read", counting)
    split = wikipedia.Split(str(path), "plain", 10_000, 20_000)
    pages = list(wikipedia.read(split, [], Counter()))
    assert pages[0].title < pages[-1].title
    assert 10_000 <= read_bytes < 12_000


def test_pages_across_chunks() -> None:
    data = (HEAD + "".join(many(3)) + TAIL).encode()
    whole = list(wikipedia.fragments(iter([data]), "f", []))
    assert len(whole) == 3
    for size in (1, 2, 5, 7, 100):
        chunks = iter([data[i : i + size] for i in range(0, len(data), size)])
        assert list(wikipedia.fragments(chunks, "f", [])) == whole
