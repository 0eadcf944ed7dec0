"""``wit report DIR``: the page and the cards of a run, from what lies in its folder."""

from __future__ import annotations

import argparse

from pipeline.core.command import Task
from pipeline.core.options import RunOptions


def _arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("folder", metavar="DIR", help="a run's folder, as `wit run` and `wit demo` make it")


COMMANDS = (
    Task(
        name="report",
        help="Writes report.html, croissant.json and MODEL_CARD.md into a run's folder, from what the run made.",
        arguments=_arguments,
        main="pipeline.report.command:main",
    ),
)


def main(args: argparse.Namespace, options: RunOptions) -> None:
    """Writes the report of a run's folder; it holds nothing of its own, so it is always written anew.

    Raises:
        InputError: The folder is missing or holds nothing of a run.
        OutputError: The folder cannot be written.
    """
    if options.dry_run:
        from pipeline.report.figures import open_run

        found = open_run(args.folder)
        print(f"wit report: would write report.html and the cards to {found.folder}")  # noqa: T201
        for name, made in found.stages.items():
            print(f"  reads  {name}  ({made.rows:,} rows)")  # noqa: T201
        return
    page = write_report(args.folder)
    if not options.quiet:
        print(f"report: {page}")  # noqa: T201


def write_report(run_folder: str) -> str:
    """Writes ``report.html`` and the cards of data and model into a run's folder and returns the page's path.

    Raises:
        InputError: The folder is missing or holds nothing of a run.
        OutputError: The folder cannot be written.
    """
    from pipeline.report.page import write

    return write(run_folder)
