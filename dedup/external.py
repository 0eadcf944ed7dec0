"""Other people's networks as detectors: an ONNX file, a TorchScript file, or a function that makes a torch module.

What a network expects of a picture stands in a small JSON file (:class:`PictureInput`): beside the network's file, with
its suffix replaced by ``.json``, or given by itself. Whatever a network gives is brought to length 1.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from pipeline.core import config as configuration
from pipeline.core import paths
from pipeline.core.errors import InputError, UsageError

ONNX, TORCHSCRIPT = (".onnx",), (".pt", ".pth", ".ts", ".torchscript")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# A tensor's external_data (field 13) with the key `location`, as ONNX's protobuf writes it.
_KEY = b"\n\x08location\x12"
_EXTERNAL = re.compile(rb"\x6a.{1,2}" + re.escape(_KEY), re.DOTALL)
# float32 [N, 3, S, S] to float32 [N, d], not yet of length 1.
Network = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class PictureInput:
    """What a network expects of a picture.

    Attributes:
        image_px: Side of the square.
        resize: ``squash`` changes the aspect ratio; ``crop`` resizes the short side and keeps the middle.
        interpolation: How it is resized.
        mean: Taken off each channel (red, green, blue) of values from 0 to 1.
        std: What each channel is then divided by.
        threshold: Similarity from which on a pair counts as a copy, if it is known.
    """

    image_px: int
    resize: Literal["squash", "crop"] = "squash"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.image_px < 1:
            raise ValueError(f"image_px must be at least 1, is {self.image_px}")
        if not all(math.isfinite(m) for m in self.mean) or not all(s > 0 for s in self.std):
            raise ValueError(f"mean must be finite and std above 0, are {self.mean} and {self.std}")
        if self.threshold is not None and not -1 < self.threshold <= 1:
            raise ValueError(f"threshold must lie in (-1, 1], is {self.threshold}")


def is_function(name: str) -> bool:
    """Whether a detector's name is ``module:function`` rather than a path."""
    return bool(_FUNCTION.fullmatch(name)) and not paths.exists(name)


def is_file(name: str) -> bool:
    """Whether a detector's name is a network's file."""
    return name.lower().endswith((*ONNX, *TORCHSCRIPT))


def input_file(name: str, given: str | None) -> str:
    """The file that says what a network expects.

    Raises:
        UsageError: None was given, and none lies beside the network.
    """
    if given is not None:
        return given
    beside = None if is_function(name) else name.rpartition(".")[0] + ".json"
    if beside is None or not paths.exists(beside):
        raise UsageError(
            "nothing says what this detector expects of a picture",
            where=name,
            expected=f"--detector-input FILE.json{'' if beside is None else f' or {beside}'}",
            hint='as {"image_px": 288, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}',
        )
    return beside


def read_input(path: str) -> PictureInput:
    """Reads a JSON file of :class:`PictureInput`.

    Raises:
        InputError: It is not JSON; ConfigError: a key or a value is wrong.
    """
    try:
        values = json.loads(paths.read_bytes(path))
    except ValueError as error:
        raise InputError("not a JSON file", where=path, found=str(error)) from error
    if not isinstance(values, dict):
        raise InputError("not a table", where=path, expected='{"image_px": 288}')
    return configuration.from_table(PictureInput, values, where=path)


@dataclass(frozen=True, kw_only=True)
class External:
    """A network of somebody else; see :class:`dedup.backends.Backend`.

    Attributes:
        network: What maps prepared pictures to vectors.
        expects: What it expects of a picture.
        dimension: Length of its vectors.
        sha256: Of the network and of what it expects.
        where: Its name, for messages.
    """

    network: Network
    expects: PictureInput
    dimension: int
    sha256: str
    where: str

    @property
    def threshold(self) -> float | None:
        """The one that its description gives."""
        return self.expects.threshold

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The picture as the network sees it, but for the scale: uint8 [3, S, S]."""
        return prepare(image, self.expects)

    def embed(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N, dimension], rows of length 1."""
        if not prepared:
            return np.zeros((0, self.dimension), np.float32)
        found = _rows(self.network, np.stack(prepared), self.expects, self.where)
        length = np.linalg.norm(found, axis=1, keepdims=True)
        if not (np.isfinite(length) & (length > 0)).all():
            raise InputError("the detector gives a vector that has no direction", where=self.where)
        return found / length


def prepare(image: Image.Image, expects: PictureInput) -> np.ndarray:
    """Resizes an RGB picture: uint8 [3, S, S]."""
    side, box = expects.image_px, None
    if expects.resize == "crop":
        short = min(image.size)
        left, top = (image.width - short) / 2, (image.height - short) / 2
        box = (left, top, left + short, top + short)
    way = Image.Resampling.BICUBIC if expects.interpolation == "bicubic" else Image.Resampling.BILINEAR
    resized = np.asarray(image.resize((side, side), way, box=box, reducing_gap=3.0))
    return np.ascontiguousarray(resized.transpose(2, 0, 1))


