"""Page views by title: Wikimedia's ``pageview_complete`` (daily, monthly) and hourly ``pageviews`` files.

    en.wikipedia Foo_bar 123 desktop 42 A1B41     pageview_complete: project title page_id access total hours
    en.m Foo_bar 12 0                             hourly: project[.m] title views bytes

Titles stand there as clients asked for them: with underscores, sometimes percent-encoded, as redirects, with the
wrong first letter, or as junk. Files are read as bytes; nothing in them is trusted to be UTF-8.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import InputError
from queries import runners_up
from queries.streams import Loss
from queries.wikipedia import Site

VIEWS = pa.schema(
    [pa.field("title", pa.string(), nullable=False), pa.field("views", pa.int64(), nullable=False)]
)
# A redirect's target, or null for an article.
TITLES = pa.schema([pa.field("title", pa.string(), nullable=False), pa.field("target", pa.string())])

# MediaWiki allows none of these in a title, and no title is longer.
_ILLEGAL = frozenset("#<>[]|{}")
_LONGEST_TITLE_BYTES = 255
_JUNK = frozenset(["", "-", "Undefined", "Index.php", "404.php"])
_FLUSH_TITLES = 500_000
# Lines after which a file that has shown no page view is believed to hold none.
_LINES_TO_JUDGE = 1000


def project_codes(project: str) -> tuple[bytes, ...]:
    """How a Wikipedia's lines begin: its name in ``pageview_complete``, then in hourly files."""
    return tuple(f"{project}{end} ".encode() for end in (".wikipedia", "", ".m", ".zero"))


def parse(line: bytes) -> tuple[bytes, int] | None:
    """(raw title, views) of a line of any project; ``None`` if it is not a page view line."""
    fields = line.split()
    if len(fields) == 4:
        number = fields[2]
    elif len(fields) in (5, 6):  # page_id is missing in backfilled years
        number = fields[-2]
    else:
        return None
    # isdigit keeps signs, underscores and spaces out, which int() would take.
    return (fields[1], int(number)) if number.isdigit() and len(number) < 19 else None


def check(lines: Iterable[bytes], path: str) -> None:
    """Looks at the first lines of a file.

    Raises:
        InputError: There are lines, and none is a page view.
    """
    seen = 0
    for line in itertools.islice(lines, _LINES_TO_JUDGE):
        if parse(line) is not None:
            return
        seen += 1
    if seen:
        raise InputError(
            "not a page view file", where=path, expected="lines as `en.wikipedia Title 12 desktop 3 A3`"
        )


def count(
    lines: Iterable[bytes], project: str, path: str, lost: list[Loss], counts: dict[str, int]
) -> Iterator[dict[bytes, int]]:
    """Views by raw title of one project's lines, in bounded pieces that are still to be added up.

    Args:
        lines: Lines of one file; of other projects' lines nothing is looked at but how they begin.
        project: Language code.
        path: File, for messages.
        lost: Filled with what could not be read.
        counts: ``lines``, ``project_lines``, ``bad_lines`` are counted up.
    """
    codes = project_codes(project)
    views: dict[bytes, int] = {}
    seen = own = bad = 0
    for line in lines:
        seen += 1
        if not line.startswith(codes):
            continue
        own += 1
        parsed = parse(line)
        if parsed is None:
            bad += 1
            continue
        views[parsed[0]] = views.get(parsed[0], 0) + parsed[1]
        if len(views) >= _FLUSH_TITLES:
            yield views
            views = {}
    if not own:
        lost.append(Loss(path, f"no page view of {project}.wikipedia"))
    if bad:
        lost.append(Loss(path, "not a page view line", None, bad))
    for name, number in (("lines", seen), ("project_lines", own), ("bad_lines", bad)):
        counts[name] += number
    yield views


