"""The query list out of its four sources (paper 2.2, footnote 1).

Words and synsets are all queries. What they leave of ``size`` is shared between the bigrams of highest PMI and the
titles of most views; a source that has too few leaves its room to the other. Ties are broken by count, then by the
text, so equal sources give an equal list.

Two entries are one query when the tokeniser reads them as the same words ("Spider-Man" and "spider man"): matching
could not tell them apart. The query is spelt as its words where any entry is, else as its first entry in the order
word, bigram, synset, title. With ``exact`` spelling (the ``metaclip`` preset) two entries are one query only when
their lower-cased texts are equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.core.contracts import QUERIES
from pipeline.core.tokens import fold, tokens
from queries.bigrams import npmi
from queries.config import QueriesConfig

SOURCES = ("word", "bigram", "title", "synset")
SAME_QUERY, BELOW_CUT, NO_WORDS = "same_query", "below_cut", "no_words"
REASONS = (SAME_QUERY, BELOW_CUT, NO_WORDS)

_SPELLING = {"word": 0, "bigram": 1, "synset": 2, "title": 3}


# Not frozen: there are a million, and a frozen one takes four times as long to make.
@dataclass(slots=True)
class Entry:
    """One source's wish for a query.

    Attributes:
        source: One of ``SOURCES``.
        text: The query as the source spells it, folded, single spaces.
        key: Its words, joined by spaces, or its text in exact spelling: equal keys are the same query. Empty
            where there is no word.
        count: Occurrences, of words and bigrams.
        pmi: Bits, of bigrams.
        npmi: Share of the most, of bigrams that are ranked by it.
        views: Of titles.
        synsets: Ids, of synset terms.
        title: The title as the wiki spells it.
    """

    source: str
    text: str
    key: str
    count: int | None = None
    pmi: float | None = None
    npmi: float | None = None
    views: int | None = None
    synsets: tuple[str, ...] = ()
    title: str | None = None


@dataclass(slots=True)
class _Query:
    brought_in_by: str
    entries: list[Entry] = field(default_factory=list)

    @property
    def text(self) -> str:
        if len(self.entries) == 1:
            return self.entries[0].text
        first = min(self.entries, key=lambda e: (e.text != e.key, _SPELLING[e.source], e.text))
        return first.text


@dataclass(frozen=True, kw_only=True)
class QueryList:
    """The list and what was decided on the way.

    Attributes:
        table: ``queries/1``.
        entries: Entries that came in.
        dropped: (reason, entry's text, detail) for each entry that is not a row.
        thresholds: What the cut implies: least count, bigram count, PMI (and NPMI where that ranks) and views of what
            was taken.
        taken: Queries by the source that brought them in.
        titles: Titles, as the wiki spells them, that are in the list.
    """

    table: pa.Table
    entries: int
    dropped: Sequence[tuple[str, str, str | None]]
    thresholds: Mapping[str, float | int | None]
    taken: Mapping[str, int]
    titles: Sequence[str]


def word_entries(counted: pa.Table) -> Iterator[Entry]:
    """Entries of a table of ``word``, ``count``."""
    for word, count in _rows(counted, "word", "count"):
        yield Entry("word", word, word, count=count)


def ranked_bigrams(scored: pa.Table, measure: str, corpus_tokens: int) -> pa.Table:
    """A table of ``bigram``, ``count``, ``pmi``, best first; with ``npmi`` where that ranks.

    Args:
        scored: The table.
        measure: What ranks them, ``pmi`` or ``npmi``.
        corpus_tokens: All words of the corpus, which NPMI needs.
    """
    if measure == "npmi":
        values = npmi(scored["pmi"].to_numpy(), scored["count"].to_numpy(), corpus_tokens)
        scored = scored.append_column("npmi", pa.array(values, pa.float64()))
    return scored.sort_by([(measure, "descending"), ("count", "descending"), ("bigram", "ascending")])


def bigram_entries(ranked: pa.Table, most: int) -> Iterator[Entry]:
    """Entries of the ``most`` best of :func:`ranked_bigrams`."""
    for bigram, *numbers in _rows(ranked.slice(0, most), *ranked.column_names):
        yield Entry("bigram", bigram, bigram, *numbers)


def title_entries(views: pa.Table, most: int, *, exact: bool = False) -> Iterator[Entry]:
    """Entries of the most viewed of a table of ``title``, ``views``, until there are ``most`` different queries."""
    best = views.sort_by([("views", "descending"), ("title", "ascending")])
    keys: set[str] = set()
    for batch in best.to_batches(max_chunksize=65_536):
        for title, number in _rows(pa.table(batch), "title", "views"):
            if len(keys) == most:
                return
            entry = _spelt("title", title, exact, views=number, title=title)
            if entry.key:
                keys.add(entry.key)
            yield entry


def synset_entries(terms: Iterable[tuple[str, str | None]], *, exact: bool = False) -> Iterator[Entry]:
    """Entries of (term, synset id) pairs: one for each distinct term; a term may belong to no synset."""
    ids: dict[str, set[str]] = {}
    for term, synset in terms:
        ids.setdefault(" ".join(fold(term).split()), set()).update([synset] if synset else [])
    for term in sorted(ids):
        yield _spelt("synset", term, exact, synsets=tuple(sorted(ids[term])))


def _spelt(source: str, text: str, exact: bool, **more: Any) -> Entry:
    folded, words = " ".join(fold(text).split()), " ".join(tokens(text))
    return Entry(source, folded, folded if exact and words else words, **more)


def _rows(table: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def build(
    *,
    words: Iterable[Entry],
    synsets: Iterable[Entry],
    bigrams: Sequence[Entry],
    titles: Sequence[Entry],
    config: QueriesConfig,
) -> QueryList:
    """Merges the sources' entries into the list.

    Args:
        words: All become queries.
        synsets: All become queries.
        bigrams: Best first.
        titles: Best first; entries of equal key are ranked by the sum of their views.
        config: ``size`` and ``bigram_share``.
    """
    queries: dict[str, _Query] = {}
    dropped: list[tuple[str, str, str | None]] = []
    came_in = 0
    for entry in (*words, *synsets):
        came_in += 1
        if entry.key:
            queries.setdefault(entry.key, _Query(entry.source)).entries.append(entry)
        else:
            dropped.append((NO_WORDS, entry.text, entry.source))
    came_in += len(bigrams) + len(titles)
    dropped += [(NO_WORDS, e.text, e.source) for e in titles if not e.key]
    by_key = _by_views(titles)
    room = max(config.size - len(queries), 0)
    chosen = _share(queries, [b.key for b in bigrams], list(by_key), room, config.bigram_share)
    queries |= {key: _Query(source) for key, source in chosen.items()}
    for entry in (*bigrams, *(e for group in by_key.values() for e in group)):
        if entry.key in queries:
            queries[entry.key].entries.append(entry)
        else:
            dropped.append((BELOW_CUT, entry.text, _strength(entry)))
    table = _table(queries.values(), dropped)
    brought_in = Counter(query.brought_in_by for query in queries.values())
    return QueryList(
        table=table,
        entries=came_in,
        dropped=dropped,
        thresholds=_thresholds(queries.values()),
        taken={source: brought_in[source] for source in SOURCES},
        titles=[e.title for query in queries.values() for e in query.entries if e.title is not None],
    )


def _strength(entry: Entry) -> str:
    if entry.npmi is not None:
        return f"bigram: npmi {entry.npmi:.3f}"
    return f"bigram: pmi {entry.pmi:.3f}" if entry.pmi is not None else f"title: views {entry.views}"


def _by_views(titles: Iterable[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in titles:
        if entry.key:
            groups.setdefault(entry.key, []).append(entry)
    views = {key: sum(e.views or 0 for e in group) for key, group in groups.items()}
    return {key: groups[key] for key in sorted(groups, key=lambda k: (-views[k], k))}


def _share(
    present: Mapping[str, Any], bigrams: list[str], titles: list[str], room: int, share: float
) -> dict[str, str]:
    """Keys that fill the room, and which source each is for: bigrams' share, titles, whatever either has left."""
    chosen: dict[str, str] = {}

    def fill(source: str, keys: Iterable[str], most: int) -> None:
        for key in keys:
            if most <= 0:
                return
            if key not in present and key not in chosen:
                chosen[key] = source
                most -= 1

    fill("bigram", bigrams, round(room * share))
    fill("title", titles, room - len(chosen))
    fill("bigram", bigrams, room - len(chosen))
    return chosen


def _table(queries: Iterable[_Query], dropped: list[tuple[str, str, str | None]]) -> pa.Table:
    spelt = {query.text: query.entries for query in queries}
    texts = sorted(spelt)
    listed = [spelt[text] for text in texts]
    for text, entries in zip(texts, listed, strict=True):
        # One entry is the row; the others are in it and are counted as merged.
        dropped += [(SAME_QUERY, e.text, f"{e.source}: in {text!r}") for e in entries[1:]]
    columns = {
        "query_id": np.arange(len(texts), dtype=np.int32),
        "query": texts,
        "sources": [_sources(entries) for entries in listed],
        "count": [next((e.count for e in entries if e.count is not None), None) for entries in listed],
        "pmi": [next((e.pmi for e in entries if e.pmi is not None), None) for entries in listed],
        "views": [_views(entries) for entries in listed],
        "synsets": [sorted({s for e in entries for s in e.synsets}) or None for entries in listed],
    }
    return QUERIES.conform(pa.table(columns, schema=QUERIES.schema))


def _sources(entries: Sequence[Entry]) -> list[str]:
    if len(entries) == 1:
        return [entries[0].source]
    named = {e.source for e in entries}
    return [s for s in SOURCES if s in named]


def _views(entries: Sequence[Entry]) -> int | None:
    found = [e.views for e in entries if e.views is not None]
    return sum(found) if found else None


def _thresholds(queries: Iterable[_Query]) -> dict[str, float | int | None]:
    """Least values among the queries that a source brought in, or ``None`` where it brought none."""
    least: dict[str, float | int | None] = {"count": None, "bigram_count": None, "pmi": None, "views": None}

    def lower(name: str, value: float | int | None) -> None:
        known = least.get(name)
        if value is not None and (known is None or value < known):
            least[name] = value

    for query in queries:
        own = [e for e in query.entries if e.source == query.brought_in_by]
        if query.brought_in_by == "word":
            lower("count", own[0].count)
        elif query.brought_in_by == "bigram":
            lower("bigram_count", own[0].count)
            lower("pmi", own[0].pmi)
            if own[0].npmi is not None:
                lower("npmi", own[0].npmi)
        elif query.brought_in_by == "title":
            lower("views", sum(e.views or 0 for e in own))
    return least
