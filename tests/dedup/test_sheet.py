from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from dedup.config import AugmentConfig
from dedup.sheet import rows
from pipeline.cli import main
from pipeline.core.fakes import picture


def test_every_augmentation_is_there_at_rising_strength() -> None:
    image = picture("red", "cross", size=80)
    made = {row.name: row.cells for row in rows(image, AugmentConfig(), 0)}
    assert [label for label, _ in made["resized to a half and back"]] == [
        "nearest", "box", "bilinear", "bicubic", "hamming", "lanczos",
    ]  # fmt: skip
    assert {"crop and zoom", "aspect ratio", "down-sizing", "up-sizing", "rotation", "JPEG", "hue"} <= set(
        made
    )
    assert {"grey (beyond the paper)", "blur (beyond the paper)", "frames (beyond the paper)"} <= set(made)
    assert [label for label, _ in made["JPEG"]] == ["quality 79", "quality 62", "quality 46", "quality 30"]
    assert [made_.width for _, made_ in made["down-sizing"]] == [66, 54, 44, 36]
    # Each step alters the picture, the strongest one most of all.
    for name in ("blur (beyond the paper)", "grain (beyond the paper)", "JPEG"):
        changes = [_change(image, cell) for _, cell in made[name]]
        assert changes[-1] > changes[0] > 0, name


def _change(image: Image.Image, other: Image.Image) -> float:
    a, b = image.tobytes(), other.convert("RGB").tobytes()
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)


def test_the_seed_decides_the_sheet(folder: str, tmp_path: Path) -> None:
    words = ["dedup", "show-augmentations", "--images", folder, "--beyond", "0.5", "--quiet"]
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2"), ("a.html", "1")):
        assert main([*words, "--out", str(tmp_path / name), "--seed", seed]) == 0
    a, b, c = ((tmp_path / f"{n}.png").read_bytes() for n in "abc")
    assert a == b != c
    assert Image.open(io.BytesIO(a)).width > 600
    page = (tmp_path / "a.html").read_text()
    assert page.count("<img") > 60
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)


def test_wrong_usage(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dedup", "show-augmentations", "--images", folder]
    (tmp_path / "there.png").write_bytes(b"mine")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    cases = [
        ([*words, "--out", str(tmp_path / "a.gif")], 2, "must end in .png or .html"),
        ([*words, "--out", str(tmp_path / "a.png"), "--count", "0"], 2, "--count must be at least 1"),
        ([*words, "--out", str(tmp_path / "a.png"), "--beyond", "3"], 2, "--beyond must lie in"),
        ([*words, "--out", str(tmp_path / "there.png")], 1, "pass --overwrite"),
        ([*words[:3], str(tmp_path / "bad"), "--out", str(tmp_path / "a.png")], 1, "no readable picture"),
    ]
    for line, status, message in cases:
        assert main(line) == status
        assert message in capsys.readouterr().err
    assert (tmp_path / "there.png").read_bytes() == b"mine"