def title_of(raw: bytes, site: Site) -> str | None:
    """The article title that a client meant; ``None`` for junk, other namespaces and the main page."""
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    if len(raw) > _LONGEST_TITLE_BYTES:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    title = " ".join(unicodedata.normalize("NFC", text).partition("#")[0].replace("_", " ").split())
    title = title.lstrip(":").lstrip()
    if site.first_letter and title and title[0].islower():
        upper = title[0].upper()
        title = (upper if len(upper) == 1 else title[0]) + title[1:]
    if title in _JUNK or title == site.main_page or not _ILLEGAL.isdisjoint(title) or not title.isprintable():
        return None
    prefix, colon, _ = title.partition(":")
    if colon and prefix.strip().casefold() in site.namespaces:
        return None
    return title


def clean(views: dict[bytes, int], site: Site, counts: dict[str, int]) -> pa.Table:
    """Views by title: raw titles cleaned; ``junk_titles`` is counted up for those that are none."""
    cleaned: dict[str, int] = {}
    for raw, number in views.items():
        title = title_of(raw, site)
        if title is None:
            counts["junk_titles"] += 1
        else:
            cleaned[title] = cleaned.get(title, 0) + number
    return pa.table(
        [pa.array(cleaned.keys(), pa.string()), pa.array(cleaned.values(), pa.int64())], schema=VIEWS
    )


def merge(several: Iterable[pa.Table]) -> pa.Table:
    """Adds views up by title; sorted by title."""
    listed = list(several)
    if not listed:
        return VIEWS.empty_table()
    added = pa.concat_tables(listed).group_by("title").aggregate([("views", "sum")])
    return added.rename_columns(["title", "views"]).select(["title", "views"]).sort_by("title").cast(VIEWS)


def moved_or_lost(views: pa.Table, titles: pa.Table, *, checked: bool) -> pa.Table:
    """The viewed titles that are no articles, for "why not": redirects with their targets, titles the dump lacks.

    Args:
        views: ``title``, ``views``, each title once.
        titles: ``title``, ``target`` of the dump.
        checked: Whether titles that the dump lacks lose their views.
    """
    targets = _targets(views, titles)
    known = pc.is_in(views["title"], value_set=titles["title"].combine_chunks())
    state = pc.if_else(known, runners_up.REDIRECT, runners_up.NOT_IN_DUMP)
    table = pa.table([views["title"], views["views"], state, targets], schema=runners_up.TITLES.schema)
    gone = pc.is_valid(targets)
    return table.filter(pc.or_(gone, pc.invert(known)) if checked else gone)


def articles_out(views: pa.Table) -> pa.Table:
    """Articles with too few views, as runners-up."""
    state = pa.repeat(pa.scalar(runners_up.ARTICLE), views.num_rows)
    nothing = pa.nulls(views.num_rows, pa.string())
    return pa.table([views["title"], views["views"], state, nothing], schema=runners_up.TITLES.schema)


def _targets(views: pa.Table, titles: pa.Table) -> pa.ChunkedArray:
    """Where each title's views go: a redirect's target, null for articles and titles that the dump lacks."""
    # Of a title that several dumps hold, an article goes before a redirect.
    titles = titles.sort_by([("title", "ascending"), ("target", "descending")])
    titles = titles.take(pa.array(range(titles.num_rows - 1, -1, -1), pa.int64()))
    place = pc.index_in(views["title"], value_set=titles["title"].combine_chunks())
    return titles["target"].take(place)


def resolve(views: pa.Table, titles: pa.Table, *, checked: bool) -> pa.Table:
    """Moves redirects' views to the articles they lead to.

    Args:
        views: ``title``, ``views``, each title once.
        titles: ``title``, ``target`` of the dump.
        checked: Titles that the dump does not have lose their views.

    Returns:
        Views by title, with repeats. A redirect's target may turn out not to be an article: see
        :func:`only_articles`.
    """
    if checked:
        views = views.filter(pc.is_in(views["title"], value_set=titles["title"].combine_chunks()))
    title = pc.coalesce(_targets(views, titles), views["title"])
    return pa.table([title, views["views"]], schema=VIEWS)


def only_articles(views: pa.Table, titles: pa.Table) -> pa.Table:
    """Views of titles that are articles of the dump, not redirects or missing pages."""
    articles = titles.filter(pc.is_null(titles["target"]))["title"].combine_chunks()
    return views.filter(pc.is_in(views["title"], value_set=articles))
