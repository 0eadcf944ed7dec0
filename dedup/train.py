"""``wit dedup train``: teaches a detector to know a picture from its altered copies (Appendix C).

Each picture of a batch and its altered copy must find one another among all others: InfoNCE both ways at the
fixed temperature 0.07. Afterwards the threshold is calibrated on pictures the detector never saw.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dedup import images
from dedup.augment import AugmentConfig, augment
from dedup.calibrate import Calibration, choose_threshold
from dedup.collection import UNREADABLE, Collection, draw_batch, keyed_hash
from dedup.config import TrainConfig
from dedup.descriptor import discriminant
from dedup.detector import CONFIG, CONTRACT, PRESETS, WEIGHTS, Architecture, Detector, prepare, save
from pipeline.core import paths, tables
from pipeline.core.contracts import DROPPED
from pipeline.core.errors import InputError, StageFailedError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress
from pipeline.core.stage import RunOptions, StageResult, run_stage

STAGE = "dedup train"
REASONS = (UNREADABLE,)
METRICS = "metrics.jsonl"
TEMPERATURE = 0.07
BATCH_SIZES = {"resnet50": 1712, "small": 64}
PROXY_BATCH = 1712
LOG_STEPS = 10
COPIES = 4
# More pictures than this change the linear map no more.
JOINED_PICTURES, JOINED_COPIES = 20_000, 3
AUGMENT = AugmentConfig()


def run(config: TrainConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs the command; see :func:`pipeline.core.stage.run_stage`."""
    chunks = images.plan(config.images)

    def body(folder: str) -> StageResult:
        return train(config, chunks, folder, quiet=options.quiet)

    return run_stage(
        body,
        stage=STAGE,
        contract=CONTRACT,
        config=config,
        inputs=config.images,
        out=out,
        options=options,
        owned=(WEIGHTS, CONFIG, METRICS),
    )


def train(config: TrainConfig, chunks: Sequence[images.Chunk], out: str, *, quiet: bool) -> StageResult:
    """Reads the pictures, trains, calibrates and writes the detector's folder."""
    torch.set_num_threads(config.threads)
    with Collection() as pictures:
        total = sum(chunk.rows for chunk in chunks)
        with Progress(f"{STAGE}: reading", total=total, unit="pictures", quiet=quiet):
            pictures.fill(chunks, max_images=config.max_images, seed=config.seed)
        known, held_out = pictures.split(config.held_out, seed=config.seed)
        if len(known) < 2 or not len(held_out):
            raise InputError(
                "too few readable pictures to train and calibrate on",
                where=", ".join(config.images),
                expected="some hundred at least",
                found=f"{len(pictures)} readable of {pictures.read}",
            )
        detector, lines = fit(config, pictures, known, held_out, quiet=quiet)
        if detector.architecture.joined:
            join_features(config, detector, pictures, known)
        calibration = calibrate(config, detector, pictures, held_out)
        accuracy = proxy_accuracy(config, detector, pictures, held_out)
        lines.append({"event": "end", "held_out_accuracy": accuracy, **asdict(calibration)})
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        paths.write_bytes(paths.join(out, METRICS), text.encode())
        notes = {"calibration": asdict(calibration), "preset": config.preset, "temperature": TEMPERATURE}
        sha256 = save(out, detector, threshold=calibration.threshold, notes=notes)
        lost = tables.dropped_table(STAGE, [(UNREADABLE, x.id, x.detail) for x in pictures.lost])
        if pictures.lost:
            tables.write_table(paths.join(out, "dropped", tables.part_name(0)), lost, DROPPED)
        return StageResult(
            rows=len(pictures),
            rows_in=pictures.read,
            extra={
                "detector_sha256": sha256,
                "dimension": detector.architecture.dimension,
                "threshold": calibration.threshold,
                "held_out_accuracy": accuracy,
                "calibration": asdict(calibration),
            },
        )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps and learning rate: linear warm-up, then a cosine down to 0.

    Attributes:
        steps: Batches in all.
        warmup: Batches in which the rate rises.
        peak: Highest rate.
    """

    steps: int
    warmup: int
    peak: float

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * done))


def info_nce(first: Tensor, second: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE both ways at temperature 0.07.

    Args:
        first: Embeddings [N, d] of one view of each picture.
        second: Embeddings [N, d] of another view.
        groups: int64 [N]; pictures of one group are the same and never each other's negative.

    Returns:
        Mean loss and in-batch accuracy, both scalars.
    """
    logits = first @ second.T / TEMPERATURE
    same = groups[:, None] == groups[None, :]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.detach().argmax(dim=1) == target).float().mean()


