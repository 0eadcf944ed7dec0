"""Finds drawings that are alike by nature, so that a check of the overlap audit can leave them aside."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from PIL import Image

from examples.world.make_files import flatten
from examples.world.sources import EVALUATION_DESIGNER, WEB_DESIGNERS

LOOKALIKE_COLUMNS = ("eval_id", "like", "distance")
SIDE = 24
# Root mean square difference of the colours, of 1, laid on white at SIDE pixels.
LIKE = 0.10


def thumbnail(body: bytes, side: int) -> bytes:
    """A picture's colours at a small size."""
    return flatten(body).resize((side, side), Image.Resampling.BILINEAR).tobytes()


def distance(one: bytes, other: bytes) -> float:
    """Root mean square difference of two thumbnails."""
    total = sum((a - b) * (a - b) for a, b in zip(one, other, strict=True))
    return math.sqrt(total / len(one)) / 255


def find_lookalikes(
    pictures: Mapping[str, Mapping[str, bytes]], leaked: Collection[str]
) -> Iterator[tuple[str, str, str]]:
    """Evaluation pictures like a web picture of the same concept, or like a leaked evaluation picture."""
    evaluation = {name: thumbnail(body, SIDE) for name, body in pictures[EVALUATION_DESIGNER].items()}
    # A coarse look first: the fine one is dear for every pair.
    coarse = {name: thumbnail(body, 6) for name, body in pictures[EVALUATION_DESIGNER].items()}
    for name, mine in sorted(evaluation.items()):
        eval_id = f"{name}/{name}.webp"
        for designer in WEB_DESIGNERS:
            if name in pictures[designer]:
                apart = distance(mine, thumbnail(pictures[designer][name], SIDE))
                if apart < LIKE:
                    yield eval_id, f"{designer}/{name}", f"{apart:.3f}"
        for other in sorted(leaked):
            if other != name and distance(coarse[name], coarse[other]) < LIKE:
                apart = distance(mine, evaluation[other])
                if apart < LIKE:
                    yield eval_id, f"{EVALUATION_DESIGNER}/{other}", f"{apart:.3f}"
