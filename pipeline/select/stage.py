"""The select stage: filter and match, decide, write sorted pairs; each row is read twice and held by nobody.

The first pipeline filters, and decides over packed rows (:mod:`pipeline.select.passes`); the second writes. Between
them the matched rows lie in a hidden folder of the output, which is removed at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.pvalue import TaggedOutput

from pipeline.core import counters, manifest, paths, tables
from pipeline.core.beam import WriteTables, WriteTotal, engine, finish_parts, pipeline_options, run_pipeline
from pipeline.core.contracts import CANDIDATES, DROPPED, PAIRS, QUERIES, QUERY_COUNTS
from pipeline.core.errors import ContractError, InputError, StageFailedError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress, tick
from pipeline.core.stage import RunOptions, StageResult, run_stage
from pipeline.core.worklog import working
from pipeline.select.choice import Outcome
from pipeline.select.config import SelectConfig
from pipeline.select.decide import HASHES, packed, united
from pipeline.select.filter import MATCHED, STAGE, filter_and_match, load_tools, store_matcher
from pipeline.select.kept import KINDS, Part, Sorted, Work
from pipeline.select.passes import FATES, Layout, decide, forget
from pipeline.text.language import described
from pipeline.text.safety import read_deny_list

COUNTS: Final = "query-counts.parquet"
RESERVE: Final = "reserve"
WORK: Final = ".work"
MATCHER: Final = "matcher"
BATCH_ROWS: Final = 8_192
PART_ROWS: Final = 500_000
PACKED_ROWS: Final = 1_000_000
"""Candidates for each part of packed rows, of 48 bytes and their queries: what a worker decides over at once."""
GROUP_ROWS: Final = 2**18
"""Candidates whose fates are read at once."""
ROWS: Final = "rows"
COMPARED: Final = [*HASHES, "query_ids"]


@dataclass(frozen=True, slots=True)
class CandidateFile:
    """A file of candidates.

    Attributes:
        path: The file.
        number: Its place among the files.
        first: The number of its first row group among those of all files.
        rows: Rows of each of its row groups.
    """

    path: str
    number: int
    first: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of the candidates: where it lies, its number among all, and a name for log lines."""

    path: str
    group: int
    number: int
    name: str


def candidate_files(files: list[str]) -> list[CandidateFile]:
    """What is read, from the footers."""
    found: list[CandidateFile] = []
    first = 0
    for number, file in enumerate(files):
        with paths.open_input(file, decompress=False) as opened:
            footer = pq.ParquetFile(opened).metadata
        rows = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
        found.append(CandidateFile(file, number, first, rows))
        first += len(rows)
    return found


def row_groups(file: CandidateFile) -> list[RowGroup]:
    """What the workers read, one element each."""
    return [
        RowGroup(file.path, group, file.first + group, f"{file.number:05d}-{group:05d}")
        for group in range(len(file.rows))
    ]


