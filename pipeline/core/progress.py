"""Progress on a terminal: one line with stage, count, rate and time left; silent when nobody watches.

Beam's local engine blocks until it is done and reports no live metrics, so stages tick a counter of this process
instead; workers in other processes tick counters of their own, which :mod:`pipeline.core.worklog` tells.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

from pipeline.core import worklog

_current: Progress | None = None


def tick(amount: int = 1) -> None:
    """Counts work done in the progress line that is showing, if any."""
    if _current is not None:
        _current.update(amount)
    worklog.advance(amount)


class Progress:
    """A progress line; use as a context manager.

    Args:
        stage: Name shown first.
        total: Units to come, if known: shows the share and the time left.
        unit: What is counted.
        quiet: Show nothing.
        stream: Where to write; standard error unless given.
    """

    def __init__(
        self,
        stage: str,
        *,
        total: int | None = None,
        unit: str = "rows",
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.stream = sys.stderr if stream is None else stream
        self.shown = not quiet and self.stream.isatty()
        self.done = 0
        self.note = ""
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        global _current
        _current = self
        if self.shown or worklog.switched_on():
            show = self._show if self.shown else self._log
            self._thread = threading.Thread(target=show, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = None
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def update(self, amount: int = 1, *, note: str | None = None) -> None:
        """Counts work done and may change the note at the line's end."""
        with self._lock:
            self.done += amount
            if note is not None:
                self.note = note

    def line(self) -> str:
        """The line as it would be shown now."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / seconds
        text = f"{self.stage}: {self.done:,}"
        if self.total:
            text += f" of {self.total:,}"
        text += f" {self.unit}, {rate:,.1f}/s"
        if self.total and self.done:
            text += f", {duration((self.total - self.done) / rate)} left"
        return f"{text}  {self.note}".rstrip()

    def _log(self) -> None:
        while not self._stop.wait(worklog.EVERY_S):
            seconds = time.monotonic() - self._started
            of = {"of": self.total} if self.total else {}
            worklog.say(
                self.stage, done=self.done, **of, unit=self.unit, seconds=seconds, per_s=self.done / seconds
            )

    def _show(self) -> None:
        while not self._stop.wait(0.2):
            self.stream.write(f"\r\x1b[K{self.line()[:160]}")
            self.stream.flush()


def duration(seconds: float) -> str:
    """Seconds as ``1h 02m``, ``3m 05s`` or ``12s``."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 60}m {whole % 60:02d}s" if whole >= 60 else f"{whole}s"
