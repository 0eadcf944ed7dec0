"""The objective and the optimiser's settings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.clip import CLIP
from model.loss import clamp_logit_scale, contrastive_loss
from model.optim import adamw, decay_groups, learning_rate_at
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
