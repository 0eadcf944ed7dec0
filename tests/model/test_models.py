"""Towers: the paper's geometry, OpenAI's names, parity with other implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from model.clip import CLIP, normalise
from model.config import TrainConfig
from model.layers import Attention
from model.presets import PAPER, PRESETS, ModelConfig, TextConfig, VisionConfig, from_dict, preset
from pipeline.core.errors import ContractError, UsageError

# Total and image tower, in millions; the counts of OpenAI's and open_clip's models.
PARAMETERS = {
    "RN50": (102.01, 38.32),
    "RN101": (119.69, 56.26),
    "RN50x4": (178.30, 87.14),
    "RN50x16": (290.98, 167.33),
    "RN50x64": (623.26, 420.38),
    "ViT-B/32": (151.28, 87.85),
    "ViT-B/16": (149.62, 86.19),
    "ViT-L/14": (427.62, 303.97),
    "ViT-L/14@336px": (427.94, 304.29),
}
SMALL_VIT = ModelConfig(
    embed_dim=32,
    vision_cfg=VisionConfig(image_size=32, layers=2, width=64, patch_size=8, head_width=32),
    text_cfg=TextConfig(width=64, heads=2, layers=2, vocab_size=600),
)
SMALL_RESNET = ModelConfig(
    embed_dim=64,
    vision_cfg=VisionConfig(image_size=64, layers=(1, 2, 1, 1), width=32),
    text_cfg=TextConfig(width=64, heads=1, layers=2, vocab_size=600),
)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = CLIP(PAPER[name].config)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model, model.visual)]
    assert tuple(round(n / 1e6, 2) for n in counts) == PARAMETERS[name]


def test_parameter_names_are_openais() -> None:
    with torch.device("meta"):
        resnet, vit = (set(CLIP(PAPER[n].config).state_dict()) for n in ("RN50", "ViT-B/32"))
    common = {
        "positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight",
        "transformer.resblocks.11.attn.in_proj_weight", "transformer.resblocks.0.attn.out_proj.bias",
        "transformer.resblocks.0.mlp.c_fc.weight", "transformer.resblocks.0.mlp.c_proj.bias",
        "transformer.resblocks.0.ln_1.bias", "transformer.resblocks.0.ln_2.weight",
    }  # fmt: skip
    assert common <= resnet
    assert common <= vit
    assert {
        "visual.conv1.weight", "visual.bn3.running_var", "visual.layer1.0.downsample.0.weight",
        "visual.layer4.2.conv3.weight", "visual.layer2.0.downsample.1.num_batches_tracked",
        "visual.attnpool.positional_embedding", "visual.attnpool.k_proj.weight", "visual.attnpool.c_proj.bias",
    } <= resnet  # fmt: skip
    assert {
        "visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre.weight",
        "visual.transformer.resblocks.11.mlp.c_fc.bias", "visual.ln_post.bias", "visual.proj",
    } <= vit  # fmt: skip
    assert (len(resnet), len(vit)) == (489, 302)


@pytest.mark.parametrize(("name", "total"), [("RN50", 64.14), ("ViT-B/32", 113.41)])
def test_cbow_text_encoder(name: str, total: float) -> None:
    config = TrainConfig(model=name, text_encoder="cbow").architecture()
    with torch.device("meta"):
        model = CLIP(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == total
    names = {n for n in model.state_dict() if not n.startswith("visual.")}
    assert names == {
        "logit_scale", "token_embedding.weight", "ln_final.weight", "ln_final.bias", "text_projection",
    }  # fmt: skip
    assert config.to_dict()["text_cfg"]["kind"] == "cbow"


def test_cbow_is_the_mean_of_a_texts_tokens() -> None:
    text = TextConfig(width=64, heads=2, vocab_size=600, kind="cbow")
    model = CLIP(ModelConfig(embed_dim=32, vision_cfg=SMALL_VIT.vision_cfg, text_cfg=text)).eval()
    tokens = torch.tensor([[598, 5, 300, 599, 0, 0], [598, 300, 5, 599, 0, 0], [598, 599, 0, 0, 0, 0]])
    with torch.no_grad():
        found = model.encode_text(tokens)
        mean = model.token_embedding.weight[[5, 300]].mean(dim=0)
        wanted = model.ln_final(mean) @ model.text_projection
    torch.testing.assert_close(found[0], wanted)
    torch.testing.assert_close(found[1], wanted)
    assert found.isfinite().all()


# The first six numbers of each embedding, computed by OpenAI's released model code with `formula_weights`.
OPENAI_IMAGE = (
    (2.150842, 2.825638, 2.743192, 1.935128, 0.626847, -0.828093),
    (2.736696, 3.476598, 3.289187, 2.23351, 0.599659, -1.173747),
)
OPENAI_TEXT = (
    (3.241, -2.173507, -6.56578, -7.870066, -5.472934, -0.501797),
    (-6.442818, -7.765462, -5.435884, -0.549727, 4.594975, 7.578589),
)


def formula_weights(model: nn.Module) -> None:
    """Weights that any implementation can be given without sharing a random generator."""
    with torch.no_grad():
        for k, (name, tensor) in enumerate(sorted(model.state_dict().items())):
            if not tensor.is_floating_point() or tensor.dim() == 0:
                continue
            values = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + k * 1.3)
            if name.endswith("running_var"):
                values = 1 + 0.3 * values
            elif tensor.dim() == 1:
                values = 1 + 0.2 * values if name.endswith("weight") else 0.1 * values
            else:
                values = values * (2 * tensor.shape[0] / tensor.numel()) ** 0.5
            tensor.copy_(values.reshape(tensor.shape).float())


def test_resnet_equals_openais_code() -> None:
    model = CLIP(SMALL_RESNET).eval()
    formula_weights(model)
    images = (
        torch.sin(torch.arange(2 * 3 * 64 * 64, dtype=torch.float64) * 0.01).reshape(2, 3, 64, 64).float()
    )
    tokens = torch.tensor([[598, 5, 300, 599, 0, 0], [598, 7, 8, 500, 260, 599]])
    with torch.no_grad():
        image, text = model.encode_image(images)[:, :6], model.encode_text(tokens)[:, :6]
    torch.testing.assert_close(image, torch.tensor(OPENAI_IMAGE), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text, torch.tensor(OPENAI_TEXT), atol=1e-5, rtol=1e-5)


def test_padding_columns_change_nothing() -> None:
    model = CLIP(SMALL_VIT).eval()
    tokens = torch.tensor([[598, 5, 6, 599], [598, 7, 599, 0]])
    padded = torch.nn.functional.pad(tokens, (0, 73))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens), model.encode_text(padded), atol=1e-5, rtol=0)


def test_text_tower_is_causal() -> None:
    attention = Attention(8, 2, causal=True)
    x = torch.randn(1, 4, 8)
    changed = x.clone()
    changed[:, 3] += 1
    with torch.no_grad():
        before, after = attention(x), attention(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3], after[:, 3])


def test_initialisation_follows_openai() -> None:
    torch.manual_seed(0)
    model = CLIP(SMALL_RESNET)
    state = model.state_dict()
    assert state["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))
    assert state["token_embedding.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["positional_embedding"].std().item() == pytest.approx(0.01, rel=0.05)
    assert state["transformer.resblocks.0.attn.in_proj_weight"].std().item() == pytest.approx(
        64**-0.5, rel=0.05
    )
    assert state["transformer.resblocks.0.mlp.c_proj.weight"].std().item() == pytest.approx(
        64**-0.5 * 4**-0.5, rel=0.05
    )
    assert state["text_projection"].std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert state["visual.attnpool.q_proj.weight"].std().item() == pytest.approx(1024**-0.5, rel=0.02)
    assert not state["visual.layer2.1.bn3.weight"].any()


def test_normalise_is_openais_scale() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 4, 4, 3)
    out = normalise(images)
    assert out.shape == (2, 3, 4, 4)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([-1.7923, -1.7521, -1.4802]), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[1, :, 0, 0], torch.tensor([1.9303, 2.0749, 2.1459]), atol=1e-4, rtol=0)


def test_paper_table_values() -> None:
    assert {n: p.learning_rate for n, p in PAPER.items() if p.learning_rate != 5e-4} == {
        "RN50x16": 4e-4, "RN50x64": 3.6e-4, "ViT-L/14": 4e-4, "ViT-L/14@336px": 2e-5,
    }  # fmt: skip
    for name, values in PAPER.items():
        wanted = (0.98, 1e-6) if name.startswith("ViT") else (0.999, 1e-8)
        assert (values.beta2, values.epsilon) == wanted
        assert values.config.text_cfg.width == values.config.text_cfg.heads * 64
    config = TrainConfig()
    assert (config.batch_size, config.epochs, config.warmup_steps, config.weight_decay) == (
        32768,
        32,
        2000,
        0.2,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_configuration_round_trip(name: str) -> None:
    import json

    config = preset(name).config
    assert from_dict(json.loads(json.dumps(config.to_dict())), where="here") == config


def test_bad_configurations() -> None:
    with pytest.raises(ContractError, match=r"here: .*KeyError"):
        from_dict({}, where="here")
    with pytest.raises(UsageError, match="no model 'RN51'"):
        preset("RN51")
    for wrong in (
        {"image_size": 50},
        {"vision_layers": 3},
        {"vision_width": 31},
        {"patch_size": 8},
        {"text_heads": 3},
        {"vocab_size": 100},
    ):
        with pytest.raises(ValueError, match=r"choose|needs"):
            TrainConfig(model="RN-mini", **wrong).architecture()  # type: ignore[arg-type]
