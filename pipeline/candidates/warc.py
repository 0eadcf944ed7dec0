"""Pages of WARC files, one bad record costing that record.

The archive is read by fastwarc. Where it stops at a damaged record, reading goes on at the next place that
looks like a record's start; each damaged place and an early end are reported once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from fastwarc import ArchiveIterator, WarcRecord, WarcRecordType

from pipeline.candidates.apart import PageReader
from pipeline.candidates.encoding import decode
from pipeline.candidates.found import Lost, Pair, place
from pipeline.candidates.page import Context
from pipeline.candidates.rights import header_marks
from pipeline.core import paths

_GZIP = b"\x1f\x8b\x08"
_CHUNK = 1 << 20
_HEADER_BYTES = 1 << 16
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_DAMAGE = (OSError, ValueError, EOFError)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A whole record in memory: fastwarc's record for its headers, its block, and its place in the file."""

    kind: WarcRecordType
    headers: Any
    block: bytes
    offset: int


def read_warc(
    path: str,
    origin: str,
    pages: PageReader,
    *,
    max_page_bytes: int,
    max_text_chars: int,
    keep_opted_out: bool,
    nearest_chars: int = 0,
) -> Iterator[Pair | Lost]:
    """Pairs of a WARC file's HTML pages, and what was lost."""
    wanted = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.revisit
    for record in read_records(path, origin, wanted=wanted, max_block_bytes=max_page_bytes):
        if isinstance(record, Lost):
            yield record
            continue
        opened = open_page(record, max_page_bytes)
        if isinstance(opened, Lost):
            yield opened
            continue
        context = Context(
            url=record.headers.get("WARC-Target-URI"),
            origin=origin,
            origin_offset=record.offset,
            rights=tuple(header_marks(opened.headers)),
            language=opened.header("content-language"),
            keep_opted_out=keep_opted_out,
            max_text_chars=max_text_chars,
            nearest_chars=nearest_chars,
        )
        yield from pages.read(decode(opened.body, opened.charset), context)


@dataclass(frozen=True, slots=True)
class OpenedPage:
    """An HTML page's body after HTTP decoding, with its headers."""

    body: bytes
    headers: tuple[tuple[str, str], ...]
    charset: str | None

    def header(self, name: str) -> str | None:
        """The first header of a name, given in lower case."""
        return next((v for n, v in self.headers if n.lower() == name), None)


def open_page(record: RawRecord, max_page_bytes: int) -> OpenedPage | Lost:
    """Decodes the HTTP message of a record.

    Returns:
        The page, or why it is none.
    """
    page = record.headers.get("WARC-Target-URI") or f"@{record.offset}"
    if record.kind == WarcRecordType.revisit:
        return Lost("revisit", page, record.headers.get("WARC-Refers-To-Target-URI"))
    block_type = (record.headers.get("Content-Type") or "").lower()
    if record.kind == WarcRecordType.resource and not block_type.startswith("application/http"):
        if not block_type.startswith(_HTML_TYPES):
            return Lost("not_html", page, block_type)
        return OpenedPage(record.block, (), None)
    message = _http(record.block, max_page_bytes)
    if message is None or message[1] is None:
        return Lost("parse_error", page, "not an HTTP message")
    headers, status, charset, body = message
    content_type = next((v for n, v in headers if n.lower() == "content-type"), "")
    if status != 200:
        return Lost("http_status", page, str(status))
    # No Content-Type at all: let the parser see whether there are images in it.
    if content_type and not content_type.strip().lower().startswith(_HTML_TYPES):
        return Lost("not_html", page, content_type)
    if len(body) > max_page_bytes:
        return Lost("too_large", page, f"more than {max_page_bytes} bytes after decoding")
    return OpenedPage(body, headers, charset)


def _http(
    block: bytes, limit: int
) -> tuple[tuple[tuple[str, str], ...], int | None, str | None, bytes] | None:
    # A second try without decoding: servers do label plain bodies as gzip.
    for mode in ("all", "none"):
        message = WarcRecord()
        try:
            message.set_bytes_content(block)
            message.is_http = True
            message.parse_http(auto_decode=mode)
            body = message.reader.read(limit + 1)
        except _DAMAGE:
            continue
        headers = message.http_headers
        if headers is None:
            continue
        return tuple(headers.to_tuples()), headers.status_code, message.http_charset, body
    return None


