"""What every Beam stage stands on: options, the engine, and transforms that write contract tables.

Elements are Arrow tables, never rows: one Beam element costs microseconds to tens of microseconds. The local
engine is pinned to FnApiRunner, because Beam's plain DirectRunner becomes another engine (Prism) wherever it
finds a network to download it from.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor

from pipeline.core import counters, paths, tables
from pipeline.core.contracts import DROPPED, Contract
from pipeline.core.errors import StageFailedError, UsageError, WitError
from pipeline.core.spill import Chunk, Spill, read_chunks, split

LOCAL_RUNNER = "FnApiRunner"
# What an engine that places workers is asked for; a process of a stage takes up to 1.0 GB (docs/scale.md).
WORKER_RAM = "4GB"
# Rows on their way to a part wait here, below the output folder; run_stage clears what a killed run left.
SPILL_FOLDER = ".rows.tmp"


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's options from the words right of ``--``.

    Raises:
        UsageError: A word that Beam does not know (Beam itself only warns and goes on).
    """
    try:
        options = PipelineOptions(list(arguments))
        known = options.get_all_options()
        everything = options.get_all_options(retain_unknown_options=True)
    except SystemExit as error:  # argparse inside Beam exits on a malformed value
        raise UsageError("Beam does not accept these options", found=" ".join(arguments)) from error
    unknown = sorted(set(everything) - set(known))
    stray = [a for a in arguments if not a.startswith("-") and not _is_value(arguments, a)]
    if unknown or stray:
        raise UsageError(
            "options right of `--` that Beam does not know",
            found=", ".join([f"--{u}" for u in unknown] + stray),
            hint="see `PipelineOptions` in Beam's documentation; our own flags stand left of `--`",
        )
    standard = options.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        standard.runner = LOCAL_RUNNER
    elif standard.runner != LOCAL_RUNNER and not standard.resource_hints:
        standard.resource_hints = [f"min_ram={WORKER_RAM}"]
    setup = options.view_as(SetupOptions)
    if setup.save_main_session is None:  # Beam's own choice for Dataflow is to pickle the caller's session
        setup.save_main_session = False
    return options


def _is_value(arguments: Sequence[str], word: str) -> bool:
    index = list(arguments).index(word)
    return index > 0 and arguments[index - 1].startswith("-") and "=" not in arguments[index - 1]


def engine(options: PipelineOptions) -> str:
    """The runner's name, for manifests."""
    return str(options.view_as(StandardOptions).runner)


def run_pipeline(build: Callable[[beam.Pipeline], None], options: PipelineOptions) -> counters.Totals:
    """Builds and runs a pipeline to its end; returns its counters, which some engines lose.

    Raises:
        WitError: What one of our own functions raised inside a worker, unwrapped from Beam's.
        StageFailedError: The engine ended in another state than DONE.
    """
    pipeline = beam.Pipeline(options=options)
    build(pipeline)
    try:
        result = pipeline.run()
        state = result.wait_until_finish()
    except Exception as error:
        raise _own_error(error) from error
    if state is not None and str(state) != "DONE":
        raise StageFailedError(
            "the pipeline did not finish", where=engine(options), expected="DONE", found=state
        )
    _remove_spilled(pipeline)
    return counters.totals(result)


def _own_error(error: BaseException) -> BaseException:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, WitError):
            return seen
        seen = seen.__cause__ or seen.__context__
    # Beam re-raises with the worker's class but appends the step to the text; other engines give text only.
    return StageFailedError("a worker failed", found=told_reason(str(error))[:300], hint="run with --debug")


