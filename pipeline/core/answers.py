"""How commands that only answer do so: aligned text on standard output, or JSON for machines."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def json_flag(made: argparse.ArgumentParser) -> None:
    """Adds ``--json``."""
    made.add_argument("--json", action="store_true", help="print JSON for machines")


def say(found: Mapping[str, Any], text: Callable[[Mapping[str, Any]], str], *, as_json: bool) -> None:
    """Prints an answer; a reader that has seen enough (``| head``) is no error.

    Args:
        found: The answer.
        text: Makes a person's text of it.
        as_json: Whether a machine asked.
    """
    _write(json.dumps(found, indent=2, ensure_ascii=False) if as_json else text(found))


def _write(text: str) -> None:
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Without a place to go Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def aligned(rows: Sequence[Sequence[str]], *, words: int = 1, indent: int = 2) -> list[str]:
    """Rows as aligned lines: the first columns are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " " * indent
        + "  ".join(
            f"{cell:<{width}}" if n < words else f"{cell:>{width}}"
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
