"""Why the balance kept a pair or turned it away: its queries, their counts, its draw and theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.core import paths, tables
from pipeline.core.contracts import PAIRS, QUERIES, QUERY_COUNTS
from pipeline.core.errors import InputError
from pipeline.report.figures import Run
from pipeline.select.balance import draw, pair_hash
from pipeline.select.match import Matcher

Row = dict[str, Any]
_DETAIL_CHARS = 500  # of a dropped text, `dropped/` keeps so many
_QUERIES = ["query_id", "query"]


@dataclass(frozen=True)
class Balance:
    """A run's balance, as far as some pairs ask for it.

    Attributes:
        config: Of ``wit select``; empty for pairs that were selected elsewhere.
        queries: Text of the queries that the pairs contain, if the run has its list.
        counts: ``matched`` and ``selected`` of these queries, if they were counted.
        last: The greatest draw that each query kept (mode ``cap``).
        contained: Query ids by the text of a pair that was turned away.
    """

    config: Mapping[str, Any]
    queries: Mapping[int, str]
    counts: Mapping[int, Row]
    last: Mapping[int, float]
    contained: Mapping[str, list[int]]

    @classmethod
    def read(cls, run: Run, pairs: Sequence[Row], lost: Mapping[str, Sequence[Row]]) -> Balance:
        """Reads what explains these pairs and these dropped rows.

        Raises:
            InputError: A table is damaged.
        """
        if "pairs" not in run.stages:
            return cls({}, {}, {}, {}, {})
        folder, config = paths.join(run.folder, "pairs"), run.stages["pairs"].config
        listed = _query_files(run)
        texts = sorted({r["detail"] for rows in lost.values() for r in rows if r["reason"] == "over_cap"})
        contained = _match(listed, texts, str(config.get("matching", "clean"))) if texts and listed else {}
        ids = sorted({i for p in pairs for i in p["query_ids"]} | {i for f in contained.values() for i in f})
        chosen = pc.field("query_id").isin(ids)
        counts_file = paths.join(folder, f"{QUERY_COUNTS.name}.parquet")
        counted = [counts_file] if paths.exists(counts_file) else []
        counts = _find(counted if ids else [], ["query_id", "matched", "selected"], chosen)
        names = _find(listed if ids else [], _QUERIES, chosen)
        last: dict[int, float] = {}
        if config.get("mode") == "cap" and any(row["selected"] >= config["cap"] for row in counts):
            rivals = _find(tables.part_files(folder, PAIRS), ["pair_id", "query_id"], chosen)
            seed = int(config["seed"])
            for row, value in zip(rivals, _draws([r["pair_id"] for r in rivals], seed), strict=True):
                last[row["query_id"]] = max(value, last.get(row["query_id"], 0.0))
        return cls(
            config,
            {row["query_id"]: row["query"] for row in names},
            {row["query_id"]: row for row in counts},
            last,
            contained,
        )

    def of_pair(self, row: Row) -> dict[str, Any]:
        """Why a kept pair counts for its query."""
        told = self._asked(row["pair_id"], row["query_ids"], row["query_id"])
        name = self.queries.get(row["query_id"])
        named = f"query {row['query_id']}" if name is None else repr(name)
        language = f"language {row['language']} {row['language_score']:.2f}"
        return {
            "text": row["text"],
            "language": row["language"],
            "query_id": row["query_id"],
            "query_ids": row["query_ids"],
            "queries": told,
            "reasons": [
                f"cleaned text {row['text']!r}, {language}",
                f"counts for {named}",
                *map(self._line, told),
            ],
        }

    def of_dropped(self, row: Row) -> dict[str, Any]:
        """Why a row was dropped: its reason, and for a pair that lost the balance its draws."""
        reasons = [f"{row['reason']}: {row['detail']}" if row["detail"] else str(row["reason"])]
        if row["reason"] == "caption_repeated" and "max_images_per_caption" in self.config:
            reasons.append(f"more than {self.config['max_images_per_caption']:,} pictures have this text")
        ids = self.contained.get(row["detail"] or "", []) if row["reason"] == "over_cap" else []
        if not ids:
            return {"reasons": reasons}
        told = self._asked(row["id"], ids, None)
        reasons.append(
            "every query that it contains is full, with pairs of smaller draws"
            if self.config.get("mode") == "cap"
            else "no draw succeeded"
        )
        if len(row["detail"]) >= _DETAIL_CHARS:
            reasons.append("the text is cut here: the rest of it may hold more queries")
        return {"reasons": [*reasons, *map(self._line, told)], "queries": told}

    def _asked(self, pair_id: str, ids: Sequence[int], counts_for: int | None) -> list[Row]:
        """The pair's queries in the order in which it asks them, with what each of them said."""
        told: list[Row] = []
        mode, cap = self.config.get("mode"), self.config.get("cap")
        seed = int(self.config.get("seed", 0))
        settled = False
        for query_id in sorted(ids, key=lambda i: (self.counts.get(i, {}).get("matched", 0), i)):
            count = self.counts.get(query_id, {})
            row: Row = {"query_id": query_id, "query": self.queries.get(query_id)}
            row |= {name: count.get(name) for name in ("matched", "selected")}
            if count and mode == "sample":
                hashed = pair_hash([pair_id], seed)
                row["draw"] = float(draw(hashed, np.array([query_id], np.int32))[0])
                row["probability"] = min(1.0, cap / max(count["matched"], 1))
                row["answer"] = "drawn" if row["draw"] < row["probability"] else "not drawn"
            elif count and mode == "cap":
                row["draw"] = _draws([pair_id], seed)[0]
                row["last"] = self.last.get(query_id) if count["selected"] >= cap else None
                row["answer"] = "not asked" if settled else "full"
            if query_id == counts_for:
                row["answer"], settled = "chosen", True
            told.append(row)
        return told

    def _line(self, row: Row) -> str:
        name = f"query {row['query_id']}" if row["query"] is None else f"{row['query']!r}"
        if row["matched"] is None:
            return name + (": chosen" if row.get("answer") else "")
        text = f"{name}: {row['matched']:,} matched, {row['selected']:,} selected"
        if "probability" in row:
            text += f", a draw below {row['probability']:.4f} wins, this pair's is {row['draw']:.4f}"
        elif row.get("last") is not None:
            text += f", the last draw {row['last']:.4f}, this pair's {row['draw']:.4f}"
        return f"{text}: {row['answer']}" if "answer" in row else text


