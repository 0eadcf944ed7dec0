"""CLIP's ResNet (paper 2.4): ResNet-D stem, anti-aliased strides, attention pooling; OpenAI's parameter names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from model.gradients import recomputed
from model.layers import AttentionPool

EXPANSION = 4


class Bottleneck(nn.Module):
    """A bottleneck whose stride is an average pool (rect-2 blur) before the last convolution.

    Args:
        channels_in: Channels of the input.
        planes: Inner channels; four times as many come out.
        stride: 1 or 2.
    """

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        channels_out = planes * EXPANSION
        self.conv1 = nn.Conv2d(channels_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride) if stride > 1 else nn.Identity()),
                        ("0", nn.Conv2d(channels_in, channels_out, 1, bias=False)),
                        ("1", nn.BatchNorm2d(channels_out)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 4 planes, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(self.avgpool(out)))
        kept = x if self.downsample is None else self.downsample(x)
        return F.relu(out + kept, inplace=True)


class ModifiedResNet(nn.Module):
    """The image tower of RN50 … RN50x64.

    Args:
        layers: Blocks of each stage; the paper's models have four stages, small ones may have fewer.
        width: Channels after the stem; the last stage has ``width * 4 * 2 ** (stages - 1)``.
        image_size: Pixels of the square input; a multiple of the total stride ``4 * 2 ** (stages - 1)``.
        out: Dimension of the joint embedding.

    Attributes:
        recompute: Keep no activations inside blocks; compute them again in the backward pass.
    """

    recompute = False

    def __init__(self, *, layers: Sequence[int], width: int, image_size: int, out: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.stages = [f"layer{i + 1}" for i in range(len(layers))]
        channels = width
        for i, (name, blocks) in enumerate(zip(self.stages, layers, strict=True)):
            planes = width * 2**i
            made = [Bottleneck(channels, planes, 1 if i == 0 else 2)]
            channels = planes * EXPANSION
            made += [Bottleneck(channels, planes, 1) for _ in range(1, blocks)]
            self.add_module(name, nn.Sequential(*made))
        side = image_size // (4 * 2 ** (len(layers) - 1))
        # OpenAI's rule: 64 channels a head, which is width * 32 / 64 for four stages.
        self.attnpool = AttentionPool(side * side, channels, max(1, channels // 64), out)
        self.initialise()

    def initialise(self) -> None:
        """OpenAI's: attention pool by its width; the last gain of each block starts at zero."""
        std = self.attnpool.c_proj.in_features**-0.5
        for projection in (
            self.attnpool.q_proj,
            self.attnpool.k_proj,
            self.attnpool.v_proj,
            self.attnpool.c_proj,
        ):
            nn.init.normal_(projection.weight, std=std)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, out]."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        x = self.avgpool(x)
        for name in self.stages:
            if self.recompute:
                for block in getattr(self, name):
                    x = recomputed(block, x)
            else:
                x = getattr(self, name)(x)
        out: Tensor = self.attnpool(x)
        return out
