"""Training end to end: it learns, repeats itself, goes on after a kill, and refuses clearly."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import safetensors.torch
import torch
from torch import Tensor

from model import checkpoint
from model.config import TrainConfig
from model.data import Batch
from model.shards import read_index
from model.train import run
from model.trainer import Trainer
from pipeline.cli import main
from pipeline.core import fakes, manifest
from pipeline.core.errors import ContractError, InputError, OutputError, UsageError
from pipeline.core.stage import RunOptions

QUIET = RunOptions(quiet=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fakes.fake_shards(str(tmp_path_factory.mktemp("data") / "shards"), 96, per_shard=40, size=40)


def config(shards: str, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "shards": (shards,), "model": "RN-tiny", "batch_size": 32, "steps": 12, "warmup_steps": 3, "threads": 1,
        "checkpoint_steps": 5, "text_width": 32, "vocab_size": 2000, "vision_width": 8, "device": "cpu",
    }  # fmt: skip
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_result_folder(shards: str, tmp_path: Path) -> None:
    out = str(tmp_path / "m")
    made = run(config(shards), out, QUIET)
    assert made is not None
    assert (made.contract, made.rows, made.rows_in, made.dropped) == ("checkpoint/1", 96, 96, {})
    assert made.extra["steps"] == 12
    assert made.extra["images_seen"] == 12 * 32
    lines = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert set(lines[0]) == {"step", "epoch", "loss", "scale", "lr"}
    assert made.extra["final"] == lines[-1]
    assert lines[0]["scale"] == pytest.approx(1 / 0.07, rel=1e-5)
    weights = safetensors.torch.load_file(tmp_path / "m" / "model.safetensors")
    model = checkpoint.load_model(out)
    assert sum(p.numel() for p in model.parameters()) == made.extra["parameters"]
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert json.loads((tmp_path / "m" / "config.json").read_text())["vision_cfg"]["layers"] == [1, 1]


# Loss of the first steps on the fake shards, seed 0; a change of the model, the loader or the optimiser shows here.
GOLDEN_LOSSES = (3.8206, 3.7557, 3.618, 3.478, 3.3432, 3.2798, 3.3014, 3.1132, 3.2177, 3.1698, 3.0636, 3.0485)


def test_golden_loss_curve(shards: str, tmp_path: Path) -> None:
    run(config(shards, learning_rate=3e-4), str(tmp_path / "m"), QUIET)
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses == pytest.approx(GOLDEN_LOSSES, abs=1e-2)


KILLED = """
import os, sys
from model.train import run
from model.trainer import Trainer
from pipeline.core.stage import RunOptions
sys.path.insert(0, {tests!r})
from test_train import config
step = Trainer.train_step
def killed(self, batch):
    if self.step == 8:
        os.kill(os.getpid(), 9)
    return step(self, batch)
