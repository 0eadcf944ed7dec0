from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dedup import decoding, embed, images
from dedup.backends import Backend
from dedup.config import EmbedConfig
from dedup.decoding import Prepared
from dedup.detector import PRESETS, Detector
from dedup.embed import run
from dedup.folder import save
from pipeline.cli import main
from pipeline.core import manifest, tables
from pipeline.core.contracts import EMBEDDINGS
from pipeline.core.errors import OutputError, UnfinishedInputError
from pipeline.core.stage import RunOptions

QUIET = RunOptions(quiet=True)
TWO = RunOptions(quiet=True, beam=("--direct_num_workers=2", "--direct_running_mode=multi_processing"))


def test_shards_give_pair_ids(shards: str, detector: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run(EmbedConfig(images=(shards,), detector=detector), out, QUIET)
    found = tables.read_folder(out, EMBEDDINGS)
    files = [f"{shards}/{i:05d}.parquet" for i in range(3)]
    expected = tables.read_files(files, columns=["pair_id"]).column("pair_id").to_pylist()
    assert sorted(found.column("id").to_pylist()) == sorted(expected)
    assert set(found.column("dataset").to_pylist()) == {"shards"}
    values = np.array(found.column("embedding").to_pylist())
    assert np.linalg.norm(values, axis=1) == pytest.approx(np.ones(60), abs=1e-5)
    done, made = manifest.read(out), manifest.read(detector)
    for key in ("detector_sha256", "dimension", "threshold"):
        assert done.extra[key] == made.extra[key]


def test_image_folders_give_paths_and_labels(folder: str, detector: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run(EmbedConfig(images=(folder,), detector=detector), out, QUIET)
    rows = tables.read_folder(out, EMBEDDINGS).to_pylist()
    assert {r["id"]: r["label"] for r in rows}["red/00.png"] == "red"
    assert {r["dataset"] for r in rows} == {"shapes"}


def test_sizes_and_spread_are_kept(tmp_path: Path, detector: str) -> None:
    (tmp_path / "p").mkdir()
    Image.new("RGB", (700, 500), (30, 60, 90)).save(tmp_path / "p" / "flat.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "p" / "noise.png")
    run(EmbedConfig(images=(str(tmp_path / "p"),), detector=detector), str(tmp_path / "out"), QUIET)
    rows = {r["id"]: r for r in tables.read_folder(str(tmp_path / "out"), EMBEDDINGS).to_pylist()}
    assert (rows["flat.jpg"]["width"], rows["flat.jpg"]["height"]) == (700, 500)
    assert rows["flat.jpg"]["spread"] < 1
    assert (rows["noise.png"]["width"], rows["noise.png"]["height"]) == (30, 20)
    assert rows["noise.png"]["spread"] > 10


def test_workers_change_no_byte(shards: str, detector: str, tmp_path: Path) -> None:
    for name, options in (("one", QUIET), ("two", TWO)):
        run(EmbedConfig(images=(shards,), detector=detector), str(tmp_path / name), options)
    one, two = ((tmp_path / n / "part-00000.parquet").read_bytes() for n in ("one", "two"))
    assert one == two


def test_bad_pictures_are_dropped_rows(folder: str, detector: str, tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    shutil.copytree(folder, root)
    (root / "red" / "broken.png").write_bytes((root / "red" / "00.png").read_bytes()[:60])
    (root / "empty.jpg").write_bytes(b"")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "nowhere.jpg").symlink_to(tmp_path / "not there.jpg")
    done = run(EmbedConfig(images=(str(root),), detector=detector), str(tmp_path / "out"), QUIET)
    assert done is not None
    assert (done.rows_in, done.rows) == (28, 24)
    assert done.dropped == {"missing-image": 2, "unreadable-image": 2}
    lost = tables.read_files([str(tmp_path / "out" / "dropped" / "part-00000.parquet")])
    details = dict(zip(lost.column("id").to_pylist(), lost.column("detail").to_pylist(), strict=True))
    assert sorted(details) == ["empty.jpg", "loop.jpg", "nowhere.jpg", "red/broken.png"]
    assert "nowhere.jpg: cannot open, found No such file or directory" in details["nowhere.jpg"]


def test_the_same_bytes_are_embedded_once(
    folder: str, detector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "twice"
    shutil.copytree(folder, root)
    whole = (root / "red" / "00.png").read_bytes()
    (root / "a" / "b").mkdir(parents=True)
    for place, data in (("a/1.png", whole), ("a/2.png", whole), ("a/3.png", b"x"), ("a/4.png", b"x")):
        (root / place).write_bytes(data)
    seen = []
    prepare = decoding.prepare

    def counted(picture: images.Picture, backend: Backend) -> Prepared:
        seen.append(picture.id)
        return prepare(picture, backend)

    monkeypatch.setattr(decoding, "prepare", counted)
    config = EmbedConfig(images=(str(root),), detector=detector, batch_size=4)
    done = run(config, str(tmp_path / "out"), QUIET)
    assert done is not None
    assert (done.rows_in, done.rows, done.dropped) == (28, 26, {"unreadable-image": 2})
    assert sorted(x for x in seen if x.startswith(("a/", "red/00"))) == ["a/1.png", "a/3.png"]
    rows = {r["id"]: r for r in tables.read_folder(str(tmp_path / "out"), EMBEDDINGS).to_pylist()}
    same = [rows[name] for name in ("red/00.png", "a/1.png", "a/2.png")]
    assert [row["label"] for row in same] == ["red", "a", "a"]
    assert all({**row, "id": "", "label": ""} == {**same[0], "id": "", "label": ""} for row in same)


def test_a_truncated_shard_loses_its_rest_only(shards: str, detector: str, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    whole = (copy / "00001.tar").read_bytes()
    (copy / "00001.tar").write_bytes(whole[: len(whole) // 2])
    done = run(EmbedConfig(images=(str(copy),), detector=detector), str(tmp_path / "out"), QUIET)
    assert done is not None
    assert done.rows_in == 60
    assert 35 <= done.rows < 60
    assert set(done.dropped) == {"missing-image"}


def test_tables_of_pictures(folder: str, detector: str, tmp_path: Path) -> None:
    files = sorted(Path(folder).rglob("*.png"))
    table = pa.table(
        {
            "id": [f.name for f in files] + ["none"],
            "image": [{"bytes": f.read_bytes(), "path": None} for f in files] + [None],
            "label": pa.array([3] * len(files) + [None], pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "pictures.parquet", row_group_size=10)
    out = str(tmp_path / "out")
    config = EmbedConfig(images=(str(tmp_path / "pictures.parquet"),), detector=detector, dataset="x")
    done = run(config, out, QUIET)
    assert done is not None
    assert (done.rows, done.dropped) == (24, {"missing-image": 1})
    rows = tables.read_folder(out, EMBEDDINGS).to_pylist()
    assert (rows[0]["label"], rows[0]["dataset"]) == ("3", "x")


def test_without_a_detector(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "SHIPPED", tmp_path / "nothing")
    assert main(["dedup", "embed", "--images", folder, "--out", str(tmp_path / "o")]) == 2
    assert "train one with `wit dedup train" in capsys.readouterr().err


def test_bad_inputs_stop_with_one_line(
    folder: str, shards: str, detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(shards, unfinished)
    (unfinished / "manifest.json").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    cases = [
        (str(tmp_path / "no"), "no such pictures"),
        (str(tmp_path / "empty"), "holds no pictures"),
        (str(unfinished), "no manifest.json"),
        (detector, "another contract"),
        (str(tmp_path / "table.parquet"), "not a readable Parquet file"),
        (str(tmp_path / "other.parquet"), "not a table of pictures"),
    ]
    for place, message in cases:
        words = ["--images", place, "--detector", detector, "--out", str(tmp_path / "o")]
        assert main(["dedup", "embed", *words]) == 1, place
        line = capsys.readouterr().err.strip()
        assert message in line
        assert "\n" not in line
    words = ["--images", folder, "--detector", str(tmp_path / "empty"), "--out", str(tmp_path / "o")]
    assert main(["dedup", "embed", *words]) == 1
    assert "no detector here" in capsys.readouterr().err


def test_equal_ids_in_one_data_set_are_refused(folder: str, tmp_path: Path) -> None:
    copy = tmp_path / "shapes"
    shutil.copytree(folder, copy)
    with pytest.raises(Exception, match="have the id"):
        images.plan([folder, str(copy)])


def test_single_files_and_globs(folder: str) -> None:
    chunks = images.plan([f"{folder}/red/00.png", f"{folder}/blue/*.png"])
    assert [(c.dataset, len(c.names)) for c in chunks] == [("blue", 3), ("red", 1)]


KILLED = """
import os, signal, sys
from dedup import embed
from pipeline.cli import main
work, calls = embed.embed_batch, []
def dying(*args, **named):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(*args, **named)
embed.embed_batch = dying
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on(
    shards: str,
    detector: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [
        "dedup",
        "embed",
        "--images",
        shards,
        "--detector",
        detector,
        "--set",
        "dedup.embed.batch_size=20",
    ]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([*words, "--out", str(whole)]) == 0
    assert "60 pictures in" in capsys.readouterr().err
    died = subprocess.run([sys.executable, "-c", KILLED, *words, "--out", str(out)], check=False)
    assert died.returncode == -9
    with pytest.raises(UnfinishedInputError):
        tables.read_folder(str(out), EMBEDDINGS)
    kept = [f for f in (out / embed.CHUNKS).iterdir() if not f.name.endswith(".dropped.parquet")]
    assert len(kept) == 1  # 25 pictures are a shard, two batches of 20
    batches: list[int] = []
    work = embed.embed_batch

    def counting(backend: Backend, batch: list[Prepared], dataset: str, *, half: bool) -> Any:
        batches.append(len(batch))
        return work(backend, batch, dataset, half=half)

    monkeypatch.setattr(embed, "embed_batch", counting)
    assert main([*words, "--out", str(out)]) == 0
    assert sum(batches) == 35
    line = capsys.readouterr().err
    assert "35 pictures in" in line
    assert "images/s; 25 kept from an earlier run" in line
    assert (out / "part-00000.parquet").read_bytes() == (whole / "part-00000.parquet").read_bytes()
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_too_much_damage_throws_no_embedding_away(
    folder: str,
    detector: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, out = tmp_path / "mixed", tmp_path / "out"
    shutil.copytree(folder, root)
    (root / "red" / "broken.jpg").write_bytes(b"no")
    words = ["dedup", "embed", "--images", str(root), "--detector", detector]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert main([*words, "--out", str(out), "--max-bad-fraction", "0.01"]) == 1
    monkeypatch.setattr(embed, "embed_batch", lambda *given, **named: pytest.fail("embedded again"))
    capsys.readouterr()
    assert main([*words, "--out", str(out), "--max-bad-fraction", "0.1"]) == 0
    assert "25 kept from an earlier run" in capsys.readouterr().err
    assert (out / "part-00000.parquet").read_bytes() == (tmp_path / "whole/part-00000.parquet").read_bytes()
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


def test_a_restored_picture_is_embedded_after_all(
    shards: str, detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out, whole = tmp_path / "shards", tmp_path / "out", tmp_path / "whole"
    shutil.copytree(shards, root)
    words = ["dedup", "embed", "--images", str(root), "--detector", detector]
    assert main([*words, "--out", str(whole)]) == 0
    tar = sorted(root.glob("*.tar"))[0]
    held = tar.read_bytes()
    tar.write_bytes(held[: len(held) // 2])
    assert main([*words, "--out", str(out), "--max-bad-fraction", "0.01"]) == 1
    tar.write_bytes(held)
    capsys.readouterr()
    assert main([*words, "--out", str(out), "--max-bad-fraction", "0.01"]) == 0
    assert "25 pictures in" in capsys.readouterr().err
    assert (out / "part-00000.parquet").read_bytes() == (whole / "part-00000.parquet").read_bytes()
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_another_detector_of_the_same_size_is_another_one(folder: str, tmp_path: Path) -> None:
    own, out = str(tmp_path / "own"), str(tmp_path / "out")
    config = EmbedConfig(images=(folder,), detector=own, device="cpu")
    save(own, Detector(PRESETS["small"]), threshold=None, notes={})
    first = run(config, out, QUIET)
    assert run(config, out, QUIET) == first
    save(own, Detector(PRESETS["small"]), threshold=None, notes={})
    with pytest.raises(OutputError, match="hash was"):
        run(config, out, QUIET)


def test_decode_threads_change_no_byte(folder: str, detector: str, tmp_path: Path) -> None:
    for threads in (1, 3):
        config = EmbedConfig(images=(folder,), detector=detector, batch_size=5, decode_threads=threads)
        run(config, str(tmp_path / str(threads)), QUIET)
    one, three = ((tmp_path / n / "part-00000.parquet").read_bytes() for n in ("1", "3"))
    assert one == three
