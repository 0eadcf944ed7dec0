"""Checkpoints of others load here, ours load there, and outputs and gradients agree with transformers' code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from model import checkpoint, interchange
from model.clip import CLIP
from model.config import ExportConfig
from model.export import run
from model.loss import contrastive_loss
from model.presets import PAPER, ModelConfig
from pipeline.cli import main
from pipeline.core.errors import ContractError, InputError, UsageError
from tests.model.small_models import QUIET, RESNET, VIT, WIDE, gradients, inputs, made, perturb, saved


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_outputs_and_gradients_of_transformers(quick_gelu: bool, attention: str) -> None:
    from transformers import CLIPConfig, CLIPModel

    model = ModelConfig(embed_dim=32, vision_cfg=VIT.vision_cfg, text_cfg=VIT.text_cfg, quick_gelu=quick_gelu)
    config = CLIPConfig(**interchange.transformers_config(model))
    config._attn_implementation = attention
    theirs: Any = CLIPModel(config)
    theirs.eval()
    perturb(theirs)
    ours = CLIP(model).eval()
    ours.load_state_dict(interchange.from_transformers(theirs.state_dict()))
    images, tokens = inputs()
    image = theirs.get_image_features(pixel_values=images).pooler_output
    text = theirs.get_text_features(input_ids=tokens).pooler_output
    assert image.abs().max() > 0.5
    torch.testing.assert_close(ours.encode_image(images), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_text(tokens), text, atol=1e-5, rtol=0)
    their_loss = theirs(input_ids=tokens, pixel_values=images, return_loss=True).loss
    our_loss = contrastive_loss(*ours(images, tokens))
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    wanted = interchange.from_transformers(gradients(their_loss, theirs))
    found = gradients(our_loss, ours)
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        assert (gradient - wanted[name]).abs().max() <= 1e-5 * wanted[name].abs().max().clamp(min=1), name
    assert max(g.abs().max().item() for g in found.values()) > 0.05


def assert_same(found: CLIP, wanted: CLIP) -> None:
    assert found.config.quick_gelu == wanted.config.quick_gelu
    assert found.config.vision_cfg == wanted.config.vision_cfg
    images, tokens = inputs(wanted.config.vision_cfg.image_size)
    with torch.no_grad():
        assert torch.equal(found.encode_image(images), wanted.encode_image(images))
        assert torch.equal(found.encode_text(tokens), wanted.encode_text(tokens))


def test_transformers_loads_what_we_export_and_back(tmp_path: Path) -> None:
    from transformers import CLIPModel

    model = made(VIT)
    folder = saved(model, tmp_path, "transformers")
    loaded: Any = CLIPModel.from_pretrained(folder, output_loading_info=True)
    theirs, notes = loaded
    assert not any(notes.values())
    images, tokens = inputs()
    with torch.no_grad():
        image = theirs.get_image_features(pixel_values=images).pooler_output
        text = theirs.get_text_features(input_ids=tokens).pooler_output
        torch.testing.assert_close(model.encode_image(images), image, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.encode_text(tokens), text, atol=1e-5, rtol=0)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(checkpoint.load_model(str(tmp_path / "theirs")), model)
    run(ExportConfig(model=str(tmp_path / "theirs"), form="wit"), str(tmp_path / "back"), QUIET)
    assert_same(checkpoint.load_model(str(tmp_path / "back")), model)


@pytest.mark.parametrize("config", [VIT, RESNET])
def test_open_clips_folder_and_back(config: ModelConfig, tmp_path: Path) -> None:
    model = made(config)
    folder = Path(saved(model, tmp_path, "open_clip"))
    values = json.loads((folder / "open_clip_config.json").read_text())
    assert set(values["model_cfg"]) == {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
    (folder / "manifest.json").unlink()  # as others publish theirs
    assert_same(checkpoint.load_model(str(folder)), model)
    assert (
        main(["export", "--model", str(folder), "--form", "wit", "--out", str(tmp_path / "b"), "--quiet"])
        == 0
    )
    assert_same(checkpoint.load_model(str(tmp_path / "b")), model)


def test_export_has_a_model_card(small_checkpoint: str, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    scores.write_text('{"task": "zero-shot", "dataset": "birds", "n": 8, "metrics": {"top1": 0.125}}')
    words = ["--name", "tiny", "--scores", str(scores), "--out", str(tmp_path / "e"), "--quiet"]
    assert main(["export", "--model", small_checkpoint, *words]) == 0
    card = (tmp_path / "e" / "MODEL_CARD.md").read_text()
    assert "library_name: open_clip" in card
    assert "# Model card: tiny" in card
    assert "| preset | RN-tiny |" in card
    assert "The shards offered 64 image-text pairs, of which 64 could be used." in card
    assert "| shards | `wit fetch`" in card
    assert "| birds | zero-shot | 8 | top1 | 12.5% | – | – |" in card
    scores.write_text("{}")
    words[-2] = str(tmp_path / "f")
    assert main(["export", "--model", small_checkpoint, *words]) == 1


def test_activation_that_open_clip_leaves_out_is_gelu(tmp_path: Path) -> None:
    model = made(VIT)
    values = VIT.to_dict()
    del values["quick_gelu"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": values}))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    assert checkpoint.load_model(str(tmp_path)).config.quick_gelu is False


@pytest.mark.parametrize("config", [WIDE, RESNET])
@pytest.mark.parametrize("script", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_openais_archive(config: ModelConfig, script: bool, tmp_path: Path) -> None:
    model = made(config)
    path = tmp_path / "ViT.pt"
    numbers = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    if script:
        torch.jit.save(_archive({**model.state_dict(), **numbers}), path)
    else:
        torch.save({**model.state_dict(), **numbers}, path)
    assert_same(checkpoint.load_model(str(path)), model)


def _archive(state: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """A scripted module with nested names, as OpenAI's archives are."""
    root = nn.Module()
    for name, value in state.items():
        place = root
        *parents, last = name.split(".")
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        place.register_buffer(last, value)
    scripted: torch.jit.ScriptModule = torch.jit.script(root)
    return scripted


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(made(VIT).state_dict(), path)
    with pytest.raises(InputError, match="do not say which activation"):
        checkpoint.load_model(str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged weights"):
        checkpoint.load_model(str(path))


def test_what_others_do_not_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="transformers has no CLIP ResNets"):
        interchange.transformers_config(RESNET)
    values = {"model_type": "clip", "vision_config": {"hidden_act": "relu"}, "text_config": {}}
    with pytest.raises(ContractError, match=r"expected quick_gelu or gelu, found quick_gelu, relu"):
        interchange.from_transformers_config(values, where="c")
    with pytest.raises(ContractError, match="towers of timm"):
        interchange.from_open_clip_config({"vision_cfg": {"timm_model_name": "x"}}, where="c")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(
        InputError, match=r"no weights in one file.*expected model.safetensors or pytorch_model"
    ):
        checkpoint.load_model(str(tmp_path))


@pytest.mark.parametrize("name", [n for n in PAPER if n.startswith("ViT")])
def test_transformers_configuration_round_trip(name: str) -> None:
    config = PAPER[name].config
    assert interchange.from_transformers_config(interchange.transformers_config(config), where="c") == config


def test_defaults_of_transformers_are_vit_b_32() -> None:
    assert interchange.from_transformers_config({"model_type": "clip"}, where="c") == PAPER["ViT-B/32"].config
