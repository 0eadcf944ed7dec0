"""Holds the audit's findings against the world's truth file: how many planted leaks were found, how precisely."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipeline.core import paths, tables
from pipeline.core.contracts import CANDIDATES, EMBEDDINGS, NEIGHBOURS
from pipeline.demo.world import EVALUATION, Leak


@dataclass(frozen=True, kw_only=True)
class LeakCheck:
    """What the audit found of what was planted.

    Attributes:
        planted: Leaks on recorded pages whose original is in the evaluation set.
        found: Of these, how many the audit reports.
        reported: Evaluation pictures that the audit reports as overlap.
        recall: found / planted.
        precision: Reported pictures that were planted / reported.
    """

    planted: int
    found: int
    reported: int
    recall: float
    precision: float


NAME = "leak-check.json"


def check_leaks(out: str, leaks: Sequence[Leak]) -> None:
    """Compares ``neighbours/`` and the thresholds of ``overlaps/`` with the truth; writes ``leak-check.json``."""
    evaluated = set(
        tables.read_folder(paths.join(out, "embeddings", EVALUATION), EMBEDDINGS, columns=["id"])
        .column(0)
        .to_pylist()
    )
    seen = set(
        tables.read_folder(paths.join(out, "candidates"), CANDIDATES, columns=["url"]).column(0).to_pylist()
    )
    planted = {leak.eval_id for leak in leaks if leak.eval_id in evaluated and leak.url in seen}
    overlap = json.loads(paths.read_bytes(paths.join(out, "overlaps", "overlap.json")))
    threshold = overlap["datasets"][EVALUATION]["threshold"]
    nearest = tables.read_folder(paths.join(out, "neighbours"), NEIGHBOURS)
    reported = {
        row["eval_id"]
        for row in nearest.select(["eval_dataset", "eval_id", "similarity"]).to_pylist()
        if row["eval_dataset"] == EVALUATION and row["similarity"] >= threshold
    }
    found = reported & planted
    result = LeakCheck(
        planted=len(planted),
        found=len(found),
        reported=len(reported),
        recall=len(found) / len(planted) if planted else 0.0,
        precision=len(found) / len(reported) if reported else 0.0,
    )
    paths.write_bytes(
        paths.join(out, NAME),
        (json.dumps(asdict(result), indent=2, sort_keys=True) + "\n").encode(),
    )


def read_check(out: str) -> LeakCheck:
    """What :func:`check_leaks` wrote into a run's folder."""
    return LeakCheck(**json.loads(paths.read_bytes(paths.join(out, NAME))))
