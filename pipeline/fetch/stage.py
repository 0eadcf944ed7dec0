"""``wit fetch``: pairs to shards, in two pipelines with raw downloads between them.

The first groups pairs by the host of their URL and downloads each URL once, politely, into a staging folder. The
second puts pairs into the order of shards and writes them from what is staged. A killed run goes on: staged URLs
are not asked for again and finished shards stay.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from pipeline.core import manifest, paths, tables
from pipeline.core.beam import LOCAL_RUNNER, engine, pipeline_options, run_pipeline, split_table
from pipeline.core.contracts import DROPPED, PAIRS, SHARDS
from pipeline.core.errors import StageFailedError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress, tick
from pipeline.core.stage import RunOptions, StageResult, clear, run_stage
from pipeline.core.tars import shard_name
from pipeline.fetch import shards, staging
from pipeline.fetch.client import Client
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import Refusal, Target, parse_url
from pipeline.fetch.schedule import Schedule
from pipeline.fetch.shards import ShardPlan
from pipeline.fetch.staging import RESULT, GroupStaging

OWNED = ("*.tar", "[0-9]*.parquet", "*_stats.json", f"{staging.FOLDER}/*")
PAIR_COLUMNS = (
    "pair_id", "url", "text", "query_ids", "query_id", "rights", "page_url", "text_source", "language",
)  # fmt: skip
MakeClient = Callable[[FetchConfig], Client]


def run(config: FetchConfig, out: str, options: RunOptions) -> Manifest | None:
    """Fetches the images of ``config.pairs`` into shards.

    Raises:
        UsageError: No pairs are named, or Beam does not know an option.
        ContractError: They are no ``pairs/1``.
        UnfinishedInputError: The stage that makes them has not finished.
    """
    if config.pairs is None:
        raise UsageError("no pairs to fetch", hint="name the folder of `wit select` with --pairs DIR")
    beam_options = pipeline_options(options.beam)
    files = tables.part_files(config.pairs, PAIRS)
    return run_stage(
        partial(_body, config=config, files=files, options=options, beam_options=beam_options),
        stage="fetch",
        contract=SHARDS.id,
        config=config,
        inputs=[config.pairs],
        out=out,
        options=options,
        owned=OWNED,
        resumable=True,
    )


def _body(
    out: str, *, config: FetchConfig, files: list[str], options: RunOptions, beam_options: PipelineOptions
) -> StageResult:
    clear(out, (".*.tmp", "dropped/*"))  # what a killed run was writing
    groups = config.host_groups or _groups(beam_options)
    folder = paths.join(out, staging.FOLDER, str(groups))
    plan = ShardPlan.from_counts(shards.count_buckets(files), config.rows_per_shard)
    rows_in = tables.count_rows(files)
    todo = frozenset(s for s in range(plan.shards) if not paths.exists(shards.stats_file(out, s)))
    if todo:
        paths.make_folder(folder)
        with Progress("fetch", unit="URLs", quiet=options.quiet):
            run_pipeline(partial(_build_fetch, files, groups, folder, config), beam_options)
        with Progress("shards", total=plan.rows, unit="pairs", quiet=options.quiet):
            run_pipeline(partial(_build_shards, plan, todo, folder, out, config), beam_options)
    result = _summary(out, plan, rows_in, engine(beam_options))
    paths.remove(paths.join(out, staging.FOLDER))
    return result


def _groups(options: PipelineOptions) -> int:
    """Groups of hosts: one worker does best with all hosts at once, several need some to choose from."""
    if engine(options) != LOCAL_RUNNER:
        return 256
    workers = options.view_as(DirectOptions).direct_num_workers
    return 1 if workers == 1 else 8 * (workers or 8)


def _build_fetch(
    files: list[str], groups: int, folder: str, config: FetchConfig, pipeline: beam.Pipeline
) -> None:
    (
        pipeline
        | "Files" >> beam.Create(files)
        | "Read" >> beam.FlatMap(read_pairs).with_output_types(Any)
        | "ByHost"
        >> beam.FlatMap(split_table, key="host", partitions=groups).with_output_types(tuple[int, Any])
        | "Groups" >> beam.GroupByKey()
        | "Fetch" >> beam.Map(fetch_group, folder, config).with_output_types(int)
    )


def _build_shards(
    plan: ShardPlan, todo: frozenset[int], folder: str, out: str, config: FetchConfig, pipeline: beam.Pipeline
) -> None:
    by_shard = (
        pipeline
        | "Files" >> beam.Create(staging.group_files(folder))
        | "Read" >> beam.FlatMap(_read_staged).with_output_types(Any)
        | "ByShard" >> beam.FlatMap(_split, plan, todo).with_output_types(tuple[int, Any])
    )
    # No pairs still make one shard, so that readers see the columns.
    nothing = pipeline | "Empty" >> beam.Create(
        [(0, pa.table({n: pa.array([], t) for n, t in _staged_columns()}))] if not plan.rows else []
    ).with_output_types(tuple[int, Any])
    (
        (by_shard, nothing)
        | "All" >> beam.Flatten()
        | "Shards" >> beam.GroupByKey()
        | "Write" >> beam.Map(shards.write_shard, plan, folder, out, config).with_output_types(int)
    )


def _staged_columns() -> list[tuple[str, pa.DataType]]:
    fields = [PAIRS.schema.field(n) for n in PAIR_COLUMNS] + [f for f in RESULT if f.name != "fetch_url"]
    return [(f.name, f.type) for f in fields] + [(shards.ORDER, pa.uint64())]


def read_pairs(file: str) -> Iterator[pa.Table]:
    """Tables of pairs with ``fetch_url`` and ``host``, or with the ``refusal`` that forbids to ask."""
    for batch in tables.read_batches([file], columns=list(PAIR_COLUMNS)):
        yield addressed(pa.Table.from_batches([batch]))


def addressed(table: pa.Table) -> pa.Table:
    """Adds ``fetch_url``, ``host`` (empty if there is none), and ``refused``, ``refused_detail``."""
    found = [
        verdict_on(url, rights)
        for url, rights in zip(
            table.column("url").to_pylist(), table.column("rights").to_pylist(), strict=True
        )
    ]
    columns = {
        "fetch_url": [f.url if isinstance(f, Target) else None for f in found],
        "host": [f.host if isinstance(f, Target) else "" for f in found],
        "refused": [f.reason if isinstance(f, Refusal) else None for f in found],
        "refused_detail": [f.detail if isinstance(f, Refusal) else None for f in found],
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return table


def verdict_on(url: str, rights: Iterable[str]) -> Target | Refusal:
    """Whether a pair may be asked for at all: its URL's form, and the opt-outs of the page it stood on."""
    found = parse_url(url)
    marks = sorted(rights)
    return Refusal("optout_meta", ", ".join(marks)) if marks and isinstance(found, Target) else found


