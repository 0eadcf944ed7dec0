"""What a stage costs at any size, from measured rates.

A rate is CPU seconds per unit, start-up taken off, of the benchmark that it names; the seconds grow with the unit, or
with its square where every row meets every other, or with its power 1.5 where it meets those of a list.
`docs/scale.md` is made of the same numbers, and says how each stage grew at 1, 4 and 16 times a base size
(`measured.json`, written by `benchmarks/scale.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

Point = Mapping[str, float]
MEASURED: Final = "measured.json"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What a unit of a stage takes.

    Attributes:
        unit: What is counted.
        cpu_s: CPU seconds of workers for a unit; of a pair of units where the power is 2. All seconds are this, times
            the units to their power, divided by the power.
        power: With which the seconds grow.
        serial_s: CPU seconds for a unit of a worker that no other can help.
        way_bytes: Written on the way between workers for a unit.
        worker_mb: Peak of a process.
        source: The command that measured it.
    """

    unit: str
    cpu_s: float
    power: float = 1
    serial_s: float = 0.0
    way_bytes: float
    worker_mb: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Assumptions, in dollars.

    Attributes:
        core_hour: An hour of a core with its 4 GB.
        way_gb: A GB that is written on the way between workers, and read again.
    """

    core_hour: float = 0.07
    way_gb: float = 0.011

    def __post_init__(self) -> None:
        for name in ("core_hour", "way_gb"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")


RATES: Final = {
    # 83 CPU seconds for 1,012 MB with one worker; bytes on the way: benchmarks.scale, 8 MB.
    "queries": Rate(
        unit="MB of XML", cpu_s=0.082, way_bytes=409_000, worker_mb=508,
        source="benchmarks.queries --memory-mb 2000",
    ),
    # 7.0 CPU seconds without the start for 280 MB of HTML, 51,220 pairs; bytes on the way: benchmarks.scale.
    "candidates": Rate(
        unit="candidates", cpu_s=137e-6, way_bytes=76, worker_mb=336, source="benchmarks.candidates --wheel FILE"
    ),
    # For 10 million: 455.5 to filter and match, 303 more for the cascade; 68.4 to decide and write when one process did
    # so, and 2.1 more for a million since workers do it in parts. The choice alone: benchmarks.choice, if all
    # candidates match. One process that does everything, at a million. Bytes on the way: benchmarks.scale, 160,000.
    "select": Rate(
        unit="candidates", cpu_s=84.5e-6, serial_s=0.26e-6, way_bytes=401, worker_mb=883,
        source="benchmarks.select --rows 10000000 --workers 2",
    ),
    # 30.3 CPU seconds for 5,000 photographs of 109 kB, stored as 32 kB; both wait on the way.
    "fetch": Rate(unit="URLs", cpu_s=6.06e-3, way_bytes=141_000, worker_mb=377, source="benchmarks.fetch --photos DIR"),
    # 3.11 seconds for 320 pictures of 340 by 256, the start's taken off.
    "dedup embed": Rate(
        unit="pictures", cpu_s=9.75e-3, way_bytes=3_500, worker_mb=996,
        source="benchmarks.scale one --stages 'dedup embed' --size 320"
    ),
    # 6.12 seconds for 300,000 more training pictures, against 2,000.
    "dedup search": Rate(
        unit="training pictures", cpu_s=20.4e-6, way_bytes=0.4, worker_mb=580, source="benchmarks.scale measure"
    ),
    # 23.1 seconds for 64,000 pictures, none near another.
    "dedup groups": Rate(
        unit="training pictures", cpu_s=11.3e-9, power=2, way_bytes=0, worker_mb=502,
        source="benchmarks.scale measure"
    ),
    # 20 seconds for 160,000 pictures, none near another, on a busy machine; many of them grow with the pictures only.
    # One process makes the lists: 0.47 seconds for 12,800 of 356 numbers and 400 lists, as for 40,000 pictures.
    "dedup groups --index ivf": Rate(
        unit="training pictures", cpu_s=0.47e-6, power=1.5, serial_s=11.8e-6, way_bytes=5_440, worker_mb=907,
        source="benchmarks.scale one --stages 'dedup groups --index ivf' --size 160000"
    ),
}  # fmt: skip
TORCH_MB: Final = 670
"""Resident when Beam and torch's CUDA build have been imported, and nothing else has been done."""
EVALUATION_MEASURED: Final = 2_000
"""Evaluation pictures that `dedup search` was measured against; its cost is the product of both sides."""
EVALUATION_PICTURES: Final = 300_000
"""Of all evaluation sets together, where nobody says: an assumption."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage takes at a size.

    Attributes:
        stage: Its command.
        units: How many of its units.
        unit: What they are.
        core_hours: Of all workers together.
        serial_hours: Of these, those of one worker that no other can help: the stage takes as long.
        way_bytes: Written on the way between workers.
        worker_mb: Measured peak of a process.
        dollars: At the prices.
    """

    stage: str
    units: float
    unit: str
    core_hours: float
    serial_hours: float
    way_bytes: float
    worker_mb: float
    dollars: float


