"""Fitting a detector to pictures: first the network, then the map and the head over all features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dedup.augment import augment
from dedup.collection import Collection, draw_batch, keyed_hash
from dedup.config import AugmentConfig, TrainConfig
from dedup.contrast import Arithmetic, Batch, Schedule
from dedup.descriptor import DIMENSION, discriminant
from dedup.detector import PRESETS, Detector, prepare
from dedup.folder import Loaded, load
from dedup.fused import Fused
from dedup.processes import Processes, blocks
from dedup.trainer import Batches, Trainer
from pipeline.core.errors import InputError, UsageError
from pipeline.core.progress import Progress
from pipeline.core.snapshots import Snapshots

PARTS = ("network", "head", "whole")
BATCH_SIZES = {"resnet50": 1712, "general": 128, "small": 64}
# At 3e-3 after a short warm-up the ResNet-50 came to map all pictures to one point; at 5e-4, CLIP's own for a
# ResNet-50, it learned.
LEARNING_RATES = {"resnet50": 5e-4, "general": 3e-3, "small": 3e-3}
# Altered copies of each picture that map and head are fitted on; the map's scatter needs fewer.
COPIES, SCATTER_COPIES = 5, 3
# The head sees its features ready-made, so it can see many more pairs than the network.
HEAD_PAIRS_PER_PAIR, HEAD_BATCH, HEAD_RATE, HEAD_DECAY = 20, 256, 2e-3, 0.1
WHOLE_RATE = 2e-3
EMBEDDED_AT_ONCE = 64
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
    dimension: int,
    prepared: Prepare,
    pictures: Collection,
    chosen: np.ndarray,
    seeds: Sequence[int | None],
    strengths: AugmentConfig,
    processes: Processes,
) -> np.ndarray:
    """What a function of prepared pixels gives for pictures, altered where there is a seed.

    Args:
        function: Of uint8 [n, …], n pictures as ``prepared`` gives them, to float32 [n, d].
        dimension: Its d.
        prepared: Makes a picture's pixels.
        pictures: Where the pictures are.
        chosen: int64 [N], which ones.
        seeds: N seeds of their alterations.
        strengths: Of the alterations.
        processes: Who shares the work; all get the whole result.

    Returns:
        float32 [N, d].
    """
    found = torch.zeros(len(chosen), dimension, device=processes.device)
    for rows in blocks(len(chosen), EMBEDDED_AT_ONCE, processes):
        pixels = views(pictures, chosen[rows], seeds[rows], prepared, strengths)
        found[rows] = function(torch.from_numpy(pixels).to(processes.device))
    return processes.sum(found).cpu().numpy()


def learning_rate(config: TrainConfig) -> float:
    """The configured peak rate, or the preset's."""
    return LEARNING_RATES[config.preset] if config.learning_rate is None else config.learning_rate


