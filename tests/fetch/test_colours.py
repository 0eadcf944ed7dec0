"""Pictures as browsers show them: profiles, inks, transparency, frames and resizing against references."""

from __future__ import annotations

import dataclasses
import io
import struct
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.fetch.config import FetchConfig, Interpolation
from pipeline.fetch.images import Stored, decode_factor, process
from pipeline.fetch.policy import Refusal
from tests.fetch.bodies import saved, textured

CONFIG = FetchConfig(image_size=64, min_image_size=8)
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def shown(body: bytes, config: FetchConfig = CONFIG) -> np.ndarray:
    """Pixels of the stored image, int[height, width, 3]."""
    found = process(body, config)
    assert isinstance(found, Stored), found
    return np.asarray(Image.open(io.BytesIO(found.jpeg))).astype(int)


def middle(body: bytes) -> np.ndarray:
    return shown(body)[20:44, 20:44].mean(axis=(0, 1))


def fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(n * 65_536)) for n in numbers)


def icc(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A colour profile of version 2."""
    white = b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)
    tags = {b"wtpt": white, **tags}
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += value
    size = offset + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, kind, space, pcs) + struct.pack(
        ">6H", 2026, 1, 1, 0, 0, 0
    )
    head += b"acsp" + b"\0" * 28 + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def matrix_profile(primaries: np.ndarray, gamma: float) -> bytes:
    columns = {
        name: b"XYZ \0\0\0\0" + fixed(*primaries[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    }
    return icc(b"mntr", b"RGB ", b"XYZ ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma)))


def ink_profile() -> bytes:
    """A printer whose cyan ink is red: nobody who ignores the profile comes near."""
    nodes = bytearray()
    for node in range(16):  # of a grid of two in each of C, M, Y, K, the last fastest
        cyan, black = node & 8, node & 1
        nodes += bytes((0, 128, 128) if black else (136, 208, 195) if cyan else (255, 128, 128))
    straight = bytes(range(256))
    lut = (
        b"mft1\0\0\0\0"
        + bytes((4, 3, 2, 0))
        + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
        + straight * 4
        + nodes
        + straight * 3
    )
    return icc(b"prtr", b"CMYK", b"Lab ", {b"A2B0": bytes(lut)})


def encoded(linear: np.ndarray) -> np.ndarray:
    """sRGB's curve, 0 to 255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "colour", [(200, 60, 60), (60, 160, 70), (90, 90, 200), (128, 128, 128), (255, 255, 255)]
)
def test_a_wide_gamut_becomes_srgb(kind: str, colour: tuple[int, int, int]) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0}
    body = saved(Image.new("RGB", (64, 64), colour), kind, icc_profile=matrix_profile(ADOBE, 2.2), **options)
    expected = encoded(np.linalg.inv(SRGB) @ ADOBE @ (np.array(colour) / 255) ** 2.2)
    assert np.abs(middle(body) - expected).max() < 5


def test_a_grey_profile_is_used() -> None:
    profile = icc(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve(1.0)})
    body = saved(Image.new("L", (64, 64), 64), "PNG", icc_profile=profile)
    assert np.abs(middle(body) - encoded(np.array(64 / 255))).max() < 4
    assert np.abs(middle(saved(Image.new("L", (64, 64), 64), "PNG")) - 64).max() < 2


def test_a_profile_of_inks_is_used() -> None:
    red = saved(Image.new("CMYK", (64, 64), (255, 0, 0, 0)), "JPEG", quality=95, icc_profile=ink_profile())
    plain = saved(Image.new("CMYK", (64, 64), (255, 0, 0, 0)), "JPEG", quality=95)
    assert middle(red)[0] > 200
    assert middle(red)[1:].max() < 90
    assert np.abs(middle(plain) - [0, 255, 255]).max() < 6


def test_a_profile_for_another_space_is_ignored() -> None:
    body = saved(Image.new("RGB", (64, 64), (200, 60, 60)), "PNG", icc_profile=ink_profile())
    assert np.abs(middle(body) - [200, 60, 60]).max() < 4


