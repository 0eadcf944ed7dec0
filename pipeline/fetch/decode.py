"""Downloaded bodies become stored images, a few at a time and in order."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from pipeline.fetch.config import FetchConfig
from pipeline.fetch.images import Stored, process
from pipeline.fetch.policy import Refusal


class Decoder:
    """Decodes, resizes and encodes images; use it in a ``with`` statement.

    One image's damage is that image's :class:`Refusal`; nothing that is in a body raises here.
    """

    def __init__(self, config: FetchConfig) -> None:
        self._config = config

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._config.decode_processes, thread_name_prefix="decode")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def decode(self, bodies: Iterable[bytes]) -> Iterator[Stored | Refusal]:
        """Yields one result per body, in order; reads only a few bodies ahead."""
        ahead: deque[Future[Stored | Refusal]] = deque()
        for body in bodies:
            ahead.append(self._pool.submit(self._process, body))
            if len(ahead) > 2 * self._config.decode_processes:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _process(self, body: bytes) -> Stored | Refusal:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which we neither use nor keep
            return process(body, self._config)


def decoder_for(config: FetchConfig) -> Decoder:
    """The decoder of ``config.engine``."""
    return Decoder(config)
