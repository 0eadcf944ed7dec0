"""Mixed precision (paper 2.5): autocast, and for float16 a loss scale that keeps small gradients from vanishing."""

from __future__ import annotations

from typing import Literal

import torch

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """What a forward pass computes in, and how its gradients are taken and applied.

    Args:
        name: ``fp32``, ``bf16`` or ``fp16``.
        device: Where.

    Attributes:
        scaler: Does nothing unless the precision is float16.
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        self.name, self.device = name, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """A context for forward passes."""
        wanted = _TYPES.get(self.name)
        return torch.autocast(self.device.type, dtype=wanted or torch.bfloat16, enabled=wanted is not None)

    def apply(self, optimiser: torch.optim.Optimizer) -> None:
        """Takes the optimiser's step, unless the scaled gradients overflowed, and adapts the scale."""
        self.scaler.unscale_(
            optimiser
        )  # so that gradients have their true size for who reads them afterwards
        self.scaler.step(optimiser)
        self.scaler.update()
