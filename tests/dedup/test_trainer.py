"""Steps and their gradients: large batches from chunks, lower precision, and going on after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from dedup.augment import augment
from dedup.config import AugmentConfig, TrainConfig
from dedup.contrast import Arithmetic, Batch, Schedule, adamw, backward, info_nce
from dedup.detector import PRESETS, Architecture, Detector, prepare
from dedup.fit import LEARNING_RATES
from dedup.train import run
from dedup.trainer import Batches, Trainer
from pipeline.core.errors import InputError, StageFailedError
from pipeline.core.fakes import COLOURS, SHAPES, picture
from pipeline.core.snapshots import NAME, PREVIOUS, Snapshots
from pipeline.core.stage import RunOptions

TINY = Architecture(
    image_px=32, stem_channels=8, stem_kernel=5, stem_pool=True, widths=(4, 8), depths=(1, 1), learned=16, embedding=16
)  # fmt: skip
PLAN = Schedule(steps=12, warmup=2, peak=3e-3)


def made(architecture: Architecture = TINY) -> Detector:
    torch.manual_seed(0)
    return Detector(architecture)


def batch(step: int, draw: np.random.Generator, *, pairs: int = 8, side: int = 32) -> Batch:
    """Noise and a lighter copy of it, some of it twice."""
    first = draw.integers(0, 200, (pairs, 6, side, side), dtype=np.uint8)
    groups = np.arange(pairs)
    groups[1] = 0
    first[1] = first[0]
    return torch.from_numpy(first), torch.from_numpy(first + np.uint8(50)), torch.from_numpy(groups)


def gradients(
    detector: Detector, encode: Callable[[Tensor], Tensor], given: Batch, how: Arithmetic
) -> list[Tensor]:
    """Of all parameters, one after another, zeros where there is none."""
    detector.zero_grad(set_to_none=True)
    backward(encode, detector, given, how, how.scaler())
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in detector.parameters()]


def plain(detector: Detector, steps: int) -> list[float]:
    """The training loop of a textbook: the whole batch through the network, its loss, one step."""
    optimiser = adamw(detector, learning_rate=PLAN.peak, weight_decay=0.05)
    draw, losses = np.random.default_rng(5), []
    for step in range(steps):
        first, second, groups = batch(step, draw)
        for group in optimiser.param_groups:
            group["lr"] = PLAN.rate(step)
        both = detector.learned(torch.cat([first, second]))
        loss, _ = info_nce(both[: len(first)], both[len(first) :], groups)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    return losses


def trained(
    detector: Detector, how: Arithmetic, kept: Snapshots | None = None, batches: Batches | None = None
) -> Trainer:
    trainer = Trainer(detector, ("network",), how=how, snapshots=kept, quiet=True)
    trainer.optimise(
        "network", detector.learned, detector, batches or Batches(batch, seed=5), PLAN, weight_decay=0.05
    )
    return trainer


def weights(detector: Detector) -> Tensor:
    return nn.utils.parameters_to_vector(detector.parameters()).detach()


def test_a_plain_run_is_the_textbooks_loop_to_the_bit() -> None:
    one, other = made(), made()
    losses = plain(one, PLAN.steps)
    lines = trained(other, Arithmetic()).lines
    assert torch.equal(weights(one), weights(other))
    assert [line["step"] for line in lines] == [10, 12]
    assert [line["loss"] for line in lines] == [
        round(float(np.mean(x)), 5) for x in (losses[:10], losses[10:])
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["small", "general"])
@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_chunks_give_the_gradients_of_the_whole_batch(name: str, chunk: int) -> None:
    detector = made(PRESETS[name])
    given = batch(0, np.random.default_rng(1), side=64)
    wanted = gradients(detector, detector.found, given, Arithmetic())
    found = gradients(detector, detector.found, given, Arithmetic(chunk_size=chunk))
    assert max(float(w.abs().max()) for w in wanted) > 0.01
    for mine, whole in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-6, rtol=1e-4)


def test_resnet50_learns_at_its_rate() -> None:
    detector = made(PRESETS["resnet50"])
    optimiser = adamw(detector, learning_rate=LEARNING_RATES["resnet50"], weight_decay=0.05)
    shapes = [picture(colour, shape, size=64) for colour, shape in zip(COLOURS[:8], SHAPES * 8, strict=False)]
    copies = [augment(shape, AugmentConfig(), seed) for seed, shape in enumerate(shapes)]
    first, second = (torch.from_numpy(np.stack([prepare(x, 32) for x in some])) for some in (shapes, copies))
    losses = []
    for step in range(6):
        for group in optimiser.param_groups:
            group["lr"] = min(1, (step + 1) / 5) * LEARNING_RATES["resnet50"]
        optimiser.zero_grad(set_to_none=True)
        given = (first, second, torch.arange(8))
        loss, _ = backward(detector.learned, detector, given, Arithmetic(), GradScaler(enabled=False))
        optimiser.step()
        losses.append(loss.item())
    assert min(losses) < 0.85 * losses[0]


def test_chunks_hold_the_activations_of_a_chunk_only() -> None:
    detector, seen = made(), []

    def encode(pictures: Tensor) -> Tensor:
        seen.append((len(pictures), torch.is_grad_enabled()))
        return detector.learned(pictures)

    gradients(detector, encode, batch(0, np.random.default_rng(1), pairs=7), Arithmetic(chunk_size=3))
    assert seen == [(6, False), (6, False), (2, False), (6, True), (6, True), (2, True)]


def test_one_chunk_is_one_pass() -> None:
    one, other = made(), made()
    trained(one, Arithmetic())
    trained(other, Arithmetic(chunk_size=8))
    assert torch.equal(weights(one), weights(other))


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_lower_precision_keeps_the_direction_of_the_gradients(kind: str, chunk: int | None) -> None:
    detector = made()
    given = batch(0, np.random.default_rng(1))
    how = Arithmetic(autocast=kind, chunk_size=chunk)
    wanted = torch.cat([g.flatten() for g in gradients(detector, detector.learned, given, Arithmetic())])
    found = torch.cat([g.flatten() for g in gradients(detector, detector.learned, given, how)])
    found = found / how.scaler().scale(torch.ones(())).item()
    assert 0.99 < float(torch.cosine_similarity(wanted, found, dim=0)) < 0.9999999
    assert float(found.norm() / wanted.norm()) == pytest.approx(1, abs=0.05)
    embedded = how.embed(detector.learned, given[0])
    assert embedded.dtype == torch.float32
    assert embedded.norm(dim=1).tolist() == pytest.approx([1.0] * 8, abs=1e-6)


class StopError(Exception):
    """In the place of a kill."""


def interrupted(how: Arithmetic, kept: Snapshots, *, at: int) -> None:
    """A run that ends before a step; its detector is lost, as a killed process's is."""

    def failing(step: int, draw: np.random.Generator) -> Batch:
        if step == at:
            raise StopError
        return batch(step, draw)

    with pytest.raises(StopError):
        trained(made(), how, kept, Batches(failing, seed=5))


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_lower_precision_trains_and_goes_on(kind: str, tmp_path: Path) -> None:
    how, kept = Arithmetic(autocast=kind), Snapshots(str(tmp_path))
    whole, again = made(), made()
    lines = trained(whole, how).lines
    assert float(str(lines[-1]["loss"])) < float(str(lines[0]["loss"]))
    assert weights(whole).dtype == torch.float32
    interrupted(how, kept, at=5)
    assert trained(again, how, kept).lines == lines
    assert torch.equal(weights(again), weights(whole))


