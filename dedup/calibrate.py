"""Choosing the similarity from which on a pair counts as a copy, without labels.

Positives are held-out pictures against altered copies of themselves. Negatives are held-out pictures' best match
among all *other* pictures of the training set: what an evaluation picture that was never copied would meet. The
threshold is the lowest one at which an audit is expected to be right often enough:

    precision(t) = prior * recall(t) / (prior * recall(t) + (1 - prior) * false_alarms(t))

with ``prior`` the share of an evaluation set that is expected to be copied (the paper's mean is 3.2 %).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold and what is expected of it.

    Attributes:
        threshold: Similarity from which on a pair counts as a copy.
        recall: Share of altered copies at or above it.
        false_alarms: Share of pictures without a copy whose best match is at or above it.
        precision: Expected precision of an audit at the prior.
        positives: Number of positives.
        negatives: Number of negatives.
    """

    threshold: float
    recall: float
    false_alarms: float
    precision: float
    positives: int
    negatives: int


def choose_threshold(
    positives: np.ndarray, negatives: np.ndarray, *, prior: float, precision: float
) -> Calibration:
    """The lowest threshold whose expected precision is high enough, or the most precise one if none is.

    Args:
        positives: Similarities of pictures to altered copies of themselves.
        negatives: Similarities of pictures to their best match among others.
        prior: Expected share of copied pictures, between 0 and 1.
        precision: Wanted precision, between 0 and 1.
    """
    if not len(positives) or not len(negatives):
        raise ValueError("calibration needs at least one positive and one negative")
    steps = np.unique(np.round(np.concatenate([positives, negatives]).astype(np.float64), 4))
    up, down = np.sort(positives), np.sort(negatives)
    recall = 1 - np.searchsorted(up, steps - 5e-5, side="left") / len(up)
    # One half is added: that none was seen does not mean that there is none.
    alarms = len(down) - np.searchsorted(down, steps - 5e-5, side="left")
    rate = (alarms + 0.5) / (len(down) + 1)
    expected = prior * recall / (prior * recall + (1 - prior) * rate)
    enough = np.flatnonzero(expected >= precision)
    place = int(enough[0]) if len(enough) else int(np.argmax(expected))
    return Calibration(
        threshold=round(float(steps[place]), 4),
        recall=float(recall[place]),
        false_alarms=float(alarms[place] / len(down)),
        precision=float(expected[place]),
        positives=len(positives),
        negatives=len(negatives),
    )
