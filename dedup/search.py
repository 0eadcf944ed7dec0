"""``wit dedup search``: each evaluation picture's nearest training pictures (``neighbours/1``).

The small side, the evaluation sets, stays in memory; the large side, the training set, streams past it block by block
(:mod:`dedup.nearest`). A worker keeps each evaluation picture's k best over all blocks of a bundle and gives them on
once; what several workers found is merged by similarity and then by id, so how the training set is cut into parts and
given to workers leaves no trace. With ``index="ivf"`` a training picture is compared with the nearest lists of
evaluation pictures only (:mod:`dedup.lists`); similarities stay exact, and how many neighbours that misses is measured.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue
from threadpoolctl import threadpool_limits

from dedup import lists, nearest, tiles
from dedup.config import SearchConfig
from dedup.nearest import Best
from dedup.vectors import (
    FACTS,
    Names,
    check_dimension,
    common_extra,
    plan_blocks,
    read_block,
    read_facts,
    read_names,
    read_values,
)
from pipeline.core import beam as stages
from pipeline.core import counters, paths, tables
from pipeline.core.contracts import EMBEDDINGS, NEIGHBOURS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress, tick
from pipeline.core.stage import RunOptions, StageResult, run_stage
from pipeline.core.worklog import working

STAGE = "dedup search"
EVAL_ROWS_PER_SLICE = 65_536
# Training rows of one Beam element: a row group of our own files.
ROWS_PER_SPAN = 65_536
# Evaluation pictures that are also searched exactly, to measure an index.
SAMPLE = 256
_SAMPLE_SLICE = -1
# Lists that a training picture visits, unless told otherwise.
PROBES = 8
_LISTS, _EXACT = "lists.tmp", "exact.tmp"


def run(config: SearchConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs the command; see :func:`pipeline.core.stage.run_stage`."""
    if config.train is None or not config.eval:
        raise UsageError("search needs both sides", expected="--train DIR --eval DIR…")
    train, evals = config.train, config.eval
    extra = common_extra([train, *evals])

    def body(folder: str) -> StageResult:
        return search(config, extra, folder, options)

    done = run_stage(
        body,
        stage=STAGE,
        contract=NEIGHBOURS.id,
        config=config,
        inputs=[train, *evals],
        out=out,
        options=options,
        owned=(_LISTS, _EXACT),
    )
    if done is not None and not options.quiet and "recall" in done.extra:
        print(f"  {recall_line(done.extra)}", file=sys.stderr)  # noqa: T201
    return done


def recall_line(extra: Mapping[str, Any]) -> str:
    """What a manifest says of an index, in words."""
    found = extra["recall"]
    line = (
        f"index ivf, {extra['probes']} of {extra['lists']} lists: of {found['queries']} pictures searched exactly too, "
        f"{found['at_1']:.1%} have the same nearest neighbour; "
        f"{found['at_k']:.1%} of the {extra['k']} nearest are found"
    )
    if found["pairs_above_threshold"]:
        line += f"; {found['above_threshold']:.1%} of the {found['pairs_above_threshold']} pairs above the threshold"
    return line


def search(config: SearchConfig, extra: dict[str, Any], out: str, options: RunOptions) -> StageResult:
    """Runs the pipeline and writes the folder's parts."""
    beam_options = stages.pipeline_options(options.beam)
    assert config.train is not None
    eval_files = [f for folder in config.eval for f in tables.part_files(folder, EMBEDDINGS)]
    train_files = tables.part_files(config.train, EMBEDDINGS)
    names = read_names(eval_files)
    check_unique(names)
    train_rows = tables.count_rows(train_files)
    spans = plan_blocks(train_files, max(ROWS_PER_SPAN, config.block_rows))
    made_lists = None
    if config.index == "ivf" and names.ids:
        made_lists = paths.join(out, _LISTS)
        made = lists.make(read_values(eval_files))
        paths.write_bytes(made_lists, made.to_bytes())
        count = len(made.centroids)
        extra = {**extra, "probes": min(config.probes or PROBES, count), "lists": count}

    def build(pipeline: beam.Pipeline) -> None:
        best = (
            pipeline
            | "Spans" >> beam.Create(spans, reshuffle=True)
            | "Compare"
            >> beam.ParDo(CompareBlocks(eval_files, config, made_lists)).with_output_types(tuple[int, Any])
            | "Merge" >> beam.CombinePerKey(MergeBest())
        )
        _ = best | "Sample" >> beam.Map(_write_sample, out=out, eval_files=eval_files)
        _ = (
            best
            | "Rows" >> beam.FlatMap(_slice_table, eval_files=eval_files).with_output_types(Any)
            | "Write"
            >> stages.WriteTables(
                out, NEIGHBOURS, key="eval_id", order=("eval_dataset", "eval_id", "rank"), partitions=1
            )
        )

    with Progress(STAGE, total=train_rows, unit="training pictures", quiet=options.quiet):
        stages.run_pipeline(build, beam_options)
    rows = stages.finish_parts(out, NEIGHBOURS)
    exact = len(names.ids) * min(config.k, train_rows)
    if made_lists is not None:
        extra = {**extra, "recall": _measured_recall(out, config.k, extra.get("threshold"))}
        paths.remove(made_lists)
    return StageResult(
        rows=rows,
        rows_in=exact if made_lists is None else rows,
        engine=stages.engine(beam_options),
        extra={
            **extra,
            "k": config.k,
            "index": config.index,
            "train_rows": train_rows,
            "eval_rows": {name: names.datasets.count(name) for name in sorted(set(names.datasets))},
        },
    )


