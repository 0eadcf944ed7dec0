"""One review: which pair comes next, what the answers so far say, and what is saved. Knows nothing of HTTP."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dedup import images
from dedup.report import Best
from dedup.review import estimate, labels
from dedup.review.estimate import Labels, Model
from dedup.review.labels import Label, LabelFile
from dedup.review.pictures import Shown, Spot, facts, locate, show
from pipeline.core import manifest
from pipeline.core.errors import InputError

# Pairs of one step that can be asked about; of more, those with the smallest keyed hash.
PER_STEP = 12
# The number of labels after which a person may well stop.
ENOUGH = 60
CURVE_POINTS = 160
_KEPT_PICTURES = 64
SIDES = ("eval", "train")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A data set's pairs, most alike first.

    Attributes:
        eval_ids: Evaluation pictures.
        pair_ids: The nearest training picture of each.
        similarity: float64 [N].
        step: int64 [N], step of the model.
        asked: bool [N], whether the pair can be asked about at all.
        order: int64 [N], rank by keyed hash: the lower is asked about first.
        index: Place of each pair that can be asked about, by evaluation and training id.
        steps: float64 [M], the model's steps.
        working: The threshold that stands before the review.
    """

    eval_ids: tuple[str, ...]
    pair_ids: tuple[str, ...]
    similarity: np.ndarray
    step: np.ndarray
    asked: np.ndarray
    order: np.ndarray
    index: Mapping[tuple[str, str], int]
    steps: np.ndarray
    working: float


def lay_out(best: Best, working: float, *, seed: int = 0) -> Pairs:
    """Sorts a data set's pairs and chooses which can be asked about."""
    rows = sorted(range(len(best.ids)), key=lambda i: (-best.similarity[i], best.ids[i]))
    similarity = best.similarity[rows]
    steps = estimate.steps(similarity)
    step = estimate.place(steps, similarity)
    ids = tuple(best.ids[i] for i in rows)
    hashes = [hashlib.blake2b(f"{seed}\0{i}".encode(errors="replace"), digest_size=8).digest() for i in ids]
    order = np.empty(len(rows), np.int64)
    order[sorted(range(len(rows)), key=lambda i: (hashes[i], ids[i]))] = np.arange(len(rows))
    asked = np.zeros(len(rows), bool)
    by_step = np.lexsort((order, step))
    first = np.searchsorted(step[by_step], step[by_step], side="left")
    asked[by_step[np.arange(len(rows)) - first < PER_STEP]] = True
    return Pairs(
        eval_ids=ids,
        pair_ids=tuple(best.pair_ids[i] for i in rows),
        similarity=similarity,
        step=step,
        asked=asked,
        order=order,
        index={(ids[i], best.pair_ids[rows[i]]): i for i in np.flatnonzero(asked).tolist()},
        steps=steps,
        working=working,
    )


