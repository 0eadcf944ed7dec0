"""``wit dedup report``: All, Clean and Overlap of each evaluation set, with their statistics [Section 5]."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup import confounders, page
from dedup.config import ReportConfig
from dedup.confounders import Facts
from dedup.predictions import read_predictions
from dedup.review.labels import read_reviews
from dedup.statistics import Counts, bonferroni_family, corrected, outcome
from pipeline.core import manifest, paths, tables
from pipeline.core.contracts import DROPPED, NEIGHBOURS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.stage import RunOptions, StageResult, run_stage

STAGE = "dedup report"
CONTRACT = "overlap/1"
OVERLAP_JSON, OVERLAP_HTML = "overlap.json", "overlap.html"
NO_PREDICTION = "no-prediction"
REASONS = (NO_PREDICTION,)
TOP_PAIRS = 50


@dataclass(frozen=True, kw_only=True)
class Best:
    """Each evaluation picture's nearest training picture in one data set.

    Attributes:
        ids: Evaluation ids.
        pair_ids: Ids of the nearest training pictures.
        similarity: float64 [N].
        facts: What is known of the evaluation pictures; ``None`` if the search carried nothing along.
    """

    ids: tuple[str, ...]
    pair_ids: tuple[str, ...]
    similarity: np.ndarray
    facts: Facts | None = None


def run(config: ReportConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs the command; see :func:`pipeline.core.stage.run_stage`."""
    if config.neighbours is None:
        raise UsageError("no neighbours given", hint="pass --neighbours DIR, made with `wit dedup search`")
    inputs = [config.neighbours, *([config.thresholds] if config.thresholds else []), *config.predictions]

    def body(folder: str) -> StageResult:
        return write_report(config, folder)

    return run_stage(
        body,
        stage=STAGE,
        contract=CONTRACT,
        config=config,
        inputs=inputs,
        out=out,
        options=options,
        owned=(OVERLAP_JSON, OVERLAP_HTML),
    )


def write_report(config: ReportConfig, out: str) -> StageResult:
    """Writes ``overlap.json`` and ``overlap.html`` into a folder; rows are evaluation pictures."""
    assert config.neighbours is not None
    found = best_matches(config.neighbours)
    extra = manifest.read(config.neighbours, made_by=NEIGHBOURS.made_by).extra
    thresholds, reviewed = choose_thresholds(config, sorted(found), extra.get("threshold"))
    predictions = read_predictions(config.predictions) if config.predictions else {}
    _check_names(found, predictions)
    lost: list[tuple[str, str, str | None]] = []
    reports, outcomes, unmatched = [], [], 0
    reviews = read_reviews(config.thresholds, thresholds) if config.thresholds else {}
    for name in sorted(found):
        best, answers = found[name], predictions.get(name)
        if answers is not None:
            kept = [i for i, key in enumerate(best.ids) if key in answers]
            lost += [(NO_PREDICTION, f"{name}/{key}", None) for key in best.ids if key not in answers]
            unmatched += len(answers) - len(kept)
            best = _take(best, kept)
        outcomes.append(
            outcome(count(best, thresholds[name], answers), alpha=config.alpha, confidence=config.confidence)
        )
        reports.append((name, best))
    outcomes = corrected(outcomes, alpha=config.alpha, tested_only=config.family == "tested")
    datasets = {
        name: {
            **asdict(one),
            "threshold": thresholds[name],
            "reviewed": name in reviewed,
            "review": reviews.get(name),
            "predictions": name in predictions,
            "histogram": histogram(best.similarity),
            "pairs": top_pairs(best, thresholds[name]),
            "confounders": confounded(best, thresholds[name], predictions.get(name), config),
        }
        for (name, best), one in zip(reports, outcomes, strict=True)
    }
    summary = {
        "contract": CONTRACT,
        "alpha": config.alpha,
        "confidence": config.confidence,
        "family": config.family,
        "bonferroni_datasets": bonferroni_family(outcomes, tested_only=config.family == "tested"),
        "unmatched_predictions": unmatched,
        "datasets": datasets,
    }
    text = json.dumps(summary, indent=2, sort_keys=True, allow_nan=False) + "\n"
    paths.write_bytes(paths.join(out, OVERLAP_JSON), text.encode())
    paths.write_bytes(paths.join(out, OVERLAP_HTML), page.overlap_page(summary).encode())
    if lost:
        dropped = tables.dropped_table(STAGE, lost)
        tables.write_table(paths.join(out, "dropped", tables.part_name(0)), dropped, DROPPED)
    return StageResult(
        rows=sum(one.n_all for one in outcomes),
        rows_in=sum(len(best.ids) for best in found.values()),
        extra={
            "datasets": {
                n: {k: d[k] for k in ("n_all", "n_overlap", "threshold")} for n, d in datasets.items()
            }
        },
    )


