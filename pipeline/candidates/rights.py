"""Opt-out marks of pages: robots directives in meta tags and headers, and the TDM reservation protocol.

Sources: the ``X-Robots-Tag`` and robots meta syntax as search engines document it; ``noai``/``noimageai`` as
DeviantArt introduced them and img2dataset honours them; ``tdm-reservation`` of the W3C community group's TDM
Reservation Protocol (2024), a machine-readable opt-out in the sense of Art. 4(3) of the EU's CDSM directive.
"""

from __future__ import annotations

from collections.abc import Iterable

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none", "noml"})
# A page that names one of these speaks to image-text collectors; other bots' directives are not ours.
AGENTS = frozenset({"robots", "webimagetext", "img2dataset", "ccbot"})
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def robots_marks(source: str, content: str, *, agent: str = "robots") -> list[str]:
    """Opt-out marks in one robots value.

    Args:
        source: Where it stands, for the mark: ``meta robots`` or ``x-robots-tag``.
        content: The value, as ``noai, noimageai`` or ``otherbot: noindex, nofollow``.
        agent: Who the value speaks to until it names somebody itself.

    Returns:
        Marks such as ``x-robots-tag: noai``, in the order found.
    """
    marks = []
    for part in content.lower().split(","):
        name, colon, value = part.partition(":")
        directive = part.strip()
        if colon and name.strip() not in _VALUED:
            agent, directive = name.strip(), value.strip()
        if agent in AGENTS and directive in OPT_OUTS:
            marks.append(f"{source}: {directive}")
    return marks


def meta_marks(metas: Iterable[tuple[str, str]]) -> list[str]:
    """Opt-out marks in a page's ``<meta name content>`` pairs."""
    marks = []
    for name, content in metas:
        lowered = name.strip().lower()
        if lowered in AGENTS:
            marks += robots_marks(f"meta {lowered}", content)
        elif lowered == "tdm-reservation" and content.strip() == "1":
            marks.append("meta tdm-reservation: 1")
    return marks


def header_marks(headers: Iterable[tuple[str, str]]) -> list[str]:
    """Opt-out marks in a page's HTTP response headers."""
    marks = []
    for name, value in headers:
        lowered = name.strip().lower()
        if lowered == "x-robots-tag":
            marks += robots_marks("x-robots-tag", value)
        elif lowered == "tdm-reservation" and value.strip() == "1":
            marks.append("tdm-reservation: 1")
    return marks
