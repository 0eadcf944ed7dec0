"""Small charts as inline SVG: lines, bars, histograms, intervals; nothing to install, nothing to load.

Every function is pure: numbers in, one ``<figure>`` out. Colours are CSS variables that :data:`STYLE` sets for light
and dark screens (Okabe and Ito's palette, told apart by colour-blind readers; series also differ by dash), so a page
puts ``STYLE`` into its style sheet once. Text given to a chart is escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.core.scales import Axis, Scale, bin_counts, has_place, number, percent

__all__ = [
    "STYLE", "Axis", "Interval", "Marker", "Point", "Series", "bar_chart", "figure", "histogram", "interval_chart",
    "line_chart", "number", "percent", "scatter_chart",
]  # fmt: skip

STYLE = """
:root { --ink: #1b1f24; --muted: #5b6470; --line: #dfe3e8; --panel: #ffffff;
  --c1: #0072b2; --c2: #d55e00; --c3: #008f68; --c4: #b45f93; --soft: #c3c9d1; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --muted: #a2abb6; --line: #343a42;
  --panel: #1c2025; --c1: #56b4e9; --c2: #f08a45; --c3: #2fc39a; --c4: #dd9cc4; --soft: #59616b; } }
.chart { margin: 0; min-width: 0; }
.chart figcaption { font-weight: 600; margin: 0 0 .25rem; overflow-wrap: anywhere; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { font: 12px system-ui, sans-serif; fill: var(--muted); font-variant-numeric: tabular-nums; }
.chart text.strong { fill: var(--ink); }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .axis { stroke: var(--soft); stroke-width: 1; }
.chart .curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart .faint { stroke-width: 1; opacity: .4; }
.chart .marker { stroke: var(--ink); stroke-width: 1; }
.chart text.on-marker { fill: var(--ink); paint-order: stroke; stroke: var(--panel); stroke-width: 4px; }
.chart .legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; color: var(--muted); font-size: .85rem; }
.chart .legend svg { display: inline-block; width: 26px; height: 10px; margin-right: .35rem;
  overflow: visible; }
.chart .after { color: var(--muted); font-size: .85rem; margin: .2rem 0 0; }
@media (max-width: 560px) { .chart text { font-size: 14px; } }
"""
COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)")
DASHES = ("", "7 4", "2 4", "10 3 2 3")
WIDTH = 430
_RIGHT, _TOP, _BOTTOM = 16, 14, 44


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve: ``(x, y)`` points in order. A faint one has no legend and takes the next curve's colour."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False


@dataclass(frozen=True)
class Marker:
    """A thin line across the chart at a value, with a label."""

    value: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A row of an interval chart: a value with its interval and, optionally, a reference value."""

    label: str
    value: float
    low: float
    high: float
    reference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A named point of a scatter chart, with an optional vertical interval and a tooltip."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    told: str = ""


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x: Axis,
    y: Axis,
    across: Sequence[Marker] = (),
    down: Sequence[Marker] = (),
    height: int = 270,
) -> str:
    """Curves over two axes, each linear or logarithmic.

    Args:
        series: The curves; the first four have colours of their own.
        title: What the chart says.
        x: Horizontal axis.
        y: Vertical axis.
        across: Horizontal marks, as the cap of a distribution.
        down: Vertical marks.
        height: Height for a width of :data:`WIDTH`.
    """
    kept = [(s, [p for p in s.points if has_place(p[0], x) and has_place(p[1], y)]) for s in series]
    every = [p for _, points in kept for p in points]
    if not every:
        return figure(title, "<p>no data</p>")
    x_scale = Scale.over([*(p[0] for p in every), *(m.value for m in down if has_place(m.value, x))], x)
    y_scale = Scale.over([*(p[1] for p in every), *(m.value for m in across if has_place(m.value, y))], y)
    frame = _Frame(x_scale, y_scale, height)
    drawn = [frame.grid()]
    drawn += [_across(frame, m) for m in across if has_place(m.value, y)]
    drawn += [_down(frame, m) for m in down if has_place(m.value, x)]
    legend, colour = [], 0
    for one, points in kept:
        style = f'style="stroke:{COLOURS[colour % 4]}"'
        path = "M" + "L".join(f"{frame.x(a):.1f} {frame.y(b):.1f}" for a, b in points)
        if not points:
            continue
        if one.faint:
            drawn.append(f'<path class="curve faint" {style} d="{path}"/>')
            continue
        dash = f' stroke-dasharray="{DASHES[colour % 4]}"' if colour else ""
        drawn.append(f'<path class="curve" {style}{dash} d="{path}"/>')
        if len(points) == 1:
            drawn.append(_dot(frame.x(points[0][0]), frame.y(points[0][1]), COLOURS[colour % 4]))
        legend.append((one.name, f'<path class="curve" {style}{dash} d="M1 5H25"/>'))
        colour += 1
    body = _svg(WIDTH, height, drawn, title)
    return figure(title, (_legend(legend) if len(legend) > 1 else "") + body)


