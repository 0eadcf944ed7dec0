"""The paper's nine models by name (Tables 19 and 20) and small ones of the same code for laptops.

``config.json`` of a checkpoint uses open_clip's keys (``embed_dim``, ``quick_gelu``, ``vision_cfg``, ``text_cfg``).
This module imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.core.errors import ContractError, UsageError

VOCABULARY = 49_408


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Geometry of the image tower: a ViT if ``patch_size`` is given, else a ResNet.

    Attributes:
        image_size: Pixels of the square input.
        layers: Blocks of each ResNet stage, or the ViT's number of blocks.
        width: Channels after the ResNet's stem, or the ViT's width.
        patch_size: Pixels of a ViT's patch.
        head_width: Channels of an attention head of a ViT.
    """

    image_size: int
    layers: tuple[int, ...] | int
    width: int
    patch_size: int | None = None
    head_width: int = 64

    def __post_init__(self) -> None:
        if self.patch_size is None:
            if isinstance(self.layers, int) or not self.layers or min(self.layers) < 1:
                raise ValueError(
                    f"vision layers {self.layers!r}: a ResNet needs blocks per stage, as [3, 4, 6, 3]"
                )
            stride = 4 * 2 ** (len(self.layers) - 1)
            if self.image_size < stride or self.image_size % stride:
                raise ValueError(
                    f"image_size {self.image_size}: choose a multiple of the total stride {stride}"
                )
            if self.width < 2 or self.width % 2:
                raise ValueError(f"vision width {self.width}: a ResNet needs an even width")
            if self.width * 4 * 2 ** (len(self.layers) - 1) % 64 and self.width > 16:
                raise ValueError(
                    f"vision width {self.width}: the last stage must be a multiple of 64 channels"
                )
            return
        if not isinstance(self.layers, int) or self.layers < 1:
            raise ValueError(f"vision layers {self.layers!r}: a ViT needs one number of blocks, as 12")
        if self.image_size < self.patch_size or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size}: choose a multiple of the patch size {self.patch_size}"
            )
        if self.width % self.head_width:
            raise ValueError(
                f"vision width {self.width}: choose a multiple of the head width {self.head_width}"
            )


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Geometry of the text tower.

    Attributes:
        width: Width of the transformer.
        heads: Attention heads; divides the width.
        layers: Blocks.
        context_length: Longest text in tokens, start and end included.
        vocab_size: Entries of the tokenizer; fewer than 49,408 leave out its last merges.
        kind: ``transformer``, or ``cbow``: the mean of a text's token embeddings, which has no heads and layers
            (Figure 3 names both).
    """

    width: int
    heads: int
    layers: int = 12
    context_length: int = 77
    vocab_size: int = VOCABULARY
    kind: Literal["transformer", "cbow"] = "transformer"

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"text width {self.width}: choose a multiple of the {self.heads} heads")
        if self.context_length < 3:
            raise ValueError(f"context_length {self.context_length}: a text needs at least 3 tokens")
        if self.kind not in ("transformer", "cbow"):
            raise ValueError(f"text encoder {self.kind!r}: choose transformer or cbow")
        if not 514 <= self.vocab_size <= VOCABULARY:
            raise ValueError(f"vocab_size {self.vocab_size}: choose 514 to {VOCABULARY}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model.

    Attributes:
        embed_dim: Dimension of the joint embedding.
        vision_cfg: Image tower.
        text_cfg: Text tower.
        quick_gelu: Activation of both transformers: QuickGELU as OpenAI's weights, else the exact GELU.
        objective: What the model is made for: ``contrastive`` is CLIP; ``bow_prediction`` predicts the words of an
            image's caption, and ``caption_lm`` the caption word by word (the two baselines of Figure 2).
    """

    embed_dim: int
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    quick_gelu: bool = True
    objective: Literal["contrastive", "bow_prediction", "caption_lm"] = "contrastive"

    def __post_init__(self) -> None:
        if self.objective not in ("contrastive", "bow_prediction", "caption_lm"):
            raise ValueError(
                f"objective {self.objective!r}: choose contrastive, bow_prediction or caption_lm"
            )
        if self.objective == "caption_lm" and self.text_cfg.kind != "transformer":
            raise ValueError("text encoder cbow: a caption model needs the transformer")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values with open_clip's keys; what open_clip does not know stands there only if it is used."""
        values = dataclasses.asdict(self)
        if self.text_cfg.kind == "transformer":
            del values["text_cfg"]["kind"]
        if self.objective == "contrastive":
            del values["objective"]
        return values


