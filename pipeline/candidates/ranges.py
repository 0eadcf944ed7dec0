"""Ranges of whole lines in large text files, so that several workers share one."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pipeline.core import paths

SPLIT_BYTES = 32 << 20
MOST_LINE_BYTES = 10_000_000
_PACKED = (b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class LineRange:
    """Some lines of a file.

    Attributes:
        start: Offset of the first line, bytes.
        end: Offset behind the last line; ``None`` for all that follows.
        line: Number of the first line in the file.
    """

    start: int = 0
    end: int | None = None
    line: int = 0


WHOLE = LineRange()


def line_ranges(path: str, *, split_bytes: int = SPLIT_BYTES) -> list[LineRange]:
    """Cuts a file into ranges of about ``split_bytes``; compressed files stay whole.

    The file is read once to count its lines (a gigabyte a second from a disk), so that rows keep their numbers.
    """
    with paths.open_input(path, decompress=False) as file:
        if paths.size(path) <= split_bytes or file.read(4).startswith(_PACKED):
            return [WHOLE]
        file.seek(0)
        ranges: list[LineRange] = []
        start = line = 0
        while data := file.read(split_bytes):
            # A line without end must not fill the memory: cut somewhere, it costs the pieces that it falls into.
            rest = b"" if data.endswith(b"\n") else file.readline(MOST_LINE_BYTES)
            end = start + len(data) + len(rest)
            ranges.append(LineRange(start, end, line))
            start, line = end, line + data.count(b"\n") + rest.count(b"\n")
    return ranges


@contextlib.contextmanager
def open_range(path: str, lines: LineRange) -> Iterator[IO[bytes]]:
    """Opens a range for reading; a whole file is decompressed where that is needed."""
    if lines.end is None:
        with paths.open_input(path) as file:
            yield file
        return
    with paths.open_input(path, decompress=False) as file:
        file.seek(lines.start)
        with io.BufferedReader(_Limited(file, lines.end - lines.start)) as limited:
            yield limited


class _Limited(io.RawIOBase):
    """The next bytes of a file, and no more."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self._file, self._left = file, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed names a wider type
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
