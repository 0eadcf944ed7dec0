"""What stages cost: the arithmetic, and that the page says what was measured."""

from __future__ import annotations

import pytest

from benchmarks import scale_page
from pipeline.core import scaling
from pipeline.core.scaling import RATES, Point, Prices, Rate


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"unit": "rows", "way_bytes": 8, "worker_mb": 7, "source": "x"}
    monkeypatch.setitem(RATES, "lines", Rate(cpu_s=2, serial_s=3, **common))  # type: ignore[arg-type]
    monkeypatch.setitem(RATES, "squares", Rate(cpu_s=2, power=2, **common))  # type: ignore[arg-type]


@pytest.mark.usefixtures("made")
def test_cost_follows_the_power() -> None:
    prices = Prices(core_hour=3600, way_gb=1e9)
    lines = scaling.cost("lines", 100, prices, times=4)
    assert lines.core_hours * 3600 == pytest.approx(2 * 100 * 4 + 300)
    assert lines.serial_hours * 3600 == pytest.approx(300)
    assert (lines.way_bytes, lines.worker_mb) == (800, 7)
    assert lines.dollars == pytest.approx(800 + 300 + 800)
    assert scaling.cost("squares", 100, prices).core_hours * 3600 == pytest.approx(2 * 100 * 100 / 2)


def test_every_stage_has_a_rate_and_the_dump_may_be_left_out() -> None:
    sizes = {"candidates": 100, "urls": 60, "pictures": 50, "prices": Prices(), "evaluation": 4_000}
    found = {cost.stage: cost for cost in scaling.costs(**sizes)}  # type: ignore[arg-type]
    assert list(found) == [stage for stage in RATES if stage != "queries"]
    assert list(RATES) == [cost.stage for cost in scaling.costs(**sizes, dump_mb=1)]  # type: ignore[arg-type]
    assert found["select"].units == 100
    assert found["fetch"].units == 60
    assert found["dedup search"].core_hours * 3600 == pytest.approx(2 * 50 * RATES["dedup search"].cpu_s)


def test_the_power_is_found_in_points() -> None:
    points: list[Point] = [{"size": n, "squares": 2 + n * n, "same": 7} for n in (0, 10, 40, 160)]
    assert scaling.exponent(points, "squares") == pytest.approx(2)
    assert scaling.exponent(points, "same") == 0


def test_no_stage_grew_faster_than_the_estimate_takes() -> None:
    assert set(scaling.measured()) <= set(RATES)
    for stage, points in scaling.measured().items():
        base = points[1]["size"]
        assert [p["size"] for p in points] == [1, base, 4 * base, 16 * base], stage
        assert scaling.exponent(points, "cpu_s", scale_page.counted(stage)) < RATES[stage].power + 0.2, stage


def test_the_page_says_what_was_measured() -> None:
    assert scale_page.PAGE.read_text(encoding="utf-8") == scale_page.page()
    assert scale_page.CHART.read_text(encoding="utf-8") == scale_page.chart()


def test_prices_below_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="core_hour"):
        Prices(core_hour=-1)
