"""Gradients of a large batch from small parts, and activations computed anew, are those of the plain step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.clip import CLIP
from model.gradients import accumulate
from model.loss import contrastive_loss
from model.presets import ModelConfig
from tests.model.small_models import RESNET, VIT, gradients, inputs, made


def batch(size: int, copies: int = 3) -> tuple[Tensor, Tensor]:
    images, tokens = inputs(size)
    draw = torch.Generator().manual_seed(9)
    many = images.repeat(copies, 1, 1, 1)
    return many + torch.randn(many.shape, generator=draw), tokens.repeat(copies, 1)


def plain(config: ModelConfig) -> tuple[CLIP, Tensor, dict[str, Tensor]]:
    model = made(config).train()
    loss = contrastive_loss(*model(*batch(config.vision_cfg.image_size)))
    return model, loss.detach(), gradients(loss, model)


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_parts_give_the_gradients_of_the_whole_batch(parts: int) -> None:
    _, loss, wanted = plain(VIT)
    model = made(VIT).train()
    found, scale = accumulate(model, contrastive_loss, *batch(32), parts=parts, model=model)
    assert found.item() == pytest.approx(loss.item(), abs=1e-6)
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-6, rtol=1e-4, msg=name)
    assert model.logit_scale.grad is not None
    assert model.logit_scale.grad.abs() > 1e-4


def test_batch_norm_sees_its_part_and_counts_it_once() -> None:
    _, _, wanted = plain(RESNET)
    model = made(RESNET).train()
    before = model.state_dict()["visual.bn1.running_mean"].clone()
    images, tokens = batch(64)
    accumulate(model, contrastive_loss, images, tokens, parts=3, model=model)
    state = model.state_dict()
    assert state["visual.bn1.num_batches_tracked"] == 3
    expected = before
    with torch.no_grad():
        for part in images.chunk(3):
            mean = model.visual.get_submodule("conv1")(part).mean(dim=(0, 2, 3))
            expected = 0.9 * expected + 0.1 * mean
    torch.testing.assert_close(state["visual.bn1.running_mean"], expected, atol=1e-5, rtol=1e-4)
    # Why a ResNet's accumulated step is another one: its statistics are the parts', not the batch's.
    found = model.visual.get_parameter("conv1.weight").grad
    assert found is not None
    assert (found - wanted["visual.conv1.weight"]).abs().max() > 1e-3 * found.abs().max()


@pytest.mark.parametrize("config", [VIT, RESNET])
def test_recomputed_activations_change_nothing_but_memory(config: ModelConfig) -> None:
    def step(recompute: bool) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
        model = made(config).train()
        if recompute:
            model.recompute_activations()
        held: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = contrastive_loss(*model(*batch(config.vision_cfg.image_size)))
        kept = sum(held.values())
        return kept, gradients(loss, model), model.state_dict()

    kept, wanted, state = step(False)
    less, found, again = step(True)
    assert less < 0.6 * kept
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(torch.equal(again[name], state[name]) for name in state)  # running statistics too