def cost(stage: str, units: float, prices: Prices, *, times: float = 1.0) -> Cost:
    """What a stage would take.

    Args:
        stage: One of :data:`RATES`.
        units: How many of its units.
        prices: For the dollars.
        times: Of the workers' CPU seconds, where they depend on another number too.
    """
    rate = RATES[stage]
    serial_hours, way = rate.serial_s * units / 3600, rate.way_bytes * units
    core_hours = rate.cpu_s * units**rate.power / rate.power * times / 3600 + serial_hours
    return Cost(
        stage=stage,
        units=units,
        unit=rate.unit,
        core_hours=core_hours,
        serial_hours=serial_hours,
        way_bytes=way,
        worker_mb=rate.worker_mb,
        dollars=core_hours * prices.core_hour + way / 1e9 * prices.way_gb,
    )


def costs(
    *,
    candidates: float,
    urls: float,
    pictures: float,
    prices: Prices,
    evaluation: float = EVALUATION_PICTURES,
    dump_mb: float = 0,
) -> list[Cost]:
    """What each stage of a run would take.

    Args:
        candidates: Rows that `candidates` makes and `select` reads.
        urls: That `fetch` asks for.
        pictures: In the shards.
        prices: For the dollars.
        evaluation: Pictures of all evaluation sets.
        dump_mb: MB of XML of the dumps; 0 leaves `queries` out.
    """
    sizes = {
        "queries": dump_mb,
        "candidates": candidates,
        "select": candidates,
        "fetch": urls,
        "dedup embed": pictures,
        "dedup search": pictures,
        "dedup groups": pictures,
        "dedup groups --index ivf": pictures,
    }
    by = {"dedup search": evaluation / EVALUATION_MEASURED}
    found = [cost(name, size, prices, times=by.get(name, 1.0)) for name, size in sizes.items()]
    return [one for one in found if one.units or one.stage != "queries"]


def as_dict(found: Cost) -> dict[str, Any]:
    """A cost for JSON."""
    return dict(vars(found))


@cache
def measured() -> dict[str, list[Point]]:
    """The points of each stage that has been measured: the start first, then rising sizes."""
    text = resources.files("pipeline.core").joinpath(MEASURED).read_text(encoding="utf-8")
    found: dict[str, list[Point]] = json.loads(text)
    return found


def exponent(points: Sequence[Point], value: str, counted: str = "size") -> float:
    """The power with which a value grew from the first size after the start to the last, the start's taken off."""
    start, first, last = points[0], points[1], points[-1]
    low, high = (point[value] - start[value] for point in (first, last))
    if low <= 0 or high <= 0:
        return 0.0
    return math.log(high / low) / math.log(last[counted] / first[counted])
