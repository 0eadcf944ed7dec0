"""``wit dedup groups``: near-duplicates within the training set, as connected components over a threshold.

Every block of embeddings stays in memory while all rows after it stream past, compared exactly. Pairs near or above the
threshold are computed again in double precision (:func:`dedup.nearest.near`): the cut into blocks leaves no trace. Of
the pairs only a spanning tree and each picture's best similarity leave a block, and equal vectors are compared once: a
million copies of one picture cost a million rows, not a million times a million pairs. One picture of each group, the
one with the smallest id, is marked to be kept; ``drop-ids.txt`` lists the others for ``wit shards drop --ids``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from dedup import nearest, vectors
from dedup.config import GroupsConfig
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
# A place in the training set: file and row number in it.
_ROW = 40
# Rows compared with as many others at once: bounds the pairs held, however many are near.
_TILE = 2048
_NONE = -2.0
Block = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Links:
    """Pictures that belong together.

    Attributes:
        row: int64 [N], rows of the training set, each once.
        to: int64 [N], a row of the same group, at most ``row``; following it leads to the group's smallest row.
        similarity: float32 [N], to the most similar other row seen so far.
    """

    row: np.ndarray
    to: np.ndarray
    similarity: np.ndarray

    @classmethod
    def none(cls) -> Links:
        """No links."""
        return cls(row=np.zeros(0, np.int64), to=np.zeros(0, np.int64), similarity=np.zeros(0, np.float32))

    def at(self, places: np.ndarray) -> Links:
        """The same links of rows that lie at some places of the training set."""
        return Links(row=places[self.row], to=places[self.to], similarity=self.similarity)


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

    return run_stage(
        body,
        stage=STAGE,
        contract=GROUPS.id,
        config=config,
        inputs=[train],
        out=out,
        options=options,
        owned=(DROP_IDS,),
    )


def group(config: GroupsConfig, threshold: float, out: str, options: RunOptions) -> StageResult:
    """Runs the pipeline and writes the folder's parts; rows are the pictures of groups."""
    beam_options = stages.pipeline_options(options.beam)
    assert config.train is not None
    files = tables.part_files(config.train, EMBEDDINGS)
    blocks = [
        (number, start, rows)
        for number, whole in enumerate(files)
        for _, start, rows in vectors.plan_blocks([whole], config.block_rows)
    ]
    total = tables.count_rows(files)

    def build(pipeline: beam.Pipeline) -> None:
        (
            pipeline
            | "Blocks" >> beam.Create(blocks, reshuffle=True)
            | "Compare" >> beam.ParDo(LinkBlocks(files, threshold, config.threads)).with_output_types(Any)
            | "Merge" >> beam.CombineGlobally(MergeLinks())
            | "Rows" >> beam.Map(_named, files=files).with_output_types(Any)
            | "Write" >> stages.WriteTables(out, GROUPS, key="pair_id", order=("pair_id",), partitions=1)
        )

    with Progress(STAGE, total=total, unit="training pictures", quiet=options.quiet):
        stages.run_pipeline(build, beam_options)
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
        extra={
            "threshold": threshold,
            "train_rows": total,
            "groups": rows - len(dropped),
            "to_drop": len(dropped),
        },
    )