def histogram(
    counted: Mapping[float, int],
    *,
    title: str,
    x: Axis,
    y_label: str = "images",
    bins: int = 24,
    markers: Sequence[Marker] = (),
    height: int = 220,
) -> str:
    """Counts of values in equal bins, with marks at values that matter.

    Args:
        counted: How often each value occurs.
        title: What the chart says.
        x: Horizontal axis; its ends, if given, bound the bins, and values beyond fall into the last bin.
        y_label: What one value is.
        bins: How many bins at most.
        markers: Vertical marks, as a threshold.
        height: Height for a width of :data:`WIDTH`.
    """
    finite = {v: n for v, n in counted.items() if math.isfinite(v)}
    if not finite:
        return figure(title, "<p>no data</p>")
    low = min(finite) if x.low is None else x.low
    high = max(finite) if x.high is None else x.high
    edges, counts = bin_counts(finite, low, high, bins)
    axis = Axis(label=x.label, percent=x.percent, low=edges[0], high=edges[-1])
    frame = _Frame(
        Scale.over([m.value for m in markers], axis), Scale.over(counts, Axis(label=y_label, low=0)), height
    )
    drawn = [frame.grid()]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            place, width = frame.x(left) + 0.5, max(1.0, frame.x(right) - frame.x(left) - 1)
            tall = max(1.0, frame.y(0) - frame.y(count))
            drawn.append(
                f'<rect x="{place:.1f}" y="{frame.y(0) - tall:.1f}" width="{width:.1f}" height="{tall:.1f}" '
                f'style="fill:{COLOURS[0]}"><title>{number(left)} – {number(right)}: {count:,}</title></rect>'
            )
    drawn += [_down(frame, m) for m in markers if edges[0] <= m.value <= edges[-1]]
    return figure(title, _svg(WIDTH, height, drawn, title))


def bar_chart(
    rows: Sequence[tuple[str, float]],
    *,
    title: str,
    total: float | None = None,
    colour: int = 0,
    note: str = "",
) -> str:
    """Horizontal bars with their label and count, in the order given.

    Args:
        rows: Label and value; long labels are cut, the whole one shows as a tooltip.
        title: What the chart says.
        total: What shares are taken of; the rows' sum unless given.
        colour: Which of the four colours.
        note: Said below the bars.
    """
    if not rows:
        return figure(title, "<p>no data</p>")
    total = sum(v for _, v in rows) if total is None else total
    top = max(v for _, v in rows)
    longest = max(len(label) for label, _ in rows)
    left, row = min(165, 14 + longest * 7.5), 25
    room = WIDTH - left - 112
    drawn = []
    for i, (label, value) in enumerate(rows):
        middle = i * row + row / 2
        wide = max(1.5, room * value / top) if value and top else 0
        share = f" · {percent(value / total)}" if total else ""
        drawn.append(
            f'<text class="strong" x="{left - 8}" y="{middle + 4}" text-anchor="end">'
            f"{html.escape(_cut(label, int((left - 10) // 7.5)))}<title>{html.escape(label)}</title></text>"
            f'<rect x="{left}" y="{i * row + 4}" width="{wide:.1f}" height="{row - 8}" rx="2" '
            f'style="fill:{COLOURS[colour % 4]}"/>'
            f'<text x="{left + wide + 6:.1f}" y="{middle + 4}">{number(value)}{share}</text>'
        )
    after = f'<p class="after">{html.escape(note)}</p>' if note else ""
    return figure(title, _svg(WIDTH, len(rows) * row + 4, drawn, title) + after)


