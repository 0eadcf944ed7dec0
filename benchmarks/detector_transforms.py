"""What the detector's benchmark does to pictures: 51 graded transforms, the paper's own and harder ones.

Written apart from :mod:`dedup.augment`, so that the benchmark does not repeat the training's code or its draws.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

Transform = Callable[[Image.Image, random.Random], Image.Image]
FILTERS: Final = {kind.name.lower(): kind for kind in Image.Resampling}


def jpeg(quality: int) -> Transform:
    """A round trip through JPEG."""

    def alter(image: Image.Image, draw: random.Random) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return alter


def down_up(factor: int, down: Image.Resampling, up: Image.Resampling | None = None) -> Transform:
    """Down-sizing by one filter, and back up by the same or another."""

    def alter(image: Image.Image, draw: random.Random) -> Image.Image:
        small = (max(1, image.width // factor), max(1, image.height // factor))
        return image.resize(small, down).resize(image.size, down if up is None else up)

    return alter


def down(side: int, kind: Image.Resampling) -> Transform:
    """A thumbnail."""

    def alter(image: Image.Image, draw: random.Random) -> Image.Image:
        scale = side / max(image.size)
        return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), kind)

    return alter


def up(factor: float, kind: Image.Resampling) -> Transform:
    """An enlargement."""
    return lambda image, draw: image.resize((round(image.width * factor), round(image.height * factor)), kind)


def crop(share: float) -> Transform:
    """Keeps this share of each side, somewhere."""

    def alter(image: Image.Image, draw: random.Random) -> Image.Image:
        wide, high = max(1, round(image.width * share)), max(1, round(image.height * share))
        left, top = draw.randint(0, image.width - wide), draw.randint(0, image.height - high)
        return image.crop((left, top, left + wide, top + high))

    return alter


def aspect(ratio: float) -> Transform:
    """Stretches the width against the height."""
    root = math.sqrt(ratio)
    return lambda image, draw: image.resize(
        (max(1, round(image.width * root)), max(1, round(image.height / root))),
        draw.choice([*FILTERS.values()]),
    )


def rotate(degrees: float) -> Transform:
    """Turns either way; the corners are black, white or the picture's own corner."""

    def alter(image: Image.Image, draw: random.Random) -> Image.Image:
        fill = draw.choice([(0, 0, 0), (255, 255, 255), image.getpixel((0, 0))])
        return image.rotate(draw.choice([-1, 1]) * degrees, Image.Resampling.BICUBIC, fillcolor=fill)

    return alter


def hsv(hue: float, change: float) -> Transform:
    """Turns the hue by up to a share of the circle, changes saturation and value by up to a share."""

    def alter(image: Image.Image, draw: random.Random) -> Image.Image:
        pixels = np.asarray(image.convert("HSV")).astype(np.float32)
        pixels[..., 0] = (pixels[..., 0] + draw.choice([-1, 1]) * hue * 255) % 256
        pixels[..., 1] *= 1 + draw.choice([-1, 1]) * change
        pixels[..., 2] *= 1 + draw.choice([-1, 1]) * change
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "HSV").convert("RGB")

    return alter


def tone(brightness: float, contrast: float) -> Transform:
    """Changes brightness and contrast."""
    return lambda image, draw: ImageEnhance.Contrast(
        ImageEnhance.Brightness(image).enhance(brightness)
    ).enhance(contrast)


def blur(radius: float) -> Transform:
    """A Gaussian blur."""
    return lambda image, draw: image.filter(ImageFilter.GaussianBlur(radius))


def noise(deviation: float) -> Transform:
    """Gaussian noise, each channel for itself."""

    def alter(image: Image.Image, draw: random.Random) -> Image.Image:
        grains = np.random.default_rng(draw.randrange(2**32)).normal(
            0, deviation, (image.height, image.width, 3)
        )
        return Image.fromarray((np.asarray(image) + grains).clip(0, 255).astype(np.uint8))

    return alter


