"""The Beam passes over the sources. Between them lie files in the stage's ``work/`` folder:

    pass 1   dump splits  -> tokens-*.arrow and dictionary-*.arrow (the text as numbers of its own words, so that
                             nobody parses it twice), titles-*.parquet
             dictionary-* -> words-*.parquet (added up, at least ``min_count``)
    pass 2   tokens-*     -> pairs-*.arrow (counted)
             pairs-*      -> bigrams-*.parquet (added up, scored)
             page views   -> views-*.parquet (by article, redirects' views added to their targets)

and ``report-*.json`` of each split or file: its counts and losses. Elements are splits, files and tables; what goes
between workers is added up within each element first, and words and pairs go by file, a record batch for each
partition, because the local engine keeps in memory whatever goes through it. A file is a function of its element or
partition alone, so retried and reordered work leaves the same files.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline.core import counters, paths, tables
from pipeline.core.beam import split_table
from pipeline.core.contracts import Contract
from pipeline.core.progress import tick
from pipeline.core.worklog import working
from queries import bigrams, pageviews, runners_up, streams, wikipedia, words
from queries.lexicon import BREAK, Batch, Lexicon
from queries.streams import Loss
from queries.wikipedia import Site, Split
from queries.wikitext import plain_text

STAGE = "queries"
# Tokens held before they are written: 4 bytes each, and the dictionary beside them.
BATCH_TOKENS = 8_000_000
BATCH_TITLES = 1_000_000
WORD_PARTITIONS = 32
VIEW_PARTITIONS = 16
# Token files whose pairs one partition adds up.
BATCHES_PER_PARTITION = 8

_BIGRAMS = pa.schema(
    [
        pa.field("bigram", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("pmi", pa.float64(), nullable=False),
    ]
)
WORDS_TABLE = Contract("queries-words", 1, words.COUNTS, made_by="wit queries")
TITLES_TABLE = Contract("queries-titles", 1, pageviews.TITLES, made_by="wit queries")
BIGRAMS_TABLE = Contract("queries-bigrams", 1, _BIGRAMS, made_by="wit queries")
VIEWS_TABLE = Contract("queries-views", 1, pageviews.VIEWS, made_by="wit queries")


def write_report(work: str, name: str, counts: Mapping[str, int], lost: Iterable[Loss]) -> None:
    """Leaves what a worker counted and lost for the stage's manifest, and adds it to the stage's counters."""
    lost = list(lost)
    counters.count_reasons(STAGE, {**counts, "lost": sum(loss.count for loss in lost)})
    losses = [[loss.path, loss.reason, loss.offset, loss.count] for loss in lost]
    text = json.dumps({"counts": counts, "lost": losses}, sort_keys=True)
    paths.write_bytes(paths.join(work, f"report-{name}.json"), text.encode())


def read_reports(work: str, kind: str) -> tuple[dict[str, int], list[Loss]]:
    """All reports of a kind, added up: counts and losses in the order of the inputs."""
    total: dict[str, int] = defaultdict(int)
    lost: list[Loss] = []
    for name in work_files(work, f"report-{kind}"):
        report = json.loads(paths.read_bytes(name))
        for key, number in report["counts"].items():
            total[key] += number
        lost += [Loss(*loss) for loss in report["lost"]]
    return dict(total), lost


def work_files(work: str, prefix: str) -> list[str]:
    """Files of the work folder by the start of their names, sorted."""
    if not paths.exists(work):
        return []
    return [f for f in paths.list_files(work) if f.rsplit("/", 1)[-1].startswith(f"{prefix}-")]


def read_work(work: str, prefix: str, contract: Contract) -> pa.Table:
    """All tables of a kind in the work folder as one."""
    files = work_files(work, prefix)
    return tables.read_files(files) if files else contract.empty()


# Pass 1: the dump.


def read_split(item: tuple[int, Split], work: str) -> Iterator[tuple[int, str]]:
    """Reads one split: writes its titles, tokens and counted words; yields the partitions that have words of it.

    Args:
        item: The split's number and the split.
        work: Work folder.
    """
    index, split = item
    lost: list[Loss] = []
    counts: dict[str, int] = defaultdict(int)
    batch = 0
    lexicon = Lexicon()
    titles: list[tuple[str, str | None]] = []
    with working(STAGE, f"{split.path} {index}"):
        for page in wikipedia.read(split, lost, counts):
            tick()
            titles.append((page.title, page.target))
            if page.target is None:
                lexicon.add(page.text if page.plain else plain_text(page.text, split.site.hidden))
            if lexicon.placed >= BATCH_TOKENS or len(titles) >= BATCH_TITLES:
                name = f"{index:05d}-{batch:05d}"
                yield from _flush(lexicon.take(WORD_PARTITIONS), titles, work, name, counts)
                batch, titles = batch + 1, []
    yield from _flush(lexicon.take(WORD_PARTITIONS), titles, work, f"{index:05d}-{batch:05d}", counts)
    write_report(work, f"wikipedia-{index:05d}", counts, lost)


def _flush(
    found: Batch, titles: list[tuple[str, str | None]], work: str, name: str, counts: dict[str, int]
) -> list[tuple[int, str]]:
    if not titles:
        return []
    columns = zip(*titles, strict=True)
    table = pa.table([pa.array(c, pa.string()) for c in columns], schema=pageviews.TITLES)
    tables.write_table(paths.join(work, f"titles-{name}.parquet"), table, TITLES_TABLE)
    counts["tokens"] += int(np.sum(found.counts))
    return write_batch(found, work, name)


def write_batch(found: Batch, work: str, name: str) -> list[tuple[int, str]]:
    """Writes a batch of texts as numbers; returns (partition, dictionary file) of the partitions that have words."""
    tokens = pa.record_batch([pa.array(found.tokens)], names=["token"])
    _write_batches(paths.join(work, f"tokens-{name}.arrow"), tokens, np.array([0, len(tokens)]))
    dictionary = pa.record_batch([found.words, pa.array(found.counts)], schema=words.COUNTS)
    path = paths.join(work, f"dictionary-{name}.arrow")
    return _write_batches(path, dictionary, found.edges)


def _write_batches(path: str, rows: pa.RecordBatch, edges: np.ndarray) -> list[tuple[int, str]]:
    """Writes rows as one record batch for each partition; returns (partition, path) of those that have any."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with paths.open_atomic(path) as file, pa.ipc.new_file(file, rows.schema, options=options) as writer:
        for start, end in itertools.pairwise(edges.tolist()):
            writer.write_batch(rows.slice(start, end - start))
    return [(int(part), path) for part in np.flatnonzero(np.diff(edges))]


