"""Pairs of WAT files: Common Crawl's JSON metadata, where each ``IMG@/src`` link carries its texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastwarc import WarcRecordType

from pipeline.candidates.found import Lost, Pair, place
from pipeline.candidates.page import Context, Image, collapse, language_tag, pairs_of
from pipeline.candidates.rights import header_marks, meta_marks
from pipeline.candidates.srcset import image_url
from pipeline.candidates.urls import UrlError, absolute_url
from pipeline.candidates.warc import RawRecord, read_records
from pipeline.core import json_input

_TEXTS = (("alt", "alt"), ("title", "title"), ("aria-label", "aria-label"))


def read_wat(
    path: str, origin: str, *, max_page_bytes: int, max_text_chars: int, keep_opted_out: bool
) -> Iterator[Pair | Lost]:
    """Pairs of a WAT file, and what was lost."""
    for record in read_records(path, origin, wanted=WarcRecordType.metadata, max_block_bytes=max_page_bytes):
        if isinstance(record, Lost):
            yield record
            continue
        where = place(origin, record.offset)
        try:
            envelope = json_input.loads(record.block)["Envelope"]
            page = _page(envelope)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            yield Lost("parse_error", where, f"{type(error).__name__}: {error}")
            continue
        if page is None:
            continue
        yield from _pairs(page, envelope, record, origin, max_text_chars, keep_opted_out)


def _page(envelope: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The HTTP part of an envelope that describes an HTML page; ``None`` for requests and other records."""
    response = envelope["Payload-Metadata"].get("HTTP-Response-Metadata")
    return response if response and response.get("HTML-Metadata") else None


def _pairs(
    page: Mapping[str, Any],
    envelope: Mapping[str, Any],
    record: RawRecord,
    origin: str,
    max_text_chars: int,
    keep_opted_out: bool,
) -> Iterator[Pair | Lost]:
    try:
        url = str(envelope["WARC-Header-Metadata"]["WARC-Target-URI"])
        html = page["HTML-Metadata"]
        head = html.get("Head") or {}
        headers = [(str(n), str(v)) for n, v in (page.get("Headers") or {}).items()]
        status = str((page.get("Response-Message") or {}).get("Status", "200"))
        metas = [m for m in head.get("Metas") or [] if isinstance(m, dict)]
        links = [k for k in html.get("Links") or [] if isinstance(k, dict)]
    except (KeyError, TypeError, AttributeError) as error:
        yield Lost("parse_error", place(origin, record.offset), f"{type(error).__name__}: {error}")
        return
    if status != "200":
        yield Lost("http_status", url, status)
        return
    equiv = [
        str(m.get("content")) for m in metas if str(m.get("http-equiv", "")).lower() == "content-language"
    ]
    named = {n.lower(): v for n, v in headers}
    marks = header_marks(headers) + meta_marks(
        (str(m.get("name", "")), str(m.get("content", ""))) for m in metas
    )
    try:
        base = absolute_url(str(head["Base"]), url) if head.get("Base") else url
    except UrlError:
        base = url
    context = Context(
        url=url,
        origin=origin,
        origin_offset=record.offset,
        keep_opted_out=keep_opted_out,
        max_text_chars=max_text_chars,
    )
    images = (_image(k) for k in links if str(k.get("path", "")).upper().startswith("IMG@"))
    language = language_tag(*equiv, named.get("content-language"))
    yield from pairs_of(images, context, base=base, language=language, rights=tuple(dict.fromkeys(marks)))


def _image(link: Mapping[str, Any]) -> Image:
    attributes = {str(k): str(v) for k, v in link.items() if isinstance(v, str)}
    given: dict[str, str] = {}
    for name, source in _TEXTS:
        given.setdefault(collapse(attributes.get(name, "")), source)
    url = image_url({**attributes, "src": attributes.get("url") or attributes.get("src")})
    return Image(url or "", tuple((source, text) for text, source in given.items() if text))
