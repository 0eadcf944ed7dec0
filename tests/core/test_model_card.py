"""The model card: every number from a file, and what no file says named as not known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import model_card
from pipeline.core.errors import InputError
from pipeline.core.options import RunOptions
from pipeline.core.stage import StageResult, run_stage

ARCHITECTURE = {
    "model": "RN-tiny", "embed_dim": 64, "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": [1, 1], "width": 16, "patch_size": None},
    "text_cfg": {"width": 64, "heads": 2, "layers": 2, "context_length": 77, "vocab_size": 2000},
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A configuration for folders that no real stage made."""

    batch_size: int = 16
    seed: int = 0


def finish(
    folder: Path, stage: str, contract: str, inputs: list[Path], *, rows: int, dropped: dict[str, int] | None = None,
    **extra: Any,
) -> None:  # fmt: skip
    lost = dropped or {}

    def body(_: str) -> StageResult:
        return StageResult(rows=rows, rows_in=rows + sum(lost.values()), dropped=lost, extra=extra)

    run_stage(
        body, stage=stage, contract=contract, config=Made(), inputs=[str(p) for p in inputs], out=str(folder),
        options=RunOptions(quiet=True),
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "pages.warc").write_bytes(b"pages")
    finish(tmp_path / "candidates", "candidates", "candidates/1", [tmp_path / "pages.warc"], rows=900,
           dropped={"page_opted_out": 17, "no_text": 4})  # fmt: skip
    finish(tmp_path / "pairs", "select", "pairs/1", [tmp_path / "candidates"], rows=700)
    finish(tmp_path / "shards", "fetch", "shards/1", [tmp_path / "pairs"], rows=650,
           dropped={"http_4xx": 40, "robots_disallow": 10})  # fmt: skip
    finish(
        tmp_path / "checkpoint", "train", "checkpoint/1", [tmp_path / "shards"], rows=649,
        dropped={"corrupt_image": 1}, steps=80, images_seen=1280, parameters=123_456, final={"loss": 0.5},
    )  # fmt: skip
    return tmp_path


def made_card(run: Path, **more: Any) -> str:
    return model_card.card(str(run / "checkpoint"), name="m", architecture=ARCHITECTURE, **more)


def test_chain_of_manifests(run: Path) -> None:
    links = model_card.chain(str(run / "checkpoint"))
    assert [link.name for link in links] == ["shards", "pairs", "candidates", "pages.warc"]
    assert [link.made.rows for link in links if link.made] == [650, 700, 900]
    card = made_card(run)
    assert (
        "The shards offered 650 image-text pairs, of which 649 could be used. Left out: corrupt_image 1. "
        "Images seen in training, with repeats: 1,280."
    ) in card
    assert "| shards | `wit fetch` 0.1.0 | 650 | http_4xx 40, robots_disallow 10 |" in card
    assert "| parameters | 123,456 |" in card
    assert "| batch | 16 |" in card
    assert "Left out because somebody objected: page_opted_out 17, robots_disallow 10." in card
    assert str(run) not in card


def test_nothing_is_invented(run: Path) -> None:
    card = made_card(run)
    assert "No scores were given" in card
    assert "Not known: no overlap report was given" in card
    finish(run / "elsewhere", "train", "checkpoint/1", [], rows=1)
    foreign = model_card.card(str(run / "nowhere"), name="theirs", architecture=ARCHITECTURE)
    assert "How it was trained is not known" in foreign
    assert "## Training data\n\nNot known." in foreign
    assert "0.1.0" not in foreign


def test_an_input_that_changed_or_went_is_said_to(run: Path) -> None:
    path = run / "pairs" / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "rows": 701, "rows_in": 701}))
    card = made_card(run)
    assert "| pairs | changed since | 700 |" in card
    assert "candidates" not in card  # what the other pairs were made from is not this model's history
    path.unlink()
    assert "| pairs | not at hand | 700 |" in made_card(run)


def test_scores_and_contamination(run: Path) -> None:
    score = {
        "task": "zero-shot", "dataset": "birds | <b>", "n": 200, "metrics": {"top1": 0.25, "odd": 0.5},
        "intervals": {"top1": [0.19, 0.32]}, "chance": {"top1": 0.01},
    }  # fmt: skip
    (run / "scores.json").write_text(json.dumps(score))
    row = {
        "n_all": 200, "n_overlap": 8, "contamination": 0.04, "acc_all": 0.25, "acc_clean": 0.24, "acc_overlap": 0.5,
        "all_minus_clean": 0.01, "significant_bonferroni": False, "reviewed": True,
    }  # fmt: skip
    empty = {"n_all": 9, "n_overlap": 0, "contamination": 0.0, "acc_all": None}
    (run / "overlap.json").write_text(json.dumps({"datasets": {"birds": row, "none": empty}}))
    card = made_card(run, scores=[str(run)], overlaps=str(run), library="open_clip")
    assert "| birds \\| &lt;b> | zero-shot | 200 | top1 | 25% | 19% – 32% | 1% |" in card
    assert "| odd | 50% | – | – |" in card
    assert "| birds | 8 of 200 (4%) | 25.00% | 24.00% | 50.00% | +1.00 | no | yes |" in card
    assert "| none | 0 of 9 (0%) | – | – | – | – | no | no |" in card
    assert card.startswith(
        "---\npipeline_tag: zero-shot-image-classification\nlibrary_name: open_clip\n---\n"
    )


