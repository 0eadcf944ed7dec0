"""Runs commands and measures them with all their child processes: wall time, CPU time, peak memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SAMPLE_SECONDS = 0.1
_PAGE_BYTES = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Phase:
    """What a part of a command took, in the same units; to a sample's length."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
        wall_s: Seconds by the clock.
        cpu_s: User and system seconds of all its processes.
        peak_mb: Most resident memory of all its processes together, MB; pages shared by them count for each.
        output: What it printed.
        phases: Its parts by name, where they can be told from outside.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    output: str
    phases: Mapping[str, Phase] = field(default_factory=dict)


def run(command: Sequence[str], phase: Callable[[], str] | None = None) -> Measured:
    """Runs a command to its end.

    Args:
        command: The program and its arguments.
        phase: Says what it is doing now, from what it has written.

    Raises:
        RuntimeError: It failed.
    """
    before = _children_cpu()
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak = 0.0
        phases: dict[str, Phase] = {}
        wall_before = cpu_before = 0.0
        while True:
            family = _family(process.pid)
            resident = sum(map(_resident, family)) / 1e6
            peak = max(peak, resident)
            if phase is not None:
                now = phases.setdefault(phase(), Phase())
                wall, cpu = time.monotonic() - started, max(sum(map(_cpu, family)), cpu_before)
                now.wall_s, now.cpu_s = now.wall_s + wall - wall_before, now.cpu_s + cpu - cpu_before
                now.peak_mb = max(now.peak_mb, resident)
                wall_before, cpu_before = wall, cpu
            try:
                output, errors = process.communicate(timeout=_SAMPLE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
    wall = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{errors[-2000:]}")
    return Measured(wall, _children_cpu() - before, peak, output, phases)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        process = todo.pop()
        found.append(process)
        todo += children.get(process, [])
    return found


def _cpu(process: int) -> float:
    """Seconds of a process and of its children that have ended."""
    return sum(map(int, _stat(process)[11:15])) / _TICKS


def _stat(process: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the third on; none if the process is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


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
