"""Holds the audit's findings against the world's truth file: how many planted leaks were found, how precisely."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.compute as pc

from pipeline.core import paths, tables
from pipeline.core.contracts import EMBEDDINGS, NEIGHBOURS
from pipeline.demo.world import EVALUATION, leaks


@dataclass(frozen=True, kw_only=True)
class LeakCheck:
    """What the audit found of what was planted.

    Attributes:
        planted: Altered evaluation pictures on the sites' pages, originals in the evaluation set.
        leaked: Of these, how many reached the training shards; the filters stop some.
        found: Of the leaked, how many the audit reports.
        reported: Evaluation pictures that the audit reports as overlap.
        recall: found / leaked.
        precision: found / reported.
    """

    planted: int
    leaked: int
    found: int
    reported: int
    recall: float
    precision: float


NAME = "leak-check.json"


def check_leaks(out: str, world: Path, *, port: int) -> None:
    """Compares ``neighbours/`` and the threshold of ``overlaps/`` with the truth; writes ``leak-check.json``."""
    embedded = tables.read_folder(paths.join(out, "embeddings", EVALUATION), EMBEDDINGS, columns=["id"])
    evaluated = set(embedded.column("id").to_pylist())
    trained_on = _stored_urls(paths.join(out, "shards"))
    planted = [leak for leak in leaks(world, port=port) if leak.eval_id in evaluated]
    leaked = {leak.eval_id for leak in planted if leak.url in trained_on}
    reported = _reported(out)
    found = reported & leaked
    result = LeakCheck(
        planted=len(planted),
        leaked=len(leaked),
        found=len(found),
        reported=len(reported),
        recall=_share(len(found), len(leaked)),
        precision=_share(len(found), len(reported)),
    )
    text = json.dumps(asdict(result), indent=2, sort_keys=True) + "\n"
    paths.write_bytes(paths.join(out, NAME), text.encode())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _stored_urls(shards: str) -> set[str]:
    """URLs of the pictures that are in the shards."""
    listed = paths.list_files(shards, suffixes=(".parquet",))
    files = [f for f in listed if f.rpartition("/")[0] == shards.rstrip("/")]  # not those of the ledger
    rows = tables.read_files(files, columns=["url", "status"])
    return set(rows.filter(pc.equal(rows["status"], "success")).column("url").to_pylist())


def _reported(out: str) -> set[str]:
    """Evaluation pictures at or above the threshold."""
    overlap = json.loads(paths.read_bytes(paths.join(out, "overlaps", "overlap.json")))
    threshold = overlap["datasets"][EVALUATION]["threshold"]
    rows = tables.read_folder(paths.join(out, "neighbours"), NEIGHBOURS)
    mask = pc.and_(
        pc.equal(rows["eval_dataset"], EVALUATION), pc.greater_equal(rows["similarity"], threshold)
    )
    return set(rows.filter(mask).column("eval_id").to_pylist())


def read_check(out: str) -> LeakCheck:
    """What :func:`check_leaks` wrote into a run's folder."""
    return LeakCheck(**json.loads(paths.read_bytes(paths.join(out, NAME))))
