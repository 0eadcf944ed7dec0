"""How commands that only answer do so: aligned text on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def say(text: str) -> None:
    """Prints an answer; a reader that has seen enough (``| head``) is no error."""
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
