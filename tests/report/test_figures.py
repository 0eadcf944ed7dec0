"""Figures are read right, and what is missing or damaged says so."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import fakes
from pipeline.core.contracts import NEIGHBOURS, PAIRS
from pipeline.core.errors import ContractError, InputError
from pipeline.report import figures, results
from pipeline.report.figures import AbsentError, open_run


def with_metrics(tmp_path: Path, text: str) -> figures.Run:
    fakes.fake_folder(str(tmp_path / "checkpoint"), PAIRS, 1)
    (tmp_path / "checkpoint" / "metrics.jsonl").write_text(text)
    return open_run(str(tmp_path))


def test_parts_are_listed_in_the_order_of_the_work(run_folder: Path) -> None:
    assert list(open_run(str(run_folder)).stages) == [
        "queries", "candidates", "pairs", "shards", "detector", "embeddings/noto", "neighbours", "checkpoint",
        "scores/noto", "overlaps",
    ]  # fmt: skip


def test_balance(run_folder: Path) -> None:
    found = figures.balance(open_run(str(run_folder)))
    assert found.cap == 200
    assert found.queries == 606
    assert found.matched[0] == 9000
    assert found.matched == sorted(found.matched, reverse=True)
    assert max(found.selected) == 200
    assert found.top[0] == ("red circle", 9000, 200)
    before, after = found.head_share()
    assert before == pytest.approx(sum(found.matched[:6]) / sum(found.matched))
    assert after < before


def test_texts(run_folder: Path) -> None:
    found = figures.texts(open_run(str(run_folder)))
    assert sum(found.languages.values()) == sum(found.sources.values()) == sum(found.words.values()) == 240
    assert set(found.dropped_languages) == {"de", "fr", "ja"}
    assert sum(found.dropped_languages.values()) == 90
    assert sum(found.hosts.values()) == 240


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://EXAMPLE.test:80/a", "example.test:80"),
        ("http://a.test:x/", "(unreadable)"),
        ("no url", "(unreadable)"),
        ("http://[::1", "(unreadable)"),
    ],
)
def test_host(url: str, told: str) -> None:
    assert figures.host(url) == told


def test_sizes_count_fetched_images(run_folder: Path) -> None:
    found = figures.sizes(open_run(str(run_folder)))
    assert sum(found.stored.values()) == sum(found.original.values()) == 210
    assert set(found.stored) == {72, 96, 128, 200}


@given(st.dictionaries(st.integers(-50, 50), st.integers(1, 9), min_size=1), st.floats(0.01, 1))
def test_quantile(counted: dict[float, int], share: float) -> None:
    value = figures.quantile(counted, share)
    below = sum(n for v, n in counted.items() if v <= value)
    under = sum(n for v, n in counted.items() if v < value)
    assert under < share * sum(counted.values()) <= below


def test_similarities_take_the_nearest_only(run_folder: Path) -> None:
    found = results.similarities(open_run(str(run_folder)))
    assert sum(found["noto"].values()) == 80


def test_a_repeated_step_counts_once_and_events_do_not(tmp_path: Path) -> None:
    lines = [
        {"step": 2, "loss": 3.0},
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": 2.0, "on": True},
        {"event": "end"},
    ]
    run = with_metrics(tmp_path, "\n".join(map(json.dumps, lines)))
    assert results.curves(run, "checkpoint") == {"loss": [(1.0, 4.0), (2.0, 2.0)]}


@pytest.mark.parametrize("line", ['{"step": 1, "lo', "[]x", '{"step": "one"}', "3"])
def test_damaged_metrics_name_their_line(tmp_path: Path, line: str) -> None:
    run = with_metrics(tmp_path, '{"step": 1, "loss": 1}\n' + line)
    with pytest.raises(InputError, match="line 2 is not a row of metrics"):
        results.curves(run, "checkpoint")


def test_curves_are_thinned_and_smoothed() -> None:
    points = [(float(i), float(i % 2)) for i in range(5000)]
    kept = results.thinned(points)
    assert len(kept) == figures.CURVE_POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    smooth = results.smoothed(points)
    assert smooth[0] == points[0]
    assert all(abs(y - 0.5) < 0.01 for _, y in smooth[200:-200])
    straight = [(float(i), 2.0 * i) for i in range(100)]
    assert results.smoothed(straight) == [pytest.approx(p) for p in straight]


def test_ranks_are_thinned_evenly_on_a_logarithm() -> None:
    counts = list(range(100_000, 0, -1))
    points = figures.by_rank(counts)
    assert len(points) <= figures.CURVE_POINTS + 1
    assert points[0] == (1.0, 100_000.0)
    assert points[-1] == (100_000.0, 1.0)
    assert all(counts[int(rank) - 1] == count for rank, count in points)


def test_scores(run_folder: Path) -> None:
    (score,) = results.scores(open_run(str(run_folder)))
    assert (score.dataset, score.n, score.metrics["top1"], score.chance["top1"]) == ("noto", 80, 0.25, 1 / 32)
    assert score.intervals["top5"] == [0.48, 0.71]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"dataset": "x"}', '{"dataset": 1, "task": 1, "n": "many", "metrics": {}}']
)
def test_bad_scores_are_refused(tmp_path: Path, text: str) -> None:
    fakes.fake_folder(str(tmp_path / "scores" / "x"), PAIRS, 1)
    (tmp_path / "scores" / "x" / "scores.json").write_text(text)
    with pytest.raises(InputError, match=r"scores\.json"):
        results.scores(open_run(str(tmp_path)))


def test_a_single_number_for_chance_is_top1s(tmp_path: Path) -> None:
    fakes.fake_folder(str(tmp_path / "scores" / "x"), PAIRS, 1)
    values = {"dataset": "x", "task": "t", "n": 3, "metrics": {"top1": 0.5}, "chance": 0.1}
    (tmp_path / "scores" / "x" / "scores.json").write_text(json.dumps(values))
    assert results.scores(open_run(str(tmp_path)))[0].chance == {"top1": 0.1}


@pytest.mark.parametrize(
    "values",
    [
        {"datasets": {"x": {"n_all": 3, "n_overlap": 1, "threshold": 0.8}}},
        {"x": {"n_all": 3, "n_overlap": 1, "threshold": 0.8}},
        [{"dataset": "x", "n_all": 3, "n_overlap": 1, "threshold": 0.8}],
        {"datasets": [{"eval_dataset": "x", "n_all": 3, "n_overlap": 1, "threshold": 0.8}]},
    ],
)
def test_overlap_reports_of_any_shape(tmp_path: Path, values: object) -> None:
    fakes.fake_folder(str(tmp_path / "overlaps"), PAIRS, 1)
    (tmp_path / "overlaps" / "overlap.json").write_text(json.dumps(values))
    run = open_run(str(tmp_path))
    assert results.overlaps(run)[0]["dataset"] == "x"
    assert results.thresholds(run) == {"x": 0.8}


def test_what_is_not_there_is_absent_and_what_is_unfinished_says_so(tmp_path: Path) -> None:
    fakes.fake_folder(str(tmp_path / "pairs"), PAIRS, 3)
    (tmp_path / "shards").mkdir()
    run = open_run(str(tmp_path))
    with pytest.raises(AbsentError, match="not part of this run"):
        run.part("neighbours")
    with pytest.raises(AbsentError):
        run.below("scores")
    with pytest.raises(InputError, match="shards: the folder is unfinished"):
        run.part("shards")


def test_another_contract_is_named(tmp_path: Path) -> None:
    fakes.fake_folder(str(tmp_path / "pairs"), NEIGHBOURS, 3)
    with pytest.raises(ContractError, match="neighbours/1"):
        figures.texts(open_run(str(tmp_path)))


def test_rare_hosts_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MAX_HOSTS", 10)
    table = fakes.fake_table(PAIRS, 40)
    urls = [f"http://h{i}.test/x" if i % 2 else "http://big.test/x" for i in range(40)]
    place = table.schema.get_field_index("url")
    table = table.set_column(place, table.schema.field("url"), pa.array(urls))
    fakes.finished_folder(str(tmp_path / "pairs"), PAIRS, table)
    hosts: Counter[str] = figures.texts(open_run(str(tmp_path))).hosts
    assert hosts["big.test"] == 20
    assert len(hosts) <= 10


@pytest.mark.parametrize(
    "row", [{}, {"n_all": 3}, {"n_all": "3", "n_overlap": 1}, {"n_all": 3, "n_overlap": 1, "p_value": "x"}]
)
def test_bad_overlap_reports_are_refused(tmp_path: Path, row: object) -> None:
    fakes.fake_folder(str(tmp_path / "overlaps"), PAIRS, 1)
    (tmp_path / "overlaps" / "overlap.json").write_text(json.dumps({"datasets": [row]}))
    with pytest.raises(InputError, match="not an overlap report"):
        results.overlaps(open_run(str(tmp_path)))
