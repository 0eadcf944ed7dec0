from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.core.errors import StageFailedError
from pipeline.fetch import staging
from pipeline.fetch.client import Answer
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import Refusal, Target, parse_url
from pipeline.fetch.stage import addressed, answered
from pipeline.fetch.staging import Bodies, GroupStaging


def target(name: str) -> Target:
    found = parse_url(f"http://h.example/{name}")
    assert isinstance(found, Target)
    return found


def stage(folder: Path, names: str, *, group: int = 3) -> None:
    answers = [(target(n), Answer(http_status=200, body=n.encode() * 5)) for n in names]
    assert sum(GroupStaging(str(folder), group).write(answers)) == len(names)


def test_bodies_come_back_by_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PART_URLS", 2)
    stage(tmp_path, "abc")
    stage(tmp_path, "d", group=4)
    rows = GroupStaging(str(tmp_path), 3).results().to_pylist()
    assert len({r["bodies"] for r in rows}) == 2
    with Bodies(str(tmp_path)) as bodies:
        for row in rows:
            assert (
                bodies.read(row["bodies"], row["offset"], row["length"]) == row["fetch_url"][-1:].encode() * 5
            )


def test_parts_are_cut_by_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "PART_BYTES", 10)
    stage(tmp_path, "abcdef")
    assert sorted(p.stat().st_size for p in tmp_path.glob("*.bin")) == [10, 10, 10]


def test_bodies_without_an_index_do_not_count(tmp_path: Path) -> None:
    stage(tmp_path, "ab")
    index = next(tmp_path.glob("*.parquet"))
    index.rename(tmp_path / f".{index.name}.0badcafe.tmp")  # killed just before the rename
    assert GroupStaging(str(tmp_path), 3).results().num_rows == 0
    assert staging.group_files(str(tmp_path)) == []


def test_a_group_that_ran_twice_at_once_is_one_result(tmp_path: Path) -> None:
    stage(tmp_path, "ab")
    stage(tmp_path, "ba")
    results = GroupStaging(str(tmp_path), 3).results()
    assert results.num_rows == 4
    joined = answered(pairs("ab"), results)
    assert joined.num_rows == 2
    with Bodies(str(tmp_path)) as bodies:
        read = [bodies.read(r["bodies"], r["offset"], r["length"]) for r in joined.to_pylist()]
    assert read == [b"aaaaa", b"bbbbb"]


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
        answered(pairs("ab"), GroupStaging(str(tmp_path), 3).results())


def test_failures_keep_their_reason(tmp_path: Path) -> None:
    failed = Answer(refusal=Refusal("http_4xx", "404"), http_status=404)
    list(GroupStaging(str(tmp_path), 3).write([(target("a"), failed)]))
    row = answered(pairs("a"), GroupStaging(str(tmp_path), 3).results()).to_pylist()[0]
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
