"""Pages that could stall the parser are read in a process of their own, within limits of time and memory.

Building a tree is quadratic in what a page leaves open, in the attributes of one tag, and in more that no look at the
bytes tells for sure; and a parser written in C cannot be interrupted. So only pages that are small in both bytes and
tags are read where the archive is: they take no longer at worst. One of thirty goes to the process beside it, which
costs the parser's start (0.1 s) once and next to nothing per page.
"""

from __future__ import annotations

import contextlib
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

from pipeline.candidates.found import Lost, Pair, place
from pipeline.candidates.page import HAS_IMAGE, Context, read_page

# At worst 262,144 characters hold 53,000 different attributes of one tag (5 s), and 10,000 tags are as deep (0.5 s).
SMALL_CHARS = 262_144
SMALL_TAGS = 10_000
# An ordinary page of 10 MB takes 0.4 s.
CPU_SECONDS = 10
MEMORY_BYTES = 4 << 30
_CHUNK = 1_000


class PageReader:
    """Reads pages, whatever they hold; use as a context manager, or close it.

    Args:
        cpu_seconds: What a page that is not small may take.
    """

    def __init__(self, *, cpu_seconds: int = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, html: str, context: Context) -> Iterator[Pair | Lost]:
        """Pairs of a page, and what was lost on it.

        A page that takes too long is lost as ``too_complex``, one that the parser fails on as ``parse_error``.
        """
        if len(html) <= SMALL_CHARS and html.count("<") <= SMALL_TAGS:
            return _read(html, context)
        if not HAS_IMAGE.search(html):
            return iter(())
        return self._read_apart(html, context)

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._process is None:
            return
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._process = None

    def _read_apart(self, html: str, context: Context) -> Iterator[Pair | Lost]:
        if self._process is None:
            command = [sys.executable, "-m", __name__, str(self._cpu_seconds)]
            # A pipe that holds a whole page: fewer turns between the two.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pipesize=1 << 20
            )
        sink, source = self._process.stdin, self._process.stdout
        assert sink is not None
        assert source is not None
        # All or nothing: what a page gave before it took too long depends on the machine.
        found: list[Pair | Lost] = []
        try:
            pickle.dump((html, context), sink, protocol=5)
            sink.flush()
            while chunk := pickle.load(source):
                found += chunk
        except (OSError, EOFError, pickle.UnpicklingError):
            status = self._process.wait()
            self.close()
            where = context.url or place(context.origin, context.origin_offset)
            if status == -signal.SIGXCPU:
                return iter([Lost("too_complex", where, f"more than {self._cpu_seconds} CPU seconds")])
            return iter([Lost("parse_error", where, f"the parser's process ended with {status}")])
        return iter(found)


def _read(html: str, context: Context) -> Iterator[Pair | Lost]:
    try:
        yield from read_page(html, context)
    except (ValueError, RuntimeError, MemoryError) as error:  # whatever one page does to the parser
        yield Lost("parse_error", context.url or place(context.origin, context.origin_offset), str(error))


def serve(source: IO[bytes], sink: IO[bytes], cpu_seconds: int) -> None:
    """Reads pages from a pipe and writes what they gave, until the pipe ends or a page takes too long."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    while True:
        try:
            html, context = pickle.load(source)
        except EOFError:
            return
        # Whole seconds of the process, rounded up: a page has its seconds and less than one more.
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + cpu_seconds)
        for chunk in _chunks(_read(html, context)):
            pickle.dump(chunk, sink, protocol=5)
        pickle.dump([], sink, protocol=5)
        sink.flush()


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _chunks(items: Iterable[Pair | Lost]) -> Iterator[list[Pair | Lost]]:
    rest = iter(items)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]))
