"""``wit candidates``: (image URL, text) candidates from web archives, saved pages and tables."""

from __future__ import annotations

import argparse

from pipeline.candidates.config import CandidatesConfig
from pipeline.candidates.layouts import LAYOUTS
from pipeline.core.command import Command, path_list


def _arguments(made: argparse.ArgumentParser) -> None:
    path_list(made, "--warc", help="WARC files (gzip, zstd or plain), folders or globs")
    path_list(made, "--wat", help="WAT files, folders or globs")
    path_list(made, "--html", help="folders of saved pages; a page's URL comes from DIR/urls.tsv (path<TAB>url), "
              "its canonical link or <base>, or --base-url")  # fmt: skip
    path_list(made, "--table", help="Parquet, CSV, TSV or JSONL files with a URL and a text column")
    made.add_argument("--base-url", metavar="URL", help="where the folder of --html was served")
    made.add_argument("--url-column", metavar="NAME", help="the table's URL column (default: url)")
    made.add_argument("--text-column", metavar="NAME", help="the table's text column (default: text)")
    made.add_argument(
        "--layout", choices=tuple(LAYOUTS),
        help="tables of a well-known dataset, in place of the names of their columns",
    )  # fmt: skip
    made.add_argument(
        "--opted-out", choices=("drop", "keep"),
        help="pages that opt out (noai, noindex, tdm-reservation, …): drop their pairs (default) or keep them marked",
    )  # fmt: skip
    made.add_argument(
        "--score", metavar="LIMIT", action="append",
        help="drop rows of a table whose score breaks this, as 'punsafe<=0.1' or 'similarity>=0.28'; may be repeated",
    )  # fmt: skip
    made.add_argument(
        "--nearest-chars", type=int, metavar="N",
        help="also take the nearest text round an image, of at most N characters (default: 0, none)",
    )  # fmt: skip
    made.add_argument("--max-page-bytes", type=int, metavar="N", help="drop larger pages (default: 10000000)")
    made.add_argument("--max-text-chars", type=int, metavar="N", help="drop longer texts (default: 10000)")


COMMANDS = (
    Command(
        name="candidates",
        help="extract (image URL, text) candidates from web archives, saved pages or tables",
        config=CandidatesConfig,
        arguments=_arguments,
        stage="pipeline.candidates.stage:run",
        table="candidates",
        beam=True,
        damage="records that cannot be read or end early, and rows whose URL is none",
    ),
)
