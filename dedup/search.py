"""``wit dedup search``: each evaluation picture's nearest training pictures, exactly (``neighbours/1``).

The small side, the evaluation sets, stays in memory; the large side, the training set, streams past it in blocks,
each compared with all evaluation pictures by FAISS's flat inner product. Partial results are merged by similarity
and then by id, which is associative: how the training set is cut into parts leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.config import SearchConfig
from pipeline.core import beam as stages
from pipeline.core import manifest, tables
from pipeline.core.contracts import EMBEDDINGS, NEIGHBOURS
from pipeline.core.errors import ContractError, InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress, tick
from pipeline.core.stage import RunOptions, StageResult, run_stage

STAGE = "dedup search"
# Blocks of another shape may change a similarity's last bits; below this, order is decided by id.
DECIMALS = 5
EVAL_ROWS_PER_SLICE = 65_536
# Carried along from the evaluation side, as ``eval_label`` and so on, for the report.
FACTS = pa.schema(
    [("label", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("spread", pa.float32())]
)


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Embeddings in memory.

    Attributes:
        datasets: Name of the data set of each row.
        ids: Id of each row.
        values: float32 [N, d], rows of length 1.
    """

    datasets: tuple[str, ...]
    ids: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The k nearest training pictures of some evaluation pictures, best first.

    Attributes:
        similarity: float32 [N, at most k].
        ids: Training ids, objects [N, at most k].
    """

    similarity: np.ndarray
    ids: np.ndarray


def run(config: SearchConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs the command; see :func:`pipeline.core.stage.run_stage`."""
    if config.train is None or not config.eval:
        raise UsageError("search needs both sides", expected="--train DIR --eval DIR…")
    train, evals = config.train, config.eval
    extra = common_extra([train, *evals])

    def body(folder: str) -> StageResult:
        return search(config, extra, folder, options)

    return run_stage(
        body,
        stage=STAGE,
        contract=NEIGHBOURS.id,
        config=config,
        inputs=[train, *evals],
        out=out,
        options=options,
    )


def common_extra(folders: Sequence[str]) -> dict[str, Any]:
    """The detector's entries of some embeddings' manifests, which must agree where they are given.

    Raises:
        ContractError: Two folders were made by different detectors or have different dimensions.
    """
    found: dict[str, Any] = {}
    names = {"detector_sha256": "detectors", "dimension": "dimensions"}
    for folder in folders:
        extra = manifest.read(folder, made_by=EMBEDDINGS.made_by).extra
        for key in ("detector_sha256", "dimension", "threshold"):
            value = extra.get(key)
            if value is not None and found.setdefault(key, value) != value and key in names:
                raise ContractError(
                    f"embeddings of different {names[key]} cannot be compared",
                    where=folder,
                    expected=found[key],
                    found=value,
                    hint=f"make both sides with the same `{EMBEDDINGS.made_by} --detector`",
                )
    return found


def search(config: SearchConfig, extra: dict[str, Any], out: str, options: RunOptions) -> StageResult:
    """Runs the pipeline and writes the folder's parts."""
    beam_options = stages.pipeline_options(options.beam)
    assert config.train is not None
    eval_files = [f for folder in config.eval for f in tables.part_files(folder, EMBEDDINGS)]
    train_files = tables.part_files(config.train, EMBEDDINGS)
    small = read_vectors(eval_files)
    _check_unique(small)
    train_rows = tables.count_rows(train_files)
    blocks = plan_blocks(train_files, config.block_rows)

    def build(pipeline: beam.Pipeline) -> None:
        (
            pipeline
            | "Blocks" >> beam.Create(blocks, reshuffle=True)
            | "Compare"
            >> beam.ParDo(CompareBlocks(eval_files, config.k, config.threads)).with_output_types(
                tuple[int, Any]
            )
            | "Merge" >> beam.CombinePerKey(MergeNearest(config.k))
            | "Rows" >> beam.Map(_slice_table, eval_files=eval_files).with_output_types(Any)
            | "Write"
            >> stages.WriteTables(
                out, NEIGHBOURS, key="eval_id", order=("eval_dataset", "eval_id", "rank"), partitions=1
            )
        )

    with Progress(STAGE, total=train_rows, unit="training pictures", quiet=options.quiet):
        stages.run_pipeline(build, beam_options)
    return StageResult(
        rows=stages.finish_parts(out, NEIGHBOURS),
        rows_in=len(small.ids) * min(config.k, train_rows),
        engine=stages.engine(beam_options),
        extra={
            **extra,
            "k": config.k,
            "train_rows": train_rows,
            "eval_rows": {name: small.datasets.count(name) for name in sorted(set(small.datasets))},
        },
    )


