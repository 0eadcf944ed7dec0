"""Scores by hand, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.metrics import average_precision_11, map_11, mean_per_class, mean_top1_top5, roc_auc, score_all
from model.predictions import Predictions


@pytest.mark.parametrize(
    ("classes", "metric", "wanted"),
    [
        (20, "mean-top1-top5", {"top1": 0.05, "top5": 0.25, "mean_per_class": 0.05, "mean_top1_top5": 0.15}),
        (2, "roc-auc", {"top1": 0.5, "top5": 1.0, "mean_per_class": 0.5, "roc_auc": 0.5}),
    ],
)
def test_chance_of_every_metric(classes: int, metric: str, wanted: dict[str, float]) -> None:
    found = Predictions(top=2, whole=classes == 2)
    found.add([("a", 0), ("b", 1), ("c", 1)], np.random.default_rng(0).dirichlet(np.ones(classes), 3))
    scores = found.scores(classes, metric=metric)
    assert scores["chance"] == pytest.approx(wanted)
    assert set(scores["metrics"]) == set(wanted)


def test_mean_average_precision_has_no_known_chance() -> None:
    found = Predictions(top=3, whole=True)
    several = np.array([[True, False, True], [False, True, False]])
    found.add([("a", 0), ("b", 1)], np.full((2, 3), 1 / 3), several)
    scores = found.scores(3, metric="11-point-map")
    assert "map_11" in scores["metrics"]
    assert "map_11" not in scores["chance"]


def test_mean_per_class_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 2, 2])
    value, (low, high) = mean_per_class(np.array([1, 1, 1, 0, 0, 1], dtype=bool), labels)
    assert value == (0.75 + 0.5) / 2
    assert 0 < low < value < high < 1


def test_mean_of_top1_and_top5_by_hand() -> None:
    value, (low, high) = mean_top1_top5(np.array([1, 1, 3, 5, 6, 9, 2, 1]))
    assert value == (3 / 8 + 6 / 8) / 2
    assert low < value < high


def test_11_point_average_precision_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    # Hits at ranks 1 and 3: precision 1 up to recall 0.5 (six points), 2/3 above it (five points).
    found = average_precision_11(scores, np.array([1, 0, 1, 0], dtype=bool))
    assert found == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert average_precision_11(scores, np.ones(4, dtype=bool)) == 1
    assert np.isnan(average_precision_11(scores, np.zeros(4, dtype=bool)))
    perfect = np.eye(4)
    assert map_11(perfect, perfect.astype(bool))[0] == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4, max_size=40))
def test_roc_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([float(s) for s, _ in rows]), np.array([p for _, p in rows])
    if positive.all() or not positive.any():
        with pytest.raises(ValueError, match="both classes"):
            roc_auc(scores, positive)
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    value, (low, high) = roc_auc(scores, positive)
    assert value == pytest.approx(float(np.mean(pairs)))
    assert 0 <= low <= value <= high <= 1


def test_roc_intervals_cover() -> None:
    draw, hits = np.random.default_rng(0), 0
    truth = 0.7602  # of two unit normals one apart
    for _ in range(200):
        positive = np.arange(120) < 60
        _, (low, high) = roc_auc(draw.normal(size=120) + positive, positive)
        hits += low <= truth <= high
    assert hits >= 180


def test_mean_per_class_intervals_cover() -> None:
    draw, hits = np.random.default_rng(1), 0
    chances = np.array([0.2, 0.5, 0.9])
    labels = np.repeat([0, 1, 2], [20, 40, 60])
    for _ in range(200):
        _, (low, high) = mean_per_class(draw.random(120) < chances[labels], labels)
        hits += low <= chances.mean() <= high
    assert hits >= 180


def test_which_scores_there_are() -> None:
    ranks, labels = np.array([1, 2, 1, 1]), np.array([0, 1, 0, 1])
    assert set(score_all(ranks, labels, 7)) == {"top1", "top5", "mean_per_class"}
    assert "mean_top1_top5" in score_all(ranks, labels, 7, metric="mean-top1-top5")
    two = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
    assert score_all(ranks, labels, 2, probabilities=two)["roc_auc"][0] == 1.0
    several = np.array([[1, 0], [1, 1], [1, 0], [0, 1]], dtype=bool)
    assert score_all(ranks, labels, 2, probabilities=two, several=several)["map_11"][0] == 1.0