@pytest.mark.parametrize("chance", [0.1, None, {"top1": None}])
def test_scores_of_any_shape(run: Path, chance: object) -> None:
    score = {"task": "t", "dataset": "x", "n": 3, "metrics": {"top1": 0.5, "map_11": None}, "intervals": None}
    (run / "scores.json").write_text(json.dumps({**score, "chance": chance}))
    told = "10%" if chance == 0.1 else "–"
    card = made_card(run, scores=[str(run)])
    assert f"| x | t | 3 | top1 | 50% | – | {told} |" in card
    assert "map_11" not in card


@pytest.mark.parametrize(
    "values",
    [
        {"datasets": [{"eval_dataset": "x", "n_all": 3, "n_overlap": 1}]},
        [{"dataset": "x", "n_all": 3, "n_overlap": 1}],
        {"x": {"n_all": 3, "n_overlap": 1, "contamination": None}},
    ],
)
def test_overlaps_of_any_shape(run: Path, values: object) -> None:
    (run / "overlap.json").write_text(json.dumps(values))
    assert "| x | 1 of 3 (0%) | – |" in made_card(run, overlaps=str(run))


@pytest.mark.parametrize("text", ["{", "3", '{"datasets": 3}', '[{"dataset": "x"}]'])
def test_bad_overlaps(run: Path, text: str) -> None:
    (run / "overlap.json").write_text(text)
    with pytest.raises(InputError, match=r"overlap"):
        made_card(run, overlaps=str(run))


def test_an_imported_checkpoint_was_trained_elsewhere(run: Path) -> None:
    (run / "weights.pt").write_bytes(b"theirs")
    finish(run / "imported", "export", "checkpoint/1", [run / "weights.pt"], rows=300)
    card = model_card.card(str(run / "imported"), name="m", architecture=ARCHITECTURE)
    assert "Not trained by this folder's command, `wit export`. What it was trained on is not known." in card
    assert "The shards offered" not in card
    finish(run / "again", "export", "checkpoint/1", [run / "checkpoint"], rows=300)
    card = model_card.card(str(run / "again"), name="m", architecture=ARCHITECTURE)
    assert (
        "Trained as checkpoint. The shards offered 650 image-text pairs, of which 649 could be used." in card
    )


def test_a_long_chain_is_cut_in_print_alone(tmp_path: Path) -> None:
    parts = [tmp_path / f"part{i:03}" for i in range(100)]
    for i, part in enumerate(parts):
        finish(part, "fetch", "shards/1", [], rows=1, dropped={"takedown": 2} if i == 99 else {})
    finish(tmp_path / "checkpoint", "train", "checkpoint/1", parts, rows=100)
    card = made_card(tmp_path)
    assert "| part063 |" in card
    assert "| part064 |" not in card
    assert "… and 36 more" in card
    assert "Left out because somebody objected: takedown 2." in card


def test_objections_that_no_manifest_tells(run: Path) -> None:
    (run / "pairs" / "manifest.json").unlink()
    card = made_card(run)
    assert "Left out because somebody objected: robots_disallow 10." in card
    assert "is not known for pairs, nor for what they came from." in card
    foreign = model_card.card(str(run / "nowhere"), name="theirs", architecture=ARCHITECTURE)
    assert "Whether anything was left out because somebody objected is not known." in foreign
    finish(run / "clean", "train", "checkpoint/1", [run / "pages.warc"], rows=1)
    clean = model_card.card(str(run / "clean"), name="m", architecture=ARCHITECTURE)
    assert "No objections were recorded in the manifests of the chain." in clean


@pytest.mark.parametrize(
    ("objective", "kind", "wanted", "unwanted"),
    [
        (
            "contrastive",
            "transformer",
            "| text tower | transformer; layers 2, width 64, heads 2, 77",
            "image embedding",
        ),
        ("contrastive", "cbow", "| text tower | mean of the tokens' embeddings; width 64, 77", "heads"),
        (
            "bow_prediction",
            "transformer",
            "| text side | none: the image predicts a caption's words",
            "joint embedding",
        ),
        (
            "caption_lm",
            "transformer",
            "| text side | transformer that predicts the caption",
            "joint embedding",
        ),
    ],
)
def test_geometry_by_objective(run: Path, objective: str, kind: str, wanted: str, unwanted: str) -> None:
    text: dict[str, Any] = {"width": 64, "heads": 2, "layers": 2, "context_length": 77, "vocab_size": 2000}
    architecture = {**ARCHITECTURE, "objective": objective, "text_cfg": {**text, "kind": kind}}
    card = model_card.card(str(run / "checkpoint"), name="m", architecture=architecture)
    assert wanted in card
    assert unwanted not in card


@pytest.mark.parametrize(
    ("text", "why"), [(None, "no such file"), ("{", "not a scores.json"), ("{}", "found no dataset or task")]
)
def test_bad_scores(run: Path, text: str | None, why: str) -> None:
    if text is not None:
        (run / "scores.json").write_text(text)
    with pytest.raises(InputError, match=why):
        made_card(run, scores=[str(run)])