def test_inks_with_separate_luma() -> None:
    """YCCK, which Photoshop writes: stored as Y, Cb, Cr of the inverted inks, and K."""
    inverted = Image.new("RGB", (64, 64), (0, 255, 255)).convert("YCbCr").getpixel((0, 0))
    assert isinstance(inverted, tuple)
    body = saved(Image.new("CMYK", (64, 64), (*(255 - int(v) for v in inverted), 0)), "JPEG", quality=95)
    mark = body.index(b"Adobe") + 11
    assert body[mark] == 0
    assert np.abs(middle(body[:mark] + b"\2" + body[mark + 1 :]) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("size", [64, 128, 600])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("alpha", [0, 1, 77, 128, 254, 255])
def test_alpha_over_white(mode: Literal["RGBA", "LA"], alpha: int, size: int) -> None:
    colour = (200, 100, 0)[: len(mode) - 1]
    body = saved(Image.new(mode, (size, size), (*colour, alpha)), "PNG")
    expected = np.array(colour) * alpha / 255 + 255 - alpha
    assert np.abs(middle(body) - expected).max() < 4


def test_transparent_edges_do_not_bleed() -> None:
    """What is invisible must not shine through a resize: a black disc on transparent red has no red rim."""
    y, x = np.mgrid[:512, :512]
    inside = (x - 256) ** 2 + (y - 256) ** 2 < 180**2
    layer = np.zeros((512, 512, 4), dtype=np.uint8)
    layer[..., 0], layer[..., 3] = np.where(inside, 0, 255), np.where(inside, 255, 0)
    pixels = shown(saved(Image.fromarray(layer), "PNG"))
    assert np.abs(pixels[..., 0] - pixels[..., 1]).max() < 25
    assert pixels[32, 32].max() < 10


def test_the_first_frame_alone_over_white() -> None:
    frames = []
    for colour in (1, 2):
        frame = Image.new("P", (64, 64), 0)
        frame.putpalette([9, 9, 9, 255, 0, 0, 0, 0, 255])
        frame.paste(colour, (0, 0, 32, 64))
        frames.append(frame)
    body = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=0, disposal=2)
    pixels = shown(body)
    assert np.abs(pixels[8:56, 8:24].mean(axis=(0, 1)) - [255, 0, 0]).max() < 8
    assert pixels[8:56, 40:56].min() > 246
    small = saved(textured(40), "PNG")
    apng = saved(textured(), "PNG", save_all=True, append_images=[Image.new("RGB", (96, 96), "blue")])
    assert np.abs(shown(apng) - shown(saved(textured(), "PNG"))).max() <= 2
    assert shown(small).shape == (40, 40, 3)


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"optimize": True}]
)
def test_kinds_of_jpeg(options: dict[str, Any]) -> None:
    reference = shown(saved(soft(192, 192), "PNG"))
    pixels = shown(saved(soft(192, 192), "JPEG", quality=97, **options))
    assert psnr(pixels, reference) > 34


def test_a_file_cut_short_is_refused() -> None:
    """Also by its end mark alone: Pillow cannot tell how much is missing, and libjpeg would paint it grey."""
    body = saved(textured(), "JPEG", quality=95)
    assert process(body[: len(body) * 9 // 10], CONFIG) == Refusal("decode_error", "jpeg truncated")
    assert process(body[:-2], CONFIG) == Refusal("decode_error", "jpeg truncated")
    assert isinstance(process(body + b"\0" * 100, CONFIG), Stored)
    assert process(saved(textured(), "PNG")[:-400], CONFIG) == Refusal("decode_error", "png truncated")


def test_nothing_of_the_original_file_is_left() -> None:
    body = saved(textured(), "JPEG", quality=95, comment=b"my address", xmp=b"<x:xmpmeta/>", dpi=(72, 300))
    found = process(body, CONFIG)
    assert isinstance(found, Stored)
    for word in (b"address", b"xmpmeta", b"Exif", b"ICC_PROFILE"):
        assert word not in found.jpeg


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((a - b) ** 2).mean())))


def soft(width: int, height: int) -> Image.Image:
    """A picture of soft shapes with the detail of a photograph."""
    draw = np.random.default_rng(3)
    layers = np.zeros((height, width, 3))
    for cells in (4, 12, 30, 60):
        coarse = Image.fromarray(draw.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        layers += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / cells**0.8
    return Image.fromarray((255 * (layers - layers.min()) / np.ptp(layers)).astype(np.uint8))


@pytest.mark.parametrize("shrinks", [1.3, 2.0, 2.4, 2.6, 3.05, 4.5, 6.5, 9.0, 17.0])
def test_large_jpegs_are_resized_as_by_a_whole_decoder(shrinks: float) -> None:
    """PSNR of 38 dB and more against decoding all of it and averaging in floating point, compression included."""
    side = round(128 * shrinks)
    body = saved(soft(side * 4 // 3, side), "JPEG", quality=92)
    whole = np.asarray(Image.open(io.BytesIO(body))).astype(np.float32)
    pixels = shown(body, dataclasses.replace(CONFIG, image_size=128))
    inner = (pixels.shape[1], pixels.shape[0])
    bands = [
        np.asarray(Image.fromarray(whole[:, :, b]).resize(inner, Image.Resampling.BOX)) for b in range(3)
    ]
    assert psnr(pixels, np.stack(bands, axis=2)) >= 38


def test_how_much_the_jpeg_decoder_may_take_over() -> None:
    factors = [decode_factor((1000, 750), (round(1000 / s), round(750 / s))) for s in (1, 2.7, 2.8, 6.1, 17)]
    assert factors == [1, 1, 2, 4, 8]
    assert decode_factor((64, 64), (128, 128)) == 1
    assert decode_factor((4000, 100), (1000, 50)) == 1  # the side that shrinks least decides


@pytest.mark.parametrize("way", ["nearest", "linear", "cubic", "area", "lanczos"])
def test_interpolations(way: Interpolation) -> None:
    config = dataclasses.replace(
        CONFIG, downscale_interpolation=way, upscale_interpolation=way, resize_only_if_bigger=False
    )
    small, large = textured(32), soft(300, 300)
    filters = {
        "nearest": Image.Resampling.NEAREST, "linear": Image.Resampling.BILINEAR, "cubic": Image.Resampling.BICUBIC,
        "area": Image.Resampling.HAMMING, "lanczos": Image.Resampling.LANCZOS,
    }  # fmt: skip
    for image in (small, large):
        expected = np.asarray(image.resize((64, 64), filters[way])).astype(int)
        assert psnr(shown(saved(image, "PNG"), config), expected) > 34


def test_profiles_made_here_are_profiles() -> None:
    for profile in (matrix_profile(ADOBE, 2.2), ink_profile()):
        assert ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space in ("RGB ", "CMYK")
