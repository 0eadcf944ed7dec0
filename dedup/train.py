"""``wit dedup train``: teaches a detector to know a picture from its altered copies (Appendix C).

Each picture of a batch and its altered copy must find one another among all others: InfoNCE both ways at the
fixed temperature 0.07. Afterwards the threshold is calibrated on pictures the detector never saw. A killed run goes on
from its last snapshot; under torchrun several processes share every batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch

from dedup import images
from dedup.calibrate import Calibration, choose_threshold
from dedup.collection import UNREADABLE, Collection
from dedup.config import TrainConfig
from dedup.contrast import TEMPERATURE
from dedup.detector import Detector
from dedup.fit import copy_seeds, embed_pictures, fit, start_of
from dedup.folder import CONFIG, CONTRACT, WEIGHTS, load, save
from dedup.fused import Fused
from dedup.processes import Processes, working_together
from pipeline.core import paths, snapshots, tables
from pipeline.core.contracts import DROPPED
from pipeline.core.errors import InputError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress
from pipeline.core.stage import RunOptions, StageResult, check_damage, run_stage

STAGE = "dedup train"
REASONS = (UNREADABLE,)
METRICS = "metrics.jsonl"
PROXY_BATCH = 1712
POSITIVES = 2
HELD_OUT_AT_MOST = 20_000
# Shares of a similarity that a detector beside the trained one may have.
SHARES, EVEN = (0.25, 0.5, 0.75), 0.5


def run(config: TrainConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs the command, in one process or under torchrun; see :func:`pipeline.core.stage.run_stage`.

    Returns:
        The manifest; ``None`` for a dry run and in all processes but the first.

    Raises:
        WitError: Bad pictures or settings, a loss that is not a number, or an output that cannot be written.
    """
    chunks = images.plan(config.images)
    # Wrong ones are known before the pictures are read.
    start, other = (load(path) if path else None for path in (config.start, config.beside))
    if start is not None:
        start_of(config, start)
    # Not told apart by their paths: two folders can be of one size, and one can be given as either.
    config = replace(
        config, start_sha256=start.sha256 if start else None, beside_sha256=other.sha256 if other else None
    )
    beside = None if other is None else other.detector
    if options.dry_run:
        return _run_first(config, chunks, beside, Processes(), out, options)
    with working_together(config.device) as processes:
        if processes.rank == 0:
            return _run_first(config, chunks, beside, processes, out, options)
        (needed,) = processes.any(False)
        if needed:
            most_bad = options.max_bad_fraction
            train(config, chunks, out, beside=beside, processes=processes, quiet=True, most_bad=most_bad)
        return None


def _run_first(
    config: TrainConfig,
    chunks: Sequence[images.Chunk],
    beside: Detector | Fused | None,
    processes: Processes,
    out: str,
    options: RunOptions,
) -> Manifest | None:
    """Runs the stage in the process that writes; the others wait to hear whether there is anything to do."""
    told = False

    def body(folder: str) -> StageResult:
        nonlocal told
        told = True
        processes.any(True)
        return train(
            config,
            chunks,
            folder,
            beside=beside,
            processes=processes,
            quiet=options.quiet,
            most_bad=options.max_bad_fraction,
        )

    try:
        done = run_stage(
            body,
            stage=STAGE,
            contract=CONTRACT,
            config=config,
            inputs=[*config.images, *(path for path in (config.start, config.beside) if path)],
            out=out,
            options=options,
            owned=(WEIGHTS, CONFIG, METRICS, *snapshots.NAMES),
            resumable=True,
            damage=REASONS,
        )
        if done is not None:  # not before: a stage that fails in its last check goes on from them
            snapshots.Snapshots(out).forget()
        return done
    finally:
        if not told:
            processes.any(False)


