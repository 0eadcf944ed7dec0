from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dedup import backends
from dedup.backends import HASHES, Hash
from pipeline.cli import main
from pipeline.core import manifest, tables
from pipeline.core.contracts import EMBEDDINGS


def _average(_: Any, image: Image.Image) -> np.ndarray:
    small = np.asarray(image.convert("L").resize((8, 8)), np.float64)
    return (small > small.mean()).reshape(-1)


@pytest.fixture
def average(monkeypatch: pytest.MonkeyPatch) -> Hash:
    """A hash that needs no package but one that is always there."""
    made = Hash("average", "numpy", 64, 8, _average)
    monkeypatch.setitem(backends.HASHES, "average", made)
    return made


def test_similarity_counts_differing_bits(average: Hash) -> None:
    draw = np.random.default_rng(0)
    bits = [draw.random(64) < 0.5 for _ in range(6)]
    found = average.embed(bits)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(6))
    for i in range(6):
        for j in range(6):
            assert found[i] @ found[j] == pytest.approx(1 - 2 * (bits[i] != bits[j]).sum() / 64, abs=1e-6)
    assert average.threshold == 0.75
    assert average.embed([]).shape == (0, 64)


def test_an_audit_by_hash(
    average: Hash, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dedup", "audit", "--train", folder, "--eval", folder, "--detector", "average"]
    assert main([*words, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    one = json.loads((tmp_path / "out" / "overlap.json").read_text())["datasets"]["shapes"]
    assert (one["n_overlap"], one["threshold"]) == (24, 0.75)
    found = tables.read_folder(str(tmp_path / "out" / "train-embeddings"), EMBEDDINGS)
    assert found.schema.field("embedding").type.list_size == 64
    assert (
        manifest.read(str(tmp_path / "out" / "train-embeddings")).extra["detector_sha256"] == average.sha256
    )


def test_another_hash_is_another_configuration(
    average: Hash,
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(backends.HASHES, "other", dataclasses.replace(average, name="other"))
    words = ["dedup", "embed", "--images", folder, "--out", str(tmp_path / "out"), "--quiet", "--detector"]
    assert main([*words, "average"]) == 0
    assert main([*words, "other"]) == 1
    assert "hash was 'average', is 'other'" in capsys.readouterr().err


def test_a_missing_package_is_one_line(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        backends.HASHES, "phash", dataclasses.replace(HASHES["phash"], package="no_such_package")
    )
    words = ["--images", folder, "--detector", "phash", "--out", str(tmp_path / "o")]
    assert main(["dedup", "embed", *words]) == 2
    assert "pip install 'webimagetext[hashes]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["phash", "pdq"])
def test_the_packages_hashes_tell_copies_from_others(name: str) -> None:
    hashed = HASHES[name]
    pytest.importorskip(hashed.package, reason=f"the optional package {hashed.package} is not installed")
    draw = np.random.default_rng(0)
    pictures = [
        Image.fromarray(draw.integers(0, 256, (12, 12, 3), np.uint8)).resize((160, 160)) for _ in range(4)
    ]
    copies = [p.resize((90, 90)).resize((200, 200)) for p in pictures]
    found = hashed.embed([hashed.prepare(p) for p in [*pictures, *copies]])
    likeness = found[:4] @ found[4:].T
    assert (np.diag(likeness) >= hashed.threshold).all()
    assert (likeness[~np.eye(4, dtype=bool)] < hashed.threshold).all()


def test_hash_packages_are_called_as_they_are_made() -> None:
    grid = np.arange(64).reshape(8, 8) % 3 == 0
    image = Image.new("RGB", (9, 9))
    fake = SimpleNamespace(phash=lambda _: SimpleNamespace(hash=grid))
    assert (HASHES["phash"].bits(fake, image) == grid.reshape(-1)).all()
    ones = np.ones(256, np.uint8)
    assert HASHES["pdq"].bits(SimpleNamespace(compute=lambda _: (ones, 100)), image).all()