def read_batch(path: str, part: int) -> pa.RecordBatch:
    """One partition's record batch of a work file."""
    with paths.open_input(path, decompress=False) as file, pa.ipc.open_file(file) as reader:
        return reader.get_batch(part)


def _merge_words(item: tuple[int, Iterable[str]], work: str, min_count: int) -> int:
    part, files = item
    merged = words.merge(pa.Table.from_batches([read_batch(path, part)]) for path in sorted(files))
    enough = pa.compute.greater_equal(merged["count"], min_count)
    frequent, rare = merged.filter(enough), merged.filter(pa.compute.invert(enough))
    name = paths.join(work, f"rare_words-{part:05d}.parquet")
    runners_up.write_part(name, rare, runners_up.WORDS, by="count", parts=WORD_PARTITIONS)
    return tables.write_table(paths.join(work, f"words-{part:05d}.parquet"), frequent, WORDS_TABLE)


def first_pass(pipeline: beam.Pipeline, splits: Sequence[Split], work: str, min_count: int) -> None:
    """Counts words and collects titles and tokens."""
    _ = (
        pipeline
        | "Splits" >> beam.Create(list(enumerate(splits)))
        | "SpreadSplits" >> beam.Reshuffle()
        | "ReadSplit" >> beam.FlatMap(read_split, work).with_output_types(tuple[int, str])
        | "WordsByPart" >> beam.GroupByKey()
        | "MergeWords" >> beam.Map(_merge_words, work, min_count)
    )


# Pass 2: bigrams.


