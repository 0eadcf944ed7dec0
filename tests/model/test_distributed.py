"""Two gloo processes: the local loss is the global one with its gradients, and training equals one process's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from model.config import TrainConfig
from model.loss import contrastive_loss, local_loss
from model.train import run
from pipeline.core import fakes
from pipeline.core.stage import RunOptions

LOSS = """
import sys, torch
import torch.distributed as dist
from torch.nn.functional import normalize
from model import distributed
from model.loss import contrastive_loss, local_loss
distributed.start(torch.device("cpu"))
draw = torch.Generator().manual_seed(0)
whole = [torch.randn(12, 6, generator=draw, dtype=torch.float64).float() for _ in range(2)]
scale = torch.tensor(7.0, requires_grad=True)
leaves = [w.clone().requires_grad_() for w in whole]
wanted = contrastive_loss(*(normalize(x, dim=-1) for x in leaves), scale)
of_scale, *of_leaves = torch.autograd.grad(wanted, [scale, *leaves])
rows = slice(6 * distributed.rank(), 6 * distributed.rank() + 6)
mine = [w[rows].clone().requires_grad_() for w in whole]
own_scale = torch.tensor(7.0, requires_grad=True)
part = local_loss(*(normalize(x, dim=-1) for x in mine), own_scale)
found_scale, *found = torch.autograd.grad(part, [own_scale, *mine])
torch.testing.assert_close(distributed.mean_of_all(part), wanted.detach(), atol=1e-6, rtol=0)
torch.testing.assert_close(distributed.mean_of_all(found_scale), of_scale, atol=1e-6, rtol=1e-5)
assert abs(part.item() - wanted.item()) > 1e-3, "a part alone is not the whole"
for gradient, whole_gradient in zip(found, of_leaves):
    assert whole_gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient / 2, whole_gradient[rows], atol=1e-6, rtol=1e-4)
assert distributed.of_all(distributed.rank()) == [0, 1]
assert distributed.told_by_first("x" if distributed.rank() == 0 else None) == "x"
assert distributed.any_of_all(distributed.rank() == 1, torch.device("cpu"))
distributed.stop()
"""


SHARDED = """
import json, os, shutil, sys
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from model import checkpoint, distributed
from model.config import TrainConfig
from model.trainer import Trainer
from model.shards import read_index
root, values = sys.argv[1], json.loads(sys.argv[2])
values["shards"] = tuple(values["shards"])
distributed.start(torch.device("cpu"))

def train(name, stop=None, **changes):
    if distributed.rank() == 0:
        os.makedirs(f"{root}/{name}", exist_ok=True)
    dist.barrier()
    config = TrainConfig(**{**values, "checkpoint_steps": 2, **changes})
    trainer = Trainer(config, f"{root}/{name}", read_index(config.shards))
    step = trainer.train_step
    def broken(batch):
        if trainer.step == stop:
            raise KeyboardInterrupt
        return step(batch)
    trainer.train_step = broken
    try:
        trainer.train(quiet=True)
    except KeyboardInterrupt:
        assert stop is not None
    dist.barrier()
    return trainer

whole = train("fsdp", parallel="fsdp")
own = [p for p in whole.model.parameters() if isinstance(p, DTensor)]
assert len(own) == len(list(whole.model.parameters()))
held = sum(p.to_local().numel() for p in own)
assert held < 0.6 * sum(p.numel() for p in own), "each process holds about half"
train("cut", stop=3, parallel="fsdp")
train("other", stop=3)
if distributed.rank() == 0:
    assert checkpoint.load_state(f"{root}/cut")["step"] == 2
    shutil.copytree(f"{root}/cut", f"{root}/to-ddp")
    shutil.copytree(f"{root}/other", f"{root}/to-fsdp")
