"""The processes that train one detector together (torchrun): who this one is, and sums over all of them.

All processes draw the same batches and keep the same weights; each computes its rows of a batch. What they tell one
another are sums of tensors in which every process has filled in its own part.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.core.errors import UsageError

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that work together.

    Attributes:
        rank: Its number, from 0; the first one writes.
        count: How many there are.
        device: Where it computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    def part(self, length: int) -> slice:
        """This process's rows of ``length``; all processes' parts are as equal as can be and cover them once."""
        return slice(self.rank * length // self.count, (self.rank + 1) * length // self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors of one shape, in place of this process's own."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, module: nn.Module) -> None:
        """Gives every process the sum of all processes' gradients; parameters without one are left alone."""
        if self.count == 1:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        together = self.sum(torch.cat([g.flatten() for g in gradients]))
        sums = torch.split(together, [g.numel() for g in gradients])
        for gradient, found in zip(gradients, sums, strict=True):
            gradient.copy_(found.view_as(gradient))

    def any(self, *flags: bool) -> list[bool]:
        """Which flags are set in any process, so that all do the same at the same step."""
        if self.count == 1:
            return list(flags)
        told = self.sum(torch.tensor([float(flag) for flag in flags], device=self.device))
        return [bool(flag) for flag in (told > 0).tolist()]

    def agree(self, told: bytes) -> bool:
        """Whether every process tells the same."""
        if self.count == 1:
            return True
        words = np.frombuffer(hashlib.sha256(told).digest(), np.int32).astype(np.int64)
        each = torch.zeros(self.count, len(words), dtype=torch.int64, device=self.device)
        each[self.rank] = torch.from_numpy(words)
        self.sum(each)
        return bool((each == each[0]).all())


ALONE = Processes()


@contextlib.contextmanager
def working_together(device: str) -> Iterator[Processes]:
    """Joins the processes that torchrun started, if any, for as long as the context lasts.

    Args:
        device: ``cpu``, ``cuda`` or ``auto``, which takes a GPU if there is one; each process has its own.

    Raises:
        UsageError: A GPU is asked for and torch can use none.
    """
    found = device_of(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(device=found)
        return
    dist.init_process_group("nccl" if found.type == "cuda" else "gloo")
    try:
        yield Processes(rank=dist.get_rank(), count=dist.get_world_size(), device=found)
    finally:
        dist.destroy_process_group()


def device_of(name: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` means here; under torchrun, each process's own GPU.

    Raises:
        UsageError: A GPU is asked for and torch can use none.
    """
    usable = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not usable):
        return CPU
    if not usable:
        raise UsageError(
            "torch can use no GPU", found="device = cuda", hint="leave --device out, or pass cpu"
        )
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    torch.backends.cudnn.allow_tf32 = False  # else convolutions keep 10 bits of single precision's 23
    return own


def blocks(length: int, rows: int, processes: Processes) -> Iterator[slice]:
    """This process's blocks of ``rows`` out of ``length`` rows; the same blocks whatever the number of processes."""
    for start in range(processes.rank * rows, length, processes.count * rows):
        yield slice(start, min(start + rows, length))
