"""CLIP's Vision Transformer (paper 2.4): as ViT, with one more layer norm before the transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.layers import Transformer


class VisionTransformer(nn.Module):
    """The image tower of ViT-B/32 … ViT-L/14@336px.

    Args:
        image_size: Pixels of the square input; a multiple of the patch size.
        patch_size: Pixels of a patch.
        width: D.
        layers: Blocks.
        heads: Heads of each block.
        out: Dimension of the joint embedding.
        quick_gelu: See :func:`model.layers.activation`.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        out: int,
        quick_gelu: bool,
    ) -> None:
        super().__init__()
        scale = width**-0.5
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        patches = (image_size // patch_size) ** 2
        self.positional_embedding = nn.Parameter(scale * torch.randn(patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, causal=False, quick_gelu=quick_gelu)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, out))

    def features(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, D], before the projection: what a linear probe reads (paper A.3)."""
        x = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        x = torch.cat([first.to(x.dtype), x], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        out: Tensor = self.ln_post(x[:, 0])
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, out]."""
        return self.features(x) @ self.proj
