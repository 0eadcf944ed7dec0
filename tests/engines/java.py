"""Java programs on this machine, in the background."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HOST = "127.0.0.1"
# What Spark 3.5's own scripts open of Java 17 (JavaModuleOptions); Flink needs no more.
OPENED = (
    *(f"java.{name}" for name in (
        "lang", "lang.invoke", "lang.reflect", "io", "net", "nio", "util", "util.concurrent", "util.concurrent.atomic"
    )),
    "sun.nio.ch", "sun.nio.cs", "sun.security.action", "sun.util.calendar",
)  # fmt: skip
START_S = 300.0


def free_port(rows: int = 1) -> int:
    """The first of some ports in a row that nothing listens on, and that no connection is given meanwhile."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    # Below those that the system hands out; each process tries others first.
    below = [port for port in range(20_000, 32_000) if not first <= port <= last]
    start = os.getpid() * 97 % len(below)
    for port in below[start:] + below[:start]:
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for i in range(rows):
                probes.enter_context(socket.socket()).bind((HOST, port + i))
            return port
    raise RuntimeError("no port is free")


def java(jars: Sequence[Path], main: str, *words: str, properties: Mapping[str, str]) -> list[str]:
    """The command line of a Java program on these jars."""
    opened = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in OPENED]
    settings = [f"-D{name}={value}" for name, value in properties.items()]
    lean = ["-Xmx600m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    return ["java", *opened, *lean, *settings, "-cp", ":".join(map(str, jars)), main, *words]


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program in the background, in a process group that ends with the block."""
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables},
        )  # fmt: skip
    try:
        yield started
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):  # of its children too: executors, Python workers
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(20)


def listening(port: int, started: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until something listens on a port.

    Raises:
        RuntimeError: The program ended before, or took too long.
    """
    until = time.monotonic() + START_S
    while time.monotonic() < until and started.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens on {port}: {log.read_text(errors='replace')[-3000:]}")
