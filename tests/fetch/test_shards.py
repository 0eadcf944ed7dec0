from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fetch import shards
from pipeline.fetch.shards import BUCKETS, ShardPlan


def table(ids: list[str]) -> pa.Table:
    return pa.table({"pair_id": ids, "url": [f"u{i}" for i in ids], "query_ids": [[1]] * len(ids)})


def planned(ids: list[str], rows_per_shard: int, buckets: int = BUCKETS) -> ShardPlan:
    counts = np.bincount(shards.bucket_of(shards.order_of(ids)) * buckets // BUCKETS, minlength=buckets)
    return ShardPlan.from_counts(counts, rows_per_shard)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.text(alphabet="abc", max_size=3), max_size=60),
    rows=st.integers(1, 20),
    cut=st.integers(0, 60),
    data=st.data(),
)
def test_shards_are_the_sorted_rows_cut_evenly(
    ids: list[str], rows: int, cut: int, data: st.DataObject
) -> None:
    plan = planned(ids, rows)
    assert plan.shards == max(1, -(-len(ids) // rows))
    shuffled = data.draw(st.permutations(ids))
    pieces: dict[int, list[pa.Table]] = {
        s: [table([]).append_column("order", pa.array([], pa.uint64()))] for s in range(plan.shards)
    }
    for part in (shuffled[:cut], shuffled[cut:]):
        for shard, piece in plan.split(table(part)):
            pieces[shard].append(piece)
    got = [
        plan.select(s, [c.cast(pieces[s][-1].schema) for c in chunks]).column("pair_id").to_pylist()
        for s, chunks in pieces.items()
    ]
    expected = [i for _, i in sorted(zip(shards.order_of(ids).tolist(), ids, strict=True))]
    assert [i for shard in got for i in shard] == expected
    assert all(len(shard) == rows for shard in got[:-1])


def test_a_shard_sees_few_rows_but_its_own() -> None:
    ids = [str(i) for i in range(5_000)]
    plan = planned(ids, 100)
    seen = sum(piece.num_rows for _, piece in plan.split(table(ids)))
    assert plan.shards == 50
    assert 5_000 <= seen <= 5_100  # only buckets on a border go to two shards


def test_no_pairs_make_one_empty_shard() -> None:
    plan = planned([], 100)
    assert plan.shards == 1
    assert plan.split(table([])) == []


def test_the_order_is_fixed_for_ever() -> None:
    assert shards.order_of(["0" * 32, "é"]).tolist() == [11624103244157666800, 16859885194649175041]


def test_statistics_have_img2datasets_names() -> None:
    rows: list[dict[str, Any]] = [
        {"status": "success", "error_message": None},
        {"status": "failed_to_download", "error_message": "http_4xx: 404"},
        {"status": "failed_to_download", "error_message": "http_4xx: 410"},
        {"status": "failed_to_resize", "error_message": "not_image"},
    ]
    assert shards.statistics(rows) == {
        "count": 4,
        "successes": 1,
        "failed_to_download": 2,
        "failed_to_resize": 1,
        "status_dict": {"http_4xx": 2, "not_image": 1, "success": 1},
    }


@pytest.mark.parametrize(
    ("message", "expected"), [("not_image", ("not_image", None)), ("http_4xx: 404", ("http_4xx", "404"))]
)
def test_reasons_come_back_from_messages(message: str, expected: tuple[str, str | None]) -> None:
    assert shards.reason_of(message) == expected
