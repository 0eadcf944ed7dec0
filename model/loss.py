"""CLIP's objective: symmetric cross entropy over scaled cosine similarities (paper 2.3, Figure 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import distributed

MAX_LOGIT_SCALE = 100.0  # paper 2.5


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """L2-normalised embeddings [B, E] of B pairs and the logit scale to the mean loss, a scalar in nats."""
    logits = scale * image.float() @ text.float().T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def local_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """This process's part of the loss over all processes' pairs: only its own rows of similarities (paper 2.5).

    The mean of all processes' parts is :func:`contrastive_loss` of all pairs, and, because gradients flow through the
    gathers, so are their gradients. With one process it is that loss.

    Args:
        image: This process's unit embeddings [B, E].
        text: Theirs.
        scale: The logit scale.
    """
    all_image, all_text = distributed.gather(image.float()), distributed.gather(text.float())
    target = torch.arange(len(image), device=image.device) + distributed.rank() * len(image)
    to_text = F.cross_entropy(scale * image.float() @ all_text.T, target)
    return (to_text + F.cross_entropy(scale * text.float() @ all_image.T, target)) / 2


def clamp_logit_scale(log_scale: nn.Parameter) -> None:
    """Keeps the learned scale from multiplying the logits by more than 100."""
    with torch.no_grad():
        log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
