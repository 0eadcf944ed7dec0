"""``wit demo``: the whole chain on the small world that ships with the repository.

The world's sites are served on loopback, its pages are recorded as a WARC over real HTTP, and then the same code
runs the same stages as for any run file (``examples/demo.toml``). Only this package knows that it is a demo.
"""

from __future__ import annotations

import argparse

from pipeline.core.command import Task


def _arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--out", metavar="DIR", default="demo", help="the run's folder (default: demo)")
    made.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny is the size tests run")
    made.add_argument("--world", metavar="DIR", help="the small world (default: the repository's)")
    made.add_argument("--port", type=int, default=8731, help="first of the three ports to serve on (8731)")


COMMANDS = (
    Task(
        name="demo",
        help="Runs the whole chain on the small world: queries to report page, in one command.",
        arguments=_arguments,
        main="pipeline.demo.main:main",
        beam=True,
    ),
)