def fit(
    config: TrainConfig, pictures: Collection, known: np.ndarray, held_out: np.ndarray, *, quiet: bool
) -> tuple[Detector, list[dict[str, object]]]:
    """Trains a new detector; returns it with its curve."""
    torch.manual_seed(config.seed)
    detector = Detector(PRESETS[config.preset])
    batch_size = min(config.batch_size or BATCH_SIZES[config.preset], len(known))
    steps = max(1, math.ceil(config.pairs / batch_size))
    plan = Schedule(steps=steps, warmup=math.ceil(steps * config.warmup_share), peak=config.learning_rate)
    optimizer = torch.optim.AdamW(_decayed(detector, config.weight_decay), lr=plan.peak, betas=(0.9, 0.98))
    lines: list[dict[str, object]] = []
    seen: list[tuple[float, float]] = []
    started = time.process_time()
    detector.train()
    with Progress(STAGE, total=steps, unit="batches", quiet=quiet) as progress:
        for step, (chosen, first, second) in enumerate(_batches(config, pictures, known, batch_size, steps)):
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(step)
            both = detector.learned(torch.from_numpy(np.concatenate([first, second])))
            groups = torch.from_numpy(pictures.groups[chosen])
            loss, accuracy = info_nce(both[: len(chosen)], both[len(chosen) :], groups)
            if not torch.isfinite(loss):
                raise StageFailedError(
                    "the loss is not a number", where=f"step {step}", hint="lower learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            seen.append((float(loss.detach()), float(accuracy)))
            progress.update(1, note=f"loss {seen[-1][0]:.3f}")
            if len(seen) == LOG_STEPS or step + 1 == steps:
                mean_loss, mean_accuracy = np.mean(seen, axis=0).tolist()
                lines.append(
                    {
                        "event": "step",
                        "step": step + 1,
                        "pairs": (step + 1) * batch_size,
                        "loss": round(mean_loss, 5),
                        "accuracy": round(mean_accuracy, 5),
                        "learning_rate": plan.rate(step),
                        "cpu_seconds": round(time.process_time() - started, 1),
                    }
                )
                seen.clear()
    detector.eval()
    return detector, lines


def _decayed(detector: Detector, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in detector.parameters() if p.ndim == 2]
    # Filters are directions: decay would change nothing but their step size.
    others = [p for p in detector.parameters() if p.ndim != 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _batches(
    config: TrainConfig, pictures: Collection, known: np.ndarray, batch_size: int, steps: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Indices and two views of each batch: uint8 [B, 3, S, S]; the next batch is made while one is used."""
    draw = np.random.default_rng(config.seed)
    thumbnails, shape = pictures.thumbnails[known], PRESETS[config.preset]

    def make(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = known[draw_batch(thumbnails, batch_size, config.neighbour_share, draw)]
        seeds = [keyed_hash(f"{step} {place}".encode(), config.seed) for place in range(len(chosen))]
        first = views(pictures, chosen, [s if s % 2 else None for s in seeds], shape)
        return chosen, first, views(pictures, chosen, [s + 1 for s in seeds], shape)

    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(make, 0)
        for step in range(steps):
            ready = waiting.result()
            if step + 1 < steps:
                waiting = ahead.submit(make, step + 1)
            yield ready


def views(
    pictures: Collection,
    chosen: np.ndarray,
    seeds: Sequence[int | None],
    architecture: Architecture,
    *,
    joined: bool = False,
) -> np.ndarray:
    """Prepared pictures, altered where there is a seed: uint8 [N, 3 or 6, S, S]."""
    side = architecture.image_px
    made = np.empty((len(chosen), 6 if joined else 3, side, side), np.uint8)
    for place, (index, seed) in enumerate(zip(chosen.tolist(), seeds, strict=True)):
        image = pictures.image(index)
        made[place] = prepare(image if seed is None else augment(image, AUGMENT, seed), side, joined=joined)
    return made


def join_features(config: TrainConfig, detector: Detector, pictures: Collection, known: np.ndarray) -> None:
    """Solves the linear map over learned and unlearned features on pictures and altered copies of them."""
    chosen = known[:JOINED_PICTURES]
    clean = embed_pictures(detector.features, detector, pictures, chosen, [None] * len(chosen))
    altered = [
        embed_pictures(
            detector.features, detector, pictures, chosen, _copy_seeds(config, pictures, chosen, copy)
        )
        for copy in range(JOINED_COPIES)
    ]
    centre, projection = discriminant(clean, altered, detector.architecture.joined)
    detector.get_buffer("centre").copy_(torch.from_numpy(centre))
    detector.get_buffer("projection").copy_(torch.from_numpy(projection))


@torch.inference_mode()
def embed_pictures(
    function: Callable[[Tensor], Tensor],
    detector: Detector,
    pictures: Collection,
    chosen: np.ndarray,
    seeds: Sequence[int | None],
) -> np.ndarray:
    """What a function of prepared pixels gives for pictures, altered where there is a seed: float32 [N, d]."""
    block, joined = 64, bool(detector.architecture.joined)
    found = []
    for i in range(0, len(chosen), block):
        part = views(
            pictures, chosen[i : i + block], seeds[i : i + block], detector.architecture, joined=joined
        )
        found.append(function(torch.from_numpy(part)).numpy())
    return np.concatenate(found)


def _copy_seeds(config: TrainConfig, pictures: Collection, chosen: np.ndarray, copy: int) -> list[int | None]:
    return [keyed_hash(pictures.keys[i] + bytes([copy]), config.seed) for i in chosen.tolist()]


def proxy_accuracy(
    config: TrainConfig, detector: Detector, pictures: Collection, held_out: np.ndarray
) -> float:
    """Share of held-out pictures whose altered copy is nearest to them among at most 1,712 [Appendix C]."""
    _, first = np.unique(pictures.groups[held_out], return_index=True)
    chosen = held_out[np.sort(first)][:PROXY_BATCH]
    clean = embed_pictures(detector, detector, pictures, chosen, [None] * len(chosen))
    altered = embed_pictures(detector, detector, pictures, chosen, _copy_seeds(config, pictures, chosen, 0))
    return float((np.argmax(altered @ clean.T, axis=1) == np.arange(len(chosen))).mean())


def calibrate(
    config: TrainConfig, detector: Detector, pictures: Collection, held_out: np.ndarray
) -> Calibration:
    """Chooses the threshold on held-out pictures; see :mod:`dedup.calibrate`."""
    everything = np.arange(len(pictures))
    clean = embed_pictures(detector, detector, pictures, everything, [None] * len(everything))
    positives = []
    for copy in range(1, 1 + COPIES):
        altered = embed_pictures(
            detector, detector, pictures, held_out, _copy_seeds(config, pictures, held_out, copy)
        )
        positives.append((altered * clean[held_out]).sum(axis=1))
    negatives = np.empty(len(held_out), np.float32)
    for start in range(0, len(held_out), 512):
        part = held_out[start : start + 512]
        likeness = clean[part] @ clean.T
        likeness[pictures.groups[part][:, None] == pictures.groups[None, :]] = -1
        negatives[start : start + 512] = likeness.max(axis=1)
    return choose_threshold(
        np.concatenate(positives), negatives, prior=config.prior, precision=config.precision
    )
