"""Fitting a detector to pictures: first the network, then the map and the head over all features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dedup.augment import augment
from dedup.collection import Collection, draw_batch, keyed_hash
from dedup.config import AugmentConfig, TrainConfig
from dedup.contrast import Batch, Schedule, optimise
from dedup.descriptor import discriminant
from dedup.detector import PRESETS, Detector, prepare
from pipeline.core.progress import Progress

BATCH_SIZES = {"resnet50": 1712, "general": 128, "small": 64}
# Altered copies of each picture that map and head are fitted on; the map's scatter needs fewer.
COPIES, SCATTER_COPIES = 5, 3
# The head sees its features ready-made, so it can see many more pairs than the network.
HEAD_PAIRS_PER_PAIR, HEAD_BATCH, HEAD_RATE, HEAD_DECAY = 20, 256, 2e-3, 0.1
WHOLE_RATE = 2e-3
Prepare = Callable[[Image.Image], np.ndarray]


def views(
    pictures: Collection,
    chosen: np.ndarray,
    seeds: Sequence[int | None],
    prepared: Prepare,
    strengths: AugmentConfig,
) -> np.ndarray:
    """Prepared pictures, altered where there is a seed: uint8 [N, C, S, S]."""
    made = []
    for index, seed in zip(chosen.tolist(), seeds, strict=True):
        image = pictures.image(index)
        made.append(prepared(image if seed is None else augment(image, strengths, seed)))
    return np.stack(made)


def copy_seeds(pictures: Collection, chosen: np.ndarray, copy: int, *, seed: int) -> list[int | None]:
    """A seed for one altered copy of each picture; it depends on the picture's bytes alone."""
    return [keyed_hash(pictures.keys[i] + bytes([copy]), seed) for i in chosen.tolist()]


@torch.inference_mode()
def embed_pictures(
    function: Callable[[Tensor], Tensor],
    prepared: Prepare,
    pictures: Collection,
    chosen: np.ndarray,
    seeds: Sequence[int | None],
    strengths: AugmentConfig,
) -> np.ndarray:
    """What a function of prepared pixels gives for pictures, altered where there is a seed: float32 [N, d]."""
    found = []
    for i in range(0, len(chosen), 64):
        pixels = views(pictures, chosen[i : i + 64], seeds[i : i + 64], prepared, strengths)
        found.append(function(torch.from_numpy(pixels)).numpy())
    return np.concatenate(found)


def fit(
    config: TrainConfig, pictures: Collection, known: np.ndarray, *, quiet: bool
) -> tuple[Detector, list[dict[str, object]]]:
    """Trains a new detector on some pictures; returns it with its curve."""
    torch.manual_seed(config.seed)
    detector = Detector(PRESETS[config.preset])
    batch_size = min(config.batch_size or BATCH_SIZES[config.preset], len(known))
    steps = max(1, math.ceil(config.pairs / batch_size))
    joined = bool(detector.architecture.joined)
    schedule = Schedule(
        steps=steps,
        warmup=math.ceil(steps * config.warmup_share),
        peak=config.learning_rate,
        falls=not (joined and config.whole_pairs),
    )
    detector.train()
    with Progress("dedup train: network", total=steps, unit="batches", quiet=quiet) as progress:
        lines = optimise(
            "network",
            detector.learned,
            detector,
            _picture_batches(config, pictures, known, batch_size, steps),
            schedule,
            weight_decay=config.weight_decay,
            progress=progress,
        )
    if joined:
        # Spread over all of them: they lie in the order of their sources.
        places = np.unique(np.linspace(0, len(known) - 1, config.joined_pictures).astype(np.int64))
        lines += fit_joined(config, detector, pictures, known[places], quiet=quiet)
    if joined and config.whole_pairs:
        lines += fit_whole(config, detector, pictures, known, batch_size, quiet=quiet)
    detector.eval()
    return detector, lines


