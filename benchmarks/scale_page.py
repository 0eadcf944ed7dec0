"""`docs/scale.md` and its chart, from what `benchmarks/scale.py` measured; a test holds that they are up to date."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import table
from dedup import coarse
from pipeline.core import scaling, spill
from pipeline.core.scaling import Cost, Point, Prices
from pipeline.select import shuffle
from pipeline.select import stage as select_stage

FOLDER = Path(__file__).parents[1] / "docs"
PAGE, CHART = FOLDER / "scale.md", FOLDER / "scale.svg"
# A WIT of the paper's size. The dump, the share of links that live and the evaluation pictures are assumptions.
DUMP_MB, CANDIDATES, PAIRS = 100_000, 10e9, 400e6
COLOURS = ("#0072b2", "#d55e00", "#008f68", "#b45f93", "#5b6470", "#a67c00", "#1b1f24")
OF = {2: "pair of pictures", 1.5: "picture, times 2/3 of the root of all"}
# Rows that pass the filter of `benchmarks/captions.py`, and bytes of a packed and of a dropped row of its.
PASSED, PACKED_BYTES, DROPPED_BYTES = 0.7, 84, 124
# Numbers of an embedding of the detector that ships.
LENGTH = 356
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 300, 48, 100, 28, 30


def paper() -> list[Cost]:
    """The costs of the paper's size."""
    return scaling.costs(candidates=CANDIDATES, urls=PAIRS, pictures=PAIRS, dump_mb=DUMP_MB, prices=Prices())


def short(number: float) -> str:
    """Three digits that a reader can compare."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.2g}" if number < 10 else f"{number:.1f}"


def counted(stage: str) -> str:
    """What a measured point calls the number of units: pages hold several candidates."""
    return "rows" if stage == "candidates" else "size"


def measured_table() -> str:
    """What was measured: each stage at its three sizes, and the power."""
    rows = []
    for stage, (start, *sizes) in scaling.measured().items():
        by = counted(stage)
        cells = [stage, scaling.RATES[stage].unit, " / ".join(f"{p[by]:,.0f}" for p in sizes)]
        cells.append(" / ".join(short(p["cpu_s"] - start["cpu_s"]) for p in sizes))
        cells.append(f"{scaling.exponent([start, *sizes], 'cpu_s', by):.2f} ({scaling.RATES[stage].power})")
        cells.append(" / ".join(f"{p['peak_mb']:,.0f}" for p in (start, *sizes)))
        cells.append(" / ".join(f"{p['waiting_bytes'] / 1e6:,.1f}" for p in sizes))
        rows.append(cells)
    head = [
        "stage",
        "unit",
        "sizes",
        "CPU s, start taken off",
        "power (taken)",
        "peak MB, start first",
        "MB on the way",
    ]
    return table(head, rows)


def rates_table() -> str:
    """The rates and where they come from."""
    rows = [
        [
            stage,
            f"{short(rate.cpu_s * 1e6)} µs a {OF.get(rate.power, rate.unit.rstrip('s'))}",
            f"{rate.way_bytes:,.0f}",
            f"{rate.worker_mb:,.0f}",
            f"`python -m {rate.source}`",
        ]
        for stage, rate in scaling.RATES.items()
    ]
    return table(
        ["stage", "CPU time", "bytes on the way for each", "peak MB of a process", "measured by"], rows
    )


def paper_table(found: list[Cost]) -> str:
    """The costs at the paper's size."""
    rows = [
        [
            one.stage,
            f"{one.units:,.0f} {one.unit}",
            short(one.core_hours),
            short(one.way_bytes / 1e9),
            f"{one.worker_mb:,.0f}",
            short(one.serial_hours) if one.serial_hours else "–",
            f"{one.dollars:,.0f}",
        ]
        for one in found
    ]
    head = [
        "stage", "size", "core-hours", "GB on the way", "MB of a worker", "hours of one worker alone", "dollars",
    ]  # fmt: skip
    return table(head, rows)


