"""The candidates stage: files and row groups in, sorted ``candidates/1`` parts out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipeline.candidates.apart import PageReader
from pipeline.candidates.config import CandidatesConfig
from pipeline.candidates.found import DAMAGE, Lost, Pair
from pipeline.candidates.layouts import LAYOUTS, Layout, ScoreLimit, by_names
from pipeline.candidates.rows import SUFFIXES as TABLE_SUFFIXES
from pipeline.candidates.rows import TablePart, read_table, table_parts
from pipeline.candidates.saved import SavedPage, origins_of, read_saved, saved_pages
from pipeline.candidates.warc import read_warc
from pipeline.candidates.wat import read_wat
from pipeline.core import counters, paths, tables
from pipeline.core.beam import (
    WriteDropped,
    WriteTables,
    WriteTotal,
    engine,
    finish_parts,
    pipeline_options,
    read_total,
    run_pipeline,
)
from pipeline.core.contracts import CANDIDATES, pair_id
from pipeline.core.errors import InputError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress, tick
from pipeline.core.stage import RunOptions, StageResult, run_stage
from pipeline.core.worklog import working

STAGE = "candidates"
ORDER = ("pair_id", "page_url", "origin", "origin_offset", "text_source")
BATCH_ROWS = 8_192
PAGES_PER_SPLIT = 100
# Bytes of input per output part, so that the number of parts follows from the data and not from the machine. A worker
# sorts a part in memory: half a million rows of a compressed table, fewer of pages.
PART_BYTES = {"warc": 512 << 20, "wat": 128 << 20, "html": 512 << 20, "table": 32 << 20}
_ARCHIVES = {
    "warc": (".warc", ".warc.gz", ".warc.zst"),
    "wat": (".wat", ".wat.gz", ".warc.wat.gz", ".wat.zst"),
}
_TOTAL = ".total.tmp"


@dataclass(frozen=True, slots=True)
class Archive:
    """A WARC or WAT file."""

    path: str
    origin: str


Split = Archive | TablePart | tuple[SavedPage, ...]


def name_of(split: Split) -> str:
    """How a log line names a split."""
    return split[0].path if isinstance(split, tuple) else split.path


def splits(config: CandidatesConfig) -> list[Split]:
    """What the workers read, one element each: files, groups of saved pages, row groups of tables.

    Raises:
        InputError: An input is missing or not what its flag says.
    """
    if config.kind == "html":
        pages = saved_pages(config.html, config.base_url)
        return [tuple(pages[i : i + PAGES_PER_SPLIT]) for i in range(0, len(pages), PAGES_PER_SPLIT)]
    suffixes = _ARCHIVES.get(config.kind, TABLE_SUFFIXES)
    files = paths.expand(config.given, suffixes=suffixes, what=f"{config.kind} files")
    origins = origins_of(files)
    if config.kind == "table":
        parts = (table_parts(f, origins[f], table_layout(config)) for f in files)
        return [part for of_file in parts for part in of_file]
    return [Archive(file, origins[file]) for file in files]


def table_layout(config: CandidatesConfig) -> Layout:
    """Where the tables that are read keep their columns."""
    found = LAYOUTS[config.layout] if config.layout else by_names(config.url_column, config.text_column)
    return replace(found, scores=tuple(map(ScoreLimit.parse, config.score)))


def read_split(split: Split, config: CandidatesConfig, pages: PageReader) -> Iterator[Pair | Lost]:
    """Everything found in a split: pairs, and what was lost with its reason."""
    if isinstance(split, TablePart):
        yield from read_table(split, table_layout(config), max_text_chars=config.max_text_chars)
        return
    keep = config.opted_out == "keep"
    limits: dict[str, Any] = {
        "max_page_bytes": config.max_page_bytes,
        "max_text_chars": config.max_text_chars,
        "keep_opted_out": keep,
    }
    if config.kind == "wat" and isinstance(split, Archive):
        yield from read_wat(split.path, split.origin, **limits)
        return
    limits["nearest_chars"] = config.nearest_chars
    if isinstance(split, Archive):
        yield from read_warc(split.path, split.origin, pages, **limits)
        return
    for page in split:
        yield from read_saved(page, pages, **limits)


def table_of(pairs: Iterable[Pair]) -> pa.Table:
    """Pairs as a ``candidates/1`` table, ``pair_id`` filled in."""
    columns = dict(zip(Pair._fields, zip(*pairs, strict=True), strict=True))
    ids = [pair_id(url, text) for url, text in zip(columns["url"], columns["text"], strict=True)]
    return pa.table({"pair_id": ids, **columns}, schema=CANDIDATES.schema)


class Extract(beam.DoFn):
    """A split's pairs as tables, and tagged ``dropped`` tables and ``seen`` counts; memory is a batch's.

    Args:
        config: The stage's configuration.
    """

    def __init__(self, config: CandidatesConfig) -> None:
        self._config = config

    def setup(self) -> None:
        """Makes ready to read pages."""
        self._pages = PageReader()

    def teardown(self) -> None:
        """Ends the process that pages may be read in."""
        self._pages.close()

    def process(self, element: Split) -> Iterator[Any]:
        """Reads one split."""
        items = read_split(element, self._config, self._pages)
        with working(STAGE, name_of(element)):
            while batch := list(islice(items, BATCH_ROWS)):
                yield beam.pvalue.TaggedOutput("seen", len(batch))
                if pairs := [i for i in batch if isinstance(i, Pair)]:
                    yield table_of(pairs)
                if lost := [(i.reason, i.id, i.detail) for i in batch if isinstance(i, Lost)]:
                    yield beam.pvalue.TaggedOutput("dropped", tables.dropped_table(STAGE, lost))
                counters.count_rows(STAGE, rows_in=len(batch), rows_out=len(pairs))
                tick(len(batch))


@dataclass(eq=False)
class ExtractPairs(beam.PTransform[Any, Any]):
    """Splits to tables of pairs, with ``dropped`` tables and ``seen`` counts beside them.

    Args:
        config: The stage's configuration.
    """

    config: CandidatesConfig

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pcoll: beam.PCollection[Any]) -> Any:
        """Shares the splits out, then reads them."""
        return (
            pcoll
            | "Share" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(Extract(self.config))
            .with_output_types(Any)
            .with_outputs("dropped", "seen", main="pairs")
        )


def run(config: CandidatesConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs ``wit candidates``; see :func:`pipeline.core.stage.run_stage`."""
    beam_options = pipeline_options(options.beam)
    work = splits(config)

    def body(folder: str) -> StageResult:
        total = paths.join(folder, _TOTAL)
        parts = 1 + _input_bytes(work) // PART_BYTES[config.kind]

        def build(pipeline: beam.Pipeline) -> None:
            found = pipeline | "Splits" >> beam.Create(work, reshuffle=False) | ExtractPairs(config)
            _ = found.pairs | "Pairs" >> WriteTables(
                folder, CANDIDATES, key="pair_id", order=ORDER, partitions=parts
            )
            _ = found.dropped | "Dropped" >> WriteDropped(folder, parts)
            _ = found.seen | "Seen" >> WriteTotal(total)

        with Progress("candidates", unit="pairs", quiet=options.quiet):
            run_pipeline(build, beam_options)
        seen, rows = read_total(total), finish_parts(folder, CANDIDATES)
        dropped = tables.count_dropped(folder)
        if rows == 0 and seen and seen == dropped.get("parse_error", 0) + dropped.get("truncated", 0):
            raise InputError(
                f"nothing in the input can be read as {config.kind}",
                where=", ".join(config.given)[:300],
                found=f"{seen} damaged records",
                hint="see dropped/ in the output folder",
            )
        return StageResult(rows=rows, rows_in=seen, dropped=dropped, engine=engine(beam_options))

    return run_stage(
        body,
        stage=STAGE,
        contract=CANDIDATES.id,
        config=config,
        inputs=config.given,
        out=out,
        options=options,
        damage=(*DAMAGE, "relative_url") if config.kind == "table" else DAMAGE,
    )


def _input_bytes(work: Iterable[Split]) -> int:
    files = set()
    for split in work:
        files |= {page.path for page in split} if isinstance(split, tuple) else {split.path}
    return sum(paths.size(f) for f in files)
