"""Image files made for tests: whole, odd, and hostile."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

STORED = "stored"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file of some format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def textured(size: int = 96) -> Image.Image:
    """A picture whose file is long enough to be cut in many places."""
    draw = np.random.default_rng(1)
    coarse = Image.fromarray(draw.integers(0, 256, (24, 24, 3)).astype(np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: bytes,
    *,
    before: Iterable[bytes] = (),
    interlace: int = 0,
) -> bytes:
    """A PNG from its header's fields, its unfiltered rows and further chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    chunks = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_segments(body: bytes, *segments: bytes) -> bytes:
    """A JPEG with further segments at its beginning."""
    return body[:2] + b"".join(segments) + body[2:]


def riff(kind: bytes, data: bytes) -> bytes:
    """A chunk of a WebP."""
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp(*chunks: bytes) -> bytes:
    """A WebP of given chunks."""
    inner = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def canvas(width: int, height: int, flags: int = 0) -> bytes:
    """The first chunk of an extended WebP."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return riff(b"VP8X", bytes([flags, 0, 0, 0]) + sides)


def patched(body: bytes, offset: int, data: bytes) -> bytes:
    """A body with some bytes exchanged."""
    return body[:offset] + data + body[offset + len(data) :]


def tiff_exif(entries: int, next_directory: int = 0) -> bytes:
    """EXIF that says it has so many entries and where its next directory is."""
    entry = struct.pack("<HHII", 0x0110, 2, 4, 0x41414141)
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", entries)
        + entry * min(entries, 4_000)
        + struct.pack("<I", next_directory)
    )


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose scans say nothing, each over all blocks: long to decode, short to send."""
    table = segment(
        0xC4, b"\x10" + bytes([1, *[0] * 15]) + b"\xe0"
    )  # one code: a run of 16,384 empty blocks and more
    runs = -(-((side // 8 + 1) ** 2) // 32_767)
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + data
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\x00")
    quantum = segment(0xDB, b"\0" + b"\1" * 64)
    return b"\xff\xd8" + quantum + frame + table + scan * scans + b"\xff\xd9"


def cut_bodies() -> dict[str, tuple[bytes, str]]:
    """Files that end too early, in every format and in many places."""
    found = {}
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("JPEG", "JPEG", {}), ("progressive JPEG", "JPEG", {"progressive": True}), ("PNG", "PNG", {}),
        ("GIF", "GIF", {}), ("WebP", "WEBP", {}), ("lossless WebP", "WEBP", {"lossless": True}),
    ]  # fmt: skip
    for kind, name, options in kinds:
        body = saved(textured(), name, **options)
        for percent in (1, 3, 10, 30, 50, 70, 90, 97):
            cut = body[: max(4, len(body) * percent // 100)]
            found[f"{kind} cut at {percent}%"] = (cut, "decode_error")
    return found


def lying_bodies() -> dict[str, tuple[bytes, str]]:
    """Headers that say what is not so."""
    jpeg, image, gif, flat = (saved(textured(), k) for k in ("JPEG", "PNG", "GIF", "WEBP"))
    frame = jpeg.index(b"\xff\xc0")
    row = b"\0" + b"\x80" * 300
    return {
        "JPEG of 65,500 x 65,500": (patched(jpeg, frame + 5, b"\xff\xdc\xff\xdc"), "too_many_pixels"),
        "JPEG of no width": (patched(jpeg, frame + 7, b"\0\0"), "decode_error"),
        "JPEG of no height": (patched(jpeg, frame + 5, b"\0\0"), "decode_error"),
        # libjpeg makes up what an end marker says is not there, in grey, and Pillow does not pass its warning on.
        "JPEG taller than its data": (patched(jpeg, frame + 5, b"\0\xc0"), STORED),
        "JPEG of 12 bits": (patched(jpeg, frame + 4, b"\x0c"), "decode_error"),
        "JPEG of nine components": (patched(jpeg, frame + 9, b"\x09"), "decode_error"),
        "JPEG without tables": (b"\xff\xd8" + jpeg[frame:], "decode_error"),
        "JPEG without a scan": (jpeg[: jpeg.index(b"\xff\xda")] + b"\xff\xd9", "decode_error"),
        "JPEG of a segment of no length": (with_segments(jpeg, b"\xff\xe1\0\0"), STORED),
        "PNG of 2,147,483,647 squared": (png(2**31 - 1, 2**31 - 1, 8, 2, b""), "too_many_pixels"),
        "PNG of no width": (png(0, 64, 8, 2, row * 64), "decode_error"),
        "PNG of no height": (png(64, 0, 8, 2, b""), "decode_error"),
        "PNG of 3 bits": (png(100, 100, 3, 0, row * 100), "decode_error"),
        "PNG of colour type 5": (png(100, 100, 8, 5, row * 100), "decode_error"),
        "PNG of too few rows": (png(100, 100, 8, 2, row * 10), STORED),
        "PNG of an unknown filter": (png(100, 100, 8, 2, b"\x09" + row * 100), "decode_error"),
        "PNG whose chunk has 4 GB": (image[:8] + b"\xff\xff\xff\xffIHDR" + image[16:], "decode_error"),
        "PNG with a wrong header sum": (patched(image, 29, b"\0\0\0\0"), "decode_error"),
        "PNG without data": (image[:33] + chunk(b"IEND", b""), "decode_error"),
        "PNG without a header": (image[:8] + image[33:], "decode_error"),
        "GIF of 65,535 squared": (patched(gif, 6, b"\xff\xff\xff\xff"), "too_many_pixels"),
        "GIF of no size": (patched(gif, 6, b"\0\0\0\0"), STORED),  # its frame has one
        "GIF with a frame of 65,535 squared": (_gif_frame(b"\xff\xff\xff\xff"), "too_many_pixels"),
        "GIF with a code size of 255": (_gif_frame(b"\x40\0\x40\0", code=255), "decode_error"),
        "GIF without a frame": (gif[:13] + gif[13:781] + b";", "decode_error"),
        "WebP of 16,383 squared": (webp(canvas(16_383, 16_383)), "too_many_pixels"),
        "WebP whose canvas is not its frame": (webp(canvas(64, 64), flat[12:]), "decode_error"),
        "WebP that says 4 GB": (patched(flat, 4, b"\xff\xff\xff\xff"), "decode_error"),
        "WebP with a frame of 4 GB": (patched(flat, 16, b"\xff\xff\xff\xff"), "decode_error"),
        "WebP without a frame": (webp(canvas(64, 64)), "decode_error"),
        "WebP of an animation without frames": (
            webp(canvas(64, 64, 2), riff(b"ANIM", b"\0" * 6)), "decode_error",
        ),
        "WebP whose first chunk is metadata": (webp(riff(b"EXIF", b"\0" * 40)), "decode_error"),
    }  # fmt: skip


def _gif_frame(size: bytes, code: int = 8) -> bytes:
    head = b"GIF89a\x40\0\x40\0\x80\0\0" + b"\0\0\0\xff\xff\xff"
    return head + b"," + b"\0\0\0\0" + size + b"\0" + bytes([code]) + b"\x02\x84\x51\0;"


def crowded_bodies() -> dict[str, tuple[bytes, str]]:
    """Small pictures with far too much beside them: most are good, and stored without it."""
    jpeg, image, gif, flat = (saved(textured(), k) for k in ("JPEG", "PNG", "GIF", "WEBP"))
    bomb = zlib.compress(b"\0" * 100_000_000)
    rows = b"".join(b"\0" + b"\x40\x80\xc0" * 64 for _ in range(64))

    def crowded(*chunks: bytes) -> bytes:
        return png(64, 64, 8, 2, rows, before=chunks)

    icc = [segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 100]) + b"\0" * 65_000) for n in range(1, 101)]
    frames = [Image.new("P", (64, 64), n % 2) for n in range(400)]
    return {
        "JPEG with 20,000 comments": (with_segments(jpeg, segment(0xFE, b"x") * 20_000), STORED),
        "JPEG with EXIF of noise": (with_segments(jpeg, segment(0xE1, b"Exif\0\0" + b"\xa5" * 60_000)), STORED),
        "JPEG with EXIF of 65,535 entries": (
            with_segments(jpeg, segment(0xE1, b"Exif\0\0" + tiff_exif(65_535))), STORED,
        ),
        "JPEG with EXIF that is its own next": (
            with_segments(jpeg, segment(0xE1, b"Exif\0\0" + tiff_exif(1, next_directory=8))), STORED,
        ),
        "JPEG with a profile of 6 MB": (with_segments(jpeg, *icc), STORED),
        "JPEG with half a profile": (with_segments(jpeg, icc[3]), STORED),
        "JPEG with a profile of noise": (
            with_segments(jpeg, segment(0xE2, b"ICC_PROFILE\0\x01\x01" + b"\xa5" * 5_000)), STORED,
        ),
        "JPEG with another image in its index": (
            with_segments(jpeg, segment(0xE2, b"MPF\0" + tiff_exif(65_535, next_directory=8))), STORED,
        ),
        "JPEG with Photoshop's noise": (
            with_segments(jpeg, segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff")), STORED,
        ),
        "JPEG with 3 MB behind it": (jpeg + b"<?php evil(); ?>" * 200_000, STORED),
        "JPEG of very many scans": (many_scans(7_000, 20_000), "decode_error"),
        "PNG with a profile that unpacks to 100 MB": (crowded(chunk(b"iCCP", b"p\0\0" + bomb)), "decode_error"),
        "PNG with text that unpacks to 100 MB": (crowded(chunk(b"zTXt", b"t\0\0" + bomb)), "decode_error"),
        "PNG with other text that unpacks to 100 MB": (
            crowded(chunk(b"iTXt", b"t\0\x01\0\0\0" + bomb)), "decode_error",
        ),
        "PNG with 50,000 texts": (crowded(chunk(b"tEXt", b"a\0b") * 50_000), STORED),
        "PNG with text of 9 MB": (crowded(chunk(b"tEXt", b"a\0" + b"b" * 9_000_000)), STORED),
        "PNG with EXIF of noise": (crowded(chunk(b"eXIf", b"\xa5" * 60_000)), STORED),
        "PNG with EXIF that is its own next": (crowded(chunk(b"eXIf", tiff_exif(1, next_directory=8))), STORED),
        "PNG with a profile of noise": (crowded(chunk(b"iCCP", b"p\0\0" + zlib.compress(b"\xa5" * 4_000))), STORED),
        "PNG with too much transparency": (crowded(chunk(b"tRNS", b"\0" * 5_000)), STORED),
        "PNG with 2,147,483,647 frames": (crowded(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))), STORED),
        "PNG with a frame outside": (
            crowded(
                chunk(b"acTL", struct.pack(">II", 2, 0)),
                chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 60_000, 60_000, 9, 9, 1, 1, 0, 0)),
            ), "decode_error",
        ),
        "PNG whose data unpacks to 100 MB": (
            png(64, 64, 8, 2, rows + b"\0" * 100_000_000), STORED,
        ),
        "PNG with 40,000 unknown chunks": (crowded(chunk(b"abCd", b"") * 40_000), STORED),
        "PNG with a program behind it": (image + b"PK\x03\x04" * 100_000, STORED),
        "GIF of 400 frames": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), STORED),
        "GIF with comments of 2 MB": (
            gif[:781] + b"!\xfe" + (b"\xff" + b"x" * 255) * 8_000 + b"\0" + gif[781:], STORED,
        ),
        "GIF that is a script too": (b"GIF89a/*" + b"\0" * 20 + b"*/=1;alert(1)", "decode_error"),
        "GIF with a script behind it": (gif + b"<script>alert(1)</script>", STORED),
        "WebP with EXIF of noise": (webp(canvas(96, 96, 8), flat[12:], riff(b"EXIF", b"\xa5" * 60_000)), STORED),
        "WebP with a profile of noise": (
            webp(canvas(96, 96, 32), riff(b"ICCP", b"\xa5" * 4_000), flat[12:]), STORED,
        ),
        "WebP with 20,000 unknown chunks": (webp(canvas(96, 96), flat[12:], riff(b"abcd", b"") * 20_000), STORED),
        "WebP of 60 frames": (
            saved(frames[0].convert("RGB"), "WEBP", save_all=True, append_images=[*frames[1:60]]), STORED,
        ),
    }  # fmt: skip


