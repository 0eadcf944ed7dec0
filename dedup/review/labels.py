"""What a person said, kept line by line, and the thresholds that came of it.

``labels.jsonl`` is only ever added to: each label and each undo is a line, written and synced before the next question
is shown, so a closed window or a lost machine costs nothing. ``thresholds.json`` is ``{data set: threshold}``, as
``wit dedup report --thresholds`` reads it; who set each, when and on how many labels stands beside it in
``reviews.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.core import manifest, paths
from pipeline.core.errors import InputError, OutputError

LABELS, THRESHOLDS, REVIEWS = "labels.jsonl", "thresholds.json", "reviews.json"
SAME, DIFFERENT, SKIP = "same", "different", "skip"
ANSWERS = (SAME, DIFFERENT, SKIP)
_UNDO = "undo"


@dataclass(frozen=True, kw_only=True)
class Label:
    """One answer about one pair.

    Attributes:
        dataset: Evaluation set.
        eval_id: Evaluation picture.
        pair_id: Its nearest training picture.
        similarity: As it was shown.
        answer: ``same``, ``different`` or ``skip``.
    """

    dataset: str
    eval_id: str
    pair_id: str
    similarity: float
    answer: str


class LabelFile:
    """The answers of a review, oldest first.

    Args:
        folder: Where ``labels.jsonl`` lies; made if it is not there.
        reviewer: Name written beside each line.

    Raises:
        InputError: A line in the middle of the file is not a label.
        OutputError: The folder cannot be written.
    """

    def __init__(self, folder: str, reviewer: str) -> None:
        self.path, self.reviewer = os.path.join(folder, LABELS), reviewer
        with paths.output_errors(folder):
            os.makedirs(folder, exist_ok=True)
            self.labels: list[Label] = _replay(self.path)

    def add(self, label: Label) -> None:
        """Writes an answer."""
        self._write({**label.__dict__})
        self.labels.append(label)

    def undo(self, dataset: str) -> Label | None:
        """Takes back a data set's latest answer; ``None`` if there is none."""
        at = next((i for i in reversed(range(len(self.labels))) if self.labels[i].dataset == dataset), None)
        if at is None:
            return None
        self._write({"dataset": dataset, "eval_id": self.labels[at].eval_id, "answer": _UNDO})
        return self.labels.pop(at)

    def _write(self, values: Mapping[str, Any]) -> None:
        line = json.dumps({**values, "by": self.reviewer, "at": manifest.now()}, sort_keys=True)
        with paths.output_errors(self.path), open(self.path, "ab") as file:
            # A machine that went down in mid-line left it open: the new line must not become part of it.
            file.write(b"" if _ends_with_newline(self.path) else b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _ends_with_newline(path: str) -> bool:
    with open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _replay(path: str) -> list[Label]:
    if not os.path.exists(path):
        return []
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    held: list[Label] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if values["answer"] == _UNDO:
                wanted = (values["dataset"], values["eval_id"])
                at = [i for i, one in enumerate(held) if (one.dataset, one.eval_id) == wanted]
                del held[at[-1]]
                continue
            label = Label(**{name: values[name] for name in Label.__dataclass_fields__})
            if label.answer not in ANSWERS:
                raise ValueError(label.answer)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            if _is_torn(line):
                continue
            raise InputError(
                "not a label",
                where=f"{path}, line {number}",
                found=repr(line[:80].decode(errors="replace")),
                hint="mend or remove the line",
            ) from error
        held.append(label)
    return held


def _is_torn(line: bytes) -> bool:
    return line.startswith(b"{") and not line.rstrip().endswith(b"}")


def save_threshold(folder: str, dataset: str, threshold: float, review: Mapping[str, Any]) -> None:
    """Sets one data set's threshold in ``thresholds.json`` and tells in ``reviews.json`` how it came about.

    Raises:
        OutputError: One of the files is there but is not a JSON object.
    """
    # The account first: a threshold must never stand without one.
    for name, value in ((REVIEWS, {"threshold": threshold, **review}), (THRESHOLDS, threshold)):
        path = paths.join(folder, name)
        values = {**_read_object(path), dataset: value}
        paths.write_bytes(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def _read_object(path: str) -> dict[str, Any]:
    if not paths.exists(path):
        return {}
    try:
        values = json.loads(paths.read_bytes(path))
    except ValueError as error:
        raise OutputError("not a JSON file", where=path, found=str(error), hint="move it away") from error
    if not isinstance(values, dict):
        raise OutputError("not a JSON object", where=path, hint="move it away")
    return values


def read_thresholds(folder: str) -> dict[str, float]:
    """The thresholds that are saved so far."""
    found = _read_object(paths.join(folder, THRESHOLDS))
    return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float)}


def read_reviews(thresholds: str, values: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Who set the thresholds of a file, where ``reviews.json`` beside it tells so of these very values.

    Args:
        thresholds: Path of the file of thresholds.
        values: What it holds.
    """
    path = thresholds.rpartition("/")[0]
    path = f"{path}/{REVIEWS}" if path else REVIEWS
    if not paths.exists(path):
        return {}
    try:
        found = _read_object(path)
    except OutputError as error:
        raise InputError(
            "not a file of reviews",
            where=path,
            hint="remove it or set the thresholds anew with `wit dedup review`",
        ) from error
    return {
        name: dict(review)
        for name, review in found.items()
        if isinstance(review, dict) and name in values and review.get("threshold") == values[name]
    }


def answered(labels: Iterable[Label], dataset: str) -> dict[tuple[str, str], str]:
    """A data set's answers by (evaluation id, training id), in the order they were given."""
    return {(one.eval_id, one.pair_id): one.answer for one in labels if one.dataset == dataset}
