"""``wit train``, ``wit evaluate`` and ``wit export``: flags and where the work is done. Imports nothing heavy."""

from __future__ import annotations

import argparse

from model.config import (
    ExportConfig,
    LinearProbeConfig,
    RetrievalConfig,
    SuiteConfig,
    TrainConfig,
    ZeroShotConfig,
)
from pipeline.core.command import Command, path_list


def _train(made: argparse.ArgumentParser) -> None:
    path_list(made, "--shards", help="folders of `wit fetch` or img2dataset, or WebDataset tars")
    made.add_argument(
        "--model", metavar="NAME", help="RN50, RN101, …, ViT-L/14@336px, or RN-mini, RN-tiny, ViT-tiny"
    )
    made.add_argument("--weights", metavar="PATH", help="checkpoint to start from (random weights)")
    made.add_argument(
        "--batch-size", dest="batch_size", type=int, metavar="N", help="pairs of a batch (32,768)"
    )
    made.add_argument("--epochs", type=int, metavar="N", help="times every image is seen (32)")
    made.add_argument("--steps", type=int, metavar="N", help="number of steps instead of epochs")
    made.add_argument(
        "--warmup-steps", dest="warmup_steps", type=int, metavar="N", help="steps of warm-up (2,000)"
    )
    made.add_argument(
        "--learning-rate", dest="learning_rate", type=float, metavar="X", help="peak learning rate"
    )
    made.add_argument(
        "--objective", choices=("contrastive", "bow_contrastive", "bow_prediction", "caption_lm"), default=None,
        help="what is learned: CLIP's (contrastive), or a baseline of the paper's Figure 2",
    )  # fmt: skip
    made.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default=None, help="fp32, or bf16 or fp16 autocast"
    )
    made.add_argument(
        "--moments", choices=("fp32", "bf16"), default=None, help="what Adam's statistics are kept in (fp32)"
    )
    made.add_argument(
        "--text-weights", dest="text_weights", choices=("fp32", "bf16"), default=None,
        help="what the text side's matrices are kept in (fp32)",
    )  # fmt: skip
    made.add_argument(
        "--parallel", choices=("ddp", "fsdp"), default=None,
        help="under torchrun: whole models (ddp), or weights cut among the processes",
    )  # fmt: skip
    made.add_argument(
        "--compile", action="store_true", default=None, help="compile the towers' blocks with torch.compile"
    )
    made.add_argument(
        "--accumulation", type=int, metavar="N", help="parts of a batch in memory one by one (1)"
    )
    made.add_argument(
        "--recompute",
        action="store_true",
        default=None,
        help="keep no activations: less memory, a third more time",
    )
    made.add_argument("--seed", type=int, metavar="N", help="seed of weights, order, captions and crops")
    made.add_argument(
        "--query-cap", dest="query_cap", type=int, metavar="N", help="images of a query in an epoch (all)"
    )
    made.add_argument("--workers", type=int, metavar="N", help="processes that read and decode images")
    made.add_argument("--threads", type=int, metavar="N", help="torch's threads on the CPU (all cores)")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default=None, help="where to compute")
    _tensorboard(made)
    made.add_argument(
        "--resume", action="store_true", default=None,
        help="only go on from a checkpoint in DIR; without it the command goes on if it can, else starts",
    )  # fmt: skip


def _tensorboard(made: argparse.ArgumentParser) -> None:
    made.add_argument("--tensorboard", metavar="DIR", help="folder for TensorBoard's event files (none)")


def _evaluation(made: argparse.ArgumentParser, dataset: str) -> None:
    made.add_argument(
        "--model", metavar="PATH", help="checkpoint: ours, open_clip's, transformers' or OpenAI's"
    )
    made.add_argument("--dataset", metavar="PATH", help=dataset)
    made.add_argument("--name", metavar="NAME", help="the dataset's name (its folder's name)")
    made.add_argument("--batch-size", dest="batch_size", type=int, metavar="N", help="images encoded at once")
    made.add_argument("--threads", type=int, metavar="N", help="torch's threads on the CPU (all cores)")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default=None, help="where to compute")
    _tensorboard(made)


_LABELLED = (
    "folder with one folder of images per class, or WebDataset tars, Parquet, CSV, MNIST or CIFAR files"
)