def link(first: np.ndarray, second: np.ndarray | None, threshold: float) -> Links:
    """A spanning forest over the pairs of two blocks that are similar enough.

    Args:
        first: float32 [N, d].
        second: float32 [M, d], or ``None`` to compare the first block with itself.
        threshold: Least similarity of a pair.

    Returns:
        Links of rows of the first block, and from N onwards of the second.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, columns, likeness = nearest.near(first, second, threshold)
    if not len(rows):
        return Links.none()
    if second is not None:
        columns += len(first)
    size = len(first) + (0 if second is None else len(second))
    ends = (rows.astype(np.int32), columns.astype(np.int32))
    graph = coo_matrix((np.ones(len(rows), np.int8), ends), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    best = np.full(size, _NONE, np.float32)
    np.maximum.at(best, rows, likeness)
    np.maximum.at(best, columns, likeness)
    linked = np.flatnonzero(best > _NONE)
    smallest = np.full(component.max() + 1, size)
    np.minimum.at(smallest, component[linked], linked)
    return Links(row=linked, to=smallest[component[linked]], similarity=best[linked])


def link_equals(values: np.ndarray, threshold: float) -> tuple[np.ndarray, Links]:
    """The first row of each distinct vector, and the links of all other rows to them.

    Args:
        values: float32 [N, d].
        threshold: Least similarity of a pair.
    """
    group = nearest.equal_rows(values)
    _, first = np.unique(group, return_index=True)
    rows = np.flatnonzero(np.bincount(group)[group] > 1)
    own = nearest.lengths(values[rows])
    rows, own = rows[own >= np.float32(threshold)], own[own >= np.float32(threshold)]
    return first, Links(row=rows, to=first[group[rows]], similarity=own)


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

    def process(self, block: Block) -> Iterator[Links]:
        """Yields the links of one block."""
        number, start, rows = block
        read = vectors.read_block(self.files[number], start, rows, rows)
        values = np.concatenate([part for _, part in read])
        places = (number << _ROW) + start + np.arange(rows)
        first, equals = link_equals(values, self.threshold)
        held, found = [equals.at(places)], 0
        with working(STAGE, f"{self.files[number]} {start}"):
            for links in self._tiles(values[first], places[first], number, start + rows):
                held.append(links)
                found += len(links.row)
                if found > 8 * rows:  # what is held stays in proportion to the block
                    held, found = [joined(held)], 0
            tick(rows)
        counters.count(STAGE, "compared", rows)
        yield joined(held)

    def _tiles(self, values: np.ndarray, places: np.ndarray, number: int, end: int) -> Iterator[Links]:
        for i in range(0, len(values), _TILE):
            tile, at = values[i : i + _TILE], places[i : i + _TILE]
            yield link(tile, None, self.threshold).at(at)
            for j in range(i + _TILE, len(values), _TILE):
                both = np.concatenate([at, places[j : j + _TILE]])
                yield link(tile, values[j : j + _TILE], self.threshold).at(both)
        for others, where in self._after(number, end, values.shape[1]):
            first, _ = link_equals(others, self.threshold)  # their own links come with their own block
            for i in range(0, len(values), _TILE):
                for j in range(0, len(first), _TILE):
                    chosen = first[j : j + _TILE]
                    both = np.concatenate([places[i : i + _TILE], where[chosen]])
                    yield link(values[i : i + _TILE], others[chosen], self.threshold).at(both)

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
                yield found, (later << _ROW) + place - len(found) + np.arange(len(found))


def joined(parts: Sequence[Links]) -> Links:
    """Merges links: each row once, pointing at the smallest row of its group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows, to = (np.concatenate([getattr(p, n) for p in parts]) for n in ("row", "to"))
    similarity = np.concatenate([p.similarity for p in parts])
    names, at = np.unique(np.concatenate([rows, to]), return_inverse=True)
    count = len(rows)
    if not count:
        return Links(row=rows.astype(np.int64), to=to.astype(np.int64), similarity=similarity)
    graph = coo_matrix((np.ones(count, np.int8), (at[:count], at[count:])), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    best = np.full(len(names), _NONE, np.float32)
    np.maximum.at(best, at[:count], similarity)
    # Names rise, so a component's first name is its smallest.
    _, first = np.unique(component, return_index=True)
    return Links(row=names, to=names[first][component], similarity=best)


class MergeLinks(beam.CombineFn):
    """Merges links of several blocks; associative and commutative."""

    def __init__(self) -> None:
        """Nothing to set."""

    def create_accumulator(self, *_: Any, **__: Any) -> list[Links]:
        """Nothing seen yet."""
        return []

    def add_input(self, mutable_accumulator: list[Links], element: Links, *_: Any, **__: Any) -> list[Links]:
        """Takes one block's links in."""
        return [joined([*mutable_accumulator, element])]

    def merge_accumulators(self, accumulators: Iterable[list[Links]], *_: Any, **__: Any) -> list[Links]:
        """Merges what several workers saw."""
        parts = [part for accumulator in accumulators for part in accumulator]
        return [joined(parts)] if parts else []

    def extract_output(self, accumulator: list[Links], *_: Any, **__: Any) -> Links | None:
        """The groups over all blocks; ``None`` if there was no block."""
        return accumulator[0] if accumulator else None


def _named(found: Links | None, files: Sequence[str]) -> pa.Table:
    """Rows of ``groups/1``: a group is called by its smallest id, which is the one to keep."""
    if found is None or not len(found.row):
        return GROUPS.empty()
    ids: list[str] = []
    place = 0
    for number, file in enumerate(files):
        start = number << _ROW
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
