"""Groups of datasets: who is compared with whom, means, gaps, effective robustness, and what is missing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import SuiteConfig
from model.robustness import Classes, Restricted, difference, expected, matched, mean, mean_gap, read_suite
from model.suite import members_of, run
from pipeline.cli import main
from pipeline.core import fakes, tables
from pipeline.core.contracts import PREDICTIONS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.stage import RunOptions

QUIET = RunOptions(quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base set of six classes, a shifted one of two of them, and one whose classes are others."""
    root = tmp_path_factory.mktemp("suite")
    listed = {"imagenet": fakes.COLOURS[:6], "imagenet-a": fakes.COLOURS[1:3], "objectnet": ("x", "y")}
    for name, classes in listed.items():
        for c, one in enumerate(classes):
            (root / name / one).mkdir(parents=True)
            for i in range(3):
                colour = one if one in fakes.COLOURS else fakes.COLOURS[c]
                fakes.picture(colour, "circle", size=40, seed=10 * c + i).save(root / name / one / f"{i}.png")
    (root / "imagenet-a" / fakes.COLOURS[1] / "broken.png").write_bytes(b"no picture")
    (root / "objectnet.classes.tsv").write_text("x\tred circle\ny\tblue circle\n")
    (root / "objectnet.prompts.txt").write_text("a {}\nthe {}\n")
    return root


def test_scores_of_a_group(small_checkpoint: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    words = ["--threads", "1", "--device", "cpu", "--quiet", "--batch-size", "4"]
    assert (
        main(
            [
                "evaluate",
                "suite",
                "--model",
                small_checkpoint,
                "--data",
                str(data),
                "--out",
                str(out),
                *words,
            ]
        )
        == 0
    )
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["task"], scores["dataset"], scores["base"], scores["n"]) == (
        "suite",
        "robustness",
        "imagenet",
        30,
    )
    assert scores["missing"] == [
        "imagenet-v2", "imagenet-r", "imagenet-sketch", "imagenet-vid", "youtube-bb",
    ]  # fmt: skip
    found = scores["datasets"]
    assert list(found) == ["imagenet", "imagenet-a", "objectnet"]
    top1 = {name: found[name]["metrics"]["top1"] for name in found}
    assert scores["metrics"]["mean"] == pytest.approx((top1["imagenet-a"] + top1["objectnet"]) / 2)
    low, high = scores["intervals"]["mean"]
    assert low < scores["metrics"]["mean"] < high
    assert scores["chance"]["mean"] == pytest.approx(0.5)
    assert found["objectnet"]["prompts"] == 2
    # The base set counts among the two classes alone; a set of other classes has no base.
    assert found["imagenet-a"]["base"]["n"] == 6
    gap = found["imagenet-a"]["gap"]
    assert gap["value"] == pytest.approx(found["imagenet-a"]["base"]["top1"] - top1["imagenet-a"])
    assert gap["interval"][0] < gap["value"] < gap["interval"][1]
    assert scores["metrics"]["mean_gap"] == pytest.approx(gap["value"])
    assert "not_compared" not in found["imagenet-a"]
    assert "base" not in found["objectnet"]
    assert found["objectnet"]["not_compared"] == "its classes cannot be found among those of the base set"
    assert "effective_robustness" not in found["imagenet-a"]
    rows = tables.read_folder(str(out), PREDICTIONS).to_pylist()
    assert len(rows) == 30
    assert {r["eval_dataset"] for r in rows} == {"imagenet", "imagenet-a", "objectnet"}
    lost = tables.read_files([str(out / "dropped" / "part-00000.parquet")]).to_pylist()
    assert [(r["reason"], r["id"]) for r in lost] == [
        ("corrupt_image", f"imagenet-a/{fakes.COLOURS[1]}/broken.png")
    ]


def test_too_much_damage_ends_it(small_checkpoint: str, data: Path, tmp_path: Path) -> None:
    words = ["--threads", "1", "--device", "cpu", "--quiet", "--max-bad-fraction", "0.01"]
    given = ["--model", small_checkpoint, "--data", str(data), "--out", str(tmp_path / "s")]
    assert main(["evaluate", "suite", *given, *words]) == 1
    assert not (tmp_path / "s" / "manifest.json").exists()


