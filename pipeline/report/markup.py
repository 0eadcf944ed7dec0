"""Strangers' text made safe and readable, and the few HTML shapes that the sections share."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

MAX_SEARCHED = 5_000

# What a browser or an editor must not get: control characters, and surrogates that UTF-8 cannot hold.
_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
# Marks that reorder the text around them, as opposed to plain right-to-left letters.
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]")
# Marks piled on one letter until they cover the lines above and below.
_STACKED = re.compile(
    "([\u0300-\u036f\u20d0-\u20ff\ufe20-\ufe2f]{3})[\u0300-\u036f\u20d0-\u20ff\ufe20-\ufe2f]+"
)


def plain(text: str, limit: int = 160) -> str:
    """A text on one line, cut to a length, without characters that act on their surroundings; not yet escaped."""
    head = text[: 4 * limit]
    for pattern, to in ((_UNPRINTABLE, "�"), (_REORDERING, ""), (_STACKED, r"\1")):
        head = pattern.sub(to, head)
    line = " ".join(head.split())
    whole = len(line) <= limit and len(text) <= 4 * limit
    return line if whole else line[:limit].rstrip() + "…"


def shown(text: str, limit: int = 160) -> str:
    """A stranger's text as HTML that stays within its own box and its own writing direction."""
    return f'<bdi dir="auto">{html.escape(plain(text, limit))}</bdi>'


def highlighted(caption: str, query: str | None, limit: int = 160) -> str:
    """A caption as HTML with the first place that holds the query's words marked; cut around that place."""
    line = plain(caption, MAX_SEARCHED)
    found = _find(line, (query or "").split())
    if found is None:
        return shown(caption, limit)
    start, end = found
    first = 0
    if end > limit:
        first = max(0, start - limit // 3)
        first = line.find(" ", first, start) + 1 or first
    last = min(len(line), max(end, first + limit))
    before, marked, after = (html.escape(t) for t in (line[first:start], line[start:end], line[end:last]))
    return (
        f'<bdi dir="auto">{"…" if first else ""}{before}<mark>{marked}</mark>{after}'
        f"{'…' if last < len(line) else ''}</bdi>"
    )


def _find(line: str, words: Sequence[str]) -> tuple[int, int] | None:
    if not words:
        return None
    pattern = r"[\W_]{1,8}".join(map(re.escape, words))
    found = re.search(rf"(?<![^\W_]){pattern}(?![^\W_])", line, re.IGNORECASE)
    return found.span() if found else None


def picture(uri: str | None, told: str) -> str:
    """An image element, or a box that says that there is none."""
    if uri is None:
        return '<div class="pic none">picture not at hand</div>'
    return f'<div class="pic"><img src="{uri}" alt="{html.escape(plain(told, 120))}"></div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = ()) -> str:
    """A table from cells that are HTML already; numeric columns are set right."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if i in numeric else f"<{tag}>{cell}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells(heads, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def panels(drawn: Sequence[str], *, kind: str = "two") -> str:
    """Boxes beside one another where there is room."""
    boxes = "".join(f'<div class="panel">{one}</div>' for one in drawn)
    return f'<div class="{kind}">{boxes}</div>'


def plural(count: int, one: str, many: str = "") -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