def large_bodies() -> dict[str, tuple[bytes, str]]:
    """As many pixels as are allowed, where each costs most, and one row more."""
    side = 7_071
    empty = [b"\0" * (1 + side * n) for n in (1, 8)]
    return {
        "PNG of 50 megapixels, grey": (png(side, side, 8, 0, empty[0] * side), STORED),
        "PNG of 50 megapixels, 16-bit colour with alpha": (png(side, side, 16, 6, empty[1] * side), STORED),
        "PNG of 50 megapixels, 16-bit grey": (saved(Image.new("I;16", (side, side)), "PNG"), STORED),
        "PNG of a little more": (png(side + 1, side + 1, 8, 0, b""), "too_many_pixels"),
        "JPEG of 50 megapixels": (saved(Image.new("RGB", (side, side), "red"), "JPEG", quality=20), STORED),
        "JPEG of 50 megapixels, CMYK": (saved(Image.new("CMYK", (side, side)), "JPEG", quality=20), STORED),
        "JPEG of 50 megapixels, progressive": (
            saved(Image.new("RGB", (side, side), "red"), "JPEG", quality=20, progressive=True), STORED,
        ),
        "GIF of 50 megapixels": (saved(Image.new("P", (side, side)), "GIF"), STORED),
    }  # fmt: skip


