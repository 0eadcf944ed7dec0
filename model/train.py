"""``wit train``: the paper's training over the builder's shards (paper 2.5), in one process or under torchrun."""

from __future__ import annotations

from model import checkpoint, distributed, events
from model.config import TrainConfig
from model.data import DAMAGE
from model.distributed import device_of
from model.shards import read_index, shard_files
from model.trainer import BAD_BATCH, METRICS, Trainer
from pipeline.core import snapshots
from pipeline.core.errors import ConfigError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.stage import RunOptions, StageResult, run_stage

OWNED = (checkpoint.WEIGHTS, checkpoint.CONFIG, *snapshots.NAMES, METRICS, BAD_BATCH)


def run(config: TrainConfig, out: str, options: RunOptions) -> Manifest | None:
    """Trains into a checkpoint folder.

    Raises:
        WitError: Bad input, impossible configuration, a loss that is not finite, or an output that cannot be written.
    """
    try:
        config.resized_to()
    except ValueError as error:
        raise ConfigError(str(error), where="[train]") from error
    if not config.shards:
        raise UsageError("no shards to train on", hint="pass --shards DIR")
    if config.parallel == "fsdp" and distributed.started() < 2:
        raise UsageError(
            "fsdp cuts the model among processes, and there is one", where="train.parallel",
            hint="start several with torchrun, or leave --parallel out",
        )  # fmt: skip
    events.check(config.tensorboard)
    if not options.dry_run:
        shard_files(config.shards)  # refuses before anything is written
        if config.weights is not None:
            checkpoint.check(config.weights)

    distributed.start(device_of(config.device))
    try:
        if distributed.rank() == 0:
            return _run_first(config, out, options)
        if distributed.told_by_first(None):
            _train(config, out, quiet=True)
        return None
    finally:
        distributed.stop()


def _run_first(config: TrainConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs the stage in the process that writes; the others wait to hear whether there is anything to do."""
    told = False

    def body(folder: str) -> StageResult:
        nonlocal told
        told = True
        distributed.told_by_first(True)
        return _train(config, folder, quiet=options.quiet)

    try:
        return run_stage(
            body,
            stage="train",
            contract=checkpoint.CONTRACT,
            config=config,
            inputs=[*config.shards, *([config.weights] if config.weights else [])],
            out=out,
            options=options,
            owned=OWNED,
            resumable=True,
            damage=DAMAGE,
        )
    finally:
        if not told:
            distributed.told_by_first(False)


def _train(config: TrainConfig, folder: str, *, quiet: bool) -> StageResult:
    trainer = Trainer(config, folder, read_index(config.shards, captions=config.captions))
    try:
        return trainer.train(quiet=quiet)
    finally:
        trainer.loader.close()
