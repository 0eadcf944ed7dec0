"""Small CLIP models with weights that show every mistake, and inputs for them; shared by the parity tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from model import checkpoint
from model.clip import CLIP
from model.config import ExportConfig
from model.export import run
from model.presets import ModelConfig, TextConfig, VisionConfig
from pipeline.core.stage import RunOptions, StageResult, run_stage

VIT = ModelConfig(
    embed_dim=32,
    vision_cfg=VisionConfig(image_size=32, layers=2, width=64, patch_size=8, head_width=32),
    text_cfg=TextConfig(width=64, heads=2, layers=2, vocab_size=600),
)
# Heads of 64 channels everywhere: what OpenAI's archives imply.
WIDE = ModelConfig(
    embed_dim=32,
    vision_cfg=VisionConfig(image_size=32, layers=2, width=128, patch_size=8),
    text_cfg=TextConfig(width=128, heads=2, layers=1, vocab_size=600),
)
RESNET = ModelConfig(
    embed_dim=32,
    vision_cfg=VisionConfig(image_size=64, layers=(1, 2, 1, 1), width=32),
    text_cfg=TextConfig(width=64, heads=1, layers=2, vocab_size=600),
)
QUIET = RunOptions(quiet=True)


def perturb(model: nn.Module) -> None:
    """Gains, biases and BatchNorm's statistics that are not ones and zeros, so that a lost one shows."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
            elif tensor.is_floating_point() and name != "logit_scale":
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=draw))


def inputs(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(4)
    tokens = torch.zeros(4, 77, dtype=torch.long)
    for row, length in zip(tokens, (2, 5, 9, 77), strict=True):
        row[:length] = torch.randint(1, 590, (length,), generator=draw)
        row[0], row[length - 1] = 598, 599
    return torch.randn(4, 3, size, size, generator=draw), tokens


def gradients(loss: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def saved(model: CLIP, folder: Path, form: str) -> str:
    """A finished export of a model, by way of the folder that training writes."""

    def body(out: str) -> StageResult:
        checkpoint.save_model(out, model, name="x")
        return StageResult(rows=0, rows_in=0)

    source = str(folder / "ours")
    run_stage(
        body, stage="train", contract=checkpoint.CONTRACT, config=ExportConfig(), inputs=[], out=source,
        options=QUIET,
    )  # fmt: skip
    out = str(folder / form)
    run(ExportConfig(model=source, form=form), out, QUIET)  # type: ignore[arg-type]
    return out


def made(config: ModelConfig) -> CLIP:
    torch.manual_seed(0)
    model = CLIP(config).eval()
    perturb(model)
    return model
