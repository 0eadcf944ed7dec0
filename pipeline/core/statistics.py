"""The exact interval of a proportion, for scores and for the overlap report."""

from __future__ import annotations


def clopper_pearson(correct: int, total: int, *, confidence: float) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of a proportion, (low, high).

    Args:
        correct: Successes.
        total: Trials, at least 1.
        confidence: Level of the two-sided interval, between 0 and 1.

    Raises:
        ValueError: Impossible counts or confidence.
    """
    from scipy.stats import beta

    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"impossible counts: {correct} of {total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, is {confidence}")
    tail = (1 - confidence) / 2
    low = 0.0 if correct == 0 else float(beta.ppf(tail, correct, total - correct + 1))
    high = 1.0 if correct == total else float(beta.ppf(1 - tail, correct + 1, total - correct))
    return low, high
