"""The ``wit dedup`` commands: flags only; the stages are imported when they are run."""

from __future__ import annotations

import argparse

from dedup.config import AuditConfig, EmbedConfig, GroupsConfig, ReportConfig, SearchConfig, TrainConfig
from pipeline.core.command import Command, Task, path_list

_PICTURES = "shards, a folder of pictures (class folders or not), picture files, or Parquet with `image`"
_DETECTOR = (
    "folder of `wit dedup train`; ONNX or TorchScript file or module:function of somebody else's; or phash or pdq to "
    "compare; default: the one that ships"
)
_PREDICTIONS = "eval_dataset, eval_id, correct: Parquet, a folder of `wit evaluate`, or CSV"


def _threads(made: argparse.ArgumentParser) -> None:
    made.add_argument("--threads", type=int, metavar="N", help="threads of the arithmetic (default 1)")


def _train(made: argparse.ArgumentParser) -> None:
    path_list(made, "--images", help=_PICTURES)
    made.add_argument("--preset", choices=("resnet50", "general", "small"), help="default small")
    made.add_argument(
        "--start", metavar="DIR", help="a detector to go on from (with --set dedup.train.whole_pairs)"
    )
    made.add_argument(
        "--beside", metavar="DIR", help="a detector that stands beside the trained one in every embedding"
    )
    made.add_argument("--pairs", type=int, metavar="N", help="pairs of pictures to train on")
    made.add_argument("--batch-size", type=int, metavar="N", help="pairs in a batch")
    made.add_argument(
        "--chunk-size", type=int, metavar="N", help="pairs of a batch in memory at once (default: all)"
    )
    made.add_argument("--autocast", choices=("off", "bf16", "fp16"), help="network's precision (default off)")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: a GPU if there is one")
    made.add_argument("--seed", type=int, metavar="N")
    _threads(made)


def _detector(made: argparse.ArgumentParser) -> None:
    made.add_argument("--detector", metavar="NAME", help=_DETECTOR)
    made.add_argument(
        "--detector-input",
        metavar="FILE",
        help="JSON: what somebody else's network expects of a picture; default: FILE.json beside FILE.onnx",
    )
    made.add_argument("--half", action="store_true", default=None, help="store embeddings at half precision")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: a GPU if there is one")
    made.add_argument(
        "--decode-threads", type=int, metavar="N", help="threads that decode pictures ahead (default 1)"
    )


def _embed(made: argparse.ArgumentParser) -> None:
    path_list(made, "--images", help=_PICTURES)
    _detector(made)
    made.add_argument("--dataset", metavar="NAME", help="default: each path's last name")
    _threads(made)


def _index(made: argparse.ArgumentParser, probes: int = 8) -> None:
    made.add_argument(
        "--index",
        choices=("exact", "ivf"),
        help="exact (default), or ivf: compare with the nearest lists only, and measure what that misses",
    )
    made.add_argument(
        "--probes",
        type=int,
        metavar="N",
        help=f"lists that each training picture visits with ivf (default {probes})",
    )


def _search(made: argparse.ArgumentParser) -> None:
    made.add_argument("--train", metavar="DIR", help="embeddings of the training set")
    path_list(made, "--eval", help="embeddings of evaluation sets")
    made.add_argument("--k", type=int, metavar="N", help="neighbours of each picture (default 10)")
    _index(made)
    _threads(made)


def _groups(made: argparse.ArgumentParser) -> None:
    made.add_argument("--train", metavar="DIR", help="embeddings of the training set")
    made.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="similarity from which on two belong together; default: calibrated",
    )
    _index(made, probes=4)
    _threads(made)


def _report(made: argparse.ArgumentParser) -> None:
    made.add_argument("--neighbours", metavar="DIR", help="result of `wit dedup search`")
    made.add_argument("--thresholds", metavar="FILE", help="JSON: {data set: threshold}")
    path_list(made, "--predictions", help=_PREDICTIONS)


def _audit(made: argparse.ArgumentParser) -> None:
    path_list(made, "--train", help=f"training set: {_PICTURES}")
    path_list(made, "--eval", help="evaluation sets, the same kinds of paths; each is a data set of its own")
    _detector(made)
    made.add_argument("--thresholds", metavar="FILE", help="JSON: {data set: threshold}")
    path_list(made, "--predictions", help=f"{_PREDICTIONS}; optional")
    made.add_argument("--k", type=int, metavar="N", help="neighbours of each picture (default 10)")
    _index(made)
    _threads(made)


def _review(made: argparse.ArgumentParser) -> None:
    made.add_argument("--neighbours", metavar="DIR", help="result of `wit dedup search`")
    path_list(made, "--train", help="training pictures; default: what the embeddings were made from")
    path_list(made, "--eval", help="evaluation pictures, each path a data set; default: likewise")
    made.add_argument(
        "--out",
        metavar="DIR",
        help="folder for labels and thresholds.json; default: `review` beside the neighbours",
    )
    made.add_argument(
        "--port", type=int, default=8747, metavar="N", help="0 takes any free port (default 8747)"
    )
    made.add_argument(
        "--precision",
        type=float,
        default=0.98,
        metavar="P",
        help="precision that a threshold should have (0.98)",
    )
    made.add_argument(
        "--reviewer", metavar="NAME", help="written beside each label; default: the user's name"
    )


def _show_augmentations(made: argparse.ArgumentParser) -> None:
    path_list(made, "--images", help=_PICTURES, required=True)
    made.add_argument("--out", metavar="FILE", required=True, help="FILE.png or FILE.html")
    made.add_argument("--count", type=int, default=1, metavar="N", help="pictures to show (default 1)")
    made.add_argument("--seed", type=int, default=0, metavar="N")
    made.add_argument(
        "--beyond",
        type=float,
        default=0.0,
        metavar="P",
        help="chance of each step beyond the paper (default 0)",
    )


COMMANDS: tuple[Command | Task, ...] = (
    Command(
        name="dedup train",
        help="train the near-duplicate detector and calibrate its threshold",
        config=TrainConfig,
        arguments=_train,
        stage="dedup.train:run",
        table="dedup.train",
        damage="pictures that cannot be read",
    ),
    Task(
        name="dedup show-augmentations",
        help="a contact sheet of every augmentation at several strengths",
        arguments=_show_augmentations,
        main="dedup.sheet:main",
    ),
    Command(
        name="dedup embed",
        help="embed pictures with the detector",
        config=EmbedConfig,
        arguments=_embed,
        stage="dedup.embed:run",
        table="dedup.embed",
        beam=True,
        damage="pictures that are missing or cannot be read",
    ),
    Command(
        name="dedup search",
        help="find evaluation pictures' nearest training pictures",
        config=SearchConfig,
        arguments=_search,
        stage="dedup.search:run",
        table="dedup.search",
        beam=True,
    ),
    Command(
        name="dedup groups",
        help="groups of near-duplicates within the training set, and which of each to keep",
        config=GroupsConfig,
        arguments=_groups,
        stage="dedup.groups:run",
        table="dedup.groups",
        beam=True,
    ),
    Task(
        name="dedup review",
        help="a local page on which a person labels pairs and sets each data set's threshold",
        arguments=_review,
        main="dedup.review.main:main",
    ),
    Command(
        name="dedup report",
        help="All, Clean and Overlap accuracies with their statistics",
        config=ReportConfig,
        arguments=_report,
        stage="dedup.report:run",
        table="dedup.report",
    ),
    Command(
        name="dedup audit",
        help="embed, search and report in one go",
        config=AuditConfig,
        arguments=_audit,
        stage="dedup.audit:run",
        table="dedup.audit",
        beam=True,
    ),
)
