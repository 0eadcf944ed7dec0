"""Made candidates of any size out of real captions, the same rows every time; and a query list to select them by.

* Real text: the captions of the demo's pages (`alt`, `title`, `figcaption`, of ten languages), and the clauses of the
  cut of Wikipedia in `examples/`, by the project's own reader of wikitext.
* 66% of the rows: the head of an English caption joined to the tail of another or of a clause, one word in eight
  replaced by any word of the cut, for real captions hold rare words. Every 25th has an entity, a tag or too many
  spaces.
* 8%: a caption as it stands, the frequent ones thousands of times, as the web repeats its own.
* 14%: another language's captions, heads and tails of the same language.
* 7%: file names, camera settings, boiler-plate, addresses.
* 5%: an earlier row's URL again, with its text, or with its text in capitals.

URLs differ but for the last; hosts are as unequal as the web's (Zipf). A block of rows is drawn by its own seed, so
nothing is held but a block.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa

from benchmarks.match import _CAPTION, _TAG, WORLD, make_queries
from benchmarks.peers import articles
from pipeline.core import tables
from pipeline.core.contracts import CANDIDATES, QUERIES, pair_id
from pipeline.core.fakes import finished_folder
from pipeline.core.options import RunOptions
from pipeline.core.stage import StageResult, run_stage

BLOCK: Final = 65_536
HOSTS: Final = 50_000
KINDS: Final = {"recombined": 0.66, "repeated": 0.08, "foreign": 0.14, "no text": 0.07, "again": 0.05}
_REPLACED: Final = 1 / 8
_CLAUSE: Final = re.compile(r"[.,;:()\n]+")
_PAGE_LANGUAGE: Final = re.compile(r'<html[^>]*lang="([a-z]+)')
_SOURCES: Final = ("alt", "alt", "alt", "title", "figcaption", "caption")
"""As often as pages have them, more or less."""

_Value = TypeVar("_Value")


class Captions:
    """What rows are made of.

    Args:
        queries: How many queries to make of the same text.
    """

    def __init__(self, queries: int) -> None:
        self.queries, self.words = make_queries(queries)
        found: dict[str, dict[str, None]] = {}
        for page in sorted((WORLD / "web").rglob("*.html")):
            html = page.read_text(encoding="utf-8", errors="ignore")
            if language := _PAGE_LANGUAGE.search(html):
                held = found.setdefault(language[1], {})
                for attribute, element in _CAPTION.findall(html):
                    held[" ".join(_TAG.sub(" ", attribute or element).split())] = None
        self.captions = list(found["en"])
        self.english = [caption.split() for caption in found.pop("en")]
        self.foreign = [(code, [text.split() for text in texts]) for code, texts in sorted(found.items())]
        self.clauses = [clause.split() for clause in _clauses()]

    def block(self, number: int, rows: int) -> pa.Table:
        """`candidates/1` rows of a block; see the module's text."""
        seeded = np.random.default_rng((2026, number))
        draw = random.Random(f"2026 {number}")
        kinds = seeded.choice(len(KINDS), rows, p=list(KINDS.values())).tolist()
        makers = (self._recombined, self._repeated, self._foreign, self._no_text)
        hosts = (seeded.zipf(1.3, rows) % HOSTS).tolist()
        made: list[tuple[str, str, str]] = []
        for row, (kind, host) in enumerate(zip(kinds, hosts, strict=True)):
            if kind == len(makers) and made:
                url, text, language = _any(made, draw)
                made.append((url, text if draw.random() < 0.6 else text.upper(), language))
                continue
            text, language = makers[kind % len(makers)](draw)
            folder, name = _any(self.words, draw), f"{_any(self.words, draw)}-{_any(self.words, draw)}"
            url = f"https://img{host % 7}.{_host(host)}/{folder}/{name}-{number * BLOCK + row}.jpg"
            made.append((url, text, language))
        return self._table(number, made, seeded)

    def _table(self, number: int, made: list[tuple[str, str, str]], draw: np.random.Generator) -> pa.Table:
        urls, texts, languages = (list(column) for column in zip(*made, strict=True))
        rows = len(urls)
        source = draw.integers(0, len(_SOURCES), rows)
        known = draw.random(rows) < 0.6
        opted_out = draw.random(rows) < 0.02
        pages = [f"https://{url.split('/')[2]}/{n // 6}.html" for n, url in enumerate(urls, number * BLOCK)]
        return CANDIDATES.conform(
            pa.table(
                {
                    "pair_id": [pair_id(url, text) for url, text in zip(urls, texts, strict=True)],
                    "url": urls,
                    "text": texts,
                    "text_source": [_SOURCES[s] for s in source],
                    "page_url": pages,
                    "page_language": [code if k else None for code, k in zip(languages, known, strict=True)],
                    "rights": pa.array([["noai"] if o else [] for o in opted_out], pa.list_(pa.string())),
                    "origin": [f"crawl-2026-{number // 4:05d}.warc.gz"] * rows,
                    "origin_offset": (np.arange(rows) + number % 4 * BLOCK) * 4_321,
                }
            )
        )

    def _recombined(self, draw: random.Random) -> tuple[str, str]:
        tails = self.english if draw.random() < 0.4 else self.clauses
        words = [
            _any(self.words, draw) if draw.random() < _REPLACED else word
            for word in _joined(_any(self.english, draw), _any(tails, draw), draw)
        ]
        text = " ".join(words)
        untidy = int(draw.random() * 25 * 3)
        if untidy < 3:
            text = (text.replace(" ", " &amp; ", 1), f"<b>{text}</b>", f" {text.replace(' ', '&nbsp; ')}\n")[
                untidy
            ]
        return text, "en"

    def _repeated(self, draw: random.Random) -> tuple[str, str]:
        return self.captions[int(draw.paretovariate(0.2)) % len(self.captions)], "en"

    def _foreign(self, draw: random.Random) -> tuple[str, str]:
        code, texts = _any(self.foreign, draw)
        return " ".join(_joined(_any(texts, draw), _any(texts, draw), draw)), code

    def _no_text(self, draw: random.Random) -> tuple[str, str]:
        first, second = _any(self.words, draw), _any(self.words, draw)
        number = int(draw.random() * 10_000)
        forms = (
            f"IMG_{number:04d}.JPG",
            f"DSC0{number:04d}",
            f"{first}-{second}-{number}.jpg",
            f"2016{number % 1200 + 101:04d}_{number:06d}.jpg",
            f"f/{number % 22}.8, 1/{number} s, ISO {number}",
            f"https://www.{first}.com/{second}/{number}",
            "click to enlarge",
            "logo",
            f"{number}-{number % 97}",
            "",
        )
        return _any(forms, draw), "en"