def from_dict(values: Mapping[str, Any], *, where: str) -> ModelConfig:
    """The configuration that :meth:`ModelConfig.to_dict` wrote.

    Raises:
        ContractError: Keys are missing or unknown, or the geometry is impossible.
    """
    try:
        vision = dict(values["vision_cfg"])
        if isinstance(vision["layers"], list):
            vision["layers"] = tuple(vision["layers"])
        return ModelConfig(
            embed_dim=int(values["embed_dim"]),
            vision_cfg=VisionConfig(**vision),
            text_cfg=TextConfig(**values["text_cfg"]),
            quick_gelu=bool(values["quick_gelu"]),
            objective=values.get("objective", "contrastive"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(
            "not a model configuration of this project", where=where, found=f"{type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model with the optimiser settings that the paper gives it (Tables 18-20).

    Attributes:
        config: The model.
        learning_rate: Peak learning rate.
        beta2: Of Adam; 0.999 for ResNets, 0.98 for ViTs.
        epsilon: Of Adam; 1e-8 for ResNets, 1e-6 for ViTs.
    """

    config: ModelConfig
    learning_rate: float = 5e-4
    beta2: float = field(default=0.999)
    epsilon: float = field(default=1e-8)


def _resnet(
    embed: int, size: int, layers: tuple[int, ...], width: int, text: TextConfig, rate: float = 5e-4
) -> Preset:
    vision = VisionConfig(image_size=size, layers=layers, width=width)
    return Preset(config=ModelConfig(embed_dim=embed, vision_cfg=vision, text_cfg=text), learning_rate=rate)


def _vit(
    embed: int,
    size: int,
    patch: int,
    layers: int,
    width: int,
    text: TextConfig,
    rate: float = 5e-4,
    head: int = 64,
) -> Preset:
    vision = VisionConfig(image_size=size, layers=layers, width=width, patch_size=patch, head_width=head)
    model = ModelConfig(embed_dim=embed, vision_cfg=vision, text_cfg=text)
    return Preset(config=model, learning_rate=rate, beta2=0.98, epsilon=1e-6)


def _text(width: int) -> TextConfig:
    return TextConfig(width=width, heads=width // 64)


PAPER: dict[str, Preset] = {
    "RN50": _resnet(1024, 224, (3, 4, 6, 3), 64, _text(512)),
    "RN101": _resnet(512, 224, (3, 4, 23, 3), 64, _text(512)),
    "RN50x4": _resnet(640, 288, (4, 6, 10, 6), 80, _text(640)),
    "RN50x16": _resnet(768, 384, (6, 8, 18, 8), 96, _text(768), 4e-4),
    "RN50x64": _resnet(1024, 448, (3, 15, 36, 10), 128, _text(1024), 3.6e-4),
    "ViT-B/32": _vit(512, 224, 32, 12, 768, _text(512)),
    "ViT-B/16": _vit(512, 224, 16, 12, 768, _text(512)),
    "ViT-L/14": _vit(768, 224, 14, 24, 1024, _text(768), 4e-4),
    "ViT-L/14@336px": _vit(768, 336, 14, 24, 1024, _text(768), 2e-5),
}

_SMALL_TEXT = TextConfig(width=128, heads=2, layers=1)

SMALL: dict[str, Preset] = {
    "RN-mini": _resnet(128, 48, (1, 1, 1), 16, _SMALL_TEXT, 2e-3),
    "RN-tiny": _resnet(64, 32, (1, 1), 16, TextConfig(width=64, heads=1, layers=1), 2e-3),
    "ViT-tiny": _vit(64, 32, 8, 2, 64, TextConfig(width=64, heads=1, layers=1), 1e-3, 32),
}

PRESETS: dict[str, Preset] = {**PAPER, **SMALL}


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        UsageError: No such model.
    """
    if name not in PRESETS:
        raise UsageError(f"no model {name!r}", expected="one of " + ", ".join(PRESETS))
    return PRESETS[name]
