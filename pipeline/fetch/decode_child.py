"""The process in which images are decoded: ``python -m pipeline.fetch.decode_child``.

A decoder is the one place where foreign bytes reach C code. Here it can use no more memory than it is given, no
more time, write no file worth the name, and take nobody with it. It ends by itself when its parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

from pipeline.fetch.config import FetchConfig
from pipeline.fetch.images import process
from pipeline.fetch.wire import packed, receive, send

READY = b"ready"


class Parent(NamedTuple):
    """The pipes to and from the parent, and what it wants."""

    requests: IO[bytes]
    answers: IO[bytes]
    config: FetchConfig


def greet() -> Parent:
    """Takes the pipes away from the standard streams, which libraries write to, and reads the configuration."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    given = receive(requests)
    return Parent(requests, answers, FetchConfig(**json.loads(given or b"{}")))


def settle(parent: Parent) -> None:
    """Sets the limits, once everything is imported, and tells the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is ours
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which we neither use nor keep
    Image.MAX_IMAGE_PIXELS = None  # the configuration has its own limit, checked before
    with contextlib.suppress(OSError):
        # If memory runs out all the same, this process goes first.
        Path("/proc/self/oom_score_adj").write_text("800")
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + parent.config.decode_memory_mb * 2**20)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 4096)  # a semaphore is a small file
    send(parent.answers, READY)
    os.dup2(1, 2)  # until here an error should be seen; from here on libraries print what nobody can use


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


@contextlib.contextmanager
def deadline(config: FetchConfig) -> Iterator[None]:
    """Ends this process by a signal if the block takes too long, even inside a decoder's own loop.

    What counts is processor time, so that the same image ends alike on a busy machine.
    """
    signal.setitimer(signal.ITIMER_PROF, config.decode_timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Answers each body with its result, until no more come."""
    parent = greet()
    settle(parent)
    while (body := receive(parent.requests)) is not None:
        with deadline(parent.config):
            found = process(body, parent.config)
        send(parent.answers, packed(found))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
