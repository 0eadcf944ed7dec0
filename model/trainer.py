"""The training loop and its state (paper 2.5).

Every random draw is a function of the seed and the position (epoch, sample), so the state of a run is its step, its
position, the weights and the optimiser's moments: an interrupted run that goes on equals one that never stopped.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

import torch
from torch import Tensor

from model import checkpoint, distributed, events
from model.clip import normalise
from model.config import TrainConfig
from model.data import Batch, Loader
from model.distributed import device_of
from model.objectives import objective_of
from model.optim import adamw, halve_text_weights, learning_rate_at
from model.precision import Precision
from model.predictive import model_of
from model.sharding import compile_blocks, load_optimiser, load_weights, whole, whole_weights, wrapped
from model.shards import Index
from model.tokenizer import Tokenizer
from pipeline.core import paths, snapshots, tables
from pipeline.core.contracts import DROPPED
from pipeline.core.errors import ConfigError, InputError, StageFailedError, UsageError
from pipeline.core.progress import Progress
from pipeline.core.stage import StageResult

METRICS, BAD_BATCH = "metrics.jsonl", "bad-batch.txt"


def workers_for(given: int | None, device: torch.device) -> int:
    """Loader processes: as configured, else none beside a CPU, which has its cores' work, and up to 16 beside a GPU."""
    if given is not None:
        return given
    return 0 if device.type == "cpu" else min(16, max(1, (os.cpu_count() or 1) - 1))


