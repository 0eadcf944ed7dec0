"""The two baselines of the paper's Figure 2, which predict captions instead of telling pairs apart (paper 2.3).

* Bag-of-words prediction (Joulin et al., 2016): a softmax over the vocabulary, of which a caption's distinct words
  each want an equal share (Mahajan et al., 2018), so that long captions count no more than short ones.
* A transformer language model of the caption: CLIP's text transformer, at whose first position stands the projected
  image embedding. The paper does not say how its baseline was shown the image; this is the plainest way.

Words are the tokenizer's. Both score a class by the likelihood of its name in a prompt, per word, so that a long name
is not worse for its length.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.clip import CLIP, ImageModel
from model.layers import Transformer
from model.presets import ModelConfig
from model.text import initialise_transformer

_TEXTS_AT_ONCE = 64


def model_of(config: ModelConfig) -> ImageModel:
    """A new model for a configuration's objective."""
    made: dict[str, type[ImageModel]] = {"bow_prediction": WordPredictor, "caption_lm": Captioner}
    return made.get(config.objective, CLIP)(config)


class CaptionPredictor(ImageModel, abc.ABC):
    """An image model that says how likely a caption is."""

    @abc.abstractmethod
    def log_likelihood(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Embeddings [B, E] and one caption each [B, L] to the mean log-probability of its words [B], in nats."""

    @abc.abstractmethod
    def scores(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Embeddings [B, E] and C texts [C, L] to every text's log-likelihood per word with every image [B, C]."""

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Images [B, 3, S, S] and captions [B, L] to the mean loss, a scalar in nats per word."""
        return -self.log_likelihood(self.encode_image(images), tokens).mean()


class WordPredictor(CaptionPredictor):
    """Bag-of-words prediction: the image embedding and one linear layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.word_head = nn.Linear(config.embed_dim, config.text_cfg.vocab_size)

    def log_likelihood(self, image: Tensor, tokens: Tensor) -> Tensor:
        """See :meth:`CaptionPredictor.log_likelihood`; a caption without words has 0."""
        bags = self._bags(tokens)
        return (self._log_probabilities(image) * bags).sum(dim=1) / bags.sum(dim=1).clamp(min=1)

    def scores(self, image: Tensor, tokens: Tensor) -> Tensor:
        """See :meth:`CaptionPredictor.scores`."""
        bags = self._bags(tokens)
        return self._log_probabilities(image) @ bags.T / bags.sum(dim=1).clamp(min=1)

    def _log_probabilities(self, image: Tensor) -> Tensor:
        return self.word_head(image).float().log_softmax(dim=-1)

    def _bags(self, tokens: Tensor) -> Tensor:
        """Whether each word of the vocabulary [V] is in each caption [B, L]; start, end and padding are no words."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        inside = ((places > 0) & (places < tokens.argmax(dim=-1, keepdim=True))).float()
        bags = torch.zeros(len(tokens), self.config.text_cfg.vocab_size, device=tokens.device)
        return bags.scatter_reduce_(1, tokens, inside, "amax")


class Captioner(CaptionPredictor):
    """The transformer language model; its output layer is its embedding's transpose."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        text = config.text_cfg
        self.image_projection = nn.Linear(config.embed_dim, text.width)
        self.transformer = Transformer(
            text.width, text.layers, text.heads, causal=True, quick_gelu=config.quick_gelu
        )
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.ln_final = nn.LayerNorm(text.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        initialise_transformer(self.transformer, text.width)

    def log_likelihood(self, image: Tensor, tokens: Tensor) -> Tensor:
        """See :meth:`CaptionPredictor.log_likelihood`; the end token counts as a word."""
        width = self.ln_final.weight.dtype  # as CLIP's: the residual stream is never in half precision
        first = self.image_projection(image).to(width).unsqueeze(1)
        x = torch.cat([first, self.token_embedding(tokens[:, :-1]).to(width)], dim=1)
        states = self.transformer(x + self.positional_embedding[: tokens.shape[1]])[:, 1:]
        # The state at a word foretells the next; only what the caption holds is looked up in the vocabulary.
        inside = torch.arange(1, tokens.shape[1], device=tokens.device) <= tokens.argmax(dim=-1, keepdim=True)
        logits = self.ln_final(states[inside]) @ self.token_embedding.weight.T
        found = -F.cross_entropy(logits.float(), tokens[:, 1:][inside], reduction="none")
        totals = found.new_zeros(len(tokens)).index_add(0, inside.nonzero()[:, 0], found)
        return totals / inside.sum(dim=1)

    def scores(self, image: Tensor, tokens: Tensor) -> Tensor:
        """See :meth:`CaptionPredictor.scores`: every text is read anew for every image."""
        texts = torch.split(tokens, _TEXTS_AT_ONCE)
        rows = [torch.cat([self.log_likelihood(one.expand(len(c), -1), c) for c in texts]) for one in image]
        return torch.stack(rows)