def open_external(name: str, given: str | None, device: torch.device) -> External:
    """Opens a network.

    Args:
        name: ONNX or TorchScript file, or ``module:function``.
        given: JSON file that says what it expects; default: the one beside the file.
        device: Where it computes.

    Raises:
        UsageError: The name leads nowhere, its description is missing, or onnxruntime is.
        InputError: The file is damaged or not the whole network, or what comes out is no vector.
    """
    expects = read_input(input_file(name, given))
    if is_function(name):
        network, identity = _module_network(_made(name), device)
    elif name.lower().endswith(ONNX):
        network, identity = _onnx_network(name, device)
    else:
        network, identity = _script_network(name, device)
    told = hashlib.sha256(identity + repr(expects).encode()).hexdigest()
    grey = np.full((1, 3, expects.image_px, expects.image_px), 128, np.uint8)
    dimension = _rows(network, grey, expects, name).shape[1]
    return External(network=network, expects=expects, dimension=dimension, sha256=told, where=name)


def _rows(network: Network, pixels: np.ndarray, expects: PictureInput, where: str) -> np.ndarray:
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (expects.mean, expects.std))
    try:
        found = network((pixels.astype(np.float32) / 255 - mean) / std)
    except Exception as error:  # each runtime has its own classes
        raise InputError(
            "the detector cannot take its input",
            where=where,
            expected=f"float32 [N, 3, {expects.image_px}, {expects.image_px}]",
            found=_line(error),
            hint="image_px of its description may be wrong",
        ) from error
    if found.ndim != 2 or len(found) != len(pixels):
        raise InputError(
            "the detector does not give one vector for each picture",
            where=where,
            expected=f"[{len(pixels)}, d]",
            found=list(found.shape),
        )
    return found.astype(np.float32, copy=False)


def _line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _made(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            "no such detector",
            where=name,
            found=str(error),
            hint="a folder, a .onnx or TorchScript file, or module:function that Python can import (PYTHONPATH)",
        ) from error
    found = made if isinstance(made, nn.Module) else made()
    if not isinstance(found, nn.Module):
        raise UsageError(
            "not a torch module", where=name, expected="torch.nn.Module", found=type(found).__name__
        )
    return found


def _module_network(module: nn.Module, device: torch.device) -> tuple[Network, bytes]:
    module = module.eval().to(device)

    @torch.inference_mode()
    def network(pixels: np.ndarray) -> np.ndarray:
        found = module(torch.from_numpy(pixels).to(device))
        return np.asarray((found[0] if isinstance(found, tuple | list) else found).float().cpu().numpy())

    digest = hashlib.sha256(type(module).__qualname__.encode())
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return network, digest.digest()


def _script_network(path: str, device: torch.device) -> tuple[Network, bytes]:
    data = paths.read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of torch.jit; many detectors come as such files
            module = torch.jit.load(io.BytesIO(data), map_location=device)  # type: ignore[no-untyped-call]
    except Exception as error:  # torch has no class of its own for a damaged file
        raise InputError(
            "not a TorchScript file", where=path, expected="a file of torch.jit.save", found=_line(error)
        ) from error
    network, _ = _module_network(module, device)
    return network, hashlib.sha256(data).digest()


def _onnx_network(path: str, device: torch.device) -> tuple[Network, bytes]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            "an ONNX detector needs the package onnxruntime",
            where=path,
            found=str(error),
            hint="pip install 'webimagetext[onnx]'",
        ) from error
    data = paths.read_bytes(path)
    if _KEY in data and _EXTERNAL.search(data):
        raise InputError(
            "the ONNX file keeps weights in another file",
            where=path,
            expected="one file, whose hash is the detector's identity",
            hint="save it as one file: onnx.save(onnx.load(FILE), OUT)",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise UsageError(
            "this onnxruntime cannot compute on a GPU",
            where=path,
            hint="pip install onnxruntime-gpu, or --device cpu",
        )
    try:
        session = onnxruntime.InferenceSession(data, options, providers=[wanted])
    except Exception as error:  # onnxruntime's classes are not public
        raise InputError(
            "not an ONNX file that onnxruntime can load", where=path, found=_line(error)
        ) from error
    asked = session.get_inputs()[0]
    # Some files are exported for batches of one size.
    batch = asked.shape[0] if asked.shape and isinstance(asked.shape[0], int) else None

    def network(pixels: np.ndarray) -> np.ndarray:
        if batch is None:
            return np.asarray(session.run(None, {asked.name: pixels})[0])
        found = []
        for start in range(0, len(pixels), batch):
            part = pixels[start : start + batch]
            filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), np.float32)])
            found.append(np.asarray(session.run(None, {asked.name: filled})[0])[: len(part)])
        return np.concatenate(found)

    return network, hashlib.sha256(data).digest()
