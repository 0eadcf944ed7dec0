"""Copies the Wikipedia dump cut and makes page views for it from its own links."""

from __future__ import annotations

import bz2
import hashlib
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from examples.world.sources import ENWIKI_MEMBER, Packages

VIEWS_PER_LINK = 30
# Titles that the cut only links to: kept from this many links on.
OUTSIDE_LINKS = 4
ACCESS_SHARES = (("desktop", 0.55), ("mobile-web", 0.40), ("mobile-app", 0.05))
DAYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^"
HOURS = "ABCDEFGHIJKLMNOPQRSTUVWX"
LINK = re.compile(r"\[\[([^\[\]|#]+)(?:#[^\[\]|]*)?(?:\|[^\[\]]*)?\]\]")
JUNK = (
    b"de.wikipedia Anarchismus 12 desktop 4210 AA2105,BC2105",
    b"de.wikipedia Albanien 115 mobile-web 2200 CD2200",
    b"en.wiktionary anarchism 8142 desktop 310 AB310",
    b"en.wikipedia Main_Page 15580374 desktop 9000000 AA9000000",
    b"en.wikipedia - null desktop 70000 AA70000",
    b"en.wikipedia Special:Search null desktop 150000 AA150000",
    b"en.wikipedia Special:Random null mobile-web 42000 BB42000",
    b"en.wikipedia User:Example null desktop 12 CC12",
    b"en.wikipedia Albert%20Camus null desktop 35 DD35",
    b"en.wikipedia Ayn%5FRand null mobile-web 21 EE21",
    b"en.wikipedia albedo null mobile-app 9 FF9",
    b"en.wikipedia Caf\xe9_\xff\xfe null desktop 3 GG3",
    b"en.wikipedia Anarchism/ null desktop 2 HH2",
    b'"" Anarchism null desktop 1 II1',
)
SOURCE = """# Where these texts come from

## enwiki-cut.xml.bz2
A cut of the English Wikipedia's pages-articles dump of April 2016 (206 pages: 100 redirects, 106 others),
unchanged byte for byte. It is the file
`{member}`
of the wheel `gensim-4.4.0` of the Python Package Index. Only this file was taken; nothing here is gensim
code. The text is by the editors of Wikipedia, under the Creative Commons Attribution-ShareAlike licence
(3.0 at the time of the dump; `../LICENSES/CC-BY-SA-3.0.txt`). Each page's authors are listed in its history
on the English Wikipedia, under the page's title.

## pageviews-201604-user.bz2
**The numbers in this file are made.** No package of the registries ships real page views, so this file only
has the format of the monthly files of Wikimedia's `pageview_complete`: a line holds wiki, title, page id
(or `null`), access, views of the month, and views by day and hour. It was made by `make_text.py`:

- A page of the cut has {per_link} views for itself and for each link to it in the cut's own articles, links
  through the cut's redirects included, plus up to {last} more from a hash of the title.
- A redirect has a tenth of what the same rule gives for the links that use its name.
- A title that the cut has no page for is listed from {outside} links on, with page id `null`.
- The views are split over desktop, mobile web and mobile app as 55, 40 and 5 parts of 100. The split by day
  and hour is arbitrary, and so is its spelling: day letter, hour letter, count.
- {junk} lines are junk of the kinds that the real files have: other projects, special and user pages, `-`,
  percent-encoded titles, a wrong first letter, bytes that are not UTF-8.

The file is part of this project and, like its input, under CC BY-SA 3.0.
"""


class Article(NamedTuple):
    """What the making needs of one page of the cut."""

    title: str
    page_id: str
    redirect: str | None
    text: str


def read_articles(dump: bytes) -> list[Article]:
    """The pages of the cut."""
    articles = []
    for page in ET.fromstring(bz2.decompress(dump)).iterfind("{*}page"):
        redirect = page.find("{*}redirect")
        articles.append(
            Article(
                page.findtext("{*}title", ""),
                page.findtext("{*}id", ""),
                None if redirect is None else redirect.get("title"),
                page.findtext("{*}revision/{*}text", ""),
            )
        )
    return articles


def link_target(written: str) -> str:
    """The title that a link means."""
    title = " ".join(written.replace("_", " ").split())
    return title[:1].upper() + title[1:]


def jitter(title: str, below: int) -> int:
    """A number below `below` that depends on the title alone."""
    return int.from_bytes(hashlib.sha256(title.encode()).digest()[:4], "big") % below


def count_views(articles: list[Article]) -> dict[str, int]:
    """Views by title."""
    redirects = {article.title: article.redirect for article in articles if article.redirect}
    written: Counter[str] = Counter()
    for article in articles:
        if article.redirect is None:
            written.update(link_target(match[1]) for match in LINK.finditer(article.text))
    meant: Counter[str] = Counter()
    for title, links in written.items():
        meant[redirects.get(title, title)] += links
    views = {}
    for article in articles:
        links = written[article.title] if article.redirect else meant[article.title]
        full = VIEWS_PER_LINK * (1 + links) + jitter(article.title, VIEWS_PER_LINK)
        views[article.title] = full // 10 if article.redirect else full
    for title, links in meant.items():
        if title not in views and links >= OUTSIDE_LINKS and ":" not in title:
            views[title] = VIEWS_PER_LINK * links + jitter(title, VIEWS_PER_LINK)
    return views


def by_hour(title: str, views: int) -> str:
    """The last field: the month's views spread over a few hours."""
    parts = min(4, views)
    spread = [views // parts + (1 if number < views % parts else 0) for number in range(parts)]
    first = jitter(title, len(DAYS) - parts)
    return ",".join(
        f"{DAYS[first + number]}{HOURS[jitter(title + str(number), 24)]}{count}"
        for number, count in enumerate(spread)
    )


def pageview_lines(articles: list[Article]) -> list[bytes]:
    """The lines of the file, in its order."""
    ids = {article.title: article.page_id for article in articles}
    lines = list(JUNK)
    for title, views in count_views(articles).items():
        left = views
        for access, share in ACCESS_SHARES:
            count = left if access == ACCESS_SHARES[-1][0] else round(views * share)
            left -= count
            if count > 0:
                name = title.replace(" ", "_")
                hours = by_hour(title + access, count)
                lines.append(
                    f"en.wikipedia {name} {ids.get(title, 'null')} {access} {count} {hours}".encode()
                )
    return sorted(lines)


def make_text(packages: Packages, out: Path) -> None:
    """Writes text/."""
    folder = out / "text"
    folder.mkdir(parents=True, exist_ok=True)
    dump = packages.read("gensim", ENWIKI_MEMBER)
    (folder / "enwiki-cut.xml.bz2").write_bytes(dump)
    lines = pageview_lines(read_articles(dump))
    (folder / "pageviews-201604-user.bz2").write_bytes(bz2.compress(b"\n".join(lines) + b"\n"))
    source = SOURCE.format(
        member=ENWIKI_MEMBER,
        per_link=VIEWS_PER_LINK,
        last=VIEWS_PER_LINK - 1,
        outside=OUTSIDE_LINKS,
        junk=len(JUNK),
    )
    (folder / "SOURCE.md").write_text(source, encoding="utf-8")
