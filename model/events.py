"""TensorBoard's event files: training curves and evaluation scores of one folder (the extra ``tensorboard``).

Times are in them, so they lie in a folder of their own and are no part of a result.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from model import distributed
from pipeline.core import manifest, paths
from pipeline.core.errors import UsageError

TAGS = {
    "loss": "train/loss",
    "scale": "train/logit_scale",
    "lr": "train/learning_rate",
    "epoch": "train/epoch",
}


class EventLog:
    """What a training run writes: a point per step for loss, scale, rate, images/s and the gradient's norm.

    Every process of a run has one, as the norm of sharded gradients takes all of them; the first one writes.

    Args:
        folder: Where the event files lie; ``None`` writes none, and every call does nothing.
        done: Steps that are done already; later points of an earlier, killed run are marked as gone.
        first: Whether this is the process that writes.
    """

    def __init__(self, folder: str | None, *, done: int = 0, first: bool = True) -> None:
        self._wanted = folder is not None
        self._writer = _writer(folder, done=done) if folder is not None and first else None
        self._last = time.monotonic()

    def add(self, metrics: Mapping[str, float], *, images: int, parameters: Iterable[Tensor]) -> None:
        """Adds a step.

        Args:
            metrics: The step's line of ``metrics.jsonl``.
            images: Images that it saw, those of all processes.
            parameters: Of the model, with the step's gradients.
        """
        if not self._wanted:
            return
        norm, now = gradient_norm(parameters), time.monotonic()
        if self._writer is not None:
            step = int(metrics["step"])
            values = {TAGS.get(name, f"train/{name}"): v for name, v in metrics.items() if name != "step"}
            values["train/images_per_second"] = images / max(now - self._last, 1e-9)
            values["train/gradient_norm"] = norm
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)
        self._last = now

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def training_log(folder: str | None, *, done: int) -> Iterator[EventLog]:
    """An :class:`EventLog` that is complete on disk however the block ends."""
    log = EventLog(folder, done=done, first=distributed.rank() == 0)
    try:
        yield log
    finally:
        log.close()


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """The L2 norm of all gradients together; with sharded ones every process must ask for it."""
    norm: Any = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def write_scores(folder: str | None, scores: Mapping[str, Any], *, model: str) -> None:
    """Adds an evaluation's scores as ``DATASET/TASK/METRIC``, at the step of its checkpoint (0 if others made it)."""
    if folder is None:
        return
    ours = paths.exists(paths.join(model, manifest.NAME))
    step = int(manifest.read(model).extra.get("steps", 0)) if ours else 0
    writer = _writer(folder)
    for name, value in scores["metrics"].items():
        writer.add_scalar(f"{scores['dataset']}/{scores['task']}/{name}", value, step)
    writer.close()


def check(folder: str | None) -> None:
    """Checks, before any work, that event files can be written.

    Raises:
        UsageError: The package is not installed, or the folder is not on this machine.
    """
    if folder is None:
        return
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "event files need a package that is not installed",
            where="--tensorboard",
            found="no tensorboard",
            hint="pip install 'webimagetext[tensorboard]'",
        )
    if "://" in folder:
        raise UsageError(
            "event files are written to a folder of this machine", where="--tensorboard", found=folder
        )


def _writer(folder: str, *, done: int = 0) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=done + 1 if done else None)
