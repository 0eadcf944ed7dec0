"""Samples are drawn by lot, the same every time, and bad pictures spoil nothing."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.core import fakes
from pipeline.core.contracts import PREDICTIONS
from pipeline.report import samples
from pipeline.report.figures import AbsentError, open_run


@pytest.fixture
def own_run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def test_pairs_are_of_different_queries_and_always_the_same(run_folder: Path) -> None:
    run = open_run(str(run_folder))
    drawn = samples.sample_pairs(run, count=30)
    assert len({p.query_id for p in drawn}) == 30
    assert drawn == samples.sample_pairs(run, count=30)
    assert all(p.picture and p.picture.startswith("data:image/webp;base64,") for p in drawn)
    assert any(p.query == "red circle" for p in samples.sample_pairs(run, count=66))


def test_few_queries_are_filled_up_with_further_pairs(run_folder: Path) -> None:
    drawn = samples.sample_pairs(open_run(str(run_folder)), count=100)
    assert len(drawn) == 100
    assert len({p.pair_id for p in drawn}) == 100
    assert len({p.query_id for p in drawn}) == 66


def test_a_picture_is_the_one_of_its_pair(run_folder: Path) -> None:
    for pair in samples.sample_pairs(open_run(str(run_folder)), count=66):
        if "a red " not in pair.caption or not pair.caption.startswith("a photo"):
            continue
        assert pair.picture is not None
        data = base64.b64decode(pair.picture.partition(",")[2])
        colours = Image.open(io.BytesIO(data)).convert("RGB").getcolors(1 << 24) or []
        assert any(isinstance(c, tuple) and c[0] > 200 and c[1] < 60 and c[2] < 60 for _, c in colours)


def test_a_damaged_tar_leaves_captions_without_pictures(own_run: Path) -> None:
    tar = own_run / "shards" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    drawn = samples.sample_pairs(open_run(str(own_run)), count=20)
    assert len(drawn) == 20
    assert sum(p.picture is None for p in drawn) >= 19
    tar.unlink()
    assert all(p.picture is None for p in samples.sample_pairs(open_run(str(own_run)), count=20))


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_thumbnails_are_small_and_white_under_transparency() -> None:
    made = samples.thumbnail(png(900, 300, "RGBA"))
    assert made is not None
    picture = Image.open(io.BytesIO(base64.b64decode(made.partition(",")[2])))
    assert picture.size == (samples.THUMBNAIL_PIXELS, samples.THUMBNAIL_PIXELS // 3)
    assert picture.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("data", [b"", b"not a picture", png(50, 50)[:60], b"<svg onload='alert(1)'/>"])
def test_what_is_no_picture_gives_none(data: bytes) -> None:
    assert samples.thumbnail(data) is None


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert samples.thumbnail(png(11, 11)) is None


def test_leaks_are_sorted_over_the_threshold_and_spread(run_folder: Path) -> None:
    found = samples.leaks(open_run(str(run_folder)), count=10)
    shown = [leak.similarity for leak in found.shown]
    assert len(shown) == 10
    assert shown == sorted(shown, reverse=True)
    assert min(shown) >= found.thresholds["noto"] == 0.9
    every = samples.leaks(open_run(str(run_folder)), count=100).shown
    assert len(every) == found.total
    assert (shown[0], shown[-1]) == (every[0].similarity, every[-1].similarity)
    assert all(leak.picture and leak.trained and leak.trained.picture for leak in found.shown)


def test_without_an_overlap_report_nothing_is_called_a_leak(own_run: Path) -> None:
    shutil.rmtree(own_run / "overlaps")
    with pytest.raises(AbsentError, match="threshold"):
        samples.leaks(open_run(str(own_run)))


def test_leaks_without_their_shards_keep_the_evaluation_side(own_run: Path) -> None:
    shutil.rmtree(own_run / "shards")
    found = samples.leaks(open_run(str(own_run)))
    assert all(leak.trained is None and leak.picture for leak in found.shown)


def test_pictures_come_from_the_evaluation_folder_only(run_folder: Path) -> None:
    run = open_run(str(run_folder))
    (run_folder.parent / "outside.png").write_bytes(png(5, 5))
    assert samples.evaluation_picture(run, "noto", "000.png")
    assert samples.evaluation_picture(run, "noto", "../outside.png") is None
    assert samples.evaluation_picture(run, "noto", str(run_folder.parent / "outside.png")) is None
    assert samples.evaluation_picture(run, "noto", "missing.png") is None
    assert samples.evaluation_picture(run, "unknown", "000.png") is None


@pytest.mark.parametrize(("count", "right", "wrong"), [(20, 10, 10), (60, 20, 40), (100, 20, 60)])
def test_predictions_are_drawn_by_lot_half_right_half_wrong(
    run_folder: Path, count: int, right: int, wrong: int
) -> None:
    run = open_run(str(run_folder))
    drawn = samples.sample_predictions(run, "noto", count=count)
    assert (len(drawn.right), len(drawn.wrong)) == (right, wrong)
    assert (drawn.rights, drawn.wrongs) == (20, 60)
    assert all(p.correct for p in drawn.right)
    assert not any(p.correct for p in drawn.wrong)
    assert drawn == samples.sample_predictions(run, "noto", count=count)


def test_predictions_without_labels_are_absent(tmp_path: Path) -> None:
    fakes.fake_folder(str(tmp_path / "scores" / "x"), PREDICTIONS, 5)
    with pytest.raises(AbsentError, match="labels"):
        samples.sample_predictions(open_run(str(tmp_path)), "x")


def test_shards_are_spread_evenly() -> None:
    files = [f"{i:05d}" for i in range(100)]
    assert samples.spread(files, 4) == ["00000", "00025", "00050", "00075"]
    assert samples.spread(files[:3], 4) == files[:3]


def test_class_names_stand_in_for_folders(own_run: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.tsv"
    names.write_text("folder\tclass_name\nred circle & co\tA RED CIRCLE\n")
    file = own_run / "scores" / "noto" / "manifest.json"
    made = json.loads(file.read_text())
    made["config"]["class_names"] = str(names)
    file.write_text(json.dumps(made))
    run = open_run(str(own_run))
    assert {p.predicted for p in samples.sample_predictions(run, "noto").wrong} == {"A RED CIRCLE"}
    names.unlink()
    assert {p.predicted for p in samples.sample_predictions(run, "noto").wrong} == {"red circle & co"}


def test_examples_of_what_was_dropped(run_folder: Path) -> None:
    run = open_run(str(run_folder))
    found = samples.dropped_examples(run, "pairs", count=2)
    assert len(found["language"]) == 2
    assert set(found["language"]) < {"de: <b>hund</b>", "fr", "ja 0.9: 犬"}
    assert found == samples.dropped_examples(run, "pairs", count=2)
    assert samples.dropped_examples(run, "shards") == {}
