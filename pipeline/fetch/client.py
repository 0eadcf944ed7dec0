"""One HTTP request, guarded: the connection goes to the address that was checked, and nothing is waited for or
read without a limit.

Standard ``http.client`` over a socket of our own: no proxies from the environment, no netrc, no cookies, no
redirects followed, no content decoding. A server can cost its deadline and its byte cap, never more.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import (
    Refusal,
    Target,
    choose_addresses,
    header_opt_out,
    networks,
    own_token,
    refused_status,
    retry_after_s,
    user_agent,
)

Resolve = Callable[[str, int], Sequence[str]]
ROBOTS_BYTES = 512 * 1024  # RFC 9309 §2.5 asks for at least 500 KiB
_CHUNK = 64 * 1024
_FIELD_CHARS = 200
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one request.

    Attributes:
        refusal: Why there is no body to use; ``None`` for a success or a redirect.
        http_status: Status of the answer, if there was one.
        body: The body of a success.
        location: Where a redirect points; ``None`` if this is none.
        is_redirect: Whether the server redirects.
        retry_after_s: Pause that the server asks for.
        final_url: Where the redirects led; set by :class:`~pipeline.fetch.schedule.Schedule`, ``None`` if nothing
            was asked.
        content_type: The header field of this name, as are the next two: at most 200 printable ASCII characters.
        etag: See ``content_type``.
        last_modified: See ``content_type``.
        received: Bytes of body that came, also of one that is not taken.
    """

    refusal: Refusal | None = None
    http_status: int | None = None
    body: bytes = b""
    location: str | None = None
    is_redirect: bool = False
    retry_after_s: float | None = None
    final_url: str | None = None
    content_type: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    received: int = 0


class _RefusedError(Exception):
    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, detail)


class _TimedReader(io.RawIOBase):
    """Reads a socket; each read waits at most the read timeout and never past the deadline."""

    def __init__(self, sock: socket.socket, read_timeout_s: float, deadline: float) -> None:
        self._sock, self._read_timeout_s, self._deadline = sock, read_timeout_s, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(min(self._read_timeout_s, remaining(self._deadline)))
        return self._sock.recv_into(buffer)


class _TimedSocket:
    """The part of a socket that ``http.client`` uses, with limits."""

    def __init__(self, sock: socket.socket, read_timeout_s: float, deadline: float) -> None:
        self._sock, self._read_timeout_s, self._deadline = sock, read_timeout_s, deadline

    def makefile(self, _mode: str, **_: object) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._read_timeout_s, self._deadline), _CHUNK)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(min(self._read_timeout_s, remaining(self._deadline)))
        self._sock.sendall(data)

    def close(self) -> None:
        """Nothing: ``http.client`` calls this before the body is read if the server will close; we close later."""


def plain_field(value: str | None) -> str | None:
    """A header field fit for a table: printable ASCII, at most 200 characters; ``None`` if nothing is left."""
    if value is None:
        return None
    return "".join(c for c in value[:1000] if " " <= c <= "~").strip()[:_FIELD_CHARS] or None


