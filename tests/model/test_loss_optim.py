"""The objective and the optimiser's settings."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.clip import CLIP
from model.loss import clamp_logit_scale, contrastive_loss
from model.optim import (
    HalfPrecisionAdamW,
    adamw,
    decay_groups,
    halve_text_weights,
    learning_rate_at,
    rounded_stochastically,
)
from model.precision import Precision
from model.presets import preset


def test_loss_is_the_papers_pseudocode() -> None:
    draw = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 4, generator=draw), dim=-1) for _ in range(2))
    logits = (image @ text.T * 7).tolist()
    rows = [math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(logits)]
    columns = [math.log(sum(math.exp(r[i]) for r in logits)) - logits[i][i] for i in range(6)]
    loss = contrastive_loss(image, text, torch.tensor(7.0))
    assert loss.item() == pytest.approx((sum(rows) / 6 + sum(columns) / 6) / 2, rel=1e-5)


def test_loss_of_equal_embeddings_is_log_of_the_batch() -> None:
    same = torch.ones(8, 4) / 2
    assert contrastive_loss(same, same, torch.tensor(14.0)).item() == pytest.approx(math.log(8))


def test_scale_is_clamped_at_100() -> None:
    scale = nn.Parameter(torch.tensor(9.0))
    clamp_logit_scale(scale)
    assert scale.exp().item() == pytest.approx(100)
    low = nn.Parameter(torch.tensor(1.0))
    clamp_logit_scale(low)
    assert low.item() == 1.0


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_decay_spares_gains_and_biases_only(name: str) -> None:
    with torch.device("meta"):
        model = CLIP(preset(name).config)
    kept, free = decay_groups(model)
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(kept) + len(free) == len(names)
    spared = {names[id(p)] for p in free}
    assert {"logit_scale", "ln_final.weight", "transformer.resblocks.0.attn.in_proj_bias"} <= spared
    assert all(n == "logit_scale" or n.endswith(("bias", "weight")) for n in spared)
    decayed = {names[id(p)] for p in kept}
    assert {"positional_embedding", "token_embedding.weight", "text_projection"} <= decayed
    if name == "RN50":
        assert {"visual.layer1.0.downsample.1.weight", "visual.layer1.0.bn3.weight"} <= spared
        assert "visual.layer1.0.downsample.0.weight" in decayed
    else:
        assert "visual.class_embedding" in decayed


def test_optimiser_takes_the_settings() -> None:
    made = adamw(nn.Linear(2, 2), weight_decay=0.2, beta1=0.9, beta2=0.98, epsilon=1e-6)
    assert [(len(g["params"]), g["weight_decay"]) for g in made.param_groups] == [(1, 0.2), (1, 0.0)]
    assert all(g["betas"] == (0.9, 0.98) and g["eps"] == 1e-6 for g in made.param_groups)


def test_schedule() -> None:
    rates = [learning_rate_at(s, peak=1.0, warmup_steps=4, total_steps=12) for s in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert sorted(rates[4:], reverse=True) == rates[4:]
    assert learning_rate_at(12, peak=1.0, warmup_steps=4, total_steps=12) == 0.0


def test_stochastic_rounding_is_unbiased_and_goes_to_a_neighbour() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.tensor([1.001, -1.001, 3e-7, 1e30, 1.0, 0.0])
    many = values.repeat(40_000, 1)
    rounded = rounded_stochastically(many, draw).float()
    below, above = (rounded.min(dim=0).values, rounded.max(dim=0).values)
    assert torch.equal(below[4:], values[4:])  # what a bfloat16 can hold stays
    assert torch.equal(above[4:], values[4:])
    step = above[:4] - below[:4]
    assert ((below[:4] < values[:4]) & (values[:4] < above[:4])).all()
    assert (step <= values[:4].abs() * 2**-7).all()
    # The mean's standard error is at most half a step over 200.
    assert ((rounded.mean(dim=0)[:4] - values[:4]).abs() < step * 4 * 0.5 / 200).all()
    # Rounding to nearest is off by the same each time.
    assert (values[0].bfloat16().float() - values[0]).abs() > 0.1 * step[0]


def trained(steps: int = 60, **changes: object) -> tuple[list[float], nn.Module, torch.optim.Optimizer]:
    """Losses of a small network on fixed data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    values: dict[str, object] = {"weight_decay": 0.2, "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-6, **changes}
    made = adamw(model, **values)  # type: ignore[arg-type]
    given, wanted = torch.randn(64, 8), torch.randn(64, 4)
    return fit(model, made, given, wanted, steps), model, made


def fit(
    model: nn.Module, made: torch.optim.Optimizer, given: torch.Tensor, wanted: torch.Tensor, steps: int
) -> list[float]:
    losses = []
    for _ in range(steps):
        for group in made.param_groups:
            group["lr"] = 1e-2
        loss = F.mse_loss(model(given), wanted)
        made.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        made.step()
        losses.append(loss.item())
    return losses


def test_half_precision_moments_train_as_full_ones() -> None:
    plain, _, _ = trained()
    half, model, made = trained(moments="bf16")
    assert plain[-1] < 0.6 * plain[0]
    assert half == pytest.approx(plain, rel=0.01)
    assert half != plain
    states = [made.state[p] for p in model.parameters()]
    assert all(s["exp_avg"].dtype == s["exp_avg_sq"].dtype == torch.bfloat16 for s in states)
    again, _, _ = trained(moments="bf16")
    other, _, _ = trained(moments="bf16", seed=1)
    assert again == half
    assert other != half


def test_half_precision_optimiser_computes_adamw() -> None:
    """With float32 moments and weights it is torch's own."""
    torch.manual_seed(0)
    models = [nn.Linear(5, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    kept, free = decay_groups(models[1])
    groups = [{"params": kept, "weight_decay": 0.2}, {"params": free, "weight_decay": 0.0}]
    mine = HalfPrecisionAdamW(groups, betas=(0.9, 0.98), eps=1e-6, moments=torch.float32, seed=0)
    theirs = adamw(models[0], weight_decay=0.2, beta1=0.9, beta2=0.98, epsilon=1e-6)
    assert isinstance(theirs, torch.optim.AdamW)
    given, wanted = torch.randn(16, 5), torch.randn(16, 3)
    curves = [fit(model, made, given, wanted, 20) for model, made in zip(models, (theirs, mine), strict=True)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def test_rounding_moments_to_nearest_would_lose_them() -> None:
    """Why stochastic: a mean that changes by a thousandth a step stands still in bfloat16."""
    draw = torch.Generator().manual_seed(0)
    nearest, stochastic = torch.ones(1000).bfloat16(), torch.ones(1000).bfloat16()
    for _ in range(700):  # towards 0.5 with beta2 0.999: to 0.748
        nearest = (nearest.float() * 0.999 + 0.0005).bfloat16()
        stochastic = rounded_stochastically(stochastic.float() * 0.999 + 0.0005, draw)
    assert nearest.float().mean() == 1
    assert stochastic.float().mean().item() == pytest.approx(0.5 + 0.5 * 0.999**700, abs=0.005)


def test_moments_keep_their_precision_when_loaded() -> None:
    for weights, moments in ((torch.bfloat16, "fp32"), (torch.float32, "bf16")):
        torch.manual_seed(0)
        model = nn.Linear(6, 2).to(weights)
        settings = {"weight_decay": 0.2, "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-6}
        made = adamw(model, **settings, moments=moments)  # type: ignore[arg-type]
        given, wanted = torch.randn(16, 6).to(weights), torch.randn(16, 2).to(weights)
        fit(model, made, given, wanted, 3)
        saved = copy.deepcopy((model.state_dict(), made.state_dict()))
        fit(model, made, given, wanted, 3)
        other = nn.Linear(6, 2).to(weights)
        other.load_state_dict(saved[0])
        loaded = adamw(other, **settings, moments=moments)  # type: ignore[arg-type]
        loaded.load_state_dict(saved[1])
        fit(other, loaded, given, wanted, 3)
        torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(loaded.state_dict(), made.state_dict(), rtol=0, atol=0)


def test_text_weights_in_half_precision_are_the_matrices_outside_the_image_tower() -> None:
    model = CLIP(preset("RN-tiny").config)
    halve_text_weights(model)
    halved = {n for n, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert {"token_embedding.weight", "positional_embedding", "text_projection"} <= halved
    assert "transformer.resblocks.0.attn.in_proj_weight" in halved
    assert not any(n.startswith("visual.") or n.endswith("bias") or "ln_" in n for n in halved)
    made = adamw(model, weight_decay=0.2, beta1=0.9, beta2=0.98, epsilon=1e-6)
    assert isinstance(made, HalfPrecisionAdamW)


def test_float16_leaves_out_a_step_that_overflows_and_scales_less() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    precision = Precision("fp16", torch.device("cpu"))
    made = adamw(model, weight_decay=0.2, beta1=0.9, beta2=0.98, epsilon=1e-6, moments="bf16")
    for group in made.param_groups:
        group["lr"] = 1e-2
    before, scales = copy.deepcopy(model.state_dict()), []
    for size in (1e4, 1e4, 1.0):
        with precision.autocast():
            out = model(torch.full((4, 6), size))
        assert out.dtype == torch.float16
        loss = (out.float() * torch.tensor([1.0, -1.0])).mean()
        made.zero_grad()
        precision.scaler.scale(loss).backward()
        precision.apply(made)
        scales.append(precision.scaler.get_scale())
        if size > 1:
            torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
            assert not made.state
    assert scales == [32768, 16384, 16384]
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad[0], torch.full((6,), 0.5))  # true size, not the scaled one
    assert not torch.equal(model.weight, before["weight"])
    other = Precision("fp16", torch.device("cpu"))
    other.scaler.load_state_dict(precision.scaler.state_dict())
    assert other.scaler.get_scale() == 16384
    assert Precision("bf16", torch.device("cpu")).scaler.state_dict() == {}
