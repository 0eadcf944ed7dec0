"""Log lines for whoever runs a cluster: what each worker is at, in ``key=value`` words, at a low and steady rate.

They go to the logger ``wit`` at level INFO. A Beam worker hands them to its engine's log. The local engine shows its
progress line instead; with ``--log``, or :data:`SWITCH` in the environment, the lines go to standard error there too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# Its level is left to the process: Beam's workers listen from INFO on, others from WARNING on.
LOGGER: Final = logging.getLogger("wit")
SWITCH: Final = "WIT_LOG"
EVERY_S: Final = 30.0
_HANDLER: Final = "wit-log"


@dataclass(slots=True)
class _Work:
    """What this process has done of a stage."""

    began: float
    said: float
    rows: int = 0
    said_rows: int = 0
    parts: int = 0


_lock = threading.Lock()
_works: dict[str, _Work] = {}
_here = threading.local()


def switched_on() -> bool:
    """Whether lines go to standard error too; sets that up once."""
    if os.environ.get(SWITCH, "") in ("", "0"):
        return False
    if not any(handler.name == _HANDLER for handler in LOGGER.handlers):
        handler = logging.StreamHandler()
        handler.name = _HANDLER
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False  # Beam's local engine may hand the same lines on in its own words
    return True


def say(stage: str, **facts: object) -> None:
    """One line now.

    Args:
        stage: The command's name.
        facts: Words and numbers, in the order they are shown.
    """
    switched_on()
    words = "".join(f" {name}={_word(value)}" for name, value in facts.items())
    LOGGER.info("stage=%s%s worker=%s/%d", _word(stage), words, socket.gethostname(), os.getpid())


def begin(stage: str, out: str) -> None:
    """Says that a stage begins; what this process did of one of that name before counts no more."""
    with _lock:
        _works.pop(stage, None)
    say(stage, begins=out)


def _word(value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return f'"{text}"' if " " in text else text


@contextlib.contextmanager
def working(stage: str, part: object) -> Iterator[None]:
    """What is counted with :func:`advance` in this thread belongs to a part of a stage; a line when one is due.

    Args:
        stage: The command's name.
        part: Which element it is: a file, a row group, a shard.
    """
    before = getattr(_here, "at", None)
    _here.at = (stage, str(part))
    now = time.monotonic()
    with _lock:
        work = _works.setdefault(stage, _Work(began=now, said=now))
    try:
        yield
        with _lock:
            work.parts += 1
        _say_if_due(stage, str(part), work)
    finally:
        _here.at = before


def advance(amount: int) -> None:
    """Counts rows of the part that this thread is at, if any."""
    at: tuple[str, str] | None = getattr(_here, "at", None)
    if at is None:
        return
    with _lock:
        now = time.monotonic()
        work = _works.setdefault(at[0], _Work(began=now, said=now))
        work.rows += amount
    _say_if_due(at[0], at[1], work)


def _say_if_due(stage: str, part: str, work: _Work) -> None:
    now = time.monotonic()
    with _lock:
        since = now - work.said
        if since < EVERY_S:
            return
        rows = work.rows - work.said_rows
        work.said, work.said_rows = now, work.rows
    say(
        stage,
        part=part,
        parts_done=work.parts,
        rows=work.rows,
        seconds=now - work.began,
        rows_per_s=rows / since,
    )
