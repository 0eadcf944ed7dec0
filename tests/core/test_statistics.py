from __future__ import annotations

import pytest

from pipeline.core.statistics import clopper_pearson


@pytest.mark.parametrize(
    ("hits", "low", "high"), [(0, 0.0, 0.30850), (5, 0.18709, 0.81291), (10, 0.69150, 1.0)]
)
def test_clopper_pearson_known_values(hits: int, low: float, high: float) -> None:
    assert clopper_pearson(hits, 10, confidence=0.95) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(
    ("correct", "total", "confidence"), [(3, 2, 0.9), (-1, 2, 0.9), (0, 0, 0.9), (1, 2, 1.0)]
)
def test_impossible_counts(correct: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"impossible|confidence"):
        clopper_pearson(correct, total, confidence=confidence)
