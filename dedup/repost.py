"""What sharing does to pictures beyond the paper's list: mirrored, grey, blurred, grainy, lettered, framed, on a page.

Switched on by ``AugmentConfig.beyond``; :func:`dedup.augment.augment` calls :func:`repost` before it compresses.
"""

from __future__ import annotations

import functools
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

MAX_BLUR, MAX_GRAIN = 0.025, 28.0
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!?.,#@"
Colour = tuple[int, int, int]


def repost(image: Image.Image, chance: float, draw: random.Random) -> Image.Image:
    """Takes each step with some chance; mirroring, the least usual, with a third of it.

    Args:
        image: RGB.
        chance: Of each step.
        draw: Source of chance.
    """
    if draw.random() < chance / 3:
        image = ImageOps.mirror(image)
    if draw.random() < chance:
        image = image.convert("L").convert("RGB")
    if draw.random() < chance:
        image = image.filter(ImageFilter.GaussianBlur(MAX_BLUR * draw.random() * min(image.size)))
    if draw.random() < chance:
        image = grain(image, MAX_GRAIN * draw.random(), draw.getrandbits(32))
    if draw.random() < chance:
        image = letter(image, draw)
    if draw.random() < chance:
        image = frame(image, draw)
    elif draw.random() < chance / 2:
        image = on_page(image, draw)
    return image


def grain(image: Image.Image, deviation: float, seed: int) -> Image.Image:
    """Adds Gaussian noise of some standard deviation in levels."""
    noise = np.random.default_rng(seed).standard_normal((image.height, image.width, 3), np.float32)
    return Image.fromarray((np.asarray(image) + deviation * noise).clip(0, 255).astype(np.uint8))


def letter(image: Image.Image, draw: random.Random) -> Image.Image:
    """Writes one to three lines, or lays a small mark into a corner."""
    image = image.copy()
    pen = ImageDraw.Draw(image)
    if draw.random() < 0.3:
        wide, high = (max(2, int(side * draw.uniform(0.1, 0.3))) for side in image.size)
        left = draw.choice([0, image.width - wide])
        top = draw.choice([0, image.height - high])
        shape = draw.choice([pen.rectangle, pen.ellipse])
        shape((left, top, left + wide, top + high), fill=colour(draw))
        return image
    size = max(7, int(image.height * draw.uniform(0.05, 0.17)))
    for _ in range(draw.randint(1, 3)):
        words = "".join(draw.choice(_LETTERS) for _ in range(draw.randint(3, 16)))
        place = (draw.uniform(-0.05, 0.6) * image.width, draw.uniform(0, 0.9) * image.height)
        ink = draw.choice([(255, 255, 255), (0, 0, 0), colour(draw)])
        outline = (0, 0, 0) if sum(ink) > 380 else (255, 255, 255)
        stroke = draw.choice([0, max(1, size // 10)])
        pen.text(place, words, fill=ink, font=_font(size), stroke_width=stroke, stroke_fill=outline)
    return image


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def colour(draw: random.Random) -> Colour:
    """Any colour."""
    return draw.randrange(256), draw.randrange(256), draw.randrange(256)


def frame(image: Image.Image, draw: random.Random) -> Image.Image:
    """Pads all sides alike, or two opposite ones."""
    ground = draw.choice([(0, 0, 0), (255, 255, 255), colour(draw)])
    share = draw.uniform(0.02, 0.18)
    wide = high = max(1, round(share * min(image.size)))
    kind = draw.random()
    if kind < 0.25:
        wide, high = round(1.6 * share * image.width), 0
    elif kind < 0.5:
        wide, high = 0, round(1.6 * share * image.height)
    return ImageOps.expand(image, (wide, high, wide, high), ground)


def on_page(image: Image.Image, draw: random.Random) -> Image.Image:
    """A screenshot: margins, a bar above, lines of text below."""
    margin = round(draw.uniform(0, 0.12) * image.width)
    above, below = (round(draw.uniform(0.03, 0.2) * image.height) for _ in range(2))
    ground = draw.choice([(255, 255, 255), (245, 245, 245), (20, 22, 24), colour(draw)])
    made = Image.new("RGB", (image.width + 2 * margin, image.height + above + below), ground)
    pen = ImageDraw.Draw(made)
    pen.rectangle((0, 0, made.width, above * draw.uniform(0.3, 0.9)), fill=colour(draw))
    made.paste(image, (margin, above))
    ink = colour(draw)
    for line in range(draw.randint(0, 3)):
        top = above + image.height + below * (0.2 + 0.25 * line)
        right = margin + draw.uniform(0.3, 1) * image.width
        pen.rectangle((margin, top, right, top + below * 0.12), fill=ink)
    return made
