"""The first pass of ``wit select``: clean, rules, language, safety, match; row by row, in batches.

A batch of candidates becomes a batch of *matched* rows (pairs without ``query_id``, with hashes beside them) and
dropped rows. Duplicates and repeated captions are found later, over everything that passed; as equal texts have equal
matches, that order changes no pair, and most candidates never need to be stored. (Texts that differ in case alone may
be judged differently: then the one that passed is no duplicate.)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.core import tables
from pipeline.core.contracts import CANDIDATES, DROPPED, PAIRS
from pipeline.core.tokens import fold
from pipeline.select.balance import pair_hash
from pipeline.select.config import SelectConfig
from pipeline.select.match import Matcher
from pipeline.text import rules
from pipeline.text.clean import clean
from pipeline.text.language import Language, LanguageDetector, make_detector
from pipeline.text.safety import DenyList, offensive_term, read_deny_list
from pipeline.text.vocabulary import english_words

STAGE: Final = "select"
REASONS: Final = (
    "blocked_host",
    *rules.REASONS,
    "not_english",
    "offensive",
    "no_query",
    "duplicate",  # the same URL and cleaned text, in whatever case, or the same pair found on several pages
    "caption_repeated",  # more images share the caption than max_images_per_caption
    "over_cap",  # every query of the pair is full (cap), or no draw succeeded (sample)
)
_HASHES: Final = ("key_high", "key_low", "caption_hash", "pair_hash", "tie")
MATCHED: Final = pa.schema(
    [
        *(f for f in PAIRS.schema if f.name != "query_id"),
        *(pa.field(name, pa.uint64(), nullable=False) for name in _HASHES),
    ]
)
"""Rows that passed everything that can be judged alone.

``key_high, key_low``: 128 bits of (URL, folded text); ``caption_hash``: of the cleaned text; ``pair_hash``: keyed
by the seed; ``tie``: of the whole candidate, to choose between duplicates.
"""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a worker needs for any batch; built once per process."""

    matcher: Matcher
    detector: LanguageDetector
    rules: tuple[rules.Rule, ...]
    drop_offensive: bool
    seed: int
    denied: DenyList | None = None


def load_tools(
    files: tuple[str, ...], identity: str, config: SelectConfig, stored: str | None = None
) -> Tools:
    """Reads the query list, maps the matcher's table and builds the detector.

    Args:
        files: Parts of the query list.
        identity: Hash of the list's manifest, so that a changed list is read again.
        config: The stage's configuration.
        stored: What :func:`store_matcher` wrote; without it, or if it is not this list's, it is built here.
    """
    tools = _tools(files, identity, config, stored)
    # Read anew each time: its content is part of no key.
    return replace(tools, denied=read_deny_list(config.blocked_hosts)) if config.blocked_hosts else tools


@functools.lru_cache(maxsize=1)
def _tools(files: tuple[str, ...], identity: str, config: SelectConfig, stored: str | None) -> Tools:
    return make_tools(_listed(files), config, stored)


def store_matcher(files: tuple[str, ...], config: SelectConfig, path: str) -> None:
    """Builds the matcher of a query list for all workers to map."""
    Matcher(_listed(files), config.matching).store(path)


def _listed(files: tuple[str, ...]) -> pa.Table:
    return tables.read_files(files, columns=["query_id", "query", "sources"])


def make_tools(listed: pa.Table, config: SelectConfig, stored: str | None = None) -> Tools:
    """Tools from a ``queries/1`` table."""
    queries = listed.column("query").to_pylist()
    sources = listed.column("sources").to_pylist()
    return Tools(
        matcher=Matcher(listed, config.matching, stored=stored),
        detector=make_detector(config.language, english_words(zip(queries, sources, strict=True))),
        rules=rules.PRESETS[config.rules],
        drop_offensive=config.drop_offensive,
        seed=config.seed,
    )


@dataclass(frozen=True, slots=True)
class Described:
    """A text that describes something in English."""

    text: str
    language: Language


def judged(as_found: str, page_language: str | None, *, tools: Tools) -> Described | tuple[str, str | None]:
    """The cleaned text and its language, or the reason and the detail that a row with this text is dropped with."""
    text = clean(as_found)
    if reason := rules.broken_rule(text, tools.rules):
        return reason, as_found
    language = tools.detector.detect(text, page_language)
    if language.code != "en":
        return "not_english", f"{language.code} {language.score}: {text}"
    if tools.drop_offensive and (term := offensive_term(text)) is not None:
        return "offensive", term
    return Described(text, language)


