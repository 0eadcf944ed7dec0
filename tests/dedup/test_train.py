from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dedup import images
from dedup.calibrate import choose_threshold
from dedup.collection import Collection, draw_batch
from dedup.config import TrainConfig
from dedup.contrast import Schedule, info_nce
from dedup.detector import PRESETS, Detector
from dedup.fit import BATCH_SIZES, LEARNING_RATES
from dedup.folder import load, save
from dedup.train import proxy_accuracy, run
from pipeline.cli import main
from pipeline.core import manifest
from pipeline.core.errors import InputError, StageFailedError, UsageError
from pipeline.core.stage import RunOptions

QUIET = RunOptions(quiet=True)


def test_training_is_reproducible(shards: str, detector: str, tmp_path: Path) -> None:
    run(TrainConfig(images=(shards,), pairs=96, batch_size=16, device="cpu"), str(tmp_path / "again"), QUIET)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (Path(detector) / name).read_bytes()


def test_a_detectors_folder_is_whole(detector: str) -> None:
    done = manifest.read(detector)
    assert done.contract == "detector/1"
    assert (done.rows, done.rows_in) == (60, 60)
    lines = [json.loads(line) for line in (Path(detector) / "metrics.jsonl").read_text().splitlines()]
    assert {line.get("part") for line in lines} == {"network", "head", None}
    assert lines[-1]["event"] == "end"
    assert 0 <= lines[-1]["held_out_accuracy"] <= 1
    config = json.loads((Path(detector) / "config.json").read_text())
    assert config["threshold"] == done.extra["threshold"] == lines[-1]["threshold"]
    assert config["temperature"] == 0.07


def test_network_and_head_are_trained_together_at_last(shards: str, detector: str, tmp_path: Path) -> None:
    config = TrainConfig(
        images=(shards,),
        pairs=96,
        batch_size=16,
        joined_pictures=40,
        head_pairs=512,
        whole_pairs=64,
        half=True,
    )
    run(config, str(tmp_path / "out"), QUIET)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    last = {line["part"]: line for line in lines if line["event"] == "step"}
    assert list(last) == ["network", "head", "whole"]
    assert last["network"]["learning_rate"] == LEARNING_RATES[config.preset]
    assert last["whole"]["pairs"] == 64
    # Half precision is half the bytes, and what is loaded is what was calibrated.
    weights = tmp_path / "out" / "model.safetensors"
    assert weights.stat().st_size < 0.51 * (Path(detector) / "model.safetensors").stat().st_size
    assert next(load(str(tmp_path / "out")).detector.parameters()).dtype == torch.float32


def test_training_goes_on_from_a_detector(shards: str, detector: str, tmp_path: Path) -> None:
    config = TrainConfig(images=(shards,), start=detector, whole_pairs=64, batch_size=16, device="cpu")
    run(config, str(tmp_path / "out"), QUIET)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines if line["event"] == "step"] == ["whole"]
    assert any(given["path"] == detector for given in manifest.read(str(tmp_path / "out")).inputs)
    before, after = (load(folder).detector.state_dict() for folder in (detector, str(tmp_path / "out")))
    assert {name for name in before if before[name].equal(after[name])} >= {"centre", "projection"}
    assert not before["stem.direction"].equal(after["stem.direction"])


def test_only_a_detector_with_a_head_is_gone_on_from(shards: str, tmp_path: Path) -> None:
    alone = dataclasses.replace(PRESETS["small"], joined=0, hidden=0, embedding=128)
    save(str(tmp_path / "alone"), Detector(alone), threshold=None, notes={})
    config = TrainConfig(images=(shards,), start=str(tmp_path / "alone"), whole_pairs=64, batch_size=16)
    with pytest.raises(InputError, match="no detector to go on from"):
        run(config, str(tmp_path / "out"), QUIET)


def test_a_detector_of_another_preset_is_not_gone_on_from(shards: str, detector: str, tmp_path: Path) -> None:
    config = TrainConfig(images=(shards,), start=detector, whole_pairs=64, preset="general")
    with pytest.raises(UsageError, match="another preset"):
        run(config, str(tmp_path / "out"), QUIET)


def test_settings_without_effect_are_refused() -> None:
    settings: list[dict[str, Any]] = [
        *({name: 100} for name in ("joined_pictures", "head_pairs", "whole_pairs")),
        {"held_share": 0.5},
    ]
    for setting in settings:
        with pytest.raises(ValueError, match="resnet50 has not"):
            TrainConfig(preset="resnet50", **setting)
        TrainConfig(preset="general", **setting)
    for name in ("pairs", "joined_pictures", "head_pairs"):
        setting = {"start": "x", "whole_pairs": 64, name: 100}
        with pytest.raises(ValueError, match=f"{name} has no effect with start"):
            TrainConfig(**setting)


