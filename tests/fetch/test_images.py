from __future__ import annotations

import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pipeline.core.fakes import jpeg, picture
from pipeline.fetch import images
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.images import Stored, process
from pipeline.fetch.policy import Refusal
from tests.fetch.bodies import textured

CONFIG = FetchConfig(image_size=64, min_image_size=8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(body: bytes, config: FetchConfig = CONFIG) -> tuple[Stored, np.ndarray]:
    found = process(body, config)
    assert isinstance(found, Stored), found
    opened = Image.open(io.BytesIO(found.jpeg))
    assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", (found.width, found.height))
    assert not opened.info.get("exif")
    assert not opened.info.get("icc_profile")
    return found, np.asarray(opened).astype(int)


def refusal(body: bytes, config: FetchConfig = CONFIG) -> str:
    found = process(body, config)
    assert isinstance(found, Refusal)
    return found.reason


def gradient(width: int = 128, height: int = 128) -> np.ndarray:
    """Red grows to the right, green downwards, uint8[height, width, 3]."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.full_like(x, 128)], axis=2).astype(np.uint8)


def reference(size: int = 64) -> np.ndarray:
    """The gradient, each output pixel the mean of those it covers."""
    return gradient().reshape(size, 128 // size, size, 128 // size, 3).mean(axis=(1, 3))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 95})],
)
def test_formats_against_a_reference_resize(kind: str, options: dict[str, Any]) -> None:
    found, pixels = stored(saved(Image.fromarray(gradient()), kind, **options))
    assert (found.width, found.height, found.original_width, found.original_height) == (64, 64, 128, 128)
    assert np.abs(pixels - reference()).mean() < 2.5


def test_scaled_jpeg_decoding_gives_the_same_picture() -> None:
    large = Image.fromarray(gradient()).resize((1024, 1024), Image.Resampling.BICUBIC)
    _, pixels = stored(saved(large, "JPEG", quality=95))
    assert np.abs(pixels - reference()).mean() < 2.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    upright = Image.fromarray(gradient(128, 96))
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored_as = upright.transpose(back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    found, pixels = stored(saved(stored_as, kind, exif=exif))
    assert (found.original_width, found.original_height) == (128, 96)
    assert (found.width, found.height) == (85, 64)
    assert pixels[5, 5, 0] < 40
    assert pixels[5, 80, 0] > 215
    assert pixels[60, 5, 1] > 215
    assert json.loads(found.exif) == {"Make": "Maker", "Orientation": str(orientation)}


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.repeat(np.linspace(0, 65535, 64)[None, :], 64, axis=0).astype(np.uint16)
    _, pixels = stored(saved(Image.fromarray(values), "PNG"))
    assert np.abs(pixels[:, :, 0] - values / 257).max() < 4


def test_16_bit_colour_png() -> None:
    wide = (gradient().astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    _, pixels = stored(png(128, 128, 16, 2, rows))
    assert np.abs(pixels - reference()).mean() < 2.5


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_cmyk_jpeg() -> None:
    _, pixels = stored(saved(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(pixels.mean(axis=(0, 1)) - [255, 0, 0]).max() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    layer = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    layer.paste((0, 0, 0, 255), (0, 0, 32, 64))
    options = {}
    if mode == "P":
        image, options = Image.new("P", (64, 64), 1), {"transparency": 1}
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.paste(0, (0, 0, 32, 64))
    else:
        image = layer.convert(mode)
    _, pixels = stored(saved(image, "PNG", **options))
    assert pixels[:, :28].max() < 8
    assert pixels[:, 36:].min() > 247


def test_gif_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        _, pixels = stored(saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
        assert np.abs(pixels.mean(axis=(0, 1)) - [255, 0, 0]).max() < 6


def test_one_bit_and_grey() -> None:
    for mode in ("1", "L"):
        _, pixels = stored(saved(Image.new(mode, (64, 64), 255), "PNG"))
        assert pixels.min() > 250


def test_colour_profiles_become_srgb() -> None:
    lab_like = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    plain, same = (
        stored(saved(Image.fromarray(gradient()), "PNG", **o))[1]
        for o in ({}, {"icc_profile": lab_like.tobytes()})
    )
    assert np.abs(plain - same).max() <= 4  # its own profile changes nothing
    _, broken = stored(saved(Image.fromarray(gradient()), "PNG", icc_profile=b"no profile"))
    assert (plain == broken).all()
    swapped = stored(saved(Image.fromarray(gradient()), "PNG", icc_profile=swapped_profile()))[1]
    assert np.abs(swapped - plain[:, :, ::-1]).mean() < 12  # red and blue change places


def swapped_profile() -> bytes:
    """sRGB with its red and blue primaries exchanged: a profile that no viewer can ignore unseen."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")