def _check_unique(small: Vectors) -> None:
    seen: set[tuple[str, str]] = set()
    for pair in zip(small.datasets, small.ids, strict=True):
        if pair in seen:
            raise InputError(
                "an evaluation picture is there twice",
                where=f"{pair[0]}/{pair[1]}",
                hint="give each evaluation set once, under a name of its own (`wit dedup embed --dataset`)",
            )
        seen.add(pair)


def read_vectors(files: Iterable[str]) -> Vectors:
    """All embeddings of some files."""
    datasets: list[str] = []
    ids: list[str] = []
    values: list[np.ndarray] = []
    for file in files:
        for batch in tables.read_batches([file], columns=["id", "dataset", "embedding"]):
            datasets += batch.column("dataset").to_pylist()
            ids += batch.column("id").to_pylist()
            values.append(vectors(batch, where=file))
    held = [v for v in values if len(v)]
    for value in held:
        if value.shape[1] != held[0].shape[1]:
            raise _mixed(held[0].shape[1], value.shape[1], "the evaluation sets")
    joined = np.concatenate(held) if held else np.zeros((0, 0), np.float32)
    return Vectors(datasets=tuple(datasets), ids=tuple(ids), values=joined)


def vectors(batch: pa.RecordBatch, *, where: str) -> np.ndarray:
    """The ``embedding`` column as float32 [N, d].

    Raises:
        InputError: Rows of different length, values that are not numbers, or rows that are not of length 1.
    """
    column = batch.column("embedding")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if not len(column):
        return np.zeros((0, 0), np.float32)
    if column.null_count or len(flat) % len(column):
        raise InputError("embeddings of different dimensions in one file", where=where)
    if not pa.types.is_fixed_size_list(column.type):
        lengths = set(pc.list_value_length(column).to_pylist())
        if len(lengths) != 1:
            raise _mixed(min(lengths), max(lengths), where)
    found = flat.astype(np.float32, copy=False).reshape(len(column), -1)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise InputError(
            "an embedding holds NaN or infinity",
            where=f"{where}, id {batch.column('id')[row].as_py()!r}",
            hint=f"make the folder again with `{EMBEDDINGS.made_by}`",
        )
    off = np.abs(np.linalg.norm(found, axis=1) - 1)
    if off.max() > 1e-3:
        row = int(off.argmax())
        raise InputError(
            "an embedding is not L2-normalised",
            where=f"{where}, id {batch.column('id')[row].as_py()!r}",
            expected="length 1",
            found=f"{np.linalg.norm(found[row]):.4f}",
        )
    return found


def _mixed(first: object, second: object, where: str) -> InputError:
    return InputError(
        "embeddings of different dimensions",
        where=where,
        expected=first,
        found=second,
        hint=f"make both sides with the same `{EMBEDDINGS.made_by} --detector`",
    )


def plan_blocks(files: Sequence[str], block_rows: int) -> list[tuple[str, int, int]]:
    """(file, first row, rows) of each block of the training side."""
    return [
        (file, start, min(block_rows, rows - start))
        for file in files
        for rows in [tables.count_rows([file])]
        for start in range(0, rows, block_rows)
    ]