def other(tmp_path: Path, name: str, base: float, shifted: float) -> str:
    row = {"base": {"top1": base}, "metrics": {"top1": shifted}}
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"task": "suite", "base": "imagenet", "datasets": {"imagenet-a": row}}))
    return str(path)


def test_effective_robustness_against_other_models(small_checkpoint: str, data: Path, tmp_path: Path) -> None:
    baselines = (other(tmp_path, "a", 0.5, 0.2), other(tmp_path, "b", 0.8, 0.5))
    config = SuiteConfig(model=small_checkpoint, data=str(data), baselines=baselines, threads=1, device="cpu")
    run(config, str(tmp_path / "s"), QUIET)
    row = json.loads((tmp_path / "s" / "scores.json").read_text())["datasets"]["imagenet-a"]
    line = expected(row["base"]["top1"], [(0.5, 0.2), (0.8, 0.5)])
    assert line is not None
    assert row["effective_robustness"] == pytest.approx(row["metrics"]["top1"] - line)


def test_line_through_other_models() -> None:
    assert expected(0.8, [(0.5, 0.2), (0.8, 0.5)]) == pytest.approx(0.5)
    # Half way between the two on the logit scale.
    assert expected(2 / 3, [(0.5, 0.2), (0.8, 0.5)]) == pytest.approx(1 / 3)
    assert expected(0.7, [(0.5, 0.2)]) is None
    assert expected(0.7, [(0.5, 0.2), (0.5, 0.3)]) is None


