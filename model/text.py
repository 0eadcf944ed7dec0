"""CLIP's text encoders (paper 2.4): a causal transformer read at the end-of-text token, and CBOW (Figure 3).

OpenAI keeps its parameters at the model's top level (``token_embedding``, ``transformer.*`` …), so they are made
here and owned by :class:`model.clip.CLIP`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.layers import ResidualAttentionBlock, Transformer


def initialise_transformer(transformer: Transformer, width: int) -> None:
    """OpenAI's initialisation of the text transformer."""
    layers = len(transformer.resblocks)
    attention_std, projection_std = width**-0.5, width**-0.5 * (2 * layers) ** -0.5
    for block in transformer.resblocks:
        assert isinstance(block, ResidualAttentionBlock)
        nn.init.normal_(block.attn.in_proj_weight, std=attention_std)
        nn.init.normal_(block.attn.out_proj.weight, std=projection_std)
        nn.init.normal_(block.mlp.get_submodule("c_fc").weight, std=(2 * width) ** -0.5)  # type: ignore[arg-type]
        nn.init.normal_(block.mlp.get_submodule("c_proj").weight, std=projection_std)  # type: ignore[arg-type]


def at_end_of_text(states: Tensor, tokens: Tensor) -> Tensor:
    """The state at each text's end token, whose id is the vocabulary's highest: [B, L, D], [B, L] to [B, D]."""
    return states[torch.arange(states.shape[0], device=states.device), tokens.argmax(dim=-1)]


def bag_of_words(embedded: Tensor, tokens: Tensor) -> Tensor:
    """The mean embedding of each text's tokens: [B, L, D], [B, L] to [B, D].

    Start, end and padding do not count; an empty text gives zeros.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device)
    inside = ((places > 0) & (places < tokens.argmax(dim=-1, keepdim=True))).unsqueeze(-1).to(embedded.dtype)
    return (embedded * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
