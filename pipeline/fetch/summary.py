"""What a folder of shards holds, counted from the shards themselves."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from pipeline.core import paths, tables
from pipeline.core.contracts import DROPPED
from pipeline.core.tars import shard_name
from pipeline.fetch.shards import reason_of, stats_file


def summarise(out: str, count: int) -> list[dict[str, Any]]:
    """Counts from the shards themselves, for the manifest, and writes their failed rows once more as ``dropped/``."""
    listed = []
    with tables.PartWriter(paths.join(out, "dropped"), DROPPED) as dropped:
        for shard in range(count):
            stats = json.loads(paths.read_bytes(stats_file(out, shard)))
            listed.append(
                {
                    "name": shard_name(shard),
                    "pairs": stats["count"],
                    "rows": stats["successes"],
                    "bytes": stats["bytes"],
                    "sha256": stats["sha256"],
                }
            )
            file = paths.join(out, f"{shard_name(shard)}.parquet")
            for batch in tables.read_batches([file], columns=["pair_id", "error_message"]):
                failed = [
                    (*reason_of(message), pair)
                    for pair, message in zip(*map(pa.Array.to_pylist, batch.columns), strict=True)
                    if message is not None
                ]
                dropped.write(
                    tables.dropped_table("fetch", [(reason, pair, detail) for reason, detail, pair in failed])
                )
    return listed
