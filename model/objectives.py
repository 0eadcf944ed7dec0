"""What a training step computes: a batch's loss and its gradients, for each of Figure 2's objectives.

Images come normalised, [B, 3, S, S], tokens as [B, L]; gradients are added to the parameters, of this process's part
of the batch: DDP and FSDP average them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from model import distributed
from model.clip import CLIP, ImageModel
from model.gradients import accumulate, accumulate_mean
from model.loss import clamp_logit_scale, contrastive_loss, local_loss
from model.precision import Precision

Loss = tuple[Tensor, dict[str, Tensor]]


class Objective(ABC):
    """A loss with its gradients.

    Args:
        net: What is called: the model, or what wraps it.
        precision: What to compute in.
        parts: Parts of the batch that are in memory one after another.
    """

    def __init__(self, net: nn.Module, precision: Precision, *, parts: int) -> None:
        self.net, self.precision, self.parts = net, precision, parts

    @abstractmethod
    def backward(self, images: Tensor, tokens: Tensor) -> Loss:
        """Adds the gradients; returns the loss and what else is worth a line of metrics, all without gradients."""

    def settle(self) -> None:  # noqa: B027 - most objectives have no such bound
        """Called after each step: keeps parameters within their bounds."""


class Contrastive(Objective):
    """CLIP's."""

    def __init__(self, model: CLIP, net: nn.Module, precision: Precision, *, parts: int) -> None:
        super().__init__(net, precision, parts=parts)
        self.model = model

    def backward(self, images: Tensor, tokens: Tensor) -> Loss:
        """See :meth:`Objective.backward`; ``scale`` is the logit scale."""
        if self.parts > 1:
            loss, scale = accumulate(
                self._embed, self._loss, images, tokens,
                parts=self.parts, model=self.net, scaled=self.precision.scaler.scale,
            )  # fmt: skip
            return loss, {"scale": scale}
        image, text, scale = self._embed(images, tokens)
        loss = self._loss(image, text, scale)
        self.precision.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), {"scale": scale.detach()}

    def settle(self) -> None:
        """Clamps the logit scale."""
        clamp_logit_scale(self.model.logit_scale)

    def _embed(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self.precision.autocast():
            found: tuple[Tensor, Tensor, Tensor] = self.net(images, tokens)
        return found

    def _loss(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        # One process keeps the one matrix of similarities that both directions share.
        return (contrastive_loss if distributed.ranks() == 1 else local_loss)(image, text, scale)


class Prediction(Objective):
    """Of captions: a mean over pairs, so parts and processes just add up."""

    def backward(self, images: Tensor, tokens: Tensor) -> Loss:
        """See :meth:`Objective.backward`."""
        loss = accumulate_mean(
            self._loss, images, tokens,
            parts=self.parts, model=self.net, scaled=self.precision.scaler.scale,
        )  # fmt: skip
        return loss, {}

    def _loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        with self.precision.autocast():
            loss: Tensor = self.net(images, tokens)
        return loss


def objective_of(model: ImageModel, net: nn.Module, precision: Precision, *, parts: int) -> Objective:
    """The objective that a model is made for."""
    if isinstance(model, CLIP):
        return Contrastive(model, net, precision, parts=parts)
    return Prediction(net, precision, parts=parts)
