"""The select stage: filter and match in Beam, balance on packed arrays, write sorted pairs.

Between the passes the matched rows lie in a hidden folder of the output, which is removed at the end.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import counters, manifest, paths, tables
from pipeline.core.beam import WriteTotal, engine, pipeline_options, run_pipeline
from pipeline.core.contracts import CANDIDATES, DROPPED, PAIRS, QUERIES, QUERY_COUNTS
from pipeline.core.errors import ContractError, InputError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress, tick
from pipeline.core.stage import RunOptions, StageResult, run_stage
from pipeline.core.worklog import working
from pipeline.select.balance import Balanced
from pipeline.select.config import SelectConfig
from pipeline.select.decide import FATES, Decision, decide, pack
from pipeline.select.filter import MATCHED, STAGE, filter_and_match, load_tools, store_matcher
from pipeline.select.parts import SortedParts
from pipeline.text.language import described
from pipeline.text.safety import read_deny_list

COUNTS: Final = "query-counts.parquet"
RESERVE: Final = "reserve"
WORK: Final = ".work"
BUCKETS: Final = "buckets"
MATCHER: Final = "matcher"
BATCH_ROWS: Final = 8_192
PART_ROWS: Final = 500_000


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of the candidates, and the name of what is made of it."""

    path: str
    group: int
    name: str


def row_groups(files: list[str]) -> list[RowGroup]:
    """What the workers read, one element each."""
    found = []
    for number, file in enumerate(files):
        with paths.open_input(file, decompress=False) as opened:
            groups = pq.ParquetFile(opened).num_row_groups
        found += [RowGroup(file, g, f"{number:05d}-{g:05d}.parquet") for g in range(groups)]
    return found


class FilterAndMatch(beam.DoFn):
    """Row groups to their number of rows; matched and dropped rows go to files named after the row group.

    Args:
        config: The stage's configuration.
        queries: Parts of the query list.
        identity: Hash of the query list's manifest.
        work: Folder to write to.
    """

    def __init__(self, config: SelectConfig, queries: tuple[str, ...], identity: str, work: str) -> None:
        self._config, self._queries, self._identity, self._work = config, queries, identity, work

    def setup(self) -> None:
        """Maps the matcher, once per process."""
        stored = paths.join(self._work, MATCHER)
        self._tools = load_tools(self._queries, self._identity, self._config, stored)

    def process(self, element: RowGroup) -> Iterator[int]:
        """Filters one row group; a retried element writes the same files again."""
        rows = 0
        with (
            paths.open_atomic(paths.join(self._work, "matched", element.name)) as matched_file,
            paths.open_atomic(paths.join(self._work, "lost", element.name)) as lost_file,
            pq.ParquetWriter(matched_file, MATCHED, compression="lz4") as matched_writer,
            pq.ParquetWriter(lost_file, DROPPED.schema, compression="lz4") as lost_writer,
            paths.open_input(element.path, decompress=False) as opened,
            working(STAGE, element.name),
        ):
            reader = pq.ParquetFile(opened)
            columns = CANDIDATES.schema.names
            try:
                for batch in reader.iter_batches(BATCH_ROWS, row_groups=[element.group], columns=columns):
                    table = CANDIDATES.conform(pa.Table.from_batches([batch]))
                    matched, dropped = filter_and_match(table, self._tools)
                    matched_writer.write_table(matched)
                    lost_writer.write_table(dropped.cast(DROPPED.schema))
                    counters.count_rows(STAGE, rows_in=batch.num_rows)
                    counters.count(STAGE, "matched", matched.num_rows)
                    counters.count_reasons(STAGE, Counter(dropped.column("reason").to_pylist()))
                    rows += batch.num_rows
                    tick(batch.num_rows)
            except (pa.ArrowException, OSError) as error:
                raise InputError("damaged Parquet file", where=element.path, found=str(error)) from error
        yield rows


