"""What the readers of archives, pages and tables yield: pairs, and what was lost with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

REASONS = (
    "no_text",  # an image without any text
    "bad_url",  # not a URL, or longer than MAX_URL_CHARS
    "blocked_scheme",  # data:, file:, javascript:, …
    "relative_url",  # a relative image URL on a page whose own URL is not known
    "text_too_long",
    "not_an_image",  # a table's row of something else, as YFCC100M's videos
    "score",  # a table's row whose score breaks a limit, or that has none
    "repeated_on_page",  # the same URL and text again on the same page
    "page_opted_out",  # the page asks not to be indexed or mined
    "http_status",  # the server answered with something else than 200
    "revisit",  # a WARC record without a body that refers to an earlier one
    "not_html",
    "too_large",  # a page above the size cap
    "too_nested",  # a page whose open elements would take a parser unbounded time
    "too_complex",  # a page that takes a parser too long all the same, or that has too many images
    "parse_error",  # a record that cannot be read
    "truncated",  # a record or file that ends early
)
# Reasons that say that the input is damaged, or that a table's columns are others than named; of tables, where no
# page gives it a meaning, `relative_url` too.
DAMAGE = ("bad_url", "parse_error", "truncated")
MAX_URL_CHARS = 4096


class Pair(NamedTuple):
    """One image URL with one text; see the contract ``candidates/1``."""

    url: str
    text: str
    text_source: str
    page_url: str | None
    page_language: str | None
    rights: tuple[str, ...]
    origin: str
    origin_offset: int | None


@dataclass(frozen=True, slots=True)
class Lost:
    """A pair, page or record that was seen and is not in the result.

    Attributes:
        reason: One of :data:`REASONS`.
        id: Image URL of a pair, page URL of a page, ``origin@offset`` of a record.
        detail: What there is to say about it.
    """

    reason: str
    id: str
    detail: str | None = None


def place(origin: str, offset: int | None) -> str:
    """How a record is named in ``dropped/``."""
    return origin if offset is None else f"{origin}@{offset}"