class Trainer:
    """One training run and its state.

    Args:
        config: How to train.
        folder: Checkpoint folder.
        index: The samples, as :func:`model.shards.read_index` gives them.
    """

    def __init__(self, config: TrainConfig, folder: str, index: Index) -> None:
        self.config, self.folder = config, folder
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = device_of(config.device)
        torch.manual_seed(config.seed)
        architecture = config.architecture()
        image_size = architecture.vision_cfg.image_size
        text = architecture.text_cfg
        self.model = model_of(architecture).to(self.device)
        # Convolutions are about twice as fast so on CPUs and GPUs.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.weights is not None:
            checkpoint.start_from(self.model, config.weights)
        if config.text_weights == "bf16":
            halve_text_weights(self.model)
        if config.recompute:
            self.model.recompute_activations()
        if config.compile:
            compile_blocks(self.model)
        net = wrapped(self.model, parallel=config.parallel, device=self.device)
        self.precision = Precision(config.precision, self.device)
        self.objective = objective_of(self.model, net, self.precision, parts=config.accumulation)
        self.rates = config.optimiser()
        self.optimiser = adamw(
            self.model,
            weight_decay=config.weight_decay,
            beta1=config.beta1,
            beta2=self.rates.beta2,
            epsilon=self.rates.epsilon,
            moments=config.moments,
            # With DDP all processes must round alike; with FSDP each rounds its own share.
            seed=config.seed + (distributed.rank() << 32 if config.parallel == "fsdp" else 0),
        )
        self.loader = Loader(
            index,
            Tokenizer(context_length=text.context_length, vocab_size=text.vocab_size),
            batch_size=config.batch_size,
            image_size=image_size,
            short_side=config.resized_to(),
            seed=config.seed,
            cache_bytes=config.cache_bytes,
            max_corrupt_share=config.max_corrupt_share,
            decoder=config.decoder,
            workers=workers_for(config.workers, self.device),
            query_cap=config.query_cap,
            rank=distributed.rank(),
            ranks=distributed.ranks(),
        )
        self._check_parts()
        self.step = 0
        self.metrics: list[str] = []
        self.total_steps = config.steps or config.epochs * self.loader.steps_per_epoch
        if config.warmup_steps >= self.total_steps:
            raise ConfigError(
                "the warm-up is as long as the training",
                where="[train].warmup_steps",
                expected=f"fewer than {self.total_steps:,} steps",
                found=f"{config.warmup_steps:,}",
                hint="set warmup_steps",
            )

    def _check_parts(self) -> None:
        own = self.config.batch_size // distributed.ranks()
        if own % self.config.accumulation:
            raise UsageError(
                "a process's batch cannot be cut into equal parts",
                where="train.accumulation",
                expected=f"a divisor of {own:,}",
                found=self.config.accumulation,
            )

    def train(self, *, quiet: bool) -> StageResult:
        """Trains from the last checkpoint, or from the beginning, to the end.

        Raises:
            StageFailedError: The loss is not finite, or the process was asked to end (SIGTERM); the latter is saved.
        """
        last = self._restore()
        self.model.train()
        total = self.total_steps * self.config.batch_size
        try:
            with (
                Progress("train", total=total, unit="images", quiet=quiet) as shown,
                snapshots.asked_to_end() as asked,
                events.training_log(self.config.tensorboard, done=self.step) as log,
            ):
                shown.update(self.step * self.config.batch_size)
                while self.step < self.total_steps:
                    last = self.train_step(self.loader.next_batch())
                    self.metrics.append(json.dumps(last))
                    log.add(last, images=self.config.batch_size, parameters=self.model.parameters())
                    ending = distributed.any_of_all(bool(asked), self.device)
                    due = self.step % self.config.checkpoint_steps == 0 and self.step < self.total_steps
                    if due or ending:
                        self._save()
                    if ending:
                        raise snapshots.stopped(self.step, where=self.folder)
                    scale = f", scale {last['scale']:.1f}" if "scale" in last else ""
                    note = f"step {self.step}, loss {last['loss']:.3f}{scale}"
                    shown.update(self.config.batch_size, note=note)
        except StageFailedError:
            self._save_metrics()  # the curve that led to the failure
            raise
        self._save()
        for corrupt in distributed.of_all(self.loader.corrupt):
            self.loader.corrupt |= corrupt
        weights = whole_weights(self.model)
        if distributed.rank() == 0:
            checkpoint.forget_previous_state(self.folder)
            checkpoint.save_model(self.folder, self.model, name=self.config.model, weights=weights)
            table = tables.dropped_table("train", self.loader.dropped())
            tables.write_table(paths.join(self.folder, "dropped", tables.part_name(0)), table, DROPPED)
        return StageResult(
            rows=len(self.loader.index.pair_ids) - len(self.loader.corrupt),
            rows_in=self.loader.index.rows_in,
            engine=f"torch {torch.__version__} {self.device.type}",
            extra={
                "steps": self.step,
                "images_seen": self.step * self.config.batch_size,
                "distinct_images": self.loader.index.groups,
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "final": last,
            },
        )

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step; returns its metrics. Times are not among them: equal runs give equal files.

        Raises:
            StageFailedError: The loss is not finite; names the batch's samples.
        """
        rate = learning_rate_at(
            self.step,
            peak=self.rates.learning_rate,
            warmup_steps=self.config.warmup_steps,
            total_steps=self.total_steps,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        images = normalise(torch.from_numpy(batch.images).to(self.device))
        tokens = torch.from_numpy(batch.tokens).to(self.device)
        self.optimiser.zero_grad(set_to_none=True)
        loss, facts = self.objective.backward(images, tokens)
        value = self._finite(batch, loss)
        self.precision.apply(self.optimiser)
        self.objective.settle()
        self.step += 1
        if self.precision.scaler.is_enabled():
            facts["loss_scale"] = torch.tensor(self.precision.scaler.get_scale())
        return {
            "step": self.step,
            "epoch": self.loader.epoch,
            "loss": value,
            **{name: fact.item() for name, fact in facts.items()},
            "lr": rate,
        }

    def _finite(self, batch: Batch, loss: Tensor) -> float:
        """The loss of all processes, if it is a number."""
        value = distributed.mean_of_all(loss).item()
        if not math.isfinite(value):
            self._refuse(batch, value)
        return value

    def _refuse(self, batch: Batch, value: float) -> None:
        own = [self.loader.index.pair_ids[int(s)].as_py() for s in batch.samples]
        ids = [name for names in distributed.of_all(own) for name in names]
        path = paths.join(self.folder, BAD_BATCH)
        if distributed.rank() == 0:
            paths.write_bytes(path, ("\n".join(ids) + "\n").encode())
        raise StageFailedError(
            f"the loss is not finite at step {self.step + 1}",
            where=", ".join(ids[:3]) + (", …" if len(ids) > 3 else ""),
            found=value,
            hint=f"the batch's pair_ids are in {path}; look at these samples or lower learning_rate",
        )

    def _save_metrics(self) -> None:
        if distributed.rank() == 0:
            text = "".join(f"{line}\n" for line in self.metrics)
            paths.write_bytes(paths.join(self.folder, METRICS), text.encode())

    def _save(self) -> None:
        self._save_metrics()  # first: the state must never be ahead of its metrics
        loader = self.loader
        positions = distributed.of_all(
            {"epoch": loader.epoch, "place": loader.place, "corrupt": loader.corrupt}
        )
        state = {
            "step": self.step,
            "positions": positions,
            "model": whole_weights(self.model),
            "optimiser": whole(self.optimiser.state_dict()),
            "scaler": self.precision.scaler.state_dict(),
        }
        if distributed.rank() == 0:
            checkpoint.save_state(self.folder, state)

    def _restore(self) -> dict[str, float]:
        """Loads the last checkpoint, if any, and cuts the metrics back to it; returns the last metrics."""
        state = checkpoint.load_state(self.folder)
        if state is None and self.config.resume:
            raise InputError(
                "there is no checkpoint to go on from",
                where=self.folder,
                hint="run without --resume to start from the beginning",
            )
        if state is None:
            return {}
        load_weights(self.model, state["model"])
        load_optimiser(self.optimiser, state["optimiser"])
        self.precision.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self._restore_position(state["positions"])
        path = paths.join(self.folder, METRICS)
        self.metrics = paths.read_bytes(path).decode().splitlines()[: self.step]
        if len(self.metrics) != self.step:
            raise InputError(
                "the metrics do not reach to the checkpoint",
                where=path,
                expected=f"{self.step} lines",
                found=len(self.metrics),
                hint=f"remove {snapshots.NAME} to start over",
            )
        last: dict[str, float] = json.loads(self.metrics[-1])
        return last

    def _restore_position(self, positions: list[dict[str, Any]]) -> None:
        if len(positions) != distributed.ranks():
            raise UsageError(
                "the checkpoint was made with another number of processes",
                where=self.folder,
                expected=len(positions),
                found=distributed.ranks(),
            )
        mine = positions[distributed.rank()]
        self.loader.corrupt = dict(mine["corrupt"])
        self.loader.go_to(mine["epoch"], mine["place"])
