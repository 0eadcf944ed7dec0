"""``wit evaluate suite``: a named group of datasets, their mean, and how robust the model is (paper 3.3).

The paper's seven sets with a natural shift of distribution are compared with the set that they shift from: the gap
is the accuracy on the base set, restricted to the other's classes, less the accuracy under the shift. Effective
robustness (Taori et al., 2020) is what is left when the accuracy that other models' base accuracy predicts is taken
away; the prediction is a line through those models on logit scales.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model import checkpoint, events, registry
from model.clip import ImageModel
from model.config import SuiteConfig
from model.datasets import Dataset, read_dataset
from model.distributed import device_of
from model.metrics import METRICS, Interval, accuracy
from model.predictions import REASONS, SCORES, Dropped, write_dropped
from model.prompts import read_templates
from model.registry import Known
from model.zeroshot import predictions, read_names
from pipeline.core import paths, tables
from pipeline.core.contracts import PREDICTIONS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.stage import RunOptions, StageResult, run_stage

CLASS_NAMES, PROMPTS = ".classes.tsv", ".prompts.txt"  # beside a dataset, after its name
_ENDINGS = ("", ".tar", ".parquet", ".csv", ".tsv")


@dataclass(frozen=True)
class Member:
    """One dataset of a suite as it lies on disk.

    Attributes:
        known: What the registry says of it.
        dataset: Its images.
        names: Of its classes.
        templates: Prompts.
        inputs: Files that it was read from.
    """

    known: Known
    dataset: Dataset
    names: list[str]
    templates: tuple[str, ...]
    inputs: tuple[str, ...]


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


@dataclass
class Found:
    """Scores, tables and dropped images while a suite is evaluated."""

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: list[pa.Table] = field(default_factory=list)
    dropped: Dropped = field(default_factory=list)
    restricted: dict[str, Restricted] = field(default_factory=dict)


def run(config: SuiteConfig, out: str, options: RunOptions) -> Manifest | None:
    """Evaluates every dataset of the group that is there into one folder.

    Raises:
        WitError: A missing or bad model or dataset, none of the group's datasets, or an output that cannot be written.
    """
    if config.model is None or config.data is None:
        missing = "--model DIR" if config.model is None else "--data DIR"
        raise UsageError("nothing to evaluate", hint=f"pass {missing}")
    folder, data = config.model, config.data
    checkpoint.check(folder)
    events.check(config.tensorboard)
    wanted = members_of(config)
    members = [m for m in (read_member(data, known) for known in wanted) if m is not None]
    if not any(m.known.name != config.base for m in members):
        raise InputError(
            "none of the suite's datasets is there", where=data, expected=", ".join(k.name for k in wanted)
        )
    others = [read_suite(path) for path in config.baselines]
    missing_names = [k.name for k in wanted if k.name not in {m.known.name for m in members}]

    def body(out: str) -> StageResult:
        model = checkpoint.load_image_model(folder)
        found = evaluate(config, model, members, quiet=options.quiet)
        scores = summarise(config, found, others, missing_names)
        events.write_scores(config.tensorboard, scores, model=folder)
        return write(out, scores, found)

    return run_stage(
        body,
        stage="evaluate suite",
        contract=PREDICTIONS.id,
        config=config,
        inputs=[folder, *(p for m in members for p in m.inputs), *config.baselines],
        out=out,
        options=options,
        owned=(SCORES,),
        damage=REASONS,
    )


def members_of(config: SuiteConfig) -> list[Known]:
    """The group's classification datasets, the base set first if there is one.

    Raises:
        UsageError: No such group, or no such base set.
    """
    chosen = [known for known in registry.group(config.group) if known.task == "classification"]
    if not chosen:
        groups = sorted({g for known in registry.datasets().values() for g in known.groups} - {"retrieval"})
        raise UsageError(f"no suite {config.group!r}", expected=f"one of {', '.join(groups)}")
    base = [registry.find(config.base)] if config.base != "none" else []
    return [*base, *(known for known in chosen if known not in base)]


def read_member(data: str, known: Known) -> Member | None:
    """``DATA/NAME`` (or ``NAME.tar`` …); ``NAME.classes.tsv`` and ``NAME.prompts.txt`` may lie beside it."""
    path = next((p for p in (paths.join(data, known.name + e) for e in _ENDINGS) if paths.exists(p)), None)
    if path is None:
        return None
    dataset, inputs = read_dataset(path), [path]
    names, prompts = (paths.join(data, known.name + ending) for ending in (CLASS_NAMES, PROMPTS))
    templates = known.prompts
    if paths.exists(prompts):
        templates = read_templates(prompts)
        inputs.append(prompts)
    has_names = paths.exists(names)
    inputs += [names] if has_names else []
    return Member(known, dataset, read_names(dataset, names if has_names else None), templates, tuple(inputs))


def read_suite(path: str) -> dict[str, Any]:
    """``scores.json`` of another model on the same suite.

    Raises:
        InputError: It is missing or none.
    """
    file = path if path.endswith(".json") else paths.join(path, SCORES)
    if not paths.exists(file):
        raise InputError("no such suite", where=file, hint="make it with `wit evaluate suite`")
    try:
        found: dict[str, Any] = json.loads(paths.read_bytes(file))
        if found["task"] != "suite" or not isinstance(found["datasets"], dict):
            raise ValueError(f"task {found['task']}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("not the scores of a suite", where=file, found=str(error)) from error
    return found


def evaluate(config: SuiteConfig, model: ImageModel, members: Sequence[Member], *, quiet: bool) -> Found:
    """Classifies all images of all members."""
    if config.threads:
        torch.set_num_threads(config.threads)
    model = model.to(device_of(config.device))
    found = Found()
    for member in members:
        name, dataset = member.known.name, member.dataset
        compared: dict[str, Restricted] = {}
        if name == config.base:
            others = [m for m in members if m.known.name != config.base]
            compared = found.restricted = restrictions(dataset, others)
        labels = np.array([label for _, label in dataset.files])

        def seen(
            places: list[int], probabilities: np.ndarray, labels: np.ndarray = labels,
            compared: Mapping[str, Restricted] = compared,
        ) -> None:  # fmt: skip
            for one in compared.values():
                one.see(labels[places], probabilities)

        dropped: Dropped = []
        made = predictions(
            model, dataset, member.names, member.templates, batch_size=config.batch_size, dropped=dropped, quiet=quiet,
            seen=seen,
        )  # fmt: skip
        if not made.files:
            raise InputError("no image of the dataset can be decoded", where=dataset.root)
        found.dropped += [(reason, f"{name}/{one}", why) for reason, one, why in dropped]
        found.tables.append(made.table(name, dataset.classes))
        scores = made.scores(len(dataset.classes), metric=member.known.metric)
        scores["metric"] = METRICS[member.known.metric]
        if scores["metric"] not in scores["metrics"]:  # as mAP where every image has one class
            scores["metric"] = "top1"
        found.scores[name] = {**scores, "prompts": len(member.templates), **registry.facts(name)}
    return found


def restrictions(base: Dataset, others: Sequence[Member]) -> dict[str, Restricted]:
    """For each other set whose classes all are classes of the base set, those classes' numbers."""
    number = {name: i for i, name in enumerate(base.classes)}
    return {
        m.known.name: Restricted(np.array([number[c] for c in m.dataset.classes]))
        for m in others
        if set(m.dataset.classes) <= set(number)
    }


