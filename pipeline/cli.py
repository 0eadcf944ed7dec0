"""The ``wit`` command: finds the command's room, splits off Beam's options, prints errors as one line.

It knows no stage's logic and imports a room only when its command is called, so that ``wit --help`` is instant.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from pipeline.core import command as commands
from pipeline.core.command import Command, Task
from pipeline.core.errors import UsageError, WitError

# Command -> (module that defines it, what it does); modules define COMMANDS.
STAGES: dict[str, tuple[str, str]] = {
    "queries": ("queries.command", "build the query list from Wikipedia, page views and WordNet"),
    "inspect": (
        "pipeline.inspect",
        "what a query list holds, what can never match, why a text is (not) in it",
    ),
    "candidates": ("pipeline.candidates.command", "extract (image URL, text) candidates from web archives"),
    "select": ("pipeline.select.command", "filter, match queries, keep at most 20,000 pairs per query"),
    "plan": (
        "pipeline.select.plan_command",
        "what `select` would keep and cost, for several caps or a target",
    ),
    "fetch": ("pipeline.fetch.command", "download images into tar + Parquet shards"),
    "shards drop": ("pipeline.fetch.command", "take pairs down from finished shards, by id, host or hash"),
    "dedup train": ("dedup.command", "train the near-duplicate detector"),
    "dedup show-augmentations": (
        "dedup.command",
        "a contact sheet of what the detector learns to see through",
    ),
    "dedup embed": ("dedup.command", "embed images with the detector"),
    "dedup search": ("dedup.command", "find evaluation images' nearest training images"),
    "dedup groups": ("dedup.command", "groups of near-duplicates within the training set"),
    "dedup review": ("dedup.command", "label pairs on a local page and set each data set's threshold"),
    "dedup audit": ("dedup.command", "embed, search and report in one go"),
    "dedup report": ("dedup.command", "All/Clean/Overlap accuracies with their statistics"),
    "train": ("model.command", "train CLIP from shards"),
    "evaluate zero-shot": ("model.command", "zero-shot classification with prompt ensembling"),
    "evaluate linear-probe": ("model.command", "L-BFGS logistic regression on frozen features"),
    "evaluate suite": ("model.command", "zero-shot on a group of datasets, robustness to natural shifts"),
    "evaluate retrieval": ("model.command", "R@1, 5 and 10 between images and captions"),
    "export": ("model.command", "write a checkpoint as open_clip, transformers or ONNX runtimes load it"),
    "run": ("pipeline.run", "every stage that a run file names, in order, skipping what is finished"),
    "demo": ("pipeline.demo", "the whole chain on the small world that ships with the repository"),
    "why": ("pipeline.inspect", "what happened to a pair or a URL at each stage of a run"),
    "report": ("pipeline.report", "the report page of a run"),
}


def usage() -> str:
    """The text of ``wit --help``."""
    width = max(map(len, STAGES))
    lines = ["usage: wit COMMAND [FLAGS] [-- BEAM OPTIONS]", "", "commands:"]
    lines += [f"  {name:<{width}}  {text}" for name, (_, text) in STAGES.items()]
    return "\n".join([*lines, "", "`wit COMMAND --help` explains a command's flags."])


def find(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name and the words after it.

    Raises:
        UsageError: No such command.
    """
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in STAGES:
            return name, list(arguments[words:])
    first = arguments[0]
    inner = [n.split()[1] for n in STAGES if n.startswith(f"{first} ")]
    if inner:
        raise UsageError(
            f"`wit {first}` needs one of",
            expected=", ".join(inner),
            found=" ".join(arguments[1:2]) or "nothing",
        )
    import difflib

    near = difflib.get_close_matches(first, STAGES, n=1)
    raise UsageError(
        f"no command {first!r}", hint=f"did you mean `wit {near[0]}`?" if near else "see `wit --help`"
    )


def load(name: str) -> Command | Task:
    """Imports the command's room and returns the command."""
    module = importlib.import_module(STAGES[name][0])
    found: Command | Task = next(c for c in module.COMMANDS if c.name == name)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``wit``; returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from pipeline.core.manifest import version

        print(f"wit {version()}")
        return 0
    ours, beams = split(arguments)
    debug = "--debug" in ours
    # Beam logs what no user can act on at import, and a worker's traceback beside the error that we report.
    logging.getLogger().setLevel(logging.WARNING if debug else logging.CRITICAL)
    try:
        name, rest = find(ours)
        commands.run(load(name), rest, beams)
    except WitError as error:
        if debug:
            raise
        print(f"wit: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("wit: interrupted; the same command goes on from the last finished stage", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        line = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        print(f"wit: unexpected error: {line}; run again with --debug for the traceback", file=sys.stderr)
        return 1
    return 0


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our words left of the first ``--`` and Beam's right of it."""
    words = list(arguments)
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]
