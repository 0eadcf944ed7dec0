"""From a few labels to a threshold: which pair to ask about next, and precision and recall with intervals.

The chance that a pair is a copy rises with its similarity along a logistic curve of unknown place, with an unknown
width on either side (Platt's calibration with two slopes), less a share of pairs that are different however alike they
look. The posterior over a grid of such curves is exact. The next question is the one from whose answer most is expected
to be learnt about the curve (the psi method of psychophysics, Kontsevich and Tyler 1999): most questions fall where
same and different meet, some far below and above, to catch stray copies and unlike pairs that look alike. Which step is
asked about depends on similarities and earlier answers alone, and which of its pairs on a keyed hash, so the posterior
needs no weights for how pairs were chosen. What some fifty labels cannot show are rare copies scattered among very many
pairs far below: recall is of the copies that the fitted curve expects there.

Precision and recall of a threshold follow by drawing the labels of all pairs that nobody labelled from the posterior;
pairs with a label count as what they are. Intervals are quantiles of the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Distance of a similarity from 1 that still counts as a step: most copies and all hard pairs lie just below 1.
_NEAREST = 0.005
# Widths on either side of the meeting point: often copies thin out more slowly than look-alikes do.
_CENTRES, _WIDTHS = 90, (0.02, 0.05, 0.12, 0.28, 0.6)
# Shares of pairs that are different however high their similarity, and how far each is believed before any label.
_UNLIKE = ((0.0, 0.6), (0.01, 0.25), (0.04, 0.1), (0.15, 0.05))
# How far from the working threshold the meeting point is expected, and looked for below it, on the stretched scale.
_SPREAD, _REACH = 0.7, 2.5
# Recall that one point of missing precision is worth.
_PRECISION_FIRST = 20.0
# Share of the way from the wanted precision to 1 that is wanted on top: without it one simulated world in ten ends
# below the wanted precision, and more costs recall.
_ON_TOP = 0.1
# Curves times steps that are looked at for the next question.
_LOOKS = 1_500_000
DRAWS = 400
MAX_STEPS = 1200
CREDIBLE = 0.9


@dataclass(frozen=True, kw_only=True)
class Model:
    """The curves thought possible, over the similarities of one data set's pairs.

    Attributes:
        similarity: float64 [M], distinct and rising: the steps.
        count: int64 [M], pairs at each step.
        prior: float64 [G], belief in each curve before any label; sums to 1.
        chance: float32 [G, M], that a pair at a step is a copy, under each curve.
    """

    similarity: np.ndarray
    count: np.ndarray
    prior: np.ndarray
    chance: np.ndarray

    def place(self, similarity: np.ndarray) -> np.ndarray:
        """The step nearest to each similarity: int64 [N]."""
        return place(self.similarity, similarity)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a person has said so far.

    Attributes:
        step: int64 [L], step of each labelled pair.
        same: bool [L], whether it was a copy.
    """

    step: np.ndarray
    same: np.ndarray

    @classmethod
    def of(cls, step: Sequence[int], same: Sequence[bool]) -> Labels:
        """From plain lists."""
        return cls(step=np.array(step, np.int64), same=np.array(same, bool))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a threshold just below each step is worth, from the highest step down.

    Attributes:
        similarity: float64 [M], falling.
        threshold: float64 [M], half-way to the next lower step.
        found: int64 [M], pairs at or above it.
        precision: float64 [M, 3]: mean, lower and upper end of the interval.
        recall: float64 [M, 3], likewise; of all copies that are the nearest match of their evaluation picture.
        copies: Expected number of those copies.
    """

    similarity: np.ndarray
    threshold: np.ndarray
    found: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    copies: float


def stretch(similarity: np.ndarray) -> np.ndarray:
    """Similarities on a scale on which what lies just below 1 takes as much room as what lies far from it."""
    return -np.log(np.maximum(1 - similarity, 0) + _NEAREST)


def steps(similarity: np.ndarray) -> np.ndarray:
    """The distinct values of similarities, rising; of very many, values evenly spread on the stretched scale."""
    values = np.unique(np.round(similarity, 5))
    if len(values) > MAX_STEPS:
        z = stretch(values)
        grid = np.unique(np.round(z / (z[-1] - z[0]) * MAX_STEPS)) * (z[-1] - z[0]) / MAX_STEPS
        values = np.unique(np.round(1 + _NEAREST - np.exp(-grid), 6))
    return values


def place(steps: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """The step nearest to each similarity: int64 [N]."""
    return np.searchsorted((steps[1:] + steps[:-1]) / 2, similarity, side="right")


def model(similarity: np.ndarray, threshold: float) -> Model:
    """Lays out the curves.

    Args:
        similarity: float64 [N], N at least 1, of each evaluation picture's nearest training picture.
        threshold: The working threshold, around which same and different are expected to meet.
    """
    values = steps(similarity)
    count = np.bincount(place(values, similarity), minlength=len(values))
    z, start = stretch(values), float(stretch(np.array(threshold)))
    centres = np.linspace(
        max(min(z[0], start - 0.3), start - _REACH), max(z[-1], start + 0.3) + 0.1, _CENTRES
    )
    # Half a broad bell about the working threshold, half alike everywhere: a wrong start is soon forgotten.
    bell = np.exp(-(((centres - start) / _SPREAD) ** 2) / 2)
    by_centre = bell / bell.sum() / 2 + 0.5 / len(centres)
    below, above = (w.reshape(-1) for w in np.meshgrid(_WIDTHS, _WIDTHS))
    by_width = np.full(len(below), 1 / len(below))
    unlike, by_unlike = (np.array(column) for column in zip(*_UNLIKE, strict=True))
    away = z - centres[:, None, None]
    steepness = away / np.where(away < 0, below[:, None], above[:, None])
    rise = 1 / (1 + np.exp(-np.clip(steepness, -40, 40)))
    chance = (rise[:, :, None, :] * (1 - unlike)[:, None]).reshape(-1, len(z))
    prior = (by_centre[:, None, None] * by_width[:, None] * by_unlike).reshape(-1)
    return Model(
        similarity=values, count=count, prior=prior, chance=np.clip(chance, 1e-6, 1 - 1e-6).astype(np.float32)
    )


def posterior(made: Model, labels: Labels) -> np.ndarray:
    """Belief in each curve after some labels: float64 [G], sums to 1."""
    shown = made.chance[:, labels.step].astype(np.float64)
    log = np.log(made.prior) + np.log(np.where(labels.same, shown, 1 - shown)).sum(axis=1)
    weight = np.exp(log - log.max())
    return weight / weight.sum()


def information(made: Model, weight: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Bits that the label of a pair at some steps is expected to tell about the curve.

    Args:
        made: The curves.
        weight: float64 [G], belief in each.
        at: int64 [S], the steps.

    Returns:
        float64 [S].
    """
    # Curves out of question are left out: after a few labels they are nearly all.
    live = np.flatnonzero(weight > 1e-6)
    chance = made.chance[live][:, at]
    share = (weight[live] / weight[live].sum()).astype(np.float32)
    return (_entropy(share @ chance) - share @ _entropy(chance)).astype(np.float64)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def next_step(made: Model, labels: Labels, left: np.ndarray) -> int | None:
    """The step whose label tells most among those with pairs left, ties to the more alike; ``None`` if none is left.

    Args:
        made: The curves.
        labels: The labels so far.
        left: int64 [M], pairs at each step that can still be asked about.
    """
    at = np.flatnonzero(left > 0)
    if not len(at):
        return None
    weight = posterior(made, labels)
    # While many curves are possible any near step does as well: a share of them keeps the page quick.
    at = at[:: -max(1, int((weight > 1e-6).sum()) * len(at) // _LOOKS)]
    told = np.round(information(made, weight, at), 6)
    return int(at[np.argmax(told)])


def curve(made: Model, labels: Labels) -> Curve:
    """Precision and recall of every threshold, after some labels."""
    size = len(made.similarity)
    asked = np.bincount(labels.step, minlength=size)
    copies = np.bincount(labels.step[labels.same], minlength=size)
    draw = np.random.default_rng(0)
    chosen = draw.choice(len(made.prior), DRAWS, p=posterior(made, labels))
    drawn = draw.binomial(np.maximum(made.count - asked, 0), made.chance[chosen].astype(np.float64)) + copies
    true, found = np.cumsum(drawn[:, ::-1], axis=1), np.cumsum(made.count[::-1])
    lower = np.concatenate([made.similarity[:1] - 2e-4, made.similarity[:-1]])
    return Curve(
        similarity=made.similarity[::-1],
        threshold=((made.similarity + lower) / 2)[::-1],
        found=found,
        precision=_summary(true / found),
        recall=_summary(true / np.maximum(true[:, -1:], 1)),
        copies=float(true[:, -1].mean()),
    )


def _summary(draws: np.ndarray) -> np.ndarray:
    ends = np.quantile(draws, [(1 - CREDIBLE) / 2, (1 + CREDIBLE) / 2], axis=0)
    return np.stack([draws.mean(axis=0), *ends], axis=1)


def choose(found: Curve, precision: float) -> int | None:
    """The place of the best threshold, precision first, then recall [Section 5]; ``None`` if there are no copies.

    From a tenth of the way between the wanted precision and 1 on only recall counts: the tenth is a reserve for what
    is expected and not seen. Each point below that costs twenty points of recall and no more: where unlike pairs reach
    up to the highest similarities, no threshold would be right often enough.
    """
    if found.copies < 0.5:
        return None
    missing = np.maximum(precision + _ON_TOP * (1 - precision) - found.precision[:, 0], 0)
    score = found.recall[:, 0] - _PRECISION_FIRST * missing
    # Equal scores go to the higher threshold.
    return int(np.argmax(np.round(score, 6)))