def test_a_held_rate_falls_in_a_straight_line() -> None:
    schedule = Schedule(steps=20, warmup=2, peak=1.0, held=8)
    assert [schedule.rate(step) for step in (0, 1, 9, 10, 15, 19)] == pytest.approx([0.5, 1, 1, 1, 0.5, 0.1])


def test_a_killed_run_starts_again(shards: str, detector: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(detector, out)
    marker = {"stage": "dedup train", "config_sha256": "x", "inputs": []}
    (out / "manifest.json").unlink()
    (out / "unfinished.json").write_text(json.dumps(marker))
    run(TrainConfig(images=(shards,), pairs=96, batch_size=16, device="cpu"), str(out), QUIET)
    assert (out / "model.safetensors").read_bytes() == (Path(detector) / "model.safetensors").read_bytes()
    assert not (out / "unfinished.json").exists()


def test_a_mended_picture_leaves_no_dropped_row(folder: str, tmp_path: Path) -> None:
    root, out = tmp_path / "mixed", tmp_path / "out"
    shutil.copytree(folder, root)
    last = sorted(root.rglob("*.png"))[-1]
    held = last.read_bytes()
    last.write_bytes(bytes(len(held)))
    config = TrainConfig(images=(str(root),), pairs=8, batch_size=4, held_out=0.3)
    with pytest.raises(StageFailedError, match="too much of the input is damaged"):
        run(config, str(out), RunOptions(quiet=True, max_bad_fraction=0.01))
    last.write_bytes(held)
    done = run(config, str(out), RunOptions(quiet=True, max_bad_fraction=0.01))
    assert done is not None
    assert (done.rows, done.dropped) == (24, {})
    assert not (out / "dropped").exists()


def test_unreadable_pictures_are_dropped_rows(folder: str, tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    shutil.copytree(folder, root)
    (root / "broken.jpg").write_bytes(b"no")
    config = TrainConfig(images=(str(root),), pairs=8, batch_size=4, held_out=0.3)
    done = run(config, str(tmp_path / "out"), QUIET)
    assert done is not None
    assert (done.rows_in, done.rows, done.dropped) == (25, 24, {"unreadable-image": 1})


def test_too_much_damage_ends_before_anything_is_trained(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "mixed", tmp_path / "out"
    shutil.copytree(folder, root)
    (root / "broken.jpg").write_bytes(b"no")
    config = TrainConfig(images=(str(root),), pairs=8, batch_size=4, held_out=0.3)
    with monkeypatch.context() as patch:
        patch.setattr("dedup.train.fit", lambda *given, **named: pytest.fail("trained"))
        with pytest.raises(StageFailedError, match=r"1 \(4.00%\), most of them unreadable-image"):
            run(config, str(out), RunOptions(quiet=True, max_bad_fraction=0.03))
    assert (out / "dropped").is_dir()
    assert run(config, str(out), RunOptions(quiet=True, max_bad_fraction=0.04)) is not None


def test_too_few_pictures(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dedup", "train", "--images", f"{folder}/red/00.png", "--out", str(tmp_path / "o")]) == 1
    assert "too few readable pictures" in capsys.readouterr().err


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "o")]
    assert main(["dedup", "train", *out]) == 2
    assert "no pictures given" in capsys.readouterr().err
    assert main(["dedup", "train", "--images", "x", "--pairs", "0", *out]) == 2
    assert "pairs must be at least 1" in capsys.readouterr().err


def test_a_picture_on_two_pages_is_one(folder: str, tmp_path: Path) -> None:
    root = tmp_path / "twice"
    shutil.copytree(folder, root)
    shutil.copy(root / "red" / "00.png", root / "again.png")
    with Collection() as pictures:
        pictures.fill(images.plan([str(root)]), max_images=100, seed=0)
        same = [pictures.groups[pictures.ids.index(name)] for name in ("again.png", "red/00.png")]
        assert same[0] == same[1]
        assert len(set(pictures.groups.tolist())) == 24
        known, held_out = pictures.split(0.4, seed=1)
        assert sorted([*known, *held_out]) == pictures.distinct().tolist()
        assert len(pictures) == 25
        assert not set(pictures.groups[known]) & set(pictures.groups[held_out])


def test_a_sample_is_taken_of_too_many(folder: str) -> None:
    taken = []
    for _ in range(2):
        with Collection() as pictures:
            pictures.fill(images.plan([folder]), max_images=8, seed=0)
            taken.append(pictures.ids)
    assert taken[0] == taken[1]
    assert 2 <= len(taken[0]) <= 16


def test_the_same_picture_is_never_its_own_negative() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.manual_seed(0)), dim=1)
    vectors[1] = vectors[0]
    apart, right = info_nce(vectors, vectors, torch.tensor([0, 0, 2, 3]))
    mixed, _ = info_nce(vectors, vectors, torch.arange(4))
    assert right == 1.0
    assert mixed - apart > 0.2