def check_unique(names: Names) -> None:
    """Checks that no evaluation picture is there twice.

    Raises:
        InputError: One is.
    """
    seen: set[tuple[str, str]] = set()
    for pair in zip(names.datasets, names.ids, strict=True):
        if pair in seen:
            raise InputError(
                "an evaluation picture is there twice",
                where=f"{pair[0]}/{pair[1]}",
                hint="give each evaluation set once, under a name of its own (`wit dedup embed --dataset`)",
            )
        seen.add(pair)


def sample_rows(names: Names) -> np.ndarray:
    """Rows of the evaluation pictures that measure an index, chosen by a hash of their names: int64 [<= SAMPLE]."""
    keys = [
        hashlib.sha256(f"{dataset}\0{name}".encode(errors="replace")).digest()[:8]
        for dataset, name in zip(names.datasets, names.ids, strict=True)
    ]
    return np.sort(np.argsort(np.array(keys, dtype="S8"), kind="stable")[:SAMPLE])


class MergeBest(beam.CombineFn):
    """Merges partial neighbours of the same evaluation pictures; associative and commutative."""

    def __init__(self) -> None:
        """Nothing to set."""

    def create_accumulator(self, *_: Any, **__: Any) -> list[Best]:
        """Nothing seen yet."""
        return []

    def add_input(self, mutable_accumulator: list[Best], element: Best, *_: Any, **__: Any) -> list[Best]:
        """Takes one worker's neighbours in."""
        return [nearest.merged(mutable_accumulator[0], element)] if mutable_accumulator else [element]

    def merge_accumulators(self, accumulators: Iterable[list[Best]], *_: Any, **__: Any) -> list[Best]:
        """Merges what several workers saw."""
        merged: list[Best] = []
        for accumulator in accumulators:
            for part in accumulator:
                merged = self.add_input(merged, part)
        return merged

    def extract_output(self, accumulator: list[Best], *_: Any, **__: Any) -> Best:
        """The neighbours over all blocks."""
        return accumulator[0]


