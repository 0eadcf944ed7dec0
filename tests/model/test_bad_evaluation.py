"""Evaluation's bad days: damaged pictures, missing captions, checkpoints that are none."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.core import fakes, manifest, tables

WORDS = ("--threads", "1", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for split, seed in (("train", 0), ("test", 50)):
        for c, colour in enumerate(fakes.COLOURS[:2]):
            (root / split / colour).mkdir(parents=True)
            for i in range(4):
                made = fakes.picture(colour, "circle", size=40, seed=seed + 10 * c + i)
                made.save(root / split / colour / f"{i}.png")
        (root / split / fakes.COLOURS[0] / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with open(root / "captions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption"])
        for i in range(4):
            rows.writerow([f"test/{fakes.COLOURS[0]}/{i}.png", "" if i == 1 else f"picture {i}"])
        rows.writerow([f"test/{fakes.COLOURS[1]}/0.png", "   "])
        rows.writerow(["test/gone.png", "a picture that is not there"])
    return root


def lost(out: Path) -> list[tuple[str, str]]:
    files = [str(path) for path in sorted((out / "dropped").glob("*.parquet"))]
    return [(r["reason"], r["id"]) for r in tables.read_files(files).to_pylist()]


def evaluate(task: str, model: str, pictures: Path, out: Path) -> int:
    data = {
        "zero-shot": ["--dataset", str(pictures / "test")],
        "linear-probe": ["--dataset", str(pictures / "test"), "--train", str(pictures / "train"), "--penalty", "1"],
        "retrieval": ["--dataset", str(pictures / "captions.csv")],
    }  # fmt: skip
    return main(["evaluate", task, "--model", model, "--out", str(out), *data[task], *WORDS])


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_damaged_pictures_count_in_no_score(
    task: str, small_checkpoint: str, pictures: Path, tmp_path: Path
) -> None:
    assert evaluate(task, small_checkpoint, pictures, tmp_path / "e") == 0
    scores = json.loads((tmp_path / "e" / "scores.json").read_text())
    assert scores["n"] == 7
    assert scores.get("train_dropped", 1) == 1
    assert lost(tmp_path / "e") == [("corrupt_image", f"{fakes.COLOURS[0]}/0.png")]


def test_pictures_without_a_caption_are_counted(
    small_checkpoint: str, pictures: Path, tmp_path: Path
) -> None:
    assert evaluate("retrieval", small_checkpoint, pictures, tmp_path / "e") == 0
    scores = json.loads((tmp_path / "e" / "scores.json").read_text())
    assert (scores["n"], scores["captions"]) == (2, 2)
    first, second = fakes.COLOURS[:2]
    assert sorted(lost(tmp_path / "e")) == [
        ("corrupt_image", "test/gone.png"), ("corrupt_image", f"test/{first}/0.png"),
        ("no_caption", f"test/{second}/0.png"), ("no_caption", f"test/{first}/1.png"),
    ]  # fmt: skip
    made = manifest.read(str(tmp_path / "e"))
    assert (made.rows, made.rows_in) == (2, 6)


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe", "retrieval"])
def test_a_checkpoint_that_is_none(
    task: str, small_checkpoint: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = fakes.fake_shards(str(tmp_path / "shards"), 4, size=32)
    damaged, other = tmp_path / "damaged", tmp_path / "other"
    for copy in (damaged, other):
        shutil.copytree(small_checkpoint, copy)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "embed_dim": 32}))
    for model, why in (
        (str(tmp_path / "nowhere"), "no such folder"),
        (shards, "expected checkpoint/1, found shards/1"),
        (str(damaged), "damaged weights"),
        (str(other), "the weights do not fit the model"),
    ):
        assert evaluate(task, model, pictures, tmp_path / "e") == 1, model
        told = capsys.readouterr().err
        assert why in told
        assert "Traceback" not in told
        assert not (tmp_path / "e" / "scores.json").exists()


def test_nothing_but_damage(
    small_checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.jpg").write_bytes(b"no picture")
    words = ["--dataset", str(tmp_path / "set"), "--out", str(tmp_path / "e"), *WORDS]
    assert main(["evaluate", "zero-shot", "--model", small_checkpoint, *words]) == 1
    assert "no image of the dataset can be decoded" in capsys.readouterr().err
