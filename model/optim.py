"""Adam with decoupled weight decay on all weights that are not gains or biases, cosine schedule (paper 2.5).

To save memory the paper keeps Adam's statistics and the text encoder's weights in half precision, the latter rounded
stochastically. Here both are bfloat16: half the bytes, float32's range (squared gradients leave float16's), and
stochastic rounding for both, because 8 bits of precision would round the small changes of each step away.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

_NORMS = (nn.LayerNorm, nn.BatchNorm2d)
_MOMENTS = ("exp_avg", "exp_avg_sq")


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
    model: nn.Module,
    *,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    moments: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
) -> torch.optim.Optimizer:
    """The optimiser; the learning rate is set before each step.

    Args:
        model: What to train; weights that are bfloat16 are rounded stochastically.
        weight_decay: Of weights that are not gains or biases.
        beta1: Decay of the mean gradient.
        beta2: Decay of the mean squared gradient.
        epsilon: Added to the root of the latter.
        moments: What the two means are kept in.
        seed: Of stochastic rounding.
    """
    kept, free = decay_groups(model)
    groups = [{"params": kept, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    if moments == "fp32" and all(p.dtype == torch.float32 for p in model.parameters()):
        return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=epsilon, fused=True)
    kept_in = torch.float32 if moments == "fp32" else torch.bfloat16
    return HalfPrecisionAdamW(groups, betas=(beta1, beta2), eps=epsilon, moments=kept_in, seed=seed)


def halve_text_weights(model: nn.Module) -> None:
    """Keeps all matrices outside the image tower in bfloat16; gains, biases and the logit scale stay as they are."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and not name.startswith("visual."):
            parameter.data = parameter.data.bfloat16()


def rounded_stochastically(values: Tensor, draw: torch.Generator) -> Tensor:
    """float32 to bfloat16: up or down with the odds that make the mean right.

    A bfloat16 is the upper half of a float32, so a uniform lower half is added before the lower half is cut off.
    """
    noise = torch.empty_like(values, dtype=torch.int32).random_(0, 1 << 16, generator=draw)
    return noise.add_(values.view(torch.int32)).bitwise_and_(-(1 << 16)).view(torch.float32).bfloat16()


class HalfPrecisionAdamW(torch.optim.Optimizer):
    """AdamW, computed in float32, whose moments and weights may be bfloat16 that is rounded stochastically.

    The rounding is a function of the seed, the step and the parameter's number: a run that goes on from a saved state
    equals one that never stopped.

    Args:
        groups: Parameters with ``weight_decay``, as torch's own optimisers take them.
        betas: Decay of the mean gradient and of the mean squared gradient.
        eps: Added to the root of the latter.
        moments: float32 or bfloat16.
        seed: Of the rounding; with weights cut among processes, each process's own.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        betas: tuple[float, float],
        eps: float,
        moments: torch.dtype,
        seed: int,
    ) -> None:
        self.moments, self.seed = moments, seed
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, number)
                number += 1

    def _update(self, parameter: nn.Parameter, group: dict[str, Any], number: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            for name in _MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=self.moments)
        state["step"] += 1
        assert parameter.grad is not None
        gradient = _own(parameter.grad).float()
        weight, mean, square = (_own(t) for t in (parameter.data, state["exp_avg"], state["exp_avg_sq"]))
        beta1, beta2 = group["betas"]
        new_mean = mean.float().lerp(gradient, 1 - beta1)
        new_square = (square.float() * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (new_square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        new_weight = weight.float() * (1 - group["lr"] * group["weight_decay"])
        new_weight.addcdiv_(new_mean, root, value=-group["lr"] / (1 - beta1 ** state["step"]))
        draw = torch.Generator(weight.device).manual_seed(_number(self.seed, state["step"], number))
        for stored, value in ((mean, new_mean), (square, new_square), (weight, new_weight)):
            stored.copy_(rounded_stochastically(value, draw) if stored.dtype == torch.bfloat16 else value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but moments keep the precision that they were saved in instead of their weight's."""
        super().load_state_dict(state_dict)
        order = [p for group in self.param_groups for p in group["params"]]
        for number, saved in state_dict["state"].items():
            parameter = order[number]
            for name in _MOMENTS:
                self.state[parameter][name] = saved[name].to(parameter.device, self.moments, copy=True)


def _own(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is cut among processes (FSDP)."""
    part: Callable[[], Tensor] | None = getattr(
        tensor, "to_local", None
    )  # a DTensor, whose import takes a second
    return tensor if part is None else part()


def _number(*of: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(of).encode(), digest_size=8).digest()) >> 1


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
