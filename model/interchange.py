"""Checkpoints of others, and ours for others: OpenAI's archives, open_clip's and transformers' folders.

Our weights have OpenAI's names, which are open_clip's too; transformers has its own, and no CLIP ResNets.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from model.presets import ModelConfig, TextConfig, VisionConfig, from_dict
from pipeline.core import paths
from pipeline.core.errors import ContractError, InputError, UsageError

State = dict[str, Tensor]
OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG = "open_clip_config.json", "config.json"
_WEIGHTS = {
    OPEN_CLIP_CONFIG: ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin"),
    TRANSFORMERS_CONFIG: ("model.safetensors", "pytorch_model.bin"),
}
# Numbers that OpenAI's archives keep among the weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
_BLOCK = (
    ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
)  # fmt: skip
# Ours, transformers', whether one is the other's transpose.
_SINGLE = (
    ("logit_scale", "logit_scale", False),
    ("text_projection", "text_projection.weight", True),
    ("visual.proj", "visual_projection.weight", True),
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight", False),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight", False),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding", False),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight", False),
    ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight", False),
)
_NORMS = (
    ("ln_final", "text_model.final_layer_norm"),
    ("visual.ln_pre", "vision_model.pre_layrnorm"),
    ("visual.ln_post", "vision_model.post_layernorm"),
)
_TOWERS = (("transformer.resblocks", "text_model"), ("visual.transformer.resblocks", "vision_model"))


def is_foreign(path: str) -> bool:
    """Whether a path names somebody else's checkpoint: a file, or a folder of open_clip or transformers."""
    if not paths.exists(path) or not paths.is_folder(path):
        return paths.exists(path)
    if paths.exists(paths.join(path, OPEN_CLIP_CONFIG)):
        return True
    config = paths.join(path, TRANSFORMERS_CONFIG)
    return paths.exists(config) and _json(config).get("model_type") == "clip"


def read(path: str) -> tuple[ModelConfig, State]:
    """The configuration and float32 weights, with OpenAI's names, of a checkpoint that :func:`is_foreign`.

    A bare file is read if it is OpenAI's archive (its geometry is in its shapes, its activation is QuickGELU); any
    other file needs its folder, because weights alone do not say which activation they were trained with.

    Raises:
        InputError: A file is missing or damaged.
        ContractError: The configuration asks for what these models do not have.
    """
    if not paths.is_folder(path):
        state = _read_weights(path)
        if not set(_NOT_WEIGHTS) & set(state):
            raise InputError(
                "weights alone do not say which activation they need",
                where=path,
                hint=f"pass the folder that also holds {OPEN_CLIP_CONFIG} or transformers' {TRANSFORMERS_CONFIG}",
            )
        state = with_openai_names(state)
        return geometry(state, where=path), state
    if paths.exists(paths.join(path, OPEN_CLIP_CONFIG)):
        where = paths.join(path, OPEN_CLIP_CONFIG)
        config = from_open_clip_config(_json(where), where=where)
        return config, with_openai_names(_read_weights(_weights_of(path, OPEN_CLIP_CONFIG)))
    where = paths.join(path, TRANSFORMERS_CONFIG)
    config = from_transformers_config(_json(where), where=where)
    weights = _weights_of(path, TRANSFORMERS_CONFIG)
    try:
        return config, from_transformers(_read_weights(weights))
    except KeyError as error:
        raise ContractError("a weight is missing", where=weights, expected=error.args[0]) from error


def _weights_of(folder: str, config: str) -> str:
    for name in _WEIGHTS[config]:
        if paths.exists(paths.join(folder, name)):
            return paths.join(folder, name)
    raise InputError(
        "the folder holds no weights in one file", where=folder, expected=" or ".join(_WEIGHTS[config])
    )


def _json(path: str) -> dict[str, Any]:
    try:
        values = json.loads(paths.read_bytes(path))
    except ValueError as error:
        raise ContractError("not JSON", where=path, found=str(error)) from error
    if not isinstance(values, dict):
        raise ContractError("not a configuration", where=path, found=type(values).__name__)
    return values


