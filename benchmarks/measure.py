"""Runs commands and measures them with all their child processes: wall time, CPU time, peak memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.1
_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
        wall_s: Seconds by the clock.
        cpu_s: User and system seconds of all its processes.
        peak_mb: Most resident memory of all its processes together, MB; pages shared by them count for each.
        output: What it printed.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    output: str


def run(command: Sequence[str]) -> Measured:
    """Runs a command to its end.

    Raises:
        RuntimeError: It failed.
    """
    before = _children_cpu()
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak = 0
        while True:
            peak = max(peak, sum(_resident(p) for p in _family(process.pid)))
            try:
                output, errors = process.communicate(timeout=_SAMPLE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
    wall = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors[-2000:]}")
    return Measured(wall, _children_cpu() - before, peak / 1e6, output)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            parent = _stat(int(entry))
            if parent is not None:
                children.setdefault(parent, []).append(int(entry))
    found, todo = [], [root]
    while todo:
        process = todo.pop()
        found.append(process)
        todo += children.get(process, [])
    return found


def _stat(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):  # gone meanwhile
        return None


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *[[str(c) for c in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def say(text: str) -> None:
    """One line on what is being done, beside the tables."""
    print(text, file=sys.stderr, flush=True)
