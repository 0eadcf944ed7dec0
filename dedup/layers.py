"""Layers without batch statistics: weight-normalised convolutions, anti-aliased strides, bottlenecks.

Appendix C of the paper: the detector uses weight normalisation instead of batch normalisation, because statistics
of a batch tell which of its images are copies of one another, and blur pooling (Zhang 2019) instead of plain
strides, because aliasing makes the same texture look different after another resizing algorithm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WeightNormConv2d(nn.Module):
    """A convolution whose filters are directions with learned lengths (Salimans and Kingma 2016).

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        kernel: Side of the square filter; the map keeps its size.
        gain: Initial standard deviation of the output for white input of standard deviation 1.
        stride: Step of the filter.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, gain: float = 1.0, stride: int = 1
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, kernel // 2
        # Only the direction counts, but its length sets how far one optimiser step turns it.
        self.direction = nn.Parameter(0.05 * torch.randn(channels_out, channels_in, kernel, kernel))
        self.length = nn.Parameter(torch.full((channels_out,), float(gain)))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def weight(self) -> Tensor:
        """The filters, shape [out, in, kernel, kernel]."""
        norm = self.direction.flatten(1).norm(dim=1).clamp_min(1e-12)
        return self.direction * (self.length / norm)[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H / stride, W / stride]."""
        return F.conv2d(x, self.weight(), self.bias, stride=self.stride, padding=self.padding)


class BlurPool2d(nn.Module):
    """Halves a map after smoothing it with the filter [1, 2, 1] / 4 (Zhang 2019, Tri-3).

    Borders are replicated, so that maps down to 1 x 1 and of odd size work: ceil(H / 2) x ceil(W / 2).
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, ceil(H / 2), ceil(W / 2)]."""
        # Two box filters make the triangle: cheaper on CPUs than a depthwise convolution.
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1), 2, stride=2)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions with a shortcut; a stride blurs before it samples.

    Args:
        channels_in: Channels of the input.
        width: Channels inside.
        channels_out: Channels of the output.
        stride: 1 or 2.
        gain: Initial gain of the branch's last convolution; small, in place of normalisation.
    """

    def __init__(
        self, channels_in: int, width: int, channels_out: int, *, stride: int, gain: float = 0.3
    ) -> None:
        super().__init__()
        keep = math.sqrt(2.0)  # GELU halves the variance, as ReLU does
        self.reduce = WeightNormConv2d(channels_in, width, 1, gain=keep)
        self.spatial = WeightNormConv2d(width, width, 3, gain=keep)
        self.expand = WeightNormConv2d(width, channels_out, 1, gain=gain)
        self.pool = BlurPool2d() if stride == 2 else nn.Identity()
        plain = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if plain else WeightNormConv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H / stride, W / stride]."""
        branch = F.gelu(self.spatial(F.gelu(self.reduce(x))))
        return F.gelu(self.shortcut(self.pool(x)) + self.expand(self.pool(branch)))
