"""What happens to copies on the web: the paper's augmentations (Appendix C), reproducible by seed.

Cropping and zooming, aspect-ratio distortion, down- and up-sizing, minor rotations, JPEG compression and HSV
colour jitter, combined at random. Every step that interpolates draws its own algorithm, so that the detector
cannot tell a picture by how it was resized: one of Pillow's six, and OpenCV's area where that is asked for (Pillow
turns pictures by three of its six). One step is ours: cut-out pictures are laid on another light ground, as a
transparent picture takes the colour of the page that shows it.
"""

from __future__ import annotations

import importlib
import io
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dedup.config import AugmentConfig
from dedup.repost import repost
from pipeline.core.errors import UsageError

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
# What lies outside a turned picture: the colour of its own corner as often as black or white.
_CORNERS = (None, None, (0, 0, 0), (255, 255, 255))
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
        degrees = draw.uniform(-1, 1) * config.max_rotation_degrees
        image = rotate(image, degrees, draw.choice(ROTATING), draw.choice(_CORNERS))
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
    levels = np.asarray(image)
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]]).astype(np.float32)
    ground = np.median(border, axis=0)
    is_ground = np.abs(border - ground).max(axis=1) <= _GROUND_STEP
    if ground.min() < 128 or is_ground.mean() < 0.5:
        return image
    pixels = levels.astype(np.float32)
    apart = np.abs(pixels - ground)
    distance = np.maximum(np.maximum(apart[..., 0], apart[..., 1]), apart[..., 2])
    # Two pixels of edge, where the picture fades into its ground, fade into the new one.
    around = _widened(_widened(_touching_border(distance <= _GROUND_STEP)))
    weight = (1 - distance / _GROUND_FADE).clip(0, 1) * around
    pixels += weight[..., None] * ground * (np.asarray(shares, np.float32) - 1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _touching_border(mask: np.ndarray) -> np.ndarray:
    """The connected parts of a mask [H, W] that reach its border."""
    from scipy import ndimage

    regions, count = ndimage.label(mask)
    kept = np.zeros(count + 1, bool)
    for edge in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        kept[edge] = True
    kept[0] = False
    return np.asarray(kept[regions])


def _widened(mask: np.ndarray) -> np.ndarray:
    """A mask [H, W] and its neighbours above, below, left and right."""
    wider = mask.copy()
    wider[1:] |= mask[:-1]
    wider[:-1] |= mask[1:]
    wider[:, 1:] |= mask[:, :-1]
    wider[:, :-1] |= mask[:, 1:]
    return wider


def crop_and_resize(image: Image.Image, config: AugmentConfig, draw: random.Random) -> Image.Image:
    """Crops (which zooms), stretches and resizes in one or two interpolations."""
    left, top, right, bottom = 0.0, 0.0, float(image.width), float(image.height)
    if draw.random() < config.probability:
        width = height = draw.uniform(config.min_crop, 1)
        if draw.random() < 0.5:
            height = draw.uniform(config.min_crop, 1)
        width, height = image.width * width, image.height * height
        left, top = draw.uniform(0, image.width - width), draw.uniform(0, image.height - height)
        right, bottom = left + width, top + height
    scale_x = scale_y = 1.0
    if draw.random() < config.probability:
        scale_x = scale_y = config.min_scale * (config.max_scale / config.min_scale) ** draw.random()
    if draw.random() < config.probability:
        stretch = config.max_aspect ** draw.uniform(-0.5, 0.5)
        scale_x, scale_y = scale_x * stretch, scale_y / stretch
    size = (max(1, round((right - left) * scale_x)), max(1, round((bottom - top) * scale_y)))
    kinds = (*RESAMPLING, None) if config.area else RESAMPLING
    image = resize(image, size, draw.choice(kinds), (left, top, right, bottom))
    if draw.random() < config.probability / 2:
        back = config.min_scale ** draw.uniform(-0.5, 0.5)
        size = (max(1, round(image.width * back)), max(1, round(image.height * back)))
        image = resize(image, size, draw.choice(kinds))
    return image


def resize(
    image: Image.Image,
    size: tuple[int, int],
    kind: Image.Resampling | None,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Resizes a picture or a part of it.

    Args:
        image: RGB.
        size: Width and height wanted.
        kind: Pillow's algorithm, or ``None`` for OpenCV's area, for which the part is cut at whole pixels.
        box: Left, top, right, bottom of the part.

    Raises:
        UsageError: OpenCV is wanted and not installed.
    """
    if kind is not None:
        return image.resize(size, kind, box=box)
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise UsageError(
            "OpenCV is not installed",
            where="[dedup.train.augment].area",
            expected="the module cv2",
            found=str(error),
            hint="`pip install opencv-python-headless`, or area = false",
        ) from error
    if box is not None:
        left, top = int(box[0]), int(box[1])
        image = image.crop((left, top, max(left + 1, round(box[2])), max(top + 1, round(box[3]))))
    return Image.fromarray(cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_AREA))


def rotate(
    image: Image.Image,
    degrees: float,
    resample: Image.Resampling,
    corners: tuple[int, int, int] | None = None,
) -> Image.Image:
    """Turns a picture about its centre; the corners take a colour or that of the picture's own corner."""
    return image.rotate(degrees, resample, fillcolor=corners or image.getpixel((0, 0)))


def jitter_hsv(image: Image.Image, *, hue: float, saturation: float, value: float) -> Image.Image:
    """Turns the hue by a share of the circle and scales saturation and brightness."""
    turn = round(hue * 256)
    levels = np.arange(256)
    scaled = [np.minimum(255, np.rint(levels * factor)) for factor in (saturation, value)]
    table = np.concatenate([(levels + turn) % 256, *scaled]).astype(np.int64)
    return image.convert("HSV").point(table.tolist()).convert("RGB")


def compress(image: Image.Image, quality: int) -> Image.Image:
    """A round trip through JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    decoded = Image.open(buffer)
    decoded.load()
    return decoded
