"""The engine img2dataset against its own Resizer, and the native engine against it."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline.core.fakes import jpeg, picture
from pipeline.fetch.config import FetchConfig, ResizeMode
from pipeline.fetch.decode import TIMEOUT, decoder_for
from pipeline.fetch.images import Stored, process
from pipeline.fetch.policy import Refusal
from tests.fetch.bodies import saved
from tests.fetch.hostile import Site
from tests.fetch.test_stage import fetch, pairs_of, rows_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("img2dataset") is None, reason="the extra img2dataset is not installed"
)
CONFIG = FetchConfig(engine="img2dataset", image_size=96, min_image_size=8)


def landscape(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft shapes of many sizes with some grain: what a photograph is to a resize filter."""
    draw = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3))
    for cells, colours in ((3, 3), (7, 3), (17, 1), (41, 1)):
        coarse = np.broadcast_to(draw.integers(0, 256, (cells, cells, colours)), (cells, cells, 3))
        smooth = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        layers += np.asarray(smooth) * (3 / cells)
    grain = draw.normal(0, 2, (height, width, 1))
    return Image.fromarray(np.clip(layers / 1.8 + grain, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(1)
    )


def results(bodies: Iterable[bytes], config: FetchConfig) -> list[Stored | Refusal]:
    with decoder_for(config) as decoder:
        return list(decoder.decode(bodies))


def resizer(bodies: list[bytes], choices: list[dict[str, object]]) -> list[list[bytes]]:
    """The same bodies through img2dataset's Resizer, in a process whose streams it may redirect."""
    code = (
        "import base64, io, json, sys\n"
        "from img2dataset.resizer import Resizer\n"
        "bodies, choices = json.load(sys.stdin)\n"
        "found = [[Resizer(**c)(io.BytesIO(base64.b64decode(b)))[0] for b in bodies] for c in choices]\n"
        "json.dump([[base64.b64encode(f).decode() for f in row] for row in found], sys.stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([[base64.b64encode(b).decode() for b in bodies], choices]),
        env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [[base64.b64decode(f) for f in row] for row in json.loads(done.stdout)]


def pixels(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(float)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((a - b) ** 2).mean())))


SIZES = ((640, 480), (333, 500), (1000, 401), (97, 96), (60, 45))
BODIES = [
    saved(landscape(*size, seed=i), kind, quality=90)
    for i, size in enumerate(SIZES)
    for kind in ("JPEG", "PNG")
]


MODES: tuple[ResizeMode, ...] = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")


@pytest.fixture(scope="module")
def theirs() -> dict[str, list[bytes]]:
    """What img2dataset's Resizer makes of the bodies, by mode; ``center_crop`` enlarges what is small."""
    choices: list[dict[str, object]] = [
        {
            "resize_mode": m,
            "image_size": 96,
            "resize_only_if_bigger": m != "center_crop",
            "encode_quality": 92,
        }
        for m in MODES
    ]
    return dict(zip(MODES, resizer(BODIES, choices), strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_the_native_engine_makes_the_same_pictures(mode: ResizeMode, theirs: dict[str, list[bytes]]) -> None:
    config = dataclasses.replace(
        CONFIG, engine="native", resize_mode=mode, resize_only_if_bigger=mode != "center_crop"
    )
    for body, expected in zip(BODIES, theirs[mode], strict=True):
        ours = process(body, config)
        assert isinstance(ours, Stored)
        assert (ours.width, ours.height) == Image.open(io.BytesIO(expected)).size
        assert psnr(pixels(ours.jpeg), pixels(expected)) >= 38


def test_the_engine_img2dataset_makes_its_very_bytes(theirs: dict[str, list[bytes]]) -> None:
    for body, expected, found in zip(BODIES, theirs["keep_ratio"], results(BODIES, CONFIG), strict=True):
        assert isinstance(found, Stored)
        assert found.jpeg == expected
        native = process(body, dataclasses.replace(CONFIG, engine="native"))
        assert isinstance(native, Stored)
        assert found == dataclasses.replace(native, jpeg=expected, phash=found.phash)
        assert (int(found.phash, 16) ^ int(native.phash, 16)).bit_count() <= 4


def test_refusals_are_in_our_terms_and_cost_one_image() -> None:
    good = jpeg(picture("red", "circle", size=200))
    config = dataclasses.replace(CONFIG, max_image_area=300 * 300, decode_memory_mb=256)
    bodies = [
        good, b"<html>", saved(Image.new("RGB", (64, 64)), "TIFF"), saved(Image.new("L", (100, 7)), "PNG"),
        saved(Image.new("L", (1000, 10)), "PNG"), saved(Image.new("L", (301, 300)), "PNG"), good[:300], good,
    ]  # fmt: skip
    found = results(bodies, config)
    assert [f.reason if isinstance(f, Refusal) else "" for f in found] == [
        "", "not_image", "unsupported_format", "too_small", "aspect_ratio", "too_many_pixels", "decode_error", "",
    ]  # fmt: skip
    assert found[0] == found[-1]


def test_limits_hold_for_it_too() -> None:
    large = saved(Image.new("RGB", (6000, 5000), "blue"), "PNG")
    good = jpeg(picture("red", "circle", size=200))
    config = dataclasses.replace(CONFIG, decode_timeout_s=0.1)
    assert results([large], config) == [Refusal("decode_error", TIMEOUT)]
    first, second = results([large, good], dataclasses.replace(CONFIG, decode_memory_mb=64))
    assert isinstance(first, Refusal)
    assert first.reason == "decode_error"
    assert isinstance(second, Stored)


def test_img2datasets_reader_takes_our_shards_as_its_input(site: Site, tmp_path: Path) -> None:
    """Our Parquet is a list of URLs to it: with captions, our columns, and the hash that it can verify."""
    urls = [*(site.url(f"/img/{i}.jpg") for i in range(7)), site.url("/missing.jpg")]
    fetch(pairs_of(tmp_path / "pairs", urls), tmp_path / "out", "--rows-per-shard", "5")
    code = (
        "import json, sys\n"
        "import pyarrow as pa\n"
        "from img2dataset.reader import Reader\n"
        "folder, scratch = sys.argv[1:]\n"
        "reader = Reader(folder, 'parquet', 'url', 'caption', 'sha256', 'sha256', ['pair_id'], 4, set(), scratch)\n"
        "tables = [pa.ipc.open_file(path).read_all() for _, path in reader]\n"
        "rows = [row for table in tables for row in table.to_pylist()]\n"
        "print(json.dumps([[row[name] for name in ('url', 'caption', 'sha256', 'pair_id')] for row in rows]))\n"
    )
    (tmp_path / "scratch").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "scratch")],
        env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = [[r["url"], r["caption"], r["sha256"], r["pair_id"]] for r in rows_of(tmp_path / "out")]
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    assert len(expected) == 8


def test_both_engines_write_the_same_layout(site: Site, tmp_path: Path) -> None:
    urls = [*(site.url(f"/img/{i}.jpg") for i in range(4)), site.url("/missing.jpg")]
    pairs = pairs_of(tmp_path / "pairs", urls)
    fetch(pairs, tmp_path / "native")
    fetch(pairs, tmp_path / "theirs", "--engine", "img2dataset")
    native, theirs = rows_of(tmp_path / "native"), rows_of(tmp_path / "theirs")
    for ours, other in zip(native, theirs, strict=True):
        assert ours | {"phash": None, "exif": None} == other | {"phash": None, "exif": None}
    names = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("native", "theirs")]
    assert names[0] == names[1]
