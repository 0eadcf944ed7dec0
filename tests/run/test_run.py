"""The run file: what is refused before the first stage starts, and how stages find each other's results."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, run
from pipeline.core import fakes
from pipeline.core.contracts import PREDICTIONS
from pipeline.core.errors import UsageError
from pipeline.core.options import RunOptions

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def plan(text: str) -> list[run.Step]:
    return run.plan(tomllib.loads(text), base="/base", where="x.toml", out="/runs/a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[selct]\n", "did you mean 'select'"),
        ("[dedup.tran]\n", "did you mean 'train'"),
        ("[select]\ncapp = 3\n", r"x\.toml \[select\].*did you mean 'cap'"),
        ("[select]\ncap = 'many'\n", "expected int"),
        ("", "names no stage"),
        ("select = 3\n", "expected a table"),
        ("[[evaluation]]\ndataset = 'x'\n", "plain name"),
        ("[[evaluation]]\nname = '../x'\ndataset = 'x'\n", "plain name"),
        ("[[evaluation]]\nname = 'train'\ndataset = 'x'\n", "plain name"),
        ("[[evaluation]]\nname = 'a'\n", "'dataset' is missing"),
        ("[[evaluation]]\nname = 'a'\ndataset = 'x'\ntask = 'nope'\n", "unknown task"),
        ("[[evaluation]]\nname='a'\ndataset='x'\n[[evaluation]]\nname='a'\ndataset='x'\n", "one name"),
        ("[evaluation]\nname = 'a'\n", "array of tables"),
    ],
)
def test_a_wrong_run_file_is_refused_before_anything_runs(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(text)


def test_stages_find_the_results_of_earlier_ones() -> None:
    steps = {s.folder: s.config for s in plan((EXAMPLES / "demo.toml").read_text())}
    assert list(steps) == [
        "queries", "candidates", "pairs", "shards", "detector", "embeddings/train", "embeddings/noto", "neighbours",
        "checkpoint", "scores/noto", "overlaps",
    ]  # fmt: skip
    assert steps["pairs"].candidates == "/runs/a/candidates"
    assert steps["shards"].pairs == "/runs/a/pairs"
    assert steps["embeddings/noto"].images == ("/runs/a/world/noto",)
    assert steps["embeddings/noto"].detector == "/runs/a/detector"
    assert steps["neighbours"].eval == ("/runs/a/embeddings/noto",)
    assert steps["checkpoint"].shards == ("/runs/a/shards",)
    assert steps["scores/noto"].model == "/runs/a/checkpoint"
    assert steps["overlaps"].predictions == ("/runs/a/scores/noto",)


def test_inputs_start_at_the_run_file_unless_they_are_absolute() -> None:
    (step,) = plan("[candidates]\nwarc = ['a.warc', '/b.warc', 's3://c/d.warc', '{out}/e.warc']\n")
    assert step.config.warc == ("/base/a.warc", "/b.warc", "s3://c/d.warc", "/runs/a/e.warc")


def test_a_table_may_name_other_inputs() -> None:
    (step,) = plan("[select]\nqueries = 'mine'\n")
    assert (step.config.queries, step.config.candidates) == ("/base/mine", "/runs/a/candidates")


def test_both_demo_files_are_valid() -> None:
    tiny, full = (plan((EXAMPLES / name).read_text()) for name in ("demo-tiny.toml", "demo.toml"))
    assert [s.folder for s in tiny] == [s.folder for s in full], "the small demo runs the same stages"


@pytest.mark.parametrize(
    ("content", "status", "line"),
    [
        (None, 1, "cannot read the configuration file"),
        ("[select\n", 2, "not a TOML file"),
        ("[select]\n", 2, "the run has no folder"),
        ("[run]\nout = 'o'\n[select]\n", 1, "wit candidates"),
        ("[run]\nout = 'o'\n[candidates]\nwarc = ['x.warc']\n", 1, "x.warc"),
        ("[run]\nout = 'o'\nbeam = ['--nonsense=1']\n[candidates]\nwarc = ['x.warc']\n", 2, "--nonsense"),
    ],
)
def test_a_failing_run_is_one_line(
    tmp_path: Path, content: str | None, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "r.toml").write_text(content)
    assert cli.main(["run", str(tmp_path / "r.toml"), "--quiet"]) == status
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1


def test_dry_run_says_what_is_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document: dict[str, Any] = tomllib.loads("[select]\n[fetch]\n")
    options = RunOptions(dry_run=True)
    run.run_document(document, base=".", where="x", out=str(tmp_path / "o"), options=options)
    printed = capsys.readouterr().out
    assert "select" in printed
    assert printed.count("to do") == 2
    assert not (tmp_path / "o").exists()


def test_key_figures_of_an_evaluation_without_top1(tmp_path: Path) -> None:
    scores = tmp_path / "scores" / "birds"
    fakes.fake_folder(str(scores), PREDICTIONS, 4)
    found = {
        "task": "retrieval", "dataset": "birds", "n": 40, "metrics": {"image_to_text_r1": 0.5, "image_to_text_r5": 0.7},
        "chance": {"image_to_text_r1": 0.025},
    }  # fmt: skip
    (scores / "scores.json").write_text(json.dumps(found))
    told = "retrieval birds  image to text r1 50.0% of 40 pictures (chance 2.50%)"
    assert run.figures(str(tmp_path)) == told
