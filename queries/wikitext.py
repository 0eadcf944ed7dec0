"""Wikitext to plain text: the words a reader sees in the article's running text, headings and lists.

Dropped: comments, templates, tables, references, formulas, galleries, code, files and categories. Kept: link labels,
image-free markup's text, headings, list items. Every step is linear in the text's length whatever its nesting, so
no page can hang the reader; unbalanced markup loses its brackets and keeps its text.

The steps themselves are compiled code in :mod:`queries.markup`.
"""

from __future__ import annotations

import html
from functools import lru_cache

import numpy as np

from pipeline.core.alphabet import alphabet
from queries.markup import scrub

FILE_NAMES = ("File", "Image", "Category")
# Elements whose content is not running text.
_HIDDEN = (
    "ref", "math", "chem", "ce", "gallery", "timeline", "source", "syntaxhighlight", "score", "imagemap", "code",
    "pre", "hiero", "graph", "mapframe", "maplink", "templatedata", "templatestyles", "inputbox", "indicator",
    "includeonly", "noinclude", "categorytree",
)  # fmt: skip
# Elements that end a line.
_BLOCKS = (
    "br", "hr", "p", "div", "li", "ul", "ol", "dl", "dd", "dt", "table", "tr", "td", "th", "blockquote", "center",
)  # fmt: skip


def plain_text(wikitext: str, hidden_prefixes: tuple[str, ...] = FILE_NAMES) -> str:
    """The running text of a page.

    Args:
        wikitext: The page as stored.
        hidden_prefixes: Names of the file and category namespaces in the wiki's language; links into them show
            no text.

    Returns:
        Text with the page's line breaks; what was removed leaves nothing or a space.
    """
    known = alphabet()
    text = np.frombuffer(bytearray(wikitext.encode("utf-32-le", "surrogatepass")), np.uint32)
    length = scrub(
        text, known.word, known.space, known.folded, _names(_HIDDEN), _names(_BLOCKS), _names(hidden_prefixes)
    )
    return html.unescape(text[:length].tobytes().decode("utf-32-le", "surrogatepass"))


@lru_cache(maxsize=16)
def _names(names: tuple[str, ...]) -> np.ndarray:
    """Names as folded code points, uint32[names, longest + 1], filled up with zeros."""
    folded = alphabet().folded
    table = np.zeros((len(names), max(map(len, names), default=0) + 1), np.uint32)
    for row, name in zip(table, names, strict=True):
        row[: len(name)] = folded[[ord(c) for c in name]]
    return table
