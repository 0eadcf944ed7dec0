from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedup.statistics import (
    Counts,
    Outcome,
    binomial_p,
    bonferroni_family,
    corrected,
    detectable_gain,
    fisher_p,
    outcome,
)
from pipeline.core.statistics import clopper_pearson

KNOWN = [
    (60, 100, 0.5, 0.028444, 0.454989, 0.733607),
    (0, 10, 0.3, 1.0, 0.0, 0.450720),
    (10, 10, 0.3, 5.9049e-06, 0.549280, 1.0),
    (210, 295, 0.66, 0.0331754, 0.632578, 0.782952),
    (1530, 4536, 0.329, 0.120295, 0.317697, 0.357310),
    (7, 20, 0.35, 0.583375, 0.100811, 0.679673),
    (400, 700, 0.72, 1.0, 0.517802, 0.623898),
]


@pytest.mark.parametrize(("correct", "total", "null", "p", "low", "high"), KNOWN)
def test_known_values(correct: int, total: int, null: float, p: float, low: float, high: float) -> None:
    assert binomial_p(correct, total, null) == pytest.approx(p, rel=2e-5)
    assert clopper_pearson(correct, total, confidence=0.995) == pytest.approx((low, high), abs=1e-6)


@given(total=st.integers(1, 300), share=st.floats(0, 1), null=st.floats(0, 1))
def test_agrees_with_scipy(total: int, share: float, null: float) -> None:
    from scipy.stats import binomtest

    correct = round(total * share)
    test = binomtest(correct, total, null, alternative="greater")
    assert binomial_p(correct, total, null) == pytest.approx(test.pvalue, abs=1e-9)
    interval = binomtest(correct, total).proportion_ci(0.995, method="exact")
    assert clopper_pearson(correct, total, confidence=0.995) == pytest.approx(
        (interval.low, interval.high), abs=1e-9
    )


def test_fisher_agrees_with_scipy() -> None:
    from scipy.stats import fisher_exact

    expected = fisher_exact([[30, 10], [50, 60]], alternative="greater").pvalue
    assert fisher_p((30, 40), (50, 110)) == pytest.approx(expected, rel=1e-9)


@given(
    n_overlap=st.integers(0, 200), n_clean=st.integers(0, 200), over=st.floats(0, 1), clean=st.floats(0, 1)
)
def test_all_minus_clean_is_contamination_times_difference(
    n_overlap: int, n_clean: int, over: float, clean: float
) -> None:
    counts = Counts(
        n_overlap=n_overlap,
        n_clean=n_clean,
        correct_overlap=round(over * n_overlap),
        correct_clean=round(clean * n_clean),
    )
    made = outcome(counts, alpha=0.05, confidence=0.995)
    if made.overlap_minus_clean is None:
        assert not n_overlap or not n_clean
        return
    assert made.contamination is not None
    assert made.all_minus_clean == pytest.approx(made.contamination * made.overlap_minus_clean, abs=1e-12)


def _outcome(n_overlap: int, n_clean: int, over: int | None, clean: int | None) -> Outcome:
    counts = Counts(n_overlap=n_overlap, n_clean=n_clean, correct_overlap=over, correct_clean=clean)
    return outcome(counts, alpha=0.05, confidence=0.995)


def test_no_overlap_leaves_its_figures_empty() -> None:
    made = _outcome(0, 10, 0, 4)
    assert (made.acc_overlap, made.p_value, made.ci_low, made.significant) == (None, None, None, None)
    assert (made.contamination, made.acc_all, made.all_minus_clean) == (0.0, 0.4, 0.0)


def test_all_overlap_leaves_clean_empty_and_tests_nothing() -> None:
    made = _outcome(10, 0, 4, 0)
    assert (made.acc_clean, made.all_minus_clean, made.p_value) == (None, None, None)
    assert made.ci_low is not None
    assert made.contamination == 1.0


def test_no_pictures_at_all() -> None:
    assert _outcome(0, 0, 0, 0).contamination is None


def test_without_predictions_only_the_contamination_is_known() -> None:
    made = _outcome(3, 7, None, None)
    assert (made.contamination, made.acc_all, made.p_value) == (0.3, None, None)


@pytest.mark.parametrize(("clean", "p"), [(0, 0.0), (50, 1.0)])
def test_clean_accuracy_of_nothing_and_of_everything(clean: int, p: float) -> None:
    assert _outcome(5, 50, 3, clean).p_value == p


def test_bonferroni_over_all_or_over_the_tested() -> None:
    strong, none = _outcome(100, 400, 65, 200), _outcome(0, 10, 0, 4)
    assert strong.p_value == pytest.approx(0.00176, abs=1e-4)
    many = [strong] + [none] * 34
    assert bonferroni_family(many, tested_only=False) == 35
    assert bonferroni_family(many, tested_only=True) == 1
    assert corrected(many, alpha=0.05, tested_only=False)[0].significant_bonferroni is False
    assert corrected(many, alpha=0.05, tested_only=True)[0].significant_bonferroni is True


@pytest.mark.parametrize(("gain", "total"), [(0.05, 1390), (0.10, 350), (0.20, 85)])
def test_detectable_gain_at_published_sizes(gain: float, total: int) -> None:
    assert detectable_gain(total, 0.6, 0.05 / 35) == pytest.approx(gain, rel=0.06)


def test_too_few_pictures_find_no_gain() -> None:
    assert detectable_gain(2, 0.6, 0.05 / 35) is None


@pytest.mark.parametrize(("correct", "total"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="counts must satisfy"):
        binomial_p(correct, total, 0.5)
