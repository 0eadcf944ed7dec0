"""Cleaning of texts as found on the web, before rules, language and matching see them."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Final
from urllib.parse import unquote_plus

_TAG: Final = re.compile(r"</?[a-zA-Z][^<>]{0,2000}>")
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_PLUS_WORDS: Final = re.compile(r"[^\W\d_]{2,}(?:\+[^\W\d_]{2,}){2,}")
# Soft hyphen, zero-width space, byte-order mark, and marks of writing direction: nobody sees them, and they
# split words. Joiners stay, because emoji and Indian scripts are spelt with them.
_INVISIBLE: Final = re.compile("[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_CONTROL: Final = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
_CODED: Final = re.compile("[&<%+]")
_ROUNDS: Final = 4


def clean(text: str) -> str:
    """A text without entities, tags, percent-encoding, invisible characters and superfluous spaces, in NFC.

    Encodings may be nested (``&amp;quot;``), so it is done until nothing changes, at most four times.

    Args:
        text: As found.

    Returns:
        The cleaned text; empty if nothing is left.
    """
    if text.isascii() and text.isprintable() and not _CODED.search(text):
        return " ".join(text.split())  # as most texts are: there is nothing else to do
    for _ in range(_ROUNDS):
        before = text
        text = _once(text)
        if text == before:
            break
    return text


def _once(text: str) -> str:
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", _without_comments(text))
    if "%" in text or "+" in text:
        text = _decode_url_text(text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    return " ".join(_CONTROL.sub(" ", text).split())


def _without_comments(text: str) -> str:
    """A text without ``<!-- comments -->``; one that is not closed stays, as it is no comment."""
    kept, begun = [], 0
    # By hand: a regular expression looks for the end once for every beginning.
    while (start := text.find("<!--", begun)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        kept += [text[begun:start], " "]
        begun = end + 3
    return "".join(kept) + text[begun:]


def _decode_url_text(text: str) -> str:
    """Decodes what clearly came out of a URL: no white space, and escapes or several words joined by ``+``.

    YFCC100M's titles are stored so. "100% cotton", "C++" and "rock+roll" stay as they are.
    """
    if " " in text.strip():
        return text
    if _ESCAPE.search(text) and (decoded := unquote_plus(text)) and "\ufffd" not in decoded:
        return decoded
    return text.replace("+", " ") if _PLUS_WORDS.fullmatch(text.strip()) else text
