"""Adam with decoupled weight decay on all weights that are not gains or biases, cosine schedule (paper 2.5)."""

from __future__ import annotations

import math

import torch
from torch import nn

_NORMS = (nn.LayerNorm, nn.BatchNorm2d)


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with and without weight decay: gains (of norms, and the logit scale) and biases have none."""
    kept: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            gain = isinstance(module, _NORMS) or name == "logit_scale"
            (free if gain or name.endswith("bias") else kept).append(parameter)
    return kept, free


def adamw(
    model: nn.Module, *, weight_decay: float, beta1: float, beta2: float, epsilon: float
) -> torch.optim.AdamW:
    """The optimiser; the learning rate is set before each step."""
    kept, free = decay_groups(model)
    groups = [{"params": kept, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=epsilon, fused=True)


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to the peak, then a half cosine to zero.

    Args:
        step: Number of the step, from 0.
        peak: Highest rate.
        warmup_steps: Steps of the warm-up.
        total_steps: Steps of the whole training.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * share))
