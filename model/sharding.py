"""A model over several processes: DDP, or FSDP with weights, gradients and moments cut among them (paper 2.5).

Checkpoints hold whole tensors either way, so a run may go on under the other.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import distributed
from model.clip import CLIP, ImageModel
from model.layers import ResidualAttentionBlock
from model.resnet import Bottleneck


def compile_blocks(model: ImageModel) -> None:
    """Compiles the forward pass of each block of both towers; blocks of one shape share their code."""
    # A ResNet's blocks are one function with many shapes, and torch gives up at eight.
    torch._dynamo.config.recompile_limit = 64
    for module in model.modules():
        if isinstance(module, ResidualAttentionBlock | Bottleneck):
            # The forward pass, not the module: hooks (FSDP's) and parameter names stay as they are.
            module.forward = torch.compile(module.forward)  # type: ignore[method-assign]


def wrapped(model: ImageModel, *, parallel: Literal["ddp", "fsdp"], device: torch.device) -> nn.Module:
    """What a step calls: the model itself with one process, else what averages the processes' gradients."""
    if distributed.ranks() == 1:
        return model
    if parallel == "ddp":
        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # FSDP cuts neither channels-last tensors nor scalars. Inputs stay channels last, so convolutions are too.
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if isinstance(model, CLIP):
        model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))
    mesh = init_device_mesh(device.type, (distributed.ranks(),))
    for module in list(model.modules()):
        if isinstance(module, ResidualAttentionBlock | Bottleneck):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(state: Any) -> Any:
    """A state with every cut tensor put together again, on the CPU; every process must call it.

    Only the first process keeps the tensors: in the others, those that were cut are left empty.
    """
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if not _is_cut(state):
        return state
    full: Tensor = state.full_tensor()
    return full.cpu() if distributed.rank() == 0 else torch.empty(0)


def whole_weights(model: ImageModel) -> dict[str, Tensor]:
    """A model's state with every tensor whole, the logit scale a scalar; every process must call it."""
    weights: dict[str, Tensor] = whole(model.state_dict())
    if "logit_scale" in weights and distributed.rank() == 0:
        weights["logit_scale"] = weights["logit_scale"].reshape(())
    return weights


def load_weights(model: ImageModel, weights: dict[str, Tensor]) -> None:
    """Loads whole tensors into a model that may be cut.

    Raises:
        RuntimeError: They do not fit.
    """
    own = model.state_dict()
    model.load_state_dict({k: _as(v, own[k]) if k in own else v for k, v in weights.items()})


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads whole moments into an optimiser whose parameters may be cut; settings stay its own."""
    order = [p for group in optimiser.param_groups for p in group["params"]]
    moments = {
        number: {k: _as(v, order[number]) if k != "step" else v for k, v in values.items()}
        for number, values in state["state"].items()
    }
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


def _as(value: Tensor, own: Tensor) -> Tensor:
    """A whole tensor, cut and laid out as another one is: fused optimisers read moments by place, not by stride."""
    shaped = value.reshape(own.shape) if value.numel() == 1 else value
    if not _is_cut(own):
        return torch.empty_like(own, dtype=value.dtype).copy_(shaped)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(own, DTensor)
    placed = shaped.to(own.device).contiguous()
    return distribute_tensor(placed, own.device_mesh, own.placements, src_data_rank=None)


def _is_cut(value: object) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor, whose import takes a second
