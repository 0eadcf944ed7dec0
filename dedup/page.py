"""The overlap report as one self-contained page: table, Figure 17's two panels, similarities, top pairs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, MARGIN = 440, 280, 48

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #66727f; --line: #d9dfe5; --mark: #b4451f;
  --calm: #2f6f9f; --ground: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #9aa5b1; --line: #37424d;
  --mark: #f08a5d; --calm: #7fb8e0; --ground: #14191f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p, .soft { color: var(--soft); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child, td.id { text-align: left; }
td.id { font-family: ui-monospace, monospace; font-size: .85rem; max-width: 24rem; overflow: hidden;
  text-overflow: ellipsis; }
.panels { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 27rem; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
.axis { stroke: var(--line); } .zero { stroke: var(--soft); stroke-dasharray: 3 3; }
.dot { fill: var(--calm); } .bar { fill: var(--calm); } .hot { fill: var(--mark); }
.whisker { stroke: var(--calm); } .limit { stroke: var(--mark); stroke-width: 1.5; }
"""


def overlap_page(summary: Mapping[str, Any]) -> str:
    """The whole page from the values of ``overlap.json``; everything that came from outside is escaped."""
    datasets: Mapping[str, Mapping[str, Any]] = summary["datasets"]
    unreviewed = [name for name, d in datasets.items() if not d["reviewed"]]
    note = ""
    if unreviewed:
        note = (
            "<p>Not reviewed by a person: the detector's own calibrated threshold stands for "
            f"{_text(', '.join(unreviewed))}.</p>"
        )
    sections = "".join(_dataset(name, d) for name, d in datasets.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Overlap report</title>'
        f"<style>{STYLE}</style><body><h1>Overlap with the training set</h1>"
        "<p>Overlap: evaluation pictures whose nearest training picture is at or above the threshold. "
        "Clean: the others. All: both.</p>"
        f"{note}{_table(summary)}{_figure(summary)}{sections}</body></html>\n"
    )


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
        "data set", "pictures", "overlap", "contamination", "All", "Clean", "Overlap",
        f"{100 * summary['confidence']:g}% interval", "All − Clean, points", "p", "Fisher p", "significant",
        "detectable gain", "threshold",
    )  # fmt: skip
    rows = "".join(_row(name, d) for name, d in summary["datasets"].items())
    family, alpha = summary["bonferroni_datasets"], summary["alpha"]
    return (
        f'<h2>Results</h2><div class="scroll"><table><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr>{rows}'
        f"</table></div><p>p: one-tailed binomial test of Overlap's accuracy with Clean's as null. Significant "
        f"below {alpha:g}; “corrected” below {alpha / family:.3g} (Bonferroni over {family}). Detectable gain: the "
        "smallest gain on Overlap that the corrected test would find with 80% power.</p>"
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
        if d["all_minus_clean"] is not None:
            right.append((name, d["contamination"], d["all_minus_clean"], None))
        if d["overlap_minus_clean"] is not None:
            ends = (d["ci_low"] - d["acc_clean"], d["ci_high"] - d["acc_clean"])
            left.append((name, d["contamination"], d["overlap_minus_clean"], ends))
    if not right:
        return "<p>No predictions were given: contamination only.</p>"
    confidence = f"{100 * summary['confidence']:g}%"
    return (
        '<h2>Accuracy difference against overlap</h2><div class="panels">'
        + _scatter(left, f"Overlap − Clean in points, with {confidence} Clopper-Pearson intervals.")
        + _scatter(right, "All − Clean in points: what the overlap adds to the reported accuracy.")
        + "</div>"
    )


Point = tuple[str, float, float, tuple[float, float] | None]


def _scatter(points: Sequence[Point], caption: str) -> str:
    ends = [v for _, _, y, w in points for v in (y, *(w or ()))]
    high = max([0.01, *(abs(v) for v in ends)]) * 1.1
    right = max([0.01, *(x for _, x, _, _ in points)]) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        across = MARGIN + (WIDTH - MARGIN - 12) * x / right
        return across, 12 + (HEIGHT - 12 - MARGIN) * (high - y) / (2 * high)

    marks = []
    for name, x, y, whisker in points:
        px, py = place(x, y)
        if whisker is not None:
            tops = [place(x, v)[1] for v in whisker]
            marks.append(f'<path class="whisker" d="M{px:.1f} {tops[0]:.1f}V{tops[1]:.1f}"/>')
        title = f"{name}: {_percent(x, 2)} overlap, {_points(y)} points"
        marks.append(
            f'<circle class="dot" cx="{px:.1f}" cy="{py:.1f}" r="4"><title>{_text(title)}</title></circle>'
        )
    middle = place(0, 0)[1]
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">'
        f'<path class="axis" d="M{MARGIN} 12V{HEIGHT - MARGIN}H{WIDTH - 12}" fill="none"/>'
        f'<path class="zero" d="M{MARGIN} {middle:.1f}H{WIDTH - 12}"/>'
        f'<text x="{MARGIN - 6}" y="20" text-anchor="end">{100 * high:+.1f}</text>'
        f'<text x="{MARGIN - 6}" y="{middle + 4:.1f}" text-anchor="end">0</text>'
        f'<text x="{MARGIN - 6}" y="{HEIGHT - MARGIN}" text-anchor="end">{-100 * high:+.1f}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - MARGIN + 18}">0%</text>'
        f'<text x="{WIDTH - 12}" y="{HEIGHT - MARGIN + 18}" text-anchor="end">{100 * right:.1f}% overlap</text>'
        f"{''.join(marks)}</svg><figcaption>{caption}</figcaption></figure>"
    )