def pieces(rows: float, row_bytes: float, file_bytes: float, parts: float) -> float:
    """How many pieces workers hand to each other: one of each file for each part."""
    return rows * row_bytes / file_bytes * parts


def page() -> str:
    """The whole of `docs/scale.md`."""
    found = paper()
    by = {one.stage: one for one in found}
    prices = Prices()
    select, groups, listed = by["select"], by["dedup groups"], by["dedup groups --index ivf"]
    missing = ", ".join(f"`{stage}`" for stage in scaling.RATES if stage not in scaling.measured())
    parts = CANDIDATES / select_stage.PACKED_ROWS
    packed = 3 * pieces(CANDIDATES * PASSED, PACKED_BYTES, shuffle.HELD_BYTES, parts)
    lost = CANDIDATES - PAIRS
    dropped = pieces(lost, DROPPED_BYTES, spill.SPILL_BYTES, lost / select_stage.PART_ROWS)
    sample = 64 * PAIRS**0.5
    sample_gb = sample * LENGTH * 4 / 1e9
    visitors, list_parts = PAIRS * coarse.PROBES, PAIRS * coarse.PROBES / coarse.PART_ROWS
    visits = pieces(visitors, listed.way_bytes / visitors, coarse.HELD_BYTES, list_parts)
    piece_hours = visits * 2.5e-4 / 3600
    hours, dollars = (
        sum(getattr(one, name) for one in found if one is not groups) for name in ("core_hours", "dollars")
    )
    return f"""# What a WIT of 400 million pairs takes
For 500,000 queries, 10 billion candidates and 400 million pairs, by measured rates of one thread. Assumed:
{DUMP_MB / 1000:,.0f} GB of Wikipedia's XML, that all links live, {scaling.EVALUATION_PICTURES:,} evaluation pictures,
${prices.core_hour:g} for an hour of a core with its 4 GB, ${prices.way_gb:g} for a GB on the way between workers.
Starting workers, and storing what comes in and goes out, are left out. `wit plan` prints the same estimate for your
candidates and prices (`--dollars-core-hour`, `--dollars-way-gb`).

{paper_table(found)}

All stages, groups with `--index ivf`: {hours:,.0f} core-hours, {dollars:,.0f} dollars.

## Which stage stops first
1. **`dedup groups`, by arithmetic, unless `--index ivf` is given.** Exactly, every picture meets every other:
   {groups.core_hours:,.0f} core-hours at 400 million pictures, {groups.core_hours / 1e4:,.1f} at 4 million. Within
   lists of alike pictures it takes {listed.core_hours:,.0f} by the rate at 160,000 pictures, the most that was
   measured, and says which share of the near-duplicates that finds. One process, the one that submits, makes the
   lists by k-means from 64 √N pictures, in {listed.serial_hours:,.1f} hours of one thread, in which the others wait:
   {sample / 1e6:,.1f} million here, {sample_gb:,.1f} GB, and for a moment twice that while they are read.
2. **`fetch`, by politeness and bandwidth, not by machines.** A host is asked once a second: one with a million
   pictures takes twelve days, whatever the number of workers. `wit plan` names the largest host.
3. **`select`, by one step that no second worker can share.** Workers filter, match, unite duplicates, count captions
   and write; which pairs stay is chosen by one of them, pair by pair in the order of rank: {select.serial_hours:,.1f}
   hours for 10 billion pairs (`python -m benchmarks.choice`), in which the others wait. It holds some numbers for
   each query and a stretch of pairs: 432 MB at a million, 588 at four million, of which 64 MB wait to be written.
4. **What is sorted into parts, by the number of pieces.** Workers write a file for some megabytes of rows, with a
   piece for each part, and files and parts both grow with the input: at 10 billion candidates {packed / 1e6:,.0f}
   million pieces lie between the steps of `select`, and {dropped / 1e6:,.0f} million wait to become its dropped rows,
   in parts of half a million. A piece is one read, of a range; on an object store that is one request.
   `dedup groups --index ivf` makes {visits / 1e6:,.0f} million at 400 million pictures, of {visitors / visits:.1f} rows
   on average. One takes 0.1 ms to write and as much to read, which is done one and a half times: some
   {piece_hours:,.0f} core-hours, which the rate, of few and large pieces, does not hold.

What a stage puts on the way lies in files below its output folder until it is read; an engine's own shuffle carries
their names.

## The rates
{rates_table()}

`select` is with the default language cascade, `dedup search` against {scaling.EVALUATION_MEASURED:,} evaluation
pictures (the estimate takes the product of both sides). A process that embeds holds {scaling.TORCH_MB} MB
before it begins, most of it torch's CUDA libraries.
`fetch` is without the processes that decode, each of which is held to `decode_memory_mb`.

## How stages grow
`python -m benchmarks.scale measure` runs stages at 1, 4 and 16 times a base size: one process and one thread each, CPU
seconds, on a shared machine of two hardware threads. The power is that from the first size to the last, in brackets
the one that the estimate takes; below it where what is done once still counts. Peak memory is that of the whole
process, Beam's local engine in it.

{measured_table()}

![CPU seconds and memory by size](scale.svg)

Not measured so: {missing}. `candidates` reads pages of the small world, which have many images each; a part of its
output grows with the input up to 512 MB of WARC, and a worker sorts one part in memory.

`python -m benchmarks.scale workers` compares one and two worker processes by wall time: on an idle machine only.

This page is made by `python -m benchmarks.scale page`.
"""


