from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest

from pipeline.core.errors import InputError
from queries import pageviews
from queries.streams import Loss
from queries.wikipedia import Site

LINES = b"""\
en.wikipedia Foo_bar 123 desktop 42 A1B41
en.wikipedia Foo_bar 123 mobile-web 8 A8
en.wikipedia Foo_bar mobile-app 1 A1
en Foo_bar 10 0
en.m Foo_bar 5 0
en.b Foo_bar 1000 0
de.wikipedia Foo_bar 9 desktop 1000 A1
en.wikipedia broken
en.wikipedia Foo_bar 123 desktop -4 A1
"" - 3 0
en.wikipedia Caf\xc3\xa9 null desktop 7 A7
"""


def counted(lines: bytes, project: str = "en") -> tuple[dict[bytes, int], list[Loss], dict[str, int]]:
    lost: list[Loss] = []
    counts: dict[str, int] = Counter()
    total: Counter[bytes] = Counter()
    for piece in pageviews.count(lines.splitlines(), project, "file", lost, counts):
        total.update(piece)
    return dict(total), lost, counts


def test_both_formats_add_up() -> None:
    views, lost, counts = counted(LINES)
    assert views == {b"Foo_bar": 42 + 8 + 1 + 10 + 5, "Café".encode(): 7}
    assert lost == [Loss("file", "not a page view line", None, 2)]
    assert counts == {"lines": 11, "project_lines": 8, "bad_lines": 2}
    assert counted(LINES, "de")[0] == {b"Foo_bar": 1000}


def test_pieces_are_bounded_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pageviews, "_FLUSH_TITLES", 2)
    lines = b"".join(b"en T%d 1 0\n" % (i % 5) for i in range(50))
    assert counted(lines)[0] == {b"T%d" % i: 10 for i in range(5)}


def test_files_that_hold_no_page_views() -> None:
    with pytest.raises(InputError, match="file: not a page view file"):
        pageviews.check(iter([b"some text", b"en text"] * 2000), "file")
    pageviews.check(iter([b"some text", b"en Text 1 0"]), "file")
    pageviews.check(iter([]), "file")
    assert counted(b"")[1] == [Loss("file", "no page view of en.wikipedia")]
    assert counted(b"de A 1 0\n")[1] == [Loss("file", "no page view of en.wikipedia")]


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        (b"Foo_bar", "Foo bar"),
        (b"foo_bar", "Foo bar"),
        (b"%C3%89douard", "Édouard"),
        (b"\xc3\xa9douard", "Édouard"),
        (b"Caf%65%CC%81", "Café"),
        (b"Dog#History", "Dog"),
        (b"2001:_A_Space_Odyssey", "2001: A Space Odyssey"),
        (b"100%", "100%"),
        (b"\xc3\x9f", "ß"),  # its capital is two letters: stays
        (b"ssh", "Ssh"),
        (b"Talk:Dog", None),
        (b"file:Dog.jpg", None),
        (b"User_talk:X", None),
        (b"Main_Page", None),
        (b"-", None),
        (b"", None),
        (b"A|B", None),
        (b"[[A]]", None),
        (b"\xff\xfe", None),
        (b"A%00B", None),
        (b"A" * 256, None),
    ],
)
def test_titles(raw: bytes, title: str | None) -> None:
    assert pageviews.title_of(raw, Site()) == title


def test_the_wikis_own_namespaces_and_main_page() -> None:
    site = Site(project="de", namespaces=frozenset(["benutzer"]), main_page="Hauptseite")
    assert pageviews.title_of(b"Benutzer:X", site) is None
    assert pageviews.title_of(b"Hauptseite", site) is None
    assert pageviews.title_of(b"Talk:X", site) == "Talk:X"
    assert pageviews.title_of(b"dog", Site(first_letter=False)) == "dog"


def test_clean_counts_junk() -> None:
    counts: dict[str, int] = Counter()
    table = pageviews.clean({b"dog": 1, b"Dog": 2, b"-": 5}, Site(), counts)
    assert table.to_pylist() == [{"title": "Dog", "views": 3}]
    assert counts == {"junk_titles": 1}


VIEWS = pa.table({"title": ["Cat", "Hound", "Junk", "Loop"], "views": [5, 7, 100, 1]}, schema=pageviews.VIEWS)
TITLES = pa.table(
    {"title": ["Hound", "Dog", "Cat", "Loop"], "target": ["Dog", None, None, "Hound"]},
    schema=pageviews.TITLES,
)


def rows(table: pa.Table) -> dict[str, int]:
    return dict(zip(table["title"].to_pylist(), table["views"].to_pylist(), strict=True))


def test_redirects_views_go_to_their_targets() -> None:
    moved = pageviews.resolve(VIEWS, TITLES, checked=True)
    assert rows(moved) == {"Cat": 5, "Dog": 7, "Hound": 1}
    assert rows(pageviews.only_articles(moved, TITLES)) == {"Cat": 5, "Dog": 7}
    assert rows(pageviews.resolve(VIEWS, TITLES, checked=False)) == {
        "Cat": 5,
        "Dog": 7,
        "Junk": 100,
        "Hound": 1,
    }
    empty = pageviews.TITLES.empty_table()
    assert rows(pageviews.resolve(VIEWS, empty, checked=False)) == rows(VIEWS)


def test_an_article_of_one_dump_goes_before_a_redirect_of_another() -> None:
    for order in ([0, 1], [1, 0]):
        titles = pa.table({"title": ["Cat", "Cat"], "target": ["Dog", None]}, schema=pageviews.TITLES)
        moved = pageviews.resolve(VIEWS.slice(0, 1), titles.take(order), checked=True)
        assert rows(moved) == {"Cat": 5}
