"""``wit inspect DIR`` and ``wit why``: questions to finished tables; nothing is written but the answer."""

from __future__ import annotations

import argparse

from pipeline.core.answers import json_flag, say
from pipeline.core.command import Task
from pipeline.core.errors import UsageError
from pipeline.core.options import RunOptions


def _arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("folder", metavar="DIR", help="a finished queries/1 folder")
    made.add_argument(
        "--why", metavar="TEXT", action="append", default=[],
        help="answer only why TEXT is or is not in the list; may be repeated",
    )  # fmt: skip
    made.add_argument(
        "--matching", choices=("clean", "metaclip"), default="clean",
        help="the matching that the list is judged by (clean)",
    )  # fmt: skip
    made.add_argument("--top", type=int, metavar="N", default=5, help="examples of each kind (5)")
    json_flag(made)
    made.add_argument(
        "--plain", action="store_true", help="spell offensive queries out instead of masking them"
    )


def _why_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("asked", metavar="PAIR_ID|URL", help="a pair's id, or the URL of a picture")
    made.add_argument("--run", metavar="DIR", required=True, help="a folder of `wit run` or `wit demo`")
    json_flag(made)


COMMANDS = (
    Task(
        name="inspect",
        help="Says what a query list holds, what in it can never match, and why a text is or is not in it.",
        arguments=_arguments,
        main="pipeline.inspect.command:main",
        writes=False,
    ),
    Task(
        name="why",
        help="Says what happened to a pair, or to all pairs of an image URL, at each stage of a finished run.",
        arguments=_why_arguments,
        main="pipeline.inspect.command:why",
        writes=False,
    ),
)


def main(args: argparse.Namespace, options: RunOptions) -> None:
    """Prints the inspection of a query list, or the answers to ``--why``.

    Raises:
        UsageError: ``--top`` is below 1.
        InputError: The folder is missing, unfinished or holds another table.
    """
    from pipeline.core.progress import Progress
    from pipeline.inspect import doctor, overview, show
    from pipeline.inspect import why as reasons
    from pipeline.inspect.listed import QueryList

    if args.top < 1:
        raise UsageError("--top must be at least 1", found=args.top)
    listed = QueryList.read(args.folder)
    found: dict[str, object] = {"folder": args.folder, "queries": len(listed), "matching": args.matching}
    if args.why:
        found["why"] = [reasons.answer(listed, text, args.matching) for text in args.why]
    else:
        with Progress("inspect", unit="queries", quiet=options.quiet):
            found |= overview.examine(listed, top=args.top)
            found["doctor"] = doctor.examine(listed, args.matching, top=args.top, masked=not args.plain)
    say(found, show.text, as_json=args.json)


def why(args: argparse.Namespace, options: RunOptions) -> None:
    """Prints what happened to a pair.

    Raises:
        InputError: The folder holds nothing of a run, or the run knows nothing of the pair.
    """
    from pipeline.core.progress import Progress
    from pipeline.inspect import show, trace
    from pipeline.report.figures import open_run

    with Progress("why", unit="tables", quiet=options.quiet):
        found = trace.follow(open_run(args.run), args.asked)
    say(found, show.life, as_json=args.json)
