"""``wit dedup groups --index ivf``: pictures are compared within inverted lists only, and what that misses is measured.

k-means over a sample cuts the training set into lists. Each picture is at home in the list whose centroid is nearest,
and visits the ``probes`` nearest ones; two pictures are compared if one of them visits the other's home. Rows travel to
their lists in files, and a list longer than a block is compared block by block: memory is bounded by a block, but for
the centroids, which every worker holds, and the sample, which the process that makes them holds; both grow with the
root of N. A picture's lists depend on nothing but itself and the centroids: neither blocks nor workers leave a trace.
Some pictures are compared with all others too: how many of the near-duplicates among their 10 nearest end up in their
group is the index's recall.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from threadpoolctl import threadpool_limits

from dedup import lists, vectors
from dedup.config import GroupsConfig, SearchConfig
from dedup.linking import Links, gathered, link_equals, links_between, links_within, place_of
from dedup.nearest import Best
from dedup.search import CompareBlocks, MergeBest
from dedup.tiles import EMPTY, SCALE, Kept, Tiles
from pipeline.core import beam as stages
from pipeline.core import paths, tables
from pipeline.core.contracts import EMBEDDINGS
from pipeline.core.progress import tick
from pipeline.core.spill import Chunk, Spill, stream_chunks
from pipeline.core.worklog import working

STAGE = "dedup groups"
# Below the output folder while the stage works: sampled pictures, centroids, the exact neighbours of some.
FOLDER = "lists.tmp"
# Lists that a picture visits, unless told otherwise.
PROBES = 4
# Pictures for each list that k-means is trained on.
_PER_LIST = 32
# Pictures that are compared with all others, and how many neighbours of each count.
ASKED, NEAREST = 1024, 10
# Rows that look for their lists at once; rows that a part of the lists should have; and bytes of rows that are held
# until they are written: with many parts, smaller files would hold few rows of each.
_VISITING, PART_ROWS, HELD_BYTES = 8_192, 65_536, 64 << 20
_CENTROIDS, _ASKED, _EXACT = "centroids.npy", "asked.parquet", "exact.json"


def list_count(rows: int) -> int:
    """Lists for so many pictures: finding a picture's lists then costs about as much as comparing it in them."""
    return max(1, min(rows, round(2 * rows**0.5)))


