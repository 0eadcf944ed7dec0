"""The page's sections on results: leaks, training, zero-shot scores, All/Clean/Overlap, provenance."""

from __future__ import annotations

import contextlib
import html
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeline.core import charts, paths
from pipeline.core.charts import Axis, Interval, Marker, Series
from pipeline.core.errors import InputError
from pipeline.core.evaluations import Score
from pipeline.core.manifest import Manifest
from pipeline.core.progress import duration
from pipeline.report import guesses, results, samples
from pipeline.report.figures import AbsentError, Run
from pipeline.report.markup import panels, picture, plural, shown, table
from pipeline.report.samples import Leak

METRIC_NAMES = {
    "top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class", "mean_top1_top5": "mean(top-1, top-5)",
    "map_11": "11-point mAP", "roc_auc": "ROC AUC", "mean": "mean over sets", "mean_gap": "mean gap",
    **{f"image_to_text_r{k}": f"image → text R@{k}" for k in (1, 5, 10)},
    **{f"text_to_image_r{k}": f"text → image R@{k}" for k in (1, 5, 10)},
}  # fmt: skip


def leaks(run: Run) -> str:
    """The leaks found, pair by pair, and how far they stand out among all nearest neighbours."""
    found = samples.leaks(run)
    drawn = []
    for dataset, counted in results.similarities(run).items():
        limit = found.thresholds.get(dataset)
        chart = charts.histogram(
            counted,
            title=f"{dataset}: similarity to the nearest training picture",
            x=Axis(label="cosine similarity of the detector's embeddings", high=1.0),
            y_label="evaluation pictures",
            bins=40,
            markers=[] if limit is None else [Marker(limit, f"threshold {limit:.3f}")],
        )
        drawn.append(f'<div class="panel">{chart}</div>')
    how = ""
    if len(found.shown) < found.total:
        how = f" {len(found.shown)} are shown, evenly spread from the most similar to the one that only just counts."
    told = (
        f"<p>{plural(found.total, 'evaluation picture')} lie at or above the threshold.{how}</p>{_truth(run)}"
    )
    cards = "".join(_leak(one) for one in found.shown)
    return f'<div class="two">{"".join(drawn)}<div>{told}</div></div><div class="leaks">{cards}</div>'


def _leak(one: Leak) -> str:
    trained = one.trained
    caption = shown(trained.caption, 110) if trained else "not among this run's images"
    return (
        f'<figure><div class="side"><div>{picture(one.picture, "evaluation picture")}<small>evaluation</small></div>'
        f"<div>{picture(trained.picture if trained else None, 'training picture')}<small>training</small></div></div>"
        f'<figcaption><b class="n">{one.similarity:.3f}</b> {caption}'
        f"<small>{shown(one.dataset, 30)} · {shown(one.eval_id, 60)}</small></figcaption></figure>"
    )


