from __future__ import annotations

import numpy as np
import pytest
import torch

from dedup.descriptor import (
    DIMENSION,
    DIRECTIONS,
    EDGE_PX,
    colours,
    describe,
    discriminant,
    edges,
    framed,
    soft_hash,
)


def _spot(left: int, top: int, width: int, height: int) -> np.ndarray:
    pixels = np.full((3, 64, 64), 250, np.uint8)
    pixels[0, top : top + height, left : left + width] = 10
    return pixels


def test_a_border_of_one_colour_goes() -> None:
    inner = framed(_spot(10, 20, 30, 16))
    assert inner.shape == (3, 64, 64)
    assert (inner[0, 4:-4, 4:-4] == 10).all()


def test_where_the_picture_lies_in_its_border_does_not_count() -> None:
    assert np.array_equal(framed(_spot(5, 5, 20, 20)), framed(_spot(30, 40, 20, 20)))


@pytest.mark.parametrize("size", [0, 4])
def test_nothing_or_a_speck_within_the_border_is_left_alone(size: int) -> None:
    pixels = _spot(10, 10, size, size)
    assert np.array_equal(framed(pixels), pixels)


def test_a_picture_without_a_border_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    assert np.array_equal(framed(pixels), pixels)


def test_edges_know_their_direction() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    found = edges(ramp)[0, :, 1:-1, 1:-1]  # brighter to the right: direction 0
    assert found.shape == (DIRECTIONS, 4 * EDGE_PX - 2, 4 * EDGE_PX - 2)
    assert torch.all(found[0] > 10 * found[2])
    assert torch.all(found[4] == 0)


def test_colours_are_shares_of_each_quarter() -> None:
    picture = torch.full((1, 3, 64, 64), -1.0)
    picture[:, 0, :, 32:] = 1.0  # black on the left, red on the right
    shares = colours(picture)[0] ** 2
    assert shares.sum(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert shares[0].argmax() == shares[2].argmax() == 0
    assert shares[1].argmax() == shares[3].argmax() == 5 * 36


def test_flat_pictures_have_no_edges_and_a_description() -> None:
    flat = torch.zeros(2, 3, 64, 64)
    found = describe(flat, flat)
    assert found.shape == (2, DIMENSION)
    assert torch.isfinite(found).all()
    assert edges(flat).max() < 0.05


def test_the_discriminant_keeps_what_survives() -> None:
    draw = np.random.default_rng(0)
    clean = draw.normal(size=(500, 6)) * [1, 1, 1, 1, 5, 5]
    # The last two directions are the strongest and mean nothing: copies change them at will.
    altered = [clean + draw.normal(size=clean.shape) * [0.1, 0.1, 0.1, 0.1, 9, 9] for _ in range(3)]
    centre, projection = discriminant(clean, altered, 4)
    assert (centre.shape, projection.shape) == ((6,), (4, 6))
    weight = np.abs(projection).max(axis=0)
    assert weight[:4].min() > 10 * weight[4:].max()


def test_fewer_pictures_than_features() -> None:
    draw = np.random.default_rng(0)
    clean = draw.normal(size=(5, 40)).astype(np.float32)
    _, projection = discriminant(clean, [clean + 0.1 * draw.normal(size=clean.shape) for _ in range(2)], 16)
    assert projection.shape == (16, 40)
    assert np.isfinite(projection).all()
    assert np.abs(projection[:4]).max(axis=1).min() > 0
    assert not projection[5:].any()


def test_both_sides_of_the_problem_agree() -> None:
    draw = np.random.default_rng(1)
    clean = draw.normal(size=(30, 29)) * np.linspace(1, 3, 29)
    altered = [clean + 0.3 * draw.normal(size=clean.shape)]
    _, wide = discriminant(clean, altered, 8)  # more pictures than features
    padded = [np.pad(x, ((0, 0), (0, 8))) for x in (clean, *altered)]  # features that are always nought
    _, narrow = discriminant(padded[0], padded[1:], 8)
    one, two = clean @ wide.T, clean @ narrow[:, :29].T
    assert np.abs(np.corrcoef(one.T, two.T)[:8, 8:]).diagonal().min() > 0.95


def test_a_soft_hash_does_not_change_with_brightness_and_contrast() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand((3, 3, 64, 64), generator=draw)
    hashes = soft_hash(x, 10)
    assert hashes.shape == (3, 100)
    assert torch.allclose(hashes, soft_hash(0.5 * x + 0.2, 10), atol=1e-4)
    assert torch.allclose(hashes.norm(dim=1), torch.ones(3))
    assert float(hashes[0] @ hashes[1]) < 0.5


def test_a_flat_picture_has_no_hash() -> None:
    assert torch.all(soft_hash(torch.full((2, 3, 64, 64), 0.7), 10) == 0)