@pytest.mark.parametrize(
    ("mode", "size", "only_bigger", "expected"),
    [
        ("no", (300, 200), True, (300, 200)),
        ("keep_ratio", (300, 200), True, (96, 64)),
        ("keep_ratio_largest", (300, 200), True, (64, 43)),
        ("center_crop", (300, 200), True, (64, 64)),
        ("border", (300, 200), True, (64, 64)),
        ("keep_ratio", (30, 20), True, (30, 20)),
        ("border", (30, 20), True, (30, 20)),
        ("center_crop", (30, 20), True, (30, 20)),
        ("keep_ratio", (30, 20), False, (96, 64)),
        ("border", (30, 20), False, (64, 64)),
        ("center_crop", (30, 20), False, (64, 64)),
    ],
)
def test_resize_modes(mode: Any, size: tuple[int, int], only_bigger: bool, expected: tuple[int, int]) -> None:
    config = dataclasses.replace(CONFIG, resize_mode=mode, resize_only_if_bigger=only_bigger)
    found, pixels = stored(saved(Image.new("RGB", size, "blue"), "PNG"), config)
    assert (found.width, found.height) == expected
    assert (found.original_width, found.original_height) == size
    padded = mode == "border" and expected == (64, 64)
    assert (pixels[0, 0].min() > 240) == padded
    assert pixels[expected[1] // 2, expected[0] // 2].argmax() == 2


def test_what_is_no_image_or_none_of_ours() -> None:
    assert refusal(b"<!DOCTYPE html><html><body>Not found</body></html>") == "not_image"
    assert refusal(b"\0" * 100) == "not_image"
    assert refusal(b"RIFF\0\0\0\0WAVE") == "not_image"
    assert refusal(b'<?xml version="1.0"?><svg xmlns="x"/>') == "unsupported_format"
    assert refusal(b"%!PS-Adobe-3.0 EPSF-3.0") == "unsupported_format"
    for kind in ("BMP", "TIFF", "ICO", "AVIF"):
        assert refusal(saved(Image.new("RGB", (64, 64)), kind)) == "unsupported_format"


def test_truncated_and_damaged_images() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        whole = saved(Image.fromarray(gradient()), kind)
        assert refusal(whole[: len(whole) // 2]) == "decode_error"
        assert refusal(whole[:14]) == "decode_error"


def test_a_bomb_is_refused_by_its_header() -> None:
    width = 20_000
    bomb = png(width, width, 8, 2, b"")  # says 1.2 GB, holds nothing: decoding it would fail another way
    assert refusal(bomb) == "too_many_pixels"
    webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16382).to_bytes(3, "little") * 2
    assert images.webp_size(webp) == (16383, 16383)
    assert refusal(webp) == "too_many_pixels"
    gif = saved(Image.new("P", (64, 64)), "GIF")
    assert refusal(gif[:6] + b"\xff\xff\xff\xff" + gif[10:]) == "too_many_pixels"
    exact = dataclasses.replace(CONFIG, max_image_area=64 * 64)
    assert isinstance(process(jpeg(picture("red", "circle", size=64)), exact), Stored)
    assert refusal(jpeg(picture("red", "circle", size=65)), exact) == "too_many_pixels"


def test_enlarging_cannot_make_a_bomb() -> None:
    config = dataclasses.replace(
        CONFIG, resize_only_if_bigger=False, max_aspect_ratio=1e9, min_image_size=1, image_size=2000
    )
    assert refusal(saved(Image.new("L", (30_000, 1)), "PNG"), config) == "too_many_pixels"


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_sizes(lossless: bool, mode: str) -> None:
    body = saved(Image.new(mode, (333, 77), (9, 9, 9, 100)[: len(mode)]), "WEBP", lossless=lossless)
    assert images.webp_size(body) == (333, 77)


def test_size_and_shape() -> None:
    assert refusal(saved(Image.new("L", (100, 7)), "PNG")) == "too_small"
    assert refusal(saved(Image.new("L", (1000, 10)), "PNG")) == "aspect_ratio"
    assert stored(saved(Image.new("L", (200, 10)), "PNG"))[0].width == 200


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]), st.data())
def test_damaged_bytes_never_raise(kind: str, data: st.DataObject) -> None:
    body = bytearray(saved(picture("red", "circle", size=48), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    found = process(bytes(body), CONFIG)
    assert isinstance(found, Stored | Refusal)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    body = jpeg(picture("green", "cross", size=200))
    assert process(body, CONFIG) == process(body, CONFIG)


def test_the_perceptual_hash_is_near_for_pictures_that_look_alike() -> None:
    image = textured()
    assert (
        images.perceptual_hash(Image.fromarray(gradient())) == "f" * 16
    )  # red grows to the right in each row
    assert images.perceptual_hash(Image.fromarray(gradient()[:, ::-1])) == "0" * 16
    hashes = [
        int(images.perceptual_hash(i), 16)
        for i in (
            image,
            image.resize((50, 60)),
            image.convert("L").point(lambda v: v // 2 + 30),
            image.rotate(90),
        )
    ]
    assert [(h ^ hashes[0]).bit_count() <= 6 for h in hashes] == [True, True, True, False]
