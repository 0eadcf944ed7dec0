"""Checkpoint folders: ``model.safetensors`` with OpenAI's parameter names, ``config.json``, ``training.pt``.

``training.pt`` holds all that resuming needs and ends with its checksum; the state before it is kept beside it while
training goes on. The other two files are written at the end.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from model import interchange
from model.clip import CLIP, ImageModel
from model.predictive import model_of
from model.presets import ModelConfig, from_dict
from pipeline.core import manifest, paths
from pipeline.core.errors import ContractError, InputError
from pipeline.core.snapshots import Snapshots

CONTRACT = "checkpoint/1"
MADE_BY = "wit train"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_model(
    folder: str, model: ImageModel, *, name: str, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Writes the weights, in float32, and the configuration.

    Args:
        folder: Where to.
        model: Whose configuration, and whose weights unless they are given.
        name: Of its preset.
        weights: Of a model that is cut among processes, put together again.
    """
    found = model.state_dict() if weights is None else weights
    stored = {k: _stored(v) for k, v in found.items()}
    paths.write_bytes(paths.join(folder, WEIGHTS), safetensors.torch.save(stored, metadata={"format": "pt"}))
    values = {"model": name, **model.config.to_dict()}
    paths.write_bytes(paths.join(folder, CONFIG), (json.dumps(values, indent=2) + "\n").encode())


def _stored(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.float() if value.dtype == torch.bfloat16 else value  # other programs expect one type


def check(folder: str) -> None:
    """Checks that a folder is a finished checkpoint of ours, or a checkpoint of somebody else.

    Raises:
        InputError: The folder is missing or unfinished.
        ContractError: The folder holds something else.
    """
    if not paths.exists(paths.join(folder, manifest.NAME)) and interchange.is_foreign(folder):
        return
    manifest.read(folder, made_by=MADE_BY, contract=CONTRACT)


def load_model(folder: str) -> CLIP:
    """The CLIP model of a finished checkpoint folder, on the CPU, in evaluation mode.

    OpenAI's archives and the folders of open_clip and transformers are read too.

    Raises:
        InputError: The folder or a file is missing or damaged, or the folder is unfinished.
        ContractError: The folder holds something else, weights of another geometry, or a model that embeds no texts.
    """
    model = load_image_model(folder)
    if not isinstance(model, CLIP):
        raise ContractError(
            "this model predicts captions and embeds no texts",
            where=folder,
            expected="objective contrastive",
            found=model.config.objective,
            hint="`wit evaluate zero-shot` and `linear-probe` take it",
        )
    return model


def load_image_model(folder: str) -> ImageModel:
    """As :func:`load_model`, whatever the model's objective (Figure 2)."""
    check(folder)
    config, weights = read_model(folder)
    model = model_of(config)
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


def start_from(model: ImageModel, folder: str) -> None:
    """Gives a model the weights of a checkpoint; a ViT's position embeddings are interpolated to its own grid.

    So the paper's ViT-L/14@336px starts from ViT-L/14 (its Table 20's last line, FixRes-like).

    Raises:
        InputError: The checkpoint is missing, unfinished or damaged.
        ContractError: Its weights do not fit in more than the grid of positions.
    """
    check(folder)
    _, weights = read_model(folder)
    name = "visual.positional_embedding"
    wanted = model.state_dict().get(name)
    if wanted is not None and name in weights and weights[name].shape != wanted.shape:
        weights[name] = _on_grid(weights[name], len(wanted))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ContractError(
            "the weights do not fit the model to train", where=folder, found=str(error)[:200]
        ) from error


def _on_grid(positions: Tensor, count: int) -> Tensor:
    """Position embeddings [1 + s*s, D], the class token's first, resampled (bicubic) to [count, D]."""
    old, new = round((len(positions) - 1) ** 0.5), round((count - 1) ** 0.5)
    grid = positions[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    made = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([positions[:1], made.flatten(2)[0].T])


def read_config(folder: str) -> ModelConfig:
    """The model configuration of a checkpoint folder."""
    path = paths.join(folder, CONFIG)
    try:
        values = json.loads(paths.read_bytes(path))
    except ValueError as error:
        raise ContractError("not JSON", where=path, found=str(error)) from error
    return from_dict(values, where=path)


def save_state(folder: str, state: dict[str, Any]) -> None:
    """Writes the training state; see :class:`pipeline.core.snapshots.Snapshots`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    Snapshots(folder).save(buffer.getvalue())


def load_state(folder: str) -> dict[str, Any] | None:
    """The newest training state that is whole, or ``None`` if there is none yet.

    Raises:
        InputError: There are states, but all are damaged.
    """

    def decode(data: bytes) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return state

    return Snapshots(folder).load(decode)


def forget_previous_state(folder: str) -> None:
    """Removes the state before the last one."""
    Snapshots(folder).forget_previous()
