"""Decoding, alpha over white, resizing and crops."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.images import BadImageError, centre_square, decode, decode_pixels, square


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_becomes_white(form: str) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    pixels = np.asarray(decode(encoded(image, form), short_side=8))
    assert pixels[4, 7].tolist() == [255, 255, 255]
    assert abs(pixels[4, 1].astype(int) - [0, 0, 255]).max() < 4


def test_palette_transparency_and_grey() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    assert np.asarray(decode(encoded(palette, "PNG"), short_side=4)).min() == 255
    assert (
        np.asarray(decode(encoded(Image.new("L", (4, 4), 7), "PNG"), short_side=4)).tolist()
        == [[[7, 7, 7]] * 4] * 4
    )


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(4, 40))
def test_short_side(width: int, height: int, side: int) -> None:
    data = encoded(Image.new("RGB", (width, height), "red"), "PNG")
    if max(width, height) > 20 * min(width, height):
        with pytest.raises(BadImageError, match=f"{width}x{height}"):
            decode(data, short_side=side)
        return
    size = decode(data, short_side=side).size
    assert min(size) == side
    assert size[0] / size[1] == pytest.approx(width / height, rel=0.15)


def test_bad_bytes() -> None:
    good = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    for data in (b"", b"no image", good[: len(good) // 2]):
        with pytest.raises(BadImageError, match="not a readable image"):
            decode(data, short_side=32)
    bomb = encoded(Image.new("1", (12_000, 12_000)), "PNG")
    with pytest.raises(BadImageError, match="12000x12000"):
        decode(bomb, short_side=32)


def test_crops_reach_every_place() -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    places = {
        (tuple(square(pixels, 4, x, y)[0, 0])) for x in (0.0, 0.3, 0.6, 0.99) for y in (0.0, 0.4, 0.6, 0.99)
    }
    assert places == {tuple(pixels[y, x]) for y in (0, 1) for x in (0, 1, 2, 3)}
    assert centre_square(pixels, 3).shape == (3, 3, 3)
    assert centre_square(pixels, 3)[0, 0].tolist() == pixels[1, 2].tolist()


@pytest.mark.parametrize(
    ("size", "short_side"), [((342, 256), 224), ((300, 500), 64), ((50, 40), 90), ((64, 64), 64)]
)
def test_torch_resizes_as_pillow(size: tuple[int, int], short_side: int) -> None:
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size)
    noisy = np.asarray(coarse) // 2 + draw.integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "PNG")
    ours, pillow = (
        decode_pixels(buffer.getvalue(), short_side=short_side, decoder=r) for r in ("fast", "pillow")
    )
    assert ours.shape == pillow.shape
    assert min(ours.shape[:2]) == short_side
    difference = np.abs(ours.astype(int) - pillow)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02
    assert np.array_equal(pillow, np.asarray(decode(buffer.getvalue(), short_side=short_side)))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_fast_decoding_gives_pillows_pixels(mode: str, subsampling: int) -> None:
    draw = np.random.default_rng(1)
    coarse = Image.fromarray(draw.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((61, 83)).convert(mode)
    buffer = io.BytesIO()
    coarse.save(buffer, "JPEG", quality=80, subsampling=subsampling)
    data = buffer.getvalue()
    fast, pillow = (decode_pixels(data, short_side=61, decoder=d) for d in ("fast", "pillow"))
    assert np.array_equal(fast, pillow)
    with pytest.raises(BadImageError):
        decode_pixels(data[: len(data) // 2], short_side=61, decoder="fast")
