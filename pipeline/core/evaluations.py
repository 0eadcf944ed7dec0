"""What evaluations and overlap reports say, whatever of the known shapes they have: ``scores.json``, ``overlap.json``.

The report page and the model card read them here, so that the one takes what the other takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import InputError

OVERLAP_NUMBERS = (
    "contamination", "acc_all", "acc_clean", "acc_overlap", "ci_low", "ci_high", "all_minus_clean", "p_value",
    "threshold",
)  # fmt: skip
CONFIDENCE = 0.995  # of an overlap report that does not name its own
_NEEDED = ("dataset", "task", "n", "metrics")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One evaluation: fractions of 1 by metric, with intervals and chance where known."""

    dataset: str
    task: str
    n: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]
    chance: Mapping[str, float]


def score_of(values: Any, *, where: str) -> Score:
    """An evaluation from ``scores.json``'s value; what is ``null`` is left out, and one number for chance is top-1's.

    Raises:
        InputError: It is none.
    """
    try:
        missing = [name for name in _NEEDED if name not in values]
        if missing:
            raise ValueError(f"no {' or '.join(missing)}")
        chance = values.get("chance")
        return Score(
            dataset=str(values["dataset"]),
            task=str(values["task"]),
            n=int(values["n"]),
            metrics=_numbers(values["metrics"]),
            intervals={
                name: [float(span[0]), float(span[1])]
                for name, span in (values.get("intervals") or {}).items()
                if span is not None
            },
            chance=_numbers(chance if isinstance(chance, Mapping) else {"top1": chance}),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError("not an evaluation's scores", where=where, found=str(error)) from error


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}


def overlaps_of(values: Any, *, where: str) -> list[dict[str, Any]]:
    """The rows of an overlap report, one per data set, each with ``dataset`` and ``confidence``.

    Args:
        values: ``overlap.json``'s value: rows by data set, or a list of rows, or an object with either as ``datasets``.
        where: What to name in an error.

    Raises:
        InputError: It is none.
    """
    listed = values.get("datasets", values) if isinstance(values, dict) else values
    if isinstance(listed, dict):
        listed = [{"dataset": name, **row} for name, row in listed.items() if isinstance(row, dict)]
    if not isinstance(listed, list) or not all(map(_is_overlap, listed)):
        raise InputError("not an overlap report", where=where)
    shared = {"confidence": values.get("confidence", CONFIDENCE) if isinstance(values, dict) else CONFIDENCE}
    return [
        {**shared, **row, "dataset": str(row.get("dataset", row.get("eval_dataset", "")))} for row in listed
    ]


def _is_overlap(row: Any) -> bool:
    if not isinstance(row, dict) or not all(
        isinstance(row.get(name), int) for name in ("n_all", "n_overlap")
    ):
        return False
    return all(row.get(name) is None or isinstance(row[name], int | float) for name in OVERLAP_NUMBERS)
