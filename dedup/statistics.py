"""The overlap analysis's statistics [Section 5]: one-tailed binomial test, Clopper-Pearson, Bonferroni.

All tests are on counts of right and wrong answers; a metric that is not one (AUROC, mAP, mean per class) has no
binomial test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.core.statistics import clopper_pearson


def binomial_p(correct: int, total: int, null: float) -> float:
    """P(X >= correct) for X ~ Binomial(total, null): how likely a result this good is without a gain.

    Args:
        correct: Right answers.
        total: Answers, at least 1.
        null: Accuracy under the null hypothesis.
    """
    from scipy.stats import binom

    _check(correct, total)
    if not 0 <= null <= 1:
        raise ValueError(f"null must lie in [0, 1], is {null}")
    return float(binom.sf(correct - 1, total, null))


def fisher_p(overlap: tuple[int, int], clean: tuple[int, int]) -> float:
    """One-tailed Fisher test that Overlap is more often right than Clean.

    The binomial test takes Clean's accuracy as known exactly; this one does not.

    Args:
        overlap: (right answers, answers) on Overlap.
        clean: (right answers, answers) on Clean.
    """
    from scipy.stats import hypergeom

    _check(*overlap)
    _check(*clean)
    right, total = overlap[0] + clean[0], overlap[1] + clean[1]
    return float(hypergeom.sf(overlap[0] - 1, total, right, overlap[1]))


def detectable_gain(total: int, null: float, alpha: float, power: float = 0.8) -> float | None:
    """The smallest gain over ``null`` that the binomial test would find with the given power.

    Returns:
        The gain as a fraction of 1, or ``None`` if even a perfect accuracy would not be found.
    """
    from scipy.stats import binom

    _check(0, total)
    needed = int(binom.isf(alpha, total, null)) + 1  # smallest count with P(X >= count) <= alpha
    if needed > total:
        return None
    low, high = null, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if binom.sf(needed - 1, total, middle) >= power else (middle, high)
    return high - null


def _check(correct: int, total: int) -> None:
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(
            f"counts must satisfy 0 <= correct <= total and total >= 1, are {correct} of {total}"
        )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Right answers on the two parts of an evaluation set.

    Attributes:
        n_overlap: Pictures at or above the threshold.
        n_clean: Pictures below it.
        correct_overlap: Right answers among the first; ``None`` without predictions.
        correct_clean: Right answers among the second; ``None`` without predictions.
    """

    n_overlap: int
    n_clean: int
    correct_overlap: int | None = None
    correct_clean: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an audit says of one evaluation set; a value that the counts leave undefined is ``None``.

    Attributes:
        n_all: Pictures.
        n_overlap: Pictures at or above the threshold.
        n_clean: Pictures below it.
        contamination: n_overlap / n_all.
        acc_all: Accuracy on All.
        acc_overlap: Accuracy on Overlap.
        acc_clean: Accuracy on Clean.
        all_minus_clean: What the overlap adds to the accuracy: the paper's main figure.
        overlap_minus_clean: Difference of the two parts.
        p_value: One-tailed binomial p of Overlap with Clean's accuracy as null.
        fisher_p: The same question with Clean's accuracy as uncertain as it is.
        significant: p_value below alpha.
        significant_bonferroni: p_value below alpha over the number of data sets.
        ci_low: Lower end of Overlap's Clopper-Pearson interval.
        ci_high: Its upper end.
        detectable_gain: Smallest gain on Overlap that the corrected test would find with 80 % power.
    """

    n_all: int
    n_overlap: int
    n_clean: int
    contamination: float | None
    acc_all: float | None = None
    acc_overlap: float | None = None
    acc_clean: float | None = None
    all_minus_clean: float | None = None
    overlap_minus_clean: float | None = None
    p_value: float | None = None
    fisher_p: float | None = None
    significant: bool | None = None
    significant_bonferroni: bool | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    detectable_gain: float | None = None


def outcome(counts: Counts, *, alpha: float, confidence: float) -> Outcome:
    """Accuracies and tests of one evaluation set, before the correction for several.

    Without overlap its accuracy, interval and p are undefined; without a clean part there is no null to test.
    """
    n_all = counts.n_overlap + counts.n_clean
    made = Outcome(
        n_all=n_all,
        n_overlap=counts.n_overlap,
        n_clean=counts.n_clean,
        contamination=counts.n_overlap / n_all if n_all else None,
    )
    over, clean = counts.correct_overlap, counts.correct_clean
    if over is None or clean is None or not n_all:
        return made
    acc_all = (over + clean) / n_all
    made = replace(made, acc_all=acc_all)
    if counts.n_overlap:
        low, high = clopper_pearson(over, counts.n_overlap, confidence=confidence)
        made = replace(made, acc_overlap=over / counts.n_overlap, ci_low=low, ci_high=high)
    if counts.n_clean:
        null = clean / counts.n_clean
        made = replace(made, acc_clean=null, all_minus_clean=acc_all - null)
    if counts.n_overlap and counts.n_clean:
        p = binomial_p(over, counts.n_overlap, null)
        made = replace(
            made,
            overlap_minus_clean=over / counts.n_overlap - null,
            p_value=p,
            fisher_p=fisher_p((over, counts.n_overlap), (clean, counts.n_clean)),
            significant=p < alpha,
        )
    return made


def corrected(outcomes: Sequence[Outcome], *, alpha: float, tested_only: bool) -> list[Outcome]:
    """Adds Bonferroni's correction over some evaluation sets, and the gain it could still find.

    Args:
        outcomes: One of each evaluation set.
        alpha: Level before correction.
        tested_only: Count only sets that could be tested; else all.
    """
    family = bonferroni_family(outcomes, tested_only=tested_only)
    made = []
    for one in outcomes:
        if one.p_value is None or one.acc_clean is None:
            made.append(one)
            continue
        made.append(
            replace(
                one,
                significant_bonferroni=one.p_value < alpha / family,
                detectable_gain=detectable_gain(one.n_overlap, one.acc_clean, alpha / family),
            )
        )
    return made


def bonferroni_family(outcomes: Sequence[Outcome], *, tested_only: bool) -> int:
    """The number of data sets that the correction counts, at least 1."""
    return max(1, sum(one.p_value is not None for one in outcomes) if tested_only else len(outcomes))
