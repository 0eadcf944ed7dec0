"""The overlap report as one self-contained page: results, Figure 17's panels, similarities, confounders, pairs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from pipeline.core import charts
from pipeline.core.charts import Axis, Interval, Marker, Point

# Not even a hostile name that slipped through could load or run anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# How far around the threshold the second histogram looks.
_AROUND = 0.12


def overlap_page(summary: Mapping[str, Any]) -> str:
    """The whole page from the values of ``overlap.json``; everything that came from outside is escaped."""
    datasets: Mapping[str, Mapping[str, Any]] = summary["datasets"]
    sections = "".join(_dataset(name, d) for name, d in datasets.items())
    style = charts.STYLE + resources.files("dedup").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Overlap report</title>'
        f"<style>{style}</style><body><header><p class='over'>Overlap report</p>"
        f"<h1>{_headline(datasets)}</h1>"
        "<p class='soft'>Overlap: evaluation pictures whose nearest training picture is at or above the threshold. "
        f"Clean: the others. All: both.</p>{_notes(datasets)}</header>"
        f"<main>{_table(summary)}{_figure(summary)}{sections}</main></body></html>\n"
    )


def _headline(datasets: Mapping[str, Mapping[str, Any]]) -> str:
    found, total = (sum(d[key] for d in datasets.values()) for key in ("n_overlap", "n_all"))
    sets = f"{len(datasets)} data sets" if len(datasets) != 1 else _text(next(iter(datasets)))
    return f"{found:,} of {total:,} evaluation pictures of {sets} were found in the training set"


def _notes(datasets: Mapping[str, Mapping[str, Any]]) -> str:
    notes = []
    unreviewed = [name for name, d in datasets.items() if not d["reviewed"]]
    if unreviewed:
        notes.append(
            f"Not reviewed by a person: the detector's own calibrated threshold stands for "
            f"{_text(', '.join(unreviewed))}. Look at the pairs with <code>wit dedup review</code>."
        )
    silent = [name for name, d in datasets.items() if not d["predictions"]]
    if silent:
        notes.append(
            f"No predictions were given of {_text(', '.join(silent))}: pairs and contamination only. Accuracies need a "
            "model's answers (<code>--predictions</code>, a table of eval_dataset, eval_id, correct)."
        )
    return "".join(f'<p class="note">{note}</p>' for note in notes)


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.2f}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _table(summary: Mapping[str, Any]) -> str:
    heads = (
        "data set", "pictures", "overlap", "contami-<wbr>nation", "All", "Clean", "Overlap",
        f"{100 * summary['confidence']:g}% interval", "All − Clean, points", "p", "Fisher p", "signifi-<wbr>cant",
        "detectable gain", "threshold",
    )  # fmt: skip
    rows = "".join(_row(name, d) for name, d in summary["datasets"].items())
    family, alpha = summary["bonferroni_datasets"], summary["alpha"]
    return (
        f'<h2>Results</h2><div class="panel"><div class="scroll"><table><tr>'
        f"{''.join(f'<th>{h}</th>' for h in heads)}</tr>{rows}"
        f"</table></div></div><p class='soft'>p: one-tailed binomial test of Overlap's accuracy with Clean's as null. "
        f"Significant below {alpha:g}; “corrected” below {alpha / family:.3g} (Bonferroni over {family}). Detectable "
        "gain: the smallest gain on Overlap that the corrected test would find with 80% power. *: not reviewed.</p>"
    )


def _row(name: str, d: Mapping[str, Any]) -> str:
    significant = "–"
    if d["p_value"] is not None:
        significant = "corrected" if d["significant_bonferroni"] else "yes" if d["significant"] else "no"
    interval = "–" if d["ci_low"] is None else f"{_percent(d['ci_low'])} to {_percent(d['ci_high'])}"
    cells = (
        f"{d['n_all']:,}", f"{d['n_overlap']:,}", _percent(d["contamination"], 2), _percent(d["acc_all"]),
        _percent(d["acc_clean"]), _percent(d["acc_overlap"]), interval, _points(d["all_minus_clean"]),
        _p(d["p_value"]), _p(d["fisher_p"]), significant, _points(d["detectable_gain"]),
        f"{d['threshold']:.4f}{'' if d['reviewed'] else ' *'}",
    )  # fmt: skip
    return f"<tr><td>{_text(name)}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"


def _figure(summary: Mapping[str, Any]) -> str:
    left, right = [], []
    for name, d in summary["datasets"].items():
        x = 100 * (d["contamination"] or 0)
        if d["all_minus_clean"] is not None:
            told = f"{name}: {x:.2f}% overlap, {_points(d['all_minus_clean'])} points"
            right.append(Point(name=name, x=x, y=100 * d["all_minus_clean"], told=told))
        if d["overlap_minus_clean"] is not None:
            low, high = (100 * (d[end] - d["acc_clean"]) for end in ("ci_low", "ci_high"))
            told = f"{name}: {x:.2f}% overlap, {_points(d['overlap_minus_clean'])} points"
            left.append(
                Point(name=name, x=x, y=100 * d["overlap_minus_clean"], low=low, high=high, told=told)
            )
    if not right:
        return ""
    confidence = f"{100 * summary['confidence']:g}%"
    x_axis = Axis(label="share of the data set that overlaps, percent", low=0)
    drawn = (
        charts.scatter_chart(
            left, title="Overlap − Clean", x=x_axis, y=Axis(label="difference in accuracy, points"),
            note=f"Whiskers: {confidence} Clopper-Pearson interval of Overlap's accuracy. Above nought: more often "
            "right on what was in the training set.",
        ),
        charts.scatter_chart(
            right, title="All − Clean", x=x_axis, y=Axis(label="difference in accuracy, points"),
            note="What the overlap adds to the reported accuracy.",
        ),
    )  # fmt: skip
    return f"<h2>Accuracy difference against overlap</h2>{_panels(drawn)}"


def _panels(drawn: Sequence[str]) -> str:
    return f'<div class="two">{"".join(f"<div class=panel>{one}</div>" for one in drawn if one)}</div>'


def _dataset(name: str, d: Mapping[str, Any]) -> str:
    tiles = [
        (f"{d['n_overlap']:,}", f"of {d['n_all']:,} pictures overlap"),
        (_percent(d["contamination"], 2), "contamination"),
    ]
    if d["acc_all"] is not None:
        tiles += [
            (_percent(d["acc_all"]), "accuracy on All"),
            (_points(d["all_minus_clean"]), "All − Clean, points"),
        ]
    boxes = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in tiles)
    drawn = (
        *_histograms(d),
        _accuracies(d),
        _confounders(d),
        _classes(d["confounders"]["classes"], d["acc_clean"]),
    )
    return f'<h2>{_text(name)}</h2><div class="tiles">{boxes}</div>{_review(d)}{_panels(drawn)}{_pairs(d["pairs"])}'


def _review(d: Mapping[str, Any]) -> str:
    review = d.get("review")
    if not review:
        return ""
    expected = ""
    if review.get("precision") and review.get("recall"):
        precision, recall = review["precision"], review["recall"]
        expected = (
            f" Expected precision {_percent(precision[0])} ({_percent(precision[1])} to {_percent(precision[2])}), "
            f"recall {_percent(recall[0])} ({_percent(recall[1])} to {_percent(recall[2])})."
        )
    labels = int(review.get("same") or 0) + int(review.get("different") or 0)
    return (
        f"<p>Threshold {d['threshold']:.4f} set by {_text(review.get('by'))} on {_text(str(review.get('at'))[:10])} "
        f"after {labels} labelled pairs.{expected}</p>"
    )


def _histograms(d: Mapping[str, Any]) -> tuple[str, str]:
    edges, counts = d["histogram"]["edges"], d["histogram"]["counts"]
    middles = {(a + b) / 2: n for a, b, n in zip(edges, edges[1:], counts, strict=False)}
    axis = "similarity to the nearest training picture"
    marker = [Marker(d["threshold"], f"threshold {d['threshold']:.3f}")]
    low = max(edges[0], d["threshold"] - _AROUND)
    near = {v: n for v, n in middles.items() if v >= low}
    return (
        charts.histogram(
            middles, title="All pictures", x=Axis(label=axis, high=1.0), y_label="evaluation pictures", bins=40,
            markers=marker,
        ),
        charts.histogram(
            near, title="Around the threshold", x=Axis(label=axis, low=low, high=1.0), y_label="evaluation pictures",
            bins=30, markers=marker,
        ),
    )  # fmt: skip


def _accuracies(d: Mapping[str, Any]) -> str:
    if d["acc_overlap"] is None:
        return ""
    shift = d["confounders"]["classes"] or {}
    rows = [
        Interval(
            label="Overlap",
            value=d["acc_overlap"],
            low=d["ci_low"],
            high=d["ci_high"],
            reference=d["acc_clean"],
        )
    ]
    if shift.get("acc_clean_reweighted") is not None:
        rows.append(
            Interval(
                label="Overlap, classes even", value=d["acc_overlap"], low=d["ci_low"], high=d["ci_high"],
                reference=shift["acc_clean_reweighted"],
            )
        )  # fmt: skip
    return charts.interval_chart(
        rows, title="Accuracy on Overlap beside Clean's", x=Axis(label="accuracy", percent=True),
        value_name="Overlap with its interval", reference_name="Clean",
    )  # fmt: skip


def _confounders(d: Mapping[str, Any]) -> str:
    flags, without = d["confounders"]["flags"], d["confounders"]["without"]
    if not flags:
        return ""
    told = {"near-uniform": "blank or near-uniform", "tiny": "tiny (32 pixels or less)"}
    lines = [
        f"<li>{told[name]}: {_share(n['n_overlap'], d['n_overlap'])} of Overlap, {_share(n['n_clean'], d['n_clean'])} "
        "of Clean</li>"
        for name, n in flags.items()
    ]
    if without is None:
        after = "<p>No picture is flagged: the result stands as it is.</p>"
    else:
        rest = f"{without['n_overlap']:,} of {without['n_all']:,} overlap ({_percent(without['contamination'], 2)})"
        if without["all_minus_clean"] is not None:
            rest += f", All − Clean {_points(without['all_minus_clean'])} points, p {_p(without['p_value'])}"
        after = f"<p>Without the flagged pictures: {rest}.</p>"
    return f"<h3>What may be alike for another reason</h3><ul>{''.join(lines)}</ul>{after}"


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({_percent(part / whole if whole else 0)})"


def _classes(shift: Mapping[str, Any] | None, acc_clean: float | None) -> str:
    if shift is None:
        return ""
    rows = "".join(
        f"<tr><td>{_text(c['label'])}</td><td>{c['n_overlap']:,}</td><td>{c['n_clean']:,}</td></tr>"
        for c in shift["largest"]
    )
    verdict = "more than chance would" if shift["p_value"] < 0.05 else "no more than chance would"
    single = ""
    if shift["single_class"] is not None:
        single = f" <b>All of Overlap is of one class, {_text(shift['single_class'])}.</b>"
    even = ""
    if shift["acc_clean_reweighted"] is not None:
        even = (
            f"<p>With Overlap's classes Clean's accuracy would be {_percent(shift['acc_clean_reweighted'])} instead of "
            f"{_percent(acc_clean)} (of the {shift['n_reweighted']:,} pictures of Overlap whose class Clean has).</p>"
        )
    return (
        "<h3>Classes of Overlap and Clean</h3>"
        f"<p>They differ {verdict}: {_percent(shift['distance'])} of Overlap would have to change class, "
        f"{_percent(shift['expected_distance'])} if the overlap were random (p {_p(shift['p_value'])}). Overlap has "
        f"{shift['classes_overlap']:,} of {shift['classes']:,} classes.{single}</p>{even}"
        f"<details><summary>Classes that differ most</summary><div class='scroll'><table><tr><th>class</th>"
        f"<th>Overlap</th><th>Clean</th></tr>{rows}</table></div></details>"
    )


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    last = max((i for i, p in enumerate(pairs) if p["overlap"]), default=-1)
    rows = "".join(
        f"<tr{' class=limit' if i == last else ''}><td class='id'>{_text(p['eval_id'])}</td>"
        f"<td class='id'>{_text(p['pair_id'])}</td>"
        f"<td>{p['similarity']:.4f}</td><td>{'overlap' if p['overlap'] else 'clean'}</td></tr>"
        for i, p in enumerate(pairs)
    )
    return (
        f"<details><summary>Most similar pairs</summary><div class='panel scroll'><table><tr>"
        f"<th>evaluation picture</th><th>training pair</th><th>similarity</th><th></th></tr>{rows}"
        "</table></div></details>"
    )