def told_reason(text: str) -> str:
    """The line of an engine's error text that says why: the end of Python's last traceback, or Java's first line."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    starts = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    if starts:
        ends = (line for line in lines[starts[-1] + 1 :] if not line[0].isspace())
        return next(ends, lines[-1])
    return lines[0] if any(line.startswith("\tat ") for line in lines) else lines[-1]


def partition_of(values: Iterable[str], partitions: int) -> np.ndarray:
    """Which part each key belongs to: a function of the key alone, equal on every machine and engine."""
    return np.fromiter((zlib.crc32(v.encode(errors="replace")) % partitions for v in values), dtype=np.int64)


def split_table(table: pa.Table, *, key: str, partitions: int) -> list[tuple[int, pa.Table]]:
    """Splits a table by the partition of one string column."""
    if table.num_rows == 0:
        return []
    if partitions == 1:
        return [(0, table)]
    return split(table, partition_of(table.column(key).to_pylist(), partitions))


def sorted_table(chunks: Iterable[pa.Table], order: Sequence[str]) -> pa.Table:
    """All chunks as one table in a total order, so that arrival order leaves no trace."""
    joined = pa.concat_tables(list(chunks))
    return joined.sort_by([(name, "ascending") for name in order]).combine_chunks()


def _conformed_parts(
    table: pa.Table, contract: Contract, key: str, partitions: int
) -> list[tuple[int, pa.Table]]:
    return split_table(contract.conform(table), key=key, partitions=partitions)


def _write_part(
    item: tuple[int, Iterable[Chunk]], folder: str, contract: Contract, order: Sequence[str]
) -> int:
    index, chunks = item
    table = sorted_table(read_chunks(chunks), order)
    return tables.write_table(paths.join(folder, tables.part_name(index)), table, contract)


@dataclass(eq=False)
class WriteTables(beam.PTransform[Any, Any]):
    """Writes tables as sorted ``part-*.parquet`` files; a part is a function of its rows alone.

    What goes through the engine's shuffle are names of files, as a local one keeps it in memory: rows wait in
    :data:`SPILL_FOLDER` of the folder, and a worker holds those of one part at a time.

    Args:
        folder: Output folder.
        contract: What the rows are.
        key: String column whose hash chooses a row's part.
        order: Columns that sort a part; together they must tell rows apart.
        partitions: Number of parts; must not depend on the number of workers.

    Returns a PCollection with the rows of each part.
    """

    folder: str
    contract: Contract
    key: str
    order: tuple[str, ...]
    partitions: int = 1

    def __post_init__(self) -> None:
        super().__init__()
        if self.partitions < 1:
            raise UsageError("WriteTables needs at least one partition", found=self.partitions)
        for name in (self.key, *self.order):
            if name not in self.contract.schema.names:
                raise UsageError(f"{self.contract.id} has no column {name!r} to sort or split by")

    def expand(self, pcoll: beam.PCollection[Any]) -> beam.PCollection[Any]:
        """Splits, spills, groups, sorts and writes; :func:`run_pipeline` removes what was spilled."""
        return (
            pcoll
            | "Split"
            >> beam.FlatMap(_conformed_parts, self.contract, self.key, self.partitions).with_output_types(
                tuple[int, Any]
            )
            | "Spill" >> beam.ParDo(Spill(self.spill_folder)).with_output_types(tuple[int, Chunk])
            | "ByPart" >> beam.GroupByKey()
            | "Write" >> beam.Map(_write_part, self.folder, self.contract, self.order).with_output_types(int)
        )

    @property
    def spill_folder(self) -> str:
        """Where rows wait for their part."""
        return paths.join(self.folder, SPILL_FOLDER)


class _SpillFolders(PipelineVisitor):
    def __init__(self) -> None:
        self.found: list[str] = []

    def enter_composite_transform(self, transform_node: AppliedPTransform) -> None:
        if isinstance(transform_node.transform, WriteTables):
            self.found.append(transform_node.transform.spill_folder)


def _remove_spilled(pipeline: beam.Pipeline) -> None:
    # Not a step of the pipeline: an engine may run a step again whose input such a step has removed.
    folders = _SpillFolders()
    pipeline.visit(folders)
    for folder in folders.found:
        paths.remove_leftover(folder)


@dataclass(eq=False)
class WriteDropped(beam.PTransform[Any, Any]):
    """Writes ``dropped`` tables (see :func:`pipeline.core.tables.dropped_table`) and counts ``stage/reason``.

    Args:
        folder: The stage's output folder; rows go to its ``dropped/``.
        partitions: Number of parts.
    """

    folder: str
    partitions: int = 1

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pcoll: beam.PCollection[Any]) -> beam.PCollection[Any]:
        """Counts, then writes as any other table."""
        return (
            pcoll
            | "Count" >> beam.Map(_count_reasons)
            | "Parts"
            >> WriteTables(
                paths.join(self.folder, "dropped"),
                DROPPED,
                key="id",
                order=("reason", "id", "detail"),
                partitions=self.partitions,
            )
        )


def _count_reasons(table: pa.Table) -> pa.Table:
    stages = table.column("stage").to_pylist()[:1]
    for entry in table.column("reason").combine_chunks().value_counts():
        counters.count(stages[0], entry["values"].as_py(), entry["counts"].as_py())
    return table


def _write_total(total: int, path: str) -> None:
    paths.write_bytes(path, f"{total}\n".encode())


@dataclass(eq=False)
class WriteTotal(beam.PTransform[Any, Any]):
    """Sums integers into a one-line file: exact on every engine, unlike metrics, which some lose.

    Args:
        path: File to write; read it back with :func:`read_total`.
    """

    path: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pcoll: beam.PCollection[Any]) -> beam.PCollection[Any]:
        """Sums globally and writes."""
        return pcoll | "Sum" >> beam.CombineGlobally(sum) | "Write" >> beam.Map(_write_total, self.path)


def read_total(path: str) -> int:
    """Reads and removes a file of :class:`WriteTotal`."""
    total = int(paths.read_bytes(path))
    paths.remove(path)
    return total


def finish_parts(folder: str, contract: Contract) -> int:
    """Rows of a folder's parts; writes an empty part if there is none, so that readers see the columns."""
    files = [
        f
        for f in paths.list_files(folder, suffixes=(".parquet",))
        if f.rsplit("/", 1)[0] == folder.rstrip("/")
    ]
    parts = [f for f in files if f.rsplit("/", 1)[1].startswith("part-")]
    if not parts:
        return tables.write_table(paths.join(folder, tables.part_name(0)), contract.empty(), contract)
    return tables.count_rows(parts)
