"""The linear probe: its optimum, the paper's search, splits by keys, the command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from model.probe import GRID, few, fit, probabilities, search, validation_split
from pipeline.cli import main
from pipeline.core import fakes, tables
from pipeline.core.contracts import PREDICTIONS


def clouds(count: int = 90, classes: int = 3, width: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(7).normal(size=(classes, width))
    return (centres[labels] + draw.normal(size=(count, width))).astype(np.float32), labels


@pytest.mark.parametrize("penalty", [1e-2, 1.0, 100.0])
def test_the_gradient_vanishes_at_the_optimum(penalty: float) -> None:
    features, labels = clouds()
    weights = fit(features, labels, 3, penalty=penalty)
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    gradient = inputs.T @ (probabilities(features, weights) - np.eye(3)[labels])
    gradient[:-1] += penalty * weights[:-1]
    assert np.abs(gradient).max() < 5e-3
    assert np.abs(weights[:-1]).max() > 1e-3


def test_scikit_learns_weights() -> None:
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    from sklearn.linear_model import LogisticRegression

    features, labels = clouds()
    for penalty in (0.1, 10.0):
        theirs = LogisticRegression(C=1 / penalty, max_iter=1000, tol=1e-8).fit(
            features.astype(np.float64), labels
        )
        found = probabilities(features, fit(features, labels, 3, penalty=penalty))
        assert np.abs(found - theirs.predict_proba(features.astype(np.float64))).max() < 1e-4


@pytest.mark.parametrize("peak", [0, 3, 17, 48, 77, 95, 96])
def test_search_finds_the_peak_in_few_trials(peak: int) -> None:
    best, tried = search(lambda p: -abs(float(np.log10(p / GRID[peak]))))
    assert best == pytest.approx(GRID[peak])
    assert len(tried) <= 7 + 4 * 2
    assert {f"{p:.0e}" for p in tried} >= {"1e-06", "1e-04", "1e-02", "1e+00", "1e+02", "1e+04", "1e+06"}
    assert len(GRID) == 97
    assert GRID[8] / GRID[0] == pytest.approx(10)


def test_splits_depend_on_ids_alone() -> None:
    labels = np.arange(60) % 3
    ids = [f"image{i}" for i in range(60)]
    held = validation_split(ids, labels, share=0.25, seed=0)
    assert np.bincount(labels[held]).tolist() == [5, 5, 5]
    order = np.random.default_rng(0).permutation(60)
    again = validation_split([ids[i] for i in order], labels[order], share=0.25, seed=0)
    assert {ids[i] for i in np.flatnonzero(held)} == {ids[order[i]] for i in np.flatnonzero(again)}
    assert np.bincount(labels[few(ids, labels, shots=4, seed=0)]).tolist() == [4, 4, 4]
    assert set(few(ids, labels, shots=2, seed=0)) < set(few(ids, labels, shots=4, seed=0))
    assert not validation_split(["a", "b"], np.array([0, 1]), share=0.9, seed=0).any()


def folder(root: Path, each: int, first: int) -> str:
    for colour in ("red", "blue", "green"):
        (root / colour).mkdir(parents=True)
        for i in range(each):
            fakes.picture(colour, "square", size=40, seed=first + i).save(root / colour / f"{i}.png")
    return str(root)


def test_command(small_checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = folder(tmp_path / "train", 10, 0), folder(tmp_path / "test", 4, 500)
    (tmp_path / "test" / "red" / "bad.png").write_bytes(b"no")
    arguments = [
        "evaluate", "linear-probe", "--model", small_checkpoint, "--train", train, "--dataset", test,
        "--threads", "1", "--device", "cpu", "--quiet", "--shots", "1", "4",
    ]  # fmt: skip
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 0
    scores = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert (scores["task"], scores["n"], scores["classes"], scores["train_images"]) == (
        "linear-probe",
        12,
        3,
        30,
    )
    assert scores["metrics"]["top1"] > 0.8  # three colours
    assert set(scores["intervals"]) == set(scores["metrics"])
    assert set(scores["few_shot"]) == {"1", "4"}
    assert scores["few_shot"]["4"]["train_images"] == 12
    assert 7 <= len(scores["validation"]) <= 15
    assert tables.read_folder(str(tmp_path / "o"), PREDICTIONS).num_rows == 12
    assert json.loads((tmp_path / "o" / "manifest.json").read_text())["dropped"] == {"corrupt_image": 1}
    with_one = [*arguments, "--validation", test, "--penalty", "0.5", "--out", str(tmp_path / "p")]
    assert main(with_one) == 0
    again = json.loads((tmp_path / "p" / "scores.json").read_text())
    assert (again["penalty"], again["train_images"], again["validation"]) == (0.5, 42, {})
    two = folder(tmp_path / "other", 2, 0)
    (tmp_path / "other" / "green").rename(tmp_path / "other" / "yellow")
    assert main([*arguments[:6], "--dataset", two, "--out", str(tmp_path / "q"), *arguments[8:]]) == 1
    assert "have other classes" in capsys.readouterr().err
    assert main(["evaluate", "linear-probe", "--model", small_checkpoint, "--out", str(tmp_path / "r")]) == 2
    assert "pass --train PATH" in capsys.readouterr().err
