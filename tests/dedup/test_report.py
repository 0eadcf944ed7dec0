from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup.config import ReportConfig
from dedup.confounders import class_shift
from dedup.report import Best, count, histogram, run
from pipeline.cli import main
from pipeline.core import manifest
from pipeline.core.contracts import NEIGHBOURS, PREDICTIONS
from pipeline.core.fakes import fake_folder, finished_folder
from pipeline.core.stage import RunOptions

QUIET = RunOptions(quiet=True)
EVIL = '<script>alert("x")</script>'


def _neighbours(path: Path, sets: dict[str, list[float]], **extra: object) -> str:
    rows = [
        (name, f"{i:03d}", rank, f"p{i}{rank}", similarity - rank / 9)
        for name, values in sets.items()
        for i, similarity in enumerate(values)
        for rank in range(2)
    ]
    named = [dict(zip(NEIGHBOURS.schema.names, row, strict=True)) for row in rows]
    table = pa.Table.from_pylist(named, schema=NEIGHBOURS.schema)
    return finished_folder(str(path), NEIGHBOURS, table, **extra)


def _predictions(sets: dict[str, list[bool]]) -> pa.Table:
    rows = [
        {"eval_dataset": name, "eval_id": f"{i:03d}", "correct": right}
        for name, values in sets.items()
        for i, right in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS.schema)


SIMILARITIES = {"a": [0.95] * 20 + [0.5] * 80, "b": [0.1] * 10}
ANSWERS = {"a": [True] * 15 + [False] * 5 + [True] * 40 + [False] * 40, "b": [True] * 10}


@pytest.fixture
def report(tmp_path: Path) -> dict[str, object]:
    found = _neighbours(tmp_path / "n", SIMILARITIES, threshold=0.9)
    answers = finished_folder(str(tmp_path / "p"), PREDICTIONS, _predictions(ANSWERS))
    run(ReportConfig(neighbours=found, predictions=(answers,)), str(tmp_path / "out"), QUIET)
    made: dict[str, object] = json.loads((tmp_path / "out" / "overlap.json").read_text())
    return made


def test_every_field_of_the_contract(report: dict[str, dict[str, dict[str, object]]]) -> None:
    one = report["datasets"]["a"]
    expected = {
        "n_all": 100, "n_overlap": 20, "n_clean": 80, "contamination": 0.2, "acc_all": 0.55, "acc_overlap": 0.75,
        "acc_clean": 0.5, "all_minus_clean": 0.05, "threshold": 0.9, "reviewed": False,
    }  # fmt: skip
    assert {k: one[k] for k in expected} == pytest.approx(expected)
    assert one["p_value"] == pytest.approx(0.0206947, abs=1e-6)
    assert (one["significant"], one["significant_bonferroni"]) == (True, True)
    low, high = one["ci_low"], one["ci_high"]
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert low < 0.75 < high
    clean = report["datasets"]["b"]
    assert (clean["n_overlap"], clean["acc_overlap"], clean["p_value"], clean["ci_low"]) == (
        0,
        None,
        None,
        None,
    )


def test_the_manifest_adds_up(tmp_path: Path) -> None:
    found = _neighbours(tmp_path / "n", SIMILARITIES, threshold=0.9)
    pq.write_table(_predictions({"a": ANSWERS["a"][:90]}), tmp_path / "p.parquet")
    config = ReportConfig(neighbours=found, predictions=(str(tmp_path / "p.parquet"),))
    run(config, str(tmp_path / "out"), QUIET)
    done = manifest.read(str(tmp_path / "out"))
    assert (done.rows_in, done.rows, done.dropped) == (110, 100, {"no-prediction": 10})
    datasets = json.loads((tmp_path / "out" / "overlap.json").read_text())["datasets"]
    assert (datasets["a"]["n_all"], datasets["b"]["n_all"], datasets["b"]["acc_all"]) == (90, 10, None)


def test_thresholds_of_a_person(tmp_path: Path) -> None:
    found = _neighbours(tmp_path / "n", SIMILARITIES)
    (tmp_path / "t.json").write_text('{"a": 0.4, "b": 0.1}')
    run(ReportConfig(neighbours=found, thresholds=str(tmp_path / "t.json")), str(tmp_path / "out"), QUIET)
    datasets = json.loads((tmp_path / "out" / "overlap.json").read_text())["datasets"]
    assert {n: (d["n_overlap"], d["reviewed"]) for n, d in datasets.items()} == {
        "a": (100, True),
        "b": (10, True),
    }