def filter_and_match(batch: pa.Table, tools: Tools) -> tuple[pa.Table, pa.Table]:
    """Judges a batch of candidates.

    Args:
        batch: ``candidates/1``.
        tools: See :func:`load_tools`.

    Returns:
        Rows of :data:`MATCHED`, and ``dropped`` rows; together as many as came in.
    """
    kept: list[int] = []
    described: list[Described] = []
    lost: list[tuple[str, str, str | None]] = []
    ids = batch.column("pair_id").to_pylist()
    blocked = _blocked(batch, tools.denied)
    # Equal texts are judged equally, and the web's pages repeat theirs.
    judge = functools.cache(functools.partial(judged, tools=tools))
    found = zip(batch.column("text").to_pylist(), batch.column("page_language").to_pylist(), strict=True)
    for row, (as_found, page_language) in enumerate(found):
        if row in blocked:
            lost.append(("blocked_host", ids[row], blocked[row]))
            continue
        verdict = judge(as_found, page_language)
        if isinstance(verdict, Described):
            kept.append(row)
            described.append(verdict)
        else:
            lost.append((verdict[0], ids[row], verdict[1]))
    texts = [d.text for d in described]
    cleaned = pa.array(texts, pa.string())
    matches = tools.matcher.match(cleaned)
    counts = np.bincount(matches.rows, minlength=len(texts))
    lost += [("no_query", ids[kept[i]], texts[i]) for i in np.flatnonzero(counts == 0)]
    found_any = np.flatnonzero(counts)
    rows = batch.take(pa.array(np.array(kept, dtype=np.int64)[found_any], pa.int64()))
    matched = _matched(
        rows,
        [texts[i] for i in found_any],
        [described[i].language.code for i in found_any],
        [described[i].language.score for i in found_any],
        pa.ListArray.from_arrays(
            np.r_[0, np.cumsum(counts[found_any])].astype(np.int32), pa.array(matches.query_ids, pa.int32())
        ),
        tools.seed,
    )
    dropped = tables.dropped_table(STAGE, lost) if lost else DROPPED.empty()
    return matched, dropped


def _blocked(batch: pa.Table, denied: DenyList | None) -> dict[int, str]:
    """Rows whose image or page is on the deny list, with the line they fall under."""
    found: dict[int, str] = {}
    for name in ("page_url", "url") if denied else ():
        for row, url in enumerate(batch.column(name).to_pylist()):
            if url and denied and (entry := denied.entry(url)) is not None:
                found[row] = entry
    return found


def _matched(
    rows: pa.Table,
    texts: Sequence[str],
    codes: Sequence[str],
    scores: Sequence[float],
    query_ids: pa.ListArray,
    seed: int,
) -> pa.Table:
    urls, ids = rows.column("url").to_pylist(), rows.column("pair_id").to_pylist()
    key = _hashes((f"{url}\0{fold(text)}" for url, text in zip(urls, texts, strict=True)), words=2)
    columns: dict[str, Any] = {name: rows.column(name) for name in CANDIDATES.schema.names if name != "text"}
    columns |= {
        "text": pa.array(texts, pa.string()),
        "language": pa.array(codes, pa.string()),
        "language_score": pa.array(scores, pa.float64()),
        "query_ids": query_ids.cast(MATCHED.field("query_ids").type),
        "key_high": pa.array(key[:, 0]),
        "key_low": pa.array(key[:, 1]),
        "caption_hash": pa.array(_hashes(texts, words=1)[:, 0]),
        "pair_hash": pa.array(pair_hash(ids, seed)),
        "tie": pa.array(_hashes(map(repr, rows.to_pylist()), words=1)[:, 0]),
    }
    return pa.table([columns[name] for name in MATCHED.names], schema=MATCHED)


def _hashes(values: Iterable[str], *, words: int) -> np.ndarray:
    """uint64[n, words]: BLAKE2b of each string."""
    digests = b"".join(
        hashlib.blake2b(v.encode(errors="replace"), digest_size=8 * words).digest() for v in values
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64).reshape(-1, words)
