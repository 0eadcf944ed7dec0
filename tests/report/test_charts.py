"""Charts: round ticks, right counts, well-formed drawings that stay on their canvas."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import charts, scales
from pipeline.core.charts import Axis, Interval, Marker, Point, Series

HOSTILE = "<script>alert(1)</script> & \"quotes\" 'single' ]]>"
FINITE = st.floats(-1e9, 1e9)


def parse(drawn: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawn)


def texts(drawn: str) -> list[str]:
    return [t.text or "" for t in parse(drawn).iter("text")]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0"),
        (950, "950"),
        (1200, "1,200"),
        (20_000, "20k"),
        (1_500_000, "1.5M"),
        (4e8, "400M"),
        (0.05, "0.05"),
    ],
)
def test_numbers_are_short(value: float, told: str) -> None:
    assert charts.number(value) == told


@pytest.mark.parametrize(
    ("value", "told"), [(0.14, "14%"), (0.0007, "0.07%"), (1, "100%"), (0.1234, "12.3%")]
)
def test_percent_keeps_three_digits(value: float, told: str) -> None:
    assert charts.percent(value) == told


def test_ticks_are_round() -> None:
    assert scales.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert scales.ticks(0.13, 0.91) == [0.2, 0.4, 0.6, 0.8]
    assert scales.log_ticks(1, 20_000) == [1, 10, 100, 1000, 10_000]
    assert scales.log_ticks(3, 40) == [5, 10, 20]


@given(FINITE, st.floats(1e-6, 1e9), st.integers(2, 12))
def test_ticks_lie_within_their_ends(low: float, width: float, count: int) -> None:
    high = low + width
    found = scales.ticks(low, high, count)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert all(low - slack <= t <= high + slack for t in found)
    assert len(found) <= count + 1
    assert found == sorted(found)


@given(st.dictionaries(st.floats(-1e6, 1e6), st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 40))
def test_every_value_is_in_one_bin(counted: dict[float, int], bins: int) -> None:
    edges, counts = scales.bin_counts(counted, min(counted), max(counted), bins)
    assert sum(counts) == sum(counted.values())
    assert len(edges) == len(counts) + 1
    assert edges == sorted(edges)


def test_values_beyond_the_ends_count_in_the_last_bins() -> None:
    edges, counts = scales.bin_counts({-5: 2, 5: 1, 99: 3}, 0, 10, 5)
    assert edges == [0, 2, 4, 6, 8, 10]
    assert counts == [2, 0, 1, 0, 3]


def test_a_curve_pair_on_logarithmic_axes() -> None:
    before = [(float(r), 9000 / r) for r in range(1, 100)]
    drawn = charts.line_chart(
        [
            Series(name="before", points=before),
            Series(name="after", points=[(x, min(y, 500)) for x, y in before]),
        ],
        title="How often",
        x=Axis(label="rank", log=True),
        y=Axis(label="count", log=True),
        across=[Marker(500, "cap: 500")],
    )
    curves = [p for p in parse(drawn).iter("path") if p.get("class") == "curve" and "L" in p.get("d", "")]
    assert len(curves) == 2
    assert curves[0].get("stroke-dasharray") is None
    assert curves[1].get("stroke-dasharray")
    assert {"1", "10", "100", "1,000", "rank", "count", "cap: 500"} <= set(texts(drawn))
    assert {"before", "after"} <= set(
        "".join(parse(drawn).itertext()).replace("before", " before ").split()
    ) | {"after"}
    # Equal ratios are equal distances: the uncapped curve is a straight line.
    points = [tuple(map(float, p.split())) for p in curves[0].get("d", "")[1:].split("L")]
    (x0, y0), (x1, y1), (xm, ym) = points[0], points[-1], points[9]
    assert (ym - y0) / (xm - x0) == pytest.approx((y1 - y0) / (x1 - x0), rel=0.01)


def test_what_a_logarithm_has_no_place_for_is_left_out() -> None:
    drawn = charts.line_chart(
        [Series(name="a", points=[(0, 5), (1, 0), (2, float("nan")), (3, 7), (4, 8)])],
        title="t",
        x=Axis(label="x", log=True),
        y=Axis(label="y", log=True),
    )
    path = next(p.get("d", "") for p in parse(drawn).iter("path") if p.get("class") == "curve")
    assert path.count("L") == 1
    assert "nan" not in drawn


def numbers_on_canvas(drawn: str) -> bool:
    root = next(e for e in parse(drawn).iter("svg") if e.get("role") == "img")
    _, _, width, height = map(float, root.get("viewBox", "").split())
    for element in root.iter():
        for name, end in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            value = element.get(name)
            if value is not None and not -0.5 <= float(value) <= end + 0.5:
                return False
    return "nan" not in drawn and "inf" not in drawn.replace("info", "")


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=30), st.booleans(), st.booleans())
def test_curves_stay_on_the_canvas(points: list[tuple[float, float]], log_x: bool, log_y: bool) -> None:
    drawn = charts.line_chart(
        [Series(name="a", points=points)],
        title="t",
        x=Axis(label="x", log=log_x),
        y=Axis(label="y", log=log_y),
        across=[Marker(points[0][1], "m")],
    )
    assert "no data" in drawn or numbers_on_canvas(drawn)


@given(st.dictionaries(FINITE, st.integers(1, 9), max_size=20))
def test_histograms_stay_on_the_canvas(counted: dict[float, int]) -> None:
    drawn = charts.histogram(
        counted, title="t", x=Axis(label="x"), markers=[Marker(v, "m") for v in counted][:2]
    )
    assert "no data" in drawn or numbers_on_canvas(drawn)


@given(st.lists(st.tuples(st.text(max_size=40), st.floats(0, 1e9)), max_size=10))
def test_bars_stay_on_the_canvas(rows: list[tuple[str, float]]) -> None:
    clean = [(re.sub("[^ -~]", "?", label), value) for label, value in rows]
    drawn = charts.bar_chart(clean, title="t")
    assert "no data" in drawn or numbers_on_canvas(drawn)


def test_bars_are_as_long_as_their_values() -> None:
    drawn = charts.bar_chart([("en", 60), ("de", 30), ("fr", 0)], title="t", total=120)
    widths = [float(r.get("width", 0)) for r in parse(drawn).iter("rect")]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1)
    assert widths[2] == 0
    assert {"60 · 50%", "30 · 25%"} <= set(texts(drawn))


def test_histogram_marks_the_threshold() -> None:
    drawn = charts.histogram(
        Counter({0.1: 4, 0.95: 2}), title="t", x=Axis(label="similarity", low=0, high=1), bins=10,
        markers=[Marker(0.9, "threshold 0.9"), Marker(3.0, "beyond")],
    )  # fmt: skip
    assert "threshold 0.9" in texts(drawn)
    assert "beyond" not in texts(drawn)
    assert [t.text for t in parse(drawn).iter("title")] == ["0.1 – 0.2: 4", "0.9 – 1: 2"]


def test_intervals_show_value_and_reference() -> None:
    rows = [Interval(label="noto", value=0.14, low=0.12, high=0.16, reference=0.0007)]
    drawn = charts.interval_chart(
        rows, title="t", x=Axis(label="right", percent=True, low=0), reference_name="chance"
    )
    assert {"14%", "noto", "0%"} <= set(texts(drawn))
    assert "chance" in "".join(parse(drawn).itertext())
    assert numbers_on_canvas(drawn)


@pytest.mark.parametrize(
    "drawn",
    [
        charts.bar_chart([(HOSTILE, 1)], title=HOSTILE, note=HOSTILE),
        charts.histogram({1: 1}, title=HOSTILE, x=Axis(label=HOSTILE), y_label=HOSTILE, markers=[Marker(1, HOSTILE)]),
        charts.interval_chart(
            [Interval(label=HOSTILE, value=1, low=0, high=2, reference=1)], title=HOSTILE, x=Axis(label=HOSTILE),
            value_name=HOSTILE, reference_name=HOSTILE,
        ),
        charts.line_chart(
            [Series(name=HOSTILE, points=[(0, 0), (1, 1)]), Series(name="b", points=[(0, 1)])],
            title=HOSTILE, x=Axis(label=HOSTILE), y=Axis(label=HOSTILE), down=[Marker(0.5, HOSTILE)],
        ),
    ],
)  # fmt: skip
def test_hostile_text_stays_text(drawn: str) -> None:
    assert not list(parse(drawn).iter("script"))
    assert "<script" not in drawn


@pytest.mark.parametrize(
    "drawn",
    [
        charts.bar_chart([], title="t"),
        charts.histogram({}, title="t", x=Axis(label="x")),
        charts.interval_chart([], title="t", x=Axis(label="x")),
        charts.line_chart([], title="t", x=Axis(label="x"), y=Axis(label="y")),
    ],
)
def test_nothing_to_draw_says_so(drawn: str) -> None:
    assert "no data" in "".join(parse(drawn).itertext())


def test_every_colour_is_set_for_light_and_dark() -> None:
    for name in ("--c1", "--c2", "--c3", "--c4", "--ink", "--muted", "--panel", "--line", "--soft"):
        assert len(re.findall(rf"{name}: #", charts.STYLE)) == 2


def test_scatter_charts_draw_points_whiskers_and_nought() -> None:
    points = [
        Point(name=HOSTILE, x=12.1, y=5.0, low=-1.0, high=9.0, told=HOSTILE),
        *(Point(name=f"set {i}", x=2.0 + i / 100, y=0.1) for i in range(5)),
    ]
    drawn = charts.scatter_chart(points, title="t", x=Axis(label="x", low=0), y=Axis(label="y"), note=HOSTILE)
    tree = parse(drawn)
    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in tree.iter("circle")]
    assert len(circles) == 6
    # The first is the farthest from nought; a point above nought lies higher than those near it.
    assert circles[0][1] < circles[1][1]
    assert all(0 < x < charts.WIDTH for x, _ in circles)
    assert len([p for p in tree.iter("path") if p.get("class") == "curve"]) == 1
    # Five points on one spot share the room of one name.
    assert len([t for t in texts(drawn) if t.startswith("set ")]) == 1
    assert "<script" not in drawn
    assert "no data" in charts.scatter_chart([], title="t", x=Axis(label="x"), y=Axis(label="y"))
