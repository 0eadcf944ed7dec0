"""A connection with limits, and those kept open between requests to one authority.

A server can neither be waited for nor heard beyond the limits of an exchange: a time for each read, a deadline, a
least rate, and a number of bytes that counts headers and framing too.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections import OrderedDict
from typing import Any

from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import RefusedError, Target

HEAD_BYTES = 64 * 1024  # status line and header fields, interim (1xx) answers included
CHUNK = 64 * 1024
_MAX_KEPT = 256


def remaining(deadline: float) -> float:
    """Seconds left until a ``time.monotonic`` deadline.

    Raises:
        RefusedError: Nothing is left.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise RefusedError("deadline")
    return left


class _Incoming(io.RawIOBase):
    """What a server sends, within the limits of the current exchange."""

    def __init__(self, sock: socket.socket, config: FetchConfig) -> None:
        self._sock, self._config = sock, config
        self.resting = False
        self.begin(0.0)

    def begin(self, deadline: float) -> None:
        self.deadline = deadline
        self.received = 0
        self._first: float | None = None
        self._limit, self._over = HEAD_BYTES, RefusedError("bad_response", f"headers over {HEAD_BYTES} bytes")

    def allow_body(self, max_bytes: int) -> None:
        """After the headers: so many bytes more, with room for the framing of chunks."""
        self._limit = self.received + max_bytes + max_bytes // 64 + CHUNK
        self._over = RefusedError("body_too_large", f"more than {max_bytes}")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.resting:
            return self._peek(buffer)
        if self.received >= self._limit:
            raise self._over
        self._check_rate()
        self._sock.settimeout(min(self._config.read_timeout_s, remaining(self.deadline)))
        count = self._sock.recv_into(buffer)
        if self._first is None:
            self._first = time.monotonic()
        self.received += count
        return count

    def _check_rate(self) -> None:
        """Before each wait, so that an answer that is complete is never too slow."""
        seconds = 0.0 if self._first is None else time.monotonic() - self._first
        least = self._config.min_rate_bytes_s
        if seconds > self._config.min_rate_grace_s and self.received < least * seconds:
            raise RefusedError("too_slow", f"less than {least} bytes a second")

    def _peek(self, buffer: Any) -> int | None:
        self._sock.settimeout(0.0)
        try:
            return self._sock.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None


class _Answers(io.BufferedReader):
    """Stays open from one answer to the next; ``http.client`` closes its file after each."""

    def close(self) -> None:
        pass


class Connection:
    """One connection to a checked address; speaks to ``http.client`` as its socket.

    Args:
        sock: Connected, after the TLS handshake if there is one.
        config: Limits.
    """

    def __init__(self, sock: socket.socket, config: FetchConfig) -> None:
        self._sock = sock
        self.incoming = _Incoming(sock, config)
        self._reader = _Answers(self.incoming, CHUNK)
        self._read_timeout_s = config.read_timeout_s
        self.reused = False
        self.http = http.client.HTTPConnection("")
        self.http.sock = self
        self.http.auto_open = 0  # it must never connect by itself

    def begin(self, deadline: float) -> None:
        """Starts an exchange that ends by ``deadline`` (``time.monotonic``)."""
        self.incoming.begin(deadline)

    def makefile(self, _mode: str, **_: object) -> io.BufferedReader:
        """For ``http.client``: the stream of answers."""
        return self._reader

    def sendall(self, data: bytes) -> None:
        """For ``http.client``: sends a request within the limits."""
        self._sock.settimeout(min(self._read_timeout_s, remaining(self.incoming.deadline)))
        self._sock.sendall(data)

    def close(self) -> None:
        """Nothing: ``http.client`` calls this before the body is read if the server will close."""

    def hang_up(self) -> None:
        """Closes the connection, and parts from ``http.client``, so that its buffer is freed at once."""
        self._sock.close()
        self.http.sock = None

    def is_quiet(self) -> bool:
        """Whether it is open and holds nothing that was not asked for."""
        self.incoming.resting = True
        try:
            # Of a raw read that would block ``peek`` makes no bytes; of the end of the stream too.
            if self._reader.peek(1):
                return False
            return self.incoming.readinto(bytearray(1)) is None
        except (OSError, ValueError):
            return False
        finally:
            self.incoming.resting = False


class Kept:
    """Idle connections by authority; the one used last is used first.

    Args:
        keep_alive_s: Longest rest of a connection; 0 keeps none.
    """

    def __init__(self, keep_alive_s: float) -> None:
        self._keep_alive_s = keep_alive_s
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, tuple[str, float, Connection]] = OrderedDict()  # oldest first
        self._by_authority: dict[str, list[int]] = {}

    def take(self, target: Target) -> Connection | None:
        """An idle connection to the target's authority that can be used, if there is one."""
        while True:
            with self._lock:
                numbers = self._by_authority.get(target.authority)
                if not numbers:
                    return None
                _, since, connection = self._remove(numbers[-1])
            if time.monotonic() - since <= self._keep_alive_s and connection.is_quiet():
                connection.reused = True
                return connection
            connection.hang_up()

    def put(self, target: Target, connection: Connection) -> None:
        """Keeps a connection whose last answer was read to its end."""
        now = time.monotonic()
        old = []
        with self._lock:
            if self._keep_alive_s > 0:
                self._idle[id(connection)] = (target.authority, now, connection)
                self._by_authority.setdefault(target.authority, []).append(id(connection))
            else:
                old.append(connection)
            while self._idle:
                number, (_, since, _) = next(iter(self._idle.items()))
                if len(self._idle) <= _MAX_KEPT and now - since <= self._keep_alive_s:
                    break
                old.append(self._remove(number)[2])
        for connection in old:
            connection.hang_up()

    def _remove(self, number: int) -> tuple[str, float, Connection]:
        entry = self._idle.pop(number)
        numbers = self._by_authority[entry[0]]
        numbers.remove(number)
        if not numbers:
            del self._by_authority[entry[0]]
        return entry

    def close(self) -> None:
        """Hangs up on all of them."""
        with self._lock:
            idle = [entry[2] for entry in self._idle.values()]
            self._idle.clear()
            self._by_authority.clear()
        for connection in idle:
            connection.hang_up()