def interval_chart(
    rows: Sequence[Interval],
    *,
    title: str,
    x: Axis,
    value_name: str = "value and interval",
    reference_name: str = "reference",
) -> str:
    """Values with their intervals, one below another, each beside its reference (an open diamond).

    Args:
        rows: Label, value, interval and reference.
        title: What the chart says.
        x: Horizontal axis, linear.
        value_name: What the dot is, for the legend.
        reference_name: What the diamond is, for the legend.
    """
    if not rows:
        return figure(title, "<p>no data</p>")
    references = [r.reference for r in rows if r.reference is not None]
    left = min(165, 16 + max(len(r.label) for r in rows) * 7.5)
    row = 34
    height = _TOP + row * len(rows) + _BOTTOM
    ends = [v for r in rows for v in (r.low, r.high, r.value)] + references
    frame = _Frame(Scale.over(ends, x), Scale(0, 1, Axis(label="")), height, left=left)
    drawn = [frame.vertical_grid()]
    for i, one in enumerate(rows):
        y = _TOP + row * (i + 0.5)
        told = f"{percent(one.value) if x.percent else number(one.value)}"
        drawn.append(
            f'<text class="strong" x="{left - 10}" y="{y + 4}" text-anchor="end">'
            f"{html.escape(_cut(one.label, int((left - 12) // 7.5)))}<title>{html.escape(one.label)}</title></text>"
            f'<path d="M{frame.x(one.low):.1f} {y}H{frame.x(one.high):.1f}M{frame.x(one.low):.1f} {y - 5}v10'
            f'M{frame.x(one.high):.1f} {y - 5}v10" class="curve" style="stroke:{COLOURS[0]}"/>'
            + _dot(frame.x(one.value), y, COLOURS[0], told)
        )
        if one.reference is not None:
            drawn.append(_diamond(frame.x(one.reference), y))
    entries = [
        (
            value_name,
            f'<path class="curve" style="stroke:{COLOURS[0]}" d="M1 5H25"/>' + _dot(13, 5, COLOURS[0]),
        )
    ]
    if references:
        entries.append((reference_name, _diamond(13, 5)))
    return figure(title, _legend(entries) + _svg(WIDTH, height, drawn, title))


def scatter_chart(
    points: Sequence[Point], *, title: str, x: Axis, y: Axis, note: str = "", height: int = 290
) -> str:
    """Points with whiskers and, where there is room, their names; a line marks nought.

    Args:
        points: Name, place and, optionally, the ends of an interval on the vertical axis.
        title: What the chart says.
        x: Horizontal axis, linear.
        y: Vertical axis, linear.
        note: Said below the chart.
        height: Height for a width of :data:`WIDTH`.
    """
    after = f'<p class="after">{html.escape(note)}</p>' if note else ""
    if not points:
        return figure(title, f"<p>no data</p>{after}")
    ends = [v for p in points for v in (p.y, p.low, p.high, 0.0) if v is not None]
    frame = _Frame(Scale.over([p.x for p in points], x), Scale.over(ends, y), height)
    drawn = [frame.grid(), f'<path class="marker" d="M{frame.left} {frame.y(0):.1f}H{WIDTH - _RIGHT}"/>']
    named: list[tuple[float, float]] = []
    for one in sorted(points, key=lambda p: (-abs(p.y), p.name)):
        across, up = frame.x(one.x), frame.y(one.y)
        if one.low is not None and one.high is not None:
            low, high = frame.y(one.low), frame.y(one.high)
            drawn.append(
                f'<path class="curve" style="stroke:{COLOURS[0]};stroke-width:1.5" '
                f'd="M{across:.1f} {high:.1f}V{low:.1f}M{across - 4:.1f} {high:.1f}h8M{across - 4:.1f} {low:.1f}h8"/>'
            )
        drawn.append(
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" style="fill:{COLOURS[0]}">'
            f"<title>{html.escape(one.told or one.name)}</title></circle>"
        )
        if all(abs(across - a) > 60 or abs(up - b) > 14 for a, b in named):
            named.append((across, up))
            end = across > (frame.left + WIDTH) / 2
            drawn.append(
                f'<text class="on-marker" x="{across + (-8 if end else 8):.1f}" y="{up + 4:.1f}" '
                f'text-anchor="{"end" if end else "start"}">{html.escape(_cut(one.name, 18))}</text>'
            )
    return figure(title, _svg(WIDTH, height, drawn, title) + after)


