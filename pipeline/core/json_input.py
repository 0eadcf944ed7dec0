"""JSON that strangers wrote: one call for every reader of it."""

from __future__ import annotations

import json
import re
from typing import Any

_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE = re.compile("[\ud800-\udfff]")


def loads(data: bytes) -> Any:
    r"""``json.loads``, with each lone surrogate (``"\ud83d"``, half of a character that somebody cut) as U+FFFD.

    JSON can spell them, Python can hold them, but neither UTF-8 nor Arrow can: one of them in a row would end the
    file that it stands in.

    Raises:
        ValueError: ``data`` is not JSON in UTF-8.
        RecursionError: It is nested too deeply.
    """
    value = json.loads(data)
    return _mended(value) if _ESCAPED.search(data) else value


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return _LONE.sub("�", value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return value
