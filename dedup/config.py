"""Configurations of the detector's and the overlap audit's commands; imports nothing heavy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from pipeline.core.config import input_path, input_paths, unhashed


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Strengths of the augmentations [Appendix C names them; the paper gives no numbers].

    Attributes:
        min_crop: Smallest share of a side that a crop keeps.
        max_aspect: Largest ratio by which width and height are stretched against each other.
        min_scale: Smallest factor of down-sizing.
        max_scale: Largest factor of up-sizing.
        max_rotation_degrees: Largest rotation either way.
        min_jpeg_quality: Lowest JPEG quality.
        max_hue: Largest turn of the hue, as a share of the colour circle.
        max_saturation: Largest change of saturation, as a share.
        max_value: Largest change of brightness, as a share.
        max_ground: Largest darkening of the light ground that a cut-out picture lies on, as a share (ours).
        probability: Chance of each step, drawn for each picture.
        beyond: Chance of each step that the paper does not have (:mod:`dedup.repost`); 0 leaves them out.
        area: Draw OpenCV's area interpolation too; needs `cv2`. Off, so that equal seeds give equal pixels everywhere.
    """

    min_crop: float = 0.85
    max_aspect: float = 1.15
    min_scale: float = 0.45
    max_scale: float = 2.0
    max_rotation_degrees: float = 3.0
    min_jpeg_quality: int = 30
    max_hue: float = 0.01
    max_saturation: float = 0.12
    max_value: float = 0.1
    max_ground: float = 0.1
    probability: float = 0.7
    beyond: float = 0.0
    area: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop must lie in (0, 1], is {self.min_crop}; 0.75 keeps three quarters")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], is {self.probability}")
        if not 0 <= self.beyond <= 1:
            raise ValueError(
                f"beyond must lie in [0, 1], is {self.beyond}; 0.1 takes each step in one copy of ten"
            )
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect must be at least 1 (no distortion), is {self.max_aspect}")
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} must be above 0 and at most {self.max_scale}")
        if not 1 <= self.min_jpeg_quality <= 95:
            raise ValueError(f"min_jpeg_quality must lie in 1..95, is {self.min_jpeg_quality}")
        for name in ("max_rotation_degrees", "max_hue", "max_saturation", "max_value"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, is {getattr(self, name)}")
        if not 0 <= self.max_ground <= 1:
            raise ValueError(f"max_ground must lie in [0, 1], is {self.max_ground}; 0 leaves grounds alone")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """``wit dedup train`` [Appendix C].

    Attributes:
        images: Shards, ImageFolders, plain folders, or tables of pictures.
        preset: ``resnet50`` is the paper's detector; ``small`` trains on a laptop in minutes; ``general`` is the
            shape of the detector that ships.
        start: Folder of a detector with a head to go on from. Only ``whole_pairs`` are trained then, at
            ``learning_rate``, among pictures that it takes for alike; its map stays. ``preset`` must be its own.
        beside: Folder of a detector whose embeddings stand beside the trained one's in every embedding
            (:mod:`dedup.fused`); the threshold is calibrated for both together.
        beside_share: Share of a similarity that is that detector's; default: of a quarter, a half and three quarters
            the one with which the calibration expects most.
        start_sha256: What is in ``start``, set from it: its folder may have no manifest.
        beside_sha256: Likewise of ``beside``.
        pairs: Pairs (a picture and its altered copy) to train on; the paper took about 30 million pictures.
        joined_pictures: Pictures on which the linear map over all features is solved; it changes little beyond.
        head_pairs: Pairs of ready-made features that the head is trained on; default: 20 for each of ``pairs``.
        whole_pairs: Pairs on which network and head are trained together at last; the network's rate then stays
            at its peak until the head is there, and falls only in this last part.
        batch_size: Pairs in a batch [1,712]; each is compared with all others of its batch. Default: the preset's.
        learning_rate: Peak of the cosine schedule (ours; the paper gives none). Default: the preset's.
        weight_decay: AdamW's decay of weights (not of gains and biases).
        warmup_share: Share of the steps in which the rate rises to its peak.
        held_share: Share of the steps of ``whole_pairs`` in which the rate then stays there, before it falls in a
            straight line; 0 lets it fall as a cosine at once.
        neighbour_share: Share of a batch drawn as groups of look-alikes; 0 draws all at random.
        held_out: Share of the pictures kept for the proxy task's accuracy and for calibration.
        max_images: Pictures at most; of more, those with the smallest keyed hash are taken.
        largest_px: Side to which larger pictures are shrunk before they are altered, which saves most of an
            alteration's time; 0 leaves them as they are.
        compared: Pictures at most that the held-out ones are compared with for the calibration, themselves included.
        half: Keep weights at half precision, which halves their size; arithmetic stays at single precision.
        prior: Share of an evaluation set that an audit is expected to find copied, for the calibration
            [Section 5: mean 3.2 %].
        precision: Expected precision of an audit at the calibrated threshold.
        least_recall: Share of the altered copies that every threshold leaves at or above it; lower where training
            alters far more than the web does.
        augment: Strengths of the augmentations.
        seed: Seed of initial weights, order and augmentations.
        threads: Threads of the arithmetic; another count may change last bits.
        autocast: Lower precision of the network's products in training: ``bf16`` or ``fp16``. The loss, the weights,
            the closed-form map, the head over it and the calibration stay at single precision.
        chunk_size: Pairs of a batch whose activations are in memory at once; the gradients are those of the whole
            batch, but for rounding, at the cost of a second pass forward. Under torchrun, of each process's part.
            Default: the whole batch.
        device: Where to compute; ``auto`` takes a GPU if there is one. Only a CPU repeats itself to the bit.
        snapshot_minutes: Time between snapshots, from which a killed run goes on; 0 takes one after each step.
    """

    images: tuple[str, ...] = input_paths()
    preset: Literal["resnet50", "general", "small"] = "small"
    start: str | None = input_path()
    beside: str | None = input_path()
    beside_share: float | None = None
    start_sha256: str | None = None
    beside_sha256: str | None = None
    pairs: int = 8_000
    joined_pictures: int = 10_000
    head_pairs: int | None = None
    whole_pairs: int = 0
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    held_share: float = 0.0
    neighbour_share: float = 0.5
    held_out: float = 0.15
    max_images: int = 1_000_000
    largest_px: int = 0
    compared: int = 1_000_000
    half: bool = False
    prior: float = 0.032
    precision: float = 0.95
    least_recall: float = 0.6
    augment: AugmentConfig = AugmentConfig()
    seed: int = 0
    threads: int = 1
    autocast: Literal["off", "bf16", "fp16"] = "off"
    chunk_size: int | None = unhashed(None)
    device: Literal["auto", "cpu", "cuda"] = unhashed("auto")
    snapshot_minutes: float = unhashed(10.0)

    def __post_init__(self) -> None:
        for name in ("pairs", "joined_pictures", "max_images", "compared", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        for name in ("whole_pairs", "largest_px"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, is {getattr(self, name)}")
        for name in ("head_pairs", "chunk_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        if self.snapshot_minutes < 0:
            raise ValueError(f"snapshot_minutes must be at least 0, is {self.snapshot_minutes}")
        if self.batch_size is not None and self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 to compare with others, is {self.batch_size}")
        for name in ("prior", "precision", "least_recall", "held_out", "beside_share"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, is {getattr(self, name)}")
        for name in ("neighbour_share", "warmup_share", "held_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], is {getattr(self, name)}")
        if self.warmup_share + self.held_share > 1:
            raise ValueError(f"warmup_share {self.warmup_share} and held_share {self.held_share} are above 1")
        if self.start is not None and not self.whole_pairs:
            raise ValueError("start goes on with whole_pairs; set them, as whole_pairs = 40000")
        given = {f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        for name in ("joined_pictures", "head_pairs", "whole_pairs", "held_share"):
            if self.preset == "resnet50" and name in given:
                raise ValueError(f"{name} is of presets with a head, which resnet50 has not; leave it out")
        for name in ("pairs", "joined_pictures", "head_pairs"):
            if self.start is not None and name in given:
                raise ValueError(
                    f"{name} has no effect with start, which trains whole_pairs only; leave it out"
                )
        if self.beside_share is not None and 1 - self.beside_share == 1:
            raise ValueError(f"beside_share {self.beside_share} leaves nothing of what stands beside")
        if self.beside is None and "beside_share" in given:
            raise ValueError("beside_share has no effect without beside; leave it out")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, is {self.learning_rate}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, is {self.weight_decay}")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """``wit dedup embed``.

    Attributes:
        images: Shards, ImageFolders, plain folders, or tables of pictures.
        detector: Folder of ``wit dedup train``, ONNX or TorchScript file, ``module:function`` that makes a torch
            module, ``phash`` or ``pdq``; default: the one that ships.
        detector_input: JSON file that says what somebody else's network expects; default: the one beside its file.
        dataset: Name of the data set; default: each path's own last name.
        hash: What the detector is, set from ``detector``: its folder may have no manifest.
        half: Store embeddings at half precision.
        batch_size: Pictures embedded at once.
        device: Where to compute; ``auto`` takes a GPU if there is one. Another device may change last bits.
        decode_threads: Threads of each worker that decode pictures while the detector works on others.
        threads: Threads of each worker's arithmetic; another count may change last bits.
    """

    images: tuple[str, ...] = input_paths()
    detector: str | None = input_path()
    detector_input: str | None = input_path()
    dataset: str | None = None
    hash: str | None = None
    half: bool = False
    batch_size: int = 64
    device: Literal["auto", "cpu", "cuda"] = unhashed("auto")
    decode_threads: int = unhashed(1)
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "decode_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        if self.dataset == "":
            raise ValueError("dataset must not be empty; leave it out to take the folder's name")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """``wit dedup search`` [Section 5].

    Attributes:
        train: Embeddings of the training set.
        eval: Embeddings of the evaluation sets.
        k: Neighbours of each evaluation picture.
        index: ``exact`` compares all with all; ``ivf`` a training picture with the nearest lists of evaluation
            pictures only, and measures what that misses.
        probes: Lists that each training picture visits with ``ivf``; default: 8.
        block_rows: Training rows compared at once.
        threads: Threads of each worker's arithmetic.
    """

    train: str | None = input_path()
    eval: tuple[str, ...] = input_paths()
    k: int = 10
    index: Literal["exact", "ivf"] = "exact"
    probes: int | None = None
    block_rows: int = unhashed(16_384)
    threads: int = unhashed(1)

    def __post_init__(self) -> None:
        for name in ("k", "block_rows", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        _check_index(self.index, self.probes)


@dataclass(frozen=True, kw_only=True)
class GroupsConfig:
    """``wit dedup groups``: near-duplicates within the training set.

    Attributes:
        train: Embeddings of the training set.
        threshold: Similarity from which on two pictures belong together; default: the detector's calibrated one.
        index: ``exact`` compares all with all; ``ivf`` within lists of alike pictures only, and measures what that
            misses.
        probes: Lists that each picture visits with ``ivf``; default: 4.
        block_rows: Rows held in memory while all rows after them stream past.
        threads: Threads of each worker's arithmetic.
    """

    train: str | None = input_path()
    threshold: float | None = None
    index: Literal["exact", "ivf"] = "exact"
    probes: int | None = None
    block_rows: int = unhashed(32_768)
    threads: int = unhashed(1)

    def __post_init__(self) -> None:
        for name in ("block_rows", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        _check_index(self.index, self.probes)
        if self.threshold is not None and not -1 < self.threshold <= 1:
            raise ValueError(f"threshold must lie in (-1, 1], is {self.threshold}")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """``wit dedup report`` [Section 5].

    Attributes:
        neighbours: Result of ``wit dedup search``.
        thresholds: JSON of {data set: similarity from which on a pair counts as a copy}.
        predictions: Tables, folders or CSV files of ``eval_dataset, eval_id, correct``.
        alpha: Level of the one-tailed test before correction.
        confidence: Level of the Clopper-Pearson intervals [99.5 %].
        family: Which data sets Bonferroni's correction counts: all reported, or those that were tested.
    """

    neighbours: str | None = input_path()
    thresholds: str | None = input_path()
    predictions: tuple[str, ...] = input_paths()
    alpha: float = 0.05
    confidence: float = 0.995
    family: Literal["all", "tested"] = "all"

    def __post_init__(self) -> None:
        for name in ("alpha", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, is {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """``wit dedup audit``: embed, search and report in one go.

    Attributes:
        train: Training pictures, as ``wit dedup embed --images`` takes them.
        eval: Evaluation pictures; each path is a data set of its own.
        detector: As in ``wit dedup embed``.
        detector_input: As in ``wit dedup embed``.
        thresholds: As in ``wit dedup report``.
        predictions: As in ``wit dedup report``; without them only the contamination is reported.
        hash: As in ``wit dedup embed``.
        k: Neighbours of each evaluation picture.
        index: As in ``wit dedup search``.
        probes: As in ``wit dedup search``.
        half: As in ``wit dedup embed``.
        device: As in ``wit dedup embed``.
        decode_threads: As in ``wit dedup embed``.
        threads: Threads of each worker's arithmetic; another count may change an embedding's last bits.
    """

    train: tuple[str, ...] = input_paths()
    eval: tuple[str, ...] = input_paths()
    detector: str | None = input_path()
    detector_input: str | None = input_path()
    thresholds: str | None = input_path()
    predictions: tuple[str, ...] = input_paths()
    hash: str | None = None
    k: int = 10
    index: Literal["exact", "ivf"] = "exact"
    probes: int | None = None
    half: bool = False
    device: Literal["auto", "cpu", "cuda"] = unhashed("auto")
    decode_threads: int = unhashed(1)
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("k", "threads", "decode_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        _check_index(self.index, self.probes)


def _check_index(index: str, probes: int | None) -> None:
    if index == "exact" and probes is not None:
        raise ValueError("probes belongs to --index ivf; without an index all are compared with all")
    if probes is not None and probes < 1:
        raise ValueError(f"probes must be at least 1, is {probes}")