def test_info_nce_by_hand() -> None:
    first = torch.eye(2)
    loss, accuracy = info_nce(first, first, torch.arange(2))
    assert float(loss) == pytest.approx(np.log1p(np.exp(-1 / 0.07)), abs=1e-6)
    assert accuracy == 1.0
    swapped, accuracy = info_nce(first, first.flip(0), torch.arange(2))
    assert float(swapped) == pytest.approx(1 / 0.07, abs=1e-4)
    assert accuracy == 0.0


def test_the_papers_batch_is_the_default() -> None:
    assert BATCH_SIZES["resnet50"] == 1712


def test_the_proxy_task_is_among_1712_whatever_the_batch() -> None:
    draw = np.random.default_rng(0)
    clean = draw.normal(size=(1800, 64)).astype(np.float32)
    clean /= np.linalg.norm(clean, axis=1, keepdims=True)
    altered = clean.copy()
    altered[:171] = clean[1000:1171]  # these find another picture
    assert proxy_accuracy(np.arange(1800), clean, altered) == (1 - 171 / 1712, 1712)
    assert proxy_accuracy(np.arange(1800) // 2, clean, clean) == (1.0, 900)


def test_a_rate_can_stay_at_its_peak() -> None:
    schedule = Schedule(steps=10, warmup=2, peak=1.0, falls=False)
    assert [schedule.rate(step) for step in range(10)] == [0.5] + [1.0] * 9


def test_larger_pictures_are_shrunk_when_asked(folder: str) -> None:
    with Collection(largest_px=16) as small:
        small.fill(images.plan((folder,)), max_images=100, seed=0)
        assert {max(small.image(i).size) for i in range(len(small))} == {16}


def test_the_rate_rises_and_falls() -> None:
    plan = Schedule(steps=100, warmup=10, peak=1.0)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert rates[-1] < 0.001


@pytest.mark.parametrize(("count", "size"), [(5, 8), (8, 8), (100, 32), (33, 32)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_batch_holds_nothing_twice(count: int, size: int, share: float) -> None:
    draw = np.random.default_rng(0)
    chosen = draw_batch(draw.normal(size=(count, 12)), size, share, draw)
    assert len(chosen) == len(set(chosen.tolist())) == min(count, size)
    assert 0 <= chosen.min() <= chosen.max() < count


def test_look_alikes_come_together() -> None:
    draw = np.random.default_rng(0)
    kinds = np.repeat(np.eye(20), 8, axis=0)
    chosen = draw_batch(kinds, 32, 1.0, draw)
    assert len({int(i) // 8 for i in chosen}) <= 5


NONE = np.zeros(0)


def test_the_threshold_parts_what_can_be_parted() -> None:
    positives, foreign = np.linspace(0.8, 1, 500), np.linspace(0, 0.7, 500)
    found = choose_threshold(positives, foreign, NONE, prior=0.05, precision=0.9)
    assert 0.68 < found.threshold <= 0.8
    assert (found.recall, found.precision >= 0.9) == (1.0, True)


def test_the_threshold_rises_with_the_wanted_precision() -> None:
    draw = np.random.default_rng(0)
    positives, foreign = draw.normal(0.9, 0.05, 5000), draw.normal(0.5, 0.1, 5000)
    found = [choose_threshold(positives, foreign, NONE, prior=0.05, precision=p) for p in (0.5, 0.9, 0.97)]
    assert found[0].threshold < found[1].threshold < found[2].threshold
    for one, wanted in zip(found, (0.5, 0.9, 0.97), strict=True):
        assert one.precision >= wanted
        assert one.recall == pytest.approx((positives >= one.threshold).mean(), abs=1e-3)
        assert one.false_alarms == pytest.approx((foreign >= one.threshold).mean(), abs=1e-3)


def test_a_series_of_akin_pictures_raises_the_threshold() -> None:
    positives, foreign = np.linspace(0.8, 1, 1000), np.linspace(0, 0.6, 1000)
    alone = choose_threshold(positives, foreign, NONE, prior=0.03, precision=0.95)
    series = choose_threshold(positives, foreign, np.linspace(0.7, 0.86, 500), prior=0.03, precision=0.95)
    assert alone.threshold <= 0.8 < series.threshold <= 0.86


def test_unmarked_copies_are_no_false_alarms() -> None:
    positives, foreign = np.linspace(0.8, 1, 500), np.linspace(0, 0.7, 500)
    copied = np.concatenate([foreign[:400], np.full(100, 0.99)])
    found = choose_threshold(positives, copied, NONE, prior=0.05, precision=0.9)
    assert found.unmarked_copies == 100
    assert found.threshold <= 0.8


def test_hopeless_similarities_keep_most_of_the_copies() -> None:
    same = np.linspace(0, 1, 50)
    found = choose_threshold(same, same, NONE, prior=0.01, precision=0.99)
    assert found.precision < 0.99
    assert 0.6 <= found.recall < 0.65