def _read_weights(path: str) -> State:
    data = paths.read_bytes(path)
    try:
        if path.endswith(".safetensors"):
            return dict(safetensors.torch.load(data))
        if _is_script(data):
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # torch wants scripts no more, but OpenAI's weights are scripts
                load: Callable[..., torch.nn.Module] = torch.jit.load
                return dict(load(io.BytesIO(data), map_location="cpu").state_dict())
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zip and pickle each raise their own
        raise InputError("damaged weights", where=path, found=str(error)[:200]) from error
    found = found.get("state_dict", found)  # open_clip's training checkpoints
    return {name.removeprefix("module."): value for name, value in found.items()}


def _is_script(data: bytes) -> bool:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return False
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def with_openai_names(state: Mapping[str, Tensor]) -> State:
    """Float32 weights of OpenAI's or open_clip's models; the text tower of open_clip's custom models moves up."""
    kept = {k: v for k, v in state.items() if k not in _NOT_WEIGHTS and not k.endswith("attn_mask")}
    return {
        k.removeprefix("text."): v.float() if v.is_floating_point() else v
        for k, v in kept.items()
    }  # fmt: skip


def geometry(state: Mapping[str, Tensor], *, where: str) -> ModelConfig:
    """The model that weights of OpenAI's release belong to, by the shapes; heads are 64 wide.

    Raises:
        ContractError: Not CLIP's weights.
    """
    try:
        if "visual.proj" in state:
            patch = state["visual.conv1.weight"].shape[-1]
            side = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
            vision = VisionConfig(
                image_size=patch * side,
                layers=_count(state, r"visual\.transformer\.resblocks\.(\d+)\."),
                width=state["visual.conv1.weight"].shape[0],
                patch_size=patch,
            )
        else:
            layers = tuple(_count(state, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
            side = round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
            width = state["visual.layer1.0.conv1.weight"].shape[0]
            vision = VisionConfig(image_size=32 * side, layers=layers, width=width)
        text_width = state["ln_final.weight"].shape[0]
        text = TextConfig(
            width=text_width,
            heads=max(1, text_width // 64),
            layers=_count(state, r"transformer\.resblocks\.(\d+)\."),
            context_length=state["positional_embedding"].shape[0],
            vocab_size=state["token_embedding.weight"].shape[0],
        )
        return ModelConfig(embed_dim=state["text_projection"].shape[1], vision_cfg=vision, text_cfg=text)
    except (KeyError, ValueError) as error:
        raise ContractError("not the weights of a CLIP model", where=where, found=str(error)) from error


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for k in state if (m := re.match(pattern, k))})


def from_open_clip_config(values: Mapping[str, Any], *, where: str) -> ModelConfig:
    """open_clip's configuration, bare or under ``model_cfg``; one with parts that we do not have is refused."""
    model = dict(values.get("model_cfg", values))
    vision, text = dict(model.get("vision_cfg", {})), dict(model.get("text_cfg", {}))
    if vision.get("timm_model_name") or text.get("hf_model_name"):
        raise ContractError(
            "a model with towers of timm or transformers", where=where, expected="CLIP's own towers"
        )
    if not isinstance(vision.get("layers"), list):
        vision.setdefault("patch_size", 16)  # open_clip's default
    given = {"embed_dim": model.get("embed_dim"), "quick_gelu": model.get("quick_gelu", False)}
    return from_dict({**given, "vision_cfg": vision, "text_cfg": text}, where=where)


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """The file ``open_clip_config.json`` with which open_clip builds this very model."""
    return {"model_cfg": config.to_dict()}


def from_transformers_config(values: Mapping[str, Any], *, where: str) -> ModelConfig:
    """The model of a transformers ``CLIPConfig``; keys that it leaves out have transformers' defaults.

    Raises:
        ContractError: Another kind of model, or an activation or geometry that CLIP's towers do not have.
    """
    if values.get("model_type") != "clip":
        raise ContractError(
            "another kind of model", where=where, expected="clip", found=values.get("model_type")
        )
    text, vision = values.get("text_config") or {}, values.get("vision_config") or {}
    activations = {part.get("hidden_act", "quick_gelu") for part in (text, vision)}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        raise ContractError(
            "the activation", where=where, expected="quick_gelu or gelu", found=", ".join(sorted(activations))
        )
    width, heads = vision.get("hidden_size", 768), vision.get("num_attention_heads", 12)
    try:
        return ModelConfig(
            embed_dim=values.get("projection_dim", 512),
            vision_cfg=VisionConfig(
                image_size=vision.get("image_size", 224),
                layers=vision.get("num_hidden_layers", 12),
                width=width,
                patch_size=vision.get("patch_size", 32),
                head_width=width // heads,
            ),
            text_cfg=TextConfig(
                width=text.get("hidden_size", 512),
                heads=text.get("num_attention_heads", 8),
                layers=text.get("num_hidden_layers", 12),
                context_length=text.get("max_position_embeddings", 77),
                vocab_size=text.get("vocab_size", 49_408),
            ),
            quick_gelu=activations == {"quick_gelu"},
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ContractError("an impossible geometry", where=where, found=str(error)) from error


def transformers_config(config: ModelConfig) -> dict[str, Any]:
    """``config.json`` of a transformers ``CLIPModel``.

    Raises:
        UsageError: transformers has no such model: a ResNet, or a CBOW text encoder.
    """
    vision, text = config.vision_cfg, config.text_cfg
    if vision.patch_size is None or text.kind != "transformer":
        what = "ResNets" if vision.patch_size is None else "CBOW text encoders"
        raise UsageError(f"transformers has no CLIP {what}", hint="export to open_clip, or train a ViT")
    activation = "quick_gelu" if config.quick_gelu else "gelu"
    end = text.vocab_size - 1
    shared = {"hidden_act": activation, "projection_dim": config.embed_dim, "layer_norm_eps": 1e-5}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": {
            **shared, "model_type": "clip_text_model", "hidden_size": text.width, "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers, "num_attention_heads": text.heads, "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": 0,
        },
        "vision_config": {
            **shared, "model_type": "clip_vision_model", "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width, "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width, "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
    }  # fmt: skip


def from_transformers(state: Mapping[str, Tensor]) -> State:
    """OpenAI's names for the weights (or gradients) of transformers' CLIPModel.

    Raises:
        KeyError: A weight is missing.
    """
    made: State = {ours: state[theirs].T if turned else state[theirs] for ours, theirs, turned in _SINGLE}
    for kind in ("weight", "bias"):
        made |= {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for ours, theirs in _NORMS}
        for ours, theirs in _TOWERS:
            for layer in range(_count(state, rf"{theirs}\.encoder\.layers\.(\d+)\.")):
                old, new = f"{theirs}.encoder.layers.{layer}", f"{ours}.{layer}"
                parts = [state[f"{old}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                made[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
                made |= {f"{new}.{a}.{kind}": state[f"{old}.{b}.{kind}"] for a, b in _BLOCK}
    return {k: v.float().contiguous() for k, v in made.items()}


def to_transformers(state: Mapping[str, Tensor]) -> State:
    """transformers' names for the weights of a ViT model: the inverse of :func:`from_transformers`."""
    made: State = {theirs: state[ours].T if turned else state[ours] for ours, theirs, turned in _SINGLE}
    for kind in ("weight", "bias"):
        made |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for ours, theirs in _NORMS}
        for ours, theirs in _TOWERS:
            for layer in range(_count(state, rf"{re.escape(ours)}\.(\d+)\.")):
                old, new = f"{ours}.{layer}", f"{theirs}.encoder.layers.{layer}"
                for p, part in zip("qkv", state[f"{old}.attn.in_proj_{kind}"].chunk(3), strict=True):
                    made[f"{new}.self_attn.{p}_proj.{kind}"] = part
                made |= {f"{new}.{b}.{kind}": state[f"{old}.{a}.{kind}"] for a, b in _BLOCK}
    return {k: v.contiguous().clone() for k, v in made.items()}


def _dump(state: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save(dict(state), metadata={"format": "pt"})


def files_for(form: str) -> Callable[[ModelConfig, State], dict[str, bytes]]:
    """Name and bytes of each file of a checkpoint in the form of ``open_clip`` or ``transformers``."""

    def for_open_clip(config: ModelConfig, state: State) -> dict[str, bytes]:
        if config.text_cfg.kind != "transformer":
            raise UsageError("open_clip has no CBOW text encoder", found="text_cfg.kind = cbow")
        text = json.dumps(open_clip_config(config), indent=2) + "\n"
        return {OPEN_CLIP_CONFIG: text.encode(), "open_clip_model.safetensors": _dump(state)}

    def for_transformers(config: ModelConfig, state: State) -> dict[str, bytes]:
        text = json.dumps(transformers_config(config), indent=2) + "\n"
        return {TRANSFORMERS_CONFIG: text.encode(), "model.safetensors": _dump(to_transformers(state))}

    return {"open_clip": for_open_clip, "transformers": for_transformers}[form]
