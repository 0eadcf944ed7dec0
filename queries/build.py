"""`wit queries`: the query list from raw dumps (paper 2.2, footnote 1).

The manifest's unit is the *entry*: one source's wish for one query. Every word of at least ``min_count`` and every
synset term enters; bigrams and titles that pass their own minimum enter with the best ``size`` of each, so the
millions below never become rows (the best of them stand in ``counts/``: :mod:`queries.runners_up`). An entry ends as
a row, or merged into the row of another source (``same_query``; the row names all its sources), or ``below_cut``, or
without any word to match (``no_words``).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipeline.core import paths, tables
from pipeline.core.beam import engine, pipeline_options, run_pipeline
from pipeline.core.contracts import DROPPED, QUERIES
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress
from pipeline.core.stage import RunOptions, StageResult, run_stage
from queries import merge, pageviews, passes, runners_up, streams, wikipedia, wordnet, words
from queries.config import NO_WORDNET, QueriesConfig
from queries.merge import QueryList
from queries.streams import Loss
from queries.wikipedia import Site, Split

WORK = "work"
_DUMPS = (".xml", ".bz2", ".gz", ".zst", ".parquet", ".jsonl", ".json", ".ndjson")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inputs:
    splits: list[Split]
    pageviews: list[str]
    wordnet: str | None
    site: Site


@dataclasses.dataclass(kw_only=True)
class _Counted:
    """What the passes found."""

    words: pa.Table
    rare_words: pa.Table
    bigrams: pa.Table  # best first
    views: pa.Table
    corpus_tokens: int = 0
    bigram_min_count: int | None = None
    lost: list[Loss] = dataclasses.field(default_factory=list)
    details: dict[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)


def run(config: QueriesConfig, out: str, options: RunOptions) -> Manifest | None:
    """Builds the list.

    Raises:
        UsageError: No source at all, or options that Beam does not know.
        InputError: A source is missing or is not what it should be.
    """
    folder = None if config.wordnet == NO_WORDNET else (config.wordnet or wordnet.shipped())
    given = [*config.wikipedia, *([config.word_counts] if config.word_counts else []), *config.pageviews]
    if not given and folder is None:
        raise UsageError(
            "no source to make queries from",
            hint="give --wikipedia, --word-counts or --pageviews, or leave out `--wordnet none`",
        )
    beam_options = pipeline_options(options.beam)
    made = False

    def body(written: str) -> StageResult:
        nonlocal made
        made = True
        result = _body(config, folder, options, beam_options, written)
        _write_losses(result.extra)  # before too many of them end the stage
        return result

    finished = run_stage(
        body,
        stage="queries",
        contract=QUERIES.id,
        config=config,
        inputs=[*given, *([folder] if folder else [])],
        out=out,
        options=options,
        owned=(f"{WORK}/*", f"{runners_up.FOLDER}/*"),
        mend="the lines above that begin with `queries: lost:` name them: mend the sources",
    )
    if finished is not None:
        if not made:
            _write_losses(finished.extra)
        if not options.quiet:
            _write_notes(finished)
    return finished


def _body(
    config: QueriesConfig, folder: str | None, options: RunOptions, beam_options: Any, out: str
) -> StageResult:
    inputs = _find(config, folder)
    work = paths.join(out, WORK)
    paths.remove(work)
    try:
        counted = _count(config, inputs, work, beam_options, quiet=options.quiet)
        made = _make_list(config, inputs, counted)
        _write_runners_up(config, inputs, counted, made, work, out)
    finally:
        paths.remove_leftover(work)
    with tables.PartWriter(out, QUERIES) as writer:
        writer.write(made.table)
    dropped = tables.dropped_table("queries", made.dropped)
    tables.write_table(paths.join(out, "dropped", tables.part_name(0)), dropped, DROPPED)
    return StageResult(
        rows=writer.rows,
        rows_in=made.entries,
        engine=engine(beam_options),
        extra=_extra(config, inputs, counted, made),
        damaged=_damaged(counted),
    )


def _damaged(counted: _Counted) -> tuple[dict[str, int], int]:
    """What of the sources could not be read, and of how many pages, page view lines and such pieces."""
    damaged: dict[str, int] = {}
    for loss in counted.lost:
        reason = loss.reason.partition(":")[0]
        damaged[reason] = damaged.get(reason, 0) + loss.count
    found = [(details.get("pages", 0), details.get("project_lines", 0), details.get("bad_lines", 0))
             for details in counted.details.values()]  # fmt: skip
    return damaged, sum(pages + lines - bad for pages, lines, bad in found) + sum(damaged.values())


def _find(config: QueriesConfig, folder: str | None) -> _Inputs:
    splits: list[Split] = []
    if config.wikipedia:
        splits = wikipedia.plan(paths.expand(config.wikipedia, suffixes=_DUMPS, what="Wikipedia dump"))
    site = next((s.site for s in splits), Site())
    if config.project is not None:
        site = dataclasses.replace(site, project=config.project)
    views = paths.expand(config.pageviews, what="page view files") if config.pageviews else []
    for path in views:
        pageviews.check(wikipedia.lines(streams.read(path, 0, paths.size(path), [])), path)
    if folder is not None:
        wordnet.data_files(folder)
    return _Inputs(splits=splits, pageviews=views, wordnet=folder, site=site)


def _count(config: QueriesConfig, inputs: _Inputs, work: str, beam_options: Any, *, quiet: bool) -> _Counted:
    counted = _Counted(
        words=passes.WORDS_TABLE.empty(),
        rare_words=passes.WORDS_TABLE.empty(),
        bigrams=passes.BIGRAMS_TABLE.empty(),
        views=passes.VIEWS_TABLE.empty(),
    )
    paths.make_folder(work)
    if inputs.splits:
        _first_pass(config, inputs, work, beam_options, counted, quiet=quiet)
    second = _second_pass(config, inputs, work, counted)
    if second:
        with Progress("queries, bigrams and views", unit="tokens and titles", quiet=quiet):
            run_pipeline(functools.partial(_apply, second), beam_options)
        counted.bigrams = merge.ranked_bigrams(
            passes.read_work(work, "bigrams", passes.BIGRAMS_TABLE),
            config.bigram_measure,
            counted.corpus_tokens,
        )
        counted.views = passes.read_work(work, "views", passes.VIEWS_TABLE)
    if inputs.pageviews:
        counts, lost = passes.read_reports(work, "pageviews")
        counted.details["pageviews"] = {**counts, "titles": counted.views.num_rows}
        counted.lost += lost
    if config.word_counts:
        table, skipped = words.read_counts(config.word_counts)
        counted.words, counted.rare_words = _by_count(table, config.min_count)
        counted.details["word_counts"] = {"words": table.num_rows, "not_a_word": skipped}
        if not inputs.splits:
            counted.corpus_tokens = int(pa.compute.sum(table["count"]).as_py())
    return counted


def _first_pass(
    config: QueriesConfig, inputs: _Inputs, work: str, beam_options: Any, counted: _Counted, *, quiet: bool
) -> None:
    least = 1 if config.bigrams_of_rare_words else config.min_count
    build = functools.partial(passes.first_pass, splits=inputs.splits, work=work, min_count=least)
    with Progress("queries, words", unit="pages", quiet=quiet):
        run_pipeline(build, beam_options)
    counts, lost = passes.read_reports(work, "wikipedia")
    counted.lost += lost
    counted.details["wikipedia"] = counts
    counted.corpus_tokens = counts.get("tokens", 0)
    if not counts.get("articles"):
        raise InputError(
            "the dump holds no article",
            where=", ".join(sorted({s.path for s in inputs.splits})[:3]),
            found=f"{counts.get('pages', 0):,} pages" + "".join(f"; {loss.reason}" for loss in lost[:1]),
            hint="give a pages-articles dump",
        )
    table = passes.read_work(work, "words", passes.WORDS_TABLE).sort_by("word")
    counted.words, counted.rare_words = _by_count(table, config.min_count)


def _by_count(table: pa.Table, least: int) -> tuple[pa.Table, pa.Table]:
    enough = pa.compute.greater_equal(table["count"], least)
    return table.filter(enough), table.filter(pa.compute.invert(enough))


def _vocabulary(config: QueriesConfig, counted: _Counted) -> pa.Table:
    """Words that a bigram may be made of, sorted."""
    if not config.bigrams_of_rare_words:
        return counted.words
    words = pa.concat_tables([counted.words, counted.rare_words]).sort_by("word")
    # PMI is at most log2(N / c) for the count c of the more frequent word: of others no pair can pass.
    most = counted.corpus_tokens / 2**config.pmi_min
    return words.filter(pa.compute.less_equal(words["count"], most))


def _second_pass(
    config: QueriesConfig, inputs: _Inputs, work: str, counted: _Counted
) -> list[functools.partial[None]]:
    steps = []
    if inputs.splits:
        vocabulary = paths.join(work, "vocabulary.parquet")
        tables.write_table(vocabulary, _vocabulary(config, counted), passes.WORDS_TABLE)
        counted.bigram_min_count = config.least_bigram_count(counted.corpus_tokens)
        steps.append(
            functools.partial(
                passes.count_bigrams,
                work=work,
                vocabulary=vocabulary,
                corpus_tokens=counted.corpus_tokens,
                min_count=counted.bigram_min_count,
                pmi_min=config.pmi_min,
            )
        )
    if inputs.pageviews:
        steps.append(
            functools.partial(
                passes.count_views,
                files=inputs.pageviews,
                work=work,
                site=inputs.site,
                checked=bool(inputs.splits) and config.title_check == "dump",
                views_min=config.views_min,
            )
        )
    return steps


def _apply(steps: Sequence[functools.partial[None]], pipeline: beam.Pipeline) -> None:
    for step in steps:
        step(pipeline)


def _make_list(config: QueriesConfig, inputs: _Inputs, counted: _Counted) -> QueryList:
    synsets = wordnet.read(inputs.wordnet) if inputs.wordnet else []
    terms = wordnet.terms(synsets, config.synset_terms) if synsets else ()
    exact = config.exact_spelling
    if inputs.wordnet:
        counted.details["wordnet"] = {"synsets": len(synsets)}
    return merge.build(
        words=merge.word_entries(counted.words),
        synsets=merge.synset_entries(terms, exact=exact),
        bigrams=list(merge.bigram_entries(counted.bigrams, config.size)),
        titles=list(merge.title_entries(counted.views, config.size, exact=exact)),
        config=config,
    )


def _write_runners_up(
    config: QueriesConfig, inputs: _Inputs, counted: _Counted, made: QueryList, work: str, out: str
) -> None:
    """Leaves the best of what is not in the list; a source that was not given leaves nothing."""
    listed = made.table["query"].combine_chunks()
    if inputs.splits or config.word_counts:
        # A table of counts takes the place of the dump's words.
        files = [] if config.word_counts else passes.work_files(work, "rare_words")
        runners_up.collect(
            files, counted.rare_words, runners_up.side_table(out, "words"), runners_up.WORDS, by="count"
        )
    if inputs.splits:
        files = passes.work_files(work, "rare_bigrams")
        cut = counted.bigrams.filter(pa.compute.invert(pa.compute.is_in(counted.bigrams["bigram"], listed)))
        runners_up.collect(files, cut, runners_up.side_table(out, "bigrams"), runners_up.BIGRAMS, by="count")
    if inputs.pageviews:
        files = [*passes.work_files(work, "moved_views"), *passes.work_files(work, "few_views")]
        titles = pa.array(made.titles, pa.string())
        cut = counted.views.filter(pa.compute.invert(pa.compute.is_in(counted.views["title"], titles)))
        runners_up.collect(
            files,
            pageviews.articles_out(cut),
            runners_up.side_table(out, "titles"),
            runners_up.TITLES,
            by="views",
        )


def _extra(config: QueriesConfig, inputs: _Inputs, counted: _Counted, made: QueryList) -> dict[str, Any]:
    with_source = dict.fromkeys(merge.SOURCES, 0)
    for source in made.table["sources"].combine_chunks().flatten().to_pylist():
        with_source[source] += 1
    missing = max(config.size - made.table.num_rows, 0)
    return {
        "thresholds": {**made.thresholds, "bigram_min_count": counted.bigram_min_count},
        "corpus_tokens": counted.corpus_tokens,
        "sources": with_source,
        "brought_in": dict(made.taken),
        "candidates": {"bigram": counted.bigrams.num_rows, "title": counted.views.num_rows},
        "counted": counted.details,
        "missing": missing,
        "fill_with": _fill(config, counted) if missing else [],
        # Names without folders: a list is the same wherever its inputs lie.
        "problems": [
            {"file": loss.path.rsplit("/", 1)[-1], "reason": loss.reason, "offset": loss.offset, "times": loss.count}
            for loss in counted.lost
        ],
    }  # fmt: skip


def _fill(config: QueriesConfig, counted: _Counted) -> list[str]:
    """What would fill a list that stays short, the largest source first."""
    advice = []
    if not config.wikipedia and not config.word_counts:
        advice.append("words: --wikipedia or --word-counts")
    if not config.wikipedia:
        advice.append("bigrams: --wikipedia")
    else:
        advice.append(
            f"words and bigrams: more of Wikipedia than {counted.corpus_tokens:,} words, or a lower --pmi-min"
        )
    if not config.pageviews:
        advice.append("titles: --pageviews")
    elif config.wikipedia and config.title_check == "dump":
        advice.append("titles: a dump that holds more of the viewed titles, or --title-check none")
    else:
        advice.append("titles: more page view files" + (", or a lower --views-min" * (config.views_min > 1)))
    if config.wordnet == NO_WORDNET:
        advice.append("synsets: leave out `--wordnet none`")
    return advice


def _write_losses(extra: Mapping[str, Any]) -> None:
    """A line for each damaged piece of the sources, however quiet the run is."""
    for problem in extra.get("problems", []):
        place = f" at byte {problem['offset']:,}" if problem["offset"] is not None else ""
        times = f" ({problem['times']:,} times)" if problem["times"] > 1 else ""
        sys.stderr.write(f"queries: lost: {problem['file']}: {problem['reason']}{place}{times}\n")


def _write_notes(done: Manifest) -> None:
    """The closing lines below the table."""
    notes = []
    least = done.extra["thresholds"]
    shown = [
        f"{n} >= {v:.4g}" if isinstance(v, float) else f"{n} >= {v:,}"
        for n, v in least.items()
        if v is not None
    ]
    by_source = ", ".join(f"{n:,} {source}" for source, n in done.extra["sources"].items())
    notes.append(f"sources: {by_source}; cut at {', '.join(shown) or 'nothing'}")
    if done.rows > done.config["size"]:
        notes.append(f"words and synsets alone are more than --size {done.config['size']:,}; all are kept")
    elif done.extra["missing"]:
        notes.append(
            f"{done.extra['missing']:,} short of --size {done.config['size']:,}; to fill it: "
            + "; ".join(done.extra["fill_with"])
        )
    for note in notes:
        sys.stderr.write(f"queries: {note}\n")