def _picture_batches(
    config: TrainConfig,
    pictures: Collection,
    known: np.ndarray,
    batch_size: int,
    steps: int,
    *,
    joined: bool = False,
    first_step: int = 0,
) -> Iterator[Batch]:
    """Two views of each picture as uint8 [B, 3 or 6, S, S]; the next batch is made while one is used."""
    draw = np.random.default_rng(config.seed + first_step)
    thumbnails = pictures.thumbnails[known]
    prepared = partial(prepare, side=PRESETS[config.preset].image_px, joined=joined)

    def make(step: int) -> Batch:
        chosen = known[draw_batch(thumbnails, batch_size, config.neighbour_share, draw)]
        names = [f"{first_step + step} {place}".encode() for place in range(len(chosen))]
        seeds = [keyed_hash(name, config.seed) for name in names]
        first = views(pictures, chosen, [s if s % 2 else None for s in seeds], prepared, config.augment)
        second = views(pictures, chosen, [s + 1 for s in seeds], prepared, config.augment)
        return torch.from_numpy(first), torch.from_numpy(second), torch.from_numpy(pictures.groups[chosen])

    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(make, 0)
        for step in range(steps):
            ready = waiting.result()
            if step + 1 < steps:
                waiting = ahead.submit(make, step + 1)
            yield ready


def fit_joined(
    config: TrainConfig, detector: Detector, pictures: Collection, known: np.ndarray, *, quiet: bool
) -> list[dict[str, object]]:
    """Solves the linear map over learned and unlearned features, then trains the head over it."""
    made = []
    prepared = partial(prepare, side=detector.architecture.image_px, joined=True)
    with Progress("dedup train: features", total=1 + COPIES, unit="passes", quiet=quiet) as progress:
        for copy in range(1 + COPIES):
            seeds = copy_seeds(pictures, known, copy - 1, seed=config.seed) if copy else [None] * len(known)
            found = embed_pictures(detector.features, prepared, pictures, known, seeds, config.augment)
            made.append(found.astype(np.float16))
            progress.update(1)
    clean, altered = made[0].astype(np.float32), made[1:]
    centre, projection = discriminant(clean, altered[:SCATTER_COPIES], detector.architecture.joined)
    detector.get_buffer("centre").copy_(torch.from_numpy(centre))
    detector.get_buffer("projection").copy_(torch.from_numpy(projection))
    with torch.inference_mode():
        joined = np.stack([detector.project(torch.from_numpy(x.astype(np.float32))).numpy() for x in made])
    steps = math.ceil((config.head_pairs or config.pairs * HEAD_PAIRS_PER_PAIR) / HEAD_BATCH)
    schedule = Schedule(steps=steps, warmup=10, peak=HEAD_RATE)
    with Progress("dedup train: head", total=steps, unit="batches", quiet=quiet) as progress:
        return optimise(
            "head",
            detector.joined_head,
            detector.joined_head,
            _joined_batches(config, joined, pictures.groups[known], steps),
            schedule,
            weight_decay=HEAD_DECAY,
            progress=progress,
        )


def fit_whole(
    config: TrainConfig,
    detector: Detector,
    pictures: Collection,
    known: np.ndarray,
    batch_size: int,
    *,
    quiet: bool,
) -> list[dict[str, object]]:
    """Trains network and head together on one look at each picture; the linear map between them stays."""
    steps = math.ceil(config.whole_pairs / batch_size)
    before = math.ceil(config.pairs / batch_size)
    schedule = Schedule(steps=steps, warmup=math.ceil(steps * config.warmup_share), peak=WHOLE_RATE)
    with Progress("dedup train: whole", total=steps, unit="batches", quiet=quiet) as progress:
        return optimise(
            "whole",
            detector.found,
            detector,
            _picture_batches(config, pictures, known, batch_size, steps, joined=True, first_step=before),
            schedule,
            weight_decay=config.weight_decay,
            progress=progress,
        )


def _joined_batches(
    config: TrainConfig, joined: np.ndarray, groups: np.ndarray, steps: int
) -> Iterator[Batch]:
    """Two views of each picture out of its joined features, float32 [1 + copies, N, joined]."""
    draw = np.random.default_rng(config.seed)
    unit = joined[0] / np.maximum(np.linalg.norm(joined[0], axis=1, keepdims=True), 1e-6)
    for _ in range(steps):
        chosen = draw_batch(unit, min(HEAD_BATCH, len(unit)), 1.0, draw, per_group=16)
        first = joined[draw.integers(0, len(joined), len(chosen)), chosen]
        second = joined[draw.integers(1, len(joined), len(chosen)), chosen]
        yield torch.from_numpy(first), torch.from_numpy(second), torch.from_numpy(groups[chosen])