def best_matches(folder: str) -> dict[str, Best]:
    """The nearest training picture of each evaluation picture, by data set.

    Raises:
        InputError: There is no evaluation picture, or a similarity is not a number.
    """
    files = tables.part_files(folder, NEIGHBOURS)
    columns = ["eval_dataset", "eval_id", "pair_id", "similarity"]
    carried = [f"eval_{name}" for name in ("label", "width", "height", "spread")]
    if not set(carried) <= set(tables.read_schema(files[0]).names if files else ()):
        carried = []
    held = []
    for batch in tables.read_batches(files, columns=[*columns, "rank", *carried]):
        table = pa.Table.from_batches([batch])
        held.append(table.filter(pc.equal(table.column("rank"), 0)))
    first = (
        pa.concat_tables(held).sort_by([("eval_dataset", "ascending"), ("eval_id", "ascending")])
        if held
        else None
    )
    if first is None or not first.num_rows:
        raise InputError(
            "no neighbours to report on", where=folder, hint="the training or evaluation side is empty"
        )
    found = {}
    for name in sorted(set(first.column("eval_dataset").to_pylist())):
        part = first.filter(pc.equal(first.column("eval_dataset"), name))
        similarity = part.column("similarity").to_numpy().astype(np.float64)
        if not np.isfinite(similarity).all():
            raise InputError("a similarity is not a number", where=f"{folder}, data set {name!r}")
        found[name] = Best(
            ids=tuple(part.column("eval_id").to_pylist()),
            pair_ids=tuple(part.column("pair_id").to_pylist()),
            similarity=similarity,
            facts=_facts(part) if carried else None,
        )
    return found


def _facts(part: pa.Table) -> Facts:
    shortest = pc.min_element_wise(part.column("eval_width"), part.column("eval_height"), skip_nulls=False)
    return Facts(
        labels=tuple(part.column("eval_label").to_pylist()),
        shortest=shortest.cast(pa.float64()).to_numpy(),
        spread=part.column("eval_spread").cast(pa.float64()).to_numpy(),
    )


def _take(best: Best, kept: Sequence[int]) -> Best:
    return Best(
        ids=tuple(best.ids[i] for i in kept),
        pair_ids=tuple(best.pair_ids[i] for i in kept),
        similarity=best.similarity[list(kept)],
        facts=best.facts and best.facts.take(kept),
    )


def choose_thresholds(
    config: ReportConfig, names: Sequence[str], calibrated: float | None
) -> tuple[dict[str, float], set[str]]:
    """Each data set's threshold, and the data sets whose threshold a person has set.

    Raises:
        InputError: The file is not one of thresholds, or a data set has no threshold at all.
    """
    given: dict[str, float] = {}
    if config.thresholds:
        given = read_thresholds(config.thresholds)
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise InputError(
                f"a threshold for data set {unknown[0]!r}, which has no neighbours",
                where=config.thresholds,
                expected=", ".join(names),
            )
    chosen = dict(given)
    for name in names:
        if name in chosen:
            continue
        if calibrated is None:
            raise InputError(
                f"no threshold for data set {name!r}",
                where=config.thresholds or config.neighbours,
                hint=f"the detector has no calibrated one: set one with `wit dedup review --neighbours "
                f"{config.neighbours}`, or pass --thresholds FILE with one for each data set",
            )
        chosen[name] = float(calibrated)
    return chosen, set(given)


def read_thresholds(path: str) -> dict[str, float]:
    """A JSON file of {data set: threshold}."""
    try:
        values = json.loads(paths.read_bytes(path))
    except ValueError as error:
        raise InputError("not a JSON file", where=path, found=str(error)) from error
    if not isinstance(values, dict) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and -1 <= v <= 1 for v in values.values()
    ):
        raise InputError(
            "not a file of thresholds", where=path, expected='{"data set": 0.9}, each in [-1, 1]'
        )
    return {str(name): float(value) for name, value in values.items()}


