from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dedup import embed
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


def test_other_thresholds_cost_no_new_embeddings(
    folder: str, detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["dedup", "audit", "--train", folder, "--eval", folder, "--detector", detector, "--out", str(out)]
    assert main(words) == 0
    assert f"wit dedup review --neighbours {out}/neighbours" in capsys.readouterr().err
    parts = ("train-embeddings", "eval-embeddings/shapes", "neighbours")
    before = [(out / part / "manifest.json").stat().st_mtime_ns for part in parts]
    (tmp_path / "thresholds.json").write_text('{"shapes": 0.99999}')
    assert main([*words, "--thresholds", str(tmp_path / "thresholds.json")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--thresholds", str(tmp_path / "thresholds.json"), "--overwrite"]) == 0
    assert [(out / part / "manifest.json").stat().st_mtime_ns for part in parts] == before
    one = json.loads((out / "overlap.json").read_text())["datasets"]["shapes"]
    assert (one["threshold"], one["reviewed"], one["predictions"]) == (0.99999, True, False)
    assert "--predictions" in (out / "overlap.html").read_text()


def test_an_index_and_threads_that_decode_reach_the_parts(
    folder: str, detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dedup", "audit", "--train", folder, "--eval", folder, "--detector", detector]
    for name, more in (("exact", []), ("ivf", ["--index", "ivf", "--probes", "99", "--decode-threads", "2"])):
        assert main([*words, *more, "--out", str(tmp_path / name)]) == 0
    assert "pictures searched exactly too" in capsys.readouterr().err
    made = [manifest.read(str(tmp_path / "ivf" / part)) for part in ("train-embeddings", "neighbours")]
    assert made[0].config["decode_threads"] == 2
    assert (made[1].config["index"], made[1].config["probes"]) == ("ivf", 99)
    exact, found = (tmp_path / n / "neighbours" / "part-00000.parquet" for n in ("exact", "ivf"))
    assert exact.read_bytes() == found.read_bytes()
    assert main([*words, "--probes", "2", "--out", str(tmp_path / "wrong")]) == 2
    assert "probes belongs to --index ivf" in capsys.readouterr().err


def test_the_detector_that_ships_stands_in(
    folder: str, detector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "SHIPPED", Path(detector))
    words = ["--train", folder, "--eval", folder, "--out", str(tmp_path / "out"), "--quiet"]
    assert main(["dedup", "audit", *words]) == 0
    made = manifest.read(str(tmp_path / "out" / "train-embeddings"))
    assert made.extra["detector_sha256"] == manifest.read(detector).extra["detector_sha256"]


def test_wrong_usage(
    folder: str,
    detector: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embed, "SHIPPED", tmp_path / "nothing")
    out = ["--out", str(tmp_path / "o")]
    assert main(["dedup", "audit", "--train", folder, *out]) == 2
    assert "needs both sides" in capsys.readouterr().err
    assert main(["dedup", "audit", "--train", folder, "--eval", folder, *out]) == 2
    assert "wit dedup train" in capsys.readouterr().err
    twice = [folder, str(tmp_path / "shapes")]
    words = ["--train", folder, "--eval", *twice, "--detector", detector]
    assert main(["dedup", "audit", *words, *out]) == 2
    assert "two evaluation sets are called 'shapes'" in capsys.readouterr().err
