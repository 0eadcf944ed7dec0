"""`wit queries`: flags of the query list."""

from __future__ import annotations

import argparse

from pipeline.core.command import Command, path_list
from queries.config import NO_WORDNET, PRESETS, QueriesConfig


def _arguments(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_argument_group(
        "sources (at least one; WordNet ships and is used unless told not to)"
    )
    path_list(
        sources,
        "--wikipedia",
        help="pages-articles XML (plain, gz, bz2), or Parquet/JSONL with title and text",
    )
    sources.add_argument(
        "--word-counts",
        metavar="PATH",
        help="Parquet or TSV with columns word and count, instead of counting",
    )
    path_list(sources, "--pageviews", help="pageview_complete daily/monthly or hourly pageviews files")
    sources.add_argument(
        "--wordnet", metavar="PATH", help=f"folder of data.* files; {NO_WORDNET!r} for no synsets"
    )
    the_list = parser.add_argument_group("the list")
    the_list.add_argument(
        "--preset", choices=tuple(PRESETS), help="whose numbers count where none is given (paper)"
    )
    the_list.add_argument("--size", type=int, metavar="N", help="queries wanted (500000)")
    the_list.add_argument("--min-count", type=int, metavar="N", help="occurrences that make a word (100)")
    the_list.add_argument(
        "--bigram-min-count", type=int, metavar="N",
        help="occurrences that let a bigram be scored (100 at full Wikipedia's size, scaled down to 3)",
    )  # fmt: skip
    the_list.add_argument(
        "--bigram-measure",
        choices=("pmi", "npmi"),
        help="what ranks the bigrams: PMI or normalised PMI (pmi)",
    )
    the_list.add_argument("--pmi-min", type=float, metavar="BITS", help="least PMI of a bigram (5.0)")
    the_list.add_argument("--views-min", type=int, metavar="N", help="least page views of a title (1)")
    the_list.add_argument(
        "--bigram-share", type=float, metavar="SHARE", help="bigrams' share of the room left (0.62)"
    )
    the_list.add_argument(
        "--synset-terms",
        choices=("first_lemma", "all_lemmas", "metaclip"),
        help="terms of a synset (first_lemma)",
    )
    the_list.add_argument(
        "--title-check", choices=("dump", "none"), help="keep only titles that the dump has (dump)"
    )
    the_list.add_argument(
        "--project", metavar="CODE", help="Wikipedia whose views count (the dump's, else en)"
    )


COMMANDS: tuple[Command, ...] = (
    Command(
        name="queries",
        help="Build the query list: words, bigrams, titles and WordNet synsets (paper 2.2, footnote 1).",
        config=QueriesConfig,
        arguments=_arguments,
        stage="queries.build:run",
        table="queries",
        beam=True,
        damage="pieces of dumps and lines of page views that cannot be read",
    ),
)