Trainer.train_step = killed
run(config({shards!r}, cache_bytes={cache}), {out!r}, RunOptions(quiet=True))
"""


@pytest.mark.parametrize("cache", [0, 1 << 30])
def test_killed_and_run_again_equals_uninterrupted(shards: str, tmp_path: Path, cache: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(config(shards, cache_bytes=cache), str(whole), QUIET)
    script = KILLED.format(tests=str(Path(__file__).parent), shards=shards, out=str(cut), cache=cache)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert not (cut / "manifest.json").exists()
    assert checkpoint.load_state(str(cut))["step"] == 5  # type: ignore[index]
    with pytest.raises(InputError, match="unfinished"):
        checkpoint.load_model(str(cut))
    run(config(shards, cache_bytes=cache, resume=True), str(cut), QUIET)
    for name in ("model.safetensors", "metrics.jsonl", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    states = [checkpoint.load_state(str(folder)) for folder in (cut, whole)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert manifest.read(str(cut)).sha256 == manifest.read(str(whole)).sha256


def test_other_settings_start_over(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "m")
    with monkeypatch.context() as patch:
        patch.setattr("model.trainer.checkpoint.save_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config(shards), out, QUIET)
    run(config(shards, seed=1), out, QUIET)
    run(config(shards, seed=1), str(tmp_path / "fresh"), QUIET)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (
        tmp_path / "fresh" / "model.safetensors"
    ).read_bytes()


def test_metrics_that_do_not_reach_to_the_checkpoint(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    with monkeypatch.context() as patch:
        patch.setattr("model.trainer.checkpoint.save_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config(shards), str(out), QUIET)
    (out / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"metrics.*expected 12 lines, found 1; remove training.pt"):
        run(config(shards), str(out), QUIET)


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_tiny_clip_overfits_64_pairs(tmp_path: Path) -> None:
    folder = fakes.fake_shards(str(tmp_path / "s"), 64, per_shard=64, size=32)
    index = read_index([folder])
    made = TrainConfig(
        shards=(folder,), model="RN-tiny", batch_size=64, steps=250, warmup_steps=10, threads=1, short_side=32,
        vocab_size=2000, learning_rate=2e-3, device="cpu",
    )  # fmt: skip
    trainer = Trainer(made, str(tmp_path), index)
    # Fakes repeat their 32 captions: a text of its own for each picture makes 64 pairs that can be told apart.
    firsts, seconds = "red blue tree lamp fish gold moon star", "cat dog one two six ten cup hat"
    words = [f"{a} {b}" for a in firsts.split() for b in seconds.split()]
    trainer.loader.index = dataclasses.replace(index, captions=pa.array(words))
    for _ in range(250):
        batch = trainer.loader.next_batch()
        trainer.train_step(batch)
        if trainer.step % 10 == 0 and retrieval(trainer, batch) == 1.0:
            return
    pytest.fail(f"{retrieval(trainer, batch):.0%} of the pairs found after 250 steps")


@torch.inference_mode()
def retrieval(trainer: Trainer, batch: Batch) -> float:
    """Share of a batch's images whose own text is the nearest, measured as it is trained."""
    from model.clip import normalise

    image, text, _ = trainer.model(normalise(torch.from_numpy(batch.images)), torch.from_numpy(batch.tokens))
    nearest: Tensor = (image @ text.T).argmax(dim=1)
    return float((nearest == torch.arange(len(nearest))).float().mean())


def test_loss_that_is_not_finite_names_the_batch(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.objectives.contrastive_loss", lambda i, t, s: (i * t).sum() * float("nan"))
    assert main(arguments(shards, tmp_path / "m")) == 1
    line = capsys.readouterr().err
    assert "the loss is not finite at step 1" in line
    ids = (tmp_path / "m" / "bad-batch.txt").read_text().split()
    assert len(ids) == 32
    assert ids[0] in line
    assert not (tmp_path / "m" / "manifest.json").exists()


def arguments(shards: str, out: Path, *more: str) -> list[str]:
    given = ["train", "--shards", shards, "--out", str(out), "--model", "RN-tiny", "--batch-size", "32"]
    return [
        *given,
        "--steps",
        "2",
        "--warmup-steps",
        "1",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--quiet",
        *more,
    ]


def test_command(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(shards, tmp_path / "m")) == 0
    before = (tmp_path / "m" / "manifest.json").read_bytes()
    assert main(arguments(shards, tmp_path / "m")) == 0
    assert (tmp_path / "m" / "manifest.json").read_bytes() == before
    assert main(arguments(shards, tmp_path / "m", "--seed", "3")) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(arguments(shards, tmp_path / "m", "--seed", "3", "--overwrite")) == 0
    assert main(arguments(shards, tmp_path / "plan", "--dry-run")) == 0
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--model", "RN51"], 2, "no model 'RN51'"),
        (["--batch-size", "97"], 2, "expected at most 96, found 97"),
        (["--batch-size", "0"], 2, "batch_size 0: choose at least 1"),
        (["--warmup-steps", "2"], 2, "the warm-up is as long as the training"),
        (["--learning-rate", "-1"], 2, "learning_rate -1.0"),
        (["--set", "train.image_size=33"], 2, "choose a multiple of the total stride 8"),
        (["--set", "train.short_side=20"], 2, "short_side 20: choose at least the image size, 32"),
        (["--set", "train.widht=3"], 2, "unknown key 'widht'"),
        (["--text-weights", "bf16"], 2, "text_weights bf16: choose precision bf16 or fp16"),
        (["--text-weights", "bf16", "--precision", "bf16", "--parallel", "fsdp"], 2, "choose parallel ddp"),
        (
            ["--parallel", "fsdp"],
            2,
            "fsdp cuts the model among processes, and there is one; start several with torchrun",
        ),
        (
            ["--objective", "bow_prediction", "--set", "train.text_width=64"],
            2,
            "text_width: leave out, bow_prediction",
        ),
        (
            ["--objective", "bow_prediction", "--set", 'train.text_encoder="cbow"'],
            2,
            "bow_prediction has no text tower",
        ),
        (
            ["--objective", "bow_contrastive", "--set", "train.text_layers=2"],
            2,
            "text_layers: leave out, cbow",
        ),
        (["--resume"], 1, "no checkpoint to go on from"),
        (["--", "--runner=X"], 2, "takes no Beam options"),
    ],
)
def test_refusals(
    shards: str,
    tmp_path: Path,
    more: list[str],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(shards, tmp_path / "m", *more)) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "m" / "manifest.json").exists()