@pytest.mark.parametrize("correct", [("1", "0"), ("true", "False"), ("True ", "false")])
def test_predictions_as_csv(tmp_path: Path, correct: tuple[str, str]) -> None:
    found = _neighbours(tmp_path / "n", {"a": [0.95, 0.2]}, threshold=0.9)
    lines = [f"a,{i:03d},{c}" for i, c in enumerate(correct)]
    (tmp_path / "p.csv").write_text("\n".join(["eval_dataset,eval_id,correct", *lines]))
    config = ReportConfig(neighbours=found, predictions=(str(tmp_path / "p.csv"),))
    run(config, str(tmp_path / "out"), QUIET)
    one = json.loads((tmp_path / "out" / "overlap.json").read_text())["datasets"]["a"]
    assert (one["acc_overlap"], one["acc_clean"]) == (1.0, 0.0)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href")]


def test_the_page_is_self_contained_and_escapes_strangers_names(tmp_path: Path) -> None:
    row = {"eval_dataset": EVIL, "eval_id": EVIL, "rank": 0, "pair_id": EVIL, "similarity": 0.99}
    found = finished_folder(
        str(tmp_path / "n"), NEIGHBOURS, pa.Table.from_pylist([row], schema=NEIGHBOURS.schema), threshold=0.9
    )
    run(ReportConfig(neighbours=found), str(tmp_path / "out"), QUIET)
    page = _Tags()
    page.feed((tmp_path / "out" / "overlap.html").read_text())
    assert "script" not in page.tags
    assert not page.links
    assert "svg" in page.tags


def test_both_panels_and_every_chart_are_drawn(tmp_path: Path) -> None:
    found = _neighbours(tmp_path / "n", SIMILARITIES, threshold=0.9)
    answers = finished_folder(str(tmp_path / "p"), PREDICTIONS, _predictions(ANSWERS))
    run(ReportConfig(neighbours=found, predictions=(answers,)), str(tmp_path / "out"), QUIET)
    text = (tmp_path / "out" / "overlap.html").read_text()
    titles = re.findall(r"<figcaption>([^<]+)</figcaption>", text)
    each = ["All pictures", "Around the threshold"]
    # Only the first set has an overlap whose accuracy can be compared.
    own = [*each, "Accuracy on Overlap beside Clean&#x27;s", *each]
    assert titles == ["Overlap − Clean", "All − Clean", *own]
    panels = text.split("<figcaption>All − Clean")
    assert panels[0].count("<circle") == 1
    assert panels[1].split("</figure>")[0].count("<circle") == 2
    assert "--predictions" not in text


def test_counts_include_an_equal_similarity() -> None:
    best = Best(ids=("x",), pair_ids=("y",), similarity=np.array([np.float32(0.9137)], np.float64))
    assert count(best, 0.9137, None).n_overlap == 1


def _facts(path: Path, rows: list[tuple[float, str, int, float]], **extra: object) -> str:
    """Neighbours of one set ``a`` from (similarity, label, shortest side, spread)."""
    named = [
        {
            "eval_dataset": "a", "eval_id": f"{i:03d}", "rank": 0, "pair_id": f"p{i}", "similarity": s,
            "eval_label": label, "eval_width": side, "eval_height": side + 5, "eval_spread": spread,
        }
        for i, (s, label, side, spread) in enumerate(rows)
    ]  # fmt: skip
    facts = [("eval_label", pa.string()), ("eval_width", pa.int32()), ("eval_height", pa.int32())]
    schema = pa.schema([*NEIGHBOURS.schema, *facts, ("eval_spread", pa.float32())])
    return finished_folder(str(path), NEIGHBOURS, pa.Table.from_pylist(named, schema=schema), **extra)


def test_the_result_without_blank_and_tiny_pictures(tmp_path: Path) -> None:
    # 10 blank frames and 5 tiny pictures match for want of detail and are answered wrongly.
    rows = [(0.99, "x", 90, 1.0)] * 10 + [(0.99, "y", 32, 50.0)] * 5 + [(0.99, "x", 90, 50.0)] * 5
    rows += [(0.3, "y", 90, 50.0)] * 70 + [(0.3, "y", 90, 0.0)] * 10
    found = _facts(tmp_path / "n", rows, threshold=0.9)
    answers = finished_folder(
        str(tmp_path / "p"), PREDICTIONS, _predictions({"a": [False] * 15 + [True] * 5 + [True, False] * 40})
    )
    run(ReportConfig(neighbours=found, predictions=(answers,)), str(tmp_path / "out"), QUIET)
    one = json.loads((tmp_path / "out" / "overlap.json").read_text())["datasets"]["a"]
    assert one["all_minus_clean"] < 0
    made = one["confounders"]
    assert made["flags"] == {
        "near-uniform": {"n_overlap": 10, "n_clean": 10}, "tiny": {"n_overlap": 5, "n_clean": 0},
    }  # fmt: skip
    without = made["without"]
    assert (without["n_overlap"], without["n_all"], without["acc_overlap"]) == (5, 75, 1.0)
    assert without["all_minus_clean"] > 0
    assert "Without the flagged pictures: 5 of 75 overlap" in (tmp_path / "out" / "overlap.html").read_text()