def train(
    config: TrainConfig,
    chunks: Sequence[images.Chunk],
    out: str,
    *,
    beside: Detector | Fused | None,
    processes: Processes,
    quiet: bool,
    most_bad: float | None = None,
) -> StageResult:
    """Reads the pictures, trains, calibrates and writes the detector's folder.

    Args:
        config: How to train.
        chunks: The pictures; every process reads all of them and draws the same batches.
        out: Output folder; snapshots found there are gone on from.
        beside: What stands beside the trained detector, if anything does.
        processes: Who takes part; the first one writes.
        quiet: Show no progress.
        most_bad: Share of the pictures that may be unreadable; ``None``: any.

    Raises:
        InputError: Too few readable pictures, or a damaged snapshot.
        StageFailedError: More pictures are unreadable, which is found before anything is trained; the loss is not
            a number, or the process was asked to end.
        UsageError: A batch has fewer pairs than there are processes.
    """
    torch.set_num_threads(config.threads)
    with Collection(largest_px=config.largest_px) as pictures:
        total = sum(chunk.rows for chunk in chunks)
        with Progress(f"{STAGE}: reading", total=total, unit="pictures", quiet=quiet):
            pictures.fill(chunks, max_images=config.max_images, seed=config.seed)
        if processes.rank == 0:
            paths.remove(paths.join(out, "dropped"))  # of an attempt before its input was mended
        if processes.rank == 0 and pictures.lost:
            dropped = tables.dropped_table(STAGE, [(UNREADABLE, x.id, x.detail) for x in pictures.lost])
            tables.write_table(paths.join(out, "dropped", tables.part_name(0)), dropped, DROPPED)
        check_damage(STAGE, out, {UNREADABLE: len(pictures.lost)}, pictures.read, most_bad)
        known, held_out = pictures.split(config.held_out, seed=config.seed)
        held_out = held_out[:HELD_OUT_AT_MOST]
        if len(known) < 2 or not len(held_out):
            raise InputError(
                "too few readable pictures to train and calibrate on",
                where=", ".join(config.images),
                expected="some hundred at least",
                found=f"{len(pictures)} readable of {pictures.read}",
            )
        trained, lines = fit(
            config, pictures, known, processes=processes, snapshots=snapshots.Snapshots(out), quiet=quiet
        )
        detector = fused_with(beside, trained, EVEN).to(processes.device)
        if config.half:
            detector.half().float()  # calibrated as it will be loaded
        with Progress(f"{STAGE}: calibrating", unit="pictures", quiet=quiet):
            clean, altered = held_out_embeddings(config, detector, pictures, held_out, processes)
        if isinstance(detector, Fused):
            share = weigh_by_best_share(config, trained.dimension, pictures, held_out, clean, altered)
            detector = fused_with(beside, trained, share).to(processes.device)
        calibration = calibrate(config, pictures, held_out, clean, altered)
        accuracy, compared = proxy_accuracy(pictures.groups[held_out], clean[held_out], altered[0])
        found: dict[str, object] = {"threshold": calibration.threshold, "held_out_accuracy": accuracy}
        if processes.rank == 0:
            lines.append({"event": "end", **found, **asdict(calibration)})
            found["detector_sha256"] = write(config, out, detector, lines, calibration)
        return StageResult(
            rows=len(pictures),
            rows_in=pictures.read,
            engine=f"torch {torch.__version__} {processes.device.type}",
            extra={
                **found,
                "dimension": detector.dimension,
                **({"shares": list(detector.shares)} if isinstance(detector, Fused) else {}),
                "held_out_compared": compared,
                "calibration": asdict(calibration),
            },
        )


def fused_with(beside: Detector | Fused | None, trained: Detector, share: float) -> Detector | Fused:
    """The trained detector with the one that stands beside it, if there is one, and its share of a similarity."""
    return trained if beside is None else Fused([trained, beside], [1 - share, share]).eval()


def weigh_by_best_share(
    config: TrainConfig,
    width: int,
    pictures: Collection,
    held_out: np.ndarray,
    clean: np.ndarray,
    altered: Sequence[np.ndarray],
) -> float:
    """Brings embeddings to the share of what stands beside the trained detector: the configured or the best one.

    The best of :data:`SHARES` has the highest expected precision at its calibrated threshold, as far as it is wanted;
    of those that have the wanted one, the highest recall.

    Args:
        config: How to calibrate.
        width: Dimension of the trained detector's embeddings, which come first.
        pictures: Where the pictures are.
        held_out: int64 [H].
        clean: float32 [N, d] of :func:`held_out_embeddings` with equal shares; changed to those with the chosen one.
        altered: Likewise.

    Returns:
        The share.
    """

    def weigh(before: float, after: float) -> None:
        for part, ratio in ((slice(width), (1 - after) / (1 - before)), (slice(width, None), after / before)):
            for made in (clean, *altered):
                made[:, part] *= np.float32(ratio**0.5)

    now, found = EVEN, {}
    for share in SHARES if config.beside_share is None else ():
        weigh(now, share)
        now = share
        made = calibrate(config, pictures, held_out, clean, altered)
        found[share] = (min(made.precision, config.precision), made.recall)
    chosen = max(found, key=found.__getitem__) if config.beside_share is None else config.beside_share
    weigh(now, chosen)
    return chosen


