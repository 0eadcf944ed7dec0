"""``wit plan``: what a selection would be and cost, for several caps; nothing is written."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from pipeline.core import config as configuration
from pipeline.core.answers import json_flag, say
from pipeline.core.command import Task, lookup
from pipeline.core.errors import InputError, UsageError
from pipeline.core.options import RunOptions
from pipeline.select.command import selection_arguments
from pipeline.select.config import SelectConfig


def _arguments(made: argparse.ArgumentParser) -> None:
    selection_arguments(made)
    made.add_argument(
        "--cap", type=int, metavar="N", action="append", dest="caps", default=[],
        help="plan for this cap; may be repeated (default: some from 2000 to none)",
    )  # fmt: skip
    made.add_argument("--target", type=int, metavar="N", help="find the least cap that keeps N pairs")
    made.add_argument(
        "--sample", type=float, metavar="SHARE", help="look at this share of the URLs only, chosen by hash"
    )
    made.add_argument(
        "--pairs", metavar="DIR",
        help="plan smaller caps from a finished folder of `wit select` instead of --candidates",
    )  # fmt: skip
    made.add_argument("--config", metavar="FILE.toml", help="take settings from this file's [select]")
    made.add_argument("--shards", metavar="DIR", help="measure bytes and success on shards of `wit fetch`")
    for flag, what in (
        ("--image-bytes", "bytes of a stored picture (27000)"),
        ("--download-bytes", "bytes of a download (93000)"),
        ("--host-gap-s", "seconds between two requests to one host (1)"),
        ("--mbit-per-s", "bandwidth (1000)"),
        ("--dollars-core-hour", "price of an hour of a core with its 4 GB (0.07)"),
        ("--dollars-way-gb", "price of a GB written on the way between workers (0.011)"),
    ):
        made.add_argument(flag, type=float, metavar="X", help=what)
    json_flag(made)


COMMANDS = (
    Task(
        name="plan",
        help="Says how many pairs a selection would keep, and their words, bytes and hours, for several caps.",
        arguments=_arguments,
        main="pipeline.select.plan_command:main",
        writes=False,
    ),
)


def main(args: argparse.Namespace, options: RunOptions) -> None:
    """Prints the plan.

    Raises:
        UsageError: Flags are missing, contradict one another or have impossible values.
        InputError: An input is missing, unfinished or damaged, or cannot answer the question.
    """
    share = 1.0 if args.sample is None else args.sample
    if not 0 < share <= 1:
        raise UsageError("--sample must be above 0 and at most 1", found=f"{share:g}")
    for flag, numbers in (("--cap", args.caps), ("--target", [args.target])):
        if any(n is not None and n < 1 for n in numbers):
            raise UsageError(f"{flag} must be at least 1", found=min(numbers))
    settings = _settings(args)
    pairs = _finished(args, settings) if args.pairs else None
    config = None if pairs else configuration.from_table(SelectConfig, settings, where="[select]")

    from pipeline.core.progress import Progress
    from pipeline.core.scaling import Prices
    from pipeline.select import plan, pool

    costs = _costs(plan.Costs(), args)
    prices = _replaced(Prices(), {"core_hour": args.dollars_core_hour, "way_gb": args.dollars_way_gb})
    mode = str(settings.get("mode", "cap"))
    with Progress("plan", unit="rows", quiet=options.quiet):
        chosen = pool.from_candidates(config, share) if config else pool.from_pairs(args.pairs)
    caps = plan.ladder(chosen, args.caps, target=args.target)
    if args.target is not None:
        solved = plan.solve(chosen, args.target, mode)
        caps = [*dict.fromkeys(sorted(c for c in (*caps, solved) if c is not None))]
    found: dict[str, Any] = {
        "mode": mode,
        "share": chosen.share,
        "read": chosen.read,
        "eligible": len(chosen),
        "queries": len(chosen.wishes.matched),
        "queries_matched": int((chosen.wishes.matched > 0).sum()),
        "assumed": dataclasses.asdict(costs),
        "prices": dataclasses.asdict(prices),
        "plans": [plan.estimate(chosen, cap, mode, costs, prices) for cap in caps],
    }
    for row in found["plans"]:
        if args.target is not None and row["cap"] == solved:
            row["target"] = args.target
    say(found, plan.text, as_json=args.json)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The ``[select]`` table with the flags over it; the cap is not among them."""
    table = dict(lookup(configuration.read_toml(args.config), "select")) if args.config else {}
    fields = {field.name for field in dataclasses.fields(SelectConfig)} - {"cap"}
    return table | {n: v for n, v in vars(args).items() if n in fields and v is not None}


def _finished(args: argparse.Namespace, settings: dict[str, Any]) -> str:
    """Checks that nothing contradicts a finished folder of pairs, and takes its mode."""
    from pipeline.core import manifest

    others = [f"--{name.replace('_', '-')}" for name in settings if name != "mode"]
    others += ["--sample"] if args.sample is not None else []
    if others:
        raise UsageError(
            "--pairs is selected already",
            found=", ".join(others),
            hint="leave them out or plan from --candidates",
        )
    made = manifest.read(args.pairs, made_by="wit select")
    mode = made.config.get("mode", "cap")
    if settings.setdefault("mode", mode) != mode and made.dropped.get("over_cap"):
        raise InputError(
            f"the folder lacks what its mode {mode!r} turned away",
            where=args.pairs,
            found=f"--mode {settings['mode']}",
            hint="plan from --candidates",
        )
    return str(args.pairs)


def _costs(costs: Any, args: argparse.Namespace) -> Any:
    names = ("image_bytes", "download_bytes", "host_gap_s", "mbit_per_s")
    if args.shards and args.image_bytes is not None:
        raise UsageError("--shards measures what --image-bytes says", hint="leave one of them out")
    costs = _replaced(costs, {name: getattr(args, name) for name in names})
    return costs.measured_on(args.shards) if args.shards else costs


def _replaced(assumed: Any, given: dict[str, float | None]) -> Any:
    """The assumptions with those that were given.

    Raises:
        UsageError: One is impossible.
    """
    try:
        return dataclasses.replace(assumed, **{n: v for n, v in given.items() if v is not None})
    except ValueError as error:
        raise UsageError(str(error)) from error
