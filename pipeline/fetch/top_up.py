"""``--top-up``: dead links give way to the next candidates of the same queries.

In rounds the balance of ``wit select`` is made again over pairs and reserve without those whose image failed; what
is newly selected is fetched; until nothing is. The balance is deferred acceptance, and in it nobody does worse when
others leave, so a pair that was fetched stays selected. The end is therefore exactly the balance that would have
been made, at the same counts, had the dead links not been among pairs and reserve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import manifest, paths, tables
from pipeline.core.contracts import PAIRS, QUERY_COUNTS
from pipeline.core.errors import InputError, UsageError
from pipeline.fetch.shards import MARKS
from pipeline.fetch.staging import write_parquet
from pipeline.select.balance import NOT_KEPT, Wishes, choose_cap, pair_hash, rank_of

RESERVE: Final = "reserve"
COUNTS: Final = "query-counts.parquet"


@dataclass(frozen=True, slots=True)
class Pool:
    """Everything that may be selected: pairs and reserve, in the order of ``pair_id``.

    Attributes:
        ids: string[n], ``pair_id``.
        rank: int64[n], who chooses first.
        indptr: int64[n + 1] into ``query_ids``.
        query_ids: int32[m], queries that each contains.
        matched: int64[q], pairs that contained each query when ``wit select`` counted.
        cap: Most pairs per query.
    """

    ids: pa.Array
    rank: np.ndarray
    indptr: np.ndarray
    query_ids: np.ndarray
    matched: np.ndarray
    cap: int

    def selected(self, failed: pa.Array) -> np.ndarray:
        """int32[n]: the query that each counts for when the ``failed`` (ids) are not there, or -1."""
        alive = np.flatnonzero(~pc.is_in(self.ids, value_set=failed).to_numpy(zero_copy_only=False))
        lengths = np.diff(self.indptr)
        kept = np.zeros(len(self.ids), dtype=bool)
        kept[alive] = True
        indptr = np.r_[0, np.cumsum(lengths[alive])].astype(np.int64)
        wishes = Wishes(indptr, self.query_ids[np.repeat(kept, lengths)], self.matched)
        outcome = np.full(len(self.ids), NOT_KEPT, dtype=np.int32)
        outcome[alive] = choose_cap(wishes, self.rank[alive], cap=self.cap).query_id
        return outcome


def check(pairs: str) -> tuple[int, int]:
    """Cap and seed of a folder of pairs that can be topped up.

    Raises:
        UsageError: It was not selected by cap, or has no reserve.
    """
    made = manifest.read(pairs).config
    if made.get("mode", "cap") != "cap" or "cap" not in made:
        raise UsageError(
            "--top-up needs pairs that were selected with --mode cap", where=pairs, found=made.get("mode")
        )
    if not paths.exists(paths.join(pairs, RESERVE)) or not paths.exists(paths.join(pairs, COUNTS)):
        raise UsageError(
            "--top-up needs a reserve beside the pairs",
            where=pairs,
            expected=f"{RESERVE}/part-*.parquet and {COUNTS}",
            hint="make it with `wit select --reserve 0.5`",
        )
    return int(made["cap"]), int(made.get("seed", 0))


def read_pool(files: Iterable[str], counts: str, *, cap: int, seed: int) -> Pool:
    """Reads pairs and reserve as arrays: about 60 bytes a pair and 4 for each query that it contains."""
    batches = list(tables.read_batches(files, columns=["pair_id", "query_ids"]))
    table = pa.Table.from_batches(batches, schema=batches[0].schema).sort_by("pair_id").combine_chunks()
    ids = table.column("pair_id").combine_chunks()
    lists = table.column("query_ids").combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy()
    counted = tables.read_files([counts], columns=["query_id", "matched"]).sort_by("query_id")
    hashes = pair_hash(ids.to_pylist(), seed)
    return Pool(
        ids=ids,
        rank=rank_of(hashes, np.arange(len(ids), dtype=np.uint64)),
        indptr=np.r_[0, np.cumsum(lengths)].astype(np.int64),
        query_ids=pc.list_flatten(lists).to_numpy().astype(np.int32),
        matched=counted.column("matched").to_numpy(),
        cap=cap,
    )


class TopUp:
    """The rounds of one run.

    Args:
        pairs: Folder of ``wit select``.
        files: Its parts.
        work: The staging folder; what was drawn stays there for a killed run.
    """

    def __init__(self, pairs: str, files: list[str], work: str) -> None:
        cap, seed = check(pairs)
        self.work, self.where = work, pairs
        self.reserve = paths.list_files(paths.join(pairs, RESERVE), suffixes=(".parquet",))
        counts = paths.join(pairs, COUNTS)
        for contract, listed in ((PAIRS, self.reserve), (QUERY_COUNTS, [counts])):
            for file in listed:
                contract.check(tables.read_schema(file), where=file)
        self.pool = read_pool([*files, *self.reserve], counts, cap=cap, seed=seed)
        self.drawn = 0
        self.short = 0
        self._attempted = tables.read_files(files, columns=["pair_id"]).column("pair_id").combine_chunks()
        self._check_belongs()

    def _check_belongs(self) -> None:
        chosen = self.pool.ids.filter(pa.array(self._selected([]) != NOT_KEPT))
        if len(chosen) != len(self._attempted) or not pc.all(pc.is_in(chosen, self._attempted)).as_py():
            raise InputError(
                "pairs and reserve do not belong together",
                where=self.where,
                expected=f"{len(self._attempted):,} pairs to be selected of both",
                found=f"{len(chosen):,} or others",
                hint="make them again with `wit select --reserve 0.5`",
            )

    def _selected(self, joined: Iterable[str]) -> np.ndarray:
        return self.pool.selected(failed_pairs(joined))

    def draw(self, number: int, joined: list[str]) -> list[str]:
        """The files of the pairs that round ``number`` has to fetch, none if there is nothing to replace or with.

        Args:
            number: Of the round, from 1.
            joined: Files of the pairs that were attempted, with what became of them.
        """
        chosen = self.pool.ids.filter(pa.array(self._selected(joined) != NOT_KEPT))
        new = chosen.filter(pc.invert(pc.is_in(chosen, self._attempted)))
        if not len(new):
            return []
        self.drawn += len(new)
        self._attempted = pa.concat_arrays([self._attempted, new])
        folder = paths.join(self.work, "drawn", f"{number:05d}")
        query = pa.table({"pair_id": self.pool.ids, "query_id": self._selected(joined)})
        with tables.PartWriter(folder, PAIRS) as parts:
            for batch in tables.read_batches(self.reserve):
                wanted = pa.Table.from_batches([batch]).filter(pc.is_in(batch.column("pair_id"), new))
                parts.write(_counting_for(wanted, query))
        return paths.list_files(folder, suffixes=(".parquet",))

    def finish(self, joined: list[str]) -> list[str]:
        """A file of marks with the query that each living pair counts for in the end."""
        final = self._selected(joined)
        before = tables.read_files(joined, columns=["pair_id", "query_id", "reason"])
        place = pc.index_in(before.column("pair_id"), self.pool.ids).to_numpy()
        query = final[place]
        alive = before.column("reason").is_null().to_numpy()
        first = self._selected([])
        wanted = np.bincount(first[first >= 0], minlength=len(self.pool.matched))
        got = np.bincount(query[alive & (query >= 0)], minlength=len(self.pool.matched))
        self.short = int((got < wanted).sum())
        changed = alive & (query >= 0) & (query != before.column("query_id").to_numpy())
        marks = {"pair_id": before.column("pair_id").filter(pa.array(changed)), "query_id": query[changed]}
        nothing = {f.name: pa.nulls(int(changed.sum()), f.type) for f in MARKS if f.name not in marks}
        path = paths.join(self.work, "final.parquet")
        write_parquet(path, pa.table(marks | nothing).select(MARKS.names).cast(MARKS))
        return [path]

    def report(self, rounds: int) -> dict[str, int]:
        """What the manifest says: rounds, pairs drawn, and queries with fewer pairs than were selected for them."""
        return {"rounds": rounds, "drawn": self.drawn, "queries_short": self.short}


def failed_pairs(joined: Iterable[str]) -> pa.Array:
    """The ``pair_id`` of pairs without an image."""
    found = [
        batch.column("pair_id").filter(pc.is_valid(batch.column("reason")))
        for batch in tables.read_batches(joined, columns=["pair_id", "reason"])
    ]
    return pa.concat_arrays(found) if found else pa.array([], pa.string())


def _counting_for(pairs: pa.Table, query: pa.Table) -> pa.Table:
    """Pairs with the query that they count for now, not the one that they stood in reserve for."""
    place = pc.index_in(pairs.column("pair_id"), query.column("pair_id").combine_chunks())
    chosen = query.column("query_id").take(place).cast(pa.int32())
    return pairs.set_column(pairs.column_names.index("query_id"), "query_id", chosen)
