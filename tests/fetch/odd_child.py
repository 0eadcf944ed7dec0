"""The decoding process, for bodies that say what shall go wrong with them: ``python -m tests.fetch.odd_child``."""

from __future__ import annotations

import os
import signal
import threading

from pipeline.fetch import decode_child
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.images import Stored, process
from pipeline.fetch.policy import Refusal

SPINS, WAITS, CRASHES = b"spins for ever", b"waits for ever", b"crashes"


def odd(body: bytes, config: FetchConfig) -> Stored | Refusal:
    """Decodes an image, or does what the body says."""
    while body == SPINS:
        pass
    if body == WAITS:
        threading.Event().wait()
    if body == CRASHES:
        os.kill(os.getpid(), signal.SIGSEGV)
    return process(body, config)


if __name__ == "__main__":
    decode_child.process = odd  # type: ignore[attr-defined]
    decode_child.main()