def _check_names(found: dict[str, Best], predictions: dict[str, dict[str, bool]]) -> None:
    for name, answers in predictions.items():
        if name not in found:
            raise InputError(
                f"predictions of data set {name!r}, which has no neighbours",
                expected=", ".join(sorted(found)),
                hint="give `wit dedup embed --dataset` the name that the predictions use",
            )
        if not any(key in answers for key in found[name].ids):
            raise InputError(
                f"no picture of data set {name!r} has a prediction: their ids differ",
                expected=f"ids like {found[name].ids[0]!r}",
                found=repr(next(iter(answers), None)),
            )


def overlapping(best: Best, threshold: float) -> np.ndarray:
    """Which pictures are at or above a threshold: bool [N]."""
    # Similarities are stored as float32: the threshold must be rounded alike to include an equal one.
    return best.similarity >= float(np.float32(threshold))


def answered(best: Best, answers: dict[str, bool] | None) -> np.ndarray | None:
    """Whether each picture was answered rightly: bool [N], or ``None`` without predictions."""
    return None if answers is None else np.array([answers[key] for key in best.ids], bool)


def count(best: Best, threshold: float, answers: dict[str, bool] | None) -> Counts:
    """Sizes and right answers of the parts at or above and below a threshold."""
    return count_parts(overlapping(best, threshold), answered(best, answers))


def count_parts(above: np.ndarray, right: np.ndarray | None) -> Counts:
    """Sizes and right answers of two parts.

    Args:
        above: bool [N], whether a picture is in Overlap.
        right: bool [N], whether it was answered rightly; ``None`` without predictions.
    """
    n_overlap = int(above.sum())
    if right is None:
        return Counts(n_overlap=n_overlap, n_clean=len(above) - n_overlap)
    return Counts(
        n_overlap=n_overlap,
        n_clean=len(above) - n_overlap,
        correct_overlap=int(right[above].sum()),
        correct_clean=int(right[~above].sum()),
    )


def confounded(
    best: Best, threshold: float, answers: dict[str, bool] | None, config: ReportConfig
) -> dict[str, Any]:
    """What may make the overlap look like something else, and the result without it.

    Returns:
        ``flags`` (counts by flag), ``without`` (the outcome without flagged pictures; ``None`` if none is flagged)
        and ``classes`` (shift of the classes); ``None`` for what is not known.
    """
    if best.facts is None:
        return {"flags": None, "without": None, "classes": None}
    above, right = overlapping(best, threshold), answered(best, answers)
    flags = confounders.flagged(best.facts)
    known = {
        "near-uniform": np.isfinite(best.facts.spread).any(), "tiny": np.isfinite(best.facts.shortest).any(),
    }  # fmt: skip
    kept = ~np.logical_or.reduce(list(flags.values()))
    without = None
    if not kept.all():
        counts = count_parts(above[kept], None if right is None else right[kept])
        without = asdict(outcome(counts, alpha=config.alpha, confidence=config.confidence))
    return {
        "flags": {n: c for n, c in confounders.counted(flags, above).items() if known[n]},
        "without": without,
        "classes": confounders.class_shift(best.facts.labels, above, right),
    }


def histogram(similarity: np.ndarray, bins: int = 200) -> dict[str, list[Any]]:
    """Counts of similarities in equal bins up to 1."""
    low = min(0.0, float(similarity.min())) if len(similarity) else 0.0
    counts, edges = np.histogram(np.clip(similarity, low, 1.0), bins=bins, range=(low, 1.0))
    return {"edges": [round(e, 4) for e in edges.tolist()], "counts": counts.tolist()}


def top_pairs(best: Best, threshold: float) -> list[dict[str, Any]]:
    """The most similar pairs, and a few below the threshold to judge it by."""
    order = sorted(range(len(best.ids)), key=lambda i: (-best.similarity[i], best.ids[i]))
    inside = overlapping(best, threshold)
    above = int(inside.sum())
    below = max(TOP_PAIRS, above)
    chosen = order[:TOP_PAIRS] + order[below : below + 10]
    return [
        {
            "eval_id": best.ids[i],
            "pair_id": best.pair_ids[i],
            "similarity": round(float(best.similarity[i]), 5),
            "overlap": bool(inside[i]),
        }
        for i in chosen
    ]
