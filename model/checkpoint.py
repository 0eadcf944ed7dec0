"""Checkpoint folders: ``model.safetensors`` with OpenAI's parameter names, ``config.json``, ``training.pt``.

``training.pt`` is one file, replaced atomically, and holds all that resuming needs; the other two are written
from it at the end.
"""

from __future__ import annotations

import io
import json
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from model import interchange
from model.clip import CLIP
from model.presets import ModelConfig, from_dict
from pipeline.core import manifest, paths
from pipeline.core.errors import ContractError, InputError

CONTRACT = "checkpoint/1"
MADE_BY = "wit train"
WEIGHTS, CONFIG, STATE = "model.safetensors", "config.json", "training.pt"


def save_model(folder: str, model: CLIP, *, name: str) -> None:
    """Writes the weights and the configuration."""
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    paths.write_bytes(paths.join(folder, WEIGHTS), safetensors.torch.save(weights, metadata={"format": "pt"}))
    values = {"model": name, **model.config.to_dict()}
    paths.write_bytes(paths.join(folder, CONFIG), (json.dumps(values, indent=2) + "\n").encode())


def check(folder: str) -> None:
    """Checks that a folder is a finished checkpoint of ours, or a checkpoint of somebody else.

    Raises:
        InputError: The folder is missing or unfinished.
        ContractError: The folder holds something else.
    """
    if not paths.exists(paths.join(folder, manifest.NAME)) and interchange.is_foreign(folder):
        return
    found = manifest.read(folder, made_by=MADE_BY)
    if found.contract != CONTRACT:
        raise ContractError(
            "another contract",
            where=folder,
            expected=CONTRACT,
            found=found.contract,
            hint=f"make it with `{MADE_BY}`",
        )


def load_model(folder: str) -> CLIP:
    """The model of a finished checkpoint folder, on the CPU, in evaluation mode.

    OpenAI's archives and the folders of open_clip and transformers are read too.

    Raises:
        InputError: The folder or a file is missing or damaged, or the folder is unfinished.
        ContractError: The folder holds something else, or weights of another geometry.
    """
    check(folder)
    config, weights = read_model(folder)
    model = CLIP(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ContractError(
            "the weights do not fit the model", where=folder, found=str(error)[:200]
        ) from error
    return model.eval()


def read_model(folder: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and weights, with OpenAI's names, of a checkpoint that :func:`check` let pass."""
    if not paths.exists(paths.join(folder, manifest.NAME)):
        return interchange.read(folder)
    path = paths.join(folder, WEIGHTS)
    try:
        return read_config(folder), safetensors.torch.load(paths.read_bytes(path))
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError("damaged weights", where=path, found=str(error)) from error


def read_config(folder: str) -> ModelConfig:
    """The model configuration of a checkpoint folder."""
    path = paths.join(folder, CONFIG)
    try:
        values = json.loads(paths.read_bytes(path))
    except ValueError as error:
        raise ContractError("not JSON", where=path, found=str(error)) from error
    return from_dict(values, where=path)


def save_state(folder: str, state: dict[str, Any]) -> None:
    """Replaces the training state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    paths.write_bytes(paths.join(folder, STATE), buffer.getvalue())


def load_state(folder: str) -> dict[str, Any] | None:
    """The training state, or ``None`` if there is none yet.

    Raises:
        InputError: The file is damaged.
    """
    path = paths.join(folder, STATE)
    if not paths.exists(path):
        return None
    try:
        state: dict[str, Any] = torch.load(
            io.BytesIO(paths.read_bytes(path)), map_location="cpu", weights_only=True
        )
    except Exception as error:  # torch raises whatever unzipping and unpickling raise
        raise InputError(
            "damaged training state", where=path, found=str(error)[:200], hint="remove it to start over"
        ) from error
    return state
