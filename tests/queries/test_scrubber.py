"""The steps from wikitext to text as regular expressions: what the compiled ones are held to."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from queries import wikipedia
from queries.wikitext import FILE_NAMES, plain_text

CUT = Path(__file__).parents[2] / "examples" / "world" / "text" / "enwiki-cut.xml.bz2"

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
_LINK_ROUNDS = 5


def expected(wikitext: str, hidden_prefixes: tuple[str, ...] = FILE_NAMES) -> str:
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


def _hidden_link(prefixes: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(re.escape(p).replace(r"\ ", "[ _]") for p in prefixes)
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


PIECES = st.sampled_from(
    [
        "{{", "}}", "{{{", "{", "{|", "}", "|}", "\n|}", "\n |}", "\n", "[[", "]]", "[", "]", "|", "<ref>", "</ref>",
        "<ref name=a/>", "</ref/>", "<REF x>", "<refx>", "<ref–>", "<refé>", "<math>", "</math>", "<ce>", "<chem>",
        "<br>", "<br />", "<p class=1>", "<tr ", "<b>", "</b>", "<é>", "<", "</", ">", "/>", "<!--", "-->", "--", "!",
        "File:", "file :", " _Image :", "[[File:", "[[ category:", "[[Datei:", "[[tệp_tin:", "[[Tệp tin :", "http://",
        "https://x", "http:", "ht", "[http://a b]", "[//c \t d", "[ftp:", "[mailto:x", "//", "[[a|b]]", "[[a]]",
        "__TOC__", "__", "_", "NOTOC", "'", "''", "'''", "&amp;", "&lt;ref&gt;", "&nbsp;", "&", "a", "b ", "é",
        "\u00a0", ":", "*", "#", "/", "=", " " * 11, "\t" * 21, "x" * 11, "Y" * 31, "y" * 2001, "y" * 1999, "😀",
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=40).map("".join))
@example("<!-->a-->b<!--c")
@example("[[[a]][b]]" * 3 + "[" * 7 + "x" + "]" * 7)
@example("{{a|{|b\n|}}}c\n{|d\n|}")
@example("<ref>a<ref/><ref>b</ref>c</ref>")
@example("<a <br>x> <ref <b>>")
def test_the_compiled_steps_are_the_regular_expressions(wikitext: str) -> None:
    names = (*FILE_NAMES, "Datei", "Tệp tin")
    assert plain_text(wikitext) == expected(wikitext)
    assert plain_text(wikitext, names) == expected(wikitext, names)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert plain_text(text) == expected(text)


@pytest.mark.skipif(not CUT.exists(), reason="examples/world is not in this checkout")
def test_real_articles_are_read_the_same() -> None:
    (split,) = wikipedia.plan([str(CUT)])
    texts = [page.text for page in wikipedia.read(split, [], Counter()) if page.target is None]
    assert len(texts) == 106
    assert [plain_text(t) for t in texts] == [expected(t) for t in texts]
