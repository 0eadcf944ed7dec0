from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dedup.detector import PRESETS, Architecture, Detector, JoinedHead, decode, prepare
from dedup.folder import load, save
from dedup.fused import embed
from dedup.layers import BlurPool2d, Bottleneck, WeightNormConv2d
from pipeline.core.errors import ContractError, InputError
from pipeline.core.fakes import picture


def _pixels(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, side, side), dtype=np.uint8)


def test_blur_pool_is_the_triangle_filter() -> None:
    row = torch.tensor([0.0, 0, 4, 0, 0, 0]).expand(1, 1, 6, 6)
    assert BlurPool2d()(row)[0, 0, 0].tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_blur_pool_keeps_a_constant_at_any_size(side: int) -> None:
    pooled = BlurPool2d()(torch.full((1, 2, side, side), 3.0))
    assert pooled.shape == (1, 2, -(-side // 2), -(-side // 2))
    assert torch.all(pooled == 3.0)


@pytest.mark.parametrize("side", [5, 7, 8])
def test_bottleneck_halves_odd_and_even_maps(side: int) -> None:
    assert Bottleneck(4, 2, 8, stride=2)(torch.randn(1, 4, side, side)).shape[-1] == -(-side // 2)


def test_a_filters_length_is_its_gain() -> None:
    layer = WeightNormConv2d(3, 5, 3, gain=0.7)
    assert layer.weight().flatten(1).norm(dim=1).tolist() == pytest.approx([0.7] * 5)


def test_no_layer_keeps_statistics_of_a_batch() -> None:
    for preset in PRESETS.values():
        with torch.device("meta"):
            made = Detector(preset)
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm | nn.Dropout) for m in made.modules())
        assert {name for name, _ in made.named_buffers()} <= {"centre", "projection"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("training", [False, True])
def test_an_embedding_does_not_depend_on_its_batch(training: bool, preset: str) -> None:
    torch.manual_seed(0)
    made = Detector(PRESETS[preset]).train(training)
    pixels = _pixels(6, 64)
    others = pixels.copy()
    others[1:3] = pixels[0]  # copies of it
    others[3:] = 255
    with torch.no_grad():
        alone = made(torch.from_numpy(pixels[:1]))
        for batch, place in ((pixels, 0), (others, 0), (others[::-1].copy(), 5)):
            together = made(torch.from_numpy(batch))[place : place + 1]
            assert torch.allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_gradient_flows_between_pictures(preset: str) -> None:
    torch.manual_seed(0)
    made = Detector(PRESETS[preset]).train()
    pixels = torch.from_numpy(_pixels(4, 64)).float().requires_grad_()
    found = made.learned(pixels)
    (flow,) = torch.autograd.grad(found[1] @ torch.randn(found.shape[1]), pixels)
    assert flow[1].abs().max() > 1e-6
    assert torch.count_nonzero(flow[[0, 2, 3]]) == 0


def test_small_preset_is_small() -> None:
    made = Detector(PRESETS["small"])
    assert sum(p.numel() for p in made.parameters()) <= 1_000_000
    found = embed(made, _pixels(3, 64))
    assert found.shape == (3, PRESETS["small"].embedding)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_resnet50_has_its_size() -> None:
    with torch.device("meta"):
        made = Detector(PRESETS["resnet50"])
    trunk = sum(p.numel() for name, p in made.named_parameters() if not name.startswith("head"))
    assert trunk == pytest.approx(23.5e6, rel=0.01)


def test_flat_pictures_have_an_embedding() -> None:
    flat = np.full((2, 6, 64, 64), 255, np.uint8)
    for preset in ("small", "general"):
        found = embed(Detector(PRESETS[preset]), flat)
        assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_no_pictures_no_embeddings() -> None:
    assert embed(Detector(PRESETS["small"]), _pixels(0, 64)).shape == (0, PRESETS["small"].embedding)


def test_saved_and_loaded_are_the_same(tmp_path: Path) -> None:
    made = Detector(PRESETS["small"])
    sha256 = save(str(tmp_path), made, threshold=0.9, notes={"preset": "small"})
    again = load(str(tmp_path))
    assert (again.threshold, again.sha256) == (0.9, sha256)
    pixels = _pixels(4, 64)
    assert np.array_equal(embed(made, pixels), embed(again.detector, pixels))


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    buffer = io.BytesIO()
    clear.save(buffer, "WEBP", lossless=True)
    assert decode(buffer.getvalue()).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    image = picture("red", "circle", size=16)
    (image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode)).save(
        buffer, "TIFF"
    )
    assert prepare(decode(buffer.getvalue()), 8).shape == (3, 8, 8)


def test_damaged_pictures_are_refused() -> None:
    buffer = io.BytesIO()
    picture("red", "circle").save(buffer, "PNG")
    for data in (b"", b"not a picture", buffer.getvalue()[:80]):
        with pytest.raises(ValueError, match=r"."):
            decode(data)


def test_bombs_are_refused_before_they_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="too large"):
        decode(buffer.getvalue())


def test_bad_detector_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no detector here"):
        load(str(tmp_path))
    save(str(tmp_path), Detector(PRESETS["small"]), threshold=None, notes={})
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(InputError, match="damaged detector weights"):
        load(str(tmp_path))
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (({"contract": "clip/1"}, "another contract"), ({"architecture": None}, "table")):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises((ContractError, InputError, TypeError), match=message):
            load(str(tmp_path))


@pytest.mark.parametrize("wrong", [{"depths": (1,)}, {"joined": -1}, {"joined": 100_000}, {"hashed": 4}])
def test_impossible_architectures_are_refused(wrong: dict[str, object]) -> None:
    values: dict[str, object] = {
        "image_px": 64, "stem_channels": 8, "stem_kernel": 5, "stem_pool": False, "widths": (4, 8),
        "depths": (1, 1), "learned": 16, "embedding": 16, **wrong,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"must"):
        Architecture(**values)  # type: ignore[arg-type]


def test_the_head_stays_at_single_precision() -> None:
    torch.manual_seed(0)
    head, given = JoinedHead(24, 16, 8), torch.randn(5, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(given)
    assert found.dtype == torch.float32
    assert torch.equal(found, head(given))
