"""A detector's folder (``detector/1``): its weights, and a configuration that says its shape and its threshold."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from dedup.detector import Architecture, Detector
from dedup.fused import Fused, fuse
from pipeline.core import config as configuration
from pipeline.core import paths
from pipeline.core.errors import ContractError, InputError, WitError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
CONTRACT = "detector/1"
MADE_BY = "wit dedup train"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A detector from a folder.

    Attributes:
        detector: The network, or several, in evaluation mode.
        threshold: Calibrated similarity from which on a pair counts as a copy; ``None`` if never calibrated.
        sha256: Identity: weights and architecture.
    """

    detector: Detector | Fused
    threshold: float | None
    sha256: str


def save(
    folder: str,
    detector: Detector | Fused,
    *,
    threshold: float | None,
    notes: dict[str, Any],
    half: bool = False,
) -> str:
    """Writes ``model.safetensors`` and ``config.json``; returns the detector's sha256.

    Args:
        folder: Where to.
        detector: The network, or several.
        threshold: Calibrated similarity.
        notes: More entries for ``config.json``, as the calibration's figures.
        half: Write weights at half precision; loading widens them again.
    """
    kept = torch.float16 if half else torch.float32
    state = {k: v.detach().cpu().to(kept).contiguous() for k, v in detector.state_dict().items()}
    weights = to_bytes(state)
    values = {"contract": CONTRACT, "threshold": threshold, **detector.described(), **notes}
    paths.write_bytes(paths.join(folder, WEIGHTS), weights)
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    paths.write_bytes(paths.join(folder, CONFIG), text.encode())
    return identity(weights, detector)


def identity(weights: bytes, detector: Detector | Fused) -> str:
    """SHA-256 of what decides an embedding."""
    (shape,) = detector.described().values()
    return hashlib.sha256(weights + json.dumps(shape, sort_keys=True).encode()).hexdigest()


def load(folder: str) -> Loaded:
    """Reads a detector's folder.

    Raises:
        InputError: The folder or a file is missing or damaged.
        ContractError: It holds something else.
    """
    for name in (CONFIG, WEIGHTS):
        if not paths.exists(paths.join(folder, name)):
            raise InputError(
                f"no detector here: {name} is missing", where=folder, hint=f"`{MADE_BY}` makes one"
            )
    where = paths.join(folder, CONFIG)
    try:
        values = json.loads(paths.read_bytes(where))
        found = values.get("contract")
        threshold = values["threshold"]
        shape = values["members"] if "members" in values else values["architecture"]
    except (ValueError, KeyError, AttributeError) as error:
        raise ContractError("not a detector's configuration", where=where, found=repr(error)) from error
    if found != CONTRACT:
        raise ContractError("another contract", where=where, expected=CONTRACT, found=found)
    detector = built(shape, where=where)
    weights = paths.read_bytes(paths.join(folder, WEIGHTS))
    try:
        detector.load_state_dict(from_bytes(weights))
    except WitError:
        raise
    except Exception as error:  # safetensors and torch each have their own classes for damage
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError("damaged detector weights", where=paths.join(folder, WEIGHTS), found=line) from error
    detector.eval()
    return Loaded(detector=detector, threshold=threshold, sha256=identity(weights, detector))


def built(shape: object, *, where: str) -> Detector | Fused:
    """A detector with fresh weights, from what a configuration says of its shape.

    Raises:
        ContractError: It says something else; ConfigError: an architecture is wrong.
    """
    if isinstance(shape, list):
        return fuse(shape, where=where)
    if not isinstance(shape, dict):
        raise ContractError("not a detector's configuration", where=where, expected="an architecture table")
    return Detector(configuration.from_table(Architecture, shape, where=where))
