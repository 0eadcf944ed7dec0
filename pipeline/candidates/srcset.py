"""Which URL of an ``<img>`` to take: plain, lazy-loaded, or the best of ``srcset`` and ``<picture>``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# CLIP's largest input is 336 pixels; three times that leaves room for crops and costs a server little.
ENOUGH_PIXELS = 1024
LAZY_SRC = (
    "data-src", "data-original", "data-lazy-src", "data-lazy", "data-original-src", "data-hi-res-src",
    "data-full-src", "data-image-src", "data-img-src", "data-actualsrc", "data-echo", "data-url",
)  # fmt: skip
LAZY_SRCSET = ("data-srcset", "data-lazy-srcset", "data-original-set")
_UNREADABLE = ("image/avif", "image/jxl", "image/svg+xml")
_DESCRIPTOR = re.compile(r"([\d.]{1,20})([wx])(?: \d{1,20}h)?")


def parse_srcset(value: str) -> list[tuple[str, float, str]]:
    """``(url, size, unit)`` of each candidate of a ``srcset``; a candidate without a size counts as ``1x``.

    As the HTML standard parses it: a URL ends at white space, or at a comma with white space behind it; one word
    after the other, so that a value of megabytes takes time in proportion.
    """
    found = []
    words = value.split()[::-1]
    while words:
        word = words.pop().lstrip(",")
        if not word:
            continue
        url = word.rstrip(",")
        descriptors = ""
        while url == word and words:
            descriptor, comma, rest = words.pop().partition(",")
            descriptors += f" {descriptor}" if len(descriptors) < 50 else ""
            if comma:
                words += [rest] if rest else []
                break
        size = _DESCRIPTOR.fullmatch(descriptors.strip() or "1x")
        if size is None:
            continue
        try:
            found.append((url, float(size[1]), size[2]))
        except ValueError:  # "1.2.3x"
            continue
    return found


def best_of(candidates: Sequence[tuple[str, float, str]]) -> str | None:
    """The smallest candidate that is wide enough, or else the largest; densities: the highest."""
    widths = sorted((size, url) for url, size, unit in candidates if unit == "w")
    if widths:
        return next((url for size, url in widths if size >= ENOUGH_PIXELS), widths[-1][1])
    densities = [(size, url) for url, size, unit in candidates if unit == "x"]
    return max(densities, key=lambda c: c[0])[1] if densities else None


def image_url(img: Mapping[str, str | None], sources: Sequence[Mapping[str, str | None]] = ()) -> str | None:
    """The URL to fetch for an image, as found (not yet resolved).

    Lazy attributes come first, because ``src`` is then a placeholder; then the best of ``srcset`` and of the
    ``<source>`` elements of a ``<picture>`` that we can read; then ``src``.

    Args:
        img: Attributes of the ``<img>``.
        sources: Attributes of the ``<source>`` elements before it in its ``<picture>``.
    """
    offered: list[tuple[str, float, str]] = []
    for element in (img, *(s for s in sources if (s.get("type") or "").lower() not in _UNREADABLE)):
        for name in ("srcset", *LAZY_SRCSET):
            offered += parse_srcset(element.get(name) or "")
    usable = [c for c in offered if not c[0].lower().startswith("data:")]
    sized = best_of([c for c in usable if c[2] == "w" or c[1] > 1])
    if sized:
        return sized
    for name in LAZY_SRC:
        if lazy := (img.get(name) or "").strip():
            return lazy
    src = img.get("src") or None
    if src is not None and not src.lstrip().lower().startswith("data:"):
        return src
    return best_of(usable) or src
