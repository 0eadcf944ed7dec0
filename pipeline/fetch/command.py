"""``wit fetch`` and ``wit shards drop``: flags."""

from __future__ import annotations

import argparse
import typing

from pipeline.core.command import Command, Task, path_list
from pipeline.fetch.config import Engine, FetchConfig, ResizeMode


def _arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--pairs", metavar="DIR", help="folder of `wit select`")
    made.add_argument(
        "--allow-address", metavar="CIDR", action="append",
        help="also fetch from this private, loopback or link-local network; may be repeated",
    )  # fmt: skip
    made.add_argument("--engine", choices=typing.get_args(Engine), help="what decodes and resizes (native)")
    made.add_argument("--contact", metavar="TEXT", help="how a site's owner reaches you; sent as User-Agent")
    made.add_argument("--host-concurrency", metavar="N", type=int, help="requests in flight at one host (2)")
    made.add_argument(
        "--host-gap-s", metavar="S", type=float, help="least seconds between requests to one host (1)"
    )
    made.add_argument(
        "--max-per-host", metavar="N", type=int, help="URLs of one host asked for in one run (all)"
    )
    made.add_argument(
        "--group-budget-s", metavar="S", type=float,
        help="time for one group of hosts; the rest is left for --retry (no limit)",
    )  # fmt: skip
    made.add_argument(
        "--image-size", metavar="PIXELS", type=int, help="side that the resize mode names (256)"
    )
    made.add_argument(
        "--resize-mode", choices=typing.get_args(ResizeMode), help="as img2dataset's (keep_ratio)"
    )
    made.add_argument(
        "--deny-hashes", metavar="FILE", help="SHA-256 sums of images that must not be stored, one a line"
    )
    made.add_argument("--rows-per-shard", metavar="N", type=int, help="pairs per shard (10,000)")
    made.add_argument(
        "--bytes-per-shard", metavar="N", type=int, help="about so many bytes per shard instead of pairs"
    )
    made.add_argument(
        "--drop-duplicates", choices=["none", "pair", "image"],
        help="do not keep what has the same image bytes as another pair, or also the same caption (none)",
    )  # fmt: skip
    made.add_argument(
        "--top-up", action="store_const", const=True,
        help="replace dead links by the same queries' next candidates (`wit select --reserve`)",
    )  # fmt: skip
    path_list(
        made, "--reuse", help="folders of `wit fetch` or img2dataset: what succeeded there is not asked again"
    )
    made.add_argument(
        "--retry", action="store_const", const=True,
        help="ask again for what failed in a finished folder, or one with too much damage, in a way that may pass",
    )  # fmt: skip


def _drop_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("--shards", metavar="DIR", required=True, help="finished folder of `wit fetch`")
    made.add_argument("--ids", metavar="FILE", help="pair ids to take down, one a line")
    made.add_argument("--hosts", metavar="FILE", help="HOST, HOST/PATH or /PIECE whose images and pages go")
    made.add_argument("--sha256", metavar="FILE", help="hashes of images as fetched, one a line")
    made.add_argument("--reason", metavar="TEXT", help="why; stays in the rows and in the manifest")


COMMANDS: tuple[Command | Task, ...] = (
    Command(
        name="fetch",
        help="Downloads the images of selected pairs, politely and safely, into tar + Parquet shards.",
        config=FetchConfig,
        arguments=_arguments,
        stage="pipeline.fetch.stage:run",
        table="fetch",
        beam=True,
        damage="pairs lost to a network in trouble, to servers that fail, or to broken pictures; no dead links",
    ),
    Task(
        name="shards drop",
        help="Takes pairs down from finished shards: their images, captions and addresses go, the reason stays.",
        arguments=_drop_arguments,
        main="pipeline.fetch.takedown:main",
    ),
)
