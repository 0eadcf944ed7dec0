"""``wit run``: every stage that a run file names, in order, each into its own folder of the run.

A run file has one table per stage, the same tables that ``--config`` reads. Stages find the results of earlier
stages of the same run by themselves; a table may name other inputs instead. Relative input paths are relative to
the run file; ``{out}`` stands for the run's folder. Finished stages are skipped, so a killed run goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import cli
from pipeline.core import config as configuration
from pipeline.core import manifest, paths
from pipeline.core.command import Command, Task, lookup
from pipeline.core.errors import ConfigError, UsageError
from pipeline.core.options import RunOptions
from pipeline.core.progress import duration
from pipeline.report import results, write_report
from pipeline.report.figures import AbsentError, open_run

EVALUATION_TASKS = ("zero-shot", "linear-probe", "retrieval")
TABLES = ("run", "queries", "candidates", "select", "fetch", "dedup", "train", "evaluation")
DEDUP_TABLES = ("train", "embed", "search", "report")


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """The ``[run]`` table.

    Attributes:
        out: The run's folder, unless ``--out`` names another.
        note: Shown on the report page; says what a reader must know about the data.
        beam: Options for Beam, as right of ``--``.
        max_bad_fraction: As ``--max-bad-fraction`` of each stage that can lose records to damage.
    """

    out: str | None = configuration.input_path()
    note: str = ""
    beam: tuple[str, ...] = ()
    max_bad_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.max_bad_fraction is not None and not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction} must lie between 0 and 1")


@dataclass(frozen=True)
class Step:
    """One stage of a run.

    Attributes:
        command: What runs it.
        folder: Where its result lies, below the run's folder.
        config: Its filled configuration.
    """

    command: Command
    folder: str
    config: Any

    def finished(self, out: str) -> bool:
        """Whether the folder has a manifest."""
        return paths.exists(paths.join(out, self.folder, manifest.NAME))


def _arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("run_file", metavar="RUN.toml", help="the run file")
    made.add_argument("--out", metavar="DIR", help="the run's folder; overrides [run] out")
    made.add_argument(
        "--set", dest="assignments", metavar="KEY=VALUE", action="append", default=[],
        help="override one value, as table.key=value",
    )  # fmt: skip


COMMANDS = (
    Task(
        name="run",
        help="Runs every stage that a run file names, in order; skips what is finished.",
        arguments=_arguments,
        main="pipeline.run:main",
        beam=True,
        damage="records that cannot be read, in each stage",
    ),
)


def main(args: argparse.Namespace, options: RunOptions) -> None:
    """Runs a run file."""
    document = configuration.override(configuration.read_toml(args.run_file), args.assignments)
    run_document(
        document,
        base=str(Path(args.run_file).resolve().parent),
        where=args.run_file,
        out=args.out,
        options=options,
    )


def run_document(
    document: Mapping[str, Any],
    *,
    base: str,
    where: str,
    out: str | None,
    options: RunOptions,
    before_report: Callable[[str], None] | None = None,
) -> str:
    """Runs a parsed run file and returns the path of its report page.

    Args:
        document: The file's tables.
        base: Folder that relative paths start from.
        where: The file's name, for messages.
        out: The run's folder; ``None`` takes ``[run] out``.
        options: How to run.
        before_report: Called with the run's folder when all stages are done, for what the page shall show besides.

    Raises:
        ConfigError: Anything in the file is wrong; found before the first stage starts.
        WitError: A stage failed.
    """
    table = configuration.from_table(RunTable, lookup(document, "run"), where=f"{where} [run]")
    out = out or (_absolute(table.out, base, "") if table.out else None)
    if out is None:
        raise UsageError("the run has no folder", where=where, hint="pass --out DIR or set out in [run]")
    steps = plan(document, base=base, where=where, out=out)
    most = table.max_bad_fraction if options.max_bad_fraction is None else options.max_bad_fraction
    options = dataclasses.replace(options, beam=(*table.beam, *options.beam), max_bad_fraction=most)
    if options.beam:
        from pipeline.core.beam import pipeline_options

        pipeline_options(options.beam)
    if options.dry_run:
        for step in steps:
            state = "finished" if step.finished(out) else "to do"
            print(f"{step.command.name:<20} -> {paths.join(out, step.folder)}  ({state})")
        return ""
    if table.note:
        paths.write_bytes(paths.join(out, "note.txt"), table.note.strip().encode() + b"\n")
    for number, step in enumerate(steps, 1):
        if not options.quiet:
            print(f"[{number}/{len(steps)}] {step.command.name}", file=sys.stderr)
        started = time.monotonic()
        run_step(step, out, options)
        if not options.quiet:
            print(f"  {duration(time.monotonic() - started)}", file=sys.stderr)
    if before_report is not None:
        before_report(out)
    page = write_report(out)
    if not options.quiet:
        print(figures(out))
        print(f"report: {page}")
    return page


def run_step(step: Step, out: str, options: RunOptions) -> None:
    """Runs one stage into its folder; Beam's options go only to stages that are Beam jobs."""
    stage_options = options if step.command.beam else dataclasses.replace(options, beam=())
    step.command.load()(step.config, paths.join(out, step.folder), stage_options)


