"""What an evaluation writes: ``predictions/1``, ``scores.json`` with intervals, and the images that were dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.datasets import Dataset, Picture
from model.images import BadImageError, centre_square, decode, resize
from model.metrics import METRICS, TOP, score_all
from pipeline.core import paths, tables
from pipeline.core.contracts import DROPPED, PREDICTIONS
from pipeline.core.errors import InputError
from pipeline.core.stage import StageResult

SCORES = "scores.json"
REASONS = ("corrupt_image",)
Dropped = list[tuple[str, str, str | None]]


def pixels_of(picture: Picture, size: int) -> np.ndarray:
    """The middle square uint8 [S, S, 3] of a picture whose short side is resized to it, as OpenAI's preprocessing.

    Raises:
        BadImageError: It cannot be decoded.
    """
    image = (
        decode(picture, short_side=size) if isinstance(picture, bytes) else resize(picture, short_side=size)
    )
    return centre_square(np.asarray(image), size)


def batches(
    ids: Sequence[str], read: Any, size: int, batch_size: int, dropped: Dropped
) -> Iterator[tuple[list[int], Tensor]]:
    """Decoded images, uint8 [B, S, S, 3], with their places in ``ids``; bad ones go to ``dropped``."""
    places: list[int] = []
    pixels: list[np.ndarray] = []
    for place, name in enumerate(ids):
        try:
            pixels.append(pixels_of(read(place), size))
        except (BadImageError, InputError) as error:
            dropped.append(("corrupt_image", name, str(error)))
            continue
        places.append(place)
        if len(places) == batch_size:
            yield places, torch.from_numpy(np.stack(pixels))
            places, pixels = [], []
    if places:
        yield places, torch.from_numpy(np.stack(pixels))


def chance(classes: int) -> dict[str, float]:
    """What guessing gives by each metric; that of mAP depends on the labels and is not told."""
    top1, top5 = 1 / classes, min(1.0, TOP / classes)
    return {
        "top1": top1,
        "top5": top5,
        "mean_per_class": top1,
        "mean_top1_top5": (top1 + top5) / 2,
        "roc_auc": 0.5,
    }


class Predictions:
    """Collects predictions.

    Args:
        top: How many classes to keep per image.
        whole: Keep all probabilities, for ROC AUC and mAP.
    """

    def __init__(self, *, top: int, whole: bool = False) -> None:
        self.top, self.whole = top, whole
        self.all: list[np.ndarray] = []
        self.several: list[np.ndarray] = []
        self.files: list[tuple[str, int]] = []
        self.ranks: list[int] = []
        self.best: list[list[int]] = []
        self.probabilities: list[list[float]] = []

    def add(
        self, files: Sequence[tuple[str, int]], probabilities: np.ndarray, several: np.ndarray | None = None
    ) -> None:
        """Adds a batch: (path, class) of each image, probabilities [B, C], and bool [B, C] of several classes."""
        if self.whole:
            self.all.append(probabilities)
        if several is not None:
            self.several.append(several)
        order = np.argsort(-probabilities, axis=1, kind="stable")
        labels = np.array([label for _, label in files])
        self.files += files
        self.ranks += (np.argmax(order == labels[:, None], axis=1) + 1).tolist()
        self.best += order[:, : self.top].tolist()
        self.probabilities += np.take_along_axis(probabilities, order[:, : self.top], axis=1).tolist()

    def scores(self, classes: int, *, metric: str = "accuracy") -> dict[str, Any]:
        """The metrics, their 95% intervals and chance, as fractions of 1; ``metric`` is the dataset's own."""
        ranks = np.array(self.ranks)
        scored = score_all(
            ranks,
            np.array([label for _, label in self.files]),
            classes,
            probabilities=np.concatenate(self.all) if self.all else None,
            several=np.concatenate(self.several) if self.several else None,
            metric=metric,
        )
        return {
            "n": len(ranks),
            "classes": classes,
            "metrics": {name: value for name, (value, _) in scored.items()},
            "intervals": {name: interval for name, (_, interval) in scored.items()},
            "chance": {name: value for name, value in chance(classes).items() if name in scored},
        }

    def table(self, dataset: str, classes: Sequence[str]) -> pa.Table:
        """The rows of ``predictions/1``, with label, prediction, rank of the label, and the best classes."""
        return pa.table(
            {
                "eval_dataset": pa.array([dataset] * len(self.files), pa.string()),
                "eval_id": [path for path, _ in self.files],
                "correct": [rank == 1 for rank in self.ranks],
                "label": [classes[label] for _, label in self.files],
                "predicted": [classes[best[0]] for best in self.best],
                "rank": pa.array(self.ranks, pa.int32()),
                "top5": pa.array([[classes[i] for i in best] for best in self.best], pa.list_(pa.string())),
                "top5_probabilities": pa.array(self.probabilities, pa.list_(pa.float32())),
            }
        )


def new_predictions(dataset: Dataset) -> Predictions:
    """A collector that keeps what the dataset's metrics need."""
    whole = dataset.several is not None or len(dataset.classes) == 2
    return Predictions(top=min(TOP, len(dataset.classes)), whole=whole)


def add_batch(found: Predictions, dataset: Dataset, places: Sequence[int], probabilities: np.ndarray) -> None:
    """Adds the predictions for some places of a dataset."""
    several = None if dataset.several is None else dataset.several[list(places)]
    found.add([dataset.files[i] for i in places], probabilities, several)


def write_dropped(out: str, stage: str, dropped: Dropped) -> None:
    """Writes the rows that could not be used."""
    table = tables.dropped_table(stage, dropped)
    tables.write_table(paths.join(out, "dropped", tables.part_name(0)), table, DROPPED)


def write_classification(
    out: str, task: str, name: str, dataset: Dataset, found: Predictions, dropped: Dropped,
    *, metric: str, more: Mapping[str, Any],
) -> StageResult:  # fmt: skip
    """Writes scores, predictions and dropped rows of a classification.

    Raises:
        InputError: No image could be used.
    """
    if not found.files:
        raise InputError("no image of the dataset can be decoded", where=dataset.root)
    write_dropped(out, f"evaluate {task}", dropped)
    scores = {"task": task, "dataset": name, **found.scores(len(dataset.classes), metric=metric)}
    if METRICS[metric] in scores["metrics"] and metric != "accuracy":
        scores["metric"] = METRICS[metric]
    scores |= more
    paths.write_bytes(paths.join(out, SCORES), (json.dumps(scores, indent=2) + "\n").encode())
    table = found.table(name, dataset.classes)
    rows = tables.write_table(paths.join(out, tables.part_name(0)), table, PREDICTIONS)
    return StageResult(rows=rows, rows_in=rows + len(dropped), extra={"scores": scores})


def dataset_name(given: str | None, root: str) -> str:
    """The name in ``eval_dataset``: as given, else the folder's or file's."""
    return given or root.rstrip("/").rsplit("/", 1)[-1]
