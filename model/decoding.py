"""Reading and decoding by several processes: images come back in the order they were asked for.

Workers know nothing but what a request says, and write pixels into shared memory, so that nothing is copied through
pipes. A worker that dies is an error, not a wait without end.
"""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import IO, Any

import numpy as np

from model.images import BadImageError, Decoder, decode_pixels, square
from pipeline.core import paths
from pipeline.core.errors import StageFailedError

_OPEN_FILES = 128
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Request:
    """One image to read: where it lies, and where its square crop does.

    Attributes:
        tar: Path of the shard.
        offset: First byte.
        size: Bytes.
        across: Place of the crop from left to right, in [0, 1).
        down: Place of the crop from top to bottom, in [0, 1).
    """

    tar: str
    offset: int
    size: int
    across: float
    down: float


class ShardReader:
    """Reads byte ranges of shards and keeps the files open."""

    def __init__(self) -> None:
        self._files: dict[str, IO[bytes]] = {}

    def read(self, tar: str, offset: int, size: int) -> bytes:
        """Bytes of a member."""
        file = self._files.get(tar)
        if file is None:
            if len(self._files) >= _OPEN_FILES:
                self.close()
            file = self._files[tar] = paths.open_input(tar, decompress=False)
        file.seek(offset)
        return file.read(size)

    def close(self) -> None:
        """Closes the shards."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def _work(name: str, image_size: int, short_side: int, decoder: Decoder, tasks: Any, results: Any) -> None:
    import signal

    if decoder == "fast":
        import torch

        torch.set_num_threads(1)  # processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    memory = SharedMemory(name=name)
    reader = ShardReader()
    try:
        while (task := tasks.get()) is not None:
            number, slot, requests = task
            errors: list[str | None] = []
            for i, request in enumerate(requests):
                view = _slot(memory, slot + i, image_size)
                try:
                    data = reader.read(request.tar, request.offset, request.size)
                    pixels = decode_pixels(data, short_side=short_side, decoder=decoder)
                    view[:] = square(pixels, image_size, request.across, request.down)
                    errors.append(None)
                except BadImageError as error:
                    errors.append(str(error))
                del view
            results.put((number, errors))
    finally:
        reader.close()
        memory.close()


def _slot(memory: SharedMemory, slot: int, side: int) -> np.ndarray:
    size = side * side * 3
    assert memory.buf is not None
    return np.frombuffer(memory.buf, np.uint8, size, slot * size).reshape(side, side, 3)


class Decoders:
    """Worker processes; chunks of requests go in, pixels or a reason come out, first in, first out.

    Args:
        workers: Processes.
        chunk: Images of a task.
        image_size: Pixels of the square crop.
        short_side: Pixels to which an image's short side is resized first.
        decoder: What decodes and resizes.
    """

    def __init__(
        self, workers: int, *, chunk: int, image_size: int, short_side: int, decoder: Decoder
    ) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the parent's torch threads' locks
        self.chunk, self._side = chunk, image_size
        self.depth = 2 * workers + 2
        self._memory = SharedMemory(create=True, size=self.depth * chunk * image_size * image_size * 3)
        self._tasks, self._results = context.Queue(), context.Queue()
        arguments = (self._memory.name, image_size, short_side, decoder, self._tasks, self._results)
        self._workers = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
        for worker in self._workers:
            worker.start()
        self._asked, self._given = 0, 0
        self._slots: dict[int, int] = {}
        self._done: dict[int, list[str | None]] = {}

    @property
    def room(self) -> int:
        """How many more chunks may be asked for now."""
        return self.depth - (self._asked - self._given)

    def ask(self, requests: Sequence[Request]) -> None:
        """Hands one chunk of requests to the workers."""
        slot = self._asked % self.depth * self.chunk
        self._slots[self._asked] = slot
        self._tasks.put((self._asked, slot, list(requests)))
        self._asked += 1

    def answer(self) -> list[np.ndarray | str]:
        """The oldest chunk's squares uint8 [S, S, 3], or why there is none.

        Raises:
            StageFailedError: A worker died.
        """
        while self._given not in self._done:
            try:
                number, errors = self._results.get(timeout=_PATIENCE_S)
                self._done[number] = errors
            except queue.Empty:
                dead = [w.exitcode for w in self._workers if not w.is_alive()]
                if dead:
                    raise StageFailedError(
                        "a loader worker died",
                        found=f"exit status {dead[0]}",
                        hint="run again; set workers = 0",
                    ) from None
        slot = self._slots.pop(self._given)
        errors = self._done.pop(self._given)
        self._given += 1
        # Copied out: the slot is written again as soon as another chunk is asked for.
        return [
            _slot(self._memory, slot + i, self._side).copy() if why is None else why
            for i, why in enumerate(errors)
        ]

    def forget(self) -> None:
        """Drops all that was asked for and not answered."""
        while self._given < self._asked:
            self.answer()

    def close(self) -> None:
        """Ends the workers."""
        for _ in self._workers:
            self._tasks.put(None)
        for worker in self._workers:
            worker.join(timeout=_PATIENCE_S)
            if worker.is_alive():
                worker.terminate()
                worker.join()
        for line in (self._tasks, self._results):
            line.close()
            line.join_thread()
        self._memory.close()
        self._memory.unlink()
