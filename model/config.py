"""Configurations of ``wit train``, ``wit evaluate`` and ``wit export``; the defaults are the paper's numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from model.presets import ModelConfig, Preset, TextConfig, VisionConfig, preset
from pipeline.core.config import input_path, input_paths, unhashed

Metric = Literal["accuracy", "mean-per-class", "11-point-map", "roc-auc", "mean-top1-top5"]
DEFAULT_TEMPLATE = "A photo of a {}."


def _refuse(condition: bool, message: str) -> None:
    if condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train (paper 2.5, Tables 18-20).

    Attributes:
        shards: Finished folders of ``wit fetch``.
        weights: Checkpoint to start from, of any form that ``wit evaluate`` reads, instead of random weights.
        model: Name of a preset: the paper's nine models or a small one.
        image_size: Pixels of the square input, if another than the preset's.
        vision_layers: Blocks of each ResNet stage, or one number for a ViT, if others than the preset's.
        vision_width: Width of the image tower, if another than the preset's.
        patch_size: Pixels of a ViT's patch, if another than the preset's.
        text_layers: Blocks of the text tower, if another number than the preset's.
        text_width: Width of the text tower, if another than the preset's.
        text_heads: Heads of the text tower, if another number than the preset's.
        text_encoder: ``transformer``, or ``cbow`` for the mean of a text's token embeddings (Figure 3).
        objective: What is learned (Figure 2): ``contrastive``, ``bow_contrastive`` (the same with ``cbow`` texts),
            ``bow_prediction`` (the words of an image's caption) or ``caption_lm`` (the caption word by word).
        vocab_size: Entries of the tokenizer, if another number than the preset's.
        embed_dim: Dimension of the joint embedding, if another than the preset's.
        short_side: Pixels of an image's short side before the random square crop; 8/7 of the image size unless
            given (256 for 224: the paper names the crop, not the size).
        batch_size: Pairs of a batch (Table 18).
        epochs: Times every image is seen (Table 18).
        steps: Number of steps instead of epochs.
        warmup_steps: Steps of linear warm-up (Table 18).
        learning_rate: Peak, if another than the preset's (Tables 19 and 20).
        beta1: Of Adam (Table 18).
        beta2: Of Adam, if another than the preset's (0.999 ResNet, 0.98 ViT; Table 18).
        epsilon: Of Adam, if another than the preset's (1e-8 ResNet, 1e-6 ViT; Table 18).
        weight_decay: Decoupled, on all weights that are not gains or biases (Table 18).
        precision: ``fp32``, or autocast to bfloat16 (``bf16``) or to float16 (``fp16``), the latter with a loss scale
            that adapts itself: steps whose gradients overflow are left out.
        moments: Adam's statistics in ``fp32``, or in ``bf16`` with stochastic rounding: half the memory (2.5).
        text_weights: The text side's matrices in ``fp32``, or in ``bf16`` with stochastic rounding (2.5); needs
            ``precision`` bf16 or fp16, and ``parallel`` ddp, as FSDP takes weights of one type only.
        accumulation: Parts of a process's batch that are in memory one after another; equal to the whole batch for
            ViTs, while ResNets normalise by part.
        recompute: Compute activations again in the backward pass instead of keeping them.
        parallel: Under torchrun, ``ddp`` keeps the whole model in each process, ``fsdp`` cuts weights, gradients and
            moments among them. Either goes on from the other's checkpoint.
        compile: Compile the towers' blocks with ``torch.compile``: faster once compiled, other last bits.
        seed: Of initialisation, order, captions and crops.
        captions: In plain WebDataset tars, the captions of a sample: endings of text members, or ``json.FIELD``.
        query_cap: At most so many images of each query in an epoch, others in each; none unless given.
        decoder: What decodes and resizes images: ``fast``, or ``pillow`` alone (two to three times slower; the two
            differ by at most one level in a few pixels).
        max_corrupt_share: Training stops when more than this share of the samples cannot be decoded.
        resume: Refuse to start from the beginning: there must be a checkpoint to go on from.
        checkpoint_steps: Steps between checkpoints.
        cache_bytes: Decoded images stay in memory if all of them fit into this many bytes.
        workers: Processes that read and decode images; unless given, none beside a CPU and up to 16 beside a GPU.
            The batches do not depend on it.
        tensorboard: Folder for TensorBoard's event files; none are written unless given.
        threads: Of torch on the CPU; 0 takes torch's own choice (all cores). Another number may change the last
            bits of the result.
        device: Where to compute; ``auto`` takes a GPU if there is one.
    """

    shards: tuple[str, ...] = input_paths()
    weights: str | None = input_path()
    model: str = "RN50"
    image_size: int | None = None
    vision_layers: tuple[int, ...] | int | None = None
    vision_width: int | None = None
    patch_size: int | None = None
    text_layers: int | None = None
    text_width: int | None = None
    text_heads: int | None = None
    text_encoder: Literal["transformer", "cbow"] = "transformer"
    objective: Literal["contrastive", "bow_contrastive", "bow_prediction", "caption_lm"] = "contrastive"
    vocab_size: int | None = None
    embed_dim: int | None = None
    short_side: int | None = None
    batch_size: int = 32_768
    epochs: int = 32
    steps: int | None = None
    warmup_steps: int = 2_000
    learning_rate: float | None = None
    beta1: float = 0.9
    beta2: float | None = None
    epsilon: float | None = None
    weight_decay: float = 0.2
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    moments: Literal["fp32", "bf16"] = "fp32"
    text_weights: Literal["fp32", "bf16"] = "fp32"
    accumulation: int = 1
    recompute: bool = unhashed(False)
    parallel: Literal["ddp", "fsdp"] = unhashed("ddp")
    compile: bool = unhashed(False)
    seed: int = 0
    captions: tuple[str, ...] = ("txt",)
    query_cap: int | None = None
    decoder: Literal["fast", "pillow"] = "fast"
    max_corrupt_share: float = 0.05
    resume: bool = unhashed(False)
    checkpoint_steps: int = unhashed(500)
    cache_bytes: int = unhashed(4 << 30)
    workers: int | None = unhashed(None)
    tensorboard: str | None = unhashed(None)
    threads: int = unhashed(0)
    device: Literal["auto", "cpu", "cuda"] = unhashed("auto")

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "checkpoint_steps", "accumulation"):
            _refuse(getattr(self, name) < 1, f"{name} {getattr(self, name)}: choose at least 1")
        for name in ("warmup_steps", "weight_decay", "cache_bytes", "threads", "seed"):
            _refuse(getattr(self, name) < 0, f"{name} {getattr(self, name)}: choose 0 or more")
        for name in ("steps", "query_cap"):
            count = getattr(self, name)
            _refuse(count is not None and count < 1, f"{name} {count}: choose at least 1")
        _refuse(self.workers is not None and self.workers < 0, f"workers {self.workers}: choose 0 or more")
        _refuse(not self.captions, "captions: name at least one, as txt or json.FIELD")
        rate = self.learning_rate
        _refuse(rate is not None and not 0 < rate < 1, f"learning_rate {rate}: choose between 0 and 1")
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            _refuse(beta is not None and not 0 <= beta < 1, f"{name} {beta}: choose from 0 to below 1")
        _refuse(self.epsilon is not None and self.epsilon <= 0, f"epsilon {self.epsilon}: choose above 0")
        share = self.max_corrupt_share
        _refuse(not 0 <= share <= 1, f"max_corrupt_share {share}: choose from 0 to 1")
        halved = self.text_weights == "bf16" and self.precision == "fp32"
        _refuse(halved, "text_weights bf16: choose precision bf16 or fp16 with it")
        mixed = self.text_weights == "bf16" and self.parallel == "fsdp"
        _refuse(mixed, "text_weights bf16: choose parallel ddp with it; FSDP takes weights of one type only")
        self._refuse_without_effect()

    def _refuse_without_effect(self) -> None:
        """A setting of a text tower that the model does not have must not look as if it did something."""
        given = {n for n in ("text_layers", "text_width", "text_heads") if getattr(self, n) is not None}
        if self.objective == "bow_prediction":
            given |= {"text_encoder"} if self.text_encoder != "transformer" else set()
            _refuse(bool(given), f"{', '.join(sorted(given))}: leave out, bow_prediction has no text tower")
        if self.objective == "bow_contrastive" or self.text_encoder == "cbow":
            _refuse("text_layers" in given, "text_layers: leave out, cbow texts pass through no layers")

    def architecture(self) -> ModelConfig:
        """The preset's model with this configuration's own geometry.

        Raises:
            UsageError: No such preset.
            ValueError: The geometry is impossible.
        """
        base = preset(self.model).config
        vision: dict[str, Any] = {
            "image_size": self.image_size,
            "layers": self.vision_layers,
            "width": self.vision_width,
            "patch_size": self.patch_size,
        }
        text: dict[str, Any] = {
            "width": self.text_width,
            "heads": self.text_heads,
            "layers": self.text_layers,
            "vocab_size": self.vocab_size,
            "kind": "cbow" if self.objective == "bow_contrastive" else self.text_encoder,
        }
        vision_cfg: VisionConfig = dataclasses.replace(base.vision_cfg, **_given(vision))
        text_cfg: TextConfig = dataclasses.replace(base.text_cfg, **_given(text))
        embed = self.embed_dim or base.embed_dim
        learned = "contrastive" if self.objective == "bow_contrastive" else self.objective
        return dataclasses.replace(
            base, embed_dim=embed, vision_cfg=vision_cfg, text_cfg=text_cfg, objective=learned
        )

    def resized_to(self) -> int:
        """Pixels of an image's short side before the crop.

        Raises:
            UsageError: No such preset.
            ValueError: The crop would not fit.
        """
        size = self.architecture().vision_cfg.image_size
        side = size * 8 // 7 if self.short_side is None else self.short_side
        _refuse(side < size, f"short_side {side}: choose at least the image size, {size}")
        return side

    def optimiser(self) -> Preset:
        """The preset with this configuration's own learning rate, beta2 and epsilon."""
        values = {"learning_rate": self.learning_rate, "beta2": self.beta2, "epsilon": self.epsilon}
        return dataclasses.replace(preset(self.model), **_given(values))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What every evaluation needs to know.

    Attributes:
        model: Checkpoint folder.
        batch_size: Images, or texts, encoded at once.
        tensorboard: Folder for TensorBoard's event files; none are written unless given.
        threads: Of torch on the CPU; 0 takes torch's own choice.
        device: Where to compute; ``auto`` takes a GPU if there is one.
    """

    model: str | None = input_path()
    batch_size: int = unhashed(256)
    tensorboard: str | None = unhashed(None)
    threads: int = unhashed(0)
    device: Literal["auto", "cpu", "cuda"] = unhashed("auto")

    def __post_init__(self) -> None:
        _refuse(self.batch_size < 1, f"batch_size {self.batch_size}: choose at least 1")
        _refuse(self.threads < 0, f"threads {self.threads}: choose 0 or more")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(EvaluationConfig):
    """What an evaluation of one dataset needs to know.

    Attributes:
        dataset: The test images.
        known_as: A dataset of the paper (:mod:`model.registry`), whose name, metric and prompts it has.
        name: The dataset's name in ``eval_dataset``; its folder's name unless given.
    """

    dataset: str | None = input_path()
    known_as: str | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(DatasetConfig):
    """How to evaluate zero-shot (paper 3.1).

    Attributes:
        dataset: A folder with one folder of images per class, or WebDataset tars, Parquet, CSV, MNIST or CIFAR files.
        prompts: File with one prompt template a line, ``{}`` standing for the class name; several are ensembled.
        class_names: TSV of ``folder<TAB>name``; a class without a line is named by its folder.
        templates: Prompt templates, if there is no ``prompts`` file.
        metric: The dataset's own (Table 9).
    """

    prompts: str | None = input_path()
    class_names: str | None = input_path()
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    metric: Metric = "accuracy"

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse(not self.templates, "templates: give at least one, as 'A photo of a {}.'")
        for template in self.templates:
            _refuse("{}" not in template, f"template {template!r}: put {{}} where the class name goes")


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig(DatasetConfig):
    """How to train and test a linear probe (paper A.3).

    Attributes:
        train: Labelled training images, in any form that ``dataset`` may have.
        validation: Labelled images to find the penalty with; unless given, a share of the training images.
        dataset: Labelled test images.
        metric: The dataset's own (Table 9).
        validation_share: Share of each class that validates, if there is no ``validation``.
        penalty: The L2 penalty (the paper's lambda); found by search unless given.
        shots: Also train with so many images of each class.
        seed: Of the split and of the shots.
    """

    train: str | None = input_path()
    validation: str | None = input_path()
    metric: Metric = "accuracy"
    validation_share: float = 0.2
    penalty: float | None = None
    shots: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.validation_share
        _refuse(not 0 < share < 1, f"validation_share {share}: choose between 0 and 1")
        _refuse(self.penalty is not None and self.penalty <= 0, f"penalty {self.penalty}: choose above 0")
        _refuse(any(n < 1 for n in self.shots), f"shots {self.shots}: choose at least 1")


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(DatasetConfig):
    """How to evaluate retrieval (paper E.1).

    Attributes:
        dataset: Images with captions: WebDataset tars, Parquet, or CSV with a path and a caption column.
        captions: Column of the captions, or their ending in tars, if another than the usual names.
        template: What a caption is put into; the paper puts "a photo of" before each.
    """

    captions: str | None = None
    template: str = "{}"

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse("{}" not in self.template, f"template {self.template!r}: put {{}} where the caption goes")


@dataclass(frozen=True, kw_only=True)
class SuiteConfig(EvaluationConfig):
    """How to evaluate a group of datasets (paper 3.3).

    Attributes:
        data: Folder that holds the datasets under their names in the registry (:mod:`model.registry`).
        group: ``robustness``, ``zero-shot-36`` or ``linear-probe-27``; retrieval sets are left out.
        base: The dataset that the others shift from; ``none`` for no comparison.
        baselines: Suites of other models, from which effective robustness is told.
    """

    data: str | None = input_path()
    group: str = "robustness"
    base: str = "imagenet"
    baselines: tuple[str, ...] = input_paths()


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to write for another program.

    Attributes:
        model: Checkpoint: a folder of ours, of open_clip or of transformers, or OpenAI's archive.
        form: ``open_clip`` or ``transformers``, ``onnx`` for both towers as ONNX models, or ``wit`` to make a
            checkpoint of ours out of another's.
        name: What the model card calls it; the checkpoint's folder unless given.
        scores: Evaluations of the checkpoint, for the model card.
        overlaps: Folder of ``wit dedup report``, for the model card.
    """

    model: str | None = input_path()
    name: str | None = None
    scores: tuple[str, ...] = input_paths()
    overlaps: str | None = input_path()
    form: Literal["open_clip", "transformers", "onnx", "wit"] = "open_clip"