def foreign_bodies() -> dict[str, tuple[bytes, str]]:
    """What is no image, or none that we take."""
    small = Image.new("RGB", (64, 64), "red")
    unsupported = {
        **{f"{kind}": saved(small, kind) for kind in ("BMP", "TIFF", "ICO", "AVIF", "JPEG2000", "PDF")},
        "big-endian TIFF": b"MM\0*\0\0\0\x08" + b"\0" * 100,
        "a TIFF that is its own next": tiff_exif(1, next_directory=8),
        "a Photoshop file": b"8BPS\0\x01" + b"\0" * 100,
        "SVG": b"\xef\xbb\xbf <svg xmlns='x' onload='alert(1)'/>",
        "SVG with an endless entity": b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "&a;&a;">]><svg>&a;</svg>',
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(w) system",
        "HEIC": b"\0\0\0\x18ftypheic" + b"\0" * 100,
        "JPEG XL": b"\xff\x0a" + b"\0" * 100,
        "a PDF around a JPEG": b"%PDF-1.4\n" + saved(small, "JPEG"),
    }
    nothing = {
        "nothing": b"",
        "one byte": b"\xff",
        "zeros": b"\0" * 10_000,
        "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
        "a web page of 16 bits": "<html></html>".encode("utf-16"),
        "a web page around a PNG": b"<html>" + saved(small, "PNG"),
        "JSON": b'{"error": "not found"}',
        "gzip": b"\x1f\x8b\x08\0" + zlib.compress(b"x"),
        "an archive": b"PK\x03\x04" + b"\0" * 100,
        "a program": b"\x7fELF" + b"\0" * 100,
        "sound": b"RIFF\x24\0\0\0WAVEfmt ",
        "a picture of X": b"/* XPM */ static char *x[] = {",
        "a portable pixmap": b"P6 9999999 9999999 255\n",
        "a JPEG that begins late": b"\n" + saved(small, "JPEG"),
    }
    only = {
        "a JPEG's signature": (b"\xff\xd8\xff", "decode_error"),
        "a PNG's signature": (b"\x89PNG\r\n\x1a\n", "decode_error"),
        "a GIF's signature": (b"GIF89a", "decode_error"),
        "a WebP's signature": (b"RIFF\0\0\0\0WEBP", "decode_error"),
        "a PNG's signature and noise": (b"\x89PNG\r\n\x1a\n" + b"\xa5" * 5_000, "decode_error"),
        "a JPEG of markers only": (b"\xff\xd8" + b"\xff" * 100_000, "decode_error"),
        "a JPEG of beginnings only": (b"\xff\xd8\xff" * 100_000, "decode_error"),
    }
    return {
        **{k: (v, "unsupported_format") for k, v in unsupported.items()},
        **{k: (v, "not_image") for k, v in nothing.items()},
        **only,
    }


def hostile_bodies() -> dict[str, tuple[bytes, str]]:
    """All of them by name, each with the reason it must end in, or ``stored``."""
    return cut_bodies() | lying_bodies() | crowded_bodies() | large_bodies() | foreign_bodies()
