"""Saving memory: gradients of a large batch from small ones, and activations computed anew (paper 2.5).

A contrastive loss needs all of a batch's embeddings at once, but not all of its activations: embed without
gradients, take the loss's gradients at the embeddings, then embed again part by part and send each part its own. For
a ViT this equals the large batch. A ResNet's BatchNorm takes its statistics from the part it sees, so there the result
is that of smaller normalisation batches, as with several GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Embed = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Scaled = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm goes on normalising by its batch but leaves its running statistics alone: they count a batch once."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    counts = [None if m.num_batches_tracked is None else m.num_batches_tracked.clone() for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """A block's output whose activations are computed again in the backward pass instead of being kept."""
    if not torch.is_grad_enabled():
        out: Tensor = block(x)
        return out
    again: Tensor = checkpoint(
        block, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), frozen_statistics(block))
    )
    return again


def unscaled(loss: Tensor) -> Tensor:
    """The loss as it is."""
    return loss


def accumulate(
    embed: Embed,
    loss_of: Loss,
    images: Tensor,
    tokens: Tensor,
    *,
    parts: int,
    model: nn.Module,
    scaled: Scaled = unscaled,
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of a batch's loss to the parameters, a part of the batch in memory at a time.

    Args:
        embed: Images and tokens of a part to unit embeddings and the logit scale.
        loss_of: The loss of the whole batch's embeddings and the logit scale.
        images: Of the whole batch, [B, …].
        tokens: Of the whole batch, [B, L].
        parts: How many parts the batch is cut into.
        model: What ``embed`` runs; its ``no_sync`` is used if it has one (DDP).
        scaled: What multiplies the loss whose gradients are taken (float16's loss scale).

    Returns:
        The loss, not scaled, and the logit scale, without gradients.
    """
    pieces = list(zip(images.chunk(parts), tokens.chunk(parts), strict=True))
    with torch.no_grad(), frozen_statistics(model):
        cached = [embed(*piece) for piece in pieces]
    image = torch.cat([c[0] for c in cached]).requires_grad_()
    text = torch.cat([c[1] for c in cached]).requires_grad_()
    scale = cached[0][2].clone().requires_grad_()
    loss = loss_of(image, text, scale)
    of_image, of_text, of_scale = torch.autograd.grad(scaled(loss), [image, text, scale])
    sizes = [len(piece[0]) for piece in pieces]
    shares = zip(pieces, torch.split(of_image, sizes), torch.split(of_text, sizes), strict=True)
    for number, (piece, part_image, part_text) in enumerate(shares):
        last = number == len(pieces) - 1
        with _gradients_wait(model, not last):
            given = [part_image, part_text, of_scale if last else torch.zeros_like(of_scale)]
            torch.autograd.backward(embed(*piece), given)
    return loss.detach(), scale.detach()


def accumulate_mean(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    tokens: Tensor,
    *,
    parts: int,
    model: nn.Module,
    scaled: Scaled = unscaled,
) -> Tensor:
    """Adds the gradients of a loss that is a mean over pairs, a part of the batch in memory at a time.

    Args:
        loss_of: Images and tokens of a part to its mean loss.
        images: Of the whole batch, [B, …].
        tokens: Of the whole batch, [B, L].
        parts: How many equal parts the batch is cut into.
        model: What ``loss_of`` runs; its ``no_sync`` is used if it has one (DDP).
        scaled: What multiplies the loss whose gradients are taken (float16's loss scale).

    Returns:
        The loss, not scaled, without gradients.
    """
    losses = []
    for number, piece in enumerate(zip(images.chunk(parts), tokens.chunk(parts), strict=True)):
        with _gradients_wait(model, number < parts - 1):
            loss = loss_of(*piece) / parts
            scaled(loss).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _gradients_wait(model: nn.Module, wait: bool) -> contextlib.AbstractContextManager[None]:
    """With DDP, gradients are exchanged after the last part only; FSDP adds each part's to its own share."""
    no_sync: Callable[[], contextlib.AbstractContextManager[None]] | None = getattr(model, "no_sync", None)
    return contextlib.nullcontext() if no_sync is None or not wait else no_sync()
