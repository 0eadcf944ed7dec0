"""CLIP's objective: symmetric cross entropy over scaled cosine similarities (paper 2.3, Figure 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_LOGIT_SCALE = 100.0  # paper 2.5


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """L2-normalised embeddings [B, E] of B pairs and the logit scale to the mean loss, a scalar in nats."""
    logits = scale * image.float() @ text.float().T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def clamp_logit_scale(log_scale: nn.Parameter) -> None:
    """Keeps the learned scale from multiplying the logits by more than 100."""
    with torch.no_grad():
        log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
