from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.core import tables
from pipeline.core.errors import StageFailedError
from pipeline.fetch import staging
from pipeline.fetch.client import Answer
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.join import addressed, answered
from pipeline.fetch.policy import Refusal, Target, parse_url
from pipeline.fetch.staging import ROW, Bodies, GroupStaging, Row, best_of


def target(name: str) -> Target:
    found = parse_url(f"http://h.example/{name}")
    assert isinstance(found, Target)
    return found


def stage(folder: Path, names: str, *, group: int = 3) -> None:
    answers = [(target(n), Answer(http_status=200, body=n.encode() * 5)) for n in names]
    assert sum(GroupStaging(str(folder), 8, group).write(answers)) == len(names)


def rows_of(folder: Path, group: int = 3) -> list[Row]:
    files = staging.indexes(str(folder / "raw"), f"8-{group:05d}-")
    found: list[Row] = tables.read_files(files).to_pylist() if files else []
    return found


def bodies_of(folder: Path, rows: list[Any]) -> list[bytes]:
    with Bodies(str(folder)) as bodies:
        return [bodies.read(row) for row in rows]


def test_bodies_come_back_by_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PART_URLS", 2)
    monkeypatch.setattr(staging, "OPEN_FILES", 1)
    stage(tmp_path, "abc")
    stage(tmp_path, "d", group=4)
    rows = rows_of(tmp_path)
    assert len({r["bodies"] for r in rows}) == 2
    assert bodies_of(tmp_path, rows) == [r["fetch_url"][-1:].encode() * 5 for r in rows]
    assert [r["fetch_url"] for r in rows_of(tmp_path, 4)] == ["http://h.example/d"]


def test_parts_are_cut_by_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PART_BYTES", 10)
    stage(tmp_path, "abcdef")
    assert sorted(p.stat().st_size for p in (tmp_path / "raw").glob("*.bin")) == [10, 10, 10]


def test_an_answer_is_written_down_before_the_next_is_asked_for(tmp_path: Path) -> None:
    writing = GroupStaging(str(tmp_path), 8, 3).write(
        (target(n), Answer(http_status=200, body=n.encode() * 5)) for n in "abc"
    )
    assert [next(writing), next(writing)] == [1, 1]
    # Killed here: nothing of ours runs any more, and there is no index yet.
    assert list((tmp_path / "raw").glob("*.parquet")) == []
    (journal,) = (tmp_path / "raw").glob("*.jsonl")
    saved, bodies = journal.read_bytes(), journal.with_suffix(".bin").read_bytes()
    writing.close()  # type: ignore[attr-defined]
    for cut, left in ((0, "ab"), (1, "a"), (len(saved) // 2 - 5, "a"), (len(saved), "")):
        folder = tmp_path / f"cut{cut}" / "raw"
        folder.mkdir(parents=True)
        (folder / journal.name).write_bytes(saved[: len(saved) - cut])
        (folder / journal.with_suffix(".bin").name).write_bytes(bodies)
        rows = GroupStaging(str(folder.parent), 8, 3).done()[0].to_pylist()
        assert [r["fetch_url"][-1:] for r in rows] == list(left)
        assert list(folder.glob("*.jsonl")) == []
        assert bodies_of(folder.parent, rows_of(folder.parent)) == [n.encode() * 5 for n in left]


def test_a_journal_ahead_of_its_bodies_is_not_believed(tmp_path: Path) -> None:
    writing = GroupStaging(str(tmp_path), 8, 3).write(
        (target(n), Answer(http_status=200, body=n.encode() * 5)) for n in "abc"
    )
    assert [next(writing), next(writing)] == [1, 1]
    (journal,) = (tmp_path / "raw").glob("*.jsonl")
    for bodies, left in ((b"aaaaabbb", "a"), (b"aaaaaxxxxx", "a"), (b"", "")):
        folder = tmp_path / str(len(bodies)) / "raw"
        folder.mkdir(parents=True)
        (folder / journal.name).write_bytes(journal.read_bytes())
        (folder / journal.with_suffix(".bin").name).write_bytes(bodies)
        staging.recover(str(folder))
        assert [r["fetch_url"][-1:] for r in rows_of(folder.parent)] == list(left)
    writing.close()  # type: ignore[attr-defined]


def test_an_object_store_gets_whole_files(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "memory://staging-test"
    monkeypatch.setattr(staging, "PART_URLS", 2)
    answers = [(target(n), Answer(http_status=200, body=n.encode() * 5)) for n in "abc"]
    list(GroupStaging(folder, 8, 3).write(answers))
    rows = tables.read_files(staging.indexes(f"{folder}/raw")).to_pylist()
    with Bodies(folder) as bodies:
        assert sorted(bodies.read(row) for row in rows) == [b"aaaaa", b"bbbbb", b"ccccc"]


def test_a_group_that_ran_twice_at_once_is_one_result(tmp_path: Path) -> None:
    stage(tmp_path, "ab")
    stage(tmp_path, "ba")
    rows = rows_of(tmp_path)
    assert len(rows) == 4
    joined = answered(pairs("ab"), pa.Table.from_pylist(rows, schema=ROW))
    assert bodies_of(tmp_path, joined.to_pylist()) == [b"aaaaa", b"bbbbb"]


def test_a_success_counts_more_than_a_failure() -> None:
    blank = dict.fromkeys(ROW.names)
    rows = [
        blank | {"fetch_url": url, "reason": reason, "sha256": None if reason else "x"}
        for url, reason in (("a", "deadline"), ("b", "http_4xx"), ("a", None), ("b", "deadline"))
    ]
    for order in (rows, rows[::-1]):
        best = best_of(pa.Table.from_pylist(order, schema=ROW)).to_pylist()
        assert [(r["fetch_url"], r["reason"]) for r in best] == [("a", None), ("b", "deadline")]


def pairs(names: str) -> pa.Table:
    made = [
        {"pair_id": n, "url": f"http://h.example/{n}", "text": n, "query_ids": [0], "query_id": 0, "rights": [],
         "page_url": None, "text_source": "alt", "language": "en"}
        for n in names
    ]  # fmt: skip
    return addressed(pa.Table.from_pylist(made))


def test_a_url_without_a_result_is_a_defect(tmp_path: Path) -> None:
    stage(tmp_path, "a")
    with pytest.raises(StageFailedError, match="not fetched"):
        answered(pairs("ab"), pa.Table.from_pylist(rows_of(tmp_path), schema=ROW))


def test_failures_keep_their_reason(tmp_path: Path) -> None:
    failed = Answer(refusal=Refusal("http_4xx", "404"), http_status=404)
    list(GroupStaging(str(tmp_path), 8, 3).write([(target("a"), failed)]))
    row = answered(pairs("a"), pa.Table.from_pylist(rows_of(tmp_path), schema=ROW)).to_pylist()[0]
    assert (row["reason"], row["detail"], row["http_status"], row["sha256"]) == ("http_4xx", "404", 404, None)


@pytest.mark.parametrize(
    "values",
    [
        {"allow_address": ("everywhere",)},
        {"contact": "me\r\nX-Injected: 1"},
        {"encode_quality": 0},
        {"image_size": 0},
        {"retries": -1},
        {"max_aspect_ratio": 0.5},
        {"deadline_s": float("nan")},
    ],
)
def test_impossible_settings(values: dict[str, object]) -> None:
    name = next(iter(values))
    with pytest.raises(ValueError, match=name):
        FetchConfig(**values)  # type: ignore[arg-type]