def fit(
    config: TrainConfig,
    pictures: Collection,
    known: np.ndarray,
    *,
    processes: Processes,
    snapshots: Snapshots | None,
    quiet: bool,
) -> tuple[Detector, list[dict[str, object]]]:
    """Trains a new detector on some pictures, or goes on from the last snapshot; returns it with its curve.

    Args:
        config: How to train.
        pictures: Where the pictures are.
        known: int64 [N], which ones to train on.
        processes: Who takes part.
        snapshots: Where the state is kept; ``None`` keeps none.
        quiet: Show no progress.

    Raises:
        InputError: All snapshots are damaged, or the processes have read different pictures.
        StageFailedError: They found different snapshots, the loss is not a number, or the process was asked to end.
        UsageError: A batch has fewer pairs than there are processes.
    """
    if not processes.agree(b"".join(pictures.keys[i] for i in known.tolist())):
        raise InputError(
            "the processes have read different pictures",
            where=", ".join(config.images),
            hint="every machine must see the same files",
        )
    torch.manual_seed(config.seed)
    batch_size = min(config.batch_size or BATCH_SIZES[config.preset], len(known))
    if batch_size < processes.count:
        raise UsageError(
            "a batch has fewer pairs than there are processes",
            where="[dedup.train].batch_size",
            expected=f"at least {processes.count}",
            found=batch_size,
        )
    detector = (
        start_of(config, load(config.start)) if config.start else Detector(PRESETS[config.preset])
    ).to(processes.device)
    # Before a snapshot's weights come in: a run that goes on must draw as it drew.
    likeness = _seen_by(detector, pictures, known, processes) if config.start else pictures.thumbnails[known]
    trainer = Trainer(
        detector,
        PARTS,
        how=Arithmetic(processes=processes, autocast=config.autocast, chunk_size=config.chunk_size),
        snapshots=snapshots,
        snapshot_minutes=config.snapshot_minutes,
        quiet=quiet,
    )
    steps = max(1, math.ceil(config.pairs / batch_size))
    joined = bool(detector.architecture.joined)
    schedule = Schedule(
        steps=steps,
        warmup=math.ceil(steps * config.warmup_share),
        peak=learning_rate(config),
        falls=not (joined and config.whole_pairs),
    )
    detector.train()
    side = detector.architecture.image_px
    if not config.start:
        trainer.optimise(
            "network",
            detector.learned,
            detector,
            _picture_batches(config, pictures, known, likeness, batch_size, processes, side=side),
            schedule,
            weight_decay=config.weight_decay,
        )
    if joined and not config.start and not trainer.is_done("head"):
        # Spread over all of them: they lie in the order of their sources.
        places = np.unique(np.linspace(0, len(known) - 1, config.joined_pictures).astype(np.int64))
        fit_joined(config, trainer, pictures, known[places])
    if joined and config.whole_pairs:
        fit_whole(config, trainer, pictures, known, likeness, batch_size)
    detector.eval()
    return detector, trainer.lines


def start_of(config: TrainConfig, loaded: Loaded) -> Detector:
    """The detector to go on from.

    Raises:
        InputError: It has no head, or is several; UsageError: it is of another preset than the configured one, whose
            batch size and learning rate would be taken.
    """
    detector = loaded.detector
    if isinstance(detector, Fused):
        raise InputError(
            "no detector to go on from",
            where=config.start,
            expected="one detector",
            found=f"{len(detector.shares)} detectors side by side",
            hint="pass the folder of one that was trained without --beside",
        )
    if not detector.architecture.joined:
        raise InputError(
            "no detector to go on from",
            where=config.start,
            expected="one with a head over learned and unlearned features",
            found="a network alone",
            hint="one without is trained anew, on more pairs",
        )
    preset = next((name for name, shape in PRESETS.items() if shape == detector.architecture), config.preset)
    if preset != config.preset:
        raise UsageError(
            "the detector to go on from is of another preset",
            where=config.start,
            expected=config.preset,
            found=preset,
            hint=f"pass --preset {preset}",
        )
    return detector


def _seen_by(detector: Detector, pictures: Collection, known: np.ndarray, processes: Processes) -> np.ndarray:
    """What a detector makes of pictures, its hash left out: float32 [N, found]."""
    prepared = partial(prepare, side=detector.architecture.image_px, joined=True)
    return embed_pictures(
        detector.found,
        detector.architecture.found,
        prepared,
        pictures,
        known,
        [None] * len(known),
        AugmentConfig(),
        processes,
    )


def _picture_batches(
    config: TrainConfig,
    pictures: Collection,
    known: np.ndarray,
    likeness: np.ndarray,
    batch_size: int,
    processes: Processes,
    *,
    side: int,
    joined: bool = False,
    first_step: int = 0,
) -> Batches:
    """Two views of each picture as uint8 [b, 3 or 6, S, S], this process's rows of B, and the groups of all, [B]."""
    prepared = partial(prepare, side=side, joined=joined)

    def make(step: int, draw: np.random.Generator) -> Batch:
        chosen = known[draw_batch(likeness, batch_size, config.neighbour_share, draw)]
        names = [f"{first_step + step} {place}".encode() for place in range(len(chosen))]
        rows = processes.part(len(chosen))
        own, seeds = chosen[rows], [keyed_hash(name, config.seed) for name in names[rows]]
        first = views(pictures, own, [s if s % 2 else None for s in seeds], prepared, config.augment)
        second = views(pictures, own, [s + 1 for s in seeds], prepared, config.augment)
        return torch.from_numpy(first), torch.from_numpy(second), torch.from_numpy(pictures.groups[chosen])

    return Batches(make, seed=config.seed + first_step)


