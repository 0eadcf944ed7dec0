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
from model.datasets import read_dataset
from model.distributed import device_of
from model.metrics import METRICS, accuracy
from model.predictions import REASONS, SCORES, Dropped, write_dropped
from model.prompts import read_templates
from model.registry import Known
from model.robustness import (
    Classes,
    Restricted,
    Scored,
    difference,
    expected,
    matched,
    mean,
    mean_gap,
    points_of,
    read_suite,
)  # fmt: skip
from model.zeroshot import predictions, read_names
from pipeline.core import paths, tables
from pipeline.core.contracts import PREDICTIONS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.stage import RunOptions, StageResult, run_stage

CLASS_NAMES, PROMPTS = ".classes.tsv", ".prompts.txt"  # beside a dataset, after its name
_ENDINGS = ("", ".tar", ".parquet", ".csv", ".tsv")
# Why a set has no gap.
UNMATCHED = "its classes cannot be found among those of the base set"
NO_IMAGE = "no image of the base set is of its classes"


@dataclass(frozen=True)
class Member:
    """One dataset of a suite as it lies on disk.

    Attributes:
        known: What the registry says of it.
        path: Of its images.
        class_names: File of its classes' names, if there is one.
        prompts: File of its prompts, if there is one.
    """

    known: Known
    path: str
    class_names: str | None = None
    prompts: str | None = None

    def inputs(self) -> list[str]:
        """The files that it is read from."""
        return [p for p in (self.path, self.class_names, self.prompts) if p is not None]


@dataclass
class Found:
    """Scores, tables, classes and dropped images while a suite is evaluated, by the names of the datasets."""

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    classes: dict[str, Classes] = field(default_factory=dict)
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
    members = [m for m in (find_member(data, known) for known in wanted) if m is not None]
    if not any(counts(config, m.known.name) for m in members):
        raise InputError(
            "none of the suite's datasets is there", where=data, expected=", ".join(k.name for k in wanted)
        )
    others = read_baselines(config)
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
        inputs=[folder, *(p for m in members for p in m.inputs()), *config.baselines],
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
    if config.base == "none":
        return chosen
    base = registry.find(config.base)
    if base.task != "classification":
        raise UsageError(
            f"{base.name} is a {base.task} dataset", expected="one for classification", where="base"
        )
    return [base, *(known for known in chosen if known != base)]


def counts(config: SuiteConfig, name: str) -> bool:
    """Whether a dataset is in the group's means: a base set that the group does not list is only compared with."""
    return name != config.base or any(known.name == name for known in registry.group(config.group))


def find_member(data: str, known: Known) -> Member | None:
    """``DATA/NAME`` (or ``NAME.tar`` …); ``NAME.classes.tsv`` and ``NAME.prompts.txt`` may lie beside it."""
    path = next((p for p in (paths.join(data, known.name + e) for e in _ENDINGS) if paths.exists(p)), None)
    if path is None:
        return None
    beside = (paths.join(data, known.name + ending) for ending in (CLASS_NAMES, PROMPTS))
    names, prompts = (file if paths.exists(file) else None for file in beside)
    return Member(known, path, names, prompts)


def read_baselines(config: SuiteConfig) -> list[dict[str, Any]]:
    """The suites of other models that a line for effective robustness goes through.

    Raises:
        UsageError: There is no base set, or only one other model.
        InputError: One is missing or none, or has another base set.
    """
    if config.baselines and config.base == "none":
        raise UsageError(
            "effective robustness needs a base set", found="base = none", hint="pass --base NAME"
        )
    if len(config.baselines) == 1:
        raise UsageError(
            "no line goes through one model", where="baselines", expected="suites of at least two other models",
            found="1",
        )  # fmt: skip
    return [read_suite(path, base=config.base) for path in config.baselines]


def evaluate(config: SuiteConfig, model: ImageModel, members: Sequence[Member], *, quiet: bool) -> Found:
    """Classifies all images of all members."""
    if config.threads:
        torch.set_num_threads(config.threads)
    model = model.to(device_of(config.device))
    found = Found()
    # The base set comes last: by then it is known which of its classes the others have.
    for member in sorted(members, key=lambda m: m.known.name == config.base):
        evaluate_one(config, model, member, found, quiet=quiet)
    names = [m.known.name for m in members]
    found.scores = {name: found.scores[name] for name in names}
    found.tables = {name: found.tables[name] for name in names}
    return found


