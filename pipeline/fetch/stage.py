"""``wit fetch``: pairs to shards, in passes that meet in a staging folder.

1. Fetch: URLs, grouped by host, are downloaded once, politely; what another run fetched is taken over.
2. Decode: each download becomes an image, or a reason why not.
3. Join: pairs meet what became of their URL. With ``--top-up`` dead links are replaced and the three repeated.
4. Shards: pairs in the order of shards are written by copying images.

A killed run goes on: no answer that was written down is asked for again, no part is decoded twice, and finished
shards stay.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from pipeline.core import counters, manifest, paths, tables
from pipeline.core.beam import LOCAL_RUNNER, engine, pipeline_options, run_pipeline, split_table
from pipeline.core.contracts import PAIRS, SHARDS
from pipeline.core.errors import UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress, tick
from pipeline.core.spill import Chunk, Spill, read_chunks
from pipeline.core.stage import RunOptions, StageResult, clear, run_stage
from pipeline.core.worklog import working
from pipeline.fetch import duplicates, hooks, ledger, retry, reuse, shards, staging, top_up
from pipeline.fetch.client import Answer, Client
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.decode import require_engine
from pipeline.fetch.join import PART_PAIRS, build_join, read_pairs
from pipeline.fetch.parts import DecodeParts, undecoded
from pipeline.fetch.policy import DAMAGE, Target, parse_url
from pipeline.fetch.reuse import KnownFile, Source, known_rows, read_known
from pipeline.fetch.schedule import Schedule
from pipeline.fetch.shards import ShardPlan
from pipeline.fetch.staging import DECODED, RAW, GroupStaging, indexes
from pipeline.fetch.summary import summarise

STAGE = "fetch"
URLS = "fetch.urls"  # counters of requests, each as soon as it is answered; those of `fetch` are of pairs
FILES = ("*.tar", "[0-9]*.parquet", "*_stats.json", f"{ledger.FOLDER}/*")
OWNED = (*FILES, f"{staging.FOLDER}/*", f"{retry.PREVIOUS}/*")
MakeClient = Callable[[FetchConfig], Client]
Tagged = tuple[str, pa.Table]


def run(config: FetchConfig, out: str, options: RunOptions) -> Manifest | None:
    """Fetches the images of ``config.pairs`` into shards.

    Raises:
        UsageError: No pairs are named, the engine or the image scorer is not installed, or Beam does not know an
            option.
        InputError: The deny list cannot be read.
        ContractError: They are no ``pairs/1``.
        UnfinishedInputError: The stage that makes them has not finished.
    """
    if config.pairs is None:
        raise UsageError("no pairs to fetch", hint="name the folder of `wit select` with --pairs DIR")
    beam_options = pipeline_options(options.beam)
    files = tables.part_files(config.pairs, PAIRS)
    for path in config.reuse:
        reuse.check_apart(path, out)
        reuse.open_source(path, config)
    if config.top_up:
        top_up.check(config.pairs)
    require_engine(config)
    hooks.check(config)
    inputs = [path for path in (config.pairs, config.deny_hashes) if path]
    if not options.overwrite:
        retry.check(out, config)
    if not options.dry_run and config.retry and _may_retry(out):
        retry.begin(out, STAGE, config, inputs)
    was_finished = retry.is_finished(out)
    done = run_stage(
        partial(_body, config=config, files=files, options=options, beam_options=beam_options),
        stage=STAGE,
        contract=SHARDS.id,
        config=config,
        inputs=inputs,
        out=out,
        options=options,
        owned=OWNED,
        resumable=True,
        damage=DAMAGE,
        mend="dropped/ there names them: mend the network and add --retry, which asks again for what may pass",
    )
    if done is not None:
        retry.clean(out, [staging.FOLDER])
        if was_finished and not options.quiet and (count := done.extra.get("urls_retryable")):
            told = f"{STAGE}: {count:,} URLs failed in a way that may pass: --retry asks for them again"
            sys.stderr.write(f"{told}\n")
    return done


def _may_retry(out: str) -> bool:
    return retry.is_finished(out) and bool(manifest.read(out).extra.get("urls_retryable"))


@dataclass(frozen=True)
class _Run:
    """One run: where it works, with what, and the passes over it; each is skipped where its result is there."""

    config: FetchConfig
    out: str
    options: RunOptions
    beam: PipelineOptions

    @property
    def work(self) -> str:
        return paths.join(self.out, staging.FOLDER)

    @property
    def groups(self) -> int:
        return self.config.host_groups or _groups(self.beam)

    @cached_property
    def sources(self) -> list[Source]:
        found = [reuse.open_source(path, self.config) for path in self.config.reuse]
        if retry.under_way(self.out):
            found.append(reuse.open_source(paths.join(self.out, retry.PREVIOUS), self.config, itself=True))
        return found

    @cached_property
    def removed(self) -> dict[str, str]:
        return reuse.removed_ids(self.sources)

    def once(self, name: str, make: Callable[[], object]) -> None:
        """Does something unless a marker says that it was done."""
        marker = paths.join(self.work, f"{name}.done")
        if not paths.exists(marker):
            make()
            paths.write_bytes(marker, b"")

    def joined(self, rounds: int) -> list[str]:
        """The files of pairs with the row of their URL, of this round and those before it."""
        folders = [paths.join(self.work, "joined", f"{n:05d}") for n in range(rounds + 1)]
        return [file for folder in folders for file in indexes(folder)]

    def round(self, number: int, files: list[str]) -> None:
        """Fetches, decodes and joins some pairs."""
        self.once(f"round-{number:05d}", lambda: self._round(number, files))

    def _round(self, number: int, files: list[str]) -> None:
        raw = paths.join(self.work, RAW)
        staging.recover(raw)
        quiet = self.options.quiet
        with Progress("fetch", unit="URLs", quiet=quiet):
            run_pipeline(partial(_build_fetch, self, files), self.beam)
        if names := undecoded(self.work):
            total = tables.count_rows(paths.join(raw, f"{name}.parquet") for name in names)
            with Progress("decode", total=total, unit="images", quiet=quiet):
                run_pipeline(partial(_build_decode, names, self.work, self.config), self.beam)
        pairs = tables.count_rows(files)
        folder = paths.join(self.work, "joined", f"{number:05d}")
        with Progress("join", unit="pairs", quiet=quiet):
            parts = 1 + pairs // PART_PAIRS
            run_pipeline(partial(build_join, files, self.removed, self.work, parts, folder), self.beam)
        paths.remove_leftover(staging.spill_folder(self.work))


def _body(
    out: str, *, config: FetchConfig, files: list[str], options: RunOptions, beam_options: PipelineOptions
) -> StageResult:
    clear(out, (".*.tmp", f"{ledger.FOLDER}/.*.tmp", "dropped/*"))  # what a killed run was writing
    retry.move(out, FILES)
    retry.forget_failures(out, FILES, asked=config.retry)
    run = _Run(config, out, options, beam_options)
    paths.make_folder(run.work)
    paths.remove(staging.spill_folder(run.work))
    some = config.top_up and tables.count_rows(files)
    topped = top_up.TopUp(str(config.pairs), files, run.work) if some else None
    run.round(0, files)
    extra: dict[str, Any] = {}
    final: list[str] = []
    rounds = 0
    if topped is not None:
        while drawn := topped.draw(rounds + 1, run.joined(rounds)):
            rounds += 1
            run.round(rounds, drawn)
        final = topped.finish(run.joined(rounds))
        extra["top_up"] = topped.report(rounds)
    joined = run.joined(rounds)
    counts, total = shards.count_buckets(joined)
    rows = int(counts.sum())
    plan = ShardPlan.from_counts(counts, shards.rows_for(config, rows, total))
    todo = frozenset(s for s in range(plan.shards) if not paths.exists(shards.stats_file(out, s)))
    if not rows:  # no pairs still make one shard, so that readers see the columns
        shards.write_shard((0, [shards.EMPTY]), plan, run.work, out, config)
    elif todo:
        with Progress("shards", total=plan.rows, unit="pairs", quiet=options.quiet):
            run_pipeline(partial(_build_shards, plan, todo, joined, final, run), beam_options)
        paths.remove_leftover(staging.spill_folder(run.work))
    if earlier := retry.takedowns(out):
        extra["takedowns"] = earlier
    decoded = indexes(paths.join(run.work, DECODED))
    if decoded:
        build = partial(ledger.build_ledger, decoded, 1 + rows // ledger.PART_ROWS, out)
        run.once(retry.THROUGH, lambda: run_pipeline(build, beam_options))
    extra |= ledger.totals(out)
    if config.reuse:
        extra["reused"] = reuse.described(run.sources, _taken_over(decoded))
    return _summary(out, plan, rows, engine(beam_options), extra)


def _taken_over(decoded: list[str]) -> Counter[str]:
    """URLs that came from each source."""
    counts: Counter[str] = Counter()
    for batch in tables.read_batches(decoded, columns=["source"]):
        counts.update(name for name in batch.column("source").to_pylist() if name is not None)
    return counts


def _groups(options: PipelineOptions) -> int:
    """Groups of hosts: one worker does best with all hosts at once, several need some to choose from."""
    if engine(options) != LOCAL_RUNNER:
        return 256
    workers = options.view_as(DirectOptions).direct_num_workers
    return 1 if workers == 1 else 8 * (workers or 8)


def _build_fetch(run: _Run, files: list[str], pipeline: beam.Pipeline) -> None:
    inputs = [
        pipeline
        | "Files" >> beam.Create(files)
        | "Read" >> beam.FlatMap(wanted_urls, run.removed)
        | "ByHost" >> beam.FlatMap(_tagged, "wanted", run.groups).with_output_types(tuple[int, Any])
    ]
    other = [f for f in indexes(paths.join(run.work, RAW)) if not _is_of(f, run.groups)]
    if other:
        inputs.append(
            pipeline
            | "Staged" >> beam.Create(other)
            | "ReadStaged" >> beam.FlatMap(staged_urls)
            | "StagedByHost" >> beam.FlatMap(_tagged, "staged", run.groups).with_output_types(tuple[int, Any])
        )
    if known := reuse.known_files(run.sources):
        inputs.append(
            pipeline
            | "Known" >> beam.Create(known)
            | "ReadKnown"
            >> beam.FlatMap(_tagged_known, run.config, run.groups).with_output_types(tuple[int, Any])
        )
    (
        inputs
        | "All" >> beam.Flatten()
        | "Groups" >> beam.GroupByKey()
        | "Fetch" >> beam.Map(fetch_group, run.work, run.groups, run.config).with_output_types(int)
    )


def _is_of(file: str, groups: int) -> bool:
    return file.rsplit("/", 1)[1].startswith(f"{groups}-")


def _tagged(table: pa.Table, tag: str, groups: int) -> list[tuple[int, Tagged]]:
    return [(group, (tag, rows)) for group, rows in split_table(table, key="host", partitions=groups)]


def _tagged_known(element: KnownFile, config: FetchConfig, groups: int) -> Iterator[tuple[int, Tagged]]:
    for table in read_known(element, config):
        yield from _tagged(table, "answers" if element.is_ledger else "images", groups)


def wanted_urls(file: str, removed: Mapping[str, str]) -> Iterator[pa.Table]:
    """``fetch_url`` and ``host`` of the pairs that may be asked for, each once in a table."""
    for table in read_pairs(file, removed):
        urls = table.select(["fetch_url", "host"]).filter(table.column("fetch_url").is_valid())
        yield urls.group_by(["fetch_url", "host"]).aggregate([])


def staged_urls(file: str) -> Iterator[pa.Table]:
    """What is staged under another number of groups, with its ``host``."""
    for batch in tables.read_batches([file], columns=list(staging.STAGED)):
        targets = [parse_url(url) for url in batch.column("fetch_url").to_pylist()]
        hosts = [t.host if isinstance(t, Target) else "" for t in targets]
        yield pa.Table.from_batches([batch]).append_column("host", pa.array(hosts, pa.string()))


def make_client(config: FetchConfig) -> Client:
    """The client of one group."""
    return Client(config, version=manifest.version())


def fetch_group(
    item: tuple[int, Iterable[Tagged]],
    work: str,
    groups: int,
    config: FetchConfig,
    make: MakeClient = make_client,
) -> int:
    """Stages what is missing of one group of hosts, from other runs or from the web; returns the URLs asked for."""
    group, chunks = item
    found: dict[str, list[pa.Table]] = {"wanted": [], "staged": [], "images": [], "answers": []}
    for tag, table in chunks:
        found[tag].append(table)
    staged = GroupStaging(work, groups, group)
    before = [table.select(staging.STAGED) for table in found["staged"]] + staged.done()
    missing = _urls(found["wanted"]) - _urls(before)
    known = known_rows(missing, found["images"], found["answers"])
    staged.take_over(known)
    missing -= set(known.column("fetch_url").to_pylist())
    targets = [t for t in map(parse_url, sorted(missing, key=_spread)) if isinstance(t, Target)]
    asked = 0
    if targets:
        spent = asked_before(before) if config.max_per_host else None
        with working(STAGE, f"hosts {group}"):
            for count in staged.write(_counted(Schedule(make(config)).run(targets, spent))):
                asked += count
                tick(count)
    return asked


def _counted(answers: Iterable[tuple[Target, Answer]]) -> Iterator[tuple[Target, Answer]]:
    """The answers, each counted by what became of its URL while the run goes on."""
    for target, answer in answers:
        counters.count(URLS, "downloaded" if answer.refusal is None else answer.refusal.reason)
        yield target, answer


def _urls(chunks: list[pa.Table]) -> set[str]:
    return {url for table in chunks for url in table.column("fetch_url").to_pylist()}


def asked_before(staged: Iterable[pa.Table]) -> Counter[str]:
    """URLs of each host that this run has asked the web for, by what is staged."""
    spent: Counter[str] = Counter()
    for table in staged:
        for row in table.to_pylist():
            target = parse_url(row["fetch_url"])
            if row["source"] is None and row["reason"] != "host_quota" and isinstance(target, Target):
                spent[target.host] += 1
    return spent


def _spread(url: str) -> tuple[int, str]:
    """An order that does not go through one folder of a site after the other."""
    return zlib.crc32(url.encode()), url


def _build_decode(names: list[str], work: str, config: FetchConfig, pipeline: beam.Pipeline) -> None:
    (
        pipeline
        | "Parts" >> beam.Create(names)
        | "Decode" >> beam.ParDo(DecodeParts(work, config)).with_output_types(int)
    )


def _build_shards(
    plan: ShardPlan,
    todo: frozenset[int],
    joined: list[str],
    final: list[str],
    run: _Run,
    pipeline: beam.Pipeline,
) -> None:
    files = pipeline | "Files" >> beam.Create(joined)
    by_hash = 1 + plan.rows // duplicates.PART_PAIRS
    inputs = [
        files | "Read" >> beam.FlatMap(_read),
        files
        | "Hashes" >> beam.FlatMap(duplicates.hashes_of, by_hash).with_output_types(tuple[int, Any])
        | "SpillHashes"
        >> beam.ParDo(Spill(staging.spill_folder(run.work))).with_output_types(tuple[int, Any])
        | "ByHash" >> beam.GroupByKey()
        | "Duplicates" >> beam.Map(duplicates.duplicate_marks),
    ]
    if final:
        inputs.append(pipeline | "Final" >> beam.Create(final) | "ReadFinal" >> beam.FlatMap(_read))
    (
        inputs
        | "Rows" >> beam.Flatten()
        | "ByShard" >> beam.FlatMap(_split, plan, todo).with_output_types(tuple[int, Any])
        | "Spill" >> beam.ParDo(Spill(staging.spill_folder(run.work))).with_output_types(tuple[int, Any])
        | "Shards" >> beam.GroupByKey()
        | "Write" >> beam.Map(_write_shard, plan, run.work, run.out, run.config).with_output_types(int)
    )


def _write_shard(
    item: tuple[int, Iterable[Chunk]], plan: ShardPlan, work: str, out: str, config: FetchConfig
) -> int:
    shard, chunks = item
    with working(STAGE, f"shard {shard}"):
        rows = shards.write_shard((shard, read_chunks(chunks)), plan, work, out, config)
    results: dict[str, int] = json.loads(paths.read_bytes(shards.stats_file(out, shard)))["status_dict"]
    counters.count_rows(STAGE, rows_in=rows, rows_out=results.pop("success", 0))
    counters.count_reasons(STAGE, results)
    return rows


def _read(file: str) -> Iterator[pa.Table]:
    for batch in tables.read_batches([file]):
        yield pa.Table.from_batches([batch])


def _split(table: pa.Table, plan: ShardPlan, todo: frozenset[int]) -> list[tuple[int, pa.Table]]:
    return [(shard, part) for shard, part in plan.split(table) if shard in todo]


def _summary(out: str, plan: ShardPlan, rows_in: int, ran_on: str, extra: Mapping[str, Any]) -> StageResult:
    listed = summarise(out, plan.shards)
    return StageResult(
        rows=sum(s["rows"] for s in listed),
        rows_in=rows_in,
        engine=ran_on,
        extra={"shards": listed, "rows_per_shard": plan.rows_per_shard, **extra},
    )