def write(
    config: TrainConfig,
    out: str,
    detector: Detector | Fused,
    lines: Sequence[dict[str, object]],
    calibration: Calibration,
) -> str:
    """Writes the detector and its curve; returns the detector's sha256."""
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    paths.write_bytes(paths.join(out, METRICS), text.encode())
    notes = {"calibration": asdict(calibration), "preset": config.preset, "temperature": TEMPERATURE}
    return save(out, detector, threshold=calibration.threshold, notes=notes, half=config.half)


def held_out_embeddings(
    config: TrainConfig,
    detector: Detector | Fused,
    pictures: Collection,
    held_out: np.ndarray,
    processes: Processes,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Embeddings of the distinct pictures, and of some altered copies of the held-out ones.

    Returns:
        float32 [N, d] by index in the collection, zeros for pictures seen before and for those beyond
        ``config.compared``, and float32 [H, d] per copy.
    """
    distinct = pictures.distinct()
    others = np.setdiff1d(distinct, held_out)
    if len(distinct) > config.compared:
        places = np.linspace(0, len(others) - 1, max(1, config.compared - len(held_out)))
        distinct = np.union1d(held_out, others[np.unique(places.astype(np.int64))])

    def embedded(chosen: np.ndarray, seeds: Sequence[int | None]) -> np.ndarray:
        return embed_pictures(
            detector, detector.dimension, detector.looks, pictures, chosen, seeds, config.augment, processes
        )

    clean = np.zeros((len(pictures), detector.dimension), np.float32)
    clean[distinct] = embedded(distinct, [None] * len(distinct))
    altered = [
        embedded(held_out, copy_seeds(pictures, held_out, copy, seed=config.seed))
        for copy in range(POSITIVES)
    ]
    return clean, altered


def proxy_accuracy(groups: np.ndarray, clean: np.ndarray, altered: np.ndarray) -> tuple[float, int]:
    """Share of pictures whose altered copy is nearest to them among 1,712 [Appendix C], or all if there are fewer.

    A batch's own accuracy falls with its size; this one is comparable between batch sizes.

    Args:
        groups: int64 [N]; of pictures of one group only the first counts.
        clean: float32 [N, d].
        altered: float32 [N, d].

    Returns:
        The share, and how many pictures were compared.
    """
    chosen = np.sort(np.unique(groups, return_index=True)[1])[:PROXY_BATCH]
    right = np.argmax(altered[chosen] @ clean[chosen].T, axis=1) == np.arange(len(chosen))
    return float(right.mean()), len(chosen)


def calibrate(
    config: TrainConfig,
    pictures: Collection,
    held_out: np.ndarray,
    clean: np.ndarray,
    altered: Sequence[np.ndarray],
) -> Calibration:
    """Chooses the threshold on held-out pictures; see :mod:`dedup.calibrate`."""
    positives = [(copy * clean[held_out]).sum(axis=1) for copy in altered]
    foreign = np.empty(len(held_out), np.float32)
    akin: list[np.ndarray] = []
    for start in range(0, len(held_out), 512):
        part = held_out[start : start + 512]
        likeness = clean[part] @ clean.T
        likeness[pictures.groups[part][:, None] == pictures.groups[None, :]] = -1
        same = pictures.sources[part][:, None] == pictures.sources[None, :]
        if len(np.unique(pictures.sources)) > 1:
            akin.append(likeness[same & (likeness > 0)])
            likeness[same] = -1
        foreign[start : start + 512] = likeness.max(axis=1)
    return choose_threshold(
        np.concatenate(positives),
        foreign,
        np.concatenate(akin) if akin else np.zeros(0, np.float32),
        prior=config.prior,
        precision=config.precision,
        least_recall=config.least_recall,
    )
