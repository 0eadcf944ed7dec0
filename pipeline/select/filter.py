"""The first pass of ``wit select``: clean, rules, language, safety, match; row by row, in batches.

A batch of candidates becomes a batch of *matched* rows (pairs without ``query_id``, with hashes beside them) and
dropped rows. Duplicates and repeated captions are found later, over everything that passed; as equal texts have equal
matches, that order changes no pair, and most candidates never need to be stored. (Texts that differ in case alone may
be judged differently: then the one that passed is no duplicate.)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import tables
from pipeline.core.contracts import CANDIDATES, PAIRS
from pipeline.core.tokens import fold
from pipeline.select.balance import pair_hash
from pipeline.select.config import SelectConfig
from pipeline.select.decide import HASHES
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
REMEMBERED: Final = 65_536
SHORT: Final = 200
"""Characters of a text that is remembered; longer ones are seldom repeated and would take much memory."""
MATCHED: Final = pa.schema(
    [
        *(f for f in PAIRS.schema if f.name != "query_id"),
        *(pa.field(name, pa.uint64(), nullable=False) for name in HASHES),
    ]
)
"""Rows that passed everything that can be judged alone.

``key_high, key_low``: 128 bits of (URL, folded text); ``caption_hash``: of the cleaned text; ``pair_hash``: keyed
by the seed; ``tie``: of the whole candidate, to choose between duplicates.
"""


class Described(NamedTuple):
    """A text that describes something in English."""

    text: str
    language: Language


class Lost(NamedTuple):
    """Why a row is dropped, and the detail that is kept of it."""

    reason: str
    detail: str | None


Verdict = Described | Lost


class Judge:
    """Cleans texts and applies rules, language and word list; what the web repeats is judged once.

    Args:
        detector: Tells the language.
        preset: The rules.
        drop_offensive: Whether texts with a word of the block list go.
    """

    def __init__(
        self, detector: LanguageDetector, preset: tuple[rules.Rule, ...], *, drop_offensive: bool
    ) -> None:
        self._detector, self._preset, self._drop_offensive = detector, preset, drop_offensive
        self._remembered = functools.lru_cache(maxsize=REMEMBERED)(self._judged)

    def __call__(self, as_found: str, page_language: str | None) -> Verdict:
        """The cleaned text and its language, or the reason and the detail that a row with this text is dropped with."""
        judged = self._remembered if len(as_found) <= SHORT else self._judged
        return judged(as_found, page_language)

    def _judged(self, as_found: str, page_language: str | None) -> Verdict:
        text = clean(as_found)
        if reason := rules.broken_rule(text, self._preset):
            return Lost(reason, as_found)
        language = self._detector.detect(text, page_language)
        if language.code != "en":
            return Lost("not_english", f"{language.code} {language.score}: {text}")
        if self._drop_offensive and (term := offensive_term(text)) is not None:
            return Lost("offensive", term)
        return Described(text, language)


@dataclass(frozen=True, slots=True)
class Tools:
    """What a worker needs for any batch; built once per process."""

    matcher: Matcher
    judge: Judge
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
    detector = make_detector(config.language, english_words(_sourced(listed)))
    preset = rules.PRESETS[config.rules]
    return Tools(
        matcher=Matcher(listed, config.matching, stored=stored),
        judge=Judge(detector, preset, drop_offensive=config.drop_offensive),
        seed=config.seed,
    )


def _sourced(listed: pa.Table) -> Iterator[tuple[str, list[str]]]:
    """Queries and sources, read by the backends that want words."""
    for batch in listed.select(["query", "sources"]).to_batches(max_chunksize=65_536):
        yield from zip(batch["query"].to_pylist(), batch["sources"].to_pylist(), strict=True)


def filter_and_match(batch: pa.Table, tools: Tools) -> tuple[pa.Table, pa.Table]:
    """Judges a batch of candidates.

    Args:
        batch: ``candidates/1``.
        tools: See :func:`load_tools`.

    Returns:
        Rows of :data:`MATCHED`, and ``dropped`` rows; together as many as came in.
    """
    texts, pages = (batch.column(name).to_pylist() for name in ("text", "page_language"))
    verdicts: list[Verdict] = list(map(tools.judge, texts, pages))
    for row, entry in _blocked(batch, tools.denied).items():
        verdicts[row] = Lost("blocked_host", entry)
    passed = [row for row, verdict in enumerate(verdicts) if type(verdict) is Described]
    described = [v for v in verdicts if type(v) is Described]
    cleaned = pa.array([d.text for d in described], pa.string())
    matches = tools.matcher.match(cleaned)
    counts = np.bincount(matches.rows, minlength=len(passed))
    for place in np.flatnonzero(counts == 0).tolist():
        verdicts[passed[place]] = Lost("no_query", described[place].text)
    found_any = np.flatnonzero(counts)
    rows = batch.take(pa.array(np.array(passed, dtype=np.int64)[found_any]))
    starts = np.r_[0, np.cumsum(counts[found_any])].astype(np.int32)
    languages = [described[place].language for place in found_any.tolist()]
    matched = _matched(
        rows,
        cleaned.take(pa.array(found_any)),
        languages,
        pa.ListArray.from_arrays(starts, pa.array(matches.query_ids, pa.int32())),
        tools.seed,
    )
    return matched, _dropped(batch, verdicts)


def _dropped(batch: pa.Table, verdicts: Sequence[Verdict]) -> pa.Table:
    lost = [(row, verdict) for row, verdict in enumerate(verdicts) if type(verdict) is Lost]
    ids = batch.column("pair_id").take(pa.array([row for row, _ in lost], pa.int64())).to_pylist()
    told = [(verdict.reason, pair, verdict.detail) for (_, verdict), pair in zip(lost, ids, strict=True)]
    return tables.dropped_table(STAGE, told)


def _blocked(batch: pa.Table, denied: DenyList | None) -> dict[int, str]:
    """Rows whose image or page is on the deny list, with the line they fall under."""
    found: dict[int, str] = {}
    for name in ("page_url", "url") if denied else ():
        for row, url in enumerate(batch.column(name).to_pylist()):
            if url and denied and (entry := denied.entry(url)) is not None:
                found[row] = entry
    return found


def _matched(
    rows: pa.Table, texts: pa.Array, languages: Sequence[Language], query_ids: pa.ListArray, seed: int
) -> pa.Table:
    folded = map(fold, texts.to_pylist())
    urls, ids = rows.column("url").to_pylist(), rows.column("pair_id").to_pylist()
    key = _hashes((f"{url}\0{text}".encode() for url, text in zip(urls, folded, strict=True)), words=2)
    columns: dict[str, Any] = {name: rows.column(name) for name in CANDIDATES.schema.names if name != "text"}
    columns |= {
        "text": texts,
        "language": pa.array([found.code for found in languages], pa.string()),
        "language_score": pa.array([found.score for found in languages], pa.float64()),
        "query_ids": query_ids.cast(MATCHED.field("query_ids").type),
        "key_high": pa.array(key[:, 0]),
        "key_low": pa.array(key[:, 1]),
        "caption_hash": pa.array(_hashes(texts.cast(pa.binary()).to_pylist(), words=1)[:, 0]),
        "pair_hash": pa.array(pair_hash(ids, seed)),
        "tie": pa.array(_hashes(_whole(rows).to_pylist(), words=1)[:, 0]),
    }
    return pa.table([columns[name] for name in MATCHED.names], schema=MATCHED)


def _whole(rows: pa.Table) -> pa.ChunkedArray:
    """Each candidate as one string of bytes; different ones differ."""
    columns = []
    for name in CANDIDATES.schema.names:
        column = rows.column(name)
        if pa.types.is_list(column.type):
            column = pc.binary_join(column.cast(pa.list_(pa.binary())), b"\xfe")
        elif not pa.types.is_string(column.type):
            column = column.cast(pa.string())
        columns.append(column.cast(pa.binary()))
    # UTF-8 has no such bytes: a missing value is no empty one, and no text moves from one column to the next.
    return pc.binary_join_element_wise(
        *columns, pa.scalar(b"\xff", pa.binary()), null_handling="replace", null_replacement=b"\xfd"
    )


def _hashes(values: Iterable[bytes], *, words: int) -> np.ndarray:
    """uint64[n, words]: BLAKE2b of each string."""
    digests = b"".join([hashlib.blake2b(value, digest_size=8 * words).digest() for value in values])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64).reshape(-1, words)
