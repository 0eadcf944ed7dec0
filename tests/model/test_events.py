"""Event files: what training and evaluation put in, TensorBoard's own reader gets out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model import events
from pipeline.cli import main
from pipeline.core import fakes
from pipeline.core.errors import UsageError

pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_points_of_a_run_that_was_killed(tmp_path: Path) -> None:
    folder, weight = str(tmp_path / "curves"), torch.zeros(2, requires_grad=True)
    weight.grad = torch.tensor([3.0, 4.0])
    with events.training_log(folder, done=0) as log:
        for step in (1, 2, 3):
            line = {"step": step, "epoch": 0, "loss": 4.0 / step, "scale": 14.0, "lr": step / 1000}
            log.add(line, images=32, parameters=[weight])
    # Killed after its checkpoint at step 2, the run goes on: the third point of before is gone.
    with events.training_log(folder, done=2) as log:
        line = {"step": 3, "epoch": 0, "loss": 1.0, "scale": 15.0, "lr": 0.003}
        log.add(line, images=32, parameters=[weight])
    found = read(tmp_path / "curves")
    assert found["train/loss"] == [(1, 4.0), (2, 2.0), (3, 1.0)]
    assert found["train/logit_scale"][-1] == (3, 15.0)
    assert [s for s, _ in found["train/learning_rate"]] == [1, 2, 3]
    assert found["train/learning_rate"][1][1] == pytest.approx(0.002)
    assert found["train/gradient_norm"] == [(1, 5.0), (2, 5.0), (3, 5.0)]
    assert all(v > 0 for _, v in found["train/images_per_second"])


def test_training_and_its_evaluation_share_a_folder(tmp_path: Path) -> None:
    shards = fakes.fake_shards(str(tmp_path / "shards"), 32, per_shard=32, size=40)
    curves, model, out = (str(tmp_path / name) for name in ("curves", "model", "scores"))
    small = [
        "--set",
        "train.text_width=32",
        "--set",
        "train.vision_width=8",
        "--set",
        "train.vocab_size=2000",
    ]
    shared = ["--tensorboard", curves, "--threads", "1", "--device", "cpu", "--quiet"]
    train = ["--model", "RN-tiny", "--batch-size", "16", "--steps", "3", "--warmup-steps", "1"]
    assert main(["train", "--shards", shards, "--out", model, *train, *small, *shared]) == 0
    assert main(["evaluate", "retrieval", "--model", model, "--dataset", shards, "--out", out, *shared]) == 0
    found = read(tmp_path / "curves")
    lines = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert [v for _, v in found["train/loss"]] == pytest.approx([line["loss"] for line in lines])
    assert all(v > 0 for _, v in found["train/gradient_norm"])
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    step, value = found["shards/retrieval/image_to_text_r1"][0]
    assert step == 3
    assert value == pytest.approx(scores["metrics"]["image_to_text_r1"])


def test_without_a_folder_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with events.training_log(None, done=0) as log:
        log.add({"step": 1, "loss": 1.0}, images=1, parameters=[])
    events.write_scores(None, {}, model="nowhere")
    events.check(None)
    assert not list(tmp_path.iterdir())


def test_norm_of_all_gradients() -> None:
    one, other, unused = (torch.zeros(n, requires_grad=True) for n in (2, 1, 3))
    (3 * one[0] + 4 * other[0]).backward()  # type: ignore[no-untyped-call]
    assert events.gradient_norm([one, other, unused]) == pytest.approx(5.0)


def test_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError, match="--tensorboard: event files are written to a folder of this machine"
    ):
        events.check("s3://bucket/curves")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'webimagetext\[tensorboard\]'"):
        events.check("curves")
