"""A checkpoint for the evaluations' tests, trained for a second."""

from __future__ import annotations

import pytest

from model.config import TrainConfig
from model.train import run
from pipeline.core import fakes
from pipeline.core.stage import RunOptions


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("trained")
    shards = fakes.fake_shards(str(root / "shards"), 64, per_shard=64, size=40)
    config = TrainConfig(
        shards=(shards,), model="RN-tiny", batch_size=32, steps=8, warmup_steps=2, threads=1, device="cpu",
        vocab_size=2000,
    )  # fmt: skip
    run(config, str(root / "model"), RunOptions(quiet=True))
    return str(root / "model")