def figure(title: str, body: str) -> str:
    """A chart's frame: the title above its body (HTML)."""
    return f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>{body}</figure>'


@dataclass(frozen=True)
class _Frame:
    """Where the data lie on the canvas."""

    x_scale: Scale
    y_scale: Scale
    height: int
    left: float = 66

    def x(self, value: float) -> float:
        return self.left + self.x_scale.share(value) * (WIDTH - _RIGHT - self.left)

    def y(self, value: float) -> float:
        return self.height - _BOTTOM - self.y_scale.share(value) * (self.height - _BOTTOM - _TOP)

    def grid(self) -> str:
        told, bottom = self.y_scale.label(), self.height - _BOTTOM
        drawn = [self.vertical_grid()]
        drawn += [
            f'<path class="grid" d="M{self.left} {self.y(tick):.1f}H{WIDTH - _RIGHT}"/>'
            f'<text x="{self.left - 7}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{told(tick)}</text>'
            for tick in self.y_scale.ticks(5)
        ]
        middle = (_TOP + bottom) / 2
        drawn.append(
            f'<path class="axis" d="M{self.left} {bottom}H{WIDTH - _RIGHT}"/><text x="10" y="{middle}" '
            f'text-anchor="middle" transform="rotate(-90 10 {middle})">{html.escape(self.y_scale.axis.label)}</text>'
        )
        return "".join(drawn)

    def vertical_grid(self) -> str:
        told, bottom = self.x_scale.label(), self.height - _BOTTOM
        drawn = [
            f'<path class="grid" d="M{self.x(tick):.1f} {_TOP}V{bottom}"/>'
            f'<text x="{self.x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{told(tick)}</text>'
            for tick in self.x_scale.ticks(6)
        ]
        middle = (self.left + WIDTH - _RIGHT) / 2
        label = html.escape(self.x_scale.axis.label)
        return "".join(drawn) + f'<text x="{middle}" y="{bottom + 35}" text-anchor="middle">{label}</text>'


def _across(frame: _Frame, marker: Marker) -> str:
    y = frame.y(marker.value)
    return (
        f'<path class="marker" d="M{frame.left} {y:.1f}H{WIDTH - _RIGHT}"/><text class="on-marker" '
        f'x="{WIDTH - _RIGHT - 4}" y="{y - 5:.1f}" text-anchor="end">{html.escape(marker.label)}</text>'
    )


def _down(frame: _Frame, marker: Marker) -> str:
    x = frame.x(marker.value)
    near_end = x > (frame.left + WIDTH) / 2
    return (
        f'<path class="marker" d="M{x:.1f} {_TOP}V{frame.height - _BOTTOM}"/><text class="on-marker" '
        f'x="{x - 6 if near_end else x + 6:.1f}" y="{_TOP + 12}" text-anchor="{"end" if near_end else "start"}">'
        f"{html.escape(marker.label)}</text>"
    )


def _dot(x: float, y: float, colour: str, told: str = "") -> str:
    label = (
        f'<text class="strong" x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{told}</text>' if told else ""
    )
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" style="fill:{colour}"/>{label}'


def _diamond(x: float, y: float) -> str:
    style = f"fill:var(--panel);stroke:{COLOURS[1]};stroke-width:2"
    return f'<path d="M{x:.1f} {y - 6:.1f}l5 6l-5 6l-5 -6z" style="{style}"/>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    drawn = (
        f'<span><svg viewBox="0 0 26 10" aria-hidden="true">{mark}</svg>{html.escape(name)}</span>'
        for name, mark in entries
    )
    return f'<div class="legend">{"".join(drawn)}</div>'


def _svg(width: int, height: int, drawn: Sequence[str], title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">{"".join(drawn)}</svg>'


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(1, length - 1)] + "…"
