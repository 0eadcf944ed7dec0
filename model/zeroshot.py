"""``wit evaluate zero-shot``: class names as texts, ensembled over prompts (paper 3.1)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from model import checkpoint
from model.clip import CLIP, normalise
from model.config import ZeroShotConfig
from model.images import BadImageError, centre_square, decode
from model.prompts import class_name, classifier, read_class_names, read_templates
from model.tokenizer import Tokenizer
from model.train import device_of
from pipeline.core import paths, tables
from pipeline.core.contracts import DROPPED, PREDICTIONS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress
from pipeline.core.stage import RunOptions, StageResult, run_stage
from pipeline.core.statistics import clopper_pearson

REASONS = ("corrupt_image",)
SCORES = "scores.json"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
TOP = 5
INTERVAL = 0.95  # confidence of the scores' intervals


@dataclass(frozen=True)
class ImageFolder:
    """A dataset whose folders are its classes.

    Attributes:
        root: Its folder.
        classes: Folder names, sorted.
        files: Relative path and class number of each image, sorted by path.
    """

    root: str
    classes: tuple[str, ...]
    files: tuple[tuple[str, int], ...]


def read_image_folder(root: str) -> ImageFolder:
    """Lists a dataset.

    Raises:
        InputError: The folder is missing, or has no images in at least two class folders.
    """
    if not paths.is_folder(root):
        raise InputError("no such dataset folder", where=root, hint="it holds one folder of images per class")
    base = root.rstrip("/")
    relative = [f[len(base) + 1 :] for f in paths.list_files(base, suffixes=IMAGE_SUFFIXES)]
    inside = [name for name in relative if "/" in name]
    classes = tuple(sorted({name.split("/", 1)[0] for name in inside}))
    if len(classes) < 2:
        raise InputError(
            "not an image folder",
            where=root,
            expected="at least two class folders with images",
            found=f"{len(classes)} with {len(inside)} images",
        )
    number = {name: i for i, name in enumerate(classes)}
    return ImageFolder(root, classes, tuple((name, number[name.split("/", 1)[0]]) for name in sorted(inside)))


def run(config: ZeroShotConfig, out: str, options: RunOptions) -> Manifest | None:
    """Evaluates into a folder with ``scores.json`` and ``predictions/1`` Parquet.

    Raises:
        WitError: A missing or bad model, dataset, prompts or class names, or an output that cannot be written.
    """
    if config.model is None or config.dataset is None:
        missing = "--model DIR" if config.model is None else "--dataset PATH"
        raise UsageError("nothing to evaluate", hint=f"pass {missing}")
    model_folder, root = config.model, config.dataset
    checkpoint.check(model_folder)
    dataset = read_image_folder(root)
    if config.prompts is not None:
        config = dataclasses.replace(config, templates=read_templates(config.prompts))
    named = read_class_names(config.class_names) if config.class_names is not None else {}
    stray = sorted(set(named) - set(dataset.classes))
    if named and len(stray) == len(named):
        raise InputError(
            "no line names a class of the dataset",
            where=config.class_names,
            expected=dataset.classes[0],
            found=stray[0],
        )
    names = [named.get(c, class_name(c)) for c in dataset.classes]
    resolved = config

    def body(folder: str) -> StageResult:
        return evaluate(
            resolved, checkpoint.load_model(model_folder), dataset, names, folder, quiet=options.quiet
        )

    return run_stage(
        body,
        stage="evaluate zero-shot",
        contract=PREDICTIONS.id,
        config=resolved,
        inputs=[p for p in (model_folder, root, config.prompts, config.class_names) if p is not None],
        out=out,
        options=options,
        owned=(SCORES,),
    )


def evaluate(
    config: ZeroShotConfig, model: CLIP, dataset: ImageFolder, names: Sequence[str], out: str, *, quiet: bool
) -> StageResult:
    """Classifies every image and writes scores, predictions and dropped rows."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = device_of(config.device)
    model = model.to(device)
    text = model.config.text_cfg
    tokenizer = Tokenizer(context_length=text.context_length, vocab_size=text.vocab_size)
    weights = classifier(model, tokenizer, names, config.templates, device=device)
    dropped: list[tuple[str, str, str | None]] = []
    found = Predictions(top=min(TOP, len(names)))
    with Progress("evaluate", total=len(dataset.files), unit="images", quiet=quiet) as shown:
        for files, images in batches(dataset, model.config.vision_cfg.image_size, config.batch_size, dropped):
            found.add(files, predict(model, weights, images.to(device)))
            shown.update(len(files))
    if not found.files:
        raise InputError("no image of the dataset can be decoded", where=dataset.root)
    tables.write_table(
        paths.join(out, "dropped", tables.part_name(0)),
        tables.dropped_table("evaluate zero-shot", dropped),
        DROPPED,
    )
    name = config.name or dataset.root.rstrip("/").rsplit("/", 1)[-1]
    scores = {"task": "zero-shot", "dataset": name, **found.scores(len(names))}
    scores["prompts"] = len(config.templates)
    paths.write_bytes(paths.join(out, SCORES), (json.dumps(scores, indent=2) + "\n").encode())
    table = found.table(name, dataset.classes)
    rows = tables.write_table(paths.join(out, tables.part_name(0)), table, PREDICTIONS)
    return StageResult(rows=rows, rows_in=len(dataset.files), extra={"scores": scores})