def read_group(group: RowGroup) -> Iterator[pa.RecordBatch]:
    """The rows of a row group.

    Raises:
        InputError: The file is damaged.
    """
    with paths.open_input(group.path, decompress=False) as opened:
        try:
            reader, columns = pq.ParquetFile(opened), CANDIDATES.schema.names
            yield from reader.iter_batches(BATCH_ROWS, row_groups=[group.group], columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise InputError("damaged Parquet file", where=group.path, found=str(error)) from error


def layout_of(files: list[CandidateFile], queries: int) -> Layout:
    """How many parts so many candidates need."""
    rows = [count for file in files for count in file.rows]
    return Layout(
        parts=1 + sum(rows) // PACKED_ROWS,
        sources=len(rows),
        files=max(1, GROUP_ROWS // max(1, max(rows, default=1))),
        queries=queries,
    )


class FilterAndMatch(beam.DoFn):
    """Row groups to packed rows; matched and dropped rows go to files of the row group's number.

    Args:
        config: The stage's configuration.
        queries: Parts of the query list.
        identity: Hash of the query list's manifest.
        work: Where to write.
    """

    def __init__(self, config: SelectConfig, queries: tuple[str, ...], identity: str, work: Work) -> None:
        self._config, self._queries, self._identity, self._work = config, queries, identity, work

    def setup(self) -> None:
        """Maps the matcher, once per process."""
        stored = self._work.at(MATCHER)
        self._tools = load_tools(self._queries, self._identity, self._config, stored)

    def process(self, element: RowGroup) -> Sorted:
        """Filters one row group; a retried element writes the same files again."""
        offered, found = 0, [MATCHED.empty_table().select(COMPARED)]
        with (
            paths.open_atomic(self._work.matched(element.number)) as matched_file,
            paths.open_atomic(self._work.lost(element.number)) as lost_file,
            pq.ParquetWriter(matched_file, MATCHED, compression="lz4") as matched_writer,
            pq.ParquetWriter(lost_file, DROPPED.schema, compression="lz4") as lost_writer,
            working(STAGE, element.name),
        ):
            for batch in read_group(element):
                table = CANDIDATES.conform(pa.Table.from_batches([batch]))
                matched, dropped = filter_and_match(table, self._tools)
                matched_writer.write_table(matched)
                lost_writer.write_table(dropped.cast(DROPPED.schema))
                found.append(matched.select(COMPARED))
                counters.count_rows(STAGE, rows_in=batch.num_rows)
                counters.count(STAGE, "matched", matched.num_rows)
                counters.count_reasons(STAGE, Counter(dropped.column("reason").to_pylist()))
                offered += batch.num_rows
                tick(batch.num_rows)
        rows, doubled = united(packed(pa.concat_tables(found).combine_chunks(), element.number))
        yield TaggedOutput(ROWS, offered)
        yield TaggedOutput(FATES, doubled)
        yield rows


def select_rows(
    pipeline: beam.Pipeline, files: list[CandidateFile], filter_and_match: FilterAndMatch, total: str
) -> Any:
    """The first steps: packed rows, and fates of duplicates that lay together; counts what came in."""
    found = (
        pipeline
        | "Files" >> beam.Create(files, reshuffle=False)
        | "RowGroups" >> beam.FlatMap(row_groups)
        | "Share" >> beam.Reshuffle()
        | "Filter" >> beam.ParDo(filter_and_match).with_outputs(FATES, ROWS, main="packed")
    )
    _ = found[ROWS] | "Total" >> WriteTotal(total)
    return found


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows to write; ``reserve`` is ``None`` where none is kept."""

    pairs: int
    dropped: int
    reserve: int | None


def parts_for(rows: int) -> int:
    """Into how many files rows are written."""
    return 1 + rows // PART_ROWS


def write_rows(pipeline: beam.Pipeline, folder: str, work: Work, layout: Layout, counts: Counts) -> None:
    """The last steps: pairs, reserve and dropped rows in as many parts as they need."""
    found = (
        pipeline
        | "Groups" >> beam.Create(layout.groups, reshuffle=False)
        | "Share" >> beam.Reshuffle()
        | "Part" >> beam.ParDo(Part(work, layout.files, layout.sources)).with_outputs(*KINDS, main="pairs")
    )
    _ = found.pairs | "Pairs" >> _pairs(folder, counts.pairs)
    if counts.reserve is not None:
        _ = found["reserve"] | "Reserve" >> _pairs(paths.join(folder, RESERVE), counts.reserve)
    _ = found["dropped"] | "Dropped" >> WriteTables(
        paths.join(folder, "dropped"),
        DROPPED,
        key="id",
        order=("reason", "id", "detail"),
        partitions=parts_for(counts.dropped),
    )


def _pairs(folder: str, rows: int) -> WriteTables:
    return WriteTables(folder, PAIRS, key="pair_id", order=("pair_id",), partitions=parts_for(rows))


def finish(folder: str, counts: Counts) -> None:
    """Writes parts of no rows where there are none, and looks whether all that was chosen was written.

    Raises:
        StageFailedError: It was not.
    """
    finish_parts(paths.join(folder, "dropped"), DROPPED)
    kept = {folder: counts.pairs}
    if counts.reserve is not None:
        kept[paths.join(folder, RESERVE)] = counts.reserve
    for where, wanted in kept.items():
        if (found := finish_parts(where, PAIRS)) != wanted:
            raise StageFailedError(
                f"{STAGE}: rows that were chosen were not written",
                where=where,
                expected=f"{wanted:,}",
                found=f"{found:,}",
                hint="this is a defect of the stage: please report it",
            )


def run(config: SelectConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs ``wit select``; see :func:`pipeline.core.stage.run_stage`."""
    beam_options = pipeline_options(options.beam)
    candidates, queries = str(config.candidates), str(config.queries)
    parts = tables.part_files(candidates, CANDIDATES)
    query_parts = tuple(tables.part_files(queries, QUERIES))
    identity = manifest.read(queries).sha256
    denied = [config.blocked_hosts] if config.blocked_hosts else []
    for path in denied:
        read_deny_list(path)  # a line that cannot be read is told before any work is done

    def body(folder: str) -> StageResult:
        work = Work(paths.join(folder, WORK))
        total = work.at("total")
        files = candidate_files(parts)
        layout = layout_of(files, query_count(query_parts))
        store_matcher(query_parts, config, work.at(MATCHER))

        def first(pipeline: beam.Pipeline) -> None:
            found = select_rows(pipeline, files, FilterAndMatch(config, query_parts, identity, work), total)
            decide(found.packed, found[FATES], work, config, layout)

        def last(pipeline: beam.Pipeline) -> None:
            write_rows(pipeline, folder, work, layout, counts)

        offered = sum(sum(file.rows) for file in files)
        with Progress("select", total=offered, unit="candidates", quiet=options.quiet):
            run_pipeline(first, beam_options)
        rows_in, outcome = int(paths.read_bytes(total)), Outcome.read(work.outcome)
        forget(work)
        rows = int(outcome.selected.sum())
        counts = Counts(rows, rows_in - rows, outcome.reserved if config.reserve else None)
        with Progress("write", total=rows_in, unit="candidates", quiet=options.quiet):
            run_pipeline(last, beam_options)
        finish(folder, counts)
        write_counts(folder, outcome)
        paths.remove_leftover(work.folder)
        return StageResult(
            rows=rows,
            rows_in=rows_in,
            engine=engine(beam_options),
            extra={
                "language": described(config.language),
                "queries_matched": int((outcome.matched > 0).sum()),
                "queries_capped": int(outcome.capped.sum()),
                **({"reserve_rows": outcome.reserved} if config.reserve else {}),
            },
        )

    return run_stage(
        body,
        stage=STAGE,
        contract=PAIRS.id,
        config=config,
        inputs=[candidates, queries, *denied],
        out=out,
        options=options,
        owned=(COUNTS, f"{RESERVE}/part-*.parquet", f"{RESERVE}/.*.tmp", f"{WORK}/*"),
    )


def query_count(files: tuple[str, ...]) -> int:
    """How many queries a list has.

    Raises:
        ContractError: Its ids are not 0…n-1.
    """
    ids = tables.read_files(files, columns=["query_id"]).column("query_id").to_numpy()
    if not np.array_equal(np.sort(ids), np.arange(len(ids))):
        raise ContractError(
            "query_id is not dense", where=files[0], expected=f"each of 0 to {len(ids) - 1} once"
        )
    return len(ids)


def write_counts(folder: str, outcome: Outcome) -> None:
    """Writes ``query-counts.parquet``: one row per query, also for those that no text contains."""
    columns: dict[str, Any] = {
        "query_id": np.arange(len(outcome.matched), dtype=np.int32),
        "matched": outcome.matched,
        "selected": outcome.selected,
    }
    tables.write_table(
        paths.join(folder, COUNTS), pa.table(columns, schema=QUERY_COUNTS.schema), QUERY_COUNTS
    )