def test_unfinished_and_missing_shards(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(str(tmp_path / "none"), tmp_path / "m")) == 1
    assert "no such folder" in capsys.readouterr().err
    shutil.copytree(shards, tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    assert main(arguments(str(tmp_path / "half"), tmp_path / "m")) == 1
    assert "wit fetch" in capsys.readouterr().err
    assert main(["train", "--out", str(tmp_path / "m")]) == 2
    assert "pass --shards DIR" in capsys.readouterr().err


def test_damaged_state_and_weights(shards: str, tmp_path: Path) -> None:
    out = tmp_path / "m"
    run(config(shards, steps=4, warmup_steps=1), str(out), QUIET)
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(InputError, match=r"model\.safetensors: damaged weights"):
        checkpoint.load_model(str(out))
    (out / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        checkpoint.load_model(str(out))
    (out / "training.pt").write_bytes(b"PK half a state")
    with pytest.raises(InputError, match=r"training\.pt: damaged training state.*remove it"):
        checkpoint.load_state(str(out))


def test_sigterm_saves_and_the_same_command_goes_on(shards: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(config(shards), str(whole), QUIET)
    script = KILLED.format(tests=str(Path(__file__).parent), shards=shards, out=str(cut), cache=0)
    script = script.replace("os.getpid(), 9", "os.getpid(), 15")
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "stopped by a signal after step 9" in ended.stderr
    assert not (cut / "manifest.json").exists()
    assert checkpoint.load_state(str(cut))["step"] == 9  # type: ignore[index]
    run(config(shards, cache_bytes=0, resume=True), str(cut), QUIET)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_full_disk_keeps_the_last_good_checkpoint(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(config(shards), str(whole), QUIET)
    synced = os.fsync
    with monkeypatch.context() as patch:

        def full(number: int) -> None:
            if "training-new" in os.readlink(f"/proc/self/fd/{number}") and (cut / "training.pt").exists():
                raise OSError(errno.ENOSPC, "No space left on device")
            synced(number)

        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="the disk is full"):
            run(config(shards), str(cut), QUIET)
    assert checkpoint.load_state(str(cut))["step"] == 5  # type: ignore[index]
    assert not list(cut.glob(".*"))
    run(config(shards, resume=True), str(cut), QUIET)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_damaged_state_gives_way_to_the_one_before(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(config(shards), str(whole), QUIET)
    assert not (whole / "training-previous.pt").exists()
    with monkeypatch.context() as patch:
        patch.setattr("model.trainer.checkpoint.save_model", interrupt)
        patch.setattr("model.trainer.checkpoint.forget_previous_state", lambda folder: None)
        with pytest.raises(KeyboardInterrupt):
            run(config(shards), str(cut), QUIET)
    state = bytearray((cut / "training.pt").read_bytes())
    state[len(state) // 2] ^= 1  # one bit
    (cut / "training.pt").write_bytes(bytes(state))
    assert checkpoint.load_state(str(cut))["step"] == 10  # type: ignore[index]
    assert "its checksum is wrong" in capsys.readouterr().err
    run(config(shards), str(cut), QUIET)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_accumulation_and_recomputation_are_options(shards: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    run(config(shards, model="ViT-tiny", vision_width=32, patch_size=16), str(plain), QUIET)
    for name, more in (("again", {"recompute": True}), ("parts", {"accumulation": 4})):
        changes: dict[str, object] = {"model": "ViT-tiny", "vision_width": 32, "patch_size": 16, **more}
        run(config(shards, **changes), str(tmp_path / name), QUIET)
        curves = [
            [json.loads(line)["loss"] for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
            for n in ("plain", name)
        ]
        assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    with pytest.raises(UsageError, match=r"equal parts.*expected a divisor of 32, found 5"):
        run(config(shards, accumulation=5), str(tmp_path / "x"), QUIET)


HALVES: dict[str, object] = {"moments": "bf16", "text_weights": "bf16"}


@pytest.mark.parametrize(
    "changes",
    [
        {"moments": "bf16"},
        {"precision": "bf16", **HALVES},
        {"precision": "fp16", **HALVES, "accumulation": 2},
    ],
    ids=["moments", "bf16", "fp16"],
)
def test_half_precision_goes_on_to_the_bit_and_learns_as_float32(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    given = {"model": "ViT-tiny", "vision_width": 32, "patch_size": 16, "checkpoint_steps": 4, "steps": 11}
    for name, more in (("full", {}), ("half", changes)):
        run(config(shards, **given, **more), str(tmp_path / name), QUIET)
    full, half = (curve(tmp_path / name) for name in ("full", "half"))
    assert [c["loss"] for c in half] == pytest.approx([c["loss"] for c in full], abs=0.02)
    assert ("loss_scale" in half[0]) == (changes.get("precision") == "fp16")
    assert [c["loss"] for c in half] != [c["loss"] for c in full]
    step = Trainer.train_step

    def broken(self: Trainer, batch: Batch) -> dict[str, float]:
        if self.step == 6:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", broken)
        with pytest.raises(KeyboardInterrupt):
            run(config(shards, **given, **changes), str(tmp_path / "cut"), QUIET)
    assert checkpoint.load_state(str(tmp_path / "cut"))["step"] == 4  # type: ignore[index]
    run(config(shards, **given, **changes, resume=True), str(tmp_path / "cut"), QUIET)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "half" / name).read_bytes(), name
    states = [checkpoint.load_state(str(tmp_path / name)) for name in ("cut", "half")]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    weights = safetensors.torch.load_file(tmp_path / "half" / "model.safetensors")
    assert all(v.dtype != torch.bfloat16 for v in weights.values())  # whoever loads them expects one type
    if "text_weights" in changes:
        assert states[0]["model"]["text_projection"].dtype == torch.bfloat16  # type: ignore[index]


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Of torch's own tracing, about tensors of torch's own.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_train_as_plain_ones(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The graphs are run by torch itself here: to build them with a C++ compiler takes a minute.
    compiled: list[object] = []

    def build(forward: Callable[..., Tensor]) -> object:
        compiled.append(forward)
        return plain_compile(forward, backend="aot_eager", fullgraph=True)

    plain_compile = torch.compile
    monkeypatch.setattr("torch.compile", build)
    # Running statistics must be counted once though recomputed, and shapes change with the texts' lengths.
    given: dict[str, object] = {"steps": 4, "warmup_steps": 1, "recompute": True}
    run(config(shards, **given), str(tmp_path / "plain"), QUIET)
    assert not compiled
    run(config(shards, **given, compile=True), str(tmp_path / "compiled"), QUIET)
    assert len(compiled) == 3  # two bottlenecks, one block of the text tower
    plain, found = (curve(tmp_path / name) for name in ("plain", "compiled"))
    assert [c["loss"] for c in found] == pytest.approx([c["loss"] for c in plain], abs=1e-4)
    states = [safetensors.torch.load_file(tmp_path / n / "model.safetensors") for n in ("plain", "compiled")]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert (states[1][name].float() - value.float()).abs().mean() < 1e-4, name


def test_training_starts_from_weights_at_a_higher_resolution(shards: str, tmp_path: Path) -> None:
    small: dict[str, object] = {"model": "ViT-tiny", "vision_width": 64, "steps": 4, "warmup_steps": 1}
    run(config(shards, **small), str(tmp_path / "a"), QUIET)
    start = str(tmp_path / "a")
    rate = 1e-9  # so that the result shows what it started from
    larger = config(shards, **{**small, "image_size": 40, "learning_rate": rate, "weights": start})
    made = run(larger, str(tmp_path / "b"), QUIET)
    assert made is not None
    assert [i["path"] for i in made.inputs] == [shards, start]
    before, after = (checkpoint.load_model(str(tmp_path / n)).state_dict() for n in "ab")
    name = "visual.positional_embedding"
    assert (before[name].shape[0], after[name].shape[0]) == (17, 26)
    assert torch.allclose(before[name][0], after[name][0], atol=1e-6)
    torch.testing.assert_close(after[name][1:].mean(0), before[name][1:].mean(0), atol=0.02, rtol=0)
    assert torch.allclose(before["text_projection"], after["text_projection"], atol=1e-6)
    with pytest.raises(ContractError, match="do not fit the model to train"):
        run(config(shards, weights=start), str(tmp_path / "c"), QUIET)
    with pytest.raises(InputError, match="no such folder"):
        run(config(shards, weights=str(tmp_path / "none")), str(tmp_path / "d"), QUIET)
