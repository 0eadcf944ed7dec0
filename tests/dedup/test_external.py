from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dedup.backends import open_backend
from dedup.external import PictureInput, prepare
from pipeline.cli import main
from pipeline.core import manifest, tables
from pipeline.core.contracts import EMBEDDINGS

SIDE, DIMENSION = 8, 12
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
EXPECTS = {"image_px": SIDE, "mean": MEAN, "std": STD}
MODULE = """
import torch
from torch import nn

def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12, bias=False))

def pair():
    return nn.Sequential(small(), nn.Unflatten(1, (3, 4)))

def unlike():
    torch.seed()
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12, bias=False))

whole = small()
text = str
"""


def _weights() -> np.ndarray:
    torch.manual_seed(0)
    return nn.Linear(3 * SIDE * SIDE, DIMENSION, bias=False).weight.detach().numpy().astype(np.float32)


def _onnx(path: Path, batch: int | str = "batch") -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx, of the extra `onnx`, is not installed")
    pytest.importorskip(
        "onnxruntime", reason="the package onnxruntime, of the extra `onnx`, is not installed"
    )
    from onnx import TensorProto, helper

    shape = [batch, 3, SIDE, SIDE]
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pictures"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights"], ["vectors"], transB=1),
        ],
        "small",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [batch, DIMENSION])],
        [onnx.numpy_helper.from_array(_weights(), "weights")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(made.SerializeToString())


def _script(path: Path) -> None:
    linear = nn.Linear(3 * SIDE * SIDE, DIMENSION, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(_weights()))
    network = nn.Sequential(nn.Flatten(), linear)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(network, torch.zeros(2, 3, SIDE, SIDE)), buffer)  # type: ignore[no-untyped-call]
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The same small network in every form, as words of the command line."""
    (tmp_path / "described.json").write_text(json.dumps(EXPECTS))
    for name in ("made.json", "fixed.json", "script.json"):
        (tmp_path / name).write_text(json.dumps(EXPECTS))
    _onnx(tmp_path / "made.onnx")
    _onnx(tmp_path / "fixed.onnx", 5)
    _script(tmp_path / "script.pt")
    (tmp_path / "some_detector.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "some_detector", raising=False)
    given = ["--detector-input", str(tmp_path / "described.json")]
    return {
        "onnx": ["--detector", str(tmp_path / "made.onnx")],
        "fixed batch": ["--detector", str(tmp_path / "fixed.onnx")],
        "script": ["--detector", str(tmp_path / "script.pt")],
        "function": ["--detector", "some_detector:small", *given],
        "module": ["--detector", "some_detector:whole", *given],
    }


def test_every_form_gives_the_same_embeddings(
    networks: dict[str, list[str]], folder: str, tmp_path: Path
) -> None:
    expected = {}
    for file in sorted(Path(folder).rglob("*.png")):
        image = (
            Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
        )
        pixels = (np.asarray(image, np.float64) / 255 - MEAN) / STD
        vector = _weights().astype(np.float64) @ pixels.transpose(2, 0, 1).reshape(-1)
        expected[str(file.relative_to(folder))] = vector / np.linalg.norm(vector)
    for name, words in networks.items():
        out = tmp_path / f"out {name}"
        command = ["dedup", "embed", "--images", folder, "--out", str(out), "--quiet"]
        assert main([*command, *words, "--set", "dedup.embed.batch_size=7"]) == 0
        rows = tables.read_folder(str(out), EMBEDDINGS).to_pylist()
        assert len(rows) == len(expected)
        for row in rows:
            assert row["embedding"] == pytest.approx(expected[row["id"]], abs=2e-5), name
        assert manifest.read(str(out)).extra["dimension"] == DIMENSION


def test_an_audit_with_somebody_elses_network(
    networks: dict[str, list[str]], folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["dedup", "audit", "--train", folder, "--eval", folder, "--out", str(out), "--quiet", "--half"]
    words += networks["script"]
    assert main(words) == 1
    line = capsys.readouterr().err.strip()
    assert "no threshold for data set 'shapes'" in line
    assert "wit dedup review" in line
    assert "--thresholds FILE" in line
    assert "\n" not in line
    (tmp_path / "thresholds.json").write_text('{"shapes": 0.999}')
    assert main([*words, "--thresholds", str(tmp_path / "thresholds.json")]) == 0
    found = json.loads((out / "overlap.json").read_text())["datasets"]["shapes"]
    assert (found["n_overlap"], found["threshold"]) == (24, 0.999)
    found_type = (
        tables.read_schema(str(out / "train-embeddings" / "part-00000.parquet")).field("embedding").type
    )
    assert str(found_type.value_type) == "halffloat"


def test_a_threshold_of_the_description_is_used(networks: dict[str, list[str]], tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    before = open_backend(str(tmp_path / "script.pt"))
    path.write_text(json.dumps({**EXPECTS, "threshold": 0.7}))
    after = open_backend(str(tmp_path / "script.pt"))
    assert (before.threshold, after.threshold) == (None, 0.7)
    assert before.sha256 != after.sha256


def test_another_module_is_another_configuration(
    networks: dict[str, list[str]], folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["dedup", "embed", "--images", folder, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*command, *networks["function"]]) == 0
    sys.modules.pop("some_detector")
    (tmp_path / "some_detector.py").write_text(MODULE.replace("seed=0", "seed=12345"))
    assert main([*command, *networks["function"]]) == 1
    assert "hash was 'some_detector:small" in capsys.readouterr().err


def test_a_function_that_gives_another_network_each_time_is_refused(
    networks: dict[str, list[str]], folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dedup", "embed", "--images", folder, "--out", str(tmp_path / "out"), "--quiet"]
    given = ["--detector-input", str(tmp_path / "described.json")]
    assert main([*words, "--detector", "some_detector:unlike", *given]) == 1
    line = capsys.readouterr().err.strip()
    assert "another one each time it is opened" in line
    assert "\n" not in line


def test_an_audit_with_another_module_is_made_again(
    networks: dict[str, list[str]], folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thresholds.json").write_text('{"shapes": 0.999}')
    words = ["dedup", "audit", "--train", folder, "--eval", folder, "--out", str(tmp_path / "out"), "--quiet"]
    words += ["--thresholds", str(tmp_path / "thresholds.json"), *networks["function"]]
    assert main(words) == 0
    sys.modules.pop("some_detector")
    (tmp_path / "some_detector.py").write_text(MODULE.replace("seed=0", "seed=12345"))
    assert main(words) == 1
    assert "hash was 'some_detector:small" in capsys.readouterr().err


def test_cropping_keeps_the_middle() -> None:
    image = Image.new("RGB", (30, 10), (255, 0, 0))
    image.paste((0, 0, 255), (10, 0, 20, 10))
    cropped = prepare(image, PictureInput(image_px=4, resize="crop", interpolation="bicubic"))
    assert cropped.shape == (3, 4, 4)
    assert (cropped[2] > 200).all()
    squashed = prepare(image, PictureInput(image_px=4))
    assert squashed[0, 0, 0] > 200 > squashed[2, 0, 0]


def test_an_onnx_file_with_weights_elsewhere_is_refused(
    networks: dict[str, list[str]],
    folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnx

    model = onnx.load(tmp_path / "made.onnx")
    onnx.save(model, tmp_path / "script.onnx", save_as_external_data=True, location="w", size_threshold=0)
    monkeypatch.chdir(tmp_path)  # where onnxruntime would find the weights, whose bytes are in no hash
    command = ["dedup", "embed", "--images", folder, "--out", str(tmp_path / "o"), "--quiet"]
    assert main([*command, "--detector", "script.onnx"]) == 1
    line = capsys.readouterr().err.strip()
    assert "keeps weights in another file" in line
    assert "save it as one file" in line
    assert "\n" not in line


def test_wrong_networks_are_one_line(
    networks: dict[str, list[str]], folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = ["--detector-input", str(tmp_path / "described.json")]
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    (tmp_path / "broken.pt").write_bytes(b"no network")
    (tmp_path / "typo.json").write_text('{"image_px": 8, "men": [0, 0, 0]}')
    (tmp_path / "larger.json").write_text('{"image_px": 9}')
    (tmp_path / "zero.json").write_text('{"image_px": 0}')
    (tmp_path / "list.json").write_text("[8]")
    (tmp_path / "bad.json").write_text("{image_px")
    script = str(tmp_path / "script.pt")
    cases = [
        (["--detector", str(tmp_path / "broken.onnx"), *described], "not an ONNX file"),
        (["--detector", str(tmp_path / "broken.pt"), *described], "not a TorchScript file"),
        (["--detector", str(tmp_path / "broken.pt")], "nothing says what this detector expects"),
        (["--detector", str(tmp_path / "absent.onnx"), *described], "absent.onnx"),
        (["--detector", "no_such_module:make", *described], "no such detector"),
        (["--detector", "some_detector:no", *described], "no such detector"),
        (["--detector", "some_detector:text", *described], "not a torch module"),
        (["--detector", "some_detector:pair", *described], "one vector for each picture"),
        (["--detector", "some_detector:small"], "nothing says what this detector expects"),
        (["--detector", script, "--detector-input", str(tmp_path / "typo.json")], "did you mean"),
        (["--detector", script, "--detector-input", str(tmp_path / "larger.json")], "cannot take its input"),
        (
            ["--detector", script, "--detector-input", str(tmp_path / "zero.json")],
            "image_px must be at least 1",
        ),
        (["--detector", script, "--detector-input", str(tmp_path / "list.json")], "not a table"),
        (["--detector", script, "--detector-input", str(tmp_path / "bad.json")], "not a JSON file"),
        (["--detector", "phash", *described], "--detector-input belongs to"),
    ]
    for words, message in cases:
        assert main(["dedup", "embed", "--images", folder, "--out", str(tmp_path / "o"), *words]) in (1, 2), (
            words
        )
        line = capsys.readouterr().err.strip()
        assert message in line, line
        assert "\n" not in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_one_line(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dedup", "embed", "--images", folder, "--out", str(tmp_path / "o"), "--device", "cuda"]
    assert main(words) == 2
    assert "torch can use no GPU" in capsys.readouterr().err
