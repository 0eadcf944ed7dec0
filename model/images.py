"""Image bytes to pixels: decoding, resizing and square crops, shared by training and evaluation.

Pixels are uint8 RGB [H, W, 3]; they become floats only on the device that computes.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from pipeline.core.errors import InputError
from pipeline.core.pictures import over_white

MAX_PIXELS = 100_000_000
MAX_ASPECT = 20


class BadImageError(InputError):
    """An image that cannot be used; the sample is dropped and counted."""


def decode(data: bytes, *, short_side: int) -> Image.Image:
    """Decodes an image to RGB, alpha over white, its short side resized (bicubic).

    Args:
        data: JPEG, PNG, WebP or whatever else Pillow reads.
        short_side: Pixels of the short side of the result.

    Raises:
        BadImageError: Not an image, damaged, over 100 million pixels, or longer than 20 times its short side.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # size is checked below; other warnings are about metadata
            opened = Image.open(io.BytesIO(data))
            width, height = opened.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
                raise BadImageError("the image's size is out of bounds", found=f"{width}x{height}")
            if opened.format == "JPEG":
                # Twice the target leaves the resize its quality.
                opened.draft("RGB", (2 * short_side, 2 * short_side))
            image = over_white(opened)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their decoders do
        raise BadImageError("not a readable image", found=f"{type(error).__name__}: {error}") from error
    width, height = image.size
    short = min(width, height)
    if short == short_side:
        return image
    size = (
        max(short_side, round(width * short_side / short)),
        max(short_side, round(height * short_side / short)),
    )
    return image.resize(size, Image.Resampling.BICUBIC)


def crop(pixels: np.ndarray, size: int, across: float, down: float) -> np.ndarray:
    """A square [size, size, 3] of pixels [H, W, 3]; ``across`` and ``down`` in [0, 1) choose its place."""
    height, width = pixels.shape[:2]
    top, left = int(down * (height - size + 1)), int(across * (width - size + 1))
    return pixels[top : top + size, left : left + size]


def centre_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle square [size, size, 3] of pixels [H, W, 3]."""
    height, width = pixels.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]
