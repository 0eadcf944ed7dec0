"""Downloaded bodies become stored images: in processes of their own, a few at a time, in order.

An image that eats memory, takes for ever or crashes its decoder ends its process and is refused; the process is
replaced. Whether an image is refused for that does not depend on what was decoded before it: what dies in a process
that has been used is tried once more in a fresh one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Self, cast

from pipeline.core.errors import StageFailedError, UsageError
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.hooks import denied, scored
from pipeline.fetch.images import OUT_OF_MEMORY, Stored
from pipeline.fetch.policy import Refusal
from pipeline.fetch.wire import receive, send, unpacked

TIMEOUT = "killed: timeout"
CRASHED = "killed: crashed"
_MODULES = {"native": "pipeline.fetch.decode_child", "img2dataset": "pipeline.fetch.img2dataset_child"}
# The process ends itself when its processor time is over. Should it be unable to, or wait for something, we end it
# after so many times that long and a grace: a busy machine must not cost a healthy image.
_PATIENCE = 4
_GRACE_S = 5.0
# No page has so many images in a row that each crash a decoder: the decoder itself is broken.
_MOST_CRASHES = 30
_AHEAD = 3  # bodies per process that are read ahead, so that one slow image does not leave the others idle


class Decoder:
    """Decodes, resizes and encodes images; use it in a ``with`` statement.

    One image's damage is that image's :class:`Refusal`; nothing that is in a body raises here. May be used by
    several threads at a time.
    """

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        # img2dataset's code is large and was written for one process per worker.
        self._processes = config.decode_processes if config.engine == "native" else 1

    def __enter__(self) -> Self:
        self._denied = denied(self._config.deny_hashes)
        self._workers = [DecodingProcess(self._config) for _ in range(self._processes)]
        self._idle: queue.LifoQueue[DecodingProcess] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._pool = ThreadPoolExecutor(self._processes, thread_name_prefix="decode")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()  # so that no thread waits for an answer any more
        self._pool.shutdown()
        for worker in self._workers:
            worker.close()

    def decode(self, bodies: Iterable[bytes]) -> Iterator[Stored | Refusal]:
        """Yields one result per body, in order; reads only a few bodies ahead.

        Raises:
            StageFailedError: The decoding process cannot be started, or dies of whatever it is given.
        """
        return scored(self._decoded(bodies), self._config)

    def _decoded(self, bodies: Iterable[bytes]) -> Iterator[Stored | Refusal]:
        ahead: deque[Future[Stored | Refusal]] = deque()
        try:
            for body in bodies:
                ahead.append(self._pool.submit(self._answer, body))
                if len(ahead) > _AHEAD * self._processes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()

    def _answer(self, body: bytes) -> Stored | Refusal:
        refused = self._denied(body)
        if refused is not None:
            return refused
        worker = self._idle.get()
        try:
            return worker.answer(body)
        finally:
            self._idle.put(worker)


class DecodingProcess:
    """A child process that decodes one image at a time; started when needed, replaced when it dies."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._used = self._closed = False
        self._crashes = 0
        self._lock = threading.Lock()

    def answer(self, body: bytes) -> Stored | Refusal:
        """Has one image decoded.

        Raises:
            StageFailedError: The process cannot be started, dies of whatever it is given, or is closed.
        """
        used = self._process is not None and self._used
        found = self._ask(body)
        if used and isinstance(found, Refusal) and found.detail in (OUT_OF_MEMORY, CRASHED):
            self._end()
            found = self._ask(body)
        crashed = isinstance(found, Refusal) and found.detail == CRASHED
        self._crashes = self._crashes + 1 if crashed else 0
        if self._crashes == _MOST_CRASHES:
            raise StageFailedError(
                f"the process that decodes images died of {_MOST_CRASHES} images in a row",
                hint=f"try `python -m {_MODULES[self._config.engine]}`: what it needs may not be installed",
            )
        return found

    def kill(self) -> None:
        """Ends the process for good; a thread that waits for it goes on."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """Ends the process and closes its pipes; nobody may be waiting for it."""
        self.kill()
        self._end()

    def _ask(self, body: bytes) -> Stored | Refusal:
        process = self._process or self._start()
        self._used = True
        requests, answers = _pipes(process)
        heard, answer = True, None
        with contextlib.suppress(BrokenPipeError):
            send(requests, body)
            heard = self._hears(answers)
            answer = receive(answers) if heard else None
        if answer is not None:
            return unpacked(answer)
        timed_out = self._end(wait=heard) == -signal.SIGPROF or not heard
        return Refusal("decode_error", TIMEOUT if timed_out else CRASHED)

    def _hears(self, answers: IO[bytes]) -> bool:
        """Waits for an answer or for the process's end; false if neither comes."""
        poll = select.poll()
        poll.register(answers, select.POLLIN)
        left_s = _PATIENCE * self._config.decode_timeout_s + _GRACE_S
        while left_s > 0:  # in slices: a pause of the whole machine costs one of them
            if poll.poll(min(left_s, 1.0) * 1000):
                return True
            left_s -= 1.0
        return False

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise StageFailedError("the decoder is closed", hint="this is a defect: please report it")
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULES[self._config.engine]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ
                | {
                    # Threads of number libraries, unused here, would take from the memory limit.
                    "OPENBLAS_NUM_THREADS": "1",
                    "OMP_NUM_THREADS": "1",
                    "NO_ALBUMENTATIONS_UPDATE": "1",  # it asks the network for a newer version
                    # Arrow's own allocators reserve far more address space than they use.
                    "ARROW_DEFAULT_MEMORY_POOL": "system",
                    # Memory is kept for the next image: giving it back and taking it again is a fifth of the time.
                    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
                    "MALLOC_MMAP_THRESHOLD_": str(16 * 2**20),
                },
            )
            self._process, self._used = process, False
        for pipe in _pipes(process):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
        requests, answers = _pipes(process)
        ready = None
        with contextlib.suppress(BrokenPipeError):
            send(requests, json.dumps(dataclasses.asdict(self._config)).encode())
            ready = receive(answers)
        if ready is None:
            raise StageFailedError(
                f"the process that decodes images did not start (exit status {self._end()})",
                hint="what it printed before this line says why",
            )
        return process

    def _end(self, *, wait: bool = True) -> int | None:
        """Makes sure that the process has ended, and returns its exit status."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return None
        if wait:  # it has closed its pipes: its own exit status says why
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10.0)
        process.kill()
        status = process.wait()
        for pipe in _pipes(process):
            with contextlib.suppress(OSError):
                pipe.close()
        return status


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    return cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)


def require_engine(config: FetchConfig) -> None:
    """Checks that what ``config.engine`` needs is installed.

    Raises:
        UsageError: It is not.
    """
    if config.engine == "img2dataset" and importlib.util.find_spec("img2dataset") is None:
        raise UsageError(
            "the engine img2dataset is not installed", hint="pip install 'webimagetext[img2dataset]'"
        )


def decoder_for(config: FetchConfig) -> Decoder:
    """The decoder of ``config.engine``.

    Raises:
        UsageError: The engine is not installed.
    """
    require_engine(config)
    return Decoder(config)
