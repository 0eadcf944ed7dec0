"""ONNX models: onnxruntime computes what torch does, for any batch, and the files name no machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model import onnx_towers
from model.clip import CLIP
from model.config import ExportConfig
from model.export import run
from pipeline.cli import main
from pipeline.core import manifest
from pipeline.core.errors import StageFailedError, UsageError
from tests.model.small_models import QUIET, RESNET, VIT, inputs, made, saved

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def computed(path: Path, values: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: values.numpy()})[0]
    return result


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIP, Path]:
    model, root = made(VIT), tmp_path_factory.mktemp("onnx")
    source, out = saved(model, root, "wit"), root / "made"
    assert main(["export", "--model", source, "--format", "onnx", "--out", str(out), "--quiet"]) == 0
    return model, out


def assert_same(model: CLIP, folder: Path) -> None:
    images, tokens = inputs(model.config.vision_cfg.image_size)
    with torch.no_grad():
        image = F.normalize(model.encode_image(images), dim=-1).numpy()
        text = F.normalize(model.encode_text(tokens), dim=-1).numpy()
    for wanted in (image, text):
        assert np.abs(wanted[0] - wanted[1]).max() > 1e-2  # rows tell apart, so equality says something
    for count in (1, 2, 4):
        assert np.abs(computed(folder / "vision_model.onnx", images[:count]) - image[:count]).max() <= 1e-4
        assert np.abs(computed(folder / "text_model.onnx", tokens[:count]) - text[:count]).max() <= 1e-4
    # Texts cut to the longest of a batch give the same.
    assert np.abs(computed(folder / "text_model.onnx", tokens[:3, :9]) - text[:3]).max() <= 1e-4


def test_onnxruntime_computes_what_torch_does(exported: tuple[CLIP, Path]) -> None:
    model, out = exported
    assert_same(model, out)
    facts = manifest.read(str(out)).extra
    assert facts["form"] == "onnx"
    assert set(facts["difference_from_torch"]) == {"vision_model.onnx", "text_model.onnx"}
    assert max(facts["difference_from_torch"].values()) <= 1e-4
    told = json.loads((out / "preprocessing.json").read_text())
    assert (told["image_size"], told["context_length"]) == (32, 77)
    assert told["logit_scale"] == pytest.approx(model.logit_scale.exp().item())


def test_resnet_and_bag_of_words(tmp_path: Path) -> None:
    text = dataclasses.replace(RESNET.text_cfg, kind="cbow")
    model = made(dataclasses.replace(RESNET, text_cfg=text))
    for name, data in onnx_towers.export(model).files.items():
        (tmp_path / name).write_bytes(data)
    assert_same(model, tmp_path)


def test_files_are_sound_and_name_no_machine(exported: tuple[CLIP, Path]) -> None:
    model, out = exported
    for name in (onnx_towers.IMAGE_TOWER, onnx_towers.TEXT_TOWER):
        data = (out / name).read_bytes()
        found = onnx.load_from_string(data)
        onnx.checker.check_model(found, full_check=True)
        assert b".py" not in data
        told = {p.key: json.loads(p.value) for p in found.metadata_props}
        assert told["image_mean"] == pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-4)
    assert onnx_towers.export(model).files[name] == data


def test_a_difference_stops_the_export(exported: tuple[CLIP, Path]) -> None:
    model, out = exported
    name, tokens = onnx_towers.TEXT_TOWER, onnx_towers.example(model)[1]
    other = made(VIT)
    with torch.no_grad():
        other.text_projection[0, 0] += 0.05
    data = (out / name).read_bytes()
    assert onnx_towers._compare(name, data, onnx_towers.TextTower(model), tokens) <= 1e-6
    short = onnx_towers.shorter(tokens)
    assert short.shape == (2, tokens.shape[1] // 2 + 1)
    assert (short == VIT.text_cfg.vocab_size - 1).sum(dim=1).tolist() == [1, 1]  # both ends are still there
    assert onnx_towers._compare(name, data, onnx_towers.TextTower(model), short) <= 1e-6
    with pytest.raises(StageFailedError, match=r"text_model.onnx: .*does not compute what torch does"):
        onnx_towers._compare(name, data, onnx_towers.TextTower(other), tokens)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(made(VIT), tmp_path, "wit")
    monkeypatch.setattr(onnx_towers, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(UsageError, match=r"no no_such_package; pip install 'webimagetext\[onnx\]'"):
        run(ExportConfig(model=source, form="onnx"), str(tmp_path / "out"), QUIET)
    assert not (tmp_path / "out").exists()


def test_a_text_tower_of_one_length_is_refused(
    monkeypatch: pytest.MonkeyPatch, exported: tuple[CLIP, Path]
) -> None:
    model, out = exported
    # What agrees with torch at the full length alone: the exported files, against a tower that sees the length.
    real = onnx_towers.TextTower.forward

    def forward(self: onnx_towers.TextTower, tokens: torch.Tensor) -> torch.Tensor:
        return real(self, tokens) + (tokens.shape[1] < model.config.text_cfg.context_length)

    files = {name: (out / name).read_bytes() for name in (onnx_towers.IMAGE_TOWER, onnx_towers.TEXT_TOWER)}
    monkeypatch.setattr(onnx_towers.TextTower, "forward", forward)
    monkeypatch.setattr(
        onnx_towers,
        "_convert",
        lambda tower, *_: files[
            f"{'text' if tower.__class__ is onnx_towers.TextTower else 'vision'}_model.onnx"
        ],
    )
    with pytest.raises(StageFailedError, match=r"text_model.onnx: .*does not compute what torch does"):
        onnx_towers.export(model)