def read_records(
    path: str, origin: str, *, wanted: WarcRecordType, max_block_bytes: int
) -> Iterator[RawRecord | Lost]:
    """Records of the wanted types with their blocks in memory, and what could not be read."""
    with paths.open_input(path, decompress=False) as file:
        start: int | None = 0
        owed = False  # whether damage was met that no row tells of yet
        while start is not None:
            file.seek(start)
            count, last, told = 0, start, False
            records = ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False)
            while True:
                try:
                    record = next(records)
                except StopIteration:
                    damage = None
                    break
                except _DAMAGE as error:
                    damage = str(error)
                    break
                if owed:
                    yield Lost("parse_error", place(origin, start), "what stands before cannot be read")
                count, last, owed = count + 1, record.stream_pos, False
                item = _block(record, origin, wanted, max_block_bytes)
                told = isinstance(item, Lost) and item.reason != "too_large"
                if item is not None:
                    yield item
            if damage is None:
                if not told and _ends_early(file, last):
                    yield Lost("truncated", origin, f"the file ends within what follows offset {last}")
                return
            if count == 0:
                yield Lost("parse_error", place(origin, start), damage)
            owed = count > 0 and not told
            start = _next_start(file, last + 1)
        if owed:
            yield Lost("truncated", origin, f"what follows offset {last} cannot be read: {damage}")


def _block(record: Any, origin: str, wanted: WarcRecordType, max_block_bytes: int) -> RawRecord | Lost | None:
    if not record.record_type & wanted:
        return None
    where = record.headers.get("WARC-Target-URI") or place(origin, record.stream_pos)
    size = record.content_length
    if size > max_block_bytes + _HEADER_BYTES:
        return Lost("too_large", where, f"{size} bytes")
    if "Content-Length" not in record.headers:
        return Lost("parse_error", where, "the record does not say how long it is")
    try:
        block = record.reader.read(size)
    except _DAMAGE as error:
        return Lost("parse_error", where, str(error))
    if len(block) < size:
        return Lost("truncated", where, f"{len(block)} of {size} bytes")
    return RawRecord(record.record_type, record.headers, block, record.stream_pos)


def _kind(file: IO[bytes]) -> str:
    file.seek(0)
    magic = file.read(4)
    return "gzip" if magic[:3] == _GZIP else "zstd" if magic == b"\x28\xb5\x2f\xfd" else "plain"


def _ends_early(file: IO[bytes], offset: int) -> bool:
    """Whether the file is empty or its gzip members from an offset on do not end."""
    kind = _kind(file)
    file.seek(offset)
    if kind != "gzip":  # there fastwarc itself says so, or the last record is short
        file.seek(0)
        return not file.read(1)
    member = zlib.decompressobj(31)
    data, inside = file.read(_CHUNK), False
    while data:
        try:
            member.decompress(data, 1 << 24)
        except zlib.error:
            return False  # padding after the last member is no damage
        inside = not member.eof
        if member.eof:
            data = member.unused_data.lstrip(b"\0") or file.read(_CHUNK)
            member = zlib.decompressobj(31)
        else:
            data = member.unconsumed_tail or file.read(_CHUNK)
    return inside


def _next_start(file: IO[bytes], offset: int) -> int | None:
    """Where the next readable record seems to start, at an offset or after it."""
    kind = _kind(file)
    if kind == "zstd":  # frames may need a dictionary that stands at the file's beginning
        return None
    sign, skip = (_GZIP, 0) if kind == "gzip" else (b"\r\n\r\nWARC/1.", 4)
    file.seek(offset)
    held = b""
    while data := file.read(_CHUNK):
        held += data
        at = held.find(sign)
        while at >= 0:
            if kind == "plain" or _starts_record(file, offset + at):
                return offset + at + skip
            at = held.find(sign, at + 1)
        keep = len(sign) - 1
        offset += len(held) - keep
        held = held[-keep:]
        file.seek(offset + keep)
    return None


def _starts_record(file: IO[bytes], offset: int) -> bool:
    file.seek(offset)
    try:
        return zlib.decompressobj(31).decompress(file.read(4096), 5) == b"WARC/"
    except zlib.error:
        return False
