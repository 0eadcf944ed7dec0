"""What makes an overlap look like something it is not [Section 5 names some cases].

Blank frames resemble one another whatever they come from (Kinetics-700's black transition frames), tiny pictures are
alike for want of detail (CIFAR-100), and an overlap of other classes than the rest of the set is easier or harder for
that reason alone. Each is counted, and the result is told again without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

# Standard deviation of the grey levels (of 255) below which a picture shows next to nothing.
NEAR_UNIFORM_LEVELS = 6.0
# Shortest side in pixels up to which a picture is tiny.
TINY_PX = 32
PERMUTATIONS = 2000
LISTED_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of some evaluation pictures beside their embeddings.

    Attributes:
        labels: Class of each, ``None`` where it is not known.
        shortest: float64 [N], shortest side in pixels; NaN where it is not known.
        spread: float64 [N], standard deviation of the grey levels; NaN where it is not known.
    """

    labels: tuple[str | None, ...]
    shortest: np.ndarray
    spread: np.ndarray

    def take(self, rows: Sequence[int]) -> Facts:
        """The facts of some pictures."""
        return Facts(
            labels=tuple(self.labels[i] for i in rows),
            shortest=self.shortest[list(rows)],
            spread=self.spread[list(rows)],
        )


def spread(image: Image.Image) -> float:
    """Standard deviation of a picture's grey levels, of 255, at 32 by 32 pixels."""
    small = image.resize((32, 32), Image.Resampling.BOX, reducing_gap=2.0)
    return float(np.asarray(small.convert("L"), np.float64).std())


def flagged(facts: Facts) -> dict[str, np.ndarray]:
    """Which pictures carry each flag: bool [N]; what is not known is not flagged."""
    return {"near-uniform": facts.spread < NEAR_UNIFORM_LEVELS, "tiny": facts.shortest <= TINY_PX}


def class_shift(
    labels: Sequence[str | None], overlap: np.ndarray, correct: np.ndarray | None
) -> dict[str, Any] | None:
    """How the classes of Overlap differ from those of Clean, and what Clean's accuracy would be with Overlap's classes.

    Args:
        labels: Class of each picture.
        overlap: bool [N], whether it is in Overlap.
        correct: bool [N], whether it was answered rightly; ``None`` without predictions.

    Returns:
        ``distance`` (total variation, 0 to 1), ``expected_distance`` and ``p_value`` under random overlap
        (permutation test), ``single_class`` (Overlap's only class), ``largest`` (classes that differ most) and
        ``acc_clean_reweighted`` with the number of Overlap's pictures it covers; ``None`` where a part is empty,
        classes are not known, or each has one picture only.
    """
    if None in labels or not overlap.any() or overlap.all():
        return None
    names, of = np.unique(np.array(labels, dtype=object).astype(str), return_inverse=True)
    total = np.bincount(of, minlength=len(names))
    if total.max() < 2:
        return None
    inside = np.bincount(of[overlap], minlength=len(names))
    outside = total - inside
    shares, others = inside / inside.sum(), outside / outside.sum()
    distance = float(np.abs(shares - others).sum() / 2)
    # Which pictures leak by chance: the classes of as many pictures, drawn without replacement.
    drawn = np.random.default_rng(0).multivariate_hypergeometric(total, int(inside.sum()), PERMUTATIONS)
    by_chance = np.abs(drawn / inside.sum() - (total - drawn) / outside.sum()).sum(axis=1) / 2
    order = sorted(range(len(names)), key=lambda i: (-abs(shares[i] - others[i]), names[i]))
    made: dict[str, Any] = {
        "classes": len(names),
        "classes_overlap": int((inside > 0).sum()),
        "single_class": str(names[inside > 0][0]) if (inside > 0).sum() == 1 else None,
        "distance": distance,
        "expected_distance": float(by_chance.mean()),
        "p_value": float((1 + (by_chance >= distance - 1e-12).sum()) / (1 + PERMUTATIONS)),
        "largest": [
            {"label": str(names[i]), "n_overlap": int(inside[i]), "n_clean": int(outside[i])}
            for i in order[:LISTED_CLASSES]
        ],
        "acc_clean_reweighted": None,
        "n_reweighted": None,
    }
    if correct is not None:
        right = np.bincount(of[~overlap & correct], minlength=len(names))
        seen = (outside > 0) & (inside > 0)
        if seen.any():
            weight = inside[seen] / inside[seen].sum()
            made["acc_clean_reweighted"] = float((weight * right[seen] / outside[seen]).sum())
            made["n_reweighted"] = int(inside[seen].sum())
    return made


def counted(flags: Mapping[str, np.ndarray], overlap: np.ndarray) -> dict[str, dict[str, int]]:
    """How many pictures of each part carry each flag."""
    return {
        name: {"n_overlap": int((mask & overlap).sum()), "n_clean": int((mask & ~overlap).sum())}
        for name, mask in flags.items()
    }