def chart() -> str:
    """Two panels over the size: CPU seconds and memory, each relative to the base size or in MB."""

    def times(point: Point, start: Point, base: Point) -> float:
        return (point["cpu_s"] - start["cpu_s"]) / (base["cpu_s"] - start["cpu_s"])

    panels = [
        _panel(0, "CPU seconds, times those of the base size", times, 1, 512),
        _panel(1, "peak MB of the process", lambda point, *_: point["peak_mb"], 128, 2048),
    ]
    size = f'viewBox="0 0 {2 * WIDTH} {HEIGHT}" width="{2 * WIDTH}" height="{HEIGHT}"'
    style = "text{font:11px system-ui,sans-serif;fill:#5b6470}path{fill:none;stroke-width:2}"
    style += ".grid{stroke:#dfe3e8;stroke-width:1}"
    ground = f'<rect width="{2 * WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{ground}{"".join(panels)}</svg>\n'


def _panel(
    place: int, title: str, value: Callable[[Point, Point, Point], float], low: float, high: float
) -> str:
    def x(size: float) -> float:
        return place * WIDTH + LEFT + math.log(size, 16) * (WIDTH - LEFT - RIGHT)

    def y(number: float) -> float:
        share = math.log(max(number, low) / low) / math.log(high / low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    drawn = [f'<text x="{place * WIDTH + LEFT}" y="14">{html.escape(title)}</text>']
    tick = low
    while tick <= high:
        drawn.append(f'<path class="grid" d="M{x(1):.1f} {y(tick):.1f}H{x(16):.1f}"/>')
        drawn.append(f'<text x="{x(1) - 6:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        tick *= 4 if high / low > 16 else 2
    drawn += [f'<text x="{x(f):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{f}×</text>' for f in (1, 4, 16)]
    ends: list[tuple[float, str, str]] = []
    for colour, (stage, (start, *points)) in zip(COLOURS, scaling.measured().items(), strict=False):
        at = [(x(p["size"] / points[0]["size"]), y(value(p, start, points[0]))) for p in points]
        line = "L".join(f"{a:.1f} {b:.1f}" for a, b in at)
        drawn.append(f'<path stroke="{colour}" d="M{line}"/>')
        ends.append((at[-1][1], stage, colour))
    last = -math.inf
    for end, stage, colour in sorted(ends):
        last = max(end, last + 12)
        drawn.append(f'<text x="{x(16) + 5:.1f}" y="{last + 4:.1f}" style="fill:{colour}">{stage}</text>')
    return "".join(drawn)


def write() -> None:
    """Writes the page and the chart."""
    PAGE.write_text(page(), encoding="utf-8")
    CHART.write_text(chart(), encoding="utf-8")