def _zero_shot(made: argparse.ArgumentParser) -> None:
    _evaluation(made, _LABELLED)
    made.add_argument("--prompts", metavar="FILE", help="prompt templates, one a line, {} for the class name")
    made.add_argument(
        "--class-names", dest="class_names", metavar="FILE", help="TSV of folder and class name"
    )
    made.add_argument(
        "--as", dest="known_as", metavar="NAME", help="a dataset of the paper: its prompts and metric"
    )


def _linear_probe(made: argparse.ArgumentParser) -> None:
    _evaluation(made, f"test images: {_LABELLED}")
    made.add_argument("--train", metavar="PATH", help="training images")
    made.add_argument(
        "--validation", metavar="PATH", help="images to find the penalty with (a share of --train)"
    )
    made.add_argument("--penalty", type=float, metavar="X", help="the L2 penalty (found by search)")
    made.add_argument(
        "--shots", type=int, nargs="+", metavar="N", help="also train with N images of each class"
    )
    made.add_argument("--as", dest="known_as", metavar="NAME", help="a dataset of the paper: its metric")


def _retrieval(made: argparse.ArgumentParser) -> None:
    _evaluation(made, "WebDataset tars, Parquet, or CSV with a path and a caption column")
    made.add_argument("--captions", metavar="NAME", help="column of the captions, or their ending in tars")
    made.add_argument("--as", dest="known_as", metavar="NAME", help="a dataset of the paper: its template")
    made.add_argument("--template", metavar="TEXT", help="what a caption is put into ({})")


def _suite(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--model", metavar="PATH", help="checkpoint: ours, open_clip's, transformers' or OpenAI's"
    )
    made.add_argument("--data", metavar="DIR", help="folder of the datasets, under their registry names")
    made.add_argument("--group", metavar="NAME", help="robustness (default), zero-shot-36 or linear-probe-27")
    made.add_argument("--base", metavar="NAME", help="dataset that the others shift from (imagenet), or none")
    path_list(made, "--baselines", help="suites of other models, to tell effective robustness")
    made.add_argument("--batch-size", dest="batch_size", type=int, metavar="N", help="images encoded at once")
    made.add_argument("--threads", type=int, metavar="N", help="torch's threads on the CPU (all cores)")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default=None, help="where to compute")
    _tensorboard(made)


def _export(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--model", metavar="PATH", help="checkpoint: ours, open_clip's, transformers' or OpenAI's"
    )
    made.add_argument(
        "--format", "--form", dest="form", choices=("open_clip", "transformers", "onnx", "wit"), default=None,
        help="who shall load it (open_clip); onnx: both towers for ONNX runtimes; wit: a checkpoint of ours",
    )  # fmt: skip
    made.add_argument("--name", metavar="NAME", help="what the model card calls it (the checkpoint's folder)")
    path_list(made, "--scores", help="folders of `wit evaluate`, for the model card")
    made.add_argument("--overlaps", metavar="DIR", help="folder of `wit dedup report`, for the model card")


COMMANDS: tuple[Command, ...] = (
    Command(
        name="train",
        help="Train CLIP from shards, with the paper's numbers unless told otherwise.",
        config=TrainConfig,
        arguments=_train,
        stage="model.train:run",
        table="train",
        damage="images that are missing or cannot be read",
    ),
    Command(
        name="evaluate zero-shot",
        help="Zero-shot classification of a folder of images, prompts ensembled in embedding space.",
        config=ZeroShotConfig,
        arguments=_zero_shot,
        stage="model.zeroshot:run",
        table="evaluate.zero-shot",
        damage="images that cannot be read",
    ),
    Command(
        name="evaluate linear-probe",
        help="L-BFGS logistic regression on frozen features, its penalty found on a validation split.",
        config=LinearProbeConfig,
        arguments=_linear_probe,
        stage="model.probe:run",
        table="evaluate.linear-probe",
        damage="images that cannot be read",
    ),
    Command(
        name="evaluate retrieval",
        help="Images find their captions and captions their images: R@1, 5 and 10.",
        config=RetrievalConfig,
        arguments=_retrieval,
        stage="model.retrieval:run",
        table="evaluate.retrieval",
        damage="images that cannot be read",
    ),
    Command(
        name="evaluate suite",
        help="Zero-shot on a named group of datasets: their mean, and robustness to natural shifts.",
        config=SuiteConfig,
        arguments=_suite,
        stage="model.suite:run",
        table="evaluate.suite",
        damage="images that cannot be read",
    ),
    Command(
        name="export",
        help="Write a checkpoint in the form that another program loads.",
        config=ExportConfig,
        arguments=_export,
        stage="model.export:run",
        table="export",
    ),
)
