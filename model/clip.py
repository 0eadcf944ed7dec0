"""CLIP (paper 2.3): two towers, linear projections into one space, a learned logit scale.

State dicts have OpenAI's names: ``visual.*``, ``transformer.*``, ``token_embedding.weight``,
``positional_embedding``, ``ln_final.*``, ``text_projection``, ``logit_scale``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers import Transformer
from model.presets import ModelConfig
from model.resnet import ModifiedResNet
from model.text import at_end_of_text, bag_of_words, initialise_transformer
from model.vit import VisionTransformer

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # paper 2.5
MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's channel means and deviations, for values in 0-1
STD = (0.26862954, 0.26130258, 0.27577711)


class ImageModel(nn.Module):
    """What every objective trains: an image tower.

    Args:
        config: Geometry and activation.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        vision = config.vision_cfg
        self.visual: nn.Module
        if vision.patch_size is None:
            assert not isinstance(vision.layers, int)
            self.visual = ModifiedResNet(
                layers=vision.layers, width=vision.width, image_size=vision.image_size, out=config.embed_dim
            )
        else:
            assert isinstance(vision.layers, int)
            self.visual = VisionTransformer(
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                width=vision.width,
                layers=vision.layers,
                heads=vision.width // vision.head_width,
                out=config.embed_dim,
                quick_gelu=config.quick_gelu,
            )

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S], normalised, to embeddings [B, E], not normalised."""
        out: Tensor = self.visual(images)
        return out

    def recompute_activations(self) -> None:
        """Trades a second forward pass for memory, in both towers (gradient checkpointing, paper 2.5)."""
        for module in self.modules():
            if isinstance(module, Transformer | ModifiedResNet):
                module.recompute = True

    def image_features(self, images: Tensor) -> Tensor:
        """What a linear probe reads (paper A.3): a ViT's state before its projection, a ResNet's embedding."""
        if isinstance(self.visual, VisionTransformer):
            return self.visual.features(images)
        return self.encode_image(images)


class CLIP(ImageModel):
    """The whole model.

    Args:
        config: Geometry and activation.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        text = config.text_cfg
        if text.kind == "transformer":
            self.transformer = Transformer(
                text.width, text.layers, text.heads, causal=True, quick_gelu=config.quick_gelu
            )
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        if text.kind == "transformer":
            self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if text.kind == "transformer":
            nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=text.width**-0.5)
        if text.kind == "transformer":
            initialise_transformer(self.transformer, text.width)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L], L at most the context length, to embeddings [B, E], not normalised.

        Columns behind the longest text may be cut off: the mask is causal, so they change nothing.
        """
        # Weights may be kept in half precision; the residual stream is not.
        x = self.token_embedding(tokens).to(self.logit_scale.dtype)
        if self.config.text_cfg.kind == "cbow":
            x = bag_of_words(x, tokens)
        else:
            x = x + self.positional_embedding[: tokens.shape[1]]
            x = at_end_of_text(self.transformer(x), tokens)
        out: Tensor = self.ln_final(x) @ self.text_projection
        return out

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, S, S] and tokens [B, L] to two L2-normalised [B, E] and the logit scale (not its log)."""
        image = F.normalize(self.encode_image(images), dim=-1)
        text = F.normalize(self.encode_text(tokens), dim=-1)
        return image, text, self.logit_scale.exp()


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] to float32 [B, 3, S, S] in OpenAI's scale, on the images' own device, channels last."""
    mean = torch.tensor(MEAN, device=images.device) * 255
    std = torch.tensor(STD, device=images.device) * 255
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)
