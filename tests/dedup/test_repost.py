"""Alterations beyond the paper's list."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from dedup.augment import augment
from dedup.config import AugmentConfig
from dedup.repost import frame, grain, letter, on_page, repost
from pipeline.core.fakes import picture

BEYOND = AugmentConfig(beyond=0.5)


def _same(first: Image.Image, second: Image.Image) -> bool:
    return first.size == second.size and np.array_equal(np.asarray(first), np.asarray(second))


def test_switched_off_nothing_changes() -> None:
    image = picture("red", "circle", size=64)
    for seed in range(20):
        assert _same(augment(image, AugmentConfig(), seed), augment(image, AugmentConfig(beyond=0.0), seed))
        assert _same(repost(image, 0.0, random.Random(seed)), image)


def test_equal_seeds_give_equal_copies() -> None:
    image = picture("red", "circle", size=64)
    made = [augment(image, BEYOND, seed) for seed in range(30)]
    assert all(_same(copy, augment(image, BEYOND, seed)) for seed, copy in enumerate(made))
    assert len({copy.tobytes() for copy in made}) == len(made)


def test_tiny_and_lean_pictures_can_be_altered() -> None:
    for size in ((1, 1), (1, 90), (200, 2)):
        for seed in range(60):
            made = augment(Image.new("RGB", size, (9, 200, 30)), AugmentConfig(beyond=1.0), seed)
            assert made.mode == "RGB"
            assert min(made.size) >= 1


def test_frames_and_pages_keep_the_picture_whole() -> None:
    image = picture("blue", "square", size=50)
    pixels = np.asarray(image)
    for seed in range(20):
        for made in (frame(image, random.Random(seed)), on_page(image, random.Random(seed))):
            assert made.width >= 50
            assert made.height >= 50
            windows = np.lib.stride_tricks.sliding_window_view(np.asarray(made), pixels.shape)
            assert (windows == pixels).all(axis=(-3, -2, -1)).any()


def test_letters_change_a_part_only() -> None:
    image = picture("green", "circle", size=64)
    for seed in range(10):
        changed = (np.asarray(letter(image, random.Random(seed))) != np.asarray(image)).any(axis=2).mean()
        assert 0 <= changed < 0.9


def test_grain_has_its_deviation() -> None:
    made = np.asarray(grain(Image.new("RGB", (100, 100), (128, 128, 128)), 10.0, 3), np.float32)
    assert made.std() == pytest.approx(10, abs=0.5)


def test_an_impossible_chance_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond must lie in"):
        AugmentConfig(beyond=1.5)
