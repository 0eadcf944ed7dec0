"""Figure 2's other objectives: what they compute, that they learn, and find a class by its name's likelihood."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import checkpoint
from model.clip import CLIP
from model.gradients import accumulate_mean
from model.predictive import Captioner, CaptionPredictor, WordPredictor, model_of
from model.presets import ModelConfig, from_dict
from pipeline.cli import main
from pipeline.core import fakes
from pipeline.core.errors import ContractError
from tests.model.small_models import VIT, gradients, inputs, perturb

BOW = dataclasses.replace(VIT, objective="bow_prediction")
LM = dataclasses.replace(VIT, objective="caption_lm")


def predictor(config: ModelConfig) -> CaptionPredictor:
    torch.manual_seed(0)
    model = model_of(config).eval()
    perturb(model)
    assert isinstance(model, CaptionPredictor)
    return model


def test_each_objective_has_its_model() -> None:
    assert [type(model_of(c)) for c in (VIT, BOW, LM)] == [CLIP, WordPredictor, Captioner]
    for config in (VIT, BOW, LM):
        assert from_dict(json.loads(json.dumps(config.to_dict())), where="x") == config
    assert "objective" not in VIT.to_dict()  # open_clip reads these
    with pytest.raises(ContractError, match="objective 'x': choose"):
        from_dict({**VIT.to_dict(), "objective": "x"}, where="x")


def test_words_share_a_captions_probability() -> None:
    model = predictor(BOW)
    assert isinstance(model, WordPredictor)
    images, _ = inputs()
    tokens = torch.zeros(4, 7, dtype=torch.long)
    words = [[5, 9, 5], [0, 3], [], [7, 8, 9, 10, 11]]  # a word twice, word 0 (the padding's number), none
    for row, given in zip(tokens, words, strict=True):
        row[: len(given) + 2] = torch.tensor([598, *given, 599])
    with torch.inference_mode():
        embedded = model.encode_image(images)
        chances = model.word_head(embedded).log_softmax(dim=-1)
        found = model.log_likelihood(embedded, tokens)
        loss = model(images, tokens)
    wanted = [
        sum(chances[row, word].item() for word in set(given)) / max(1, len(set(given)))
        for row, given in enumerate(words)
    ]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    assert loss.item() == pytest.approx(-sum(wanted) / 4, abs=1e-5)


def test_caption_is_predicted_word_by_word_from_the_image() -> None:
    model = predictor(LM)
    assert isinstance(model, Captioner)
    images, tokens = inputs()
    with torch.inference_mode():
        embedded = model.encode_image(images)
        found = model.log_likelihood(embedded, tokens)
        wanted = []
        for image, caption in zip(embedded, tokens, strict=True):
            end = int(caption.argmax())
            terms = [next_word(model, image, caption[:place])[caption[place]] for place in range(1, end + 1)]
            wanted.append(torch.stack(terms).mean().item())
        other = model.log_likelihood(embedded.flip(0), tokens)
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    assert (found - other).abs().min() > 1e-4  # the image matters


def next_word(model: Captioner, image: Tensor, words: Tensor) -> Tensor:
    """Log-probabilities of the word after some, computed from these alone."""
    x = torch.cat([model.image_projection(image)[None], model.token_embedding(words)])
    states = model.transformer((x + model.positional_embedding[: len(x)])[None])
    return (model.ln_final(states[0, -1]) @ model.token_embedding.weight.T).log_softmax(dim=-1)


@pytest.mark.parametrize("config", [BOW, LM], ids=["bow", "lm"])
def test_scores_are_the_likelihoods_of_every_pair(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.predictive._TEXTS_AT_ONCE", 3)
    model = predictor(config)
    images, tokens = inputs()
    with torch.inference_mode():
        embedded = model.encode_image(images)
        found = model.scores(embedded, tokens)
        for number, image in enumerate(embedded):
            wanted = model.log_likelihood(image.expand(4, -1), tokens)
            torch.testing.assert_close(found[number], wanted, atol=1e-5, rtol=0)
        padded = torch.nn.functional.pad(tokens[:, :20], (0, 5))
        some = model.scores(embedded, tokens[:, :20])
        torch.testing.assert_close(model.scores(embedded, padded)[:, :3], some[:, :3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [BOW, LM], ids=["bow", "lm"])
def test_parts_add_up_to_the_batch(config: ModelConfig) -> None:
    images, tokens = inputs()
    model = predictor(config).train()
    loss = model(images, tokens)
    wanted = gradients(loss, model)
    model.zero_grad()
    found = accumulate_mean(model, images, tokens, parts=2, model=model, scaled=lambda value: value * 8)
    assert found.item() == pytest.approx(loss.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad / 8, wanted[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fakes.fake_shards(str(tmp_path_factory.mktemp("data") / "s"), 128, per_shard=128, size=40)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("eval") / "shapes"
    for number, colour in enumerate(fakes.COLOURS[:6]):
        folder = root / f"{colour}_{fakes.SHAPES[number % 2]}"
        folder.mkdir(parents=True)
        for i in range(4):
            picture = fakes.picture(colour, fakes.SHAPES[number % 2], size=48, seed=9000 + 10 * number + i)
            picture.save(folder / f"{i}.webp")
    return str(root)


COMMON = ["--threads", "1", "--device", "cpu", "--quiet"]


@pytest.mark.parametrize("objective", ["bow_contrastive", "bow_prediction", "caption_lm"])
def test_objective_learns_and_names_pictures(
    shards: str, dataset: str, tmp_path: Path, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tmp_path / "m")
    given = ["--shards", shards, "--model", "RN-tiny", "--batch-size", "64", "--set", "train.vocab_size=2000"]
    steps = ["--steps", "40", "--warmup-steps", "5", "--objective", objective]
    if objective == "caption_lm":  # the slowest to learn, as in the paper
        steps += ["--steps", "100", "--learning-rate", "5e-3"]
    assert main(["train", *given, *steps, *COMMON, "--out", model]) == 0
    lines = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert ("scale" in lines[0]) == (objective == "bow_contrastive")
    template = "a {}" if objective != "bow_prediction" else "{}"
    out = tmp_path / "e"
    command = ["evaluate", "zero-shot", "--model", model, "--dataset", dataset, "--out", str(out)]
    assert main([*command, "--set", f'evaluate.zero-shot.templates=["{template}"]', *COMMON]) == 0
    assert json.loads((out / "scores.json").read_text())["metrics"]["top1"] > 0.3  # chance is 1 in 6
    if objective == "bow_prediction":  # its image tower is like any other
        given = ["--model", model, "--train", dataset, "--dataset", dataset, "--penalty", "1"]
        assert main(["evaluate", "linear-probe", *given, *COMMON, "--out", str(tmp_path / "p")]) == 0
        assert json.loads((tmp_path / "p" / "scores.json").read_text())["metrics"]["top1"] > 0.5
    if objective == "bow_contrastive":
        assert checkpoint.load_model(model).config.text_cfg.kind == "cbow"
    else:
        with pytest.raises(ContractError, match="predicts captions and embeds no texts"):
            checkpoint.load_model(model)


def test_caption_model_needs_the_transformer(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--shards", shards, "--model", "RN-tiny", "--objective", "caption_lm", *COMMON]
    more = ["--set", 'train.text_encoder="cbow"', "--out", str(tmp_path / "m")]
    assert main(["train", *given, *more]) == 2
    assert "a caption model needs the transformer" in capsys.readouterr().err
