"""``wit evaluate zero-shot``: class names as texts, ensembled over prompts (paper 3.1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model import checkpoint, events, registry
from model.clip import CLIP, ImageModel, normalise
from model.config import ZeroShotConfig
from model.datasets import Dataset, read_dataset
from model.distributed import device_of
from model.predictions import (
    REASONS,
    SCORES,
    Dropped,
    Predictions,
    add_batch,
    batches,
    dataset_name,
    new_predictions,
    write_classification,
)
from model.predictive import CaptionPredictor
from model.prompts import class_name, classifier, read_class_names, read_templates
from model.tokenizer import Tokenizer, trim
from pipeline.core.contracts import PREDICTIONS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress
from pipeline.core.stage import RunOptions, StageResult, run_stage


def run(config: ZeroShotConfig, out: str, options: RunOptions) -> Manifest | None:
    """Evaluates into a folder with ``scores.json`` and ``predictions/1`` Parquet.

    Raises:
        WitError: A missing or bad model, dataset, prompts or class names, or an output that cannot be written.
    """
    if config.model is None or config.dataset is None:
        missing = "--model DIR" if config.model is None else "--dataset PATH"
        raise UsageError("nothing to evaluate", hint=f"pass {missing}")
    model_folder, root = config.model, config.dataset
    checkpoint.check(model_folder)
    events.check(config.tensorboard)
    dataset = read_dataset(root)
    config = registry.applied(config, "classification")
    if config.prompts is not None:
        config = dataclasses.replace(config, templates=read_templates(config.prompts))
    names = read_names(dataset, config.class_names)
    resolved = config

    def body(folder: str) -> StageResult:
        made = evaluate(
            resolved, checkpoint.load_image_model(model_folder), dataset, names, folder, quiet=options.quiet
        )
        events.write_scores(resolved.tensorboard, made.extra["scores"], model=model_folder)
        return made

    return run_stage(
        body,
        stage="evaluate zero-shot",
        contract=PREDICTIONS.id,
        config=resolved,
        inputs=[p for p in (model_folder, root, config.prompts, config.class_names) if p is not None],
        out=out,
        options=options,
        owned=(SCORES,),
        damage=REASONS,
    )


def evaluate(
    config: ZeroShotConfig,
    model: ImageModel,
    dataset: Dataset,
    names: Sequence[str],
    out: str,
    *,
    quiet: bool,
) -> StageResult:
    """Classifies every image and writes scores, predictions and dropped rows."""
    if config.threads:
        torch.set_num_threads(config.threads)
    model = model.to(device_of(config.device))
    dropped: Dropped = []
    found = predictions(
        model, dataset, names, config.templates, batch_size=config.batch_size, dropped=dropped, quiet=quiet
    )
    return write_classification(
        out, "zero-shot", dataset_name(config.name, dataset.root), dataset, found, dropped,
        metric=config.metric, more={"prompts": len(config.templates), **registry.facts(config.known_as)},
    )  # fmt: skip


def predictions(
    model: ImageModel, dataset: Dataset, names: Sequence[str], templates: Sequence[str], *, batch_size: int,
    dropped: Dropped, quiet: bool, seen: Callable[[list[int], np.ndarray], None] | None = None,
) -> Predictions:  # fmt: skip
    """What a model takes every image of a dataset for.

    Args:
        model: On its device.
        dataset: The images.
        names: Of the classes.
        templates: Prompts; ensembled.
        batch_size: Images encoded at once.
        dropped: Gets the images that cannot be decoded.
        quiet: Show no progress.
        seen: Also called with each batch's places and probabilities [B, C].
    """
    text, device = model.config.text_cfg, next(model.parameters()).device
    tokenizer = Tokenizer(context_length=text.context_length, vocab_size=text.vocab_size)
    classify = classifying(model, tokenizer, names, templates, device=device)
    found = new_predictions(dataset)
    ids = [name for name, _ in dataset.files]
    with Progress("evaluate", total=len(ids), unit="images", quiet=quiet) as shown:
        for places, images in batches(
            ids, dataset.read, model.config.vision_cfg.image_size, batch_size, dropped
        ):
            probabilities = classify(images.to(device))
            add_batch(found, dataset, places, probabilities)
            if seen is not None:
                seen(places, probabilities)
            shown.update(len(places))
    return found


def read_names(dataset: Dataset, path: str | None) -> list[str]:
    """The classes' names: those of a file of ``folder<TAB>name``, else the folders' as words.

    Raises:
        InputError: No line of the file names a class of the dataset.
    """
    named = read_class_names(path) if path is not None else {}
    stray = sorted(set(named) - set(dataset.classes))
    if named and len(stray) == len(named):
        raise InputError(
            "no line names a class of the dataset", where=path, expected=dataset.classes[0], found=stray[0]
        )
    return [named.get(c, class_name(c)) for c in dataset.classes]


def classifying(
    model: ImageModel,
    tokenizer: Tokenizer,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    device: torch.device,
) -> Callable[[Tensor], np.ndarray]:
    """What turns uint8 images [B, S, S, 3] into probabilities [B, C]; texts are prepared once."""
    if isinstance(model, CLIP):
        return functools.partial(
            predict, model, classifier(model, tokenizer, names, templates, device=device)
        )
    assert isinstance(model, CaptionPredictor)
    prompts = [[template.replace("{}", name) for name in names] for template in templates]
    tokens = [torch.from_numpy(trim(tokenizer(texts))).to(device) for texts in prompts]
    return functools.partial(predict_by_likelihood, model, tokens)


@torch.inference_mode()
def predict(model: CLIP, weights: Tensor, images: Tensor) -> np.ndarray:
    """Probabilities [B, C] of uint8 images [B, S, S, 3]: softmax of scaled cosine similarities."""
    embedded = F.normalize(model.encode_image(normalise(images)), dim=-1)
    logits = model.logit_scale.exp() * embedded @ weights.T
    result: np.ndarray = logits.float().softmax(dim=-1).cpu().numpy()
    return result


@torch.inference_mode()
def predict_by_likelihood(model: CaptionPredictor, prompts: Sequence[Tensor], images: Tensor) -> np.ndarray:
    """Probabilities [B, C] of uint8 images [B, S, S, 3], of a model that predicts captions (Figure 2).

    The softmax over classes of the log-likelihood of their prompts, per word; the mean over templates, each the tokens
    [C, L] of all classes.
    """
    embedded = model.encode_image(normalise(images))
    scores = torch.stack([model.scores(embedded, tokens) for tokens in prompts]).mean(dim=0)
    result: np.ndarray = scores.float().softmax(dim=-1).cpu().numpy()
    return result
