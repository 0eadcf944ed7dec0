"""A tiny trained detector and pictures, made once for the room's tests."""

from __future__ import annotations

import pytest

from dedup.config import TrainConfig
from dedup.train import run
from pipeline.core.fakes import COLOURS, SHAPES, fake_shards, picture
from pipeline.core.stage import RunOptions

QUIET = RunOptions(quiet=True)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 pictures in three shards."""
    return fake_shards(str(tmp_path_factory.mktemp("shards") / "shards"), 60, per_shard=25, size=48)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An ImageFolder of 24 pictures, three to a class, and nothing else."""
    root = tmp_path_factory.mktemp("pictures") / "shapes"
    for i in range(24):
        place = root / COLOURS[i % len(COLOURS)]
        place.mkdir(parents=True, exist_ok=True)
        made = picture(COLOURS[i % len(COLOURS)], SHAPES[i // len(COLOURS)], size=40, seed=7000 + i)
        made.save(place / f"{i:02d}.png")
    return str(root)


@pytest.fixture(scope="session")
def detector(shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A detector after a few steps: not good, but whole."""
    out = str(tmp_path_factory.mktemp("detector") / "detector")
    run(TrainConfig(images=(shards,), pairs=96, batch_size=16, device="cpu"), out, QUIET)
    return out
