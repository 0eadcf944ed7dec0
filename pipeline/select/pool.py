"""What a balance chooses from, as arrays, with what a plan asks of each pair: its words, its URL and its host.

A pool comes from candidates, by the real filters and the real matcher, or from a finished ``pairs/1`` folder and its
full counts. A sample of candidates is drawn by a keyed hash of the URL, so that duplicates stay together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import manifest, paths, tables
from pipeline.core.contracts import CANDIDATES, PAIRS, QUERIES, QUERY_COUNTS
from pipeline.core.errors import InputError
from pipeline.core.progress import tick
from pipeline.select.balance import Wishes, counted, pair_hash, rank_of
from pipeline.select.config import SelectConfig
from pipeline.select.decide import HASHES, lists, packed, rows_of, thinned, united, values
from pipeline.select.filter import filter_and_match, load_tools
from pipeline.select.stage import BATCH_ROWS, COUNTS, query_count

NO_HOST: Final = -1
_SAMPLE_KEY: Final = b"wit plan sample"


@dataclass(frozen=True, eq=False)
class Pool:
    """Pairs that passed everything but the balance.

    Attributes:
        wishes: The queries that each pair contains, and how many pairs contain each query.
        pair: uint64[n], keyed hash of each pair.
        rank: int64[n], the pairs' order by it.
        words: int32[n], words of each text.
        url: uint64[n], hash of each URL.
        host: int32[n], place of its host in ``hosts``; -1 for a URL that will not be asked for.
        hosts: Names.
        share: Share of all candidates that was looked at.
        read: Candidates that were looked at.
        made_with: The cap that a folder of pairs was made with, if it turned pairs away: no larger one can be told.
        capped: How many queries that cap stopped.
    """

    wishes: Wishes
    pair: np.ndarray
    rank: np.ndarray
    words: np.ndarray
    url: np.ndarray
    host: np.ndarray
    hosts: tuple[str, ...]
    share: float
    read: int
    made_with: int | None = None
    capped: int = 0

    def __len__(self) -> int:
        return len(self.pair)


def from_candidates(config: SelectConfig, share: float) -> Pool:
    """Filters, matches and unites duplicates as ``wit select`` does, in one process.

    Memory is that of the arrays of what is kept, some 100 bytes for each pair of a few queries.

    Args:
        config: The selection; its cap and mode play no part.
        share: Share of the URLs to look at, above 0 and at most 1.

    Raises:
        InputError: An input is missing, unfinished, damaged or another table, or the sample is empty.
    """
    candidates, queries = str(config.candidates), str(config.queries)
    parts = tables.part_files(candidates, CANDIDATES)
    query_parts = tuple(tables.part_files(queries, QUERIES))
    size = query_count(query_parts)
    tools = load_tools(query_parts, manifest.read(queries).sha256, config)
    held, offered, read = _Held(), 0, 0
    for batch in tables.read_batches(parts, columns=CANDIDATES.schema.names, batch_rows=BATCH_ROWS):
        tick(batch.num_rows)
        offered += batch.num_rows
        table = CANDIDATES.conform(pa.Table.from_batches([batch]))
        if share < 1:
            table = table.filter(pa.array(sampled(table.column("url").to_pylist(), share)))
        read += table.num_rows
        held.add(filter_and_match(table, tools)[0])
    if offered and not read:
        raise InputError(
            "the sample took no candidate",
            where=candidates,
            found=f"{offered:,}",
            hint="pass a larger --sample",
        )
    # What was taken, not what was asked for: so the luck of the draw is not scaled up.
    share = read / offered if offered else 1.0
    # A caption's images are thinned out like everything else.
    images = max(1, round(config.max_images_per_caption * share))
    kept = thinned(united(held.packed())[0], images)[0]
    rows, pair, (indptr, query_ids) = rows_of(kept), values(kept, "pair_hash"), lists(kept)
    return Pool(
        wishes=counted(indptr, query_ids, queries=size),
        pair=pair,
        rank=rank_of(pair, values(kept, "tie")),
        words=held.take("words")[rows],
        url=held.take("url")[rows],
        host=held.take("host")[rows],
        hosts=held.hosts,
        share=share,
        read=read,
    )


def from_pairs(folder: str) -> Pool:
    """The pairs of a finished ``wit select``, with the counts of all that were balanced.

    What a cap turns away leaves no trace in the pairs of a smaller cap (see :mod:`pipeline.select.balance`), so kept
    pairs and full counts are enough.

    Raises:
        InputError: The folder is missing, unfinished or not one of ``wit select``.
    """
    parts = tables.part_files(folder, PAIRS)
    made = manifest.read(folder)
    counts_file = paths.join(folder, COUNTS)
    if not paths.exists(counts_file) or "cap" not in made.config:
        raise InputError("not made by `wit select`", where=folder, expected=f"{COUNTS} and a cap")
    QUERY_COUNTS.check(tables.read_schema(counts_file), where=counts_file)
    counts = tables.read_files([counts_file]).sort_by("query_id")
    matched = counts.column("matched").to_numpy()
    held = _Held()
    seed = int(made.config["seed"])
    for batch in tables.read_batches(parts, columns=["pair_id", "url", "text", "rights", "query_ids"]):
        tick(batch.num_rows)
        held.add_pairs(pa.Table.from_batches([batch]), seed)
    query_ids = held.take("query_ids").astype(np.int32)
    if not 0 <= query_ids.max(initial=0) < max(1, len(matched)):
        raise InputError(
            "the pairs name queries that were not counted",
            where=counts_file,
            expected=f"query_id below {len(matched):,}",
            found=f"{query_ids.max():,}",
        )
    wishes = Wishes(held.indptr(), query_ids, matched)
    pair = held.take("pair_hash").astype(np.uint64)
    return Pool(
        wishes=wishes,
        pair=pair,
        rank=rank_of(pair, np.zeros(len(pair), np.uint64)),
        words=held.take("words"),
        url=held.take("url"),
        host=held.take("host"),
        hosts=held.hosts,
        share=1.0,
        read=made.rows_in,
        made_with=int(made.config["cap"]) if made.dropped.get("over_cap") else None,
        capped=int(made.extra.get("queries_capped", 0)),
    )


def sampled(urls: Iterable[str], share: float) -> np.ndarray:
    """bool[n]: which URLs a sample takes; a larger share takes all that a smaller one takes, and more."""
    return _hashes(urls, _SAMPLE_KEY) < min(int(share * 2**64), 2**64 - 1)


def host_of(url: str) -> str:
    """The host that is asked for a URL; empty if nobody is."""
    try:
        parts = urlsplit(url.strip())
        return (parts.hostname or "") if parts.scheme in ("http", "https") else ""
    except ValueError:
        return ""


class _Held:
    """Arrays of what was matched so far; a column that was taken is no longer held."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[np.ndarray]] = {}
        self._hosts: dict[str, int] = {}

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(self._hosts)

    def add(self, matched: pa.Table) -> None:
        """Takes rows of the first pass, with its hashes."""
        self._keep({name: matched.column(name).to_numpy() for name in HASHES})
        self._add_facts(matched)

    def add_pairs(self, pairs: pa.Table, seed: int) -> None:
        """Takes rows of ``pairs/1``, which are no duplicates of one another."""
        self._keep({"pair_hash": pair_hash(pairs.column("pair_id").to_pylist(), seed)})
        self._add_facts(pairs)

    def _add_facts(self, table: pa.Table) -> None:
        urls = table.column("url").to_pylist()
        opted_out = pc.list_value_length(table.column("rights")).to_numpy() > 0
        hosts = (host_of(url) for url in urls)
        places = (self._hosts.setdefault(h, len(self._hosts)) if h else NO_HOST for h in hosts)
        place = np.fromiter(places, dtype=np.int32, count=len(urls))
        # Cleaned texts have single spaces.
        words = pc.add(pc.count_substring(table.column("text"), " "), 1)
        lists = table.column("query_ids")
        self._keep(
            {
                "words": words.to_numpy().astype(np.int32),
                "url": _hashes(urls),
                "host": np.where(opted_out, NO_HOST, place).astype(np.int32),
                "lengths": pc.list_value_length(lists).to_numpy().astype(np.int32),
                "query_ids": pc.list_flatten(lists).to_numpy().astype(np.int32),
            }
        )

    def _keep(self, chunks: dict[str, np.ndarray]) -> None:
        for name, chunk in chunks.items():
            self._chunks.setdefault(name, []).append(chunk)

    def take(self, name: str) -> np.ndarray:
        """All values of a column, in the order they came."""
        chunks = self._chunks.pop(name, None)
        return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)

    def indptr(self) -> np.ndarray:
        """int64[n + 1], where each row's queries begin."""
        return np.r_[0, np.cumsum(self.take("lengths"), dtype=np.int64)]

    def packed(self) -> pa.Table:
        """What duplicates, captions and balance need to know."""
        columns: dict[str, Any] = {name: self.take(name).astype(np.uint64) for name in HASHES}
        columns["query_ids"] = pa.ListArray.from_arrays(
            self.indptr().astype(np.int32), self.take("query_ids").astype(np.int32)
        )
        return packed(pa.table(columns), 0)


def _hashes(texts: Iterable[str], key: bytes = b"") -> np.ndarray:
    digests = b"".join(
        hashlib.blake2b(v.encode(errors="replace"), digest_size=8, key=key).digest() for v in texts
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
