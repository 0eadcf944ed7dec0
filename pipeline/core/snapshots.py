"""States of a run that goes on after a kill: each is whole or not there, and asked to end, the run saves one.

A snapshot ends with its checksum. The one before it stays until the new one is complete, and beside it afterwards, so
that a kill, a full disk or a damaged file at any moment leaves a state to go on from.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pipeline.core import paths
from pipeline.core.errors import InputError, StageFailedError

State = TypeVar("State")
NAME, PREVIOUS, NEW = "training.pt", "training-previous.pt", "training-new.pt"
NAMES = (NAME, PREVIOUS, NEW)
_MARK = b"sha256:"  # before the digest at the end of a snapshot


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of one run.

    Attributes:
        folder: The run's output folder, a path or URL.
    """

    folder: str

    def save(self, data: bytes) -> None:
        """Writes a snapshot; the last one becomes the previous one.

        Raises:
            OutputError: The folder cannot be written to; the last snapshot is still there.
        """
        path, previous, new = (paths.join(self.folder, name) for name in NAMES)
        paths.write_bytes(new, data + _MARK + hashlib.sha256(data).digest())
        if paths.exists(path):
            _rename(path, previous)
        _rename(new, path)

    def load(self, decode: Callable[[bytes], State]) -> State | None:
        """The newest snapshot that is whole, or ``None`` if there is none yet.

        Args:
            decode: Makes the state of what :meth:`save` got; an error of any kind means that it is damaged.

        Raises:
            InputError: There are snapshots, but all are damaged.
        """
        damage: InputError | None = None
        for path in (paths.join(self.folder, name) for name in (NAME, PREVIOUS)):
            if not paths.exists(path):
                continue
            try:
                state = _read(path, decode)
            except InputError as error:
                damage = damage or error
                continue
            if damage is not None:
                sys.stderr.write(f"note: {damage}; going on from {path}\n")
            return state
        if damage is not None:
            raise damage
        return None

    def forget_previous(self) -> None:
        """Removes the snapshot before the last one."""
        paths.remove(paths.join(self.folder, PREVIOUS))

    def forget(self) -> None:
        """Removes all snapshots."""
        for name in NAMES:
            paths.remove(paths.join(self.folder, name))


def _rename(path: str, other: str) -> None:
    fs, name = paths.filesystem(path)
    with paths.output_errors(other):
        fs.mv(name, paths.filesystem(other)[1])


def _read(path: str, decode: Callable[[bytes], State]) -> State:
    stored = paths.read_bytes(path)
    data, mark, digest = stored[: -len(_MARK) - 32], stored[-len(_MARK) - 32 : -32], stored[-32:]
    why = "its checksum is wrong"
    if mark == _MARK and hashlib.sha256(data).digest() == digest:
        try:
            return decode(data)
        except Exception as error:  # decoders raise whatever unzipping and unpickling raise
            why = str(error)[:200]
    raise InputError("damaged training state", where=path, found=why, hint="remove it to start over")


@contextlib.contextmanager
def asked_to_end() -> Iterator[list[int]]:
    """A list that gets the number of the signal once SIGTERM has come; a scheduler sends it before it kills."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def stopped(step: int, *, where: str) -> StageFailedError:
    """The error with which a run ends that was asked to, after it saved a snapshot.

    Args:
        step: Steps taken.
        where: What was interrupted.
    """
    return StageFailedError(
        f"stopped by a signal after step {step:,}",
        where=where,
        hint="it is saved: the same command goes on from there",
    )