def test_restricted_to_some_classes() -> None:
    found = Restricted(np.array([0, 2]))
    # Class 1 is most likely everywhere, and may not be chosen.
    probabilities = np.array([[0.3, 0.5, 0.2], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    found.see(np.array([0, 1, 2]), probabilities)
    assert (found.correct, found.total) == (1, 2)


def test_intervals_of_means_and_differences_hold_their_share() -> None:
    from model.metrics import accuracy

    draw, inside_mean, inside_gap = np.random.default_rng(0), 0, 0
    for _ in range(400):
        one, two = (accuracy(int(draw.binomial(n, p)), n) for n, p in ((200, 0.7), (120, 0.4)))
        low, high = mean([one, two])[1]
        inside_mean += low <= 0.55 <= high
        low, high = difference(one, two)[1]
        inside_gap += low <= 0.3 <= high
    assert inside_mean >= 0.94 * 400
    assert inside_gap >= 0.94 * 400


def test_gaps_to_one_base_set_are_not_independent() -> None:
    from functools import cache

    from model.metrics import accuracy

    share, sets, draw = cache(accuracy), 7, np.random.default_rng(0)
    inside = narrow = 0
    for _ in range(400):
        base = share(int(draw.binomial(200, 0.7)), 200)
        shifts = [share(int(hits), 1500) for hits in draw.binomial(1500, 0.4, sets)]
        low, high = mean_gap([base] * sets, shifts)[1]
        inside += low <= 0.3 <= high
        low, high = mean([difference(base, shift) for shift in shifts])[1]
        narrow += low <= 0.3 <= high
    assert inside >= 0.94 * 400
    assert narrow < 0.8 * 400  # what taking them for independent would give


NUMBERED = Classes(("0", "1", "2"), ("red circle", "blue square", "cross"), named=True)


@pytest.mark.parametrize(
    ("base", "other", "wanted"),
    [
        # Numbers alone: the same classes only if there are equally many.
        (("0", "1", "2"), ("0", "1"), None),
        (("0", "1", "2"), ("0", "1", "2"), [0, 1, 2]),
        (("a", "b", "c"), ("c", "a"), [2, 0]),
        (("a", "b", "c"), ("c", "d"), None),
        (("a", "b", "c"), ("0", "1", "2"), None),
    ],
)
def test_classes_without_names(
    base: tuple[str, ...], other: tuple[str, ...], wanted: list[int] | None
) -> None:
    assert matched(Classes(base, base), Classes(other, other)) == wanted


def test_classes_with_names() -> None:
    assert matched(NUMBERED, Classes(("0", "1"), ("cross", "red circle"), named=True)) == [2, 0]
    assert matched(NUMBERED, Classes(("0", "1", "2"), ("cross", "red circle", "tree"), named=True)) is None
    assert matched(NUMBERED, Classes(("0", "1"), ("0", "1"))) is None
    twice = Classes(("0", "1", "2"), ("crane", "crane", "cross"), named=True)
    assert matched(twice, Classes(("0", "1"), ("crane", "cross"), named=True)) is None
    assert matched(twice, Classes(("n1",), ("cross",))) is None
    wordnet = Classes(("n1", "n2", "n3"), ("crane", "crane", "cross"), named=True)
    assert matched(wordnet, Classes(("n2",), ("a crane",), named=True)) == [1]
    assert matched(wordnet, Classes(("0",), ("cross",), named=True)) is None  # "crane" is two classes


def test_a_group_that_lists_the_base_set_counts_it(small_checkpoint: str, data: Path, tmp_path: Path) -> None:
    only = tmp_path / "only"
    only.mkdir()
    (only / "imagenet").symlink_to(data / "imagenet")
    config = SuiteConfig(
        model=small_checkpoint, data=str(only), group="zero-shot-36", threads=1, device="cpu"
    )
    run(config, str(tmp_path / "s"), QUIET)
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert scores["metrics"] == {"mean": scores["datasets"]["imagenet"]["metrics"]["top1"]}
    assert scores["chance"] == {"mean": pytest.approx(1 / 6)}
    with pytest.raises(InputError, match="none of the suite's datasets is there"):
        run(dataclasses.replace(config, group="robustness"), str(tmp_path / "t"), QUIET)


def test_groups() -> None:
    names = [known.name for known in members_of(SuiteConfig())]
    assert names[0] == "imagenet"
    assert names[1:] == [
        "imagenet-v2", "imagenet-a", "imagenet-r", "objectnet", "imagenet-sketch", "imagenet-vid", "youtube-bb",
    ]  # fmt: skip
    assert len(members_of(SuiteConfig(group="linear-probe-27"))) == 27
    assert len(members_of(SuiteConfig(group="zero-shot-36", base="none"))) == 34  # two are for retrieval
    with pytest.raises(UsageError, match=r"no suite 'robust'.*robustness"):
        members_of(SuiteConfig(group="robust"))
    with pytest.raises(UsageError, match="did you mean imagenet"):
        members_of(SuiteConfig(base="imagenett"))
    with pytest.raises(UsageError, match="flickr30k is a retrieval dataset"):
        members_of(SuiteConfig(base="flickr30k"))


@pytest.mark.parametrize(
    "text",
    [
        "{", '{"task": "zero-shot", "datasets": {}}', "[]", '{"task": "suite", "base": "imagenet", "datasets": []}',
        '{"task": "suite", "base": "imagenet", "datasets": {"imagenet-a": 3}}',
        '{"task": "suite", "base": "imagenet", "datasets": {"imagenet-a": {"base": {"top1": 0.5}}}}',
        '{"task": "suite", "base": "imagenet", "datasets": {"a": {"base": {"top1": 7}, "metrics": {"top1": 0}}}}',
    ],
)  # fmt: skip
def test_bad_baselines(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="no such suite"):
        read_suite(str(tmp_path), base="imagenet")
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(InputError, match="not the scores of a suite"):
        read_suite(str(tmp_path), base="imagenet")


def test_baselines_that_no_line_goes_through(small_checkpoint: str, data: Path, tmp_path: Path) -> None:
    one = other(tmp_path, "a", 0.5, 0.2)
    with pytest.raises(InputError, match=r"another base set.*expected cifar-10, found imagenet"):
        read_suite(one, base="cifar-10")
    config = SuiteConfig(model=small_checkpoint, data=str(data), baselines=(one,))
    with pytest.raises(UsageError, match=r"no line goes through one model.*at least two"):
        run(config, str(tmp_path / "s"), QUIET)
    with pytest.raises(UsageError, match="effective robustness needs a base set"):
        run(dataclasses.replace(config, base="none"), str(tmp_path / "s"), QUIET)


def test_nothing_there(small_checkpoint: str, data: Path, tmp_path: Path) -> None:
    def refused(**values: Any) -> None:
        run(SuiteConfig(**values), str(tmp_path / "s"), QUIET)

    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"none of the suite's datasets is there.*imagenet-v2"):
        refused(model=small_checkpoint, data=str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="pass --data DIR"):
        refused(model=small_checkpoint)
    with pytest.raises(InputError, match="no such"):
        refused(model=str(tmp_path / "nowhere"), data=str(data))