def make_client(config: FetchConfig) -> Client:
    """The client of one group."""
    return Client(config, version=manifest.version())


def fetch_group(
    item: tuple[int, Iterable[pa.Table]],
    folder: str,
    config: FetchConfig,
    make: MakeClient = make_client,
) -> int:
    """Downloads what is missing of one group of hosts and stages it; returns the URLs asked for."""
    group, chunks = item
    staged = GroupStaging(folder, group)
    if paths.exists(staged.pairs_file):
        return 0
    pairs = pa.concat_tables(list(chunks))
    done = set(staged.results().column("fetch_url").to_pylist())
    wanted = sorted(set(pairs.column("fetch_url").drop_null().to_pylist()) - done, key=_spread)
    targets = [t for t in map(parse_url, wanted) if isinstance(t, Target)]
    asked = 0
    if targets:
        for count in staged.write(Schedule(make(config)).run(targets)):
            asked += count
            tick(count)
    staging.write_parquet(staged.pairs_file, answered(pairs, staged.results()))
    return asked


def _spread(url: str) -> tuple[int, str]:
    """An order that does not go through one folder of a site after the other."""
    return zlib.crc32(url.encode()), url


def answered(pairs: pa.Table, results: pa.Table) -> pa.Table:
    """Pairs with the result of their URL, or with the refusal they came with.

    Raises:
        StageFailedError: A URL has no result.
    """
    place = {url: i for i, url in enumerate(results.column("fetch_url").to_pylist())}
    rows = [place.get(url) if url is not None else None for url in pairs.column("fetch_url").to_pylist()]
    refused = pairs.column("refused").to_pylist()
    if any(row is None and reason is None for row, reason in zip(rows, refused, strict=True)):
        raise StageFailedError("a URL was not fetched", hint="this is a defect: please report it")
    taken = results.take(pa.array(rows, pa.int64()))
    columns: Mapping[str, Any] = {
        **{n: pairs.column(n) for n in PAIR_COLUMNS},
        **{n: taken.column(n) for n in RESULT.names if n != "fetch_url"},
    }
    merged = {
        "reason": pa.compute.coalesce(pairs.column("refused"), columns["reason"]),
        "detail": pa.compute.coalesce(pairs.column("refused_detail"), columns["detail"]),
    }
    return pa.table({**columns, **merged})


def _read_staged(file: str) -> Iterator[pa.Table]:
    for batch in tables.read_batches([file]):
        yield pa.Table.from_batches([batch])


def _split(table: pa.Table, plan: ShardPlan, todo: frozenset[int]) -> list[tuple[int, pa.Table]]:
    return [(shard, part) for shard, part in plan.split(table) if shard in todo]


def _summary(out: str, plan: ShardPlan, rows_in: int, ran_on: str) -> StageResult:
    """Counts from the shards themselves, and their failed rows once more as ``dropped/``."""
    listed = []
    with tables.PartWriter(paths.join(out, "dropped"), DROPPED) as dropped:
        for shard in range(plan.shards):
            stats = json.loads(paths.read_bytes(shards.stats_file(out, shard)))
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
                    (*shards.reason_of(message), pair)
                    for pair, message in zip(*map(pa.Array.to_pylist, batch.columns), strict=True)
                    if message is not None
                ]
                dropped.write(
                    tables.dropped_table("fetch", [(reason, pair, detail) for reason, detail, pair in failed])
                )
    return StageResult(
        rows=sum(s["rows"] for s in listed), rows_in=rows_in, engine=ran_on, extra={"shards": listed}
    )
