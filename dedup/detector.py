"""The near-duplicate detector: an anti-aliased, weight-normalised ResNet that sees copies, not meanings (Appendix C).

An embedding is one L2-normalised vector. The paper's preset takes the network's output as it is. The small preset
joins it with features that need no learning (:mod:`dedup.descriptor`) under one linear map found in closed form and
a small learned head, so that minutes of training on a laptop give a detector that is right about fine differences.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dedup.descriptor import DIMENSION, describe, framed, soft_hash
from dedup.layers import BlurPool2d, Bottleneck, WeightNormConv2d
from pipeline.core.pictures import over_white

# Larger declared sizes are refused before they are decoded.
MAX_PIXELS = 64_000_000
# Share of a side by which the wider and the closer look differ from the picture.
LOOK = 0.04


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shape of a detector.

    Attributes:
        image_px: Side of the square that every picture is squashed to.
        stem_channels: Channels after the first convolution.
        stem_kernel: Side of the first convolution's filter; it strides by 2.
        stem_pool: Whether a blurred maximum pool follows, as in ResNet-50.
        widths: Inner width of each stage's bottlenecks; a stage's output is four times as wide.
        depths: Bottlenecks in each stage.
        learned: Dimension of the network's output.
        joined: Dimension after the linear map over learned and unlearned features; 0 leaves map and head out.
        hidden: Width of the head over the joined features.
        hashed: Side of the square of low frequencies that a perceptual hash is made of; 0 leaves the hash out.
        hash_weight: Length of the hash beside the learned part's length of 1.
        embedding: Dimension of an embedding, the hash included.
    """

    image_px: int
    stem_channels: int
    stem_kernel: int
    stem_pool: bool
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    learned: int
    joined: int = 0
    hidden: int = 0
    hashed: int = 0
    hash_weight: float = 0.0
    embedding: int

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths):
            raise ValueError(f"widths {self.widths} and depths {self.depths} must be equally long")
        if not 0 <= self.joined <= self.learned + DIMENSION:
            raise ValueError(f"joined must lie in 0..{self.learned + DIMENSION}, is {self.joined}")
        if self.joined and not (self.hidden and 0 < self.found <= self.joined):
            raise ValueError(f"a head needs hidden above 0 and embedding at most joined {self.joined}")
        if not 0 <= self.hashed <= self.image_px or self.hash_weight < 0 or (self.hashed and not self.joined):
            raise ValueError(f"hashed must lie in 0..{self.image_px}, is {self.hashed}, and needs a head")
        if not self.joined and self.embedding != self.learned:
            raise ValueError(f"without a head embedding must be learned {self.learned}, is {self.embedding}")

    @property
    def found(self) -> int:
        """Dimension of an embedding without its hash."""
        return self.embedding - self.hashed**2


PRESETS = {
    # ResNet-50 as in Appendix C.
    "resnet50": Architecture(
        image_px=224,
        stem_channels=64,
        stem_kernel=7,
        stem_pool=True,
        widths=(64, 128, 256, 512),
        depths=(3, 4, 6, 3),
        learned=512,
        embedding=512,
    ),
    "general": Architecture(
        image_px=64,
        stem_channels=16,
        stem_kernel=5,
        stem_pool=True,
        widths=(16, 32, 64, 128),
        depths=(2, 2, 3, 2),
        learned=256,
        joined=512,
        hidden=768,
        hashed=10,
        hash_weight=0.3,
        embedding=356,
    ),
    "small": Architecture(
        image_px=64,
        stem_channels=16,
        stem_kernel=5,
        stem_pool=True,
        widths=(16, 32, 64),
        depths=(2, 2, 2),
        learned=128,
        joined=384,
        hidden=768,
        embedding=256,
    ),
}