dist.barrier()
train("cut", resume=True, parallel="fsdp")
train("to-ddp", resume=True)
train("to-fsdp", resume=True, parallel="fsdp")
train("half", parallel="fsdp", moments="bf16", precision="fp16", model="RN-tiny", accumulation=2, recompute=True)
train("captions", objective="caption_lm")
rounded = train("rounded", precision="bf16", moments="bf16", text_weights="bf16")
sums = distributed.of_all(sum(p.double().sum().item() for p in rounded.model.parameters()))
assert sums[0] == sums[1], "whole models round alike in all processes"
distributed.stop()
"""


def torchrun(*arguments: str) -> str:
    made = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    return made.stderr


def test_one_process_has_the_whole_loss() -> None:
    image, text = (torch.nn.functional.normalize(torch.randn(5, 4), dim=-1) for _ in range(2))
    scale = torch.tensor(9.0)
    torch.testing.assert_close(local_loss(image, text, scale), contrastive_loss(image, text, scale))


def test_local_loss_is_the_global_loss(tmp_path: Path) -> None:
    script = tmp_path / "loss.py"
    script.write_text(LOSS)
    torchrun(str(script))


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    shards = fakes.fake_shards(str(tmp_path / "s"), 48, per_shard=20, size=40)
    geometry = {"model": "ViT-tiny", "batch_size": 16, "warmup_steps": 1, "vocab_size": 2000}
    values = {**geometry, "steps": 5, "learning_rate": 1e-3, "short_side": 36}
    config = TrainConfig(shards=(shards,), threads=1, device="cpu", **values)  # type: ignore[arg-type]
    run(config, str(tmp_path / "one"), RunOptions(quiet=True))
    settings = [f"--set=train.{k}={json.dumps(v)}" for k, v in values.items()]
    common = ["--shards", shards, "--threads", "1", "--device", "cpu", "--quiet", *settings]
    torchrun("-m", "pipeline", "train", *common, "--out", str(tmp_path / "two"))
    torchrun("-m", "pipeline", "train", *common, "--accumulation", "2", "--out", str(tmp_path / "parts"))
    curves = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two", "parts")
    ]
    weights = [
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "parts")
    ]
    for curve, found in zip(curves[1:], weights[1:], strict=True):
        assert [c["loss"] for c in curve] == pytest.approx([c["loss"] for c in curves[0]], abs=2e-5)
        assert [c["epoch"] for c in curve] == [c["epoch"] for c in curves[0]]
        for name, value in weights[0].items():
            # Adam divides by the gradient's size: where that is rounding error, so is the step.
            assert (found[name] - value).abs().mean() < 1e-5, name
    again = torchrun(
        "-m", "pipeline", "train", *[c for c in common if c != "--quiet"], "--out", str(tmp_path / "two")
    )
    assert "already done" in again


@pytest.mark.slow
def test_cut_weights_train_as_whole_ones_and_go_on_as_either(tmp_path: Path) -> None:
    """FSDP: equals one process; a resumed run equals an unbroken one to the bit; DDP's states fit it and its DDP."""
    shards = fakes.fake_shards(str(tmp_path / "s"), 48, per_shard=20, size=40)
    values: dict[str, object] = {
        "model": "ViT-tiny", "batch_size": 16, "warmup_steps": 1, "vocab_size": 2000, "steps": 5,
        "learning_rate": 1e-3, "short_side": 36, "threads": 1, "device": "cpu", "shards": (shards,),
    }  # fmt: skip
    for name, more in (("one", {}), ("one-captions", {"objective": "caption_lm"})):
        alone = TrainConfig(**values, **more)  # type: ignore[arg-type]
        run(alone, str(tmp_path / name), RunOptions(quiet=True))
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    torchrun(str(script), str(tmp_path), json.dumps(values))
    lines = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "fsdp", "cut", "to-ddp", "to-fsdp", "half", "captions", "one-captions")
    }
    wanted = [line["loss"] for line in lines["one"]]
    weights = safetensors.torch.load_file(tmp_path / "one" / "model.safetensors")
    for name in ("fsdp", "to-ddp", "to-fsdp"):
        assert [line["loss"] for line in lines[name]] == pytest.approx(wanted, abs=2e-5)
        found = safetensors.torch.load_file(tmp_path / name / "model.safetensors")
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in weights.items()}
        for key, value in weights.items():
            assert (found[key] - value).abs().mean() < 1e-5, key
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "fsdp" / name).read_bytes()
    captions = [[line["loss"] for line in lines[name]] for name in ("captions", "one-captions")]
    assert captions[0] == pytest.approx(captions[1], abs=2e-5)
    assert len(lines["half"]) == 5
    assert lines["half"][-1]["loss_scale"] >= 1024
