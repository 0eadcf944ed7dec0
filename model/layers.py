"""The parts both towers are made of, with OpenAI's parameter names (paper 2.4).

Shapes: B batch, L length (tokens or patches), D width.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.gradients import recomputed


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``: the activation of OpenAI's released weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * torch.sigmoid(1.702 * x)


def activation(quick_gelu: bool) -> nn.Module:
    """QuickGELU (OpenAI's weights) or the exact GELU (most of open_clip's)."""
    return QuickGELU() if quick_gelu else nn.GELU()


class Attention(nn.Module):
    """Multi-head self-attention with the parameters of ``torch.nn.MultiheadAttention``.

    Args:
        width: D.
        heads: Number of heads; divides the width.
        causal: Whether a position sees only itself and what stands before it.
    """

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        batch, length, width = x.shape
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class ResidualAttentionBlock(nn.Module):
    """Pre-norm attention and a four times wider perceptron, each added to its input."""

    def __init__(self, width: int, heads: int, *, causal: bool, quick_gelu: bool) -> None:
        super().__init__()
        self.attn = Attention(width, heads, causal=causal)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                gelu=activation(quick_gelu),
                c_proj=nn.Linear(4 * width, width),
            )
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """A stack of blocks (``resblocks.0`` …).

    Attributes:
        recompute: Keep no activations inside blocks; compute them again in the backward pass.
    """

    recompute = False

    def __init__(self, width: int, layers: int, heads: int, *, causal: bool, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(
            *(
                ResidualAttentionBlock(width, heads, causal=causal, quick_gelu=quick_gelu)
                for _ in range(layers)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        if not self.recompute:
            out: Tensor = self.resblocks(x)
            return out
        for block in self.resblocks:
            x = recomputed(block, x)
        return x


class AttentionPool(nn.Module):
    """Attention pooling: one multi-head layer whose query is the mean over positions (paper 2.4).

    Args:
        positions: H * W of the feature map.
        width: Channels D of the feature map.
        heads: Number of heads.
        out: Channels of the result.
    """

    def __init__(self, positions: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(positions + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] to [B, out]."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        batch, length, width = x.shape
        query = self.q_proj(x[:, :1]).view(batch, 1, self.heads, -1).transpose(1, 2)
        key = self.k_proj(x).view(batch, length, self.heads, -1).transpose(1, 2)
        value = self.v_proj(x).view(batch, length, self.heads, -1).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.c_proj(mixed.transpose(1, 2).reshape(batch, width))
        return out
