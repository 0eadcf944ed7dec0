"""A tiny Wikipedia, its page views and a tiny WordNet, as files."""

from __future__ import annotations

import bz2
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

HEAD = '<mediawiki xml:lang="en"><siteinfo><dbname>enwiki</dbname><case>first-letter</case></siteinfo>\n'
WORDNET = {
    "data.noun": "00000001 00 n 02 dog 0 hound 0 000 | g\n00000002 00 n 01 San_Francisco 0 000 | g\n",
    "data.verb": "00000001 00 v 01 dog 0 000 | g\n",
    "data.adj": "00000001 00 a 01 galore(ip) 0 000 | g\n",
    "data.adv": "00000001 00 r 01 doggedly 0 000 | g\n",
}


@dataclass(frozen=True)
class SmallWiki:
    """Files of one small Wikipedia.

    Attributes:
        dumps: Two multistream parts.
        views: Two page view files, a monthly and an hourly one.
        wordnet: Folder of data files.
    """

    dumps: list[str]
    views: list[str]
    wordnet: str


def article(title: str, text: str, redirect: str = "") -> str:
    target = f'<redirect title="{redirect}"/>' if redirect else ""
    return f"<page><title>{title}</title><ns>0</ns>{target}<revision><text>{text}</text></revision></page>\n"


def multistream(path: Path, groups: list[str]) -> str:
    path.write_bytes(b"".join(bz2.compress(part.encode()) for part in (HEAD, *groups, "</mediawiki>")))
    return str(path)


@pytest.fixture
def small_wiki(tmp_path: Path) -> SmallWiki:
    draw = random.Random(0)
    words = [f"word{i}" for i in range(40)]

    def text(i: int) -> str:
        sentences = [" ".join(draw.choices(words, k=12)) for _ in range(20)]
        sentences[3] += " in san francisco. The [[dog]]"
        return f"'''Title {i}'''{{{{box|x}}}} is it. " + ".\n".join(sentences)

    pages = [article(f"Title {i}", text(i)) for i in range(60)] + [article("Hound", "", "Title 1")]
    folder = tmp_path / "wiki"
    folder.mkdir()
    dumps = []
    for n, half in enumerate((pages[:31], pages[31:]), 1):
        path = folder / f"pages-articles-multistream{n}.xml-p{n}p9.bz2"
        dumps.append(multistream(path, ["".join(half[:9]), "".join(half[9:])]))
    monthly = "".join(f"en.wikipedia Title_{i} {i} desktop {i + 1} A{i + 1}\n" for i in range(60))
    monthly += (
        "en.wikipedia Hound 7 desktop 1000 A1000\nen.wikipedia Nowhere 7 desktop 5 A5\nen.wikipedia broken\n"
    )
    (folder / "pageviews-202401-user.bz2").write_bytes(bz2.compress(monthly.encode()))
    (folder / "pageviews-20240101-000000").write_text("en.m title_59 5 0\nde Hund 9 0\n")
    net = folder / "wordnet"
    net.mkdir()
    for name, lines in WORDNET.items():
        (net / name).write_text(f"  1 licence\n{lines}")
    views = [str(folder / name) for name in ("pageviews-202401-user.bz2", "pageviews-20240101-000000")]
    return SmallWiki(dumps, views, str(net))
