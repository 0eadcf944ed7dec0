"""What happens to copies on the web: the paper's augmentations (Appendix C), reproducible by seed.

Cropping and zooming, aspect-ratio distortion, down- and up-sizing, minor rotations, JPEG compression and HSV
colour jitter, combined at random. Every step that interpolates draws its own algorithm, so that the detector
cannot tell a picture by how it was resized. One step is ours: cut-out pictures are laid on another light ground,
as a transparent picture takes the colour of the page that shows it.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dedup.config import AugmentConfig
from dedup.repost import repost

RESAMPLING = (
    Image.Resampling.NEAREST,
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.HAMMING,
    Image.Resampling.LANCZOS,
)
# Pillow rotates with these three only.
ROTATING = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
# Levels by which a ground's pixels differ from its colour at most, and by which its edge has faded into the picture.
_GROUND_STEP, _GROUND_FADE = 24, 160


def augment(image: Image.Image, config: AugmentConfig, seed: int) -> Image.Image:
    """One altered copy of an RGB picture; equal arguments give equal pixels."""
    draw = random.Random(seed)
    if draw.random() < config.probability:
        shares = [1 - config.max_ground * (draw.random() + draw.random()) / 2 for _ in range(3)]
        image = lay_on_ground(image, shares)
    image = crop_and_resize(image, config, draw)
    if draw.random() < config.probability * 0.7:
        image = rotate(image, draw.uniform(-1, 1) * config.max_rotation_degrees, draw.choice(ROTATING))
    if draw.random() < config.probability:
        image = jitter_hsv(
            image,
            hue=draw.uniform(-1, 1) * config.max_hue,
            saturation=1 + draw.uniform(-1, 1) * config.max_saturation,
            value=1 + draw.uniform(-1, 1) * config.max_value,
        )
    if config.beyond:
        image = repost(image, config.beyond, draw)
    if draw.random() < config.probability:
        image = compress(image, draw.randint(config.min_jpeg_quality, 95))
    return image


def lay_on_ground(image: Image.Image, shares: Sequence[float]) -> Image.Image:
    """Darkens the light ground of one colour around what a picture shows; pictures without one stay as they are.

    Args:
        image: RGB.
        shares: What is left of the ground's red, green and blue.
    """
    from scipy import ndimage

    pixels = np.asarray(image).astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    is_ground = np.abs(border - ground).max(axis=1) <= _GROUND_STEP
    if ground.min() < 128 or is_ground.mean() < 0.5:
        return image
    distance = np.abs(pixels - ground).max(axis=2)
    regions, _ = ndimage.label(distance <= _GROUND_STEP)
    touching = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    # Two pixels of edge, where the picture fades into its ground, fade into the new one.
    around = ndimage.binary_dilation(np.isin(regions, touching[touching > 0]), iterations=2)
    weight = (1 - distance / _GROUND_FADE).clip(0, 1) * around
    pixels += weight[..., None] * ground * (np.asarray(shares, np.float32) - 1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def crop_and_resize(image: Image.Image, config: AugmentConfig, draw: random.Random) -> Image.Image:
    """Crops (which zooms), stretches and resizes in one or two interpolations."""
    left, top, right, bottom = 0.0, 0.0, float(image.width), float(image.height)
    if draw.random() < config.probability:
        width = image.width * draw.uniform(config.min_crop, 1)
        height = image.height * draw.uniform(config.min_crop, 1)
        left, top = draw.uniform(0, image.width - width), draw.uniform(0, image.height - height)
        right, bottom = left + width, top + height
    scale_x = scale_y = 1.0
    if draw.random() < config.probability:
        scale_x = scale_y = config.min_scale * (config.max_scale / config.min_scale) ** draw.random()
    if draw.random() < config.probability:
        stretch = config.max_aspect ** draw.uniform(-0.5, 0.5)
        scale_x, scale_y = scale_x * stretch, scale_y / stretch
    size = (max(1, round((right - left) * scale_x)), max(1, round((bottom - top) * scale_y)))
    image = image.resize(size, draw.choice(RESAMPLING), box=(left, top, right, bottom))
    if draw.random() < config.probability / 2:
        back = config.min_scale ** draw.uniform(-0.5, 0.5)
        size = (max(1, round(image.width * back)), max(1, round(image.height * back)))
        image = image.resize(size, draw.choice(RESAMPLING))
    return image


def rotate(image: Image.Image, degrees: float, resample: Image.Resampling) -> Image.Image:
    """Turns a picture about its centre; the corners take the colour of the picture's own corner."""
    corner = image.getpixel((0, 0))
    return image.rotate(degrees, resample, fillcolor=corner)


def jitter_hsv(image: Image.Image, *, hue: float, saturation: float, value: float) -> Image.Image:
    """Turns the hue by a share of the circle and scales saturation and brightness."""
    turn = round(hue * 256)
    table = [(i + turn) % 256 for i in range(256)]
    for factor in (saturation, value):
        table += [min(255, round(i * factor)) for i in range(256)]
    return image.convert("HSV").point(table).convert("RGB")


def compress(image: Image.Image, quality: int) -> Image.Image:
    """A round trip through JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    decoded = Image.open(buffer)
    decoded.load()
    return decoded
