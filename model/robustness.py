"""How robust a model is to shifts of distribution: which sets can be compared, gaps, effective robustness (paper 3.3).

The gap is the accuracy on a base set, restricted to another set's classes, less the accuracy under its shift.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.metrics import Interval
from model.predictions import SCORES
from pipeline.core import paths
from pipeline.core.errors import InputError

Scored = tuple[float, Interval]


@dataclass(frozen=True)
class Classes:
    """A dataset's classes, all that a comparison needs of it.

    Attributes:
        folders: What tells them apart in the dataset: folders, labels or numbers.
        names: What they are called in prompts.
        named: Whether a file gave the names.
    """

    folders: tuple[str, ...]
    names: tuple[str, ...]
    named: bool = False


@dataclass
class Restricted:
    """Accuracy on the base set among another set's classes alone.

    Attributes:
        columns: Numbers of those classes in the base set.
        correct: Images of those classes that are right when no other class may be chosen.
        total: Images of those classes.
    """

    columns: np.ndarray
    correct: int = 0
    total: int = 0

    def see(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Counts a batch: labels [B] and probabilities [B, C] of the base set."""
        inside = np.isin(labels, self.columns)
        best = self.columns[probabilities[inside][:, self.columns].argmax(axis=1)]
        self.correct += int((best == labels[inside]).sum())
        self.total += int(inside.sum())


def matched(base: Classes, other: Classes) -> list[int] | None:
    """The numbers that another set's classes have in the base set; ``None`` if that cannot be told.

    Numbers as labels say nothing by themselves: class 0 of a set of 200 classes is seldom class 0 of 1,000. Such sets
    are matched by the names that files give both, or if both number equally many classes.
    """
    numbered = any(all(c.isdecimal() for c in one.folders) for one in (base, other))
    named = base.named and other.named
    if not numbered or (not named and len(base.folders) == len(other.folders)):
        found = _places(base.folders, other.folders)
        if found is not None:
            return found
    return _places(base.names, other.names) if named else None


def _places(wanted: Sequence[str], given: Sequence[str]) -> list[int] | None:
    """Where each given name is among others, if each is there once."""
    number = {name: i for i, name in enumerate(wanted)}
    if not set(given) <= set(number) or len(set(given)) < len(given) or len(number) < len(wanted):
        return None
    return [number[name] for name in given]


def mean(values: Sequence[Scored]) -> Scored:
    """The mean of independent scores; their distances to their limits add up in squares (Zou and Donner, 2008)."""
    centre = float(np.mean([v for v, _ in values]))
    below = sum((v - low) ** 2 for v, (low, _) in values) ** 0.5 / len(values)
    above = sum((high - v) ** 2 for v, (_, high) in values) ** 0.5 / len(values)
    return centre, (centre - below, centre + above)


def mean_gap(bases: Sequence[Scored], shifts: Sequence[Scored]) -> Scored:
    """The mean of the gaps between scores on one base set and independent scores under shifts.

    The scores on the base set come from the same images, so their errors go together: their distances to their limits
    add up as they are, and more gaps do not make them smaller.
    """
    centre, low, high = (
        float(np.mean(part)) for part in zip(*((v, low, high) for v, (low, high) in bases), strict=True)
    )
    return difference((centre, (low, high)), mean(shifts))


def difference(one: Scored, other: Scored) -> Scored:
    """One score less an independent other one, with the interval of the same method."""
    (a, (a_low, a_high)), (b, (b_low, b_high)) = one, other
    below = ((a - a_low) ** 2 + (b_high - b) ** 2) ** 0.5
    above = ((a_high - a) ** 2 + (b - b_low) ** 2) ** 0.5
    return a - b, (a - b - below, a - b + above)


def points_of(suite: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """A model's accuracy on the base set and under each shift that it was compared with.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: It is not the scores of a suite.
    """
    rows = {name: row for name, row in suite["datasets"].items() if "base" in row}
    found = {name: (row["base"]["top1"], row["metrics"]["top1"]) for name, row in rows.items()}
    for name, shares in found.items():
        if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares):
            raise ValueError(f"{name}: accuracies {shares}")
    return found


def expected(base: float, others: Sequence[tuple[float, float]]) -> float | None:
    """The accuracy under a shift that a base accuracy predicts: a line through other models on logit scales.

    ``None`` with fewer than two models of different base accuracy, which no line goes through.
    """
    from scipy.special import expit, logit

    scaled = logit(np.clip(np.array([*others, (base, 0.5)], dtype=np.float64), 1e-4, 1 - 1e-4))
    x, y = scaled[:-1, 0], scaled[:-1, 1]
    if len(x) < 2 or np.ptp(x) < 1e-9:
        return None
    slope, offset = np.polyfit(x, y, 1)
    return float(expit(slope * scaled[-1, 0] + offset))


def read_suite(path: str, *, base: str) -> dict[str, Any]:
    """``scores.json`` of another model on the same suite, compared with the same base set.

    Raises:
        InputError: It is missing or none, or has another base set.
    """
    file = path if path.endswith(".json") else paths.join(path, SCORES)
    if not paths.exists(file):
        raise InputError("no such suite", where=file, hint="make it with `wit evaluate suite`")
    try:
        found: dict[str, Any] = json.loads(paths.read_bytes(file))
        if found["task"] != "suite":
            raise ValueError(f"task {found['task']}")
        theirs = found["base"]
        points_of(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("not the scores of a suite", where=file, found=str(error)) from error
    if theirs != base:
        raise InputError("a suite with another base set", where=file, expected=base, found=theirs or "none")
    return found