class Detector(nn.Module):
    """Maps pictures to embeddings; nothing in it depends on a batch's other pictures.

    Args:
        architecture: Its shape.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        self.stem = WeightNormConv2d(3, a.stem_channels, a.stem_kernel, gain=2.0**0.5, stride=2)
        self.stem_pool = BlurPool2d() if a.stem_pool else nn.Identity()
        blocks: list[nn.Module] = []
        channels = a.stem_channels
        for stage, (width, depth) in enumerate(zip(a.widths, a.depths, strict=True)):
            for block in range(depth):
                stride = 2 if block == 0 and stage > 0 else 1
                blocks.append(Bottleneck(channels, width, 4 * width, stride=stride))
                channels = 4 * width
        self.blocks = nn.Sequential(*blocks)
        # The map is kept as 2 x 2 quarters: where things are tells copies from look-alikes.
        self.head = nn.Linear(4 * channels, a.learned)

        if a.joined:
            total = a.learned + DIMENSION
            # Solved in closed form, never by gradients.
            self.register_buffer("centre", torch.zeros(total))
            self.register_buffer("projection", torch.eye(a.joined, total))
            self.joined_head = JoinedHead(a.joined, a.hidden, a.found)

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.architecture.embedding

    @property
    def sight(self) -> tuple[int, int, int]:
        """Shape of :meth:`looks`; equal ones are looks at the same."""
        a = self.architecture
        return (18 if a.joined else 3, a.image_px, a.image_px)

    def looks(self, image: Image.Image) -> np.ndarray:
        """What an embedding is made from; see :func:`looks`."""
        return looks(image, self.architecture)

    def described(self) -> dict[str, Any]:
        """Its shape, as its folder's configuration keeps it."""
        return {"architecture": dataclasses.asdict(self.architecture)}

    def learned(self, pixels: Tensor) -> Tensor:
        """The network's own output.

        Args:
            pixels: uint8 [N, 3 or 6, image_px, image_px].

        Returns:
            float32 [N, learned], rows of length 1.
        """
        # Channels last: twice as fast on CPUs.
        x = _scaled(pixels[:, :3]).contiguous(memory_format=torch.channels_last)
        h = F.gelu(self.stem(x))
        if self.architecture.stem_pool:
            h = self.stem_pool(F.max_pool2d(h, 3, stride=1, padding=1))
        return F.normalize(self.head(F.adaptive_avg_pool2d(self.blocks(h), 2).flatten(1)), dim=1)

    def features(self, pixels: Tensor) -> Tensor:
        """Learned and unlearned features side by side: uint8 [N, 6, S, S] -> float32 [N, learned + DIMENSION]."""
        learned = self.learned(pixels).float() * self.architecture.learned**0.5
        with _single_precision(pixels):
            return torch.cat([learned, describe(_scaled(pixels[:, :3]), _scaled(pixels[:, 3:]))], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeds prepared pictures.

        Args:
            pixels: uint8 [N, C, image_px, image_px] of :func:`looks` or, one look only, of :func:`prepare`.

        Returns:
            float32 [N, embedding], rows of length 1: the mean over a picture's looks.
        """
        if not self.architecture.joined:
            return self.learned(pixels)
        found = self.found(pixels)
        a = self.architecture
        if not a.hashed:
            return found
        with _single_precision(pixels):
            hashes = a.hash_weight * soft_hash(_scaled(pixels[:, :3]), a.hashed)
            return F.normalize(torch.cat([found, hashes], dim=1), dim=1)

    def found(self, pixels: Tensor) -> Tensor:
        """The joined head's part of an embedding, the mean over a picture's looks: [N, found], rows of length 1."""
        each = pixels.reshape(-1, 6, *pixels.shape[2:])
        features = self.features(each)
        with _single_precision(pixels):
            found = self.joined_head(self.project(features))
            return F.normalize(found.reshape(len(pixels), -1, found.shape[1]).mean(dim=1), dim=1)

    def project(self, features: Tensor) -> Tensor:
        """The closed-form map: float32 [N, learned + DIMENSION] -> [N, joined]."""
        return (features - self.get_buffer("centre")) @ self.get_buffer("projection").T


class JoinedHead(nn.Module):
    """The closed-form map's leading directions plus what a small network adds to them.

    Args:
        joined: Dimension of the map.
        hidden: Width of the network.
        embedding: Dimension of an embedding.
    """

    def __init__(self, joined: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.straight = nn.Linear(joined, embedding, bias=False)
        self.inner = nn.Linear(joined, hidden)
        self.outer = nn.Linear(hidden, embedding)
        with torch.no_grad():
            # It starts as the map itself: training can only add to what closed form already knows.
            self.straight.weight.copy_(torch.eye(embedding, joined))
            self.outer.weight.mul_(0.1)
            self.outer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[N, joined] -> float32 [N, embedding], rows of length 1."""
        with _single_precision(x):
            return F.normalize(self.straight(x) + self.outer(F.gelu(self.inner(x))), dim=1)


def _single_precision(given: Tensor) -> torch.autocast:
    """No lower precision but in the network itself, :meth:`Detector.learned`: what is added to it is cheap and fine."""
    return torch.autocast(given.device.type, enabled=False)


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1.0


def decode(data: bytes) -> Image.Image:
    """Decodes picture bytes to RGB; transparency lies over white, as the fetch stage lays it.

    Raises:
        ValueError: Not a picture, damaged, or larger than ``MAX_PIXELS``; the text says which.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"too large: {image.width} x {image.height} pixels")
        image.draft("RGB", (512, 512))
        return over_white(image)
    except ValueError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise ValueError(f"{type(error).__name__}: {error}") from error


def size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels that picture bytes declare; nothing is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data)) as image:
            return image.width, image.height


def prepare(
    image: Image.Image,
    side: int,
    *,
    joined: bool = False,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Squashes an RGB picture, or a part of it, to the detector's square.

    Args:
        image: RGB.
        side: Side of the square.
        joined: Put the picture without its border beside it, as detectors with unlearned features need.
        box: Left, top, right, bottom of the part in pixels.

    Returns:
        uint8 [3, side, side], or [6, side, side] if joined.
    """
    squashed = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))
    whole = np.ascontiguousarray(squashed.transpose(2, 0, 1))
    return np.concatenate([whole, framed(whole)]) if joined else whole


def looks(image: Image.Image, architecture: Architecture) -> np.ndarray:
    """What an embedding is made from: the picture and, for joined detectors, slightly wider and closer looks at it.

    A look from a little further or nearer often lies closer to a cropped copy than the picture itself.

    Returns:
        uint8 [C, side, side], C being 3, or 18 for three looks of a joined detector.
    """
    side, joined = architecture.image_px, bool(architecture.joined)
    whole = prepare(image, side, joined=joined)
    if not joined:
        return whole
    x, y = LOOK * image.width, LOOK * image.height
    nearer = prepare(image, side, joined=True, box=(x, y, image.width - x, image.height - y))
    wide, high = max(1, round(x)), max(1, round(y))
    ground = Image.new("RGB", (image.width + 2 * wide, image.height + 2 * high), image.getpixel((0, 0)))
    ground.paste(image, (wide, high))
    return np.concatenate([whole, prepare(ground, side, joined=True), nearer])