def remaining(deadline: float) -> float:
    """Seconds left until a ``time.monotonic`` deadline.

    Raises:
        _RefusedError: Nothing is left.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise _RefusedError("deadline")
    return left


def system_resolver(host: str, port: int) -> list[str]:
    """Addresses of a host by the system's resolver, in its order, without repeats."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Client:
    """Makes guarded requests; one per group of hosts, used by many threads.

    Args:
        config: Limits, allowed networks, contact.
        version: Our version, for the User-Agent.
        resolve: Host and port to addresses; each host is resolved once.
        ssl_context: For tests; by default the system's trusted authorities.
    """

    def __init__(
        self,
        config: FetchConfig,
        *,
        version: str,
        resolve: Resolve = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.config = config
        self.allowed = networks(config.allow_address)
        self.agents = (own_token(), *config.also_obey)
        self._user_agent = user_agent(version, config.contact)
        self._resolve = resolve
        # Building a context reads all authorities (some 70 ms): once, not per request.
        self._ssl = ssl_context or ssl.create_default_context()
        self._lock = threading.Lock()
        self._resolved: dict[str, tuple[str, ...]] = {}

    def get(self, target: Target, *, robots: bool = False) -> Answer:
        """Asks for one URL; redirects are returned, not followed.

        Args:
            target: What to ask for.
            robots: It is a robots.txt: the beginning of a long one will do, and header opt-outs are not about us.
        """
        deadline = time.monotonic() + self.config.deadline_s
        try:
            sock = self._connect(target, deadline)
            try:
                return self._exchange(sock, target, deadline, robots)
            finally:
                sock.close()
        except _RefusedError as error:
            return Answer(refusal=error.refusal)
        except TimeoutError:
            spent = time.monotonic() >= deadline
            return Answer(refusal=Refusal("deadline" if spent else "read_timeout"))
        except ssl.SSLError as error:
            return Answer(refusal=Refusal("tls_error", error.reason))
        except (ConnectionError, http.client.RemoteDisconnected):
            return Answer(refusal=Refusal("truncated", "connection closed"))
        except OSError as error:
            return Answer(refusal=Refusal("truncated", error.strerror or type(error).__name__))

    def _addresses(self, target: Target) -> tuple[str, ...]:
        with self._lock:
            known = self._resolved.get(target.host)
        if known is None:
            try:
                known = tuple(self._resolve(target.host, target.port))
            except socket.gaierror as error:
                reason = "dns_nxdomain" if error.errno in _NO_SUCH_NAME else "dns_temp"
                raise _RefusedError(reason, error.strerror) from error
            except (OSError, UnicodeError) as error:
                raise _RefusedError("dns_temp", type(error).__name__) from error
            with self._lock:
                known = self._resolved.setdefault(target.host, known)
        chosen = choose_addresses(target, known, self.allowed)
        if isinstance(chosen, Refusal):
            raise _RefusedError(chosen.reason, chosen.detail)
        return chosen

    def _connect(self, target: Target, deadline: float) -> socket.socket:
        addresses = self._addresses(target)
        until = min(deadline, time.monotonic() + self.config.connect_timeout_s)
        refusal = _RefusedError("connect_refused")
        for address in addresses:
            left = until - time.monotonic()
            if left <= 0:
                raise _RefusedError("connect_timeout")
            try:
                # A literal address: nothing is resolved again between the check and the connection.
                sock = socket.create_connection((address, target.port), timeout=left)
            except TimeoutError:
                refusal = _RefusedError("connect_timeout")
                continue
            except OSError as error:
                refusal = _RefusedError("connect_refused", error.strerror)
                continue
            if target.scheme == "http":
                return sock
            return self._wrap(sock, target, until)
        raise refusal

    def _wrap(self, sock: socket.socket, target: Target, until: float) -> ssl.SSLSocket:
        try:
            sock.settimeout(max(0.001, until - time.monotonic()))
            return self._ssl.wrap_socket(sock, server_hostname=target.host.rstrip("."))
        except TimeoutError as error:
            sock.close()
            raise _RefusedError("connect_timeout", "TLS handshake") from error
        except (OSError, ValueError) as error:
            sock.close()
            detail = error.reason if isinstance(error, ssl.SSLError) else type(error).__name__
            raise _RefusedError("tls_error", detail) from error

    def _exchange(self, sock: socket.socket, target: Target, deadline: float, robots: bool) -> Answer:
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = _TimedSocket(sock, self.config.read_timeout_s, deadline)
        try:
            connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", target.netloc)
            connection.putheader("User-Agent", self._user_agent)
            connection.putheader("Accept", "image/jpeg,image/png,image/webp,image/gif;q=0.9,*/*;q=0.1")
            connection.putheader("Accept-Encoding", "identity")
            connection.putheader("Connection", "close")
            connection.endheaders()
            response = connection.getresponse()
            return self._take(response, robots)
        except http.client.RemoteDisconnected:
            raise
        except http.client.IncompleteRead:
            return Answer(refusal=Refusal("truncated", "chunked body"))
        except (http.client.HTTPException, ValueError) as error:
            return Answer(refusal=Refusal("bad_response", type(error).__name__))
        finally:
            connection.close()

    def _take(self, response: http.client.HTTPResponse, robots: bool) -> Answer:
        headers = response.headers
        return replace(
            self._judge(response, robots),
            content_type=plain_field(headers.get("Content-Type")),
            etag=plain_field(headers.get("ETag")),
            last_modified=plain_field(headers.get("Last-Modified")),
        )

    def _judge(self, response: http.client.HTTPResponse, robots: bool) -> Answer:
        status, headers = response.status, response.headers
        max_bytes = ROBOTS_BYTES if robots else self.config.max_body_bytes
        if status in _REDIRECTS:
            return Answer(http_status=status, is_redirect=True, location=headers.get("Location"))
        refusal = refused_status(status)
        if refusal is None and not robots:
            tags = headers.get_all("X-Robots-Tag", [])
            refusal = header_opt_out(tags, headers.get("TDM-Reservation"), self.agents)
        if refusal is not None:
            pause = retry_after_s(headers.get("Retry-After"))
            return Answer(refusal=refusal, http_status=status, retry_after_s=pause)
        # http.client counts this down while reading; ``None`` for chunked bodies and those that end by closing.
        announced = response.length
        if announced is not None and announced > max_bytes and not robots:
            return Answer(refusal=Refusal("body_too_large", f"more than {max_bytes}"), http_status=status)
        body = bytearray()
        try:
            while len(body) <= max_bytes and (chunk := response.read1(_CHUNK)):
                body += chunk
        except _RefusedError as error:
            return Answer(refusal=error.refusal, http_status=status)
        if len(body) > max_bytes:
            if not robots:
                return Answer(refusal=Refusal("body_too_large", f"more than {max_bytes}"), http_status=status)
            del body[max_bytes:]
        elif announced is not None and len(body) < announced:
            return Answer(refusal=Refusal("truncated", f"{announced} bytes announced"), http_status=status)
        if not body:
            return Answer(refusal=Refusal("empty_body"), http_status=status)
        return Answer(http_status=status, body=bytes(body), received=len(body))