def summarise(
    config: SuiteConfig, found: Found, baselines: Sequence[Mapping[str, Any]], missing: Sequence[str]
) -> dict[str, Any]:
    """The suite's ``scores.json``: each dataset's scores, gaps to the base set, and their means."""
    values, gaps, chances = [], [], []
    for name, scores in found.scores.items():
        if name == config.base:
            continue
        metric = scores["metric"]
        values.append((scores["metrics"][metric], scores["intervals"][metric]))
        chances.append(scores["chance"].get(metric, scores["chance"]["top1"]))
        restricted = found.restricted.get(name)
        if restricted is not None and restricted.total:
            base = accuracy(restricted.correct, restricted.total)
            shifted = (scores["metrics"]["top1"], tuple(scores["intervals"]["top1"]))
            gap = difference(base, shifted)
            gaps.append(gap)
            scores["base"] = {"top1": base[0], "interval": base[1], "n": restricted.total}
            scores["gap"] = {"value": gap[0], "interval": gap[1]}
            predicted = expected(base[0], points(name, baselines))
            if predicted is not None:
                scores["effective_robustness"] = shifted[0] - predicted
    scored = {"mean": mean(values)}
    if gaps:
        scored["mean_gap"] = mean(gaps)
    return {
        "task": "suite",
        "dataset": config.group,
        "base": config.base if config.base in found.scores else None,
        "n": sum(s["n"] for s in found.scores.values()),
        "metrics": {name: value for name, (value, _) in scored.items()},
        "intervals": {name: span for name, (_, span) in scored.items()},
        "chance": {"mean": float(np.mean(chances))},
        "datasets": found.scores,
        "missing": list(missing),
        "baselines": len(baselines),
    }


Scored = tuple[float, Interval]


def mean(values: Sequence[Scored]) -> Scored:
    """The mean of independent scores; their distances to their limits add up in squares (Zou and Donner, 2008)."""
    centre = float(np.mean([v for v, _ in values]))
    below = sum((v - low) ** 2 for v, (low, _) in values) ** 0.5 / len(values)
    above = sum((high - v) ** 2 for v, (_, high) in values) ** 0.5 / len(values)
    return centre, (centre - below, centre + above)


def difference(one: Scored, other: Scored) -> Scored:
    """One score less an independent other one, with the interval of the same method."""
    (a, (a_low, a_high)), (b, (b_low, b_high)) = one, other
    below = ((a - a_low) ** 2 + (b_high - b) ** 2) ** 0.5
    above = ((a_high - a) ** 2 + (b - b_low) ** 2) ** 0.5
    return a - b, (a - b - below, a - b + above)


def points(name: str, baselines: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Other models' accuracy on the base set and on a shifted set."""
    rows = [suite["datasets"].get(name, {}) for suite in baselines]
    return [(row["base"]["top1"], row["metrics"]["top1"]) for row in rows if "base" in row]


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


def write(out: str, scores: Mapping[str, Any], found: Found) -> StageResult:
    """Writes scores, all predictions in one table, and the images that were dropped."""
    write_dropped(out, "evaluate suite", found.dropped)
    paths.write_bytes(paths.join(out, SCORES), (json.dumps(scores, indent=2) + "\n").encode())
    table = pa.concat_tables(found.tables)
    rows = tables.write_table(paths.join(out, tables.part_name(0)), table, PREDICTIONS)
    told = {k: v for k, v in scores.items() if k != "datasets"}
    return StageResult(rows=rows, rows_in=rows + len(found.dropped), extra={"scores": told})