class CountBigrams(beam.DoFn):
    """Counts the pairs of one file of tokens; yields the partitions that have pairs of it.

    Args:
        work: Work folder.
        vocabulary: Parquet file of ``word``, ``count``, sorted by word.
        partitions: Number of partitions of the pairs.
    """

    def __init__(self, work: str, vocabulary: str, partitions: int) -> None:
        self.work, self.vocabulary, self.partitions = work, vocabulary, partitions

    def setup(self) -> None:
        """Reads the vocabulary once for each worker."""
        self.words = tables.read_files([self.vocabulary])["word"].combine_chunks()

    def process(self, name: str) -> Iterator[tuple[int, str]]:
        """Counts the file of one name, as ``00001-00000``."""
        tokens = read_batch(paths.join(self.work, f"tokens-{name}.arrow"), 0)["token"].to_numpy()
        tick(len(tokens))
        keys, counts = bigrams.count(self._places(name)[tokens])
        pairs = pa.record_batch([pa.array(keys), pa.array(counts)], names=["pair", "count"])
        edges = bigrams.edges(keys, self.partitions)
        yield from _write_batches(paths.join(self.work, f"pairs-{name}.arrow"), pairs, edges)

    def _places(self, name: str) -> np.ndarray:
        """The vocabulary's place of each word of a file's dictionary, and of none at the end, where -1 looks."""
        path = paths.join(self.work, f"dictionary-{name}.arrow")
        with paths.open_input(path, decompress=False) as file, pa.ipc.open_file(file) as reader:
            found = pa.compute.index_in(reader.read_all()["word"].combine_chunks(), value_set=self.words)
        places = pa.compute.fill_null(found, BREAK).to_numpy(zero_copy_only=False)
        return np.append(places, np.int32(BREAK))


def _score_bigrams(
    item: tuple[int, Iterable[str]],
    work: str,
    vocabulary: str,
    corpus_tokens: int,
    min_count: int,
    pmi_min: float,
    partitions: int,
) -> int:
    part, files = item
    table = tables.read_files([vocabulary])
    counts = bigrams.merge(
        (batch["pair"].to_numpy(), batch["count"].to_numpy())
        for batch in (read_batch(path, part) for path in sorted(files))
    )
    scores = bigrams.pmi(counts, table["count"].to_numpy(), corpus_tokens)
    enough = bigrams.enough(counts, scores, min_count=min_count, pmi_min=pmi_min)
    good, rest = np.flatnonzero(enough), np.flatnonzero(~enough)
    least, rest = runners_up.most_frequent(counts[1], rest, parts=partitions)
    named = _named(counts, scores, rest, table["word"])
    name = paths.join(work, f"rare_bigrams-{part:05d}.parquet")
    runners_up.write_part(name, named, runners_up.BIGRAMS, by="count", parts=partitions, least=least)
    result = _named(counts, scores, good, table["word"])
    return tables.write_table(paths.join(work, f"bigrams-{part:05d}.parquet"), result, BIGRAMS_TABLE)


def _named(
    counts: bigrams.Counts, scores: np.ndarray, chosen: np.ndarray, vocabulary: pa.ChunkedArray
) -> pa.Table:
    keys, numbers = counts
    first, second = (vocabulary.combine_chunks().take(pa.array(w)) for w in bigrams.unpack(keys[chosen]))
    joined = pa.compute.binary_join_element_wise(first, second, " ")
    return pa.table([joined, pa.array(numbers[chosen]), pa.array(scores[chosen])], schema=_BIGRAMS)


def count_bigrams(
    pipeline: beam.Pipeline,
    work: str,
    vocabulary: str,
    *,
    corpus_tokens: int,
    min_count: int,
    pmi_min: float,
) -> None:
    """Counts and scores the bigrams of the first pass's tokens."""
    names = [
        f.rsplit("/", 1)[-1].removeprefix("tokens-").removesuffix(".arrow")
        for f in work_files(work, "tokens")
    ]
    partitions = 1 + len(names) // BATCHES_PER_PARTITION
    _ = (
        pipeline
        | "Tokens" >> beam.Create(names)
        | "SpreadTokens" >> beam.Reshuffle()
        | "CountBigrams"
        >> beam.ParDo(CountBigrams(work, vocabulary, partitions)).with_output_types(tuple[int, str])
        | "BigramsByPart" >> beam.GroupByKey()
        | "ScoreBigrams"
        >> beam.Map(_score_bigrams, work, vocabulary, corpus_tokens, min_count, pmi_min, partitions)
    )