def text(image: Image.Image, draw: random.Random) -> Image.Image:
    """Two lines of large lettering, as on memes."""
    image = image.copy()
    pen = ImageDraw.Draw(image)
    size = max(8, image.height // 8)
    for place in (0.04, 0.8):
        words = " ".join(
            draw.choice(["when", "you", "find", "the", "copy", "again", "WOW", "2021"]) for _ in range(4)
        )
        pen.text(
            (draw.uniform(0, 0.15) * image.width, place * image.height), words,
            fill="white", font=ImageFont.load_default(size), stroke_width=max(1, size // 10), stroke_fill="black",
        )  # fmt: skip
    return image


def border(share: float) -> Transform:
    """A frame of one colour."""

    def alter(image: Image.Image, draw: random.Random) -> Image.Image:
        colour = draw.choice([(0, 0, 0), (255, 255, 255), (128, 128, 128), (180, 30, 30)])
        return ImageOps.expand(image, max(1, round(share * min(image.size))), colour)

    return alter


def letterbox(image: Image.Image, draw: random.Random) -> Image.Image:
    """Pads to another shape with black or white."""
    ratio = draw.choice([16 / 9, 9 / 16, 4 / 3, 3 / 4])
    wide, high = max(image.width, round(image.height * ratio)), max(image.height, round(image.width / ratio))
    made = Image.new("RGB", (wide, high), draw.choice(["black", "white"]))
    made.paste(image, ((wide - image.width) // 2, (high - image.height) // 2))
    return made


def screenshot(image: Image.Image, draw: random.Random) -> Image.Image:
    """The picture on a page with a bar above, and something below."""
    margin, bar = round(0.08 * image.width), round(0.12 * image.height)
    size = (image.width + 2 * margin, image.height + 2 * bar + margin)
    made = Image.new("RGB", size, draw.choice([(255, 255, 255), (245, 246, 247), (24, 26, 27)]))
    pen = ImageDraw.Draw(made)
    pen.rectangle(
        (0, 0, size[0], bar - margin // 2), fill=draw.choice([(59, 89, 152), (220, 220, 220), (40, 40, 40)])
    )
    made.paste(image, (margin, bar))
    for line in range(2):
        top = bar + image.height + (line + 0.5) * bar / 2.5
        pen.rectangle(
            (margin, top, margin + draw.uniform(0.4, 0.9) * image.width, top + bar / 6), fill=(120, 120, 120)
        )
    return made


def chain(*steps: Transform) -> Transform:
    """One after another."""

    def alter(image: Image.Image, draw: random.Random) -> Image.Image:
        for step in steps:
            image = step(image, draw)
        return image

    return alter


_R = Image.Resampling
# The paper's own kinds at mild and middle strength.
PAPER: Final[dict[str, Transform]] = {
    **{f"jpeg_q{q}": jpeg(q) for q in (70, 50, 30, 20, 10)},
    **{f"downup2_{name}": down_up(2, kind) for name, kind in FILTERS.items()},
    **{f"downup4_{name}": down_up(4, FILTERS[name]) for name in ("nearest", "bilinear", "lanczos")},
    "downup8_nearest": down_up(8, _R.NEAREST),
    "downup8_bilinear": down_up(8, _R.BILINEAR),
    "down_nearest_up_lanczos": down_up(2, _R.NEAREST, _R.LANCZOS),
    "down_box_up_nearest": down_up(3, _R.BOX, _R.NEAREST),
    "thumb32": down(32, _R.BILINEAR),
    "thumb64_hamming": down(64, _R.HAMMING),
    "up_bicubic": up(1.7, _R.BICUBIC),
    **{f"crop{round(100 * share)}": crop(share) for share in (0.95, 0.9, 0.8, 0.65)},
    **{f"aspect{ratio}": aspect(ratio) for ratio in (0.7, 0.85, 1.18, 1.4)},
    **{f"rot{degrees}": rotate(degrees) for degrees in (1, 3, 5)},
    "hsv_mild": hsv(0.03, 0.15),
    "hsv_strong": hsv(0.08, 0.35),
    "tone": tone(1.2, 0.8),
    "blur1": blur(1.0),
    "noise8": noise(8),
    "combo_clip": chain(
        crop(0.85), aspect(1.15), rotate(2), hsv(0.02, 0.1), down_up(2, _R.BICUBIC), jpeg(50)
    ),
    "repost_mild": chain(down(160, _R.LANCZOS), jpeg(60), up(1.3, _R.BILINEAR), jpeg(50)),
}
# What the paper's detector was not trained for.
BEYOND: Final[dict[str, Transform]] = {
    "crop50": crop(0.5),
    "rot10": rotate(10),
    "blur4": blur(4.0),
    "noise25": noise(25),
    "grey": lambda image, draw: image.convert("L").convert("RGB"),
    "flip": lambda image, draw: ImageOps.mirror(image),
    "text": text,
    "border5": border(0.05),
    "border12": border(0.12),
    "letterbox": letterbox,
    "screenshot": screenshot,
    "repost_strong": chain(crop(0.85), text, down(120, _R.BILINEAR), hsv(0.03, 0.15), jpeg(25), border(0.04)),
}
TRANSFORMS: Final = {**PAPER, **BEYOND}
