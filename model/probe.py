"""``wit evaluate linear-probe``: L-BFGS logistic regression on frozen features (paper A.3), also with few shots.

The strength of the L2 penalty is found on a validation split: 96 logarithmic steps over [1e-6, 1e6], by a binary
search that halves the steps round the peak; then the probe is trained on training and validation images together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from model import checkpoint, events, registry
from model.clip import ImageModel, normalise
from model.config import LinearProbeConfig
from model.datasets import Dataset, read_dataset
from model.distributed import device_of
from model.metrics import TOP, accuracy
from model.predictions import (
    REASONS,
    SCORES,
    Dropped,
    add_batch,
    batches,
    dataset_name,
    new_predictions,
    write_classification,
)
from pipeline.core.contracts import PREDICTIONS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress
from pipeline.core.stage import RunOptions, StageResult, run_stage

STEPS_PER_DECADE = 8
DECADES = 12  # 1e-6 … 1e6
GRID = np.logspace(-6, 6, DECADES * STEPS_PER_DECADE + 1)
MAX_ITERATIONS = 1_000


def fit(features: np.ndarray, labels: np.ndarray, classes: int, *, penalty: float) -> np.ndarray:
    """Weights [D + 1, C] of a multinomial logistic regression; the last row is the bias, which has no penalty.

    Minimises ``sum of losses + penalty / 2 * |W|^2``: scikit-learn's ``LogisticRegression(C=1 / penalty)``.

    Args:
        features: float [N, D].
        labels: Class numbers, int [N].
        classes: C.
        penalty: The paper's lambda.
    """
    from scipy.optimize import minimize

    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float64)
    wanted = np.zeros((len(labels), classes))
    wanted[np.arange(len(labels)), labels] = 1

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, classes)
        logits = inputs @ weights
        logits -= logits.max(axis=1, keepdims=True)
        norm = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = float((norm[:, 0] - (logits * wanted).sum(axis=1)).sum())
        gradient = inputs.T @ (np.exp(logits - norm) - wanted)
        gradient[:-1] += penalty * weights[:-1]
        # Divided by N, so that the stopping tolerances mean the same for every dataset.
        value = loss + 0.5 * penalty * float((weights[:-1] ** 2).sum())
        return value / len(labels), gradient.ravel() / len(labels)

    start = np.zeros((inputs.shape[1]) * classes)
    options = {"maxiter": MAX_ITERATIONS, "gtol": 1e-5, "ftol": 64 * np.finfo(float).eps}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(-1, classes)


def probabilities(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Softmax of the logits: [N, D], [D + 1, C] to [N, C]."""
    logits = features.astype(np.float64) @ weights[:-1] + weights[-1]
    logits -= logits.max(axis=1, keepdims=True)
    raised = np.exp(logits)
    return raised / raised.sum(axis=1, keepdims=True)


def search(score: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The penalty with the best score, by the paper's parametric binary search.

    Starts at 1e-6, 1e-4, … 1e6, then halves the step round the peak until it is an eighth of a decade.

    Args:
        score: Validation accuracy of a penalty.

    Returns:
        The best penalty, the larger one of equals, and the score of every penalty that was tried.
    """
    tried: dict[int, float] = {}
    step = 2 * STEPS_PER_DECADE
    places = range(0, len(GRID), step)
    while True:
        for place in places:
            if 0 <= place < len(GRID) and place not in tried:
                tried[place] = score(float(GRID[place]))
        best = max(tried, key=lambda p: (tried[p], p))
        if step == 1:
            return float(GRID[best]), {float(GRID[p]): tried[p] for p in sorted(tried)}
        step //= 2
        places = range(best - step, best + step + 1, 2 * step)


def keyed(name: str, seed: int) -> bytes:
    """A draw that depends on an image's id and the seed alone."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


def validation_split(ids: Sequence[str], labels: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """Which images validate, bool [N]: of each class the share with the lowest draws, leaving one for training."""
    chosen = np.zeros(len(ids), dtype=bool)
    for label in np.unique(labels):
        places = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: keyed(ids[i], seed))
        chosen[places[: min(round(share * len(places)), len(places) - 1)]] = True
    return chosen


def few(ids: Sequence[str], labels: np.ndarray, *, shots: int, seed: int) -> np.ndarray:
    """Places of ``shots`` images of each class, those with the lowest draws; fewer where a class has fewer."""
    chosen: list[int] = []
    for label in np.unique(labels):
        places = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: keyed(ids[i], seed))
        chosen += places[:shots]
    return np.array(sorted(chosen))


