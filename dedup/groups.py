"""``wit dedup groups``: near-duplicates within the training set, as connected components over a threshold.

Every block of embeddings stays in memory while all rows after it stream past, compared exactly; with ``index="ivf"``
pictures are compared within lists of alike ones only (:mod:`dedup.coarse`). Pairs near or above the threshold are
computed again in double precision (:func:`dedup.nearest.near`): the cut into blocks leaves no trace. Of the pairs only
a spanning tree and each picture's best similarity leave a block (:mod:`dedup.linking`), and equal vectors are compared
once: a million copies of one picture cost a million rows, not a million times a million pairs. One picture of each
group, the one with the smallest id, is marked to be kept; ``drop-ids.txt`` lists the others for
``wit shards drop --ids``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from dedup import coarse, vectors
from dedup.config import GroupsConfig
from dedup.linking import Links, MergeLinks, gathered, link_equals, links_between, links_within, place_of
from pipeline.core import beam as stages
from pipeline.core import counters, paths, tables
from pipeline.core.contracts import EMBEDDINGS, GROUPS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress, tick
from pipeline.core.stage import RunOptions, StageResult, run_stage
from pipeline.core.worklog import working

STAGE = "dedup groups"
DROP_IDS = "drop-ids.txt"


def run(config: GroupsConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs the command; see :func:`pipeline.core.stage.run_stage`."""
    if config.train is None:
        raise UsageError("no embeddings given", hint=f"pass --train DIR, made with `{EMBEDDINGS.made_by}`")
    train = config.train
    found = vectors.common_extra([train])
    threshold = found.get("threshold") if config.threshold is None else config.threshold
    if threshold is None:
        raise UsageError("no threshold given", hint="the detector has no calibrated one: pass --threshold T")

    def body(folder: str) -> StageResult:
        return group(config, float(threshold), folder, options)

    done = run_stage(
        body,
        stage=STAGE,
        contract=GROUPS.id,
        config=config,
        inputs=[train],
        out=out,
        options=options,
        owned=(DROP_IDS, f"{coarse.FOLDER}/*"),
    )
    if done is not None and not options.quiet and "recall" in done.extra:
        print(f"  {coarse.recall_line(done.extra)}", file=sys.stderr)  # noqa: T201
    return done


def group(config: GroupsConfig, threshold: float, out: str, options: RunOptions) -> StageResult:
    """Runs the pipeline and writes the folder's parts; rows are the pictures of groups."""
    beam_options = stages.pipeline_options(options.beam)
    assert config.train is not None
    files = tables.part_files(config.train, EMBEDDINGS)
    total = tables.count_rows(files)
    listed = config.index == "ivf" and total > 0
    extra: dict[str, Any] = {"threshold": threshold, "index": config.index, "train_rows": total}

    def build(pipeline: beam.Pipeline) -> None:
        if listed:
            asked = coarse.CompareAsked(files, config.threads, out)
            _ = pipeline | "Asked" >> asked
            links = pipeline | "Lists" >> coarse.LinkWithinLists(files, total, threshold, config, out)
        else:
            blocks = pipeline | "Blocks" >> beam.Create(
                vectors.numbered_blocks(files, config.block_rows), reshuffle=True
            )
            compare = LinkBlocks(files, threshold, config.threads)
            links = blocks | "Compare" >> beam.ParDo(compare).with_output_types(Any)
        (
            links
            | "Merge" >> beam.CombineGlobally(MergeLinks())
            | "Rows" >> beam.Map(_named, files=files).with_output_types(Any)
            | "Write" >> stages.WriteTables(out, GROUPS, key="pair_id", order=("pair_id",), partitions=1)
        )

    passes = 3 if listed else 1  # sampled, compared with those that are asked, and compared in its list
    with Progress(STAGE, total=passes * total, unit="training pictures", quiet=options.quiet):
        if listed:
            folder = paths.join(out, coarse.FOLDER)
            extra["lists"] = coarse.prepare(files, total, folder, config.threads, beam_options)
            extra["probes"] = min(config.probes or coarse.PROBES, extra["lists"])
        stages.run_pipeline(build, beam_options)
    if listed:
        extra["recall"] = coarse.recall(out, threshold)
        paths.remove(paths.join(out, coarse.FOLDER))
    rows = stages.finish_parts(out, GROUPS)
    made = tables.read_files(paths.list_files(out, suffixes=(".parquet",)), columns=["pair_id", "keep"])
    dropped = [
        i
        for i, keep in zip(*(made.column(c).to_pylist() for c in ("pair_id", "keep")), strict=True)
        if not keep
    ]
    paths.write_bytes(paths.join(out, DROP_IDS), "".join(f"{i}\n" for i in dropped).encode())
    return StageResult(
        rows=rows,
        rows_in=rows,
        engine=stages.engine(beam_options),
        extra={**extra, "groups": rows - len(dropped), "to_drop": len(dropped)},
    )


