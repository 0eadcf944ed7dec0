"""Image bytes to pixels: decoding, resizing and square crops, shared by training and evaluation.

Pixels are uint8 RGB [H, W, 3]; they become floats only on the device that computes.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.core.errors import InputError
from pipeline.core.pictures import over_white

Decoder = Literal["fast", "pillow"]
MAX_PIXELS = 100_000_000
MAX_ASPECT = 20


class BadImageError(InputError):
    """An image that cannot be used; the sample is dropped and counted."""


def decode(data: bytes, *, short_side: int) -> Image.Image:
    """Decodes an image to RGB, alpha over white, its short side resized (Pillow's bicubic).

    Args:
        data: JPEG, PNG, WebP or whatever else Pillow reads.
        short_side: Pixels of the short side of the result.

    Raises:
        BadImageError: Not an image, damaged, over 100 million pixels, or longer than 20 times its short side.
    """
    image = _open(data, short_side)
    size = _resized(image.size, short_side)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def resize(pixels: np.ndarray, *, short_side: int) -> Image.Image:
    """Pixels uint8 [H, W, 3], their short side resized (Pillow's bicubic)."""
    image = Image.fromarray(pixels)
    return image.resize(_resized(image.size, short_side), Image.Resampling.BICUBIC)


def decode_pixels(data: bytes, *, short_side: int, decoder: Decoder) -> np.ndarray:
    """As :func:`decode`, to uint8 [H, W, 3].

    Args:
        data: As there.
        short_side: As there.
        decoder: ``pillow`` does as :func:`decode`. ``fast`` decodes with libjpeg-turbo alone, to the same pixels, and
            resizes with torch: the same bicubic filter in vector instructions, off by at most one level.

    Raises:
        BadImageError: As there.
    """
    if decoder == "pillow":
        return np.asarray(decode(data, short_side=short_side))
    pixels = _plain_jpeg(data, short_side)
    if pixels is None:
        pixels = np.array(_open(data, short_side))
    height, width = pixels.shape[:2]
    size = _resized((width, height), short_side)
    if size == (width, height):
        return pixels
    import torch
    from torch.nn.functional import interpolate

    # Channels last is what the fast path asks for: a view, nothing is copied.
    image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    made = interpolate(image, size=size[::-1], mode="bicubic", antialias=True)
    return made[0].permute(1, 2, 0).numpy()


def _plain_jpeg(data: bytes, short_side: int) -> np.ndarray | None:
    """Pixels of a sound colour JPEG that need not be reduced while it is decoded; Pillow judges everything else."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        reducible = min(height, width) >= 4 * short_side
        if colours != "YCbCr" or reducible or max(height, width) > MAX_ASPECT * min(height, width):
            return None
        if height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return None


def _open(data: bytes, short_side: int) -> Image.Image:
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
            return over_white(opened)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their decoders do
        raise BadImageError("not a readable image", found=f"{type(error).__name__}: {error}") from error


def _resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    width, height = size
    short = min(width, height)
    return (
        max(short_side, round(width * short_side / short)),
        max(short_side, round(height * short_side / short)),
    )


def square(pixels: np.ndarray, size: int, across: float, down: float) -> np.ndarray:
    """A square [size, size, 3] of pixels [H, W, 3]; ``across`` and ``down`` in [0, 1) choose its place."""
    height, width = pixels.shape[:2]
    top, left = int(down * (height - size + 1)), int(across * (width - size + 1))
    return pixels[top : top + size, left : left + size]


def centre_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle square [size, size, 3] of pixels [H, W, 3]."""
    height, width = pixels.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]
