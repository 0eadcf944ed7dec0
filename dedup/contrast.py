"""Contrastive training: each picture must find its altered copy among all others (Appendix C)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import StageFailedError
from pipeline.core.progress import Progress

TEMPERATURE = 0.07
LOG_STEPS = 10
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps and learning rate: linear warm-up, then a cosine down to 0, or no fall at all.

    Attributes:
        steps: Batches in all.
        warmup: Batches in which the rate rises.
        peak: Highest rate.
        falls: Whether it falls.
    """

    steps: int
    warmup: int
    peak: float
    falls: bool = True

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if not self.falls:
            return self.peak
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * done))


def info_nce(first: Tensor, second: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE both ways at temperature 0.07.

    Args:
        first: Embeddings [N, d] of one view of each picture.
        second: Embeddings [N, d] of another view.
        groups: int64 [N]; pictures of one group are the same and never each other's negative.

    Returns:
        Mean loss and in-batch accuracy, both scalars.
    """
    logits = first @ second.T / TEMPERATURE
    same = groups[:, None] == groups[None, :]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.detach().argmax(dim=1) == target).float().mean()


def optimise(
    name: str,
    encode: Callable[[Tensor], Tensor],
    module: nn.Module,
    batches: Iterable[Batch],
    schedule: Schedule,
    *,
    weight_decay: float,
    progress: Progress,
) -> list[dict[str, object]]:
    """Trains a module's parameters and returns its curve.

    Args:
        name: Of what is trained, for the curve.
        encode: Makes embeddings [N, d] of a batch's inputs.
        module: Whose parameters are trained.
        batches: Two views of each picture, and the pictures' groups.
        schedule: Steps and learning rate.
        weight_decay: AdamW's decay of matrices.
        progress: Line to tick.

    Raises:
        StageFailedError: The loss is not a number.
    """
    optimizer = torch.optim.AdamW(_decayed(module, weight_decay), lr=schedule.peak, betas=(0.9, 0.98))
    lines: list[dict[str, object]] = []
    seen: list[tuple[float, float]] = []
    pairs = 0
    for step, (first, second, groups) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        both = encode(torch.cat([first, second]))
        loss, accuracy = info_nce(both[: len(first)], both[len(first) :], groups)
        if not torch.isfinite(loss):
            raise StageFailedError(
                "the loss is not a number", where=f"{name}, step {step}", hint="lower learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        pairs += len(first)
        seen.append((float(loss.detach()), float(accuracy)))
        progress.update(1, note=f"loss {seen[-1][0]:.3f}")
        if len(seen) == LOG_STEPS or step + 1 == schedule.steps:
            mean_loss, mean_accuracy = np.mean(seen, axis=0).tolist()
            lines.append(
                {
                    "event": "step",
                    "part": name,
                    "step": step + 1,
                    "pairs": pairs,
                    "loss": round(mean_loss, 5),
                    "accuracy": round(mean_accuracy, 5),
                    "learning_rate": schedule.rate(step),
                }
            )
            seen.clear()
    return lines


def _decayed(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in module.parameters() if p.ndim == 2]
    # Filters are directions: decay would change nothing but their step size.
    others = [p for p in module.parameters() if p.ndim != 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