def test_a_shift_of_classes_is_told_and_taken_out(tmp_path: Path) -> None:
    # Class x is easy; all of Overlap is of class x, so that Overlap looks better for that reason alone.
    rows = [(0.99, "x", 90, 50.0)] * 10 + [(0.3, "x", 90, 50.0)] * 20 + [(0.3, "y", 90, 50.0)] * 20
    found = _facts(tmp_path / "n", rows, threshold=0.9)
    right = [True] * 9 + [False] + [True] * 18 + [False] * 2 + [False] * 20
    answers = finished_folder(str(tmp_path / "p"), PREDICTIONS, _predictions({"a": right}))
    run(ReportConfig(neighbours=found, predictions=(answers,)), str(tmp_path / "out"), QUIET)
    one = json.loads((tmp_path / "out" / "overlap.json").read_text())["datasets"]["a"]
    assert one["overlap_minus_clean"] == pytest.approx(0.45)
    shift = one["confounders"]["classes"]
    assert shift["distance"] == pytest.approx(0.5)
    assert shift["p_value"] < 0.02
    assert shift["single_class"] == "x"
    assert shift["acc_clean_reweighted"] == pytest.approx(0.9)
    assert shift["largest"][0] == {"label": "x", "n_overlap": 10, "n_clean": 20}
    page = (tmp_path / "out" / "overlap.html").read_text()
    assert "All of Overlap is of one class, x." in page
    assert one["confounders"]["without"] is None


def test_a_random_overlap_shifts_no_class() -> None:
    draw = np.random.default_rng(1)
    labels = [f"c{i}" for i in draw.integers(0, 10, 2000)]
    p = [class_shift(labels, draw.random(2000) < 0.05, None) for _ in range(20)]
    below = sum(one is not None and one["p_value"] < 0.05 for one in p)
    assert below <= 4
    assert class_shift(labels, np.zeros(2000, bool), None) is None
    assert class_shift([*labels[1:], None], draw.random(2000) < 0.05, None) is None
    assert class_shift([str(i) for i in range(2000)], draw.random(2000) < 0.05, None) is None


def test_histograms_lose_nothing() -> None:
    made = histogram(np.array([-0.3, 0.0, 0.5, 1.0, 1.0000001]))
    assert sum(made["counts"]) == 5


BAD = [
    ("thresholds", "{", "not a JSON file"),
    ("thresholds", '{"a": 2}', "not a file of thresholds"),
    ("thresholds", '{"zz": 0.5}', "has no neighbours"),
    ("predictions", "id,correct\n1,1\n", "not a table of predictions"),
    ("predictions", "eval_dataset,eval_id,correct\na,000,maybe\n", "cannot read `correct`"),
    ("predictions", "eval_dataset,eval_id,correct\na,zzz,1\n", "their ids differ"),
    ("predictions", "eval_dataset,eval_id,correct\nzz,000,1\n", "which has no neighbours"),
    ("predictions", "eval_dataset,eval_id,correct\na,000,1\na,000,0\n", "two different predictions"),
]


@pytest.mark.parametrize(("flag", "text", "message"), BAD)
def test_bad_files_stop_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, text: str, message: str
) -> None:
    found = _neighbours(tmp_path / "n", SIMILARITIES, threshold=0.9)
    (tmp_path / "file.csv").write_text(text)
    words = ["--neighbours", found, f"--{flag}", str(tmp_path / "file.csv"), "--out", str(tmp_path / "o")]
    assert main(["dedup", "report", *words]) == 1
    line = capsys.readouterr().err.strip()
    assert message in line
    assert "\n" not in line
    assert not (tmp_path / "o" / "manifest.json").exists()


def test_no_threshold_and_no_neighbours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "o")]
    bare = fake_folder(str(tmp_path / "n"), NEIGHBOURS, 5)
    assert main(["dedup", "report", "--neighbours", bare, *out]) == 1
    assert "pass --thresholds" in capsys.readouterr().err
    empty = fake_folder(str(tmp_path / "e"), NEIGHBOURS, 0)
    assert main(["dedup", "report", "--neighbours", empty, *out]) == 1
    assert "no neighbours to report on" in capsys.readouterr().err
    assert main(["dedup", "report", *out]) == 2
    assert "pass --neighbours" in capsys.readouterr().err