class Session:
    """A review in progress.

    Args:
        found: Each data set's nearest pictures.
        working: Threshold of each data set before the review.
        store: The answers.
        train: Where training pictures lie.
        evals: Where each data set's pictures lie.
        precision: Precision that a threshold should have.
    """

    def __init__(
        self,
        found: Mapping[str, Best],
        working: Mapping[str, float],
        store: LabelFile,
        *,
        train: Sequence[str],
        evals: Mapping[str, Sequence[str]],
        precision: float,
    ) -> None:
        self.sets = {name: lay_out(found[name], working[name]) for name in sorted(found)}
        self.names, self.store, self.precision = list(self.sets), store, precision
        self.spots: dict[tuple[str, str], dict[str, Spot]] = {}
        self.problems: list[str] = []
        wanted = {n for p in self.sets.values() for n, a in zip(p.pair_ids, p.asked, strict=True) if a}
        self._find("train", "", train, wanted)
        for name, pairs in self.sets.items():
            ids = {n for n, a in zip(pairs.eval_ids, pairs.asked, strict=True) if a}
            self._find("eval", name, evals.get(name, ()), ids)
        self._model = functools.lru_cache(maxsize=2)(self._lay_out)
        self._shown: OrderedDict[tuple[str, str, str], Shown | str] = OrderedDict()

    def _find(self, side: str, dataset: str, sources: Sequence[str], wanted: set[str]) -> None:
        title = "training pictures" if side == "train" else f"pictures of {dataset}"
        try:
            chunks = images.plan(sources, dataset=dataset or "train") if sources else []
        except InputError as error:
            self.problems.append(f"{title}: {error}")
            chunks = []
        spots = locate(chunks, wanted)
        self.spots[side, dataset] = spots
        if len(spots) < len(wanted) and (chunks or not sources):
            self.problems.append(
                f"{title}: {len(wanted) - len(spots):,} of {len(wanted):,} are not at hand; pass --{side} PATH"
            )

    def _lay_out(self, dataset: str) -> Model:
        pairs = self.sets[dataset]
        return estimate.model(pairs.similarity, pairs.working)

    def state(self, dataset: str) -> dict[str, Any]:
        """Everything that the page shows of one data set, ready for JSON.

        Raises:
            KeyError: There is no such data set.
        """
        pairs = self.sets[dataset]
        answers = self._answers(dataset)
        labelled = _labels(pairs, answers)
        found = estimate.curve(self._model(dataset), labelled)
        best = estimate.choose(found, self.precision)
        now = self._next(dataset, answers)
        asked = [float(pairs.similarity[i]) for i in answers]
        return {
            "datasets": self._summaries(),
            "dataset": dataset,
            "pair": None if now is None else self._pair(dataset, now),
            "ahead": self._ahead(dataset, answers, now),
            "counts": {kind: sum(1 for a in answers.values() if a == kind) for kind in labels.ANSWERS},
            "enough": ENOUGH,
            "wanted": self.precision,
            "working": _point(found, _place(found, pairs.working), pairs.working),
            "best": _best(found, best),
            "curve": _points(found, [*asked, float(found.threshold[best or 0]), pairs.working]),
            "asked": [
                {"similarity": round(float(pairs.similarity[i]), 5), "answer": a} for i, a in answers.items()
            ],
            "problems": self.problems,
        }

    def _summaries(self) -> list[dict[str, Any]]:
        saved = labels.read_thresholds(self.folder)
        said = Counter(one.dataset for one in self.store.labels if one.answer != labels.SKIP)
        return [
            {"name": n, "pairs": len(self.sets[n].eval_ids), "labels": said[n], "saved": saved.get(n)}
            for n in self.names
        ]

    @property
    def folder(self) -> str:
        """Where labels and thresholds are kept."""
        return self.store.path.rpartition("/")[0]

    def _answers(self, dataset: str) -> dict[int, str]:
        """A data set's answers by pair; answers about pairs of another search are left out."""
        pairs = self.sets[dataset]
        said = labels.answered(self.store.labels, dataset)
        return {pairs.index[pair]: answer for pair, answer in said.items() if pair in pairs.index}

    def _next(self, dataset: str, answers: Mapping[int, str]) -> int | None:
        pairs = self.sets[dataset]
        open_ = pairs.asked.copy()
        open_[list(answers)] = False
        left = np.bincount(pairs.step[open_], minlength=len(pairs.steps))
        step = estimate.next_step(self._model(dataset), _labels(pairs, answers), left)
        if step is None:
            return None
        there = np.flatnonzero(open_ & (pairs.step == step))
        return int(there[np.argmin(pairs.order[there])])

    def _ahead(self, dataset: str, answers: Mapping[int, str], now: int | None) -> list[dict[str, Any]]:
        """The pictures that would come after either answer, so that the page can load them."""
        if now is None:
            return []
        after = (self._next(dataset, {**answers, now: answer}) for answer in (labels.SAME, labels.DIFFERENT))
        return [
            {"side": side, "pair": i}
            for i in sorted({i for i in after if i is not None})
            for side in SIDES
            if self._spot(side, dataset, self._name(side, dataset, i)) is not None
        ]

    def _name(self, side: str, dataset: str, index: int) -> str:
        pairs = self.sets[dataset]
        return {"eval": pairs.eval_ids, "train": pairs.pair_ids}[side][index]

    def _pair(self, dataset: str, index: int) -> dict[str, Any]:
        pairs = self.sets[dataset]
        made: dict[str, Any] = {"index": index, "similarity": round(float(pairs.similarity[index]), 5)}
        for side in SIDES:
            name = self._name(side, dataset, index)
            shown = self.picture(side, dataset, index)
            spot = self._spot(side, dataset, name)
            ok = isinstance(shown, Shown)
            made[side] = {
                "facts": facts(spot, shown if isinstance(shown, Shown) else None, name),
                "problem": None if ok else shown,
            }
        return made

    def _spot(self, side: str, dataset: str, name: str) -> Spot | None:
        return self.spots[side, dataset if side == "eval" else ""].get(name)

    def picture(self, side: str, dataset: str, index: int) -> Shown | str:
        """One picture of a pair, or why it cannot be shown.

        Raises:
            KeyError: There is no such side or data set; IndexError: no such pair.
        """
        name = self._name(side, dataset, index)
        key = (side, dataset if side == "eval" else "", name)
        if key in self._shown:
            self._shown.move_to_end(key)
            return self._shown[key]
        spot = self._spot(side, dataset, name)
        made: Shown | str
        try:
            made = "not at hand" if spot is None else show(spot, name)
        except ValueError as error:
            made = str(error)
        self._shown[key] = made
        if len(self._shown) > _KEPT_PICTURES:
            self._shown.popitem(last=False)
        return made

    def answer(self, dataset: str, index: int, answer: str) -> None:
        """Keeps one answer.

        Raises:
            KeyError: No such data set; IndexError: no such pair; ValueError: no such answer, or already given.
        """
        pairs = self.sets[dataset]
        if answer not in labels.ANSWERS:
            raise ValueError(f"answer must be one of {', '.join(labels.ANSWERS)}, is {answer!r}")
        if not 0 <= index < len(pairs.eval_ids):
            raise IndexError(f"pair must lie in 0..{len(pairs.eval_ids) - 1}, is {index}")
        if not pairs.asked[index]:
            raise ValueError("this pair is not among those that are asked about")
        if index in self._answers(dataset):
            raise ValueError("this pair has its answer already")
        self.store.add(
            Label(
                dataset=dataset,
                eval_id=pairs.eval_ids[index],
                pair_id=pairs.pair_ids[index],
                similarity=round(float(pairs.similarity[index]), 5),
                answer=answer,
            )
        )

    def undo(self, dataset: str) -> int | None:
        """Takes the latest answer back; returns its pair, to be shown again."""
        taken = self.store.undo(dataset)
        if taken is None:
            return None
        return self.sets[dataset].index.get((taken.eval_id, taken.pair_id))

    def save(self, dataset: str, threshold: float) -> dict[str, Any]:
        """Saves a threshold with who set it, when, on how many labels, and what is expected of it.

        Raises:
            KeyError: No such data set; ValueError: no such similarity.
        """
        pairs = self.sets[dataset]
        if not -1 <= threshold <= 1:
            raise ValueError(f"a threshold must lie in [-1, 1], is {threshold}")
        answers = self._answers(dataset)
        found = estimate.curve(self._model(dataset), _labels(pairs, answers))
        point = _point(found, _place(found, threshold), threshold)
        review = {
            "by": self.store.reviewer,
            "at": manifest.now(),
            **{kind: sum(1 for a in answers.values() if a == kind) for kind in labels.ANSWERS},
            "found": int((pairs.similarity >= float(np.float32(threshold))).sum()),
            "precision": point["precision"],
            "recall": point["recall"],
            "credible": estimate.CREDIBLE,
        }
        labels.save_threshold(self.folder, dataset, threshold, review)
        return {"threshold": threshold, **review}


