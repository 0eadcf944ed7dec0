"""Beam counters: namespace = stage, name = drop reason, or ``rows_in`` and ``rows_out``.

They are for whoever watches a job on its engine's own page. A stage's totals come from the tables that it wrote, as
some engines lose counters, and others count what they do twice twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from apache_beam.metrics import Metrics, MetricsFilter

ROWS_IN: Final = "rows_in"
ROWS_OUT: Final = "rows_out"
Totals = dict[str, dict[str, int]]


def count(stage: str, name: str, amount: int = 1) -> None:
    """Adds to one counter; only a worker's calls count."""
    if amount:
        Metrics.counter(stage, name).inc(amount)


def count_rows(stage: str, *, rows_in: int = 0, rows_out: int = 0) -> None:
    """Adds to a stage's rows."""
    count(stage, ROWS_IN, rows_in)
    count(stage, ROWS_OUT, rows_out)


def count_reasons(stage: str, reasons: Mapping[str, int]) -> None:
    """Adds dropped rows by reason."""
    for reason, amount in reasons.items():
        count(stage, reason, amount)


def totals(result: Any) -> Totals:
    """All counters of an ended pipeline by stage and name; of an engine that keeps none, nothing.

    Args:
        result: Beam's ``PipelineResult``. Asked once and at the end: the portable runner keeps its first answer.
    """
    try:
        found = result.metrics().query(MetricsFilter())["counters"]
    except Exception:  # engines say in ways of their own that they have none
        return {}
    counted: Totals = {}
    for entry in found:
        name = entry.key.metric
        amount = entry.attempted if entry.committed is None else entry.committed
        if amount is not None:
            stage = counted.setdefault(name.namespace, {})
            stage[name.name] = stage.get(name.name, 0) + int(amount)
    return counted