def _any(values: Sequence[_Value], draw: random.Random) -> _Value:
    # A third of the time of `choice`.
    return values[int(draw.random() * len(values))]


def _joined(head: list[str], tail: list[str], draw: random.Random) -> list[str]:
    """The first half or more of one, and the last half or more of another."""
    keep = len(head) // 2 + int(draw.random() * (len(head) + 2) / 2)
    return head[:keep] + tail[int(draw.random() * (len(tail) // 2 + 1)) :]


def _host(number: int) -> str:
    return f"{'photos' if number % 3 else 'shop'}{number}.{('com', 'org', 'net', 'co.uk', 'de')[number % 5]}"


def _clauses() -> Iterator[str]:
    """Stretches of 3 to 12 words between the points and commas of the cut."""
    from queries.wikitext import plain_text

    for article in articles(str(WORLD / "text" / "enwiki-cut.xml.bz2")):
        for clause in _CLAUSE.split(plain_text(article)):
            if 3 <= len(clause.split()) <= 12:
                yield clause


@dataclass(frozen=True)
class Made:
    """What made candidates are made of."""

    rows: int
    shuffled: bool = False


def write_candidates(folder: Path, captions: Captions, rows: int) -> str:
    """A finished folder of so many candidates, in parts of a million; returns the folder."""
    begins = range(0, rows, BLOCK)
    blocks = (captions.block(n, min(BLOCK, rows - begin)) for n, begin in enumerate(begins))
    return write_blocks(folder, blocks, Made(rows))


def write_shuffled(folder: Path, files: list[str], rows: int) -> str:
    """A finished folder of the rows of some files in another order, in parts of another size."""
    table = tables.read_files(files)
    order = np.random.default_rng(0).permutation(rows)
    size = rows // 3 + 1
    blocks = (table.take(pa.array(order[begin : begin + size])) for begin in range(0, rows, size))
    return write_blocks(folder, blocks, Made(rows, shuffled=True), part_rows=size)


def write_blocks(
    folder: Path, blocks: Iterable[pa.Table], config: Any, *, part_rows: int = tables.PART_ROWS
) -> str:
    """A finished folder of `candidates/1` rows; returns the folder."""

    def body(out: str) -> StageResult:
        with tables.PartWriter(out, CANDIDATES, part_rows=part_rows) as writer:
            for block in blocks:
                writer.write(block)
        return StageResult(rows=writer.rows, rows_in=writer.rows)

    quiet = RunOptions(quiet=True)
    run_stage(
        body, stage="candidates", contract=CANDIDATES.id, config=config, inputs=[], out=str(folder), options=quiet
    )  # fmt: skip
    return str(folder)


def write_queries(folder: Path, queries: list[str]) -> str:
    """A finished folder of queries; the single words are those that a language backend knows. Returns the folder."""
    sources = [["bigram"] if " " in query else ["word"] for query in queries]
    columns = {"query_id": np.arange(len(queries), dtype=np.int32), "query": queries, "sources": sources}
    return finished_folder(str(folder), QUERIES, QUERIES.conform(pa.table(columns)))
