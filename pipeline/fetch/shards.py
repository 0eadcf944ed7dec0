"""Shards in img2dataset's layout; which pairs a shard holds, and its bytes, are a function of the data alone.

Pairs are put in the order of a hash of their ids and cut into shards of ``rows_per_shard``. To know a pair's place
without sorting everything in one memory, ids are first counted by the leading bits of their hash; a shard then
needs the few buckets that overlap it, and each worker sorts only those.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa

from pipeline.core import paths, tables, tars
from pipeline.core.contracts import SHARDS
from pipeline.core.progress import tick
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.images import Stored, process
from pipeline.fetch.policy import Refusal
from pipeline.fetch.staging import Bodies

BUCKETS = 1 << 20
ORDER = "order"
# Beside the contract's columns: where the image stood, for credit and for takedowns.
EXTRA = pa.schema([("page_url", pa.string()), ("text_source", pa.string()), ("language", pa.string())])


def order_of(ids: Iterable[str]) -> np.ndarray:
    """Place of each pair id in the order of shards: 64 bits of a keyed hash, ``uint64[n]``."""
    digests = b"".join(
        hashlib.blake2b(i.encode(errors="replace"), digest_size=8, key=b"wit shard order").digest()
        for i in ids
    )
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def bucket_of(order: np.ndarray) -> np.ndarray:
    """Leading bits of the order, ``int64[n]``."""
    return (order >> np.uint64(64 - 20)).astype(np.int64)


@dataclass(frozen=True)
class ShardPlan:
    """Which buckets each shard needs.

    Attributes:
        rows: Rows of all shards.
        rows_per_shard: Rows of each but the last.
        first: First bucket that overlaps a shard, ``int64[shards]``.
        last: Last such bucket, ``int64[shards]``.
        base: Rows before the first bucket, ``int64[shards]``.
    """

    rows: int
    rows_per_shard: int
    first: np.ndarray
    last: np.ndarray
    base: np.ndarray

    @classmethod
    def from_counts(cls, counts: np.ndarray, rows_per_shard: int) -> ShardPlan:
        """The plan for ``counts``, pairs per bucket, ``int64[BUCKETS]``; no pairs make one empty shard."""
        ends = np.cumsum(counts)
        rows = int(ends[-1])
        starts = np.arange(max(1, -(-rows // rows_per_shard)), dtype=np.int64) * rows_per_shard
        first = np.searchsorted(ends, starts, side="right")
        last = np.searchsorted(ends, np.minimum(starts + rows_per_shard, rows), side="left")
        first = np.minimum(first, len(counts) - 1)
        return cls(rows, rows_per_shard, first, last, ends[first] - counts[first])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.first)

    def split(self, table: pa.Table) -> list[tuple[int, pa.Table]]:
        """The rows that each shard needs to see, with their ``order``; few rows go to two shards."""
        if table.num_rows == 0:
            return []
        order = order_of(table.column("pair_id").to_pylist())
        buckets = bucket_of(order)
        table = table.append_column(ORDER, pa.array(order))
        low = np.searchsorted(self.last, buckets, side="left")
        high = np.searchsorted(self.first, buckets, side="right") - 1
        copies = high - low + 1
        row = np.repeat(np.arange(len(low)), copies)
        shard = low[row] + np.arange(len(row)) - np.repeat(np.cumsum(copies) - copies, copies)
        sequence = np.argsort(shard, kind="stable")
        found, starts = np.unique(shard[sequence], return_index=True)
        parts = np.split(row[sequence], starts[1:])
        return [(int(s), table.take(pa.array(rows))) for s, rows in zip(found, parts, strict=True)]

    def select(self, shard: int, chunks: Iterable[pa.Table]) -> pa.Table:
        """A shard's own rows in order, from all the rows of its buckets."""
        joined = pa.concat_tables(list(chunks))
        plain = [f.name for f in joined.schema if not pa.types.is_nested(f.type)]
        keys = [ORDER, *(n for n in plain if n != ORDER)]
        ordered = joined.sort_by([(name, "ascending") for name in keys])
        skip = shard * self.rows_per_shard - int(self.base[shard])
        return ordered.slice(skip, self.rows_per_shard).combine_chunks()


def count_buckets(files: Iterable[str]) -> np.ndarray:
    """Pairs per bucket, ``int64[BUCKETS]``, streamed from tables with a ``pair_id``."""
    counts = np.zeros(BUCKETS, dtype=np.int64)
    for batch in tables.read_batches(files, columns=["pair_id"]):
        counts += np.bincount(bucket_of(order_of(batch.column("pair_id").to_pylist())), minlength=BUCKETS)
    return counts


def stats_file(out: str, shard: int) -> str:
    """The shard's last file: it says that the shard is finished."""
    return paths.join(out, f"{tars.shard_name(shard)}_stats.json")


