from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dedup.augment import augment, crop_and_resize, jitter_hsv, lay_on_ground, resize, rotate
from dedup.config import AugmentConfig
from pipeline.core.errors import UsageError
from pipeline.core.fakes import picture


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 70), height=st.integers(1, 70), seed=st.integers(0, 2**64))
def test_any_size_gives_an_rgb_picture_that_the_seed_decides(width: int, height: int, seed: int) -> None:
    image = picture("red", "cross", size=80).resize((width, height))
    first, second = (augment(image, AugmentConfig(), seed) for _ in range(2))
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()


def test_seeds_differ() -> None:
    image = picture("red", "circle", size=64)
    assert len({augment(image, AugmentConfig(), seed).tobytes() for seed in range(20)}) == 20


def test_probability_nought_leaves_the_picture_alone() -> None:
    image = picture("blue", "square", size=64)
    assert augment(image, AugmentConfig(probability=0), 3).tobytes() == image.tobytes()


def test_hue_goes_round_the_circle() -> None:
    red = Image.new("RGB", (4, 4), (250, 0, 0))
    turned = jitter_hsv(red, hue=1 / 3, saturation=1, value=1).getpixel((0, 0))
    assert isinstance(turned, tuple)
    assert np.argmax(turned) == 1
    assert jitter_hsv(red, hue=0, saturation=1, value=0.5).getpixel((0, 0)) == (125, 0, 0)


def test_opencvs_area_is_drawn_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV itself is not needed: what it is asked for is looked at."""
    asked: list[tuple[tuple[int, ...], tuple[int, int], int]] = []

    def resized(pixels: np.ndarray, size: tuple[int, int], *, interpolation: int) -> np.ndarray:
        asked.append((pixels.shape, size, interpolation))
        return np.zeros((size[1], size[0], 3), np.uint8)

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(INTER_AREA=3, resize=resized))
    image = picture("red", "circle", size=64)
    for seed in range(30):
        augment(image, AugmentConfig(), seed)
    assert not asked
    sizes = {augment(image, AugmentConfig(area=True), seed).size for seed in range(30)}
    assert asked
    assert all(kind == 3 and min(shape) > 0 for shape, _, kind in asked)
    assert len(sizes) > 5


def test_without_opencv_its_area_is_a_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match="OpenCV is not installed"):
        resize(picture("red", "circle", size=64), (32, 32), None)


def test_rotation_fills_with_the_corner() -> None:
    image = Image.new("RGB", (32, 32), (10, 200, 30))
    turned = np.asarray(rotate(image, 5, Image.Resampling.BICUBIC))
    assert (turned == (10, 200, 30)).all()


def test_rotation_fills_with_a_colour_if_told() -> None:
    turned = np.asarray(
        rotate(Image.new("RGB", (32, 32), (10, 200, 30)), 9, Image.Resampling.NEAREST, (0, 0, 0))
    )
    assert (turned[0, 0] == 0).all()
    assert (turned[16, 16] == (10, 200, 30)).all()


def test_half_of_the_crops_keep_a_pictures_shape() -> None:
    config = AugmentConfig(probability=1, min_crop=0.5, min_scale=1, max_scale=1, max_aspect=1)
    image = Image.new("RGB", (200, 100))
    sizes = [crop_and_resize(image, config, random.Random(seed)).size for seed in range(200)]
    kept = sum(abs(width - 2 * high) <= 3 for width, high in sizes)
    assert 90 <= kept <= 130


def test_another_ground_leaves_the_picture_and_what_it_encloses() -> None:
    image = Image.new("RGB", (40, 40), (255, 255, 255))
    image.paste((20, 30, 200), (10, 10, 30, 30))
    image.paste((255, 255, 255), (16, 16, 24, 24))
    laid = np.asarray(lay_on_ground(image, [1.0, 0.9, 0.8]))
    assert (laid[0, 0] == (255, 229, 204)).all()
    assert (laid[8:10, 8:32] == (255, 229, 204)).all()
    assert (laid[10:30, 10:30] == np.asarray(image)[10:30, 10:30]).all()


@pytest.mark.parametrize("colours", [((0, 0, 0), (255, 255, 255)), ((255, 255, 255), (0, 200, 0))])
def test_without_a_light_ground_there_is_nothing_to_lay(colours: tuple[tuple[int, int, int], ...]) -> None:
    ground, rest = colours
    image = Image.new("RGB", (40, 40), ground)
    image.paste(rest, (0, 0, 40, 19) if ground == (0, 0, 0) else (0, 0, 40, 39))
    assert lay_on_ground(image, [0.5, 0.5, 0.5]).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_crop": 0},
        {"max_aspect": 0.5},
        {"min_scale": 3.0},
        {"min_jpeg_quality": 0},
        {"probability": 2},
        {"max_ground": 1.5},
    ],
)
def test_impossible_strengths_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentConfig(**wrong)  # type: ignore[arg-type]
