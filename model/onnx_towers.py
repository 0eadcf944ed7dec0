"""Both towers as ONNX models, each held against torch before it is kept.

Inputs and outputs have the names of transformers' exports (``pixel_values``, ``input_ids``, ``image_embeds``,
``text_embeds``); batch and text length are free. Embeddings come out L2-normalised. The models' metadata says how
pixels are scaled and what the logit scale is. Needs the extra ``onnx``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.clip import CLIP, MEAN, STD
from pipeline.core.errors import StageFailedError, UsageError

IMAGE_TOWER, TEXT_TOWER, PREPROCESSING = "vision_model.onnx", "text_model.onnx", "preprocessing.json"
NEEDED = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20
TOLERANCE = 1e-4  # between torch and onnxruntime, of unit vectors' components
_CHECKED_BATCHES = (1, 3)


class ImageTower(nn.Module):
    """Normalised images [B, 3, S, S] to unit vectors [B, E]."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        return F.normalize(self.model.encode_image(pixels), dim=-1)


class TextTower(nn.Module):
    """Token ids [B, L] to unit vectors [B, E]."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return F.normalize(self.model.encode_text(tokens), dim=-1)


@dataclass(frozen=True)
class Exported:
    """The files of an export.

    Attributes:
        files: Bytes by name.
        difference: Largest difference between torch and onnxruntime, by file.
    """

    files: dict[str, bytes]
    difference: dict[str, float]


def check_installed() -> None:
    """Checks that the packages are there.

    Raises:
        UsageError: One is not.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "ONNX models need packages that are not installed",
            found=f"no {', '.join(missing)}",
            hint="pip install 'webimagetext[onnx]'",
        )


def export(model: CLIP) -> Exported:
    """Both towers of a model, in evaluation mode, on the CPU.

    Raises:
        UsageError: The packages are not installed.
        StageFailedError: onnxruntime does not compute what torch does.
    """
    check_installed()
    model = model.float().cpu().eval()
    vision, text = model.config.vision_cfg, model.config.text_cfg
    facts = preprocessing(model)
    batch = torch.export.Dim("batch", min=1)
    length = torch.export.Dim("length", min=2, max=text.context_length)
    pixels, tokens = example(model)
    towers = (
        (IMAGE_TOWER, ImageTower(model), pixels, "pixel_values", "image_embeds", {0: batch}),
        (TEXT_TOWER, TextTower(model), tokens, "input_ids", "text_embeds", {0: batch, 1: length}),
    )
    files, difference = {}, {}
    for name, tower, inputs, given, made, free in towers:
        data = _convert(tower, inputs, given, made, free, facts)
        files[name] = data
        checked = (inputs, shorter(inputs)) if name == TEXT_TOWER else (inputs,)
        difference[name] = max(_compare(name, data, tower, one) for one in checked)
    facts["vision"] = {"input": "pixel_values", "shape": ["batch", 3, vision.image_size, vision.image_size]}
    facts["text"] = {"input": "input_ids", "shape": ["batch", "length"], "longest": text.context_length}
    files[PREPROCESSING] = (json.dumps(facts, indent=2) + "\n").encode()
    return Exported(files, difference)


def preprocessing(model: CLIP) -> dict[str, Any]:
    """What a user of the towers must know: scaling of pixels, tokens, and the scale of the similarities."""
    return {
        "image_size": model.config.vision_cfg.image_size,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resize": "short side to image_size, bicubic; then the middle square; values / 255",
        "tokenizer": "CLIP's lower-cased byte pairs",
        "vocab_size": model.config.text_cfg.vocab_size,
        "context_length": model.config.text_cfg.context_length,
        "logit_scale": float(model.logit_scale.detach().exp()),
        "embed_dim": model.config.embed_dim,
    }


def example(model: CLIP) -> tuple[Tensor, Tensor]:
    """Inputs to trace and compare with: images [3, 3, S, S], and texts [3, L] of different lengths."""
    draw = torch.Generator().manual_seed(0)
    size, text = model.config.vision_cfg.image_size, model.config.text_cfg
    count, end = max(_CHECKED_BATCHES), text.vocab_size - 1
    tokens = torch.zeros(count, text.context_length, dtype=torch.long)
    for row, filled in zip(tokens, (text.context_length, 3, text.context_length // 2 + 1), strict=True):
        row[:filled] = torch.randint(1, end - 1, (filled,), generator=draw)
        row[0], row[filled - 1] = end - 1, end
    return torch.randn(count, 3, size, size, generator=draw), tokens


def shorter(tokens: Tensor) -> Tensor:
    """Those of the example's texts that fit half the length [2, L // 2 + 1], cut to it: padding must not matter."""
    return tokens[1:, : tokens.shape[1] // 2 + 1]


def _convert(
    tower: nn.Module, inputs: Tensor, given: str, made: str, free: dict[int, Any], facts: dict[str, Any]
) -> bytes:
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            tower, (inputs[:2],), dynamo=True, input_names=[given], output_names=[made], dynamic_shapes=(free,),
            opset_version=OPSET, verbose=False,
        )  # fmt: skip
    found = program.model_proto
    # The exporter notes where each node comes from, with the paths of the machine that it ran on.
    for one in (
        found.graph,
        *found.graph.node,
        *found.graph.value_info,
        *found.graph.input,
        *found.graph.output,
    ):
        del one.metadata_props[:]
        one.doc_string = ""
    for key in ("image_mean", "image_std", "image_size", "context_length", "vocab_size", "logit_scale"):
        found.metadata_props.add(key=key, value=json.dumps(facts[key]))
    data: bytes = found.SerializeToString(deterministic=True)
    return data


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that no model of ours needs, and of torch's own calls."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _compare(name: str, data: bytes, tower: nn.Module, inputs: Tensor) -> float:
    """The largest difference between torch and onnxruntime over several batch sizes.

    Raises:
        StageFailedError: It is beyond :data:`TOLERANCE`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    worst = 0.0
    for count in _CHECKED_BATCHES:
        with torch.inference_mode():
            wanted = tower(inputs[:count]).numpy()
        found = session.run(None, {given: inputs[:count].numpy()})[0]
        worst = max(worst, float(np.abs(found - wanted).max()))
    if not worst <= TOLERANCE:  # not a number is no agreement either
        raise StageFailedError(
            "the ONNX model does not compute what torch does",
            where=name,
            expected=f"differences up to {TOLERANCE:g}",
            found=f"{worst:.3g}",
        )
    return worst