class LinkBlocks(beam.DoFn):
    """Compares a block with itself and with all rows after it.

    Args:
        files: Files of the training set.
        threshold: Least similarity of a pair.
        threads: Threads of the arithmetic.
    """

    def __init__(self, files: Sequence[str], threshold: float, threads: int) -> None:
        self.files, self.threshold, self.threads = list(files), threshold, threads

    def setup(self) -> None:
        """Sets the threads."""
        threadpool_limits(self.threads, user_api="blas")

    def process(self, block: vectors.NumberedBlock) -> Iterator[Links]:
        """Yields the links of one block."""
        number, start, rows = block
        read = vectors.read_block(self.files[number], start, rows, rows)
        values = np.concatenate([part for _, part in read])
        places = place_of(number, start + np.arange(rows))
        with working(STAGE, f"{self.files[number]} {start}"):
            found = gathered(self._links(values, places, number, start + rows), rows)
            tick(rows)
        counters.count(STAGE, "compared", rows)
        yield found

    def _links(self, values: np.ndarray, places: np.ndarray, number: int, end: int) -> Iterator[Links]:
        first, equals = link_equals(values, self.threshold)
        yield equals.at(places)
        values, places = values[first], places[first]
        yield from links_within(values, places, self.threshold)
        for others, where in self._after(number, end, values.shape[1]):
            first, _ = link_equals(others, self.threshold)  # their own links come with their own block
            yield from links_between(values, places, others[first], where[first], self.threshold)

    def _after(self, number: int, end: int, dimension: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows from a place on, batch by batch, with their places."""
        for later in range(number, len(self.files)):
            place, wanted = 0, end if later == number else 0
            for batch in tables.read_batches([self.files[later]], columns=["id", "embedding"]):
                cut = batch.slice(max(0, wanted - place))
                place += batch.num_rows
                if not cut.num_rows:
                    continue
                found = vectors.vectors(cut, where=self.files[later])
                vectors.check_dimension(dimension, found.shape[1], self.files[later])
                yield found, place_of(later, place - len(found) + np.arange(len(found)))


def _named(found: Links | None, files: Sequence[str]) -> pa.Table:
    """Rows of ``groups/1``: a group is called by its smallest id, which is the one to keep."""
    if found is None or not len(found.row):
        return GROUPS.empty()
    ids: list[str] = []
    place = 0
    for number, file in enumerate(files):
        start = place_of(number, 0)
        for batch in tables.read_batches([file], columns=["id"]):
            end = start + batch.num_rows
            last = int(np.searchsorted(found.row, end))
            ids += batch.column("id").take(pa.array(found.row[place:last] - start)).to_pylist()
            place, start = last, end
    names = np.array(ids, dtype=object)
    known, times = np.unique(names, return_counts=True)
    if (times > 1).any():
        raise InputError(
            "a training picture is there twice",
            where=known[times > 1][0],
            hint=f"give `{EMBEDDINGS.made_by} --images` each picture once",
        )
    _, group = np.unique(found.to, return_inverse=True)
    order = np.lexsort((np.argsort(np.argsort(names)), group))
    firsts = np.flatnonzero(np.diff(group[order], prepend=-1))
    called = names[order][firsts][group]
    counters.count_rows(STAGE, rows_in=len(ids), rows_out=len(ids))
    return pa.table(
        {
            "pair_id": pa.array(ids, pa.string()),
            "group": pa.array(called.tolist(), pa.string()),
            "similarity": found.similarity,
            "keep": pa.array((names == called).tolist(), pa.bool_()),
        }
    )
