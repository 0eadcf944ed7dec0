"""The Beam passes over the sources. Between them lie files in the stage's ``work/`` folder:

    pass 1   dump splits  -> tokens-*.arrow (the text as dictionary and places, so that nobody parses it twice),
                             titles-*.parquet, words-*.parquet (counted, at least ``min_count``)
    pass 2   tokens-*     -> bigrams-*.parquet (counted, scored)
             page views   -> views-*.parquet (by article, redirects' views added to their targets)

and ``report-*.json`` of each split or file: its counts and losses. Elements are splits, files and tables; what goes
between workers is added up within each element first. A file is a function of its element or partition alone, so
retried and reordered work leaves the same files.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline.core import paths, tables
from pipeline.core.beam import split_table
from pipeline.core.contracts import Contract
from pipeline.core.progress import tick
from queries import bigrams, pageviews, runners_up, streams, wikipedia, words
from queries.streams import Loss
from queries.wikipedia import Site, Split
from queries.wikitext import plain_text

# Pieces of text held before they are written; about 100 MB as Python strings.
BATCH_PIECES = 1_000_000
WORD_PARTITIONS = 16
VIEW_PARTITIONS = 16
# Token batches whose pairs one partition adds up.
BATCHES_PER_PARTITION = 2

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
    """Leaves what a worker counted and lost for the stage's manifest."""
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


def read_split(item: tuple[int, Split], work: str) -> Iterator[tuple[int, pa.Table]]:
    """Reads one split: writes its tokens and titles, yields its word counts by partition.

    Args:
        item: The split's number and the split.
        work: Work folder.
    """
    index, split = item
    lost: list[Loss] = []
    counts: dict[str, int] = defaultdict(int)
    batch = 0
    held: list[str] = []
    titles: list[tuple[str, str | None]] = []
    for page in wikipedia.read(split, lost, counts):
        tick()
        titles.append((page.title, page.target))
        if page.target is None:
            text = page.text if page.plain else plain_text(page.text, split.site.hidden)
            held += words.pieces(text)
            held.append("\n")  # no bigram crosses from one article to the next
        if len(held) >= BATCH_PIECES or len(titles) >= BATCH_PIECES:
            yield from _flush(held, titles, work, f"{index:05d}-{batch:05d}", counts)
            batch, held, titles = batch + 1, [], []
    yield from _flush(held, titles, work, f"{index:05d}-{batch:05d}", counts)
    write_report(work, f"wikipedia-{index:05d}", counts, lost)


def _flush(
    held: list[str], titles: list[tuple[str, str | None]], work: str, name: str, counts: dict[str, int]
) -> list[tuple[int, pa.Table]]:
    if not titles:
        return []
    encoded = words.encode(held)
    write_tokens(paths.join(work, f"tokens-{name}.arrow"), encoded)
    columns = zip(*titles, strict=True)
    table = pa.table([pa.array(c, pa.string()) for c in columns], schema=pageviews.TITLES)
    tables.write_table(paths.join(work, f"titles-{name}.parquet"), table, TITLES_TABLE)
    counted = words.count(encoded)
    counts["tokens"] += int(np.sum(counted["count"].to_numpy()))
    return split_table(counted, key="word", partitions=WORD_PARTITIONS)


def write_tokens(path: str, encoded: pa.DictionaryArray) -> None:
    """Writes encoded text as one Arrow record batch."""
    batch = pa.record_batch([encoded], names=["piece"])
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with paths.open_atomic(path) as file, pa.ipc.new_file(file, batch.schema, options=options) as writer:
        writer.write_batch(batch)


def read_tokens(path: str) -> pa.DictionaryArray:
    """Reads what :func:`write_tokens` wrote."""
    with paths.open_input(path, decompress=False) as file, pa.ipc.open_file(file) as reader:
        return reader.get_batch(0).column(0)


def _merge_words(item: tuple[int, Iterable[pa.Table]], work: str, min_count: int) -> int:
    part, several = item
    merged = words.merge(several)
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
        | "ReadSplit" >> beam.FlatMap(read_split, work).with_output_types(tuple[int, Any])
        | "WordsByPart" >> beam.GroupByKey()
        | "MergeWords" >> beam.Map(_merge_words, work, min_count)
    )


# Pass 2: bigrams.


class CountBigrams(beam.DoFn):
    """Counts the pairs of one batch of tokens, by partition.

    Args:
        vocabulary: Parquet file of ``word``, ``count``, sorted by word.
        partitions: Number of partitions of the pairs.
    """

    def __init__(self, vocabulary: str, partitions: int) -> None:
        self.vocabulary, self.partitions = vocabulary, partitions

    def setup(self) -> None:
        """Reads the vocabulary once for each worker."""
        self.words = tables.read_files([self.vocabulary])["word"].combine_chunks()

    def process(self, path: str) -> Iterator[tuple[int, bigrams.Counts]]:
        """One batch's counts."""
        places = words.places(read_tokens(path), self.words)
        tick(len(places))
        yield from bigrams.split(bigrams.count(places), self.partitions)


def _score_bigrams(
    item: tuple[int, Iterable[bigrams.Counts]],
    work: str,
    vocabulary: str,
    corpus_tokens: int,
    min_count: int,
    pmi_min: float,
    partitions: int,
) -> int:
    part, several = item
    table = tables.read_files([vocabulary])
    counts = bigrams.merge(several)
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
    files = work_files(work, "tokens")
    partitions = 1 + len(files) // BATCHES_PER_PARTITION
    _ = (
        pipeline
        | "Tokens" >> beam.Create(files)
        | "SpreadTokens" >> beam.Reshuffle()
        | "CountBigrams"
        >> beam.ParDo(CountBigrams(vocabulary, partitions)).with_output_types(tuple[int, Any])
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
    for piece in pageviews.count(lines, site.project, path, lost, counts):
        tick(len(piece))
        yield from split_table(pageviews.clean(piece, site, counts), key="title", partitions=VIEW_PARTITIONS)
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
