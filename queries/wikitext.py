"""Wikitext to plain text: the words a reader sees in the article's running text, headings and lists.

Dropped: comments, templates, tables, references, formulas, galleries, code, files and categories. Kept: link labels,
image-free markup's text, headings, list items. Every step is linear in the text's length whatever its nesting, so
no page can hang the reader; unbalanced markup loses its brackets and keeps its text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

# Elements whose content is not running text.
_HIDDEN = (
    "ref|math|chem|ce|gallery|timeline|source|syntaxhighlight|score|imagemap|code|pre|hiero|graph|mapframe|"
    "maplink|templatedata|templatestyles|inputbox|indicator|includeonly|noinclude|categorytree"
)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_HIDDEN_TAG = re.compile(rf"<(/?)({_HIDDEN})\b([^<>]{{0,2000}})>", re.I)
_BRACES = re.compile(r"\{\{+|\{\||\}\}+|\n[ \t]{0,20}\|\}(?!\})")
_EXTERNAL = re.compile(r"\[(?:[a-z]{2,10}:)?//[^\s\[\]]{1,2000}[ \t]{0,20}", re.I)
_URL = re.compile(r"https?://[^\s\[\]<>|{}]+")
_LABEL = re.compile(r"\[\[(?:[^\[\]|\n]*\|)?([^\[\]]*)\]\]")
_BLOCK_TAG = re.compile(
    r"</?(?:br|hr|p|div|li|ul|ol|dl|dd|dt|table|tr|td|th|blockquote|center)\b[^<>]{0,2000}>", re.I
)
_TAG = re.compile(r"</?[a-z][^<>]{0,2000}>", re.I)
_MAGIC = re.compile(r"__[A-Z]{3,30}__")
_QUOTES = re.compile(r"''+")

# A table opens at the start of a line, behind indentation or list marks at most.
_BEFORE_TABLE = ("", "\n", " ", ":", "*", "#")
# Links nest only in file captions, and captions hold no captions: three rounds are enough for what people write.
_LINK_ROUNDS = 5
FILE_NAMES = ("File", "Image", "Category")


def plain_text(wikitext: str, hidden_prefixes: tuple[str, ...] = FILE_NAMES) -> str:
    """The running text of a page.

    Args:
        wikitext: The page as stored.
        hidden_prefixes: Names of the file and category namespaces in the wiki's language; links into them show
            no text.

    Returns:
        Text with the page's line breaks; what was removed leaves nothing or a space.
    """
    # Behind the last "-->" no comment closes, and looking for its end again and again would be quadratic.
    last = wikitext.rfind("-->") + len("-->") if "-->" in wikitext else 0
    text = _COMMENT.sub("", wikitext[:last]) + wikitext[last:]
    text = _without(text, _hidden_elements(text))
    text = _without(text, _balanced(text))
    text = _EXTERNAL.sub("", text)
    text = _URL.sub("", text)
    hidden = _hidden_link(hidden_prefixes)
    for _ in range(_LINK_ROUNDS):
        before = text
        text = _LABEL.sub(r"\1", hidden.sub("", text))
        if text == before:
            break
    text = _BLOCK_TAG.sub("\n", text)
    text = _QUOTES.sub("", _MAGIC.sub("", _TAG.sub("", text)))
    return html.unescape(text)


@lru_cache(maxsize=16)
def _hidden_link(prefixes: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(re.escape(p) for p in prefixes)
    return re.compile(rf"\[\[[ _]{{0,10}}(?:{names})[ _]{{0,10}}:[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]\]", re.I)


def _hidden_elements(text: str) -> Iterator[tuple[int, int]]:
    """Spans of elements whose content is not text; an element that is never closed loses its tag alone."""
    opened: re.Match[str] | None = None
    for tag in _HIDDEN_TAG.finditer(text):
        closing, name, attributes = tag.groups()
        if attributes.endswith("/") and not closing:
            if opened is None:
                yield tag.span()
        elif opened is None:
            if closing:
                yield tag.span()
            else:
                opened = tag
        elif name.lower() == opened[2].lower():
            if closing:
                yield opened.start(), tag.end()
                opened = None
            else:
                yield opened.span()
                opened = tag
    if opened is not None:
        yield opened.span()


def _balanced(text: str) -> Iterator[tuple[int, int]]:
    """Spans of balanced templates and tables, outermost ones only, in order."""
    stack: list[tuple[str, int]] = []
    open_count = {"{{": 0, "{|": 0}
    spans: list[tuple[int, int]] = []
    for mark in _BRACES.finditer(text):
        sign = mark[0].lstrip("\n\t ")
        if sign[0] == "{":
            kind = sign[:2]
            if kind == "{|" and text[max(mark.start() - 1, 0) : mark.start()] not in _BEFORE_TABLE:
                continue
            # {{{parameter}}} opens once; {{{{ opens two templates.
            for _ in range(len(sign) // 2 if kind == "{{" else 1):
                stack.append((kind, mark.end() - len(sign)))
                open_count[kind] += 1
            continue
        kind = "{{" if sign[0] == "}" else "{|"
        for _ in range(len(sign) // 2 if kind == "{{" else 1):
            start = _close(stack, open_count, kind)
            if start is not None:
                while spans and spans[-1][0] >= start:
                    spans.pop()
                spans.append((start, mark.end()))
    yield from spans


def _close(stack: list[tuple[str, int]], open_count: dict[str, int], kind: str) -> int | None:
    """Pops the stack down to the last opening of a kind; unclosed openings above it go too."""
    if not open_count[kind]:
        return None
    while True:
        found, start = stack.pop()
        open_count[found] -= 1
        if found == kind:
            return start


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    pieces, place = [], 0
    for start, end in spans:
        pieces.append(text[place:start])
        place = end
    pieces.append(text[place:])
    return "".join(pieces)
