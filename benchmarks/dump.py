"""A Wikipedia dump of any size, made from the real cut in `examples/`: the same bytes for the same size.

The cut's pages repeat, each time under other titles, with the sentences of every paragraph in another order, and
with the cut's rare words spelt anew, so that the vocabulary grows with the dump as a real one does. Markup stays
whole: a sentence that cuts a link, a template or a reference in two is never moved.
"""

from __future__ import annotations

import bz2
import random
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.sax.saxutils import escape

CUT = Path(__file__).parents[1] / "examples" / "world" / "text" / "enwiki-cut.xml.bz2"
PAGES_PER_STREAM = 100
# A word seen at most so often in the cut gets another spelling in each copy.
_RARE = 2

_SENTENCE = re.compile(r"(?<=[.!?] )(?=[A-Z'\[])")
# Words that cannot be markup: no tag, attribute, entity, parameter or link prefix.
_WORD = re.compile(r"(?<![\w</&{|=:#\[.-])[A-Za-z]{3,}(?![\w=>;|}:/.\]-])")


@dataclass(frozen=True)
class _Page:
    head: str  # XML up to the title
    title: str
    middle: str  # XML between the title and the text
    lines: list[list[list[str]]]  # lines of sentences; a sentence's odd pieces are rare words
    tail: str


def make(path: Path, size_mb: int, *, processes: int = 2, plain: Path | None = None) -> int:
    """Writes a multistream dump of so many MB (10⁶ bytes) of XML, beside it plain XML if asked; returns its bytes."""
    copies = max(1, round(size_mb * 1e6 / _copy_bytes()))
    total = 0
    with open(path, "wb") as packed, open(plain or "/dev/null", "wb") as unpacked:
        header = _header().encode()
        packed.write(bz2.compress(header))
        total += unpacked.write(header)
        with ProcessPoolExecutor(processes) as pool:
            for streams in pool.map(
                partial(_compressed, plain=plain is not None), range(copies), chunksize=1
            ):
                for data, xml, length in streams:
                    packed.write(data)
                    unpacked.write(xml)
                    total += length
        tail = b"</mediawiki>\n"
        packed.write(bz2.compress(tail))
        total += unpacked.write(tail)
    return total


def _compressed(copy: int, plain: bool) -> list[tuple[bytes, bytes, int]]:
    pages = list(pages_of(copy))
    found = []
    for start in range(0, len(pages), PAGES_PER_STREAM):
        xml = "".join(pages[start : start + PAGES_PER_STREAM]).encode()
        found.append((bz2.compress(xml), xml if plain else b"", len(xml)))
    return found


def pages_of(copy: int) -> Iterator[str]:
    """The pages of one copy of the cut, as XML."""
    draw = random.Random(copy)
    suffix, number = "", copy
    while number:
        number, letter = divmod(number, 26)
        suffix += chr(ord("a") + letter)
    for page in _pages():
        text = "\n".join(_shuffled(line, suffix, draw) for line in page.lines)
        title = f"{page.title} {suffix}".strip()
        yield f"{page.head}{escape(title)}{page.middle}{escape(text)}{page.tail}"


def _shuffled(line: list[list[str]], suffix: str, draw: random.Random) -> str:
    sentences = ["".join(p + suffix if i % 2 else p for i, p in enumerate(pieces)) for pieces in line]
    if len(sentences) > 1:
        draw.shuffle(sentences)
    return "".join(sentences)


_CACHE: dict[str, object] = {}


def _cut() -> str:
    if "cut" not in _CACHE:
        _CACHE["cut"] = bz2.decompress(CUT.read_bytes()).decode()
    return str(_CACHE["cut"])


def _header() -> str:
    text = _cut()
    return text[: text.index("  <page>")]


def _copy_bytes() -> int:
    return sum(len(p.encode()) for p in pages_of(0))


def _pages() -> list[_Page]:
    if "pages" not in _CACHE:
        _CACHE["pages"] = _parsed(re.findall(r"  <page>.*?</page>\n", _cut(), re.S))
    return _CACHE["pages"]  # type: ignore[return-value]


def _parsed(pages: list[str]) -> list[_Page]:
    parts = []
    for page in pages:
        text = ET.fromstring(page).findtext("revision/text") or ""
        match = re.search(r"(.*<title>)(.*)(</title>.*?)(<text[^>]*?)(?:/>|>(?:.*)</text>)(.*)", page, re.S)
        assert match is not None
        parts.append((match, text))
    counts = Counter(word for _, text in parts for word in _WORD.findall(text))
    rare = {word for word, count in counts.items() if count <= _RARE}
    found = []
    for match, text in parts:
        head, title, middle, opening, tail = match.groups()
        lines = [[_pieces(s, rare) for s in _sentences(line)] for line in text.split("\n")]
        found.append(_Page(head, title, f"{middle}{opening}>", lines, f"</text>{tail}"))
    return found


def _sentences(line: str) -> list[str]:
    """The sentences of a line, those joined again between which markup is open."""
    if len(line) < 200 or line[0] in "|{!*#:;=<":
        return [line]
    found = [""]
    for sentence in _SENTENCE.split(line):
        found[-1] += sentence
        if _balanced(found[-1]):
            found.append("")
    return found if found[-1] else found[:-1]


def _balanced(text: str) -> bool:
    if text.count("'''") % 2 or text.count("''") % 2:
        return False
    return all(text.count(a) == text.count(b) for a, b in (("{{", "}}"), ("[", "]"), ("<", ">"))) and (
        text.count("<ref") == text.count("</ref>") + len(re.findall(r"<ref[^<>]*/>", text))
    )


def _pieces(sentence: str, rare: set[str]) -> list[str]:
    pieces, place = [], 0
    for match in _WORD.finditer(sentence):
        if match[0] in rare:
            pieces += [sentence[place : match.start()], match[0]]
            place = match.end()
    return [*pieces, sentence[place:]]