def write_shard(
    item: tuple[int, Iterable[pa.Table]], plan: ShardPlan, staging: str, out: str, config: FetchConfig
) -> int:
    """Decodes, resizes and writes one shard: tar, then Parquet, then stats; returns its rows."""
    shard, chunks = item
    rows = plan.select(shard, chunks).to_pylist()
    name = tars.shard_name(shard)
    made: list[dict[str, Any]] = []
    with Bodies(staging) as bodies, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which we neither use nor keep
        with paths.open_atomic(paths.join(out, f"{name}.tar")) as file:
            hashing = _HashingFile(file)
            tars.write_tar(cast("IO[bytes]", hashing), _samples(shard, rows, bodies, config, made))
    schema = pa.schema([*SHARDS.schema, *EXTRA])
    tables.write_table(paths.join(out, f"{name}.parquet"), pa.Table.from_pylist(made, schema=schema), SHARDS)
    stats = statistics(made) | {"bytes": hashing.bytes, "sha256": hashing.sha256.hexdigest()}
    paths.write_bytes(stats_file(out, shard), (json.dumps(stats, indent=1, sort_keys=True) + "\n").encode())
    return len(made)


class _HashingFile:
    """Passes bytes on to a file and hashes them on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self._file.write(data)


def _samples(
    shard: int, rows: list[dict[str, Any]], bodies: Bodies, config: FetchConfig, made: list[dict[str, Any]]
) -> Iterator[tars.Sample]:
    """Yields a shard's samples and appends a row for every pair, both in order."""
    for index, (row, stored) in enumerate(_processed(rows, bodies, config)):
        key = tars.sample_key(shard, index, rows_per_shard=config.rows_per_shard)
        record = shard_row(key, row, stored)
        made.append(record)
        tick()
        if isinstance(stored, Stored):
            text = json.dumps(record, sort_keys=True, ensure_ascii=False)
            caption = str(record["caption"])
            yield tars.Sample(
                key, {"jpg": stored.jpeg, "txt": caption.encode(errors="replace"), "json": text.encode()}
            )


def _processed(
    rows: Iterable[dict[str, Any]], bodies: Bodies, config: FetchConfig
) -> Iterator[tuple[dict[str, Any], Stored | Refusal]]:
    """Decodes some images ahead in threads (Pillow leaves Python's lock); order is kept, memory bounded."""
    ahead: deque[tuple[dict[str, Any], Future[Stored | Refusal] | Refusal]] = deque()
    with ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode") as pool:
        for row in rows:
            if row["reason"] is None:
                body = bodies.read(row["bodies"], row["offset"], row["length"])
                ahead.append((row, pool.submit(process, body, config)))
            else:
                ahead.append((row, Refusal(row["reason"], row["detail"])))
            if len(ahead) > 2 * config.decode_threads:
                yield _taken(*ahead.popleft())
        while ahead:
            yield _taken(*ahead.popleft())


def _taken(
    row: dict[str, Any], found: Future[Stored | Refusal] | Refusal
) -> tuple[dict[str, Any], Stored | Refusal]:
    return row, found if isinstance(found, Refusal) else found.result()


def shard_row(key: str, row: dict[str, Any], stored: Stored | Refusal) -> dict[str, Any]:
    """One row of ``shards/1`` in img2dataset's terms."""
    made: dict[str, Any] = {
        "key": key,
        "pair_id": row["pair_id"],
        "url": row["url"],
        "caption": row["text"],
        "status": "success",
        "error_message": None,
        "width": None,
        "height": None,
        "original_width": None,
        "original_height": None,
        "sha256": row["sha256"],
        "exif": None,
        "http_status": row["http_status"],
        "query_ids": row["query_ids"],
        "query_id": row["query_id"],
        **{name: row[name] for name in EXTRA.names},
    }
    if isinstance(stored, Stored):
        made |= {
            "width": stored.width,
            "height": stored.height,
            "original_width": stored.original_width,
            "original_height": stored.original_height,
            "exif": stored.exif,
        }
    else:
        made["status"] = "failed_to_download" if row["reason"] else "failed_to_resize"
        made["error_message"] = stored.reason + (f": {stored.detail}" if stored.detail else "")
    return made


def reason_of(error_message: str) -> tuple[str, str | None]:
    """Reason and detail of a row's ``error_message``."""
    reason, colon, detail = error_message.partition(": ")
    return reason, detail if colon else None


def statistics(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """img2dataset's ``_stats.json`` without its times, which would make equal shards differ."""
    status: Counter[str] = Counter()
    results: Counter[str] = Counter()
    for row in rows:
        status[row["status"]] += 1
        results[reason_of(row["error_message"])[0] if row["error_message"] else "success"] += 1
    return {
        "count": sum(status.values()),
        "successes": status["success"],
        "failed_to_download": status["failed_to_download"],
        "failed_to_resize": status["failed_to_resize"],
        "status_dict": dict(sorted(results.items())),
    }