def evaluate_one(
    config: SuiteConfig, model: ImageModel, member: Member, found: Found, *, quiet: bool
) -> None:
    """Classifies a member's images; of the base set, also among the classes of each set evaluated before.

    Raises:
        InputError: It is damaged, or holds no image that can be decoded.
    """
    name, dataset = member.known.name, read_dataset(member.path)
    names = read_names(dataset, member.class_names)
    templates = member.known.prompts if member.prompts is None else read_templates(member.prompts)
    classes = Classes(dataset.classes, tuple(names), member.class_names is not None)
    found.classes[name] = classes
    if name == config.base:
        alike = {other: matched(classes, theirs) for other, theirs in found.classes.items() if other != name}
        found.restricted = {
            o: Restricted(np.array(columns)) for o, columns in alike.items() if columns is not None
        }
    compared = found.restricted if name == config.base else {}
    labels = np.array([label for _, label in dataset.files])

    def seen(places: list[int], probabilities: np.ndarray) -> None:
        for one in compared.values():
            one.see(labels[places], probabilities)

    dropped: Dropped = []
    made = predictions(
        model,
        dataset,
        names,
        templates,
        batch_size=config.batch_size,
        dropped=dropped,
        quiet=quiet,
        seen=seen,
    )
    if not made.files:
        raise InputError("no image of the dataset can be decoded", where=dataset.root)
    found.dropped += [(reason, f"{name}/{one}", why) for reason, one, why in dropped]
    found.tables[name] = made.table(name, dataset.classes)
    scores = made.scores(len(dataset.classes), metric=member.known.metric)
    scores["metric"] = METRICS[member.known.metric]
    if scores["metric"] not in scores["metrics"]:  # as mAP where every image has one class
        scores["metric"] = "top1"
    found.scores[name] = {**scores, "prompts": len(templates), **registry.facts(name)}


def summarise(
    config: SuiteConfig, found: Found, baselines: Sequence[Mapping[str, Any]], missing: Sequence[str]
) -> dict[str, Any]:
    """The suite's ``scores.json``: each dataset's scores, gaps to the base set, and their means."""
    values, chances = [], []
    bases: list[Scored] = []
    shifts: list[Scored] = []
    for name, scores in found.scores.items():
        metric = scores["metric"]
        if counts(config, name):
            values.append((scores["metrics"][metric], scores["intervals"][metric]))
            chances += [scores["chance"][metric]] if metric in scores["chance"] else []
        if name == config.base or config.base not in found.scores:
            continue
        restricted = found.restricted.get(name)
        if restricted is None or not restricted.total:
            scores["not_compared"] = UNMATCHED if restricted is None else NO_IMAGE
            continue
        base = accuracy(restricted.correct, restricted.total)
        shifted = (scores["metrics"]["top1"], tuple(scores["intervals"]["top1"]))
        bases.append(base)
        shifts.append(shifted)
        gap = difference(base, shifted)
        scores["base"] = {"top1": base[0], "interval": base[1], "n": restricted.total}
        scores["gap"] = {"value": gap[0], "interval": gap[1]}
        predicted = expected(base[0], [p[name] for p in map(points_of, baselines) if name in p])
        if predicted is not None:
            scores["effective_robustness"] = shifted[0] - predicted
    scored = {"mean": mean(values)}
    if bases:
        scored["mean_gap"] = mean_gap(bases, shifts)
    return {
        "task": "suite",
        "dataset": config.group,
        "base": config.base if config.base in found.scores else None,
        "n": sum(s["n"] for s in found.scores.values()),
        "metrics": {name: value for name, (value, _) in scored.items()},
        "intervals": {name: span for name, (_, span) in scored.items()},
        "chance": {"mean": float(np.mean(chances))} if chances else {},
        "datasets": found.scores,
        "missing": list(missing),
        "baselines": len(baselines),
    }


def write(out: str, scores: Mapping[str, Any], found: Found) -> StageResult:
    """Writes scores, all predictions in one table, and the images that were dropped."""
    write_dropped(out, "evaluate suite", found.dropped)
    paths.write_bytes(paths.join(out, SCORES), (json.dumps(scores, indent=2) + "\n").encode())
    table = pa.concat_tables(found.tables.values())
    rows = tables.write_table(paths.join(out, tables.part_name(0)), table, PREDICTIONS)
    told = {k: v for k, v in scores.items() if k != "datasets"}
    return StageResult(rows=rows, rows_in=rows + len(found.dropped), extra={"scores": told})
