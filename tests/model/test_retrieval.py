"""Retrieval: ranks by hand, chance, the command, and the paper's registry of datasets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model import registry
from model.retrieval import ranks, scores
from pipeline.cli import main
from pipeline.core import fakes, tables
from pipeline.core.contracts import PREDICTIONS
from pipeline.core.errors import UsageError
from pipeline.core.tars import Sample, write_shard


def test_ranks_by_hand() -> None:
    images = np.eye(3)
    texts = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0.2, 0.5, 0.1], [0.4, 0.3, 0.2]])
    right = [np.array([0, 1]), np.array([2, 3]), np.array([4])]
    assert ranks(images, texts, right).tolist() == [1, 1, 1]
    assert ranks(texts, images, [np.array([i]) for i in (0, 0, 1, 1, 2)]).tolist() == [1, 1, 1, 1, 3]
    same = np.ones((4, 1))
    assert ranks(same, same, [np.array([i]) for i in range(4)]).tolist() == [4] * 4  # ties are not luck


def test_ranks_are_the_same_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(37, 8)), draw.normal(size=(50, 8))
    right = [np.array([i, 49 - i]) for i in range(37)]
    whole = ranks(a, b, right)
    monkeypatch.setattr("model.retrieval.ROWS", 5)
    assert np.array_equal(ranks(a, b, right), whole)
    similar = a @ b.T
    slow = [1 + min(int((row > row[j]).sum()) for j in m) for row, m in zip(similar, right, strict=True)]
    assert whole.tolist() == slow


def test_chance_is_what_random_vectors_reach() -> None:
    draw, captions = np.random.default_rng(0), np.array([5] * 20)
    right = np.split(np.arange(100), 20)
    found = np.concatenate(
        [ranks(draw.normal(size=(20, 4)), draw.normal(size=(100, 4)), right) for _ in range(150)]
    )
    chance = scores(found[:20], np.ones(100), captions)["chance"]
    assert isinstance(chance, dict)
    for k in (1, 5, 10):
        assert chance[f"image_to_text_r{k}"] == pytest.approx((found <= k).mean(), abs=0.03)
    assert chance["text_to_image_r5"] == 0.25


def test_command(small_checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = []
    for i, colour in enumerate(("red", "blue", "green", "yellow")):
        data = fakes.jpeg(fakes.picture(colour, "square", size=40, seed=i))
        samples.append(Sample(f"k{i}", {"jpg": data, "txt": f"a {colour} square".encode()}))
    samples.append(Sample("bad", {"jpg": b"no", "txt": b"broken"}))
    write_shard(str(tmp_path / "set.tar"), samples)
    arguments = [
        "evaluate",
        "retrieval",
        "--model",
        small_checkpoint,
        "--dataset",
        str(tmp_path / "set.tar"),
        "--quiet",
    ]
    arguments += ["--threads", "1", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "o"), "--as", "flickr30k"]) == 0
    found = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert (found["task"], found["dataset"], found["n"], found["captions"]) == (
        "retrieval",
        "flickr30k",
        4,
        4,
    )
    assert found["paper"]["title"] == "Flickr30k"
    assert found["metrics"]["text_to_image_r5"] == 1.0
    assert found["metrics"]["image_to_text_r1"] <= found["metrics"]["image_to_text_r5"] == 1.0
    assert set(found["intervals"]) == set(found["metrics"]) == set(found["chance"])
    table = tables.read_folder(str(tmp_path / "o"), PREDICTIONS).to_pylist()
    assert sum(r["correct"] for r in table) / 4 == found["metrics"]["image_to_text_r1"]
    assert [r["eval_id"] for r in table] == ["k0", "k1", "k2", "k3"]
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert (manifest["dropped"], manifest["config"]["template"]) == ({"corrupt_image": 1}, "a photo of {}")
    assert main([*arguments, "--out", str(tmp_path / "p"), "--as", "mnist"]) == 2
    assert "mnist is a classification dataset" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "p"), "--as", "flickr30"]) == 2
    assert "did you mean flickr30k?" in capsys.readouterr().err


def test_the_papers_datasets() -> None:
    every = registry.datasets()
    assert (len(every), len(registry.group("linear-probe-27"))) == (36, 27)
    assert len(registry.group("robustness")) == 7
    by_metric = {m: {d.name for d in every.values() if d.metric == m} for m in ("mean-per-class", "roc-auc")}
    assert by_metric["mean-per-class"] == {"fgvc-aircraft", "oxford-pets", "caltech-101", "flowers-102"}
    assert by_metric["roc-auc"] == {"hateful-memes"}
    assert every["voc-2007"].metric == "11-point-map"
    assert every["kinetics-700"].metric == "mean-top1-top5"
    assert all("{}" in p for d in every.values() for p in d.prompts)
    with pytest.raises(UsageError, match="no dataset 'nope'"):
        registry.find("nope")


def test_a_registered_dataset_brings_prompts_and_metric(small_checkpoint: str, tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / "d" / kind).mkdir(parents=True)
        fakes.picture("red", "circle", size=40, seed=1).save(tmp_path / "d" / kind / "0.png")
    assert main(
        ["evaluate", "zero-shot", "--model", small_checkpoint, "--dataset", str(tmp_path / "d"), "--as", "oxford-pets",
         "--out", str(tmp_path / "o"), "--quiet", "--threads", "1", "--device", "cpu"]
    ) == 0  # fmt: skip
    found = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert (found["dataset"], found["metric"], found["paper"]["classes"]) == (
        "oxford-pets",
        "mean_per_class",
        37,
    )
    config = json.loads((tmp_path / "o" / "manifest.json").read_text())["config"]
    assert config["templates"] == ["A photo of a {}, a type of pet."]
    assert "roc_auc" in found["metrics"]
    assert set(found["intervals"]) == set(found["metrics"])