class CompareBlocks(beam.DoFn):
    """Compares spans of the training set with all evaluation pictures, which each worker loads once.

    Args:
        eval_files: Files of the evaluation embeddings.
        config: The command's configuration.
        made_lists: File of :class:`dedup.lists.Lists`; ``None`` compares all with all.
        stage: The stage that counts what is compared, and in whose name work is logged.
    """

    def __init__(
        self,
        eval_files: Sequence[str],
        config: SearchConfig,
        made_lists: str | None = None,
        stage: str = STAGE,
    ) -> None:
        self.eval_files, self.config, self.made_lists = list(eval_files), config, made_lists
        self.stage = stage

    def setup(self) -> None:
        """Loads the evaluation side."""
        threadpool_limits(self.config.threads, user_api="blas")
        self.queries = read_values(self.eval_files)
        self.lists: lists.Lists | None = None
        self.sample = np.zeros(0, np.int64)
        if self.made_lists is not None:
            self.lists = lists.Lists.from_bytes(paths.read_bytes(self.made_lists))
            self.sample = sample_rows(read_names(self.eval_files))
            self.asked = self.queries[self.sample]
            self.queries = self.queries[self.lists.order]

    def start_bundle(self) -> None:
        """Begins with empty lists."""
        self.best: Best | None = None

    def process(self, span: tuple[str, int, int]) -> None:
        """Takes a span (file, first row, rows) into the bundle's neighbours."""
        if self.best is None:
            self.best = Best.nothing(len(self.queries), self.config.k)
            self.exact = Best.nothing(len(self.sample), self.config.k)
        with working(self.stage, span[0]):
            for ids, values in read_block(*span, self.config.block_rows):
                if len(self.queries):
                    check_dimension(self.queries.shape[1], values.shape[1], span[0])
                    self._compare(nearest.block(values, ids, self.config.k))
                counters.count(self.stage, "compared", len(ids))
                tick(len(ids))

    def _compare(self, block: nearest.Block) -> None:
        assert self.best is not None
        if self.lists is not None:
            lists.compare(self.best, self.queries, block, self.lists, self.config.probes or PROBES)
            nearest.compare(self.exact, self.asked, block)
            return
        for first in range(0, len(self.queries), EVAL_ROWS_PER_SLICE):
            last = first + EVAL_ROWS_PER_SLICE
            nearest.compare(self.best.slice(first, last), self.queries[first:last], block)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Yields (slice of the evaluation side, neighbours in this bundle)."""
        if self.best is None or not len(self.queries):
            return
        best = self.best
        if self.lists is not None:
            place = np.argsort(self.lists.order)  # back to the order of the files
            best = Best(key=best.key[place], ids=best.ids[place])
            yield _in_window((_SAMPLE_SLICE, self.exact))
        for number, first in enumerate(range(0, len(best.key), EVAL_ROWS_PER_SLICE)):
            yield _in_window((number, best.slice(first, first + EVAL_ROWS_PER_SLICE)))


def _in_window(value: tuple[int, Best]) -> WindowedValue:
    window = GlobalWindow()
    return WindowedValue(value, window.max_timestamp(), (window,))


def _slice_table(item: tuple[int, Best], eval_files: Sequence[str]) -> list[pa.Table]:
    number, best = item
    if number == _SAMPLE_SLICE:
        return []
    names, first = read_names(eval_files), number * EVAL_ROWS_PER_SLICE
    row, rank = np.nonzero(best.key != tiles.EMPTY)
    facts = read_facts(eval_files).take(first + row)
    table = pa.table(
        {
            "eval_dataset": np.array(names.datasets, dtype=object)[first + row],
            "eval_id": np.array(names.ids, dtype=object)[first + row],
            "rank": rank.astype(np.int16),
            "pair_id": pa.array(best.ids[row, rank], pa.string()),
            "similarity": best.similarity[row, rank],
            **{f"eval_{name}": facts.column(name) for name in FACTS.names},
        }
    )
    counters.count_rows(STAGE, rows_in=table.num_rows, rows_out=table.num_rows)
    return [table] if table.num_rows else []


def _write_sample(item: tuple[int, Best], out: str, eval_files: Sequence[str]) -> None:
    """Writes {data set: {id: [[training id, key]…]}} of the pictures that were searched exactly."""
    number, best = item
    if number != _SAMPLE_SLICE:
        return
    names = read_names(eval_files)
    found: dict[str, dict[str, list[Any]]] = {}
    for row, ids, keys in zip(sample_rows(names), best.ids.tolist(), best.key.tolist(), strict=True):
        pairs = [p for p in zip(ids, keys, strict=True) if p[1] != tiles.EMPTY]
        found.setdefault(names.datasets[row], {})[names.ids[row]] = pairs
    paths.write_bytes(paths.join(out, _EXACT), json.dumps(found).encode())


def _measured_recall(out: str, k: int, threshold: float | None) -> dict[str, Any]:
    file = paths.join(out, _EXACT)
    if not paths.exists(file):  # an empty training set
        return {"queries": 0, "at_1": 1.0, "at_k": 1.0, "above_threshold": 1.0, "pairs_above_threshold": 0}
    exact = json.loads(paths.read_bytes(file))
    paths.remove(file)
    found: dict[tuple[str, str], set[str]] = {}
    parts = [f for f in paths.list_files(out, suffixes=(".parquet",)) if "/part-" in f]
    for batch in tables.read_batches(parts, columns=["eval_dataset", "eval_id", "pair_id"]):
        for dataset, name, pair in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            if name in exact.get(dataset, {}):
                found.setdefault((dataset, name), set()).add(pair)
    wanted = [
        (pair in found.get((dataset, name), ()), rank, key / tiles.SCALE)
        for dataset, queries in exact.items()
        for name, pairs in queries.items()
        for rank, (pair, key) in enumerate(pairs[:k])
    ]
    near = [] if threshold is None else [hit for hit, _, likeness in wanted if likeness >= threshold]
    first = [hit for hit, rank, _ in wanted if rank == 0]
    return {
        "queries": len(first),
        "at_1": _share(first),
        "at_k": _share([hit for hit, _, _ in wanted]),
        "above_threshold": _share(near),
        "pairs_above_threshold": len(near),
    }


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 1.0