def batches(
    dataset: ImageFolder, size: int, batch_size: int, dropped: list[tuple[str, str, str | None]]
) -> Iterator[tuple[list[tuple[str, int]], Tensor]]:
    """Decoded images, uint8 [B, S, S, 3], with their (path, class); bad ones go to ``dropped``."""
    files: list[tuple[str, int]] = []
    pixels: list[np.ndarray] = []
    for file in dataset.files:
        try:
            image = decode(paths.read_bytes(paths.join(dataset.root, file[0])), short_side=size)
        except BadImageError as error:
            dropped.append(("corrupt_image", file[0], str(error)))
            continue
        files.append(file)
        pixels.append(centre_square(np.asarray(image), size))
        if len(files) == batch_size:
            yield files, torch.from_numpy(np.stack(pixels))
            files, pixels = [], []
    if files:
        yield files, torch.from_numpy(np.stack(pixels))


@torch.inference_mode()
def predict(model: CLIP, weights: Tensor, images: Tensor) -> np.ndarray:
    """Probabilities [B, C] of uint8 images [B, S, S, 3]: softmax of scaled cosine similarities."""
    embedded = F.normalize(model.encode_image(normalise(images)), dim=-1)
    logits = model.logit_scale.exp() * embedded @ weights.T
    result: np.ndarray = logits.float().softmax(dim=-1).cpu().numpy()
    return result


class Predictions:
    """Collects predictions.

    Args:
        top: How many classes to keep per image.
    """

    def __init__(self, *, top: int) -> None:
        self.top = top
        self.files: list[tuple[str, int]] = []
        self.ranks: list[int] = []
        self.best: list[list[int]] = []
        self.probabilities: list[list[float]] = []

    def add(self, files: Sequence[tuple[str, int]], probabilities: np.ndarray) -> None:
        """Adds a batch: (path, class) of each image and probabilities [B, C]."""
        order = np.argsort(-probabilities, axis=1, kind="stable")
        labels = np.array([label for _, label in files])
        self.files += files
        self.ranks += (np.argmax(order == labels[:, None], axis=1) + 1).tolist()
        self.best += order[:, : self.top].tolist()
        self.probabilities += np.take_along_axis(probabilities, order[:, : self.top], axis=1).tolist()

    def scores(self, classes: int) -> dict[str, object]:
        """Accuracies, their 95% Clopper-Pearson intervals and chance, as fractions of 1."""
        ranks = np.array(self.ranks)
        labels = np.array([label for _, label in self.files])
        hits = {"top1": int((ranks == 1).sum()), "top5": int((ranks <= TOP).sum())}
        per_class = np.bincount(labels, weights=ranks == 1, minlength=classes)
        counts = np.bincount(labels, minlength=classes)
        n = len(ranks)
        return {
            "n": n,
            "classes": classes,
            "metrics": {
                **{k: v / n for k, v in hits.items()},
                "mean_per_class": float((per_class[counts > 0] / counts[counts > 0]).mean()),
            },
            "intervals": {k: clopper_pearson(v, n, confidence=INTERVAL) for k, v in hits.items()},
            "chance": {
                "top1": 1 / classes,
                "top5": min(1.0, TOP / classes),
                "mean_per_class": 1 / classes,
            },
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
