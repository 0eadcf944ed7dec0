"""Bytes of a page to text: byte-order mark, valid UTF-8, HTTP charset, meta charset, then windows-1252."""

from __future__ import annotations

import codecs
import re

_META = re.compile(rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_.:\-]{2,40})", re.IGNORECASE)
_XML = re.compile(rb"^\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([a-zA-Z0-9_.:\-]{2,40})", re.IGNORECASE)
_SCAN_BYTES = 4096
# What browsers read these labels as (WHATWG Encoding); Python's own reading is stricter.
_LABELS = {
    "iso-8859-1": "cp1252", "latin1": "cp1252", "latin-1": "cp1252", "ascii": "cp1252", "us-ascii": "cp1252",
    "windows-1252": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030", "x-sjis": "cp932",
    "shift_jis": "cp932", "shift-jis": "cp932", "euc-kr": "cp949", "ks_c_5601-1987": "cp949", "tis-620": "cp874",
    "iso-8859-9": "cp1254", "iso-8859-11": "cp874", "utf8": "utf-8", "unicode-1-1-utf-8": "utf-8",
}  # fmt: skip
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def decode(data: bytes, http_charset: str | None = None) -> str:
    """The page's text; what no encoding can read becomes U+FFFD, nothing is raised.

    Args:
        data: Body after HTTP decoding.
        http_charset: Charset of the ``Content-Type`` header, if any.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, errors="replace")
    high = len(data) - len(data.translate(None, bytes(range(128, 256))))
    declared = [d for d in (_codec(http_charset), _codec(_in_page(data))) if d]
    # Bytes above 127 that are valid UTF-8 are UTF-8, whatever the page says: other encodings hardly ever are.
    for name in (*(["utf-8"] if high else []), *declared, "utf-8"):
        try:
            return data.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    for name in declared:
        if name != "utf-8":
            return data.decode(name, errors="replace")
    as_utf8 = data.decode("utf-8", errors="replace")
    # Text of a one-byte encoding breaks nearly every high byte as UTF-8; a page with a few bad bytes does not.
    return as_utf8 if as_utf8.count("\ufffd") * 4 < high else data.decode("cp1252", errors="replace")


def _in_page(data: bytes) -> str | None:
    head = data[:_SCAN_BYTES]
    found = _META.search(head) or _XML.search(head)
    if found is None:
        return None
    label = found[1].decode("ascii").lower()
    # A meta tag that could be read byte by byte is not in UTF-16, whatever it says.
    return "utf-8" if label.startswith("utf-16") else label


def _codec(label: str | None) -> str | None:
    if not label:
        return None
    name = label.strip().strip("\"'").lower()
    name = _LABELS.get(name, name)
    try:
        info = codecs.lookup(name)
    except (LookupError, ValueError):
        return None
    # Python also lists codecs that are not character sets: "rot13", "zip", "idna".
    return (
        name if info._is_text_encoding and info.name not in ("idna", "punycode", "unicode_escape") else None
    )
