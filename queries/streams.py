"""Byte streams out of dump files: bzip2 by its own streams, so that a file can be read from the middle.

A multistream file is a row of complete bzip2 streams. A stream's header is ten known bytes, so the streams of a
byte range are found without an index; a damaged stream is skipped and the next one read.
"""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import zstandard

from pipeline.core import paths

HEADER = re.compile(rb"BZh[1-9]1AY&SY")
_HEADER_BYTES = 10
CHUNK_BYTES = 1 << 20
# What reading a damaged or truncated file raises, whatever packs it.
DAMAGE = (EOFError, OSError, ValueError, zlib.error, zstandard.ZstdError)


@dataclass(frozen=True)
class Loss:
    """Something of an input that could not be used, for the manifest and the closing lines.

    Attributes:
        path: File.
        reason: What was wrong.
        offset: Byte of the (compressed) file where it begins, if that is known.
        count: How many times, or how many records.
    """

    path: str
    reason: str
    offset: int | None = None
    count: int = 1


class Gap:
    """Stands between chunks where bytes are missing: what was begun before it never ends."""


GAP = Gap()


def read(path: str, start: int, end: int, lost: list[Loss]) -> Iterator[bytes | Gap]:
    """Decompressed chunks of a file.

    Args:
        path: File; gz, bz2, zstd or plain.
        start: First byte of the range; not 0 only for bzip2 and plain files.
        end: The range's end: bzip2 streams that begin before it are read, to their own ends; a plain file is read
            on behind it, for as long as the caller asks.
        lost: Filled with what could not be read.
    """
    with paths.open_input(path, decompress=False) as raw:
        if HEADER.match(raw.read(_HEADER_BYTES)):
            yield from _bzip2(raw, path, start, end, lost)
            return
    with paths.open_input(path) as file:
        if start:
            file.seek(start)
        # read() would throw away what it has when a compressed file ends too early; read1() gives it first.
        read_some = getattr(file, "read1", file.read)
        while True:
            try:
                chunk = read_some(CHUNK_BYTES)
            except DAMAGE as error:
                lost.append(Loss(path, f"cannot be decompressed to its end: {error}"))
                yield GAP
                return
            if not chunk:
                return
            yield chunk


def _bzip2(raw: IO[bytes], path: str, start: int, end: int, lost: list[Loss]) -> Iterator[bytes | Gap]:
    raw.seek(start)
    held, base = b"", start  # `base` is the place of held[0] in the file
    while True:
        found = HEADER.search(held)
        if found is None:
            chunk = raw.read(CHUNK_BYTES)
            if not chunk:
                return
            # A header may lie across two chunks.
            base += max(len(held) - _HEADER_BYTES + 1, 0)
            held = held[-_HEADER_BYTES + 1 :] + chunk
            continue
        place = base + found.start()
        if place >= end:
            return
        decoder = bz2.BZ2Decompressor()
        data = held[found.start() :]
        try:
            while not decoder.eof:
                if decoder.needs_input and not data:
                    data = raw.read(CHUNK_BYTES)
                    if not data:
                        lost.append(Loss(path, "truncated bzip2 stream", place))
                        yield GAP
                        return
                decoded = decoder.decompress(data, max_length=4 * CHUNK_BYTES)
                data = b""
                if decoded:
                    yield decoded
            held = decoder.unused_data
            base = raw.tell() - len(held)
        except DAMAGE as error:
            lost.append(Loss(path, f"damaged bzip2 stream: {error}", place))
            yield GAP
            base, held = place + _HEADER_BYTES, b""
            raw.seek(base)


def first_stream(path: str, *, most_bytes: int = CHUNK_BYTES) -> tuple[bytes, int | None]:
    """The start of a file's decompressed content, and where the file's second bzip2 stream begins.

    The place is ``None`` when the file is not bzip2, holds one stream only, or its first stream is longer than
    ``most_bytes``.
    """
    with paths.open_input(path, decompress=False) as raw:
        data = raw.read(CHUNK_BYTES)
    if not HEADER.match(data):
        chunks = (c for c in read(path, 0, 0, []) if isinstance(c, bytes))
        return next(chunks, b"")[:most_bytes], None
    decoder = bz2.BZ2Decompressor()
    try:
        head = decoder.decompress(data, max_length=most_bytes)
    except DAMAGE:
        return b"", None
    if not decoder.eof or not HEADER.match(decoder.unused_data):
        return head, None
    return head, len(data) - len(decoder.unused_data)
