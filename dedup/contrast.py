"""Contrastive training: each picture must find its altered copy among all others (Appendix C)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F

from dedup.processes import ALONE, Processes

TEMPERATURE = 0.07
LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}
Batch = tuple[Tensor, Tensor, Tensor]
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps and learning rate: linear warm-up, then a cosine down to 0, a stay and a straight line, or no fall at all.

    Attributes:
        steps: Batches in all.
        warmup: Batches in which the rate rises.
        peak: Highest rate.
        falls: Whether it falls.
        held: Batches at the peak after the warm-up; the rate then falls in a straight line.
    """

    steps: int
    warmup: int
    peak: float
    falls: bool = True
    held: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if not self.falls:
            return self.peak
        if self.held:
            falling = self.steps - self.warmup - self.held
            return self.peak * min(1.0, (self.steps - step) / max(1, falling))
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
    target = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.detach().argmax(dim=1) == target).float().mean()


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a batch's gradients are computed; they differ by rounding only.

    Attributes:
        processes: Who computes which rows.
        autocast: ``off``, or ``bf16`` or ``fp16`` for the network's products; the loss is always float32.
        chunk_size: Pairs whose activations are in memory at once; ``None`` keeps those of the whole batch.
    """

    processes: Processes = ALONE
    autocast: str = "off"
    chunk_size: int | None = None

    def scaler(self) -> GradScaler:
        """Keeps the small gradients of fp16 from vanishing; does nothing without fp16."""
        return GradScaler(self.processes.device.type, enabled=self.autocast == "fp16")

    def embed(self, encode: Encode, pictures: Tensor) -> Tensor:
        """Unit embeddings float32 [N, d] of some inputs [N, …], computed at the wanted precision."""
        device = self.processes.device
        lower = LOWER.get(self.autocast)
        if lower is None:
            return encode(pictures.to(device))
        with torch.autocast(device.type, dtype=lower):
            found = encode(pictures.to(device))
        # Rows of length 1 at a lower precision are not quite of length 1.
        return F.normalize(found.float(), dim=1)


def backward(
    encode: Encode, module: nn.Module, batch: Batch, how: Arithmetic, scaler: GradScaler
) -> tuple[Tensor, Tensor]:
    """Gives a module's parameters the gradients of a batch's loss.

    The loss needs the embeddings of the whole batch, not their activations: it is differentiated with respect to the
    embeddings, and these gradients are then sent through the network chunk by chunk (Gao et al. 2021, GradCache).
    As no layer mixes a batch's pictures, that equals the large batch.

    Args:
        encode: Makes unit embeddings [N, d] of inputs [N, …].
        module: Whose parameters ``encode`` uses; gradients are added to those they have.
        batch: This process's rows of the two views, and the groups of all processes' rows, int64 [B].
        how: The arithmetic.
        scaler: Multiplies the gradients.

    Returns:
        The whole batch's loss in nats and its in-batch accuracy, both scalars without gradient. If the loss is not
        finite, no gradients are given.
    """
    first, second, groups = batch
    pictures = torch.cat([first, second])
    rows, device = how.processes.part(len(groups)), how.processes.device
    pieces = torch.split(pictures, 2 * how.chunk_size if how.chunk_size else len(pictures))
    with torch.set_grad_enabled(len(pieces) == 1):
        made = [how.embed(encode, piece) for piece in pieces]
    whole = made[0].new_zeros(2, len(groups), made[0].shape[1], requires_grad=False)
    whole[:, rows] = torch.cat(made).detach().view(2, len(first), -1)
    how.processes.sum(whole).requires_grad_()
    loss, accuracy = info_nce(whole[0], whole[1], groups.to(device))
    if torch.isfinite(loss):
        (gradient,) = torch.autograd.grad(loss, whole)
        own = scaler.scale(gradient[:, rows].flatten(0, 1))
        for piece, part in zip(pieces, torch.split(own, [len(piece) for piece in pieces]), strict=True):
            torch.autograd.backward(made[0] if len(pieces) == 1 else how.embed(encode, piece), part)
        how.processes.sum_gradients(module)
    return loss.detach(), accuracy


def adamw(module: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """The optimiser: AdamW that decays matrices only."""
    return torch.optim.AdamW(_decayed(module, weight_decay), lr=learning_rate, betas=(0.9, 0.98))


def _decayed(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in module.parameters() if p.ndim == 2]
    # Filters are directions: decay would change nothing but their step size.
    others = [p for p in module.parameters() if p.ndim != 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