def _dataset(name: str, d: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td class='id'>{_text(p['eval_id'])}</td><td class='id'>{_text(p['pair_id'])}</td>"
        f"<td>{p['similarity']:.4f}</td><td>{'overlap' if p['overlap'] else 'clean'}</td></tr>"
        for p in d["pairs"]
    )
    return (
        f"<h2>{_text(name)}</h2>{_histogram(d['histogram'], d['threshold'])}"
        f"<details><summary>Most similar pairs</summary><div class='scroll'><table><tr><th>evaluation picture</th>"
        f"<th>training pair</th><th>similarity</th><th></th></tr>{rows}</table></div></details>"
    )


def _histogram(made: Mapping[str, Sequence[float]], threshold: float) -> str:
    edges, counts = made["edges"], made["counts"]
    low, high, most = edges[0], edges[-1], max([1, *counts])
    width, height = 640, 180

    def across(value: float) -> float:
        return 12 + (width - 24) * (value - low) / (high - low)

    bars = []
    for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            # The square root keeps a few copies visible beside thousands of others.
            tall = max(2.0, (height - 50) * (count / most) ** 0.5)
            kind = "hot" if start >= threshold else "bar"
            bars.append(
                f'<rect class="{kind}" x="{across(start):.1f}" y="{height - 30 - tall:.1f}" '
                f'width="{max(1.0, across(end) - across(start) - 1):.1f}" height="{tall:.1f}">'
                f"<title>{start:.2f} to {end:.2f}: {count:,}</title></rect>"
            )
    limit = across(min(max(threshold, low), high))
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(bars)}'
        f'<path class="limit" d="M{limit:.1f} 14V{height - 30}"/>'
        f'<text x="{limit - 4:.1f}" y="20" text-anchor="end">threshold {threshold:.4f}</text>'
        f'<path class="axis" d="M12 {height - 30}H{width - 12}"/>'
        f'<text x="12" y="{height - 12}">{low:.2f}</text>'
        f'<text x="{width - 12}" y="{height - 12}" text-anchor="end">{high:.2f}</text></svg>'
        "<figcaption>Similarity of each evaluation picture to its nearest training picture "
        "(heights by square root).</figcaption></figure>"
    )
