"""What happened to a pair, stage by stage, from the tables of a finished run; each read fetches only its rows.

A pair is followed until a stage dropped it. A URL may have several pairs, and rows that were lost before they became
one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import paths, tables
from pipeline.core.contracts import CANDIDATES, DROPPED, NEIGHBOURS, PAIRS, SHARDS
from pipeline.core.errors import InputError
from pipeline.inspect import draws
from pipeline.report import results
from pipeline.report.figures import Run

Row = dict[str, Any]
# A stage's folder -> what it is called here.
STAGES: Final = {
    "candidates": "candidates",
    "pairs": "select",
    "shards": "fetch",
    "embeddings/train": "dedup",
    "checkpoint": "train",
}
_PAIR_ID: Final = re.compile("[0-9a-f]{32}")
_URL_CHARS: Final = 200  # of a URL that could not be read, candidates keep so many
_SHOWN: Final = 5


def follow(run: Run, asked: str) -> dict[str, Any]:
    """Everything that a run says about a pair, or about all pairs of a URL.

    Args:
        run: A run's folder.
        asked: A ``pair_id``, or a URL as candidates have it.

    Returns:
        ``asked``, ``run``; ``pairs``: for each its ``pair_id``, ``url`` and ``stages`` (``stage``, ``outcome``,
        ``reasons`` as sentences, and the facts behind them); ``lost``: rows of the URL that never became a pair.

    Raises:
        InputError: The run knows nothing of it, or a table is damaged.
    """
    column = "pair_id" if _PAIR_ID.fullmatch(asked) else "url"
    found = {
        "candidates": _rows(run, "candidates", CANDIDATES.schema.names, pc.field(column) == asked),
        "pairs": _rows(run, "pairs", PAIRS.schema.names, pc.field(column) == asked),
        "shards": _rows(run, "shards", [*SHARDS.schema.names, "__filename"], pc.field(column) == asked),
    }
    urls = {row["pair_id"]: row["url"] for rows in found.values() for row in rows}
    if column == "pair_id" and not urls and _dropped(run, "pairs", [asked]):
        urls[asked] = None
    lost = _dropped(run, "candidates", [asked[:_URL_CHARS], asked]) if column == "url" else []
    if not urls and not lost:
        looked = ", ".join(name for name in (*found, "dropped") if name in run.stages or name == "dropped")
        raise InputError("nothing in this run knows it", where=asked, found=f"no row in {looked}")
    by_id = {name: _grouped(rows) for name, rows in found.items()}
    gone = {name: _grouped(_dropped(run, name, list(urls)), "id") for name in STAGES if name != "candidates"}
    context = _Context(run, by_id, gone, draws.Balance.read(run, found["pairs"], gone["pairs"]), list(urls))
    return {
        "asked": asked,
        "run": run.folder,
        "pairs": [
            {"pair_id": pair_id, "url": url, "stages": context.stages(pair_id)}
            for pair_id, url in urls.items()
        ],
        "lost": lost,
    }


def _files(run: Run, name: str) -> list[str]:
    """A part's tables; none if the run has no such part or has not finished it."""
    if name not in run.stages:
        return []
    folder = paths.join(run.folder, name)
    contract = {"candidates": CANDIDATES, "pairs": PAIRS, "neighbours": NEIGHBOURS}.get(name)
    if contract is not None:
        return tables.part_files(folder, contract)
    files = paths.list_files(folder, suffixes=(".parquet",))
    return [file for file in files if file.rpartition("/")[0] == folder]


def _rows(run: Run, name: str, columns: Sequence[str], where: pc.Expression) -> list[Row]:
    files = _files(run, name)
    rows: list[Row] = tables.find_rows(files, columns, where).to_pylist() if files else []
    return rows


def _dropped(run: Run, name: str, ids: Sequence[str]) -> list[Row]:
    folder = paths.join(run.folder, name, "dropped")
    if name not in run.stages or not paths.exists(folder):
        return []
    files = paths.list_files(folder, suffixes=(".parquet",))
    if not files:
        return []
    rows: list[Row] = tables.find_rows(files, DROPPED.schema.names, _among("id", ids)).to_pylist()
    return rows


