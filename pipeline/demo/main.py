"""The demo's own work: serve, record, run the run file, check the leaks found against those planted."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.core import config as configuration
from pipeline.core import paths
from pipeline.core.options import RunOptions
from pipeline.core.progress import Progress, duration
from pipeline.demo import world as small_world
from pipeline.demo.check import check_leaks, read_check
from pipeline.demo.record import record
from pipeline.demo.server import serve
from pipeline.run import run_document


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of the world a demo takes.

    Attributes:
        run_file: The run file beside the world.
        every: Take each n-th page and evaluation picture.
    """

    run_file: str
    every: int


SIZES = {
    "full": Size(run_file="demo.toml", every=1),
    "tiny": Size(run_file="demo-tiny.toml", every=6),
}


def main(args: argparse.Namespace, options: RunOptions) -> None:
    """Runs the demo into ``args.out`` and prints its figures and the path of the report page."""
    started = time.monotonic()
    size = SIZES[args.size]
    world = small_world.find(args.world)
    run_file = world.parent / size.run_file
    document = configuration.read_toml(run_file)
    out = str(Path(args.out).resolve())
    if not options.dry_run:
        small_world.unpack_evaluation(
            world, paths.join(out, "world", small_world.EVALUATION), every=size.every
        )
    with serve(world, args.port) as sites:
        archive = paths.join(out, "world", "pages.warc.gz")
        if not options.dry_run and not paths.exists(archive):
            with Progress("record", unit="pages", quiet=options.quiet):
                count = record(sites, archive, every=size.every)
            if not options.quiet:
                print(f"recorded {count} pages of {len(sites)} sites -> {archive}", file=sys.stderr)
        page = run_document(
            document,
            base=str(run_file.parent),
            where=str(run_file),
            out=out,
            options=options,
            before_report=partial(check_leaks, world=world, port=args.port),
        )
    if not options.dry_run and not options.quiet:
        checked = read_check(out)
        print(
            f"planted leaks: {checked.found} of the {checked.leaked} in the training set found "
            f"({checked.recall:.1%}), precision {checked.precision:.1%}\n"
            f"whole demo: {duration(time.monotonic() - started)}\n"
            f"open {page}"
        )