def drawn(name: str) -> float:
    """A picture's place in the draw for the sample, in [0, 1): a function of its id."""
    digest = hashlib.sha256(f"groups\0{name}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def prepare(files: Sequence[str], rows: int, folder: str, threads: int, options: PipelineOptions) -> int:
    """Samples the training set and writes the centroids and the pictures that are asked; returns how many lists.

    Args:
        files: Files of the training set.
        rows: Its pictures, at least one.
        folder: Where it is written.
        threads: Threads of the arithmetic.
        options: Beam's.
    """
    share = _PER_LIST * list_count(rows) / rows
    spans = vectors.plan_blocks(files, 65_536)

    def build(pipeline: beam.Pipeline) -> None:
        (
            pipeline
            | "Spans" >> beam.Create(spans, reshuffle=True)
            | "Sample" >> beam.FlatMap(sampled, share=max(share, ASKED / rows)).with_output_types(Any)
            | "Write" >> stages.WriteTables(folder, EMBEDDINGS, key="id", order=("id",))
        )

    stages.run_pipeline(build, options)
    chosen = paths.list_files(folder, suffixes=(".parquet",))
    values = vectors.read_values(chosen, what="the training set")
    with threadpool_limits(threads, user_api="blas"):
        centroids = lists.centroids(values, min(list_count(rows), len(values)))
    del values  # the sample is read again below
    paths.write_bytes(paths.join(folder, _CENTROIDS), centroids.tobytes())
    ids = vectors.read_names(chosen).ids
    asked = np.argsort(np.array([drawn(name) for name in ids]), kind="stable")[:ASKED]
    table = tables.read_files(chosen).take(pa.array(asked))
    tables.write_table(paths.join(folder, _ASKED), table, EMBEDDINGS)
    return len(centroids)


def sampled(span: tuple[str, int, int], share: float) -> Iterator[pa.Table]:
    """Those pictures of a span (file, first row, rows) whose draw lies below a share."""
    with working(STAGE, span[0]):
        for ids, values in vectors.read_block(*span, _VISITING):
            chosen = np.flatnonzero([drawn(name) < share for name in ids])
            table = {
                "id": [ids[i] for i in chosen],
                "dataset": ["sample"] * len(chosen),
                "embedding": _list_array(values[chosen]),
            }
            tick(len(ids))
            yield pa.table(table)


def _list_array(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


@dataclass(eq=False)
class LinkWithinLists(beam.PTransform[Any, Any]):
    """The links of all pictures that meet in a list.

    Args:
        files: Files of the training set.
        rows: Its pictures.
        threshold: Least similarity of a pair.
        config: The command's configuration.
        out: The output folder, in which :func:`prepare` wrote into :data:`FOLDER`.
    """

    files: Sequence[str]
    rows: int
    threshold: float
    config: GroupsConfig
    out: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[Any]:
        """Sends rows to their lists and compares them there; `WriteTables` of the same folder clears what waited."""
        probes = self.config.probes or PROBES
        parts = max(1, min(list_count(self.rows), -(-self.rows * probes // PART_ROWS)))
        return (
            pipeline
            | "Spans" >> beam.Create(vectors.numbered_blocks(self.files, 65_536), reshuffle=True)
            | "Visit"
            >> beam.ParDo(
                VisitLists(self.files, paths.join(self.out, FOLDER), probes, parts, self.config.threads)
            ).with_output_types(tuple[int, Any])
            | "Spill"
            >> beam.ParDo(Spill(paths.join(self.out, stages.SPILL_FOLDER), HELD_BYTES)).with_output_types(
                tuple[int, Chunk]
            )
            | "ByPart" >> beam.GroupByKey()
            | "Compare"
            >> beam.ParDo(
                LinkLists(self.threshold, self.config.block_rows, self.config.threads)
            ).with_output_types(Any)
        )


class VisitLists(beam.DoFn):
    """Gives each row to the lists that it visits.

    Args:
        files: Files of the training set.
        folder: Where the centroids are.
        probes: Lists that each row visits.
        parts: Parts of the lists.
        threads: Threads of the arithmetic.
    """

    def __init__(self, files: Sequence[str], folder: str, probes: int, parts: int, threads: int) -> None:
        self.files, self.folder, self.probes = list(files), folder, probes
        self.parts, self.threads = parts, threads

    def setup(self) -> None:
        """Loads the centroids."""
        threadpool_limits(self.threads, user_api="blas")
        self.flat = np.frombuffer(paths.read_bytes(paths.join(self.folder, _CENTROIDS)), np.float32)
        self.tiles = Tiles()

    def process(self, span: vectors.NumberedBlock) -> Iterator[tuple[int, pa.Table]]:
        """Yields rows of a span by part: ``list``, whether it is their ``home``, ``place``, ``embedding``."""
        number, start, rows = span
        with working(STAGE, f"{self.files[number]} {start}"):
            for _, values in vectors.read_block(self.files[number], start, rows, _VISITING):
                of = self.visited(values)
                place = start + np.arange(len(values))
                start += len(values)
                row, rank = (i.reshape(-1) for i in np.indices(of.shape))
                part = of[row, rank] % self.parts
                order = np.argsort(part, kind="stable")
                edges = np.flatnonzero(np.diff(part[order], prepend=-1, append=-1))
                for first, last in itertools.pairwise(edges):
                    mine = order[first:last]
                    table = {
                        "list": of[row[mine], rank[mine]],
                        "home": rank[mine] == 0,
                        "place": place_of(number, place[row[mine]]),
                        "embedding": _list_array(values[row[mine]]),
                    }
                    yield int(part[mine[0]]), pa.table(table)

    def visited(self, values: np.ndarray) -> np.ndarray:
        """The lists of each row, home first: int64 [N, probes]; ties at five decimals by number."""
        centroids = self.flat.reshape(-1, values.shape[1])
        shape = (len(values), min(self.probes, len(centroids)))
        kept = Kept(
            least=np.full(len(values), EMPTY, np.int64),
            key=np.full(shape, EMPTY, np.int32),
            place=np.zeros(shape, np.int64),
        )
        self.tiles.compare(values, centroids, np.arange(len(centroids)), kept)
        return kept.place


class ListRows(NamedTuple):
    """Rows of some lists, sorted by list, those at home first.

    Attributes:
        number: int64 [N], the list.
        home: bool [N].
        place: int64 [N], in the training set.
        values: float32 [N, d].
    """

    number: np.ndarray
    home: np.ndarray
    place: np.ndarray
    values: np.ndarray

    def part(self, number: int, *, home: bool) -> ListRows:
        """A list's rows that are at home there, or those that are not; of equal ones the first."""
        first, last = np.searchsorted(self.number, [number, number + 1])
        middle = first + int(self.home[first:last].sum())
        at = slice(first, middle) if home else slice(middle, last)
        chosen, _ = link_equals(self.values[at], 1.0)
        return ListRows(*(array[at][chosen] for array in self))


class LinkLists(beam.DoFn):
    """Compares what meets in the lists of a part.

    Args:
        threshold: Least similarity of a pair.
        block_rows: Rows held at once.
        threads: Threads of the arithmetic.
    """

    def __init__(self, threshold: float, block_rows: int, threads: int) -> None:
        self.threshold, self.block_rows, self.threads = threshold, block_rows, threads

    def setup(self) -> None:
        """Sets the threads."""
        threadpool_limits(self.threads, user_api="blas")

    def process(self, item: tuple[int, Iterable[Chunk]]) -> Iterator[Links]:
        """Yields the links of one part."""
        part, chunks = item
        with working(STAGE, f"part {part} of the lists"):
            yield gathered(self._links(list(chunks)), self.block_rows)

    def _links(self, chunks: Sequence[Chunk]) -> Iterator[Links]:
        for end, block in self._blocks(chunks):
            for number in np.unique(block.number):
                yield from self._within(block, number)
            tick(int(block.home.sum()))
            for _, other in self._blocks(chunks[end:]):
                for number in np.intersect1d(block.number, other.number):
                    yield from self._between(block, other, number)

    def _blocks(self, chunks: Sequence[Chunk]) -> Iterator[tuple[int, ListRows]]:
        """Blocks of some chunks, each with the number of the chunk after its last."""
        held: list[pa.Table] = []
        for end, rows in enumerate(stream_chunks(chunks), start=1):
            held.append(rows)
            if end == len(chunks) or sum(table.num_rows for table in held) >= self.block_rows:
                joined, held = pa.concat_tables(held).combine_chunks(), []
                number, home, place = (joined.column(n).to_numpy() for n in ("list", "home", "place"))
                flat = joined.column("embedding").combine_chunks().flatten().to_numpy()
                order = np.lexsort((place, ~home, number))
                values = flat.reshape(len(order), -1)[order]
                yield end, ListRows(number=number[order], home=home[order], place=place[order], values=values)

    def _within(self, block: ListRows, number: int) -> Iterator[Links]:
        first, last = np.searchsorted(block.number, [number, number + 1])
        own = slice(first, first + int(block.home[first:last].sum()))
        _, equals = link_equals(block.values[own], self.threshold)
        yield equals.at(block.place[own])
        home, guests = (block.part(number, home=at_home) for at_home in (True, False))
        yield from links_within(home.values, home.place, self.threshold)
        yield from links_between(home.values, home.place, guests.values, guests.place, self.threshold)

    def _between(self, block: ListRows, other: ListRows, number: int) -> Iterator[Links]:
        home, guests = (block.part(number, home=at_home) for at_home in (True, False))
        for mine, at_home in ((home, True), (home, False), (guests, True)):
            theirs = other.part(number, home=at_home)
            yield from links_between(mine.values, mine.place, theirs.values, theirs.place, self.threshold)


@dataclass(eq=False)
class CompareAsked(beam.PTransform[Any, Any]):
    """Writes the exact neighbours of the pictures that :func:`prepare` chose, for :func:`recall`.

    Args:
        files: Files of the training set.
        threads: Threads of the arithmetic.
        out: The output folder.
    """

    files: Sequence[str]
    threads: int
    out: str

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, pipeline: beam.pvalue.PBegin) -> beam.PCollection[Any]:
        """Searches the training set for the pictures' neighbours, as `wit dedup search` does."""
        asked = paths.join(self.out, FOLDER, _ASKED)
        search = SearchConfig(k=NEAREST + 1, threads=self.threads)  # one more: each finds itself
        return (
            pipeline
            | "Spans" >> beam.Create(vectors.plan_blocks(self.files, 65_536), reshuffle=True)
            | "Compare"
            >> beam.ParDo(CompareBlocks([asked], search, stage=STAGE)).with_output_types(tuple[int, Any])
            | "Merge" >> beam.CombinePerKey(MergeBest())
            | "Write" >> beam.Map(_write_exact, path=paths.join(self.out, FOLDER, _EXACT))
        )


def _write_exact(item: tuple[int, Best], path: str) -> None:
    _, best = item
    paths.write_bytes(path, json.dumps([best.ids.tolist(), best.key.tolist()]).encode())


def recall(out: str, threshold: float) -> Mapping[str, Any]:
    """How many near-duplicates among the exact 10 nearest of the pictures that were asked are in their groups.

    ``pairs_above_threshold`` counts no more than these: a picture with a thousand copies counts ten.

    Args:
        out: The output folder, with its parts and :data:`FOLDER`.
        threshold: Least similarity of a pair.
    """
    folder = paths.join(out, FOLDER)
    names = vectors.read_names([paths.join(folder, _ASKED)]).ids
    ids, keys = json.loads(paths.read_bytes(paths.join(folder, _EXACT)))
    wanted = [
        (name, other)
        for name, others, likeness in zip(names, ids, keys, strict=True)
        for other, key in [p for p in zip(others, likeness, strict=True) if p[0] != name][:NEAREST]
        if np.float32(key / SCALE) >= np.float32(threshold)
    ]
    asked = {name for pair in wanted for name in pair}
    group: dict[str, str] = {}
    parts = [
        f for f in paths.list_files(out, suffixes=(".parquet",)) if f.rsplit("/", 1)[0] == out.rstrip("/")
    ]
    for batch in tables.read_batches(parts, columns=["pair_id", "group"]):
        rows = zip(*(c.to_pylist() for c in batch.columns), strict=True)
        group.update((name, of) for name, of in rows if name in asked)
    together = [a in group and group[a] == group.get(b) for a, b in wanted]
    return {
        "pictures": len(names),
        "pairs_above_threshold": len(wanted),
        "together": sum(together) / len(together) if together else 1.0,
    }


def recall_line(extra: Mapping[str, Any]) -> str:
    """What a manifest says of the index, in words."""
    found = extra["recall"]
    return (
        f"index ivf, {extra['probes']} of {extra['lists']} lists: {found['pictures']} pictures, compared with all "
        f"others, have {found['pairs_above_threshold']} near-duplicates among their {NEAREST} nearest; "
        f"{found['together']:.1%} are in their groups"
    )
