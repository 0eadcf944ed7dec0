"""Outputs and gradients of OpenAI's own code, timm and open_clip; skipped where they are not installed.

They are no dependencies: open_clip and timm need a torchvision that fits the torch in use.
``pip install --no-deps clip-anytorch==2.6.0 open-clip-torch==3.3.0 timm==1.0.31 torchvision==0.28.0`` installs all.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.clip import CLIP
from model.loss import contrastive_loss
from model.presets import PAPER, ModelConfig
from tests.model.small_models import RESNET, WIDE, gradients, inputs, made, saved

TOLERANCE = 1e-5  # of the largest number of a tensor, for outputs of order one


@pytest.fixture(scope="module")
def openai() -> Any:
    """OpenAI's ``clip/model.py``; the package itself cannot be imported with today's setuptools."""
    try:
        files = importlib.metadata.files("clip-anytorch") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("clip-anytorch is not installed")
    path = next(str(f.locate()) for f in files if str(f) == "clip/model.py")
    spec = importlib.util.spec_from_file_location("openai_clip_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def torchvision_users() -> None:
    """Skips where open_clip and timm, or the torchvision they import, are missing or do not fit torch."""
    for package in ("torchvision", "open_clip", "timm"):
        try:
            importlib.import_module(package)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"{package} cannot be imported: {error}")


def assert_equal(found: Tensor, wanted: Tensor, what: str) -> None:
    difference = (found - wanted).abs().max().item()
    assert difference <= TOLERANCE * max(1.0, wanted.abs().max().item()), f"{what}: {difference}"


def compare(ours: CLIP, theirs: Any, size: int) -> None:
    """Both embeddings, the loss's gradients of every parameter, in the mode the models are in."""
    images, tokens = inputs(size)
    tokens = tokens.where(tokens < 598, tokens + ours.config.text_cfg.vocab_size - 600)
    found, wanted = ours.encode_image(images), theirs.encode_image(images)
    assert_equal(found, wanted, "image")
    found_text, wanted_text = ours.encode_text(tokens), theirs.encode_text(tokens)
    assert_equal(found_text, wanted_text, "text")

    def loss(image: Tensor, text: Tensor) -> Tensor:
        unit = nn.functional.normalize
        return contrastive_loss(unit(image, dim=-1), unit(text, dim=-1), torch.tensor(10.0))

    ours_gradients = gradients(loss(found, found_text), ours)
    their_gradients = gradients(loss(wanted, wanted_text), theirs)
    assert set(ours_gradients) == set(their_gradients)
    for name, gradient in ours_gradients.items():
        assert_equal(gradient, their_gradients[name], name)


def theirs_of(openai: Any, ours: CLIP) -> Any:
    config = ours.config
    vision, text = config.vision_cfg, config.text_cfg
    model = openai.CLIP(
        config.embed_dim, vision.image_size, vision.layers, vision.width, vision.patch_size,
        text.context_length, text.vocab_size, text.width, text.heads, text.layers,
    )  # fmt: skip
    model.load_state_dict(ours.state_dict())
    return model.train(ours.training)


@pytest.mark.parametrize("config", [WIDE, RESNET])
@pytest.mark.parametrize("training", [False, True])
def test_openais_code(openai: Any, config: ModelConfig, training: bool) -> None:
    ours = made(config).train(training)
    compare(ours, theirs_of(openai, ours), config.vision_cfg.image_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_openais_code_at_the_papers_size(openai: Any, name: str) -> None:
    ours = made(PAPER[name].config)
    compare(ours, theirs_of(openai, ours), 224)


def test_timms_resnet(openai: Any, torchvision_users: None) -> None:
    import timm
    from timm.models.byobnet import checkpoint_filter_fn

    ours = made(PAPER["RN50"].config)
    theirs = timm.create_model("resnet50_clip", num_classes=1024).eval()
    state = {k.replace("visual.", ""): v for k, v in ours.state_dict().items() if k.startswith("visual.")}
    theirs.load_state_dict(checkpoint_filter_fn({f"visual.{k}": v for k, v in state.items()}, theirs))
    images, _ = inputs(224)
    with torch.no_grad():
        assert_equal(ours.encode_image(images), theirs(images), "image")


@pytest.mark.parametrize("config", [WIDE, RESNET])
def test_open_clip_loads_our_export(config: ModelConfig, torchvision_users: None, tmp_path: Path) -> None:
    import open_clip

    ours = made(config)
    folder = saved(ours, tmp_path, "open_clip")
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    compare(ours, theirs, config.vision_cfg.image_size)


def test_openais_ids_on_a_fuzz_corpus() -> None:
    from benchmarks.tokenizer import fuzz_corpus, openai
    from model.tokenizer import Tokenizer

    try:
        encode = openai()
    except ImportError:
        pytest.skip("clip-anytorch is not installed")
    tokenizer = Tokenizer()
    for text in fuzz_corpus(5_000, seed=2):
        assert tokenizer.encode(text) == encode(text), repr(text)
