"""The mosaic of predictions (Figure 21) and the classes that are mixed up."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.core import fakes
from pipeline.core.contracts import PREDICTIONS
from pipeline.report import guesses, samples
from pipeline.report.figures import AbsentError, open_run


def evaluation(root: Path, rows: list[tuple[str, str]]) -> Path:
    """A run with one evaluation from (truth, prediction) of each picture, with three guesses each."""
    listed = [
        {
            "eval_dataset": "pets", "eval_id": f"{i}.png", "correct": truth == guess, "label": truth,
            "predicted": guess, "rank": 1 if truth == guess else 2,
            "top5": [guess, truth if truth != guess else "other", "<b>third</b>"],
            "top5_probabilities": [0.5, 0.25, 0.125],
        }
        for i, (truth, guess) in enumerate(rows)
    ]  # fmt: skip
    table = PREDICTIONS.conform(pa.Table.from_pylist(listed))
    fakes.finished_folder(str(root / "scores" / "pets"), PREDICTIONS, table)
    return root


def test_five_best_guesses_with_the_truth_in_its_colour(tmp_path: Path) -> None:
    run = open_run(str(evaluation(tmp_path, [("cat", "cat"), ("dog", "cat"), ("dog", "dog")])))
    drawn = samples.sample_predictions(run, "pets")
    right, wrong = drawn.right[0], drawn.wrong[0]
    assert wrong.guesses == (("cat", 0.5), ("dog", 0.25), ("<b>third</b>", 0.125))
    card = guesses.card(wrong)
    bars = card.split("<li")[1:]
    assert len(bars) == 3
    assert [bar.startswith(' class="true"') for bar in bars] == [False, True, False]
    assert ["width:50.0%" in bars[0], "width:25.0%" in bars[1], "width:12.5%" in bars[2]] == [True] * 3
    assert ">50%<" in bars[0]
    assert "<b>third" not in card
    assert "&lt;b&gt;third" in card
    assert "✗ wrong" in card
    assert "guess 2" in card
    first = guesses.card(right).split("<li")[1]
    assert first.startswith(' class="true"')
    assert "✓" in first


def test_predictions_without_probabilities_still_have_a_card() -> None:
    one = samples.Prediction(
        eval_id="1", correct=False, truth="dog", predicted="cat", rank=None, picture=None
    )
    assert "taken for" in guesses.card(one)
    assert "<li" not in guesses.card(one)


def test_confusion_counts_all_pictures(tmp_path: Path) -> None:
    rows = [("cat", "cat")] * 5 + [("dog", "cat")] * 3 + [("dog", "dog")] + [("cow", "dog")] * 2
    run = open_run(str(evaluation(tmp_path, rows)))
    found = guesses.confusion(run, "pets")
    assert found.counts == Counter(rows)
    assert found.totals == {"cat": 5, "dog": 4, "cow": 2}
    assert found.classes() == ["cat", "cow", "dog"]
    assert found.mixed_up() == [("dog", "cat", 3), ("cow", "dog", 2)]
    page = guesses.section(run, "pets")
    assert "dog → cat: 3 of 4" in page
    assert "cat → cat: 5 of 5" in page
    assert "cat → dog" not in page
    assert 'class="matrix"' in page


def test_many_classes_are_listed_not_drawn(tmp_path: Path) -> None:
    rows = [(f"class {i}", f"class {i}") for i in range(40)] + [("class 1", "class 2")] * 4 + [("a", "b")]
    page = guesses.section(open_run(str(evaluation(tmp_path, rows))), "pets")
    assert 'class="matrix"' not in page
    assert "class 1 → class 2" in page
    assert "a → b" not in page  # once is no habit
    rows = [(f"class {i}", f"class {i + 1}") for i in range(40)]
    page = guesses.section(open_run(str(evaluation(tmp_path / "once", rows))), "pets")
    assert "mixed up" not in page


def test_without_labels_there_is_nothing_to_say(tmp_path: Path) -> None:
    fakes.fake_folder(str(tmp_path / "scores" / "x"), PREDICTIONS, 5)
    run = open_run(str(tmp_path))
    assert guesses.section(run, "x") == ""
    with pytest.raises(AbsentError, match="carry no labels"):
        guesses.confusion(run, "x")
