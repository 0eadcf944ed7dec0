"""Choosing the similarity from which on a pair counts as a copy, without labels.

Positives are held-out pictures against altered copies of themselves. There are two kinds of false alarms, and
held-out pictures measure both, because they are pictures that the training set does not hold:

- an evaluation picture resembles something in the training set that comes from elsewhere: the best match of a
  held-out picture among the pictures of *other* sources (sites) tells how often;
- a picture akin to it was copied (the next one of the same series, of which a copy is in the training set): for
  each akin picture as likely as any copy is. Pictures of a held-out picture's *own* source tell how many there are.

The threshold is the lowest one at which an audit is expected to be right often enough, or, where none is, the highest
that is allowed:

    alarms(t)    = share of best foreign matches >= t  +  prior * akin pictures >= t, per picture
    precision(t) = prior * recall(t) / (prior * recall(t) + (1 - prior) * alarms(t))

with ``prior`` the share of an evaluation set that is expected to be copied. The highest that is allowed leaves 60 %
(``least_recall``) of the altered copies at or above it: they are altered more than copies on the web are, and a
foreign match that is more alike than that is taken for a copy that nobody marked (the web is full of them), not for a
false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Share of the altered copies that every threshold leaves at or above it, unless said otherwise.
LEAST_RECALL = 0.6


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold and what is expected of it.

    Attributes:
        threshold: Similarity from which on a pair counts as a copy.
        recall: Share of altered copies at or above it.
        false_alarms: Expected share of pictures without a copy that have a match at or above it.
        precision: Expected precision of an audit at the prior.
        positives: Number of positives.
        negatives: Number of held-out pictures whose best foreign match counted.
        unmarked_copies: Foreign matches that were taken for copies.
    """

    threshold: float
    recall: float
    false_alarms: float
    precision: float
    positives: int
    negatives: int
    unmarked_copies: int


def choose_threshold(
    positives: np.ndarray,
    foreign: np.ndarray,
    akin: np.ndarray,
    *,
    prior: float,
    precision: float,
    least_recall: float = LEAST_RECALL,
) -> Calibration:
    """The lowest threshold whose expected precision is high enough, or the highest allowed if none is.

    Args:
        positives: Similarities of pictures to altered copies of themselves.
        foreign: Similarity of each picture to its best match among pictures of other sources.
        akin: Similarities of all pairs of those pictures with others of their own source.
        prior: Expected share of copied pictures, between 0 and 1.
        precision: Wanted precision, between 0 and 1.
        least_recall: Share of the altered copies that the threshold leaves at or above it.
    """
    if not len(positives) or not len(foreign):
        raise ValueError("calibration needs at least one positive and one negative")
    highest = float(np.quantile(positives, 1 - least_recall, method="lower"))
    negatives = foreign[foreign < highest]
    steps = np.unique(np.round(np.concatenate([positives, negatives]).astype(np.float64), 4))
    steps = steps[steps <= max(highest + 5e-5, steps[0])]
    recall = _share_above(positives, steps, len(positives))
    # One half is added: that none was seen does not mean that there is none.
    alarms = _share_above(negatives, steps, len(negatives) + 1) + 0.5 / (len(negatives) + 1)
    alarms = np.minimum(1, alarms + prior * _share_above(akin, steps, len(foreign)))
    expected = prior * recall / (prior * recall + (1 - prior) * alarms)
    enough = np.flatnonzero(expected >= precision)
    place = int(enough[0]) if len(enough) else len(steps) - 1
    return Calibration(
        threshold=round(float(steps[place]), 4),
        recall=float(recall[place]),
        false_alarms=float(alarms[place]),
        precision=float(expected[place]),
        positives=len(positives),
        negatives=len(negatives),
        unmarked_copies=len(foreign) - len(negatives),
    )


def _share_above(values: np.ndarray, steps: np.ndarray, total: int) -> np.ndarray:
    # Steps are rounded: half a unit of the last place keeps the value that a step came from.
    return (len(values) - np.searchsorted(np.sort(values), steps - 5e-5, side="left")) / total
