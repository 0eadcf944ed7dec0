"""``wit dedup report``: All, Clean and Overlap of each evaluation set, with their statistics [Section 5]."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dedup import page
from dedup.config import ReportConfig
from dedup.statistics import Counts, bonferroni_family, corrected, outcome
from pipeline.core import manifest, paths, tables
from pipeline.core.contracts import DROPPED, NEIGHBOURS, PREDICTIONS
from pipeline.core.errors import ContractError, InputError, UsageError
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
    """

    ids: tuple[str, ...]
    pair_ids: tuple[str, ...]
    similarity: np.ndarray


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
            "predictions": name in predictions,
            "histogram": histogram(best.similarity),
            "pairs": top_pairs(best, thresholds[name]),
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
    rows: dict[str, list[tuple[str, str, float]]] = {}
    columns = ["eval_dataset", "eval_id", "rank", "pair_id", "similarity"]
    for batch in tables.read_batches(tables.part_files(folder, NEIGHBOURS), columns=columns):
        table = pa.Table.from_batches([batch])
        names, ids, ranks, pairs, values = (table.column(c).to_pylist() for c in columns)
        for name, key, rank, pair, value in zip(names, ids, ranks, pairs, values, strict=True):
            if rank == 0:
                rows.setdefault(name, []).append((key, pair, value))
    if not rows:
        raise InputError(
            "no neighbours to report on", where=folder, hint="the training or evaluation side is empty"
        )
    found = {}
    for name, listed in rows.items():
        keys, pairs, values = zip(*sorted(listed), strict=True)
        similarity = np.array(values, np.float64)
        if not np.isfinite(similarity).all():
            raise InputError("a similarity is not a number", where=f"{folder}, data set {name!r}")
        found[name] = Best(ids=tuple(keys), pair_ids=tuple(pairs), similarity=similarity)
    return found


def _take(best: Best, kept: Sequence[int]) -> Best:
    return Best(
        ids=tuple(best.ids[i] for i in kept),
        pair_ids=tuple(best.pair_ids[i] for i in kept),
        similarity=best.similarity[list(kept)],
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
                hint="the detector has no calibrated one: pass --thresholds FILE with one for each data set",
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


def read_predictions(sources: Iterable[str]) -> dict[str, dict[str, bool]]:
    """Predictions of Parquet files, finished folders, or CSV files, as {data set: {id: correct}}.

    Raises:
        InputError: A file is missing or damaged, or an id has two different answers.
        ContractError: A file has other columns.
    """
    found: dict[str, dict[str, bool]] = {}
    for source in sources:
        for name, key, correct in _prediction_rows(source):
            answers = found.setdefault(name, {})
            if answers.setdefault(key, correct) != correct:
                raise InputError("two different predictions of one picture", where=f"{source}: {name}/{key}")
    return found


def _prediction_rows(source: str) -> Iterable[tuple[str, str, bool]]:
    columns = PREDICTIONS.schema.names
    if paths.is_folder(source):
        files = tables.part_files(source, PREDICTIONS)
    else:
        files = paths.expand([source], what="predictions")
    for file in files:
        if not file.lower().endswith(".parquet"):
            yield from _csv_rows(file)
            continue
        schema = tables.read_schema(file)
        missing = [c for c in columns if c not in schema.names]
        if missing:
            raise ContractError(
                f"column {missing[0]!r} is missing",
                where=file,
                expected=f"{PREDICTIONS.id}: {', '.join(columns)}",
            )
        for batch in tables.read_batches([file], columns=columns):
            table = PREDICTIONS.conform(pa.Table.from_batches([batch]))
            yield from zip(*(table.column(c).to_pylist() for c in columns), strict=True)


def _csv_rows(file: str) -> Iterable[tuple[str, str, bool]]:
    words = {"1": True, "true": True, "0": False, "false": False}
    columns = PREDICTIONS.schema.names
    with paths.open_input(file) as opened:
        try:
            reader = csv.DictReader(io.TextIOWrapper(opened, encoding="utf-8", newline=""))
            if not set(columns) <= set(reader.fieldnames or ()):
                raise ContractError(
                    "not a table of predictions",
                    where=file,
                    expected=f"columns {', '.join(columns)}",
                    found=", ".join(reader.fieldnames or ()) or "nothing",
                )
            for line, row in enumerate(reader, start=2):
                correct = words.get((row["correct"] or "").strip().lower())
                if correct is None or row["eval_id"] is None:
                    raise InputError(
                        "cannot read `correct`",
                        where=f"{file}, line {line}",
                        expected="true, false, 1 or 0",
                        found=repr(row["correct"]),
                    )
                yield row["eval_dataset"], row["eval_id"], correct
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError("not a CSV file", where=file, found=str(error)) from error


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


def count(best: Best, threshold: float, answers: dict[str, bool] | None) -> Counts:
    """Sizes and right answers of the parts at or above and below a threshold."""
    # Similarities are stored as float32: the threshold must be rounded alike to include an equal one.
    above = best.similarity >= float(np.float32(threshold))
    n_overlap = int(above.sum())
    if answers is None:
        return Counts(n_overlap=n_overlap, n_clean=len(above) - n_overlap)
    right = np.array([answers[key] for key in best.ids], bool)
    return Counts(
        n_overlap=n_overlap,
        n_clean=len(above) - n_overlap,
        correct_overlap=int(right[above].sum()),
        correct_clean=int(right[~above].sum()),
    )


def histogram(similarity: np.ndarray, bins: int = 50) -> dict[str, list[Any]]:
    """Counts of similarities in equal bins up to 1."""
    low = min(0.0, float(similarity.min())) if len(similarity) else 0.0
    counts, edges = np.histogram(np.clip(similarity, low, 1.0), bins=bins, range=(low, 1.0))
    return {"edges": [round(e, 4) for e in edges.tolist()], "counts": counts.tolist()}


def top_pairs(best: Best, threshold: float) -> list[dict[str, Any]]:
    """The most similar pairs, and a few below the threshold to judge it by."""
    order = sorted(range(len(best.ids)), key=lambda i: (-best.similarity[i], best.ids[i]))
    above = sum(1 for i in order if best.similarity[i] >= float(np.float32(threshold)))
    below = max(TOP_PAIRS, above)
    chosen = order[:TOP_PAIRS] + order[below : below + 10]
    return [
        {
            "eval_id": best.ids[i],
            "pair_id": best.pair_ids[i],
            "similarity": round(float(best.similarity[i]), 5),
            "overlap": bool(best.similarity[i] >= float(np.float32(threshold))),
        }
        for i in chosen
    ]