def run(config: LinearProbeConfig, out: str, options: RunOptions) -> Manifest | None:
    """Trains a probe and writes ``scores.json`` and ``predictions/1`` of the test images.

    Raises:
        WitError: A missing or bad model or dataset, or an output that cannot be written.
    """
    given = {"--model DIR": config.model, "--train PATH": config.train, "--dataset PATH": config.dataset}
    missing = next((flag for flag, value in given.items() if value is None), None)
    if missing is not None or config.model is None or config.train is None or config.dataset is None:
        raise UsageError("nothing to probe", hint=f"pass {missing}")
    folder, train_path, test_path = config.model, config.train, config.dataset
    checkpoint.check(folder)
    events.check(config.tensorboard)
    resolved = registry.applied(config, "classification")
    train, test = read_dataset(train_path), read_dataset(test_path)
    if train.classes != test.classes:
        raise InputError(
            "training and test images have other classes",
            where=test_path,
            expected=f"{len(train.classes)}, as {', '.join(train.classes[:3])}",
            found=f"{len(test.classes)}, as {', '.join(test.classes[:3])}",
        )
    validation = read_dataset(config.validation) if config.validation is not None else None

    def body(out: str) -> StageResult:
        made = evaluate(
            resolved, checkpoint.load_image_model(folder), train, validation, test, out, quiet=options.quiet
        )
        events.write_scores(resolved.tensorboard, made.extra["scores"], model=folder)
        return made

    return run_stage(
        body,
        stage="evaluate linear-probe",
        contract=PREDICTIONS.id,
        config=resolved,
        inputs=[p for p in (folder, train_path, config.validation, test_path) if p is not None],
        out=out,
        options=options,
        owned=(SCORES,),
        damage=REASONS,
    )


def evaluate(
    config: LinearProbeConfig, model: ImageModel, train: Dataset, validation: Dataset | None, test: Dataset, out: str,
    *, quiet: bool,
) -> StageResult:  # fmt: skip
    """Features, search, final fit, scores."""
    if config.threads:
        torch.set_num_threads(config.threads)
    model = model.to(device_of(config.device))
    unused: Dropped = []
    inputs, labels, places = extract(model, train, config.batch_size, unused, quiet=quiet)
    ids = [train.files[i][0] for i in places]
    if validation is None:
        held = validation_split(ids, labels, share=config.validation_share, seed=config.seed)
        fitted, checked = (inputs[~held], labels[~held]), (inputs[held], labels[held])
    else:
        fitted = (inputs, labels)
        checked = extract(model, validation, config.batch_size, unused, quiet=quiet)[:2]
        inputs, labels = np.concatenate([inputs, checked[0]]), np.concatenate([labels, checked[1]])
    classes = len(train.classes)

    def validated(penalty: float) -> float:
        weights = fit(*fitted, classes, penalty=penalty)
        return float((probabilities(checked[0], weights).argmax(axis=1) == checked[1]).mean())

    tried: dict[float, float] = {}
    penalty = config.penalty
    if penalty is None:
        if not len(checked[1]):
            raise InputError(
                "no image is left to validate with", where=train.root, hint="pass --validation or --penalty"
            )
        penalty, tried = search(validated)
    dropped: Dropped = []
    wanted, answers, rows = extract(model, test, config.batch_size, dropped, quiet=quiet)
    found = new_predictions(test)
    if len(rows):
        add_batch(
            found, test, rows.tolist(), probabilities(wanted, fit(inputs, labels, classes, penalty=penalty))
        )
    more: dict[str, Any] = {
        "penalty": penalty,
        "validation": {f"{p:.3g}": v for p, v in tried.items()},
        "train_images": len(labels),
        "train_dropped": len(unused),
        **registry.facts(config.known_as),
    }
    if config.shots and len(rows):
        ids = (
            ids if validation is None else [*ids, *(f"validation/{i}" for i in range(len(labels) - len(ids)))]
        )
        more["few_shot"] = {
            str(shots): few_shot(inputs, labels, ids, wanted, answers, classes, shots, config)
            for shots in config.shots
        }
    name = dataset_name(config.name, test.root)
    return write_classification(
        out, "linear-probe", name, test, found, dropped, metric=config.metric, more=more
    )  # fmt: skip


def few_shot(
    inputs: np.ndarray, labels: np.ndarray, ids: Sequence[str], wanted: np.ndarray, answers: np.ndarray,
    classes: int, shots: int, config: LinearProbeConfig,
) -> dict[str, Any]:  # fmt: skip
    """Top-1 and top-5 with some images of each class; the penalty is the configuration's, or 1."""
    chosen = few(ids, labels, shots=shots, seed=config.seed)
    weights = fit(inputs[chosen], labels[chosen], classes, penalty=config.penalty or 1.0)
    order = np.argsort(-probabilities(wanted, weights), axis=1, kind="stable")
    ranks = (order == answers[:, None]).argmax(axis=1) + 1
    top1, top5 = (accuracy(int((ranks <= k).sum()), len(ranks)) for k in (1, TOP))
    return {
        "train_images": len(chosen),
        "metrics": {"top1": top1[0], "top5": top5[0]},
        "intervals": {"top1": top1[1], "top5": top5[1]},
    }


@torch.inference_mode()
def extract(
    model: ImageModel, dataset: Dataset, batch_size: int, dropped: Dropped, *, quiet: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features float32 [N, D], labels [N] and places in ``files`` [N] of the images that can be decoded."""
    features: list[np.ndarray] = []
    chosen: list[int] = []
    ids = [name for name, _ in dataset.files]
    device = next(model.parameters()).device
    with Progress("features", total=len(ids), unit="images", quiet=quiet) as shown:
        for places, images in batches(
            ids, dataset.read, model.config.vision_cfg.image_size, batch_size, dropped
        ):
            features.append(model.image_features(normalise(images.to(device))).float().cpu().numpy())
            chosen += places
            shown.update(len(places))
    if not chosen:
        raise InputError("no image of the dataset can be decoded", where=dataset.root)
    labels = np.array([dataset.files[i][1] for i in chosen])
    return np.concatenate(features), labels, np.array(chosen)
