"""Several detectors as one: one vector, whose similarity is the weighted mean of the members' similarities."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dedup.collection import Collection
from dedup.config import EmbedConfig, TrainConfig
from dedup.detector import PRESETS, Detector
from dedup.embed import run as embed_run
from dedup.folder import load, save
from dedup.fused import Fused, embed
from dedup.train import run as train
from dedup.train import weigh_by_best_share
from pipeline.core import manifest
from pipeline.core.errors import InputError, OutputError, WitError
from pipeline.core.fakes import COLOURS, SHAPES, picture
from pipeline.core.stage import RunOptions

QUIET = RunOptions(quiet=True)
# Without a head, so that it looks at pictures in its own way.
PLAIN = dataclasses.replace(
    PRESETS["small"], image_px=32, joined=0, hidden=0, learned=16, embedding=16, widths=(4,), depths=(1,)
)


def _pictures() -> list[Image.Image]:
    return [picture(COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)], size=40, seed=i) for i in range(5)]


def _embedded(detector: Detector | Fused, pictures: list[Image.Image]) -> np.ndarray:
    return embed(detector, np.stack([detector.looks(one) for one in pictures]))


@pytest.fixture(scope="module")
def members(detector: str) -> list[Detector]:
    torch.manual_seed(3)
    first = load(detector).detector
    assert isinstance(first, Detector)
    return [first, Detector(PRESETS["small"]).eval(), Detector(PLAIN).eval()]


@pytest.mark.parametrize("chosen", [(0, 1), (0, 2), (0, 1, 2)])
def test_a_similarity_is_the_weighted_mean_of_the_members(
    members: list[Detector], chosen: tuple[int, ...]
) -> None:
    shares = np.array([3.0, 1.0, 4.0])[list(chosen)]
    fused = Fused([members[i] for i in chosen], shares.tolist())
    made = _embedded(fused, _pictures())
    assert made.shape == (5, fused.dimension)
    assert np.linalg.norm(made, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    each = [_embedded(members[i], _pictures()) for i in chosen]
    wanted = sum(w * (e @ e.T) for w, e in zip(shares / shares.sum(), each, strict=True))
    assert made @ made.T == pytest.approx(wanted, abs=1e-5)


def test_members_that_see_alike_share_their_looks(members: list[Detector]) -> None:
    image = _pictures()[0]
    assert Fused(members[:2], (1, 1)).looks(image).shape == members[0].looks(image).reshape(-1).shape
    assert len(Fused(members, (1, 1, 1)).looks(image)) == members[0].looks(image).size + 3 * 32 * 32


# Nine digits would change the last ones.
@pytest.mark.parametrize("shares", [(2, 1, 1), (4, 1, 1), (1 - 2e-12, 1e-12, 1e-12)])
def test_saved_and_loaded_are_the_same(
    members: list[Detector], tmp_path: Path, shares: tuple[float, ...]
) -> None:
    fused = Fused(members, shares)
    sha256 = save(str(tmp_path / "a"), fused, threshold=0.9, notes={"preset": "small"})
    loaded = load(str(tmp_path / "a"))
    assert isinstance(loaded.detector, Fused)
    assert (loaded.sha256, loaded.threshold, loaded.detector.shares) == (sha256, 0.9, fused.shares)
    assert (_embedded(loaded.detector, _pictures()) == _embedded(fused, _pictures())).all()
    # Other shares give other embeddings, so they are another detector.
    assert save(str(tmp_path / "b"), Fused(members, (1, 1, 1)), threshold=0.9, notes={}) != sha256


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [3],
        [{"architecture": {}, "share": 1.0}],
        [{"share": 1.0}],
        "one member",
        "no share",
        -1,
        math.inf,
        math.nan,
        0,
    ],
)
def test_damaged_folders_are_refused(members: list[Detector], tmp_path: Path, wrong: object) -> None:
    save(str(tmp_path), Fused(members[:2], (1, 1)), threshold=0.9, notes={})
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    if isinstance(wrong, list):
        values["members"] = wrong
    elif wrong == "one member":
        values["members"] = values["members"][:1]
    elif wrong == "no share":
        del values["members"][0]["share"]
    else:
        values["members"][0]["share"] = wrong
    config.write_text(json.dumps(values))
    with pytest.raises(WitError, match=r"config\.json"):
        load(str(tmp_path))


def test_the_members_of_a_fused_detector_become_members(members: list[Detector]) -> None:
    inner = Fused(members[:2], (1, 1))
    fused = Fused([inner, members[2]], (3, 1))
    assert fused.shares == (0.375, 0.375, 0.25)
    assert list(fused.members) == members


def test_training_calibrates_what_stands_beside_it_too(
    shards: str, detector: str, members: list[Detector], tmp_path: Path
) -> None:
    other, made = str(tmp_path / "other"), str(tmp_path / "made")
    save(other, members[1], threshold=None, notes={})
    settings: dict[str, Any] = {"images": (shards,), "pairs": 96, "batch_size": 16, "device": "cpu"}
    train(TrainConfig(**settings, beside=other, beside_share=0.25), made, QUIET)
    loaded, alone = load(made), load(detector)
    assert isinstance(loaded.detector, Fused)
    assert loaded.detector.shares == (0.75, 0.25)
    assert loaded.threshold != alone.threshold
    assert manifest.read(made).extra["dimension"] == loaded.detector.dimension == 512
    assert any(given["path"] == other for given in manifest.read(made).inputs)
    # The trained one is as it would be alone.
    one, two = _embedded(alone.detector, _pictures()), _embedded(members[1], _pictures())
    both = _embedded(loaded.detector, _pictures())
    assert both == pytest.approx(np.concatenate([one * 0.75**0.5, two * 0.5], axis=1), abs=1e-6)
    # It embeds like any other, and no training goes on from it.
    embed_run(EmbedConfig(images=(shards,), detector=made, device="cpu"), str(tmp_path / "embedded"), QUIET)
    assert manifest.read(str(tmp_path / "embedded")).extra["detector_sha256"] == loaded.sha256
    with pytest.raises(InputError, match="trained without --beside"):
        train(TrainConfig(images=(shards,), start=made, whole_pairs=64), str(tmp_path / "on"), QUIET)


@pytest.mark.parametrize(("good", "chosen"), [(0, 0.25), (1, 0.75)])
def test_the_share_is_the_one_with_which_the_calibration_expects_most(good: int, chosen: float) -> None:
    draw = np.random.default_rng(0)
    pictures = Collection()
    pictures.groups, pictures.sources = np.arange(300), np.arange(300) % 2
    held_out = np.arange(100)

    def unit(given: np.ndarray) -> np.ndarray:
        return (given / np.linalg.norm(given, axis=1, keepdims=True)).astype(np.float32)

    blocks = [unit(draw.normal(size=(300, 8))) for _ in range(2)]
    # One member knows its copies, the other mixes them up.
    copies = [unit(block[:100] + draw.normal(scale=0.05, size=(100, 8))) for block in blocks]
    copies[1 - good] = unit(draw.normal(size=(100, 8)))
    clean, altered = (np.concatenate(pair, axis=1) * np.float32(0.5**0.5) for pair in (blocks, copies))
    before = clean.copy()
    config = TrainConfig(beside="x")
    assert weigh_by_best_share(config, 8, pictures, held_out, clean, [altered]) == chosen
    assert clean[:, 8:] == pytest.approx(before[:, 8:] * (chosen / 0.5) ** 0.5, abs=1e-6)
    assert np.linalg.norm(altered, axis=1) == pytest.approx(np.ones(100), abs=1e-5)
    given = dataclasses.replace(config, beside_share=0.4)
    assert weigh_by_best_share(given, 8, pictures, held_out, before, [altered]) == 0.4


def test_a_detector_is_known_by_what_it_is(shards: str, members: list[Detector], tmp_path: Path) -> None:
    """Folders without a manifest, of one size: neither the role nor the weights may be taken for others."""
    given, out = str(tmp_path / "given"), str(tmp_path / "out")
    images = tmp_path / "images"
    images.mkdir()
    for i, one in enumerate(_pictures()):
        one.save(images / f"{i}.png")
    save(given, members[1], threshold=None, notes={})
    settings: dict[str, Any] = {"images": (str(images),), "whole_pairs": 4, "batch_size": 2, "held_out": 0.5}
    config = TrainConfig(**settings, start=given)
    first = train(config, out, QUIET)
    assert first is not None
    assert train(config, out, QUIET) == first
    with pytest.raises(OutputError, match=r"beside_sha256 was None, is .*start_sha256 was"):
        train(TrainConfig(**settings, beside=given), out, QUIET)
    torch.manual_seed(4)
    save(given, Detector(PRESETS["small"]), threshold=None, notes={})
    with pytest.raises(OutputError, match="start_sha256"):
        train(config, out, QUIET)


def test_what_stands_beside_is_checked_before_anything_is_trained(shards: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no detector here"):
        train(TrainConfig(images=(shards,), beside=str(tmp_path)), str(tmp_path / "out"), QUIET)
    with pytest.raises(ValueError, match="beside_share must lie"):
        TrainConfig(beside="x", beside_share=1.0)
    with pytest.raises(ValueError, match="leaves nothing"):
        TrainConfig(beside="x", beside_share=1e-17)
    with pytest.raises(ValueError, match="beside_share has no effect"):
        TrainConfig(beside_share=0.25)


def test_wrong_members_are_refused(members: list[Detector]) -> None:
    with pytest.raises(ValueError, match="two members"):
        Fused(members[:1], (1,))
    with pytest.raises(ValueError, match="above 0"):
        Fused(members[:2], (1, 0))
    with pytest.raises(ValueError, match="less than all"):
        Fused(members[:2], (1, 1e-20))
