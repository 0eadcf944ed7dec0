"""``wit dedup review``: a local page on which a person sets each evaluation set's threshold [Section 5]."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import sys
from collections.abc import Sequence

from dedup import report
from dedup.review.labels import SKIP, THRESHOLDS, LabelFile, read_thresholds
from dedup.review.pictures import sources
from dedup.review.server import ReviewServer
from dedup.review.session import Session
from pipeline.core import manifest, paths
from pipeline.core.contracts import NEIGHBOURS
from pipeline.core.errors import UsageError
from pipeline.core.stage import RunOptions

# Where the search carries no calibrated threshold the review starts here.
START = 0.9


def main(args: argparse.Namespace, options: RunOptions) -> None:
    """Serves the page until it is interrupted.

    Raises:
        UsageError: No neighbours are given, labels would go to an object store, or the port is taken.
        InputError: The neighbours or the labels cannot be read.
        OutputError: The folder for labels cannot be written.
    """
    if args.neighbours is None:
        raise UsageError("no neighbours given", hint="pass --neighbours DIR, made with `wit dedup search`")
    folder = args.out or beside(args.neighbours)
    if "://" in folder or ("://" in args.neighbours and not args.out):
        raise UsageError(
            "labels are added one by one, which an object store cannot do",
            found=args.out or args.neighbours,
            hint="name a folder of this machine with --out",
        )
    if options.dry_run:
        print(f"wit dedup review: would read {args.neighbours} and keep labels in {folder}")  # noqa: T201
        return
    session = open_session(
        args.neighbours,
        folder,
        train=args.train or (),
        evals=args.eval or (),
        precision=args.precision,
        reviewer=args.reviewer or _user(),
    )
    with ReviewServer(session, args.port) as server:
        for problem in session.problems:
            print(f"wit: {problem}", file=sys.stderr)  # noqa: T201
        print(f"review: {server.url}  (labels and thresholds go to {folder}; Ctrl-C ends)", flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    if not options.quiet:
        print(closing_line(session), file=sys.stderr)  # noqa: T201


def closing_line(session: Session) -> str:
    """What a review has come to, and what comes next."""
    said = [one for one in session.store.labels if one.answer != SKIP]
    saved = [name for name in session.names if name in read_thresholds(session.folder)]
    line = f"review: {len(said):,} labels, {len(saved)} of {len(session.names)} thresholds set"
    if not saved:
        return line
    return f"{line}; use them with `wit dedup report --thresholds {os.path.join(session.folder, THRESHOLDS)}`"


def beside(neighbours: str) -> str:
    """The folder for labels unless one is named: ``review`` beside the neighbours."""
    return os.path.join(os.path.dirname(os.path.abspath(neighbours)), "review")


def open_session(
    neighbours: str,
    folder: str,
    *,
    train: Sequence[str] = (),
    evals: Sequence[str] = (),
    precision: float = 0.98,
    reviewer: str = "",
) -> Session:
    """Reads a search and what was said before, and finds the pictures.

    Args:
        neighbours: Result of ``wit dedup search``.
        folder: Where labels and thresholds are kept.
        train: Training pictures; default: what the manifests name.
        evals: Evaluation pictures; likewise.
        precision: Precision that a threshold should have.
        reviewer: Who labels.
    """
    if not 0 < precision < 1:
        raise UsageError(f"--precision must lie between 0 and 1, is {precision}")
    if paths.exists(paths.join(folder, manifest.NAME)):
        raise UsageError(
            "the folder holds a stage's result", where=folder, hint="choose another --out folder"
        )
    found = report.best_matches(neighbours)
    start = manifest.read(neighbours, made_by=NEIGHBOURS.made_by).extra.get("threshold")
    store = LabelFile(folder, reviewer)
    working = dict.fromkeys(found, START if start is None else float(start))
    train_sources, eval_sources = sources(neighbours, train, evals)
    return Session(found, working, store, train=train_sources, evals=eval_sources, precision=precision)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user id, as in many containers
        return "unnamed"
