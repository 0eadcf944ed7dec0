"""Scores of classifications and their 95% intervals (the paper's Table 9 names a metric for each dataset).

Accuracies have exact Clopper-Pearson intervals. Means over classes, and mean(top1, top5), have Jeffreys intervals:
quantiles of draws from the posterior of the counts, with a fixed seed. ROC AUC has DeLong's, mAP the bootstrap's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.core.statistics import clopper_pearson

INTERVAL = 0.95  # confidence of the scores' intervals
TOP = 5
DRAWS = 2_000
RESAMPLES = 200
_TAILS = ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2)
Interval = tuple[float, float]


def accuracy(correct: int, total: int) -> tuple[float, Interval]:
    """A share and its exact interval."""
    return correct / total, clopper_pearson(correct, total, confidence=INTERVAL)


def mean_per_class(correct: np.ndarray, labels: np.ndarray) -> tuple[float, Interval]:
    """The mean of the classes' accuracies, over the classes that occur: bool [N], int [N]."""
    counts = np.bincount(labels)
    hits = np.bincount(labels, weights=correct, minlength=len(counts))
    hits, counts = hits[counts > 0], counts[counts > 0]
    draws = np.random.default_rng(0).beta(hits + 0.5, counts - hits + 0.5, (DRAWS, len(counts))).mean(axis=1)
    return float((hits / counts).mean()), _around(float((hits / counts).mean()), draws)


def mean_top1_top5(ranks: np.ndarray) -> tuple[float, Interval]:
    """The mean of top-1 and top-5 accuracy (Kinetics700): ranks of the true classes from 1, [N]."""
    first, next_ones = int((ranks == 1).sum()), int(((ranks > 1) & (ranks <= TOP)).sum())
    counts = np.array([first, next_ones, len(ranks) - first - next_ones])
    shares = np.random.default_rng(0).dirichlet(counts + 0.5, DRAWS)
    value = (first + 0.5 * next_ones) / len(ranks)
    return value, _around(value, shares[:, 0] + 0.5 * shares[:, 1])


def _around(value: float, draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, _TAILS)
    return min(value, float(low)), max(value, float(high))


def average_precision_11(scores: np.ndarray, positive: np.ndarray) -> float:
    """VOC 2007's: the mean over recalls 0, 0.1, … 1 of the best precision at that recall or above; [N], bool [N]."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    if not len(hits) or not hits[-1]:
        return float("nan")
    recall, precision = hits / hits[-1], hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, np.linspace(0, 1, 11) - 1e-12)
    return float(best[np.minimum(first, len(best) - 1)].mean())


def map_11(scores: np.ndarray, positive: np.ndarray) -> tuple[float, Interval]:
    """The mean over classes of the 11-point average precision: [N, C], bool [N, C]."""
    value = _mean_ap(scores, positive)
    draw = np.random.default_rng(0)
    resampled = [
        _mean_ap(scores[chosen], positive[chosen])
        for chosen in (draw.integers(0, len(scores), len(scores)) for _ in range(RESAMPLES))
    ]
    return value, _around(value, np.array(resampled))


def _mean_ap(scores: np.ndarray, positive: np.ndarray) -> float:
    found = [average_precision_11(scores[:, c], positive[:, c]) for c in range(scores.shape[1])]
    return float(np.nanmean(found)) if not np.isnan(found).all() else 0.0


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> tuple[float, Interval]:
    """The area under the ROC curve, ties counted half: [N], bool [N]; DeLong's interval on the logit scale.

    Raises:
        ValueError: Only one class occurs.
    """
    from scipy.special import expit, logit
    from scipy.stats import norm, rankdata

    ones, zeros = scores[positive], scores[~positive]
    if not len(ones) or not len(zeros):
        raise ValueError("ROC AUC needs images of both classes")
    together = rankdata(np.concatenate([ones, zeros]))
    m, n = len(ones), len(zeros)
    over_ones = (together[:m] - rankdata(ones)) / n
    over_zeros = 1 - (together[m:] - rankdata(zeros)) / m
    value = float(over_ones.mean())
    spread = 0.0
    for part in (over_ones, over_zeros):
        spread += float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.0
    inner = min(max(value, 0.5 / (m * n)), 1 - 0.5 / (m * n))
    width = norm.ppf(_TAILS[1]) * max(spread, 0.25 / (m * n)) ** 0.5 / (inner * (1 - inner))
    return value, (
        min(value, float(expit(logit(inner) - width))),
        max(value, float(expit(logit(inner) + width))),
    )


METRICS: dict[str, str] = {
    "accuracy": "top1",
    "mean-per-class": "mean_per_class",
    "11-point-map": "map_11",
    "roc-auc": "roc_auc",
    "mean-top1-top5": "mean_top1_top5",
}
Scored = tuple[float, Interval]


def score_all(
    ranks: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    probabilities: np.ndarray | None = None,
    several: np.ndarray | None = None,
    metric: str = "accuracy",
) -> dict[str, Scored]:
    """Every score that the predictions allow, by the names of ``scores.json``.

    Args:
        ranks: Rank of each image's true class, from 1.
        labels: True class numbers.
        classes: How many classes there are.
        probabilities: [N, C], for ROC AUC (of the second of two classes) and mAP.
        several: bool [N, C], where images may have several classes.
        metric: The dataset's own, one of :data:`METRICS`.
    """
    n = len(ranks)
    found: dict[str, Scored] = {
        "top1": accuracy(int((ranks == 1).sum()), n),
        "top5": accuracy(int((ranks <= TOP).sum()), n),
        "mean_per_class": mean_per_class(ranks == 1, labels),
    }
    if metric == "mean-top1-top5":
        found["mean_top1_top5"] = mean_top1_top5(ranks)
    more: dict[str, Callable[[], Scored]] = {}
    if probabilities is not None and several is not None:
        more["map_11"] = lambda: map_11(probabilities, several)
    elif probabilities is not None and classes == 2 and 0 < labels.sum() < n:
        more["roc_auc"] = lambda: roc_auc(probabilities[:, 1], labels == 1)
    return {**found, **{name: make() for name, make in more.items()}}