def _labels(pairs: Pairs, answers: Mapping[int, str]) -> Labels:
    told = [(i, a == labels.SAME) for i, a in answers.items() if a != labels.SKIP]
    return Labels.of([int(pairs.step[i]) for i, _ in told], [same for _, same in told])


def _place(found: estimate.Curve, threshold: float) -> int | None:
    """The lowest step at or above a threshold; ``None`` if it lies above all."""
    above = int((found.similarity >= threshold).sum())
    return above - 1 if above else None


def _best(found: estimate.Curve, at: int | None) -> dict[str, Any]:
    # Without any copy the threshold stands just above the most alike pair.
    return _point(found, at, None if at is not None else min(1.0, float(found.similarity[0]) + 1e-3))


def _point(found: estimate.Curve, at: int | None, threshold: float | None = None) -> dict[str, Any]:
    value = float(found.threshold[at]) if threshold is None and at is not None else threshold
    made: dict[str, Any] = {"threshold": None if value is None else round(value, 6)}
    if at is None:
        return {**made, "found": 0, "precision": None, "recall": None}
    return {
        **made,
        "found": int(found.found[at]),
        "precision": [round(v, 4) for v in found.precision[at].tolist()],
        "recall": [round(v, 4) for v in found.recall[at].tolist()],
    }


def _points(found: estimate.Curve, shown: Sequence[float]) -> list[dict[str, Any]]:
    """The part of the curve worth drawing: from the top to some way below the given similarities."""
    top, low = float(found.similarity[0]), min(shown)
    last = int((found.similarity >= low - 0.4 * (top - low) - 0.01).sum()) - 1
    places = np.unique(np.linspace(0, last, CURVE_POINTS).round().astype(int))
    return [_point(found, int(i)) for i in places]
