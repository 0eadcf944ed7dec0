"""The project's one tokeniser: what counts as a word when queries are built and when texts are matched.

A text is folded (:func:`fold`) and its words are the longest stretches of

    [^\\W_]+ (?: ' [^\\W_]+ )*

that is: letters and digits of any script, with apostrophes inside ("o'clock", "dog's"). Everything else
separates words: white space, hyphens, underscores and all other punctuation, so "spider-man" is two words and
"são paulo" is two words, not three. Combining marks that have no composed form stay inside their word (vowel
signs of Indian scripts, "i̇stanbul"), so scripts that write with marks are not cut to pieces; scripts written
without spaces (Chinese, Japanese, Thai) give one word per unbroken stretch.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final


def _marks() -> str:
    """Combining marks of the basic plane as a regular-expression set, without variation selectors."""
    points = [
        p
        for p in range(0x300, 0x10000)
        if not 0xFE00 <= p <= 0xFE0F and unicodedata.category(chr(p)) in ("Mn", "Mc")
    ]
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


_RUN = rf"\w[\w{_marks()}]*"
WORD: Final = rf"{_RUN}(?:'{_RUN})*"
"""Regular expression of one word in *folded* text (which holds no underscore)."""

_FIND = re.compile(WORD).findall


def fold(text: str) -> str:
    """The form in which texts are compared: NFC, case-folded, typographic apostrophes and underscores plain.

    ``’`` becomes ``'`` and ``_`` becomes a space; nothing else is removed, so folding keeps punctuation and line
    ends. Folding twice changes nothing.
    """
    if text.isascii():
        return text.lower().replace("_", " ")
    # Folding can leave decomposed letters behind, so the text is composed on both sides of it.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return folded.replace("_", " ").replace("’", "'")


def tokens(text: str) -> list[str]:
    """The words of a text in order, case-folded and in NFC.

    Args:
        text: Any text, as found.

    Returns:
        Words as described at the top of this module; an empty list where there is none. Joining them with
        spaces and splitting again gives the same words.
    """
    return _FIND(fold(text))
