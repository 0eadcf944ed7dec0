"""Why a text is, or is not, in a query list: by which source and with which numbers, or below which cut by how much."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import InputError
from pipeline.core.tokens import fold, tokens
from pipeline.inspect.doctor import own_matches, why_never
from pipeline.inspect.listed import QueryList
from queries import runners_up, wordnet
from queries.config import NO_WORDNET
from queries.merge import SOURCES

_SYNSETS_SHOWN = 5


def answer(listed: QueryList, text: str, matching: str) -> dict[str, Any]:
    """The answer for one text.

    Args:
        listed: The list.
        text: A text as a person would write it.
        matching: ``clean`` or ``metaclip``; only says whether the query can be found.

    Returns:
        ``text``, ``in_list``, ``query`` (the row's, or ``None``) and ``reasons``, sentences; with the columns of the
        row of the same words, if there is one.
    """
    found = listed.find(text)
    if found is None:
        reasons = list(_why_not(listed, text, ())) or ["in no source of this list"]
        return {"text": text, "in_list": False, "query": None, "reasons": reasons}
    place, as_spelt = found
    row = listed.table.slice(place, 1).to_pylist()[0]
    reasons = list(_numbers(listed, place, row))
    in_list = as_spelt or listed.config.get("preset") != "metaclip"
    if not as_spelt:
        reasons.insert(0, f"the same words as the query {row['query']!r}")
    reasons += [f"not by {reason}" for reason in _why_not(listed, text, row["sources"])]
    if not own_matches([row["query"]], matching)[0][0]:
        reasons.append(f"never matches ({matching}): {why_never(row['query'], matching)}")
    return {"text": text, "in_list": in_list, **row, "reasons": reasons}


def _numbers(listed: QueryList, place: int, row: dict[str, Any]) -> Iterator[str]:
    """What each source of a query says about it."""
    for source in (s for s in SOURCES if s in row["sources"]):
        if source == "synset":
            ids = row["synsets"] or []
            more = f" and {len(ids) - _SYNSETS_SHOWN:,} more" if len(ids) > _SYNSETS_SHOWN else ""
            yield f"synset: {', '.join(ids[:_SYNSETS_SHOWN])}{more}" if ids else "synset: one of the numerals"
            continue
        measure = listed.measure(source)
        ranked = listed.numbers(measure)[listed.having(source)]
        value = listed.numbers(measure)[place]
        rank = 1 + int(np.sum(ranked > value))
        known = {
            "word": f"{row['count']:,} occurrences" if row["count"] is not None else "",
            "bigram": f"PMI {row['pmi'] or 0:.2f}, {_times(row['count'] or 0)} together",
            "title": f"{row['views'] or 0:,} views",
        }[source]
        if measure == "npmi":
            known += f", NPMI {value:.3f}"
        yield f"{source}: {known}; rank {rank:,} of {len(ranked):,}{_cut(listed, measure)}"


def _cut(listed: QueryList, measure: str) -> str:
    least = listed.thresholds.get(measure)
    if least is None:
        return ""
    return f", the cut is at {least:.4g}" if isinstance(least, float) else f", the cut is at {least:,}"


def _why_not(listed: QueryList, text: str, present: Sequence[str]) -> Iterator[str]:
    """Why each source, but those that are present, does not name a text."""
    words = tokens(text)
    if not words:
        yield "no word to match: only punctuation or nothing"
        return
    if len(words) == 1 and "word" not in present:
        yield from _word_out(listed, words[0])
    if len(words) == 2 and "bigram" not in present:
        yield from _bigram_out(listed, words[0], words[1])
    if "title" not in present:
        yield from _title_out(listed, text)
    if "synset" not in present:
        yield from _synset_out(listed, text)


def _unknown(listed: QueryList, source: str, *inputs: str) -> str:
    """What there is to say without a side table."""
    if any(listed.config.get(name) for name in inputs):
        return f"{source}: below its minimum or its cut; the folder has lost its counts/{source}s.parquet"
    return f"{source}: no " + " or ".join(f"--{name.replace('_', '-')}" for name in inputs) + " was given"


def _occurrences(listed: QueryList, word: str) -> tuple[int | None, int]:
    """A word's count if it is known, and else a number that it stays below (0: it never occurs)."""
    place = pc.index(listed.table["query"], pa.scalar(word)).as_py()
    if place >= 0 and listed.having("word")[place]:
        return listed.table["count"][place].as_py(), 0
    found = listed.left_out("words")
    if found is None:
        return None, 0
    table, least = found
    place = pc.index(table["word"], pa.scalar(word)).as_py()
    return (table["count"][place].as_py(), 0) if place >= 0 else (None, least)


def _word_out(listed: QueryList, word: str) -> Iterator[str]:
    if listed.left_out("words") is None:
        yield _unknown(listed, "word", "wikipedia", "word_counts")
        return
    count, below = _occurrences(listed, word)
    asked = f"{listed.config.get('min_count', 1):,} asked"
    if count is not None:
        yield f"word: {count:,} occurrences, {asked}"
    else:
        yield f"word: fewer than {below:,} occurrences, {asked}" if below else "word: not in the corpus"


def _bigram_out(listed: QueryList, first: str, second: str) -> Iterator[str]:
    found = listed.left_out("bigrams")
    if found is None:
        yield _unknown(listed, "bigram", "wikipedia")
        return
    table, least = found
    place = pc.index(table["bigram"], pa.scalar(f"{first} {second}")).as_py()
    if place >= 0:
        yield _pair_out(listed, table["count"][place].as_py(), table["pmi"][place].as_py())
        return
    reasons = list(_words_of_pair(listed, (first, second)))
    if not reasons:
        reasons = [f"fewer than {least:,} times together" if least else "never next to each other"]
    yield "bigram: " + "; ".join(reasons)


def _pair_out(listed: QueryList, count: int, pmi: float) -> str:
    asked, pmi_min = listed.thresholds.get("bigram_min_count") or 1, listed.config.get("pmi_min", 0.0)
    if count < asked:
        return f"bigram: {_times(count)} together, {asked:,} asked (PMI {pmi:.2f})"
    if pmi < pmi_min:
        return f"bigram: PMI {pmi:.2f}, {pmi_min:g} asked ({_times(count)} together)"
    measure = listed.measure("bigram")
    if measure == "npmi":
        share = pmi / -math.log2(count / listed.manifest.extra["corpus_tokens"])
        return f"bigram: NPMI {share:.3f}{_cut(listed, measure)} ({_times(count)} together, PMI {pmi:.2f})"
    return f"bigram: PMI {pmi:.2f}{_cut(listed, measure)} ({_times(count)} together)"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _words_of_pair(listed: QueryList, pair: tuple[str, str]) -> Iterator[str]:
    """Which word keeps a pair from being counted at all."""
    asked = listed.config.get("min_count", 1)
    for word in dict.fromkeys(pair):
        count, below = _occurrences(listed, word)
        if count is None:
            yield f"{word!r} " + (f"occurs fewer than {below:,} times" if below else "is not in the corpus")
        elif listed.config.get("preset") == "metaclip":
            # A pair of rare words only is counted there: see queries.build.
            most = math.log2(max(listed.manifest.extra["corpus_tokens"], 1) / max(count, 1))
            if most < listed.config["pmi_min"]:
                yield (
                    f"{word!r} occurs {_times(count)}, so its pairs reach PMI {most:.2f} at most, "
                    f"{listed.config['pmi_min']:g} asked"
                )
        elif count < asked:
            yield f"{word!r} occurs {_times(count)}, a bigram's words need {asked:,}"


def _title_out(listed: QueryList, text: str) -> Iterator[str]:
    found = listed.left_out("titles")
    if found is None:
        yield _unknown(listed, "title", "pageviews")
        return
    table, least = found
    place = _place_of_title(table["title"], text)
    if place is None:
        beyond = f" with {least:,} views or more" if least else " that was viewed"
        yield f"title: none{beyond}"
        return
    row = table.slice(place, 1).to_pylist()[0]
    views = f"title {row['title']!r} with {row['views']:,} views"
    if row["state"] == runners_up.REDIRECT:
        yield f"{views}: a redirect, they count for {row['target']!r}"
    elif row["state"] == runners_up.NOT_IN_DUMP:
        yield f"{views}: the dump has no such page (--title-check none keeps it)"
    elif row["views"] < listed.config.get("views_min", 1):
        yield f"{views}, {listed.config['views_min']:,} asked"
    else:
        yield f"{views}{_cut(listed, 'views')}"


def _place_of_title(titles: pa.ChunkedArray, text: str) -> int | None:
    """The first, so the most viewed, title of the same words."""
    wanted = tokens(text)
    spelt = pc.index(pc.utf8_lower(titles), pa.scalar(" ".join(fold(text).split()))).as_py()
    if spelt >= 0:
        return int(spelt)
    # A title of the same words holds each of them as a substring, so few titles are left to be cut into words;
    # outside ASCII folding may change letters ("ß"), so all such titles are.
    likely = pa.scalar(True)
    for word in wanted:
        likely = pc.and_(likely, pc.match_substring(titles, word, ignore_case=True))
    places = np.flatnonzero(pc.or_(likely, pc.invert(pc.string_is_ascii(titles))).to_numpy())
    return next((int(p) for p in places if tokens(titles[int(p)].as_py()) == wanted), None)


def _synset_out(listed: QueryList, text: str) -> Iterator[str]:
    folder = listed.config.get("wordnet")
    if folder == NO_WORDNET:
        yield "synset: the list was made without WordNet"
        return
    try:
        holders = _lemmas(folder or wordnet.shipped()).get(tuple(tokens(text)))
    except InputError:
        return  # the list has outlived its input
    if holders is None:
        yield "synset: no lemma of WordNet"
    else:
        synset, first = holders
        yield f"synset: a further lemma of {synset} {first!r} (--synset-terms all_lemmas takes it)"


@functools.lru_cache(maxsize=1)
def _lemmas(folder: str) -> dict[tuple[str, ...], tuple[str, str]]:
    """Words of each lemma -> the first synset that has it: its id and first lemma."""
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    for synset in wordnet.read(folder):
        for lemma in synset.lemmas:
            found.setdefault(tuple(tokens(lemma)), (synset.id, synset.lemmas[0]))
    return found