def nearest(queries: np.ndarray, base: np.ndarray, ids: Sequence[str], k: int) -> Nearest:
    """Each query's k nearest rows of a block by inner product, ties by id.

    Args:
        queries: float32 [N, d].
        base: float32 [M, d].
        ids: Ids of the M rows.
        k: Neighbours wanted; fewer come back if the block is smaller.
    """
    import faiss

    # In order of ids, a smaller place is a smaller id.
    order = np.argsort(np.array(ids, dtype=object), kind="stable")
    base, queries = np.ascontiguousarray(base[order]), np.ascontiguousarray(queries)
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base)
    similarity, places = index.search(queries, min(k + 1, len(ids)))
    similarity = np.round(similarity, DECIMALS)
    if len(ids) > k:
        # FAISS keeps any of several equal rows: where the cut falls among equals, all are compared again.
        torn = np.flatnonzero(similarity[:, k - 1] == similarity[:, k])
        if len(torn):
            places[torn], similarity[torn] = _nearest_of_equals(queries[torn], base, k + 1)
    found = np.array(ids, dtype=object)[order][places]
    return _best([Nearest(similarity=similarity, ids=found)], k)


def _nearest_of_equals(queries: np.ndarray, base: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows by rounded similarity, ties by place, where many rows may be the same vector.

    Each distinct vector is compared once; of its rows only the first k can be among a query's best.

    Returns:
        Places int64 [N, k] and similarities float32 [N, k].
    """
    group = equal_rows(base)
    by_group = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[by_group], prepend=-1))
    within = np.arange(len(base)) - np.repeat(starts, np.diff(np.append(starts, len(base))))
    kept = within < k
    members = np.full((len(starts), k), len(base), np.int64)
    members[group[by_group][kept], within[kept]] = by_group[kept]
    distinct = np.ascontiguousarray(base[members[:, 0]])
    places, values = [], []
    for start in range(0, len(queries), 256):
        every = np.round(queries[start : start + 256] @ distinct.T, DECIMALS)
        chosen = np.argsort(-every, axis=1, kind="stable")[:, :k]
        found = members[chosen].reshape(len(every), -1)
        value = np.repeat(np.take_along_axis(every, chosen, axis=1), k, axis=1)
        value[found == len(base)] = -np.inf
        best = np.lexsort((found, -value), axis=1)[:, :k]
        places.append(np.take_along_axis(found, best, axis=1))
        values.append(np.take_along_axis(value, best, axis=1))
    return np.concatenate(places), np.concatenate(values)


def equal_rows(values: np.ndarray) -> np.ndarray:
    """Numbers of groups of equal rows, by first appearance: float32 [N, d] -> int64 [N]."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odds = np.random.default_rng(0).integers(1, 2**62, size=(values.shape[1],), dtype=np.uint64)
    weights = 2 * odds + 1
    keys = np.zeros(len(values), np.uint64)
    for column in range(values.shape[1]):
        keys += bits[:, column] * weights[column]  # wraps around, as a hash may
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    # Two rows of one key that differ are no group: each of them stands alone.
    odd = np.flatnonzero((bits != bits[first[group]]).any(axis=1))
    group[odd] = len(first) + np.arange(len(odd))
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[group]


def _best(parts: Sequence[Nearest], k: int) -> Nearest:
    similarity = np.concatenate([p.similarity for p in parts], axis=1)
    ids = np.concatenate([p.ids for p in parts], axis=1)
    names, ranks = np.unique(ids, return_inverse=True)
    order = np.lexsort((ranks.reshape(ids.shape), -similarity), axis=1)[:, :k]
    rows = np.arange(len(similarity))[:, None]
    return Nearest(similarity=similarity[rows, order], ids=names[ranks.reshape(ids.shape)[rows, order]])


class MergeNearest(beam.CombineFn):
    """Merges partial neighbours of the same evaluation pictures; associative and commutative.

    Args:
        k: Neighbours kept.
    """

    def __init__(self, k: int) -> None:
        self.k = k

    def create_accumulator(self, *_: Any, **__: Any) -> list[Nearest]:
        """Nothing seen yet."""
        return []

    def add_input(
        self, mutable_accumulator: list[Nearest], element: Nearest, *_: Any, **__: Any
    ) -> list[Nearest]:
        """Takes one block's neighbours in."""
        return [_best([*mutable_accumulator, element], self.k)]

    def merge_accumulators(self, accumulators: Iterable[list[Nearest]], *_: Any, **__: Any) -> list[Nearest]:
        """Merges what several workers saw."""
        parts = [part for accumulator in accumulators for part in accumulator]
        return [_best(parts, self.k)] if parts else []

    def extract_output(self, accumulator: list[Nearest], *_: Any, **__: Any) -> Nearest:
        """The neighbours over all blocks."""
        return accumulator[0]


class CompareBlocks(beam.DoFn):
    """Compares blocks of the training set with all evaluation pictures, which each worker loads once.

    Args:
        eval_files: Files of the evaluation embeddings.
        k: Neighbours wanted.
        threads: Threads of the arithmetic.
    """

    def __init__(self, eval_files: Sequence[str], k: int, threads: int) -> None:
        self.eval_files, self.k, self.threads = list(eval_files), k, threads

    def setup(self) -> None:
        """Loads the evaluation side."""
        import faiss

        faiss.omp_set_num_threads(self.threads)
        self.small = read_vectors(self.eval_files)

    def process(self, block: tuple[str, int, int]) -> Iterator[tuple[int, Nearest]]:
        """Yields (slice of the evaluation side, neighbours in this block)."""
        file, start, rows = block
        ids, values = read_block(file, start, rows)
        queries = self.small.values
        if len(queries) and queries.shape[1] != values.shape[1]:
            raise _mixed(queries.shape[1], values.shape[1], file)
        for number, first in enumerate(range(0, len(queries), EVAL_ROWS_PER_SLICE)):
            part = queries[first : first + EVAL_ROWS_PER_SLICE]
            yield number, nearest(part, values, ids, self.k)
        tick(rows)


def read_block(file: str, start: int, rows: int) -> tuple[list[str], np.ndarray]:
    """Ids and embeddings of some rows of a file; memory is bounded by a batch more than the block."""
    ids: list[str] = []
    values: list[np.ndarray] = []
    place = 0
    for batch in tables.read_batches([file], columns=["id", "embedding"]):
        first, last = max(start - place, 0), min(start + rows - place, batch.num_rows)
        if first < last:
            wanted = batch.slice(first, last - first)
            ids += wanted.column("id").to_pylist()
            values.append(vectors(wanted, where=file))
        place += batch.num_rows
        if place >= start + rows:
            break
    if len({v.shape[1] for v in values}) > 1:
        raise _mixed(values[0].shape[1], values[-1].shape[1], file)
    return ids, np.concatenate(values)


def read_facts(files: Iterable[str]) -> pa.Table:
    """What is known of each row of some embeddings beside its vector, in their order; nulls where it is not."""
    held = []
    for file in files:
        columns = tables.read_schema(file).names
        found = tables.read_files([file], columns=[n for n in FACTS.names if n in columns])
        rows = tables.count_rows([file])
        held.append(
            pa.table(
                [
                    found.column(f.name).cast(f.type) if f.name in columns else pa.nulls(rows, f.type)
                    for f in FACTS
                ],
                schema=FACTS,
            )
        )
    return pa.concat_tables(held)


def _slice_table(item: tuple[int, Nearest], eval_files: Sequence[str]) -> pa.Table:
    number, found = item
    small = read_vectors(eval_files)
    first = number * EVAL_ROWS_PER_SLICE
    rows, k = found.similarity.shape
    chosen = slice(first, first + rows)
    facts = read_facts(eval_files).take(np.repeat(np.arange(first, first + rows), k))
    return pa.table(
        {
            "eval_dataset": np.repeat(np.array(small.datasets[chosen], dtype=object), k),
            "eval_id": np.repeat(np.array(small.ids[chosen], dtype=object), k),
            "rank": np.tile(np.arange(k, dtype=np.int16), rows),
            "pair_id": found.ids.reshape(-1),
            "similarity": found.similarity.reshape(-1),
            **{f"eval_{name}": facts.column(name) for name in FACTS.names},
        }
    )