def test_a_step_that_overflows_is_left_out_and_the_scale_falls() -> None:
    detector, how = made(), Arithmetic(autocast="fp16")
    before, scaler = weights(detector), how.scaler()
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**40})
    optimiser = adamw(detector, learning_rate=1e-3, weight_decay=0.0)
    loss, _ = backward(detector.learned, detector, batch(0, np.random.default_rng(1)), how, scaler)
    assert torch.isfinite(loss)
    scaler.step(optimiser)
    scaler.update()
    assert torch.equal(weights(detector), before)
    assert scaler.get_scale() == 2.0**39


@pytest.mark.parametrize("at", [1, 6, 10, 11])
def test_going_on_after_any_step_equals_never_stopping(at: int, tmp_path: Path) -> None:
    kept, whole = Snapshots(str(tmp_path)), made()
    lines = trained(whole, Arithmetic()).lines
    interrupted(Arithmetic(), kept, at=at)
    for _ in range(2):  # the second time all is done already
        again = made()
        nn.init.normal_(again.head.weight)
        assert trained(again, Arithmetic(), kept).lines == lines
        assert torch.equal(weights(again), weights(whole))


def test_a_loss_that_is_no_number_is_refused_before_it_is_saved(tmp_path: Path) -> None:
    detector = made()
    with torch.no_grad():
        detector.head.bias[0] = float("nan")
    with pytest.raises(StageFailedError, match=r"network, step 0: the loss is not a number"):
        trained(detector, Arithmetic(), Snapshots(str(tmp_path)))
    assert not list(tmp_path.iterdir())


