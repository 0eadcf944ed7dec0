from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dedup.audit import run
from dedup.config import AuditConfig
from pipeline.cli import main
from pipeline.core import manifest
from pipeline.core.stage import RunOptions

QUIET = RunOptions(quiet=True)


def test_copies_are_found_in_one_go(folder: str, detector: str, tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    for name in ("black", "white"):
        shutil.copytree(Path(folder) / name, tmp_path / "clean" / name)
    train = tmp_path / "train"
    shutil.copytree(folder, train)
    for name in ("black", "white"):
        shutil.rmtree(train / name)
    config = AuditConfig(train=(str(train),), eval=(folder, str(tmp_path / "clean")), detector=detector)
    out = tmp_path / "out"
    done = run(config, str(out), QUIET)
    assert done is not None
    assert (done.rows_in, done.rows) == (30, 30)
    datasets = json.loads((out / "overlap.json").read_text())["datasets"]
    assert datasets["shapes"]["n_overlap"] >= 18
    same = [p for p in datasets["shapes"]["pairs"] if p["similarity"] > 0.9999]
    assert sum(p["eval_id"] == p["pair_id"] for p in same) == 18
    assert (out / "overlap.html").stat().st_size > 1000
    before = (out / "overlap.json").read_bytes()

    assert run(config, str(out), QUIET) == done  # finished: nothing to do

    (out / "manifest.json").unlink()  # as if it was killed at the very end
    inputs = [manifest.identity(i) for i in done.inputs]
    marker = {"stage": "dedup audit", "config_sha256": done.config_sha256, "inputs": inputs}
    (out / "unfinished.json").write_text(json.dumps(marker))
    kept = (out / "neighbours" / "manifest.json").stat().st_mtime_ns
    run(config, str(out), QUIET)
    assert (out / "overlap.json").read_bytes() == before
    assert (out / "neighbours" / "manifest.json").stat().st_mtime_ns == kept


def test_wrong_usage(folder: str, detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "o")]
    assert main(["dedup", "audit", "--train", folder, *out]) == 2
    assert "needs both sides" in capsys.readouterr().err
    assert main(["dedup", "audit", "--train", folder, "--eval", folder, *out]) == 2
    assert "wit dedup train" in capsys.readouterr().err
    twice = [folder, str(tmp_path / "shapes")]
    words = ["--train", folder, "--eval", *twice, "--detector", detector]
    assert main(["dedup", "audit", *words, *out]) == 2
    assert "two evaluation sets are called 'shapes'" in capsys.readouterr().err
