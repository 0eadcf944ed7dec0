"""What a run's results say, as numbers: similarities, training curves, scores, overlaps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow.compute as pc

from pipeline.core import paths, tables
from pipeline.core.contracts import NEIGHBOURS
from pipeline.core.errors import InputError
from pipeline.core.evaluations import Score, overlaps_of, score_of
from pipeline.report.figures import CURVE_POINTS, AbsentError, Run


def similarities(run: Run) -> dict[str, Counter[float]]:
    """Each evaluation picture's greatest similarity to a training picture, by data set, to three digits."""
    found: dict[str, Counter[float]] = {}
    columns = ["eval_dataset", "rank", "similarity"]
    for batch in tables.read_batches(tables.part_files(run.part("neighbours"), NEIGHBOURS), columns=columns):
        best = batch.filter(pc.equal(batch["rank"], pc.min(batch["rank"])))
        for name, value in zip(best["eval_dataset"].to_pylist(), best["similarity"].to_pylist(), strict=True):
            found.setdefault(name, Counter())[round(value, 3)] += 1
    return found


def curves(run: Run, part: str) -> dict[str, list[tuple[float, float]]]:
    """``(step, value)`` points of every number in a part's ``metrics.jsonl``; of a repeated step the last counts.

    Raises:
        AbsentError: The part or its curve is not there.
        InputError: A line is no JSON object.
    """
    file = paths.join(run.part(part), "metrics.jsonl")
    if not paths.exists(file):
        raise AbsentError("the run kept no training curve")
    by_step: dict[float, Mapping[str, Any]] = {}
    for number, line in enumerate(paths.read_bytes(file).splitlines(), 1):
        try:
            row = json.loads(line)
            # Lines without a step are events, such as a closing calibration.
            if "step" in row:
                by_step[float(row["step"])] = row
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"line {number} is not a row of metrics", where=f"{part}/metrics.jsonl"
            ) from error
    found: dict[str, list[tuple[float, float]]] = {}
    for step in sorted(by_step):
        for name, value in by_step[step].items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, []).append((step, float(value)))
    return found


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most :data:`CURVE_POINTS` of a curve's points, evenly spread, the last always among them."""
    if len(points) <= CURVE_POINTS:
        return list(points)
    return [points[round(i * (len(points) - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]


def smoothed(points: Sequence[tuple[float, float]], *, share: float = 0.04) -> list[tuple[float, float]]:
    """Centred running means over a share of the points."""
    reach = round(len(points) * share / 2)
    sums = list(accumulate((y for _, y in points), initial=0.0))
    means = []
    for i, (x, _) in enumerate(points):
        # The window shrinks towards both ends and stays centred, so that the ends are not pulled inwards.
        near = min(reach, i, len(points) - 1 - i)
        means.append((x, (sums[i + near + 1] - sums[i - near]) / (2 * near + 1)))
    return means


def scores(run: Run) -> list[Score]:
    """Reads every ``scores/<dataset>/scores.json``.

    Raises:
        InputError: One is no evaluation's scores.
    """
    return [score(run, name) for name in run.below("scores")]


def score(run: Run, name: str) -> Score:
    """Reads ``scores/<name>/scores.json``.

    Raises:
        InputError: It is no evaluation's scores.
    """
    values = read_json(paths.join(run.part(f"scores/{name}"), "scores.json"))
    return score_of(values, where=f"scores/{name}/scores.json")


def overlaps(run: Run) -> list[dict[str, Any]]:
    """Reads ``overlaps/overlap.json``: one table per data set.

    Raises:
        InputError: It is no overlap report.
    """
    return overlaps_of(
        read_json(paths.join(run.part("overlaps"), "overlap.json")), where="overlaps/overlap.json"
    )


def thresholds(run: Run) -> dict[str, float]:
    """Each data set's similarity from which a picture counts as a leak, empty without an overlap report."""
    try:
        rows = overlaps(run)
    except InputError:
        return {}
    return {r["dataset"]: float(r["threshold"]) for r in rows if isinstance(r.get("threshold"), int | float)}


def read_json(file: str) -> Any:
    """A JSON file's value.

    Raises:
        AbsentError: The file is not there.
        InputError: It is not JSON.
    """
    if not paths.exists(file):
        raise AbsentError("not part of this run")
    try:
        return json.loads(paths.read_bytes(file))
    except ValueError as error:
        raise InputError("not JSON", where=file.rpartition("/")[2], found=str(error)) from error
