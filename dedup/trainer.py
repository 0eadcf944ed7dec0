"""Taking a training's steps, part after part, and going on after a kill where the last snapshot was taken."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.amp import GradScaler

from dedup.contrast import Arithmetic, Batch, Encode, Schedule, adamw, backward
from dedup.detector import Detector
from pipeline.core.errors import StageFailedError
from pipeline.core.progress import Progress
from pipeline.core.snapshots import Snapshots, asked_to_end, stopped

LOG_STEPS = 10
State = dict[str, Any]


class Batches:
    """Batches drawn one after another; the next is made while one is used.

    Args:
        make: Makes the batch of a step, counted from 0, out of draws from a generator.
        seed: The generator's.
    """

    def __init__(self, make: Callable[[int, np.random.Generator], Batch], *, seed: int) -> None:
        self._make, self._seed = make, seed

    def after(self, first: int, steps: int, drawn: str | None) -> Generator[tuple[Batch, str], None, None]:
        """The batches of steps ``first`` to ``steps``, each with the generator's state after it.

        Args:
            first: The first step that is still to be taken.
            steps: Steps in all.
            drawn: The generator's state after the step before, as it was given with it; ``None`` at the start.
        """
        draw = np.random.default_rng(self._seed)
        if drawn is not None:
            draw.bit_generator.state = json.loads(drawn)

        def make(step: int) -> tuple[Batch, str]:
            return self._make(step, draw), json.dumps(draw.bit_generator.state)

        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(make, first)
            for step in range(first, steps):
                ready = waiting.result()
                if step + 1 < steps:
                    waiting = ahead.submit(make, step + 1)
                yield ready


@dataclass
class Place:
    """How far a part has come.

    Attributes:
        step: Steps taken.
        pairs: Pairs seen in them.
        drawn: State of the batches' generator; ``None`` before the first batch.
        seen: Loss and accuracy of the steps since the curve's last line.
    """

    step: int = 0
    pairs: int = 0
    drawn: str | None = None
    seen: list[tuple[float, float]] = field(default_factory=list)


class Trainer:
    """Trains a detector's parts; after a kill, a new one with the same snapshots goes on.

    Everything that a step depends on is in a snapshot: the weights, the optimiser's moments, the scaler, the step, and
    the state of the generator that draws the batches. A run that goes on therefore equals one that never stopped, to
    the bit where the arithmetic repeats itself to the bit, as it does on a CPU.

    Args:
        detector: What is trained; it gets the last snapshot's weights.
        parts: Names of the parts, in their order.
        how: The arithmetic.
        snapshots: Where to keep the state; ``None`` keeps none.
        snapshot_minutes: Time between snapshots.
        quiet: Show no progress.

    Attributes:
        lines: The curve: what ``metrics.jsonl`` will hold.

    Raises:
        InputError: All snapshots are damaged.
        StageFailedError: The processes found different ones.
    """

    def __init__(
        self,
        detector: Detector,
        parts: tuple[str, ...],
        *,
        how: Arithmetic,
        snapshots: Snapshots | None = None,
        snapshot_minutes: float = 0.0,
        quiet: bool = False,
    ) -> None:
        self.detector, self.parts, self.how, self.quiet = detector, parts, how, quiet
        self.lines: list[dict[str, object]] = []
        self._snapshots, self._seconds = snapshots, 60 * snapshot_minutes
        self._saved_at = time.monotonic()
        self._state = snapshots.load(_decode) if snapshots else None
        found = {name: (self._state or {}).get(name) for name in ("part", "done", "place")}
        if not how.processes.agree(json.dumps(found).encode()):
            raise StageFailedError(
                "the processes would go on from different snapshots",
                found=f"process {how.processes.rank}: {found['part'] or 'none'}",
                hint="--out must be a folder that all machines share",
            )
        if self._state is not None:
            detector.load_state_dict(self._state["detector"])
            self.lines = json.loads(self._state["lines"])

    def is_done(self, part: str) -> bool:
        """Whether a part was finished before the last snapshot was taken."""
        if self._state is None:
            return False
        reached = self.parts.index(self._state["part"])
        return self.parts.index(part) < reached + bool(self._state["done"])

    def optimise(
        self,
        part: str,
        encode: Encode,
        module: nn.Module,
        batches: Batches,
        schedule: Schedule,
        *,
        weight_decay: float,
    ) -> None:
        """Trains a module's parameters, from where the last snapshot left them, and adds to the curve.

        Args:
            part: Its name.
            encode: Makes unit embeddings [N, d] of a batch's inputs.
            module: Whose parameters are trained.
            batches: Two views of each picture, and the pictures' groups.
            schedule: Steps and learning rate.
            weight_decay: AdamW's decay of matrices.

        Raises:
            StageFailedError: The loss is not a number, or the process was asked to end (SIGTERM); then the state is
                saved.
        """
        if self.is_done(part):
            return
        optimiser = adamw(module, learning_rate=schedule.peak, weight_decay=weight_decay)
        scaler = self.how.scaler()
        place = self._restore(part, optimiser, scaler)
        coming = batches.after(place.step, schedule.steps, place.drawn)
        name = f"dedup train: {part}"
        with (
            contextlib.closing(coming),
            asked_to_end() as asked,
            Progress(name, total=schedule.steps, unit="batches", quiet=self.quiet) as progress,
        ):
            progress.update(place.step)
            for batch, place.drawn in coming:
                rate = schedule.rate(place.step)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                optimiser.zero_grad(set_to_none=True)
                loss, accuracy = backward(encode, module, batch, self.how, scaler)
                if not torch.isfinite(loss):
                    raise StageFailedError(
                        "the loss is not a number",
                        where=f"{part}, step {place.step}",
                        hint="lower learning_rate",
                    )
                scaler.step(optimiser)
                scaler.update()
                place.step += 1
                place.pairs += len(batch[2])
                place.seen.append((loss.item(), accuracy.item()))
                progress.update(1, note=f"loss {place.seen[-1][0]:.3f}")
                last = place.step == schedule.steps
                if len(place.seen) == LOG_STEPS or last:
                    self.lines.append(_line(part, place, rate))
                    place.seen.clear()
                ending, due = self.how.processes.any(bool(asked), self._due())
                if ending or due or last:
                    self._save(part, place, optimiser, scaler, done=last)
                if ending:
                    raise stopped(place.step, where=part)

    def _restore(self, part: str, optimiser: torch.optim.Optimizer, scaler: GradScaler) -> Place:
        """Where to go on in a part: at its beginning, or where the last snapshot was taken."""
        state = self._state
        if state is None or state["part"] != part:
            return Place()
        optimiser.load_state_dict(state.pop("optimiser"))
        scaler.load_state_dict(state.pop("scaler"))
        return Place(**json.loads(state["place"]))

    def _due(self) -> bool:
        return time.monotonic() - self._saved_at >= self._seconds

    def _save(
        self, part: str, place: Place, optimiser: torch.optim.Optimizer, scaler: GradScaler, *, done: bool
    ) -> None:
        self._saved_at = time.monotonic()
        if self._snapshots is None or self.how.processes.rank > 0:
            return
        state = {
            "part": part,
            "done": done,
            "place": json.dumps(asdict(place)),
            "lines": json.dumps(self.lines),
            "detector": self.detector.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scaler": scaler.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._snapshots.save(buffer.getvalue())


def _decode(data: bytes) -> State:
    state: State = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def _line(part: str, place: Place, rate: float) -> dict[str, object]:
    loss, accuracy = np.mean(place.seen, axis=0).tolist()
    return {
        "event": "step",
        "part": part,
        "step": place.step,
        "pairs": place.pairs,
        "loss": round(loss, 5),
        "accuracy": round(accuracy, 5),
        "learning_rate": rate,
    }