def plan(document: Mapping[str, Any], *, base: str, where: str, out: str) -> list[Step]:
    """The stages of a run file in the order they run, with their configurations filled and checked.

    Raises:
        ConfigError: Unknown table or key, wrong value, or an evaluation without a name.
    """
    for name in document:
        if name not in TABLES:
            raise configuration.unknown_key(name, TABLES, where=where)
    for name in lookup(document, "dedup"):
        if name not in DEDUP_TABLES:
            raise configuration.unknown_key(name, DEDUP_TABLES, where=f"{where} [dedup]")
    evaluations = _evaluations(document, where)
    steps: list[Step] = []

    def add(command: str, folder: str, table: Mapping[str, Any], **wires: Any) -> None:
        found = cli.load(command)
        assert isinstance(found, Command)
        config = _fill(found, table, wires, base=base, out=out, where=f"{where} [{found.table}]")
        steps.append(Step(found, folder, config))

    def at(*names: str) -> str:
        return paths.join(out, *names)

    if "queries" in document:
        add("queries", "queries", lookup(document, "queries"))
    if "candidates" in document:
        add("candidates", "candidates", lookup(document, "candidates"))
    if "select" in document:
        add("select", "pairs", lookup(document, "select"), candidates=at("candidates"), queries=at("queries"))
    if "fetch" in document:
        add("fetch", "shards", lookup(document, "fetch"), pairs=at("pairs"))
    dedup = lookup(document, "dedup")
    if "train" in dedup:
        add("dedup train", "detector", dedup["train"], images=at("shards"))
    if "embed" in dedup:
        detector = at("detector") if "train" in dedup else None
        wires = {"detector": detector} if detector else {}
        add("dedup embed", "embeddings/train", dedup["embed"], images=at("shards"), dataset="train", **wires)
        for name, table in evaluations.items():
            own = {"images": table["dataset"], "dataset": name}
            add("dedup embed", f"embeddings/{name}", {**dedup["embed"], **own}, **wires)
    if "search" in dedup:
        sides = {"train": at("embeddings", "train"), "eval": [at("embeddings", n) for n in evaluations]}
        add("dedup search", "neighbours", dedup["search"], **sides)
    if "train" in document:
        add("train", "checkpoint", lookup(document, "train"), shards=at("shards"))
    for name, table in evaluations.items():
        task = table.get("task", EVALUATION_TASKS[0])
        rest = {k: v for k, v in table.items() if k != "task"}
        add(f"evaluate {task}", f"scores/{name}", rest, model=at("checkpoint"))
    if "report" in dedup:
        scores = [at("scores", name) for name in evaluations]
        add("dedup report", "overlaps", dedup["report"], neighbours=at("neighbours"), predictions=scores)
    if not steps:
        raise ConfigError(
            "the run file names no stage", where=where, expected=f"tables among {', '.join(TABLES)}"
        )
    return steps


def _evaluations(document: Mapping[str, Any], where: str) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    listed = document.get("evaluation", [])
    if not isinstance(listed, list):
        raise ConfigError("expected an array of tables", where=f"{where} [[evaluation]]")
    for table in listed:
        name, place = table.get("name"), f"{where} [[evaluation]]"
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or name == "train":
            raise ConfigError("each evaluation needs a plain name", where=place, found=repr(name))
        if name in found:
            raise ConfigError("two evaluations have one name", where=place, found=name)
        if "dataset" not in table:
            raise ConfigError("key 'dataset' is missing", where=f"{place} {name}")
        if table.get("task", EVALUATION_TASKS[0]) not in EVALUATION_TASKS:
            raise ConfigError(
                "unknown task", where=f"{place} {name}", expected=EVALUATION_TASKS, found=table["task"]
            )
        found[name] = table
    return found


def _fill(command: Command, table: Any, wires: Mapping[str, Any], *, base: str, out: str, where: str) -> Any:
    if not isinstance(table, Mapping):
        raise ConfigError("expected a table", where=where, found=repr(table))
    hints = typing.get_type_hints(command.config)
    fields = {f.name: f for f in dataclasses.fields(command.config)}
    values = dict(table)
    for name, value in values.items():
        if name in fields and fields[name].metadata.get("input"):
            values[name] = _absolute(value, base, out)
    for name, value in wires.items():
        values.setdefault(name, value)
    for name, value in values.items():
        # A run has one folder where a command takes several: wiring and users may name it without a list.
        if name in hints and typing.get_origin(hints[name]) is tuple and isinstance(value, str):
            values[name] = (value,)
    return configuration.from_table(command.config, values, where=where)


def _absolute(value: Any, base: str, out: str) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_absolute(v, base, out) for v in value)
    if not isinstance(value, str):
        return value
    value = value.replace("{out}", out)
    if "://" in value or value.startswith("/") or value == "none":
        return value
    return str(Path(base, value))


def figures(out: str) -> str:
    """A run's key figures as a small table, read from what the stages wrote."""
    rows: list[tuple[str, str]] = []
    for folder, label in (
        ("queries", "queries"),
        ("candidates", "candidates"),
        ("pairs", "pairs selected"),
        ("shards", "pairs with an image"),
    ):
        if paths.exists(paths.join(out, folder, manifest.NAME)):
            rows.append((label, f"{manifest.read(paths.join(out, folder)).rows:,}"))
    finished = open_run(out)
    with contextlib.suppress(AbsentError):
        for score in results.scores(finished):
            if not score.metrics:
                continue
            metric = "top1" if "top1" in score.metrics else next(iter(score.metrics))
            name = "top-1" if metric == "top1" else metric.replace("_", " ")
            figure = f"{name} {score.metrics[metric]:.1%} of {score.n:,} pictures"
            if metric in score.chance:
                figure += f" (chance {score.chance[metric]:.2%})"
            rows.append((f"{score.task} {score.dataset}", figure))
    with contextlib.suppress(AbsentError):
        for found in results.overlaps(finished):
            share = f"{found['n_overlap']:,} of {found['n_all']:,} ({found['contamination']:.1%})"
            rows.append((f"overlap {found['dataset']}", share))
            if found.get("all_minus_clean") is not None:
                rows.append(("  All - Clean", f"{found['all_minus_clean']:+.2%}"))
    width = max((len(label) for label, _ in rows), default=0)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)
