"""Shards in img2dataset's layout; which pairs a shard holds, and its bytes, are a function of the data alone.

Pairs are put in the order of a hash of their ids and cut into shards of ``rows_per_shard``. To know a pair's place
without sorting everything in one memory, ids are first counted by the leading bits of their hash; a shard then
needs the few buckets that overlap it, and each worker sorts only those.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import paths, tables, tars
from pipeline.core.contracts import SHARDS
from pipeline.core.progress import tick
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.join import JOINED
from pipeline.fetch.ledger import status_of
from pipeline.fetch.reuse import REMOVED
from pipeline.fetch.staging import Bodies

BUCKETS = 1 << 20
ORDER = "order"
# Beside the contract's columns: where the image stood, for credit and for takedowns.
EXTRA = pa.schema(
    [
        ("page_url", pa.string()),
        ("text_source", pa.string()),
        ("language", pa.string()),
        ("phash", pa.string()),  # 64-bit difference hash: near for pictures that look alike
        ("image_rights", pa.string()),  # marks in its own metadata that speak of data mining
        ("image_score", pa.float64()),  # of the image scorer, if one was set
        ("duplicate_of", pa.string()),  # the first pair whose image has the same bytes
    ]
)
# What is known of a pair only when all pairs have been seen; a null says nothing.
MARKS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("image_rights", pa.string()),  # marks in its own metadata that speak of data mining
        ("image_score", pa.float64()),  # of the image scorer, if one was set
        ("duplicate_of", pa.string()),
        ("repeats", pa.bool_()),  # the caption is that of an earlier duplicate too
        ("query_id", pa.int32()),
    ]
)
# What a shard without pairs is made from.
EMPTY = JOINED.append(pa.field(ORDER, pa.uint64())).empty_table()
SAMPLE_BYTES = 4_096  # of headers, text and JSON beside an image in a tar


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


def count_buckets(files: Iterable[str]) -> tuple[np.ndarray, int]:
    """Pairs per bucket, ``int64[BUCKETS]``, and the bytes that their images need in tars; streamed."""
    counts, total = np.zeros(BUCKETS, dtype=np.int64), 0
    for batch in tables.read_batches(files, columns=["pair_id", "reason", "length"]):
        counts += np.bincount(bucket_of(order_of(batch.column("pair_id").to_pylist())), minlength=BUCKETS)
        lengths = batch.column("length").filter(pc.is_null(batch.column("reason")))
        total += (pc.sum(lengths).as_py() or 0) + SAMPLE_BYTES * len(lengths)
    return counts, total


def rows_for(config: FetchConfig, pairs: int, total_bytes: int) -> int:
    """Pairs per shard: as told, or as many as make ``bytes_per_shard`` on average; a function of the data."""
    if not config.bytes_per_shard or not total_bytes:
        return config.rows_per_shard
    return max(1, config.bytes_per_shard * pairs // total_bytes)


def stats_file(out: str, shard: int) -> str:
    """The shard's last file: it says that the shard is finished."""
    return paths.join(out, f"{tars.shard_name(shard)}_stats.json")


def write_shard(
    item: tuple[int, Iterable[pa.Table]], plan: ShardPlan, work: str, out: str, config: FetchConfig
) -> int:
    """Writes one shard by copying: tar, then Parquet, then stats; returns its rows.

    Args:
        item: Number of the shard, and tables: pairs with the rows of their URLs, and marks (:data:`MARKS`).
        plan: Which pairs are its own.
        work: The staging folder.
        out: The output folder.
        config: Of the run.
    """
    shard, chunks = item
    pairs: list[pa.Table] = []
    marks: dict[str, dict[str, Any]] = {}
    for chunk in chunks:
        if "fetch_url" in chunk.column_names:
            pairs.append(chunk)
        else:
            for mark in chunk.to_pylist():
                said = {k: v for k, v in mark.items() if v is not None}
                marks[mark["pair_id"]] = marks.get(mark["pair_id"], {}) | said
    rows = [row | marks.get(row["pair_id"], {}) for row in plan.select(shard, pairs).to_pylist()]
    with Bodies(work) as bodies:
        return write_rows(out, shard, _samples(shard, plan.rows_per_shard, rows, bodies, config))


def write_rows(out: str, shard: int, samples: Iterable[tuple[dict[str, Any], bytes | None]]) -> int:
    """Writes a shard's three files from records of ``shards/1`` and images, in order; returns the rows."""
    name = tars.shard_name(shard)
    made: list[dict[str, Any]] = []
    with paths.open_atomic(paths.join(out, f"{name}.tar")) as file:
        hashing = _HashingFile(file)
        tars.write_tar(cast("IO[bytes]", hashing), _members(samples, made))
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


def _members(
    samples: Iterable[tuple[dict[str, Any], bytes | None]], made: list[dict[str, Any]]
) -> Iterator[tars.Sample]:
    """Yields the samples that have an image and appends every record, both in order."""
    for record, jpeg in samples:
        made.append(record)
        tick()
        if jpeg is not None:
            text = json.dumps(record, sort_keys=True, ensure_ascii=False)
            caption = str(record["caption"])
            yield tars.Sample(
                str(record["key"]),
                {"jpg": jpeg, "txt": caption.encode(errors="replace"), "json": text.encode()},
            )


def _samples(
    shard: int, rows_per_shard: int, rows: list[dict[str, Any]], bodies: Bodies, config: FetchConfig
) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    for index, row in enumerate(rows):
        key = tars.sample_key(shard, index, rows_per_shard=rows_per_shard)
        record = shard_row(key, row, drop=config.drop_duplicates)
        yield record, bodies.read(row) if record["status"] == "success" else None


def shard_row(key: str, row: dict[str, Any], *, drop: str = "none") -> dict[str, Any]:
    """One record of ``shards/1`` in img2dataset's terms.

    Args:
        key: Its name in the tar.
        row: A pair with the row of its URL, and what duplicates it.
        drop: ``config.drop_duplicates``.
    """
    reason, detail = row["reason"], row["detail"]
    status = status_of(reason)
    first = row.get("duplicate_of")
    if first is not None and (drop == "image" or (drop == "pair" and row["repeats"])):
        reason, detail, status = "duplicate", first, "duplicate"
    record: dict[str, Any] = {
        "key": key,
        "pair_id": row["pair_id"],
        "url": row["url"],
        "caption": row["text"],
        "status": status,
        "error_message": None if reason is None else reason + (f": {detail}" if detail else ""),
        **{n: row[n] for n in ("width", "height", "original_width", "original_height", "sha256", "exif")},
        "http_status": row["http_status"],
        "query_ids": row["query_ids"],
        "query_id": row["query_id"],
        **{n: row[n] for n in EXTRA.names if n != "duplicate_of"},
        "duplicate_of": first,
    }
    return taken_down(record, detail) if reason == "takedown" else record


def taken_down(record: dict[str, Any], reason: str | None) -> dict[str, Any]:
    """What is left of a record after a takedown: that it was there, and why it went.

    Its ``pair_id`` stays, a hash that names nobody, so that a later run does not bring it back.
    """
    empty: dict[str, Any] = dict.fromkeys(record)
    kept = {name: record[name] for name in ("key", "pair_id", "query_id")}
    message = "takedown" + (f": {reason}" if reason else "")
    blank = {"url": "", "caption": "", "query_ids": []}
    return empty | kept | blank | {"status": REMOVED, "error_message": message}


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
