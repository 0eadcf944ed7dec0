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


def accumulate(
    embed: Embed, loss_of: Loss, images: Tensor, tokens: Tensor, *, parts: int, model: nn.Module
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of a batch's loss to the parameters, a part of the batch in memory at a time.

    Args:
        embed: Images and tokens of a part to unit embeddings and the logit scale.
        loss_of: The loss of the whole batch's embeddings and the logit scale.
        images: Of the whole batch, [B, …].
        tokens: Of the whole batch, [B, L].
        parts: How many parts the batch is cut into.
        model: What ``embed`` runs; its ``no_sync`` is used if it has one (DDP).

    Returns:
        The loss and the logit scale, without gradients.
    """
    pieces = list(zip(images.chunk(parts), tokens.chunk(parts), strict=True))
    with torch.no_grad(), frozen_statistics(model):
        cached = [embed(*piece) for piece in pieces]
    image = torch.cat([c[0] for c in cached]).requires_grad_()
    text = torch.cat([c[1] for c in cached]).requires_grad_()
    scale = cached[0][2].clone().requires_grad_()
    loss = loss_of(image, text, scale)
    of_image, of_text, of_scale = torch.autograd.grad(loss, [image, text, scale])
    sizes = [len(piece[0]) for piece in pieces]
    shares = zip(pieces, torch.split(of_image, sizes), torch.split(of_text, sizes), strict=True)
    waiting: Callable[[], contextlib.AbstractContextManager[None]]
    waiting = getattr(model, "no_sync", contextlib.nullcontext)
    for number, (piece, part_image, part_text) in enumerate(shares):
        last = number == len(pieces) - 1
        with contextlib.nullcontext() if last else waiting():
            given = [part_image, part_text, of_scale if last else torch.zeros_like(of_scale)]
            torch.autograd.backward(embed(*piece), given)
    return loss.detach(), scale.detach()