def fit_joined(config: TrainConfig, trainer: Trainer, pictures: Collection, known: np.ndarray) -> None:
    """Solves the linear map over learned and unlearned features, then trains the head over it.

    A run that was killed in the head's training computes the features anew: they are as they were.
    """
    detector, processes = trainer.detector, trainer.how.processes
    width = detector.architecture.learned + DIMENSION
    made = []
    prepared = partial(prepare, side=detector.architecture.image_px, joined=True)
    name = "dedup train: features"
    with Progress(name, total=1 + COPIES, unit="passes", quiet=trainer.quiet) as progress:
        for copy in range(1 + COPIES):
            seeds = copy_seeds(pictures, known, copy - 1, seed=config.seed) if copy else [None] * len(known)
            found = embed_pictures(
                detector.features, width, prepared, pictures, known, seeds, config.augment, processes
            )
            made.append(found.astype(np.float16))
            progress.update(1)
    clean, altered = made[0].astype(np.float32), made[1:]
    centre, projection = discriminant(clean, altered[:SCATTER_COPIES], detector.architecture.joined)
    detector.get_buffer("centre").copy_(torch.from_numpy(centre))
    detector.get_buffer("projection").copy_(torch.from_numpy(projection))

    def project(features: np.ndarray) -> np.ndarray:
        return (
            detector.project(torch.from_numpy(features.astype(np.float32)).to(processes.device)).cpu().numpy()
        )

    with torch.inference_mode():
        joined = np.stack([project(features) for features in made])
    steps = math.ceil((config.head_pairs or config.pairs * HEAD_PAIRS_PER_PAIR) / HEAD_BATCH)
    trainer.optimise(
        "head",
        detector.joined_head,
        detector.joined_head,
        _joined_batches(config, joined, pictures.groups[known], processes),
        Schedule(steps=steps, warmup=10, peak=HEAD_RATE),
        weight_decay=HEAD_DECAY,
    )


def fit_whole(
    config: TrainConfig,
    trainer: Trainer,
    pictures: Collection,
    known: np.ndarray,
    likeness: np.ndarray,
    batch_size: int,
) -> None:
    """Trains network and head together on one look at each picture; the linear map between them stays."""
    detector = trainer.detector
    steps = math.ceil(config.whole_pairs / batch_size)
    before = 0 if config.start else math.ceil(config.pairs / batch_size)
    batches = _picture_batches(
        config,
        pictures,
        known,
        likeness,
        batch_size,
        trainer.how.processes,
        side=detector.architecture.image_px,
        joined=True,
        first_step=before,
    )
    schedule = Schedule(
        steps=steps,
        warmup=math.ceil(steps * config.warmup_share),
        peak=learning_rate(config) if config.start else WHOLE_RATE,
        held=round(steps * config.held_share),
    )
    # The hash is in the embeddings that are compared, so that the rest learns what it cannot tell.
    trainer.optimise("whole", detector, detector, batches, schedule, weight_decay=config.weight_decay)


def _joined_batches(
    config: TrainConfig, joined: np.ndarray, groups: np.ndarray, processes: Processes
) -> Batches:
    """Two views of each picture out of its joined features, float32 [1 + copies, N, joined]."""
    unit = joined[0] / np.maximum(np.linalg.norm(joined[0], axis=1, keepdims=True), 1e-6)

    def make(step: int, draw: np.random.Generator) -> Batch:
        chosen = draw_batch(unit, min(HEAD_BATCH, len(unit)), 1.0, draw, per_group=16)
        first = joined[draw.integers(0, len(joined), len(chosen)), chosen]
        second = joined[draw.integers(1, len(joined), len(chosen)), chosen]
        rows = processes.part(len(chosen))
        return torch.from_numpy(first[rows]), torch.from_numpy(second[rows]), torch.from_numpy(groups[chosen])

    return Batches(make, seed=config.seed)
