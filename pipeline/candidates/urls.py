"""Image URLs as browsers read them: white space out, resolved against the page, percent-encoded."""

from __future__ import annotations

import re
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from pipeline.candidates.found import MAX_URL_CHARS

_CONTROLS = re.compile(r"[\t\n\r]+")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*:")
_SAFE = "%/:=&?~#+!$,;'@()*[]|^`{}\\"
_EDGES = "".join(map(chr, range(33)))
# What comes out as it went in, without parsing: nine of ten URLs of a table, and a tenth of the time.
_CLEAN = re.compile(
    r"https?://[a-zA-Z0-9.\-]+(?:/[\w.~\-%/:=&+!$,'@()*|]*(?:\?[\w.~\-%/:=&+!$,'@()*|?]+)?)?", re.ASCII
)


class UrlError(ValueError):
    """A URL that cannot be fetched; ``reason`` is one of ``found.REASONS``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def absolute_url(found: str, base: str | None) -> str:
    """The http(s) URL of an image.

    Args:
        found: The attribute's value.
        base: URL that relative ones refer to, if it is known.

    Raises:
        UrlError: ``bad_url``, ``blocked_scheme`` or ``relative_url``.
    """
    if len(found) <= MAX_URL_CHARS and _CLEAN.fullmatch(found):
        return found
    # WHATWG URL: C0 controls and spaces at the ends go, tabs and line ends go everywhere.
    found = _CONTROLS.sub("", found[: MAX_URL_CHARS * 2].strip(_EDGES))
    if not found:
        raise UrlError("bad_url")
    scheme = _SCHEME.match(found)
    if scheme is not None and scheme[0].lower() not in ("http:", "https:"):
        # "example.com:8080/a.png" has no scheme for a person, but every browser sees one.
        raise UrlError("blocked_scheme")
    if scheme is None and base is None:
        raise UrlError("relative_url")
    try:
        parts = urlsplit(urljoin(base, found) if base is not None else found)
        host, _ = parts.hostname, parts.port
        url = urlunsplit(
            (
                parts.scheme.lower(),
                parts.netloc,
                quote(parts.path, safe=_SAFE),
                quote(parts.query, safe=_SAFE),
                "",
            )
        )
        url.encode()
    except ValueError as error:  # unbalanced brackets, ports out of range, lone surrogates
        raise UrlError("bad_url") from error
    if parts.scheme.lower() not in ("http", "https"):
        raise UrlError("blocked_scheme")
    if not host or any(c.isspace() for c in parts.netloc) or len(url) > MAX_URL_CHARS:
        raise UrlError("bad_url")
    return url


def known_url(found: str | None) -> str | None:
    """An absolute http(s) URL, or ``None`` if it is not one."""
    if not found:
        return None
    try:
        return absolute_url(found, None)
    except UrlError:
        return None
