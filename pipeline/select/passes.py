"""What workers do between the filter and the writing: duplicates, captions, rank, and one that chooses.

Rows meet those that they are compared with in parts: by hash of URL and text, by hash of the caption, by range of the
pair's keyed hash. A worker holds a part; how many there are follows from the number of candidates alone. The choice is
one element, because each pair's depends on those before it; it takes a part after the other
(:mod:`pipeline.select.choice`). All steps give the same for the same rows, in whatever order and however often an
engine runs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from pipeline.core import paths
from pipeline.core.spill import Chunk
from pipeline.core.worklog import working
from pipeline.select import choice
from pipeline.select.config import SelectConfig
from pipeline.select.decide import thinned, united
from pipeline.select.filter import STAGE
from pipeline.select.kept import Sorted, Work, write_fates
from pipeline.select.shuffle import ByHash, BySource, Gather, gathered, stretches

FATES = "fates"


@dataclass(frozen=True)
class Layout:
    """Into how many pieces a selection is cut; nothing of it is seen in the result.

    Attributes:
        parts: Of packed rows.
        sources: Row groups of the candidates.
        files: Row groups whose rows are written together.
        queries: Number of queries.
    """

    parts: int
    sources: int
    files: int
    queries: int

    @property
    def groups(self) -> list[int]:
        """Numbers of the groups of row groups."""
        return list(range(-(-self.sources // self.files)))


class Unite(beam.DoFn):
    """Parts by URL and text to what is left of them.

    Args:
        most: Images that may share a caption.
    """

    def __init__(self, most: int) -> None:
        self._most = most

    def process(self, element: tuple[int, Iterable[Chunk]]) -> Sorted:
        """Leaves one of each; thins out captions too, so that no caption fills a part of the next step."""
        with working(STAGE, f"unite {element[0]:06d}"):
            rows, doubled = united(gathered(element[1]))
            rows, repeated = thinned(rows, self._most)
        yield TaggedOutput(FATES, doubled)
        yield TaggedOutput(FATES, repeated)
        yield rows


class Thin(beam.DoFn):
    """Parts by caption to what is left of them.

    Args:
        most: Images that may share a caption.
    """

    def __init__(self, most: int) -> None:
        self._most = most

    def process(self, element: tuple[int, Iterable[Chunk]]) -> Sorted:
        """Leaves so many of each caption; from every part before this one as many may come, so not all are held."""
        left: list[pa.Table] = []
        with working(STAGE, f"captions {element[0]:06d}"):
            for more in stretches(element[1]):
                rows, repeated = thinned(pa.concat_tables([*left, more]), self._most)
                left = [rows]
                yield TaggedOutput(FATES, repeated)
        yield from left


def rank(element: tuple[int, Iterable[Chunk]], folder: str, queries: int) -> int:
    """Writes a part in the order of rank; a retried element writes the same files again."""
    part, chunks = element
    with working(STAGE, f"rank {part:06d}"):
        choice.write_ranked(folder, part, gathered(chunks), queries)
    return part


class Choose(beam.DoFn):
    """The numbers of all parts to fates; the outcome goes to a file.

    Args:
        folder: Where the parts are.
        outcome: The file.
        config: The selection.
        queries: Number of queries.
    """

    def __init__(self, folder: str, outcome: str, config: SelectConfig, queries: int) -> None:
        self._folder, self._outcome = folder, outcome
        self._config, self._queries = config, queries

    def process(self, element: list[int]) -> Iterator[pa.Table]:
        """Goes through the parts in their order."""
        with working(STAGE, "choose"):
            found = yield from choice.choose(self._folder, element, self._config, self._queries)
            found.write(self._outcome)


def keep_fates(element: tuple[int, Iterable[Chunk]], work: Work) -> None:
    """Writes what became of a group's rows."""
    write_fates(work.fates(element[0]), gathered(element[1]))


def decide(
    packed: beam.PCollection[Any],
    doubled: beam.PCollection[Any],
    work: Work,
    config: SelectConfig,
    layout: Layout,
) -> None:
    """From packed rows to the files of their fates.

    Args:
        packed: Tables of packed rows.
        doubled: Fates of those that were seen to be duplicates already.
        work: Where everything lies.
        config: The selection.
        layout: Numbers of parts.
    """
    most, parts, ranks = config.max_images_per_caption, layout.parts, work.at("ranked")
    united = (
        packed
        | "ByKey" >> Gather(work.at("by-key"), ByHash("key_high", parts))
        | "Unite" >> beam.ParDo(Unite(most)).with_outputs(FATES, main="rows")
    )
    thinned = (
        united.rows
        | "ByCaption" >> Gather(work.at("by-caption"), ByHash("caption_hash", parts))
        | "Thin" >> beam.ParDo(Thin(most)).with_outputs(FATES, main="rows")
    )
    chosen = (
        thinned.rows
        | "ByRank" >> Gather(work.at("by-rank"), ByHash("pair_hash", parts))
        | "Rank" >> beam.Map(rank, ranks, layout.queries).with_output_types(int)
        | "AllRanked" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        | "Choose" >> beam.ParDo(Choose(ranks, work.outcome, config, layout.queries))
    )
    _ = (
        (doubled, united[FATES], thinned[FATES], chosen)
        | "BySource" >> Gather(work.at("by-source"), BySource(layout.files))
        | "Fates" >> beam.Map(keep_fates, work)
    )


def forget(work: Work) -> None:
    """Removes what only :func:`decide` reads."""
    for name in ("by-key", "by-caption", "by-rank", "by-source", "ranked"):
        paths.remove_leftover(work.at(name))
