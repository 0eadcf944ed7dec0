"""Zero-shot evaluation: prompts, classifier, scores, predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from model import checkpoint
from model.config import TrainConfig
from model.datasets import read_image_folder
from model.predictions import Predictions
from model.prompts import class_name, classifier, read_class_names, read_templates
from model.tokenizer import Tokenizer
from model.train import run as train
from pipeline.cli import main
from pipeline.core import fakes, tables
from pipeline.core.contracts import PREDICTIONS
from pipeline.core.errors import InputError
from pipeline.core.stage import RunOptions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("trained")
    shards = fakes.fake_shards(str(root / "shards"), 128, per_shard=128, size=40)
    config = TrainConfig(
        shards=(shards,), model="RN-tiny", batch_size=64, steps=40, warmup_steps=5, threads=1, device="cpu",
        vocab_size=2000,
    )  # fmt: skip
    train(config, str(root / "model"), RunOptions(quiet=True))
    return str(root / "model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("eval") / "shapes"
    for c, colour in enumerate(fakes.COLOURS[:6]):
        folder = root / f"a_{colour}_{fakes.SHAPES[c % 2]}"
        folder.mkdir(parents=True)
        for i in range(4):
            picture = fakes.picture(colour, fakes.SHAPES[c % 2], size=48, seed=9000 + 10 * c + i)
            picture.save(folder / f"{i}.webp")
    (root / "a_red_circle" / "broken.png").write_bytes(b"not a picture")
    (root / "README.txt").write_text("not an image")
    return str(root)


def evaluate(model: str, dataset: str, out: Path, *more: str) -> int:
    return main(
        ["evaluate", "zero-shot", "--model", model, "--dataset", dataset, "--out", str(out), "--threads", "1",
         "--device", "cpu", "--quiet", *more]
    )  # fmt: skip


def test_scores_and_predictions(model: str, dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "e"
    assert evaluate(model, dataset, out) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["task"], scores["dataset"], scores["n"], scores["classes"]) == (
        "zero-shot",
        "shapes",
        24,
        6,
    )
    assert scores["chance"] == {"top1": 1 / 6, "top5": 5 / 6, "mean_per_class": 1 / 6}
    assert scores["metrics"]["top1"] > 0.4  # 40 steps on the same shapes: well above chance
    assert scores["metrics"]["top1"] <= scores["metrics"]["top5"] <= 1
    low, high = scores["intervals"]["top1"]
    assert low < scores["metrics"]["top1"] < high
    table = tables.read_folder(str(out), PREDICTIONS).to_pylist()
    assert len(table) == 24
    assert sum(r["correct"] for r in table) / 24 == scores["metrics"]["top1"]
    assert table[0]["eval_dataset"] == "shapes"
    assert [r["eval_id"] for r in table] == sorted(r["eval_id"] for r in table)
    assert "a_red_circle/0.webp" in {r["eval_id"] for r in table}
    for r in table:
        assert r["label"] == r["eval_id"].split("/")[0]
        assert r["correct"] == (r["predicted"] == r["label"]) == (r["rank"] == 1)
        assert r["predicted"] == r["top5"][0]
        assert (r["label"] in r["top5"]) == (r["rank"] <= 5)
        assert r["top5_probabilities"] == sorted(r["top5_probabilities"], reverse=True)
        assert 0 < sum(r["top5_probabilities"]) <= 1 + 1e-5
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["rows_in"], manifest["rows"], manifest["dropped"]) == (25, 24, {"corrupt_image": 1})
    dropped = pq.read_table(out / "dropped" / "part-00000.parquet").to_pylist()
    assert dropped[0]["id"] == "a_red_circle/broken.png"
    again = tmp_path / "again"
    assert evaluate(model, dataset, again, "--batch-size", "5") == 0
    assert json.loads((again / "scores.json").read_text())["metrics"] == scores["metrics"]


def test_prompts_names_and_dataset_name(model: str, dataset: str, tmp_path: Path) -> None:
    prompts, names = tmp_path / "prompts.txt", tmp_path / "names.tsv"
    prompts.write_text("{}\n# a remark\n\na drawing of {label}\n")
    names.write_text("folder\tclass_name\na_red_circle\ta red circle\na_green_square\ta green square\n")
    flags = ["--prompts", str(prompts), "--class-names", str(names), "--name", "mine"]
    assert evaluate(model, dataset, tmp_path / "e", *flags) == 0
    scores = json.loads((tmp_path / "e" / "scores.json").read_text())
    assert (scores["dataset"], scores["prompts"]) == ("mine", 2)
    config = json.loads((tmp_path / "e" / "manifest.json").read_text())["config"]
    assert config["templates"] == ["{}", "a drawing of {}"]
    # Other prompts of the same length are another evaluation, not a finished one.
    prompts.write_text("{}\n# a remark\n\na picture of {label}\n")
    assert evaluate(model, dataset, tmp_path / "e", *flags) == 1


def test_ensemble_is_a_mean_in_embedding_space(model: str) -> None:
    clip, tokenizer = checkpoint.load_model(model), Tokenizer(vocab_size=2000)
    cpu = torch.device("cpu")
    names, templates = ["a red circle", "a blue square"], ["{}", "a drawing of {}", "{}, a shape"]
    both = classifier(clip, tokenizer, names, templates, device=cpu)
    single = [classifier(clip, tokenizer, names, [t], device=cpu) for t in templates]
    torch.testing.assert_close(both, F.normalize(torch.stack(single).mean(0), dim=-1))
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(2))


def test_ranks_and_metrics_by_hand() -> None:
    found = Predictions(top=5)
    probabilities = np.eye(7)[[0, 1, 2, 6]] * 0.5 + np.arange(7) / 100
    found.add([("a", 0), ("b", 1), ("c", 6), ("d", 0)], probabilities)
    assert found.ranks == [1, 1, 2, 7]
    scores = found.scores(7)
    assert scores["metrics"] == {"top1": 0.5, "top5": 0.75, "mean_per_class": (0.5 + 1 + 0) / 3}


def test_class_names() -> None:
    assert class_name("great_white_shark") == "great white shark"


def test_bad_prompt_and_name_files(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("a photo of a cat\n")
    with pytest.raises(InputError, match=r"f:1: the prompt has no place for the class name"):
        read_templates(str(file))
    file.write_text("# nothing\n")
    with pytest.raises(InputError, match="holds no prompt"):
        read_templates(str(file))
    file.write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(InputError, match="not a UTF-8 text file"):
        read_templates(str(file))
    file.write_text("a\tb\nno tab here\n")
    with pytest.raises(InputError, match=r"f:2: not a class name"):
        read_class_names(str(file))
    file.write_text("a\tb\na\tc\n")
    with pytest.raises(InputError, match="twice"):
        read_class_names(str(file))
    with pytest.raises(InputError, match="cannot open"):
        read_templates(str(tmp_path / "none"))


def test_image_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such dataset folder"):
        read_image_folder(str(tmp_path / "none"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    (tmp_path / "loose.png").write_bytes(b"")
    with pytest.raises(InputError, match="at least two class folders"):
        read_image_folder(str(tmp_path))
    (tmp_path / "b" / "deeper").mkdir(parents=True)
    (tmp_path / "b" / "deeper" / "2.JPG").write_bytes(b"")
    found = read_image_folder(f"{tmp_path}/")
    assert found.classes == ("a", "b")
    assert found.files == (("a/1.png", 0), ("b/deeper/2.JPG", 1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "none"], "no such folder"),
        (["--dataset", "none"], "no such dataset folder"),
        (["--prompts", "none"], "cannot open"),
        (["--class-names", "none"], "cannot open"),
    ],
)
def test_refusals(
    model: str,
    dataset: str,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [flags[0], str(tmp_path / flags[1])]
    assert evaluate(model, dataset, tmp_path / "e", *flags) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "e" / "manifest.json").exists()


def test_needs_model_and_dataset(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "zero-shot", "--out", str(tmp_path / "e")]) == 2
    assert "pass --model DIR" in capsys.readouterr().err
    assert main(["evaluate", "zero-shot", "--model", model, "--out", str(tmp_path / "e")]) == 2
    assert "pass --dataset PATH" in capsys.readouterr().err
