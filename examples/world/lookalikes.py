"""Finds evaluation pictures that another designer drew nearly alike: nobody can say whether they are copies."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterator, Mapping

from PIL import Image

from examples.world.make_files import flatten
from examples.world.sources import EVALUATION_DESIGNER, WEB_DESIGNERS

LOOKALIKE_COLUMNS = ("eval_id", "like", "distance")
SIDE = 24
# Root mean square difference of the colours, of 1, laid on white at SIDE pixels.
LIKE = 0.08


def thumbnails(body: bytes) -> tuple[bytes, bytes]:
    """A picture's colours at a small size: as it is, and without its transparent margin."""
    picture = Image.open(io.BytesIO(body)).convert("RGBA")
    whole = flatten(body)
    inner = whole.crop(picture.getchannel("A").getbbox())
    first, second = (x.resize((SIDE, SIDE), Image.Resampling.BILINEAR).tobytes() for x in (whole, inner))
    return first, second


def distance(one: bytes, other: bytes) -> float:
    """Root mean square difference of two thumbnails."""
    total = sum((a - b) * (a - b) for a, b in zip(one, other, strict=True))
    return math.sqrt(total / len(one)) / 255


def find_lookalikes(
    pictures: Mapping[str, Mapping[str, bytes]], leaked: Collection[str]
) -> Iterator[tuple[str, str, str]]:
    """Evaluation pictures like a web picture of the same concept, but those that leaked: of them the truth is known."""
    for name, body in sorted(pictures[EVALUATION_DESIGNER].items()):
        if name in leaked:
            continue
        mine = thumbnails(body)
        for designer in WEB_DESIGNERS:
            if name in pictures[designer]:
                theirs = thumbnails(pictures[designer][name])
                apart = min(distance(a, b) for a, b in zip(mine, theirs, strict=True))
                if apart < LIKE:
                    yield f"{name}/{name}.webp", f"{designer}/{name}", f"{apart:.3f}"
