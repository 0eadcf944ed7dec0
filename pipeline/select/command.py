"""``wit select``: from candidates to balanced pairs."""

from __future__ import annotations

import argparse

from pipeline.core.command import Command
from pipeline.select.config import SelectConfig


def _arguments(made: argparse.ArgumentParser) -> None:
    selection_arguments(made)
    made.add_argument("--cap", type=int, metavar="N", help="most pairs per query (default: 20000)")
    made.add_argument(
        "--reserve",
        type=float,
        metavar="FRACTION",
        help="also write the pairs that a cap larger by FRACTION would add, for `wit fetch --top-up` (default: 0)",
    )


def selection_arguments(made: argparse.ArgumentParser) -> None:
    """All flags of the selection but the cap: `wit plan` takes several caps."""
    made.add_argument("--candidates", metavar="DIR", help="folder of `wit candidates`")
    made.add_argument("--queries", metavar="DIR", help="folder of `wit queries`")
    made.add_argument("--mode", choices=("cap", "sample"), help="hard cap (default) or MetaCLIP's sampling")
    made.add_argument(
        "--matching",
        choices=("clean", "metaclip"),
        help="case-folded words (default) or MetaCLIP's spacing rule",
    )
    made.add_argument("--seed", type=int, metavar="N", help="key of the choice between pairs (default: 0)")
    made.add_argument(
        "--rules",
        choices=("clip", "cc12m", "datacomp", "laion", "none"),
        help="preset of text rules (default: clip)",
    )
    made.add_argument(
        "--language",
        choices=("cascade", "vocabulary", "fasttext-lite", "cld2", "langdetect", "none"),
        help="language backend (default: cascade)",
    )
    made.add_argument(
        "--max-images-per-caption",
        type=int,
        metavar="N",
        help="images that may share a caption (default: 1000)",
    )
    made.add_argument(
        "--keep-offensive", dest="drop_offensive", action="store_const", const=False,
        help="keep texts with a word of the block list",
    )  # fmt: skip
    made.add_argument(
        "--blocked-hosts",
        metavar="FILE",
        help="drop pairs from these hosts, HOST/PATHs or /PIECEs of addresses",
    )


COMMANDS = (
    Command(
        name="select",
        help="filter texts, match queries, and keep at most 20,000 pairs per query",
        config=SelectConfig,
        arguments=_arguments,
        stage="pipeline.select.stage:run",
        table="select",
        beam=True,
    ),
)