def write_pairs(folder: str, files: list[str], lost: list[str], decision: Decision) -> tuple[int, int]:
    """Writes kept rows as sorted ``pairs/1`` parts, the reserve beside them, and all but the pairs to ``dropped/``.

    Returns:
        How many pairs there are, and how many rows in reserve.
    """
    work, fate, reserved = paths.join(folder, WORK, BUCKETS), decision.fate, decision.reserve
    lost_rows = int((fate < 0).sum()) + tables.count_rows(lost)
    dropped = SortedParts(
        paths.join(folder, "dropped"), work, DROPPED,
        key="id", order=("reason", "id", "detail"), parts=1 + lost_rows // PART_ROWS,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        pairs = stack.enter_context(_pairs(folder, work, fate))
        reserve = (
            None
            if reserved is None
            else stack.enter_context(_pairs(paths.join(folder, RESERVE), paths.join(work, RESERVE), reserved))
        )
        stack.enter_context(dropped)
        for batch in tables.read_batches(lost):
            dropped.add(pa.Table.from_batches([batch]))
        start = 0
        for batch in tables.read_batches(files):
            here = fate[start : start + batch.num_rows]
            table = pa.Table.from_batches([batch])
            _add(pairs, table, here)
            if reserve is not None and reserved is not None:
                _add(reserve, table, reserved[start : start + batch.num_rows])
            start += batch.num_rows
            rest = np.flatnonzero(here < 0)
            ids = table.column("pair_id").take(pa.array(rest)).to_pylist()
            texts = table.column("text").take(pa.array(rest)).to_pylist()
            reasons = [FATES[int(f)] for f in here[rest]]
            dropped.add(tables.dropped_table(STAGE, zip(reasons, ids, texts, strict=True)))
            tick(batch.num_rows)
    return pairs.rows, 0 if reserve is None else reserve.rows


def _pairs(folder: str, work: str, fate: np.ndarray) -> SortedParts:
    parts = 1 + int((fate >= 0).sum()) // PART_ROWS
    return SortedParts(folder, work, PAIRS, key="pair_id", order=("pair_id",), parts=parts)


def _add(pairs: SortedParts, table: pa.Table, query_ids: np.ndarray) -> None:
    """Adds the rows that count for a query."""
    keep = np.flatnonzero(query_ids >= 0)
    named = table.take(pa.array(keep)).append_column("query_id", pa.array(query_ids[keep], pa.int32()))
    pairs.add(named.select(PAIRS.schema.names))


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
        work = paths.join(folder, WORK)
        total = paths.join(work, "total")
        for name in ("matched", "lost"):
            paths.make_folder(paths.join(work, name))
        n_queries = query_count(query_parts)
        store_matcher(query_parts, config, paths.join(work, MATCHER))

        def build(pipeline: beam.Pipeline) -> None:
            _ = (
                pipeline
                | "RowGroups" >> beam.Create(row_groups(parts), reshuffle=False)
                | "Share" >> beam.Reshuffle()
                | "Filter"
                >> beam.ParDo(FilterAndMatch(config, query_parts, identity, work)).with_output_types(int)
                | "Total" >> WriteTotal(total)
            )

        with Progress("select", total=tables.count_rows(parts), unit="candidates", quiet=options.quiet):
            run_pipeline(build, beam_options)
        # It stays until the end, so that one sees from outside that the filter is done.
        rows_in = int(paths.read_bytes(total))
        matched = _files(paths.join(work, "matched"))
        with Progress("balance", unit="pairs", quiet=options.quiet):
            decision = decide(pack(matched), config, n_queries)
            rows, reserved = write_pairs(folder, matched, _files(paths.join(work, "lost")), decision)
        balanced = decision.balanced
        write_counts(folder, balanced)
        paths.remove_leftover(work)
        return StageResult(
            rows=rows,
            rows_in=rows_in,
            engine=engine(beam_options),
            extra={
                "language": described(config.language),
                "queries_matched": int((balanced.matched > 0).sum()),
                "queries_capped": int(balanced.capped.sum()),
                **({"reserve_rows": reserved} if config.reserve else {}),
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
        owned=(COUNTS, f"{RESERVE}/part-*.parquet", f"{WORK}/*"),
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


def write_counts(folder: str, balanced: Balanced) -> None:
    """Writes ``query-counts.parquet``: one row per query, also for those that no text contains."""
    columns: dict[str, Any] = {
        "query_id": np.arange(len(balanced.matched), dtype=np.int32),
        "matched": balanced.matched,
        "selected": balanced.selected,
    }
    tables.write_table(
        paths.join(folder, COUNTS), pa.table(columns, schema=QUERY_COUNTS.schema), QUERY_COUNTS
    )


def _files(folder: str) -> list[str]:
    # Listed by hand: `paths.list_files` leaves out what lies below a hidden folder's name.
    fs, root = paths.filesystem(folder)
    names = sorted(name.rsplit("/", 1)[-1] for name in fs.find(root))
    # What a killed worker was writing has a hidden name; the attempt after it wrote the file whole.
    return [paths.join(folder, name) for name in names if not name.startswith(".")]
