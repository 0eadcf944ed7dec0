"""Flink on this machine: Beam's job server with a small Flink cluster inside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.engines.java import free_port, java, listening, process

JOB_SERVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"


@contextlib.contextmanager
def job_server(jars: Sequence[Path], folder: Path) -> Iterator[str]:
    """Beam's job server with Flink inside it; yields its endpoint."""
    port = free_port()
    words = ["--flink-master=[local]", f"--job-port={port}", "--artifact-port=0", "--expansion-port=0"]
    words.append(f"--artifacts-dir={folder / 'artifacts'}")
    log = folder / "job-server.log"
    command = java(jars, JOB_SERVER, *words, properties={"org.slf4j.simpleLogger.defaultLogLevel": "warn"})
    with process(command, log) as started:
        listening(port, started, log)
        yield f"localhost:{port}"