def _query_files(run: Run) -> list[str]:
    """Parts of the query list: the run's own, or where the pairs were made from."""
    own = paths.join(run.folder, "queries")
    folder = own if "queries" in run.stages else run.stages["pairs"].config.get("queries")
    try:
        return tables.part_files(folder, QUERIES) if folder else []
    except InputError:  # it has gone since: the pairs still say which numbers their queries have
        return []


def _find(files: Sequence[str], columns: Sequence[str], where: pc.Expression) -> list[Row]:
    rows: list[Row] = tables.find_rows(files, columns, where).to_pylist() if files else []
    return rows


def _match(files: Sequence[str], texts: Sequence[str], matching: str) -> dict[str, list[int]]:
    listed = tables.read_files(files, columns=_QUERIES)
    columns = (listed.column(name).to_pylist() for name in _QUERIES)
    matches = Matcher(zip(*columns, strict=True), matching).match(texts)
    found: dict[str, list[int]] = {text: [] for text in texts}
    for row, query_id in zip(matches.rows.tolist(), matches.query_ids.tolist(), strict=True):
        found[texts[row]].append(query_id)
    return found


def _draws(pair_ids: Iterable[str], seed: int) -> list[float]:
    """Each pair's place in the order of all pairs: its keyed hash as a number from 0 to 1."""
    found: list[float] = (pair_hash(pair_ids, seed) / 2.0**64).tolist()
    return found
