"""The paper's evaluation datasets: classes, sizes, metric (Table 9) and prompts, so that a user's data needs one line.

The 27 of the linear probes, seven that test robustness to a shift of distribution, and two for retrieval. Sizes are
the paper's; prompts are written from what section 3.1.4 says about them, and are not OpenAI's list.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from pipeline.core.errors import UsageError

Configured = TypeVar("Configured")


@dataclass(frozen=True, kw_only=True)
class Known:
    """One dataset of the paper.

    Attributes:
        name: What ``--as`` takes.
        title: The paper's name.
        task: ``classification`` or ``retrieval``.
        classes: Number of classes; ``None`` for retrieval.
        train: Training images, where the paper says how many.
        test: Test images, where the paper says how many.
        metric: The dataset's own.
        prompts: Templates; ensembled if several.
        groups: Suites that it belongs to.
    """

    name: str
    title: str
    task: str
    classes: int | None
    train: int | None
    test: int | None
    metric: str
    prompts: tuple[str, ...]
    groups: tuple[str, ...]


@cache
def datasets() -> Mapping[str, Known]:
    """All datasets by name, in the paper's order."""
    text = resources.files("model").joinpath("datasets.json").read_text(encoding="utf-8")
    return {
        v["name"]: Known(**{**v, "prompts": tuple(v["prompts"]), "groups": tuple(v["groups"])})
        for v in json.loads(text)
    }


def group(name: str) -> tuple[Known, ...]:
    """The datasets of a suite: ``linear-probe-27``, ``zero-shot-36``, ``robustness`` or ``retrieval``."""
    return tuple(d for d in datasets().values() if name in d.groups)


def find(name: str) -> Known:
    """A dataset by name.

    Raises:
        UsageError: No such dataset.
    """
    if name not in datasets():
        near = difflib.get_close_matches(name, datasets(), n=1)
        raise UsageError(
            f"no dataset {name!r} in the registry",
            expected="one of " + ", ".join(datasets()),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return datasets()[name]


def applied(config: Configured, task: str) -> Configured:
    """A configuration with what its ``known_as`` stands for: name, metric and prompts, where it has them.

    Raises:
        UsageError: No such dataset, or one of another task.
    """
    values: Any = config
    if values.known_as is None:
        return config
    known = find(values.known_as)
    if known.task != task:
        raise UsageError(f"{known.name} is a {known.task} dataset", expected=f"one for {task}")
    found: dict[str, Any] = {"name": values.name or known.name}
    fields = {f.name for f in dataclasses.fields(values)}
    if "metric" in fields:
        found["metric"] = known.metric
    if "templates" in fields:
        found["templates"] = known.prompts
    if "template" in fields:
        found["template"] = known.prompts[0]
    return dataclasses.replace(values, **found)


def facts(known_as: str | None) -> dict[str, Any]:
    """What ``scores.json`` says of a registered dataset beside the scores."""
    if known_as is None:
        return {}
    known = find(known_as)
    return {"paper": {"title": known.title, "classes": known.classes, "test_images": known.test}}