FULL: dict[str, object] = {
    "pairs": 64, "batch_size": 16, "joined_pictures": 40, "head_pairs": 1024, "whole_pairs": 48, "half": True,
}  # fmt: skip
# Gets a signal after a step whose snapshot is not taken yet.
KILLED = """
import os
from dedup import train, trainer
from dedup.augment import augment
from dedup.config import AugmentConfig, TrainConfig
from pipeline.core.stage import RunOptions
moment, number = {moment!r}, {number!r}
save = trainer.Trainer._save
def killed_save(self, part, place, *given, **more):
    if [part, place.step] == moment:
        os.kill(os.getpid(), number)
    save(self, part, place, *given, **more)
trainer.Trainer._save = killed_save
config = TrainConfig(images=({shards!r},), device="cpu", snapshot_minutes=0, **{config!r})
train.run(config, {out!r}, RunOptions(quiet=True))
"""


def stop_before_calibration(config: TrainConfig, out: Path) -> None:
    def stop(*given: object) -> None:
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dedup.train.calibrate", stop)
        with pytest.raises(StopError):
            run(config, str(out), RunOptions(quiet=True))


@pytest.mark.slow
def test_killed_again_and_again_equals_uninterrupted(shards: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = TrainConfig(images=(shards,), device="cpu", **FULL)  # type: ignore[arg-type]
    run(config, str(whole), RunOptions(quiet=True))
    assert not [name for name in (NAME, PREVIOUS) if (whole / name).exists()]
    for moment, number, place in (
        (["network", 3], 9, ("network", 2)),
        (["head", 1], 9, ("network", 4)),
        (["whole", 1], 15, ("whole", 2)),
    ):
        script = KILLED.format(moment=moment, number=number, shards=shards, config=FULL, out=str(cut))
        ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
        assert ended.returncode == (-9 if number == 9 else 1), ended.stderr
        assert number == 9 or "stopped by a signal after step 2" in ended.stderr
        assert not (cut / "manifest.json").exists()
        state = torch.load(cut / NAME, weights_only=True)
        assert (state["part"], json.loads(state["place"])["step"]) == place
    stop_before_calibration(config, cut)
    run(config, str(cut), RunOptions(quiet=True))
    assert sorted(p.name for p in cut.iterdir()) == sorted(p.name for p in whole.iterdir())
    for name in ("model.safetensors", "config.json", "metrics.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_failed_last_check_throws_no_training_away(shards: str, detector: str, tmp_path: Path) -> None:
    config = TrainConfig(images=(shards,), pairs=96, batch_size=16, device="cpu")

    def stop(*given: object) -> None:
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.core.stage.check_damage", stop)
        with pytest.raises(StopError):
            run(config, str(tmp_path), RunOptions(quiet=True))
    assert (tmp_path / NAME).exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dedup.trainer.backward", stop)
        run(config, str(tmp_path), RunOptions(quiet=True))
    name = "model.safetensors"
    assert (tmp_path / name).read_bytes() == (Path(detector) / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in Path(detector).iterdir())


def test_another_configuration_starts_over(shards: str, detector: str, tmp_path: Path) -> None:
    plain = TrainConfig(images=(shards,), pairs=96, batch_size=16, device="cpu")
    stop_before_calibration(replace(plain, seed=1), tmp_path)
    assert (tmp_path / NAME).exists()
    run(plain, str(tmp_path), RunOptions(quiet=True))
    assert (tmp_path / "model.safetensors").read_bytes() == (
        Path(detector) / "model.safetensors"
    ).read_bytes()


def test_damaged_snapshots_are_named(shards: str, tmp_path: Path) -> None:
    config = TrainConfig(images=(shards,), pairs=16, batch_size=8, device="cpu")
    stop_before_calibration(config, tmp_path)
    for name in (NAME, PREVIOUS):
        (tmp_path / name).write_bytes(b"PK half a state")
    with pytest.raises(InputError, match=r"training\.pt: damaged training state.*remove it to start over"):
        run(config, str(tmp_path), RunOptions(quiet=True))