def _truth(run: Run) -> str:
    """Recall and precision, where somebody held the findings against a known truth."""
    file = paths.join(run.folder, "leak-check.json")
    if not paths.exists(file):
        return ""
    values = results.read_json(file)
    try:
        return (
            f"<p>Held against the known truth: <b>{values['found']:,} of the {values['leaked']:,}</b> leaks in the "
            f"training set found ({charts.percent(values['recall'])}); {values['planted']:,} were planted, the filters "
            f"stopped the rest. Precision {charts.percent(values['precision'])}.</p>"
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("not a check of leaks", where="leak-check.json") from error


def training(run: Run) -> str:
    """Loss and logit scale over the steps, of the model and of the near-duplicate detector."""
    drawn = _model_curves(results.curves(run, "checkpoint"))
    with contextlib.suppress(AbsentError):
        drawn += _detector_curves(results.curves(run, "detector"))
    return panels(drawn)


def _curve(points: Sequence[tuple[float, float]], title: str, y: Axis) -> str:
    series = [
        Series(name="", points=results.thinned(points), faint=True),
        Series(name=y.label, points=results.thinned(results.smoothed(points))),
    ]
    return charts.line_chart(series, title=title, x=Axis(label="step"), y=y, height=230)


def _model_curves(found: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    axes = {
        "loss": ("Training loss", Axis(label="loss (nats)", low=0)),
        "scale": ("Logit scale", Axis(label="scale")),
        "lr": ("Learning rate", Axis(label="learning rate", low=0)),
    }
    return [_curve(found[name], *axes[name]) for name in axes if name in found]


def _detector_curves(found: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    axes = {
        "loss": ("Near-duplicate detector: loss", Axis(label="loss (nats)", low=0)),
        "accuracy": (
            "Near-duplicate detector: accuracy within the batch",
            Axis(label="share of copies recognised", percent=True, low=0, high=1),
        ),
    }
    return [_curve(found[name], *axes[name]) for name in axes if name in found]


def zero_shot(run: Run) -> str:
    """Scores with their intervals against chance, and a sample of predictions."""
    found = results.scores(run)
    rows = [
        _interval(score, metric) for score in found for metric in score.metrics if metric in score.intervals
    ]
    chart = charts.interval_chart(
        rows,
        title="Scores and their intervals",
        x=Axis(label="fraction right", percent=True, low=0),
        value_name="score with its interval",
        reference_name="chance",
    )
    told = "".join(f"<p>{_reading(score)}</p>" for score in found)
    numbers = [
        [
            shown(s.dataset, 40),
            METRIC_NAMES.get(m, shown(m, 30)),
            charts.percent(v),
            _range(s, m),
            _chance(s, m),
        ]
        for s in found
        for m, v in s.metrics.items()
    ]
    listed = table(["data set", "metric", "score", "interval", "chance"], numbers, numeric=(2, 3, 4))
    charted = f'<div class="panel">{chart}</div>' if rows else ""
    shows = f'{told}<div class="two">{charted}<div class="panel">{listed}</div></div>'
    return shows + "".join(guesses.section(run, name) for name in run.below("scores"))


def _interval(score: Score, metric: str) -> Interval:
    low, high = score.intervals[metric]
    label = f"{score.dataset} {METRIC_NAMES.get(metric, metric)}"
    return Interval(
        label=label, value=score.metrics[metric], low=low, high=high, reference=score.chance.get(metric)
    )


def _range(score: Score, metric: str) -> str:
    if metric not in score.intervals:
        return "–"
    low, high = score.intervals[metric]
    return f"{charts.percent(low)} – {charts.percent(high)}"


def _chance(score: Score, metric: str) -> str:
    return charts.percent(score.chance[metric]) if metric in score.chance else "–"


def _reading(score: Score) -> str:
    told = f"<b>{shown(score.dataset, 60)}</b>: {score.n:,} pictures"
    chance, top1 = score.chance.get("top1"), score.metrics.get("top1")
    if top1 is None:
        return told + "."
    told += f", {charts.percent(top1)} right at the first guess"
    if chance:
        told += f", {top1 / chance:,.0f} times what guessing gives ({charts.percent(chance)})"
    return told + "."


def overlap(run: Run) -> str:
    """All, Clean and Overlap accuracies, their statistics, and what they mean in words."""
    found = results.overlaps(run)
    heads = [
        "data set",
        "pictures",
        "overlap",
        *("All", "Clean", "Overlap"),
        "its interval",
        "All − Clean",
        "p",
    ]
    heads.append("threshold")
    confidence = charts.percent(found[0]["confidence"]) if found else ""
    rows = [_overlap_row(row) for row in found]
    intervals = [
        Interval(
            label=r["dataset"],
            value=r["acc_overlap"],
            low=r["ci_low"],
            high=r["ci_high"],
            reference=r.get("acc_clean"),
        )
        for r in found
        if None not in (r.get("acc_overlap"), r.get("ci_low"), r.get("ci_high"))
    ]
    chart = charts.interval_chart(
        intervals,
        title="Accuracy on Overlap against Clean",
        x=Axis(label="accuracy", percent=True, low=0),
        value_name=f"Overlap with its {confidence} interval",
        reference_name="Clean",
    )
    told = "".join(f"<p>{_overlap_reading(row)}</p>" for row in found)
    charted = f'<div class="panel narrow">{chart}</div>' if intervals else ""
    more = '<p><a href="overlaps/overlap.html">The whole overlap report</a></p>'
    linked = more if paths.exists(paths.join(run.folder, "overlaps", "overlap.html")) else ""
    return f'{told}<div class="panel">{table(heads, rows, numeric=range(1, 10))}</div>{charted}{linked}'


def _overlap_row(row: Mapping[str, Any]) -> list[str]:
    def told(name: str, how: str) -> str:
        value = row.get(name)
        return "–" if value is None else format(value, how)

    between = f"{told('ci_low', '.1%')} – {told('ci_high', '.1%')}" if row.get("ci_low") is not None else "–"
    return [
        shown(row["dataset"], 40),
        told("n_all", ","),
        f"{told('n_overlap', ',')} ({told('contamination', '.1%')})",
        told("acc_all", ".2%"),
        told("acc_clean", ".2%"),
        told("acc_overlap", ".2%"),
        between,
        told("all_minus_clean", "+.2%"),
        told("p_value", ".2g"),
        told("threshold", ".3f") + ("" if row.get("reviewed") else " <small>not reviewed</small>"),
    ]


def _overlap_reading(row: Mapping[str, Any]) -> str:
    name, gain = f"<b>{shown(row['dataset'], 60)}</b>", row.get("all_minus_clean")
    if not row.get("n_overlap"):
        return f"{name}: no evaluation picture was found in the training set."
    if row.get("acc_all") is None:
        return f"{name}: {row['n_overlap']:,} of {row['n_all']:,} pictures were found in the training set."
    if gain is None:
        return (
            f"{name}: every picture was found in the training set, so nothing clean is left to compare with."
        )
    told = (
        f"{name}: {row['n_overlap']:,} of {row['n_all']:,} pictures were found in the training set. Without them the "
        f"accuracy is {row['acc_clean']:.2%} in place of {row['acc_all']:.2%}: contamination is worth "
        f"{gain * 100:+.2f} points."
    )
    if row.get("significant_bonferroni"):
        return f"{told} Overlap is better than Clean beyond chance, also after correction for the number of data sets."
    if row.get("significant"):
        return f"{told} Overlap is better than Clean beyond chance, not so when corrected for the number of data sets."
    return f"{told} Overlap is not better than Clean beyond chance (p = {row.get('p_value') or 0:.2g})."


def provenance(run: Run) -> str:
    """Each part's inputs, configuration, version, engine and duration."""
    heads = ["folder", "command", "rows", "dropped", "took", "engine", "version", "configuration"]
    rows = [
        [
            shown(name, 60),
            f"<code>wit {shown(made.stage, 60)}</code>",
            f"{made.rows:,}",
            f"{sum(made.dropped.values()):,}",
            took(made),
            shown(made.engine, 40),
            shown(made.version, 20),
            f"<code>{shown(made.config_sha256[:12], 12)}</code>",
        ]
        for name, made in run.stages.items()
    ]
    if not rows:
        raise AbsentError("no part of this run is finished")
    problems = "".join(f"<li>{shown(why, 300)}</li>" for why in run.problems.values())
    listed = f'<ul class="problems">{problems}</ul>' if problems else ""
    details = "".join(_details(name, made) for name, made in run.stages.items())
    return f'{listed}<div class="panel">{table(heads, rows, numeric=(2, 3, 4))}</div>{details}'


def took(made: Manifest) -> str:
    """How long a stage took, from its manifest."""
    try:
        passed = datetime.fromisoformat(made.finished_at) - datetime.fromisoformat(made.started_at)
    except (ValueError, TypeError):
        return "–"
    return duration(passed.total_seconds())


def _details(name: str, made: Manifest) -> str:
    inputs = "".join(
        f"<li><code>{shown(str(i.get('path', '')), 300)}</code> {_size(i)}</li>" for i in made.inputs
    )
    config = html.escape(json.dumps(made.config, indent=1, sort_keys=True, ensure_ascii=False)[:8_000])
    return (
        f"<details><summary>{shown(name, 60)}: inputs and configuration</summary><ul>{inputs}</ul>"
        f"<p>{shown(made.started_at, 30)} to {shown(made.finished_at, 30)}, contract {shown(made.contract, 40)}</p>"
        f"<pre>{config}</pre></details>"
    )


def _size(described: Mapping[str, Any]) -> str:
    if "rows" in described:
        sha = shown(str(described.get("manifest_sha256"))[:12], 12)
        return f"{described['rows']:,} rows, manifest <code>{sha}</code>"
    return f"{described.get('bytes', 0):,} bytes"
