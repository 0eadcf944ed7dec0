"""How a stage becomes a command: flags, TOML table and ``--set`` meet in one configuration dataclass.

A room's ``command.py`` lists its commands and imports nothing heavy; the stage itself is named as
``module:function`` and imported when it is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pipeline.core import config as configuration
from pipeline.core import worklog
from pipeline.core.errors import UsageError
from pipeline.core.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the face.

    Attributes:
        name: As typed, e.g. ``dedup search``.
        help: One line.
        config: Frozen dataclass that the command fills.
        arguments: Adds the command's own flags to a parser; a flag's ``dest`` is the field it fills and its
            default is ``None``, so that only flags that were given override the file.
        stage: ``module:function`` of a ``function(config, out, options)`` that does the work.
        table: Table of a run file that configures it, e.g. ``dedup.search``.
        beam: Whether options right of ``--`` go to Beam.
        damage: What of the input can be damaged, for the help of ``--max-bad-fraction``; without it there is no
            such flag.
    """

    name: str
    help: str
    config: type[Any]
    arguments: Callable[[argparse.ArgumentParser], None]
    stage: str
    table: str
    beam: bool = False
    damage: str = ""

    def load(self) -> Callable[[Any, str, RunOptions], Any]:
        """Imports and returns the stage's function."""
        return load_function(self.stage)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A command that is not one stage: ``run``, ``demo``, ``report``, ``inspect``. It has no TOML table.

    Attributes:
        name: As typed.
        help: One line.
        arguments: Adds its flags and positional arguments to a parser.
        main: ``module:function`` of a ``function(args, options)`` that does the work.
        beam: Whether options right of ``--`` go to Beam.
        writes: Whether it makes anything that ``--overwrite`` or ``--dry-run`` could be about.
        damage: As of :class:`Command`.
    """

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    main: str
    beam: bool = False
    writes: bool = True
    damage: str = ""


def load_function(name: str) -> Callable[..., Any]:
    """Imports the function of a ``module:function`` name."""
    module, _, function = name.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return loaded


class _Parser(argparse.ArgumentParser):
    """argparse that tells wrong usage as one line of ours, with the nearest known flag."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print after a page of usage."""
        known = [flag for action in self._actions for flag in action.option_strings]
        unknown = re.search(r"unrecognized arguments: (-\S+)", message)
        near = difflib.get_close_matches(unknown[1].partition("=")[0], known, n=1) if unknown else []
        hint = f"did you mean {near[0]}?" if near else f"see `{self.prog} --help`"
        raise UsageError(message, where=self.prog, hint=hint)


def parser(command: Command | Task) -> argparse.ArgumentParser:
    """The command's parser: its own flags and the common ones; abbreviations are not accepted."""
    made = _Parser(
        prog=f"wit {command.name}",
        description=command.help,
        allow_abbrev=False,
        epilog="Options right of `--` go to Beam." if command.beam else None,
    )
    command.arguments(made)
    common = made.add_argument_group("common")
    if isinstance(command, Command):
        common.add_argument("--out", metavar="DIR", required=True, help="output folder")
        common.add_argument("--config", metavar="FILE.toml", help="take the command's table from this file")
        common.add_argument(
            "--set", dest="assignments", metavar="KEY=VALUE", action="append", default=[],
            help="override one value, as table.key=value",
        )  # fmt: skip
    if isinstance(command, Command) or command.writes:
        common.add_argument("--overwrite", action="store_true", help="replace a finished result")
        common.add_argument("--dry-run", action="store_true", help="print the plan and do nothing")
    else:
        made.set_defaults(overwrite=False, dry_run=False)
    if command.damage:
        common.add_argument(
            "--max-bad-fraction", type=_fraction, metavar="X",
            help=f"fail if more than this share (0 to 1) is damaged: {command.damage} (no limit)",
        )  # fmt: skip
    common.add_argument("--quiet", action="store_true", help="no progress and no closing table")
    common.add_argument("--log", action="store_true", help="log lines on standard error, for collected logs")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    return made


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def run(command: Command | Task, arguments: Sequence[str], beam_arguments: Sequence[str]) -> Any:
    """Parses, configures and runs one command.

    Raises:
        WitError: Whatever is wrong, as one line.
        SystemExit: ``--help`` was asked for.
    """
    if beam_arguments and not command.beam:
        raise UsageError(f"wit {command.name} takes no Beam options", found=" ".join(beam_arguments))
    args = parser(command).parse_args(list(arguments))
    if beam_arguments:
        from pipeline.core.beam import pipeline_options

        pipeline_options(beam_arguments)  # a misspelt option is refused before any work is done
    if args.log:
        os.environ[worklog.SWITCH] = "1"  # worker processes of this machine inherit it
    options = RunOptions(
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        quiet=args.quiet,
        max_bad_fraction=getattr(args, "max_bad_fraction", None),
        beam=tuple(beam_arguments),
    )
    if isinstance(command, Task):
        return load_function(command.main)(args, options)
    return command.load()(configured(command, args), args.out, options)


def configured(command: Command, args: argparse.Namespace) -> Any:
    """The configuration from the file's table, then ``--set``, then flags."""
    document = configuration.read_toml(args.config) if args.config else {}
    document = configuration.override(document, args.assignments)
    table = dict(lookup(document, command.table))
    for tables in args.assignments:
        known = tables.partition("=")[0].strip()
        if not known.startswith(f"{command.table}."):
            raise UsageError(
                "--set names a table this command does not read",
                where=known,
                expected=f"{command.table}.KEY=VALUE",
            )
    fields = {field.name for field in dataclasses.fields(command.config)}
    for name, value in vars(args).items():
        if name in fields and value is not None:
            table[name] = tuple(value) if isinstance(value, list) else value
    return configuration.from_table(command.config, table, where=f"[{command.table}]")


def lookup(document: Mapping[str, Any], table: str) -> Mapping[str, Any]:
    """The nested table of a dotted name, empty if it is not there."""
    place: Any = document
    for name in table.split("."):
        place = place.get(name, {})
        if not isinstance(place, Mapping):
            raise UsageError("expected a table", where=f"[{table}]", found=repr(place))
    return place


def path_list(made: Any, flag: str, *, help: str, required: bool = False) -> None:  # noqa: A002
    """Adds a flag that takes one or more PATHs and may be repeated."""
    made.add_argument(
        flag, metavar="PATH", nargs="+", action="extend", default=None, help=help, required=required
    )