def _among(column: str, ids: Sequence[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(ids, pa.string()))


def _grouped(rows: Sequence[Row], column: str = "pair_id") -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


class _Context:
    """What was read of a run, by pair."""

    def __init__(
        self,
        run: Run,
        found: Mapping[str, Mapping[str, list[Row]]],
        gone: Mapping[str, Mapping[str, list[Row]]],
        balance: draws.Balance,
        ids: Sequence[str],
    ) -> None:
        self.run, self.found, self.gone, self.balance = run, found, gone, balance
        self.near = _grouped(_rows(run, "neighbours", NEIGHBOURS.schema.names, _among("pair_id", ids)))

    def stages(self, pair_id: str) -> list[Row]:
        """Each stage's answer, until one dropped the pair or the run ends."""
        told = []
        for folder, name in STAGES.items():
            if folder in self.run.problems:
                told.append(_answer(name, "unknown", [self.run.problems[folder]]))
            elif folder in self.run.stages:
                answer = getattr(self, f"_{name}")(pair_id)
                told.append(answer)
                if answer["outcome"] == "dropped":
                    break
        return told

    def _candidates(self, pair_id: str) -> Row:
        rows = self.found["candidates"].get(pair_id, [])
        if not rows:
            return _answer("candidates", "unknown", ["not among this run's candidates"])
        places = [{k: v for k, v in row.items() if k not in ("pair_id", "url", "text")} for row in rows]
        reasons = [f"text {rows[0]['text']!r}", *map(_place, places[:_SHOWN])]
        if len(places) > _SHOWN:
            reasons.append(f"and in {len(places) - _SHOWN:,} more places")
        return _answer("candidates", "found", reasons, text=rows[0]["text"], places=places)

    def _select(self, pair_id: str) -> Row:
        kept, lost = self.found["pairs"].get(pair_id), self.gone["pairs"].get(pair_id, [])
        copies = sum(row["reason"] == "duplicate" for row in lost)
        if kept:
            facts = self.balance.of_pair(kept[0])
            also = [f"found {copies + 1:,} times, kept once"] if copies else []
            return _answer("select", "kept", [*also, *facts.pop("reasons")], **facts)
        if not lost:
            return _answer("select", "unknown", ["neither among the pairs nor among the dropped rows"])
        # A pair that is found twice and then loses has both reasons: the other one says more.
        row = max(lost, key=lambda r: r["reason"] != "duplicate")
        facts = self.balance.of_dropped(row)
        if row["reason"] == "duplicate":
            facts["reasons"] = [
                f"another pair has its URL and, but for case, its cleaned text {row['detail']!r}"
            ]
        reasons, outcome = facts.pop("reasons"), "dropped"
        if pair_id in self.found["shards"]:
            reasons, outcome = (
                [*reasons, "drawn from the reserve for a dead link (`wit fetch --top-up`)"],
                "reserve",
            )
        return _answer("select", outcome, reasons, reason=row["reason"], detail=row["detail"], **facts)

    def _fetch(self, pair_id: str) -> Row:
        rows = self.found["shards"].get(pair_id)
        if not rows:
            return _answer("fetch", "unknown", ["in no shard"])
        row = dict(rows[0])
        shard = row.pop("__filename").rpartition("/")[2].removesuffix(".parquet")
        facts = {
            k: v for k, v in row.items() if k not in ("pair_id", "url", "caption", "query_ids", "query_id")
        }
        status = "" if row["http_status"] is None else f" (HTTP {row['http_status']})"
        if row["status"] == "success":
            size = (
                f"{row['width']} x {row['height']}, from {row['original_width']} x {row['original_height']}"
            )
            reasons = [f"shard {shard}, key {row['key']}, {size}"]
            return _answer("fetch", "kept", reasons, shard=shard, **facts)
        reasons = [f"{row['status']}: {row['error_message']}{status}; shard {shard}, key {row['key']}"]
        return _answer("fetch", "dropped", reasons, shard=shard, **facts)

    def _dedup(self, pair_id: str) -> Row:
        if lost := self.gone["embeddings/train"].get(pair_id):
            # It is not compared with evaluation pictures, but it is trained on.
            return _answer("dedup", "not compared", [_reason(lost[0])], reason=lost[0]["reason"])
        if "neighbours" not in self.run.stages:
            return _answer("dedup", "unknown", ["the run compared no evaluation pictures"])
        thresholds = results.thresholds(self.run)
        near = sorted(self.near.get(pair_id, []), key=lambda row: -row["similarity"])
        for row in near:
            least = thresholds.get(row["eval_dataset"])
            row["threshold"] = least
            row["overlap"] = None if least is None else row["similarity"] >= least
            del row["pair_id"]
        reasons = [_neighbour(row) for row in near[:_SHOWN]] or [
            "no evaluation picture has it among its nearest"
        ]
        if len(near) > _SHOWN:
            reasons.append(f"and near to {len(near) - _SHOWN:,} more evaluation pictures")
        leak = any(row["overlap"] for row in near)
        return _answer("dedup", "overlap" if leak else "clean", reasons, neighbours=near)

    def _train(self, pair_id: str) -> Row:
        if lost := self.gone["checkpoint"].get(pair_id):
            return _answer("train", "dropped", [_reason(lost[0])], reason=lost[0]["reason"])
        rows = self.run.stages["checkpoint"].rows
        return _answer("train", "trained on", [f"one of {rows:,} pairs"], rows=rows)


def _answer(stage: str, outcome: str, reasons: Sequence[str], **facts: Any) -> Row:
    return {"stage": stage, "outcome": outcome, "reasons": list(reasons), **facts}


def _reason(row: Row) -> str:
    return str(row["reason"]) + (f": {row['detail']}" if row["detail"] else "")


def _place(place: Row) -> str:
    where = place["origin"] + ("" if place["origin_offset"] is None else f" at {place['origin_offset']:,}")
    page = f", page {place['page_url']}" if place["page_url"] else ""
    marks = f", opted out: {', '.join(place['rights'])}" if place["rights"] else ""
    return f"{place['text_source']} in {where}{page}{marks}"


def _neighbour(row: Row) -> str:
    judged = {None: "no threshold is known", True: "an overlap", False: "no overlap"}[row["overlap"]]
    least = "" if row["threshold"] is None else f", the threshold is {row['threshold']:.4f}"
    picture = f"{row['eval_dataset']} {row['eval_id']}"
    return f"neighbour {row['rank'] + 1} of {picture}, similarity {row['similarity']:.4f}{least}: {judged}"
