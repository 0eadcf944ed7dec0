"""Pictures of any kind as plain RGB: one rule for what is fetched, embedded, trained on and evaluated."""

from __future__ import annotations

import numpy as np
from PIL import Image

_STRIP = 256  # rows


def opaque(image: Image.Image) -> Image.Image:
    """The first frame as 8-bit L, RGB or CMYK; what is transparent shows white."""
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits at 255: nearly all of a picture turns white.
        values = np.asarray(image)
        made = np.empty(values.shape, dtype=np.uint8)
        for top in range(0, len(values), _STRIP):  # floats of a whole large picture would be 400 MB
            made[top : top + _STRIP] = np.clip(np.rint(values[top : top + _STRIP] / 257.0), 0, 255)
        return Image.fromarray(made)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def over_white(image: Image.Image) -> Image.Image:
    """The first frame as RGB; what is transparent shows white.

    Decodes at once, so that a damaged picture fails here and not wherever its pixels are first touched.

    Raises:
        OSError: Damaged or truncated; Pillow's decoders may raise others.
    """
    image.load()
    picture = opaque(image)
    return picture if picture.mode == "RGB" else picture.convert("RGB")
