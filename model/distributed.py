"""Several processes that train one model (torchrun): who this one is, and what they tell each other.

Without torchrun every function is that of one process alone, and nothing is initialised.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.core.errors import UsageError

Value = TypeVar("Value")


def device_of(name: str) -> torch.device:
    """The device of a configuration's ``device``; under torchrun, each process's own GPU.

    Raises:
        UsageError: A GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no GPU that torch can use", found="device = cuda", hint="set device to cpu or auto")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def started() -> int:
    """How many processes torchrun started; they need not have joined yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(device: torch.device) -> None:
    """Joins the other processes, if torchrun started several."""
    if started() > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leaves the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def told_by_first(value: Value | None) -> Value | None:
    """What the first process passed in; it waits for all."""
    if ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def of_all(value: Value) -> list[Value]:
    """What every process passed in, in the order of their numbers."""
    if ranks() == 1:
        return [value]
    found: list[Any] = [None] * ranks()
    dist.all_gather_object(found, value)
    return found


def any_of_all(flag: bool, device: torch.device) -> bool:
    """Whether any process's flag is set: all of them stop at the same step."""
    if ranks() == 1:
        return flag
    told = torch.tensor([float(flag)], device=device)
    dist.all_reduce(told)
    return bool(told.item() > 0)


def mean_of_all(value: Tensor) -> Tensor:
    """The mean of the processes' tensors, without gradient."""
    if ranks() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / ranks()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(ranks())]
        dist.all_gather(parts, local.contiguous())
        ctx.rows = len(local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(local: Tensor) -> Tensor:
    """Rows [B, E] of every process as [ranks * B, E]; gradients flow back to the process that made a row."""
    if ranks() == 1:
        return local
    result: Tensor = _Gather.apply(local)  # type: ignore[no-untyped-call]
    return result
