"""Axes and their scales: round ticks, short labels, where on an axis a value lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# Below this a value has no room for the margins of a logarithmic axis.
SMALLEST = 1e-300


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: its label, its scale and, if the data should not set them, its ends.

    Attributes:
        label: What is shown, with its unit.
        log: Logarithmic; values that are not positive are left out.
        percent: Ticks are fractions shown as percent.
        low: Lower end.
        high: Upper end.
    """

    label: str
    log: bool = False
    percent: bool = False
    low: float | None = None
    high: float | None = None


def number(value: float) -> str:
    """A short label: ``1,200``, ``20k``, ``1.5M``, ``0.05``."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}"


def percent(value: float) -> str:
    """A fraction as percent, without digits that say nothing: ``14%``, ``2.5%``, ``0.07%``."""
    return f"{value * 100:.3g}%"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within two ends."""
    if not apart(low, high):
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((s * power for s in (1, 2, 5) if s * power >= raw), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Powers of ten within two positive ends; also 2 and 5 times them where there would be few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1,) if last - first > 2 else (1, 2, 5)
    stride = max(1, math.ceil((last - first) / count))
    every = [s * 10.0**p for p in range(first, last + 1, stride) for s in steps]
    return [t for t in every if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)] or [low]


def bin_counts(
    counted: Mapping[float, int], low: float, high: float, bins: int
) -> tuple[list[float], list[int]]:
    """Edges at round numbers and how many values lie in each bin; values beyond an end count in the end's bin."""
    if not apart(low, high):
        low, high = low - 0.5, low + 0.5
    marks = ticks(low, high, bins)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    first = math.floor(low / step + 1e-9)
    count = max(1, math.ceil(high / step - 1e-9) - first)
    counts = [0] * count
    for value, times in counted.items():
        counts[min(max(math.floor(value / step + 1e-9) - first, 0), count - 1)] += times
    return [round((first + i) * step, 12) for i in range(count + 1)], counts


@dataclass(frozen=True)
class Scale:
    """An axis with its ends."""

    low: float
    high: float
    axis: Axis

    @classmethod
    def over(cls, values: Sequence[float], axis: Axis) -> Scale:
        """The scale that holds some values, with a little room, and the axis's own ends."""
        ends = [v for v in values if has_place(v, axis)]
        ends += [v for v in (axis.low, axis.high) if v is not None]
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        if axis.log:
            return cls(low / 1.15, high * 1.15, axis) if high > low else cls(low / 2, high * 2, axis)
        room = (high - low) * 0.05 if apart(low, high) else max(abs(high) * 0.1, 1e-3)
        below = low if axis.low is not None else low - room
        return cls(below, high if axis.high is not None else high + room, axis)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 at the lower end to 1 at the upper."""
        if self.axis.log:
            bottom = math.log(self.low)
            return (math.log(value) - bottom) / (math.log(self.high) - bottom)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[float]:
        """Where the axis is labelled."""
        return (log_ticks if self.axis.log else ticks)(self.low, self.high, count)

    def label(self) -> Callable[[float], str]:
        """How its ticks are written."""
        return percent if self.axis.percent else number


def apart(low: float, high: float) -> bool:
    """Whether two ends differ by more than rounding, so that a scale can lie between them."""
    return high - low > max(1e-9, 1e-9 * max(abs(low), abs(high)))


def has_place(value: float, axis: Axis) -> bool:
    """Whether a finite value can be shown on an axis at all."""
    return math.isfinite(value) and (value > SMALLEST or not axis.log)