# Pass 2: page views.


def read_views(item: tuple[int, str], work: str, site: Site) -> Iterator[tuple[int, pa.Table]]:
    """Reads one page view file and yields views by title, by partition."""
    index, path = item
    lost: list[Loss] = []
    counts: dict[str, int] = defaultdict(int)
    lines = wikipedia.lines(streams.read(path, 0, paths.size(path), lost))
    with working(STAGE, path):
        for piece in pageviews.count(lines, site.project, path, lost, counts):
            tick(len(piece))
            clean = pageviews.clean(piece, site, counts)
            yield from split_table(clean, key="title", partitions=VIEW_PARTITIONS)
    write_report(work, f"pageviews-{index:05d}", counts, lost)


def _read_titles(path: str) -> Iterator[tuple[int, pa.Table]]:
    yield from split_table(tables.read_files([path]), key="title", partitions=VIEW_PARTITIONS)


def _resolve(
    item: tuple[int, Mapping[str, Iterable[pa.Table]]], work: str, checked: bool
) -> Iterator[tuple[int, pa.Table]]:
    part, found = item
    views, titles = pageviews.merge(found["views"]), _titles(found["titles"])
    moved = pageviews.resolve(views, titles, checked=checked)
    _runners_up(pageviews.moved_or_lost(views, titles, checked=checked), work, f"moved_views-{part:05d}")
    yield from split_table(pageviews.merge([moved]), key="title", partitions=VIEW_PARTITIONS)


def _write_views(
    item: tuple[int, Mapping[str, Iterable[pa.Table]]], work: str, checked: bool, views_min: int
) -> int:
    part, found = item
    views = pageviews.merge(found["views"])
    if checked:
        views = pageviews.only_articles(views, _titles(found["titles"]))
    enough = pa.compute.greater_equal(views["views"], views_min)
    few = pageviews.articles_out(views.filter(pa.compute.invert(enough)))
    _runners_up(few, work, f"few_views-{part:05d}")
    views = views.filter(enough)
    return tables.write_table(paths.join(work, f"views-{part:05d}.parquet"), views, VIEWS_TABLE)


def _runners_up(table: pa.Table, work: str, name: str) -> None:
    path = paths.join(work, f"{name}.parquet")
    runners_up.write_part(path, table, runners_up.TITLES, by="views", parts=VIEW_PARTITIONS)


def _titles(several: Iterable[pa.Table]) -> pa.Table:
    listed = list(several)
    return pa.concat_tables(listed) if listed else pageviews.TITLES.empty_table()


def count_views(
    pipeline: beam.Pipeline, files: Sequence[str], work: str, site: Site, *, checked: bool, views_min: int
) -> None:
    """Adds page views up by article."""
    pairs = tuple[int, Any]
    views = (
        pipeline
        | "ViewFiles" >> beam.Create(list(enumerate(files)))
        | "SpreadViewFiles" >> beam.Reshuffle()
        | "ReadViews" >> beam.FlatMap(read_views, work, site).with_output_types(pairs)
    )
    titles = (
        pipeline
        | "TitleFiles" >> beam.Create(work_files(work, "titles"))
        | "ReadTitles" >> beam.FlatMap(_read_titles).with_output_types(pairs)
    )
    moved = (
        {"views": views, "titles": titles}
        | "ViewsWithTitles" >> beam.CoGroupByKey()
        | "Resolve" >> beam.FlatMap(_resolve, work, checked).with_output_types(pairs)
    )
    _ = (
        {"views": moved, "titles": titles}
        | "TargetsWithTitles" >> beam.CoGroupByKey()
        | "WriteViews" >> beam.Map(_write_views, work, checked, views_min)
    )
