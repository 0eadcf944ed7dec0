"""``wit evaluate retrieval``: captions find their image and images one of their captions, R@1, 5 and 10 (paper E.1)."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from model import checkpoint, events, registry
from model.clip import CLIP, normalise
from model.config import RetrievalConfig
from model.datasets import Captioned, read_captioned
from model.distributed import device_of
from model.metrics import accuracy
from model.predictions import REASONS, SCORES, Dropped, batches, dataset_name, write_dropped
from model.tokenizer import Tokenizer, trim
from pipeline.core import paths, tables
from pipeline.core.contracts import PREDICTIONS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress
from pipeline.core.stage import RunOptions, StageResult, run_stage

AT = (1, 5, 10)
NO_CAPTION = "no_caption"  # of an image that nothing could find, and that can find nothing
ROWS = 1_024  # similarities are computed by so many rows at a time


def ranks(queries: np.ndarray, answers: np.ndarray, right: list[np.ndarray]) -> np.ndarray:
    """Rank of each query's best right answer, from 1; an equally similar wrong answer counts before it.

    Args:
        queries: Unit vectors [Q, E].
        answers: Unit vectors [A, E].
        right: Numbers of each query's right answers.
    """
    found = np.empty(len(queries), dtype=np.int64)
    for first in range(0, len(queries), ROWS):
        similar = queries[first : first + ROWS] @ answers.T
        for i, row in enumerate(similar):
            mine = right[first + i]
            best = row[mine].max()
            found[first + i] = 1 + int((row >= best).sum()) - int((row[mine] >= best).sum())
    return found


def scores(image_ranks: np.ndarray, text_ranks: np.ndarray, captions: np.ndarray) -> dict[str, object]:
    """R@1, 5 and 10 both ways with exact intervals and chance, as fractions of 1.

    Args:
        image_ranks: Ranks of the images' best caption.
        text_ranks: Ranks of the captions' image.
        captions: Number of captions of each image.
    """
    total = int(captions.sum())
    scored, chance = {}, {}
    for k in AT:
        scored[f"image_to_text_r{k}"] = accuracy(int((image_ranks <= k).sum()), len(image_ranks))
        scored[f"text_to_image_r{k}"] = accuracy(int((text_ranks <= k).sum()), len(text_ranks))
        chance[f"text_to_image_r{k}"] = min(1.0, k / len(image_ranks))
        # Missing all of an image's n captions in k draws without replacement.
        missed = np.ones(len(captions))
        for j in range(k):
            missed *= np.maximum(total - captions - j, 0) / max(total - j, 1)
        chance[f"image_to_text_r{k}"] = float(1 - missed.mean())
    return {
        "n": len(image_ranks),
        "captions": total,
        "metrics": {name: value for name, (value, _) in scored.items()},
        "intervals": {name: interval for name, (_, interval) in scored.items()},
        "chance": chance,
    }


def run(config: RetrievalConfig, out: str, options: RunOptions) -> Manifest | None:
    """Evaluates retrieval into a folder with ``scores.json`` and ``predictions/1`` (an image is right at R@1).

    Raises:
        WitError: A missing or bad model or dataset, or an output that cannot be written.
    """
    if config.model is None or config.dataset is None:
        missing = "--model DIR" if config.model is None else "--dataset PATH"
        raise UsageError("nothing to evaluate", hint=f"pass {missing}")
    folder, root = config.model, config.dataset
    checkpoint.check(folder)
    events.check(config.tensorboard)
    resolved = registry.applied(config, "retrieval")
    dataset = read_captioned(root, captions=config.captions)

    def body(out: str) -> StageResult:
        made = evaluate(resolved, checkpoint.load_model(folder), dataset, out, quiet=options.quiet)
        events.write_scores(resolved.tensorboard, made.extra["scores"], model=folder)
        return made

    return run_stage(
        body,
        stage="evaluate retrieval",
        contract=PREDICTIONS.id,
        config=resolved,
        inputs=[folder, root],
        out=out,
        options=options,
        owned=(SCORES,),
        damage=REASONS,
    )


def evaluate(
    config: RetrievalConfig, model: CLIP, dataset: Captioned, out: str, *, quiet: bool
) -> StageResult:
    """Embeds images and captions, ranks both ways, writes scores and predictions."""
    if config.threads:
        torch.set_num_threads(config.threads)
    model = model.to(device_of(config.device))
    dropped: Dropped = [(NO_CAPTION, name, None) for name in dataset.bare]
    images, places = embed_images(model, dataset, config.batch_size, dropped, quiet=quiet)
    texts = [t for place in places for t in dataset.captions[place]]
    counts = np.array([len(dataset.captions[place]) for place in places])
    owner = np.repeat(np.arange(len(places)), counts)
    right = np.split(np.arange(len(texts)), np.cumsum(counts)[:-1])
    embedded = embed_texts(model, [config.template.replace("{}", t) for t in texts], config.batch_size)
    image_ranks = ranks(images, embedded, right)
    text_ranks = ranks(embedded, images, [np.array([i]) for i in owner])
    name = dataset_name(config.name, dataset.root)
    result = {"task": "retrieval", "dataset": name, **scores(image_ranks, text_ranks, counts)}
    result |= registry.facts(config.known_as)
    write_dropped(out, "evaluate retrieval", dropped)
    paths.write_bytes(paths.join(out, SCORES), (json.dumps(result, indent=2) + "\n").encode())
    table = pa.table(
        {
            "eval_dataset": pa.array([name] * len(places), pa.string()),
            "eval_id": [dataset.ids[place] for place in places],
            "correct": image_ranks == 1,
            "rank": pa.array(image_ranks, pa.int32()),
            "caption_ranks": pa.array([text_ranks[r].tolist() for r in right], pa.list_(pa.int32())),
        }
    )
    rows = tables.write_table(paths.join(out, tables.part_name(0)), table, PREDICTIONS)
    return StageResult(rows=rows, rows_in=len(dataset.ids) + len(dataset.bare), extra={"scores": result})


@torch.inference_mode()
def embed_images(
    model: CLIP, dataset: Captioned, batch_size: int, dropped: Dropped, *, quiet: bool
) -> tuple[np.ndarray, list[int]]:
    """Unit vectors [N, E] and the places of the images that can be decoded."""
    found: list[np.ndarray] = []
    chosen: list[int] = []
    device, size = model.logit_scale.device, model.config.vision_cfg.image_size
    with Progress("evaluate", total=len(dataset.ids), unit="images", quiet=quiet) as shown:
        for places, images in batches(dataset.ids, dataset.read, size, batch_size, dropped):
            unit = F.normalize(model.encode_image(normalise(images.to(device))), dim=-1)
            found.append(unit.float().cpu().numpy())
            chosen += places
            shown.update(len(places))
    if not chosen:
        raise InputError("no image of the dataset can be decoded", where=dataset.root)
    return np.concatenate(found), chosen


@torch.inference_mode()
def embed_texts(model: CLIP, texts: list[str], batch_size: int) -> np.ndarray:
    """Unit vectors [N, E]."""
    text = model.config.text_cfg
    tokenizer = Tokenizer(context_length=text.context_length, vocab_size=text.vocab_size)
    rows = []
    for first in range(0, len(texts), batch_size):
        tokens = torch.from_numpy(trim(tokenizer(texts[first : first + batch_size])))
        unit = F.normalize(model.encode_text(tokens.to(model.logit_scale.device)), dim=-1)
        rows.append(unit.float().cpu().numpy())
    return np.concatenate(rows)
