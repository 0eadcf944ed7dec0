"""Names to addresses: each host looked up once, few at a time, and no look-up waited for beyond a deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from pipeline.fetch.policy import RefusedError

Resolve = Callable[[str, int], Sequence[str]]
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def system_resolver(host: str, port: int) -> list[str]:
    """Addresses of a host by the system's resolver, in its order, without repeats."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Names:
    """The look-ups of one group of hosts, shared by its threads.

    ``getaddrinfo`` takes no time limit, so each look-up has a thread of its own that may be left behind.

    Args:
        resolve: Host and port to addresses; raises ``socket.gaierror``.
        concurrency: Look-ups at a time.
    """

    def __init__(self, resolve: Resolve, concurrency: int) -> None:
        self._resolve = resolve
        self._slots = threading.Semaphore(concurrency)
        self._lock = threading.Lock()
        self._known: dict[str, Future[tuple[str, ...]]] = {}

    def addresses(self, host: str, port: int, deadline: float) -> tuple[str, ...]:
        """All addresses of a host, from the first look-up that succeeded or said that there is no such name.

        Args:
            host: Name or literal address.
            port: Passed on to the resolver.
            deadline: Of ``time.monotonic``.

        Raises:
            RefusedError: ``dns_nxdomain``, or ``dns_temp``, which the next call asks again.
        """
        with self._lock:
            found = self._known.get(host)
            if found is None:
                found = self._known[host] = Future()
                threading.Thread(target=self._look_up, args=(host, port, found), daemon=True).start()
        try:
            return found.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            self.forget(host)
            raise RefusedError("dns_temp", "no answer in time") from error
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_NAME:
                raise RefusedError("dns_nxdomain", error.strerror) from error
            self.forget(host)
            raise RefusedError("dns_temp", error.strerror) from error
        except (OSError, UnicodeError) as error:
            self.forget(host)
            raise RefusedError("dns_temp", type(error).__name__) from error

    def _look_up(self, host: str, port: int, found: Future[tuple[str, ...]]) -> None:
        with self._slots:
            try:
                found.set_result(tuple(self._resolve(host, port)))
            except Exception as error:
                found.set_exception(error)

    def forget(self, host: str) -> None:
        """Looks the host up again the next time: its addresses did not answer."""
        with self._lock:
            self._known.pop(host, None)
