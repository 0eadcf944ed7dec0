"""One HTTP request, guarded: the connection goes to the address that was checked, and nothing is waited for or
read without a limit.

Standard ``http.client`` over connections of our own: no proxies from the environment, no netrc, no cookies, no
redirects followed, no content decoding. A server can cost its deadline and its byte cap, never more. Connections are
kept open for the next request to the same authority; one that turns out to be closed costs a new one, not a failure.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from pipeline.fetch.config import FetchConfig
from pipeline.fetch.connection import CHUNK, Connection, Kept
from pipeline.fetch.policy import (
    Refusal,
    RefusedError,
    Target,
    choose_addresses,
    header_opt_out,
    networks,
    own_token,
    refused_framing,
    refused_status,
    refuses_training,
    retry_after_s,
    user_agent,
)
from pipeline.fetch.resolve import Names, Resolve, system_resolver

ROBOTS_BYTES = 512 * 1024  # RFC 9309 §2.5 asks for at least 500 KiB
_FIELD_CHARS = 200
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# The rest of an unwanted answer that is read so that its connection can be kept.
_DRAIN_BYTES = 16 * 1024
_DRAIN_SECONDS = 0.5


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


def plain_field(value: str | None) -> str | None:
    """A header field fit for a table: printable ASCII, at most 200 characters; ``None`` if nothing is left."""
    if value is None:
        return None
    return "".join(c for c in value[:1000] if " " <= c <= "~").strip()[:_FIELD_CHARS] or None


@lru_cache(maxsize=1)
def _trusted_authorities() -> ssl.SSLContext:
    # Reading all authorities takes some 70 ms: once in a process, not per request or group.
    return ssl.create_default_context()


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
        self._names = Names(resolve, config.dns_concurrency)
        self._ssl = ssl_context or _trusted_authorities()
        self._kept = Kept(config.keep_alive_s)

    def close(self) -> None:
        """Hangs up on all servers; the client can still be used."""
        self._kept.close()

    def get(self, target: Target, *, robots: bool = False, reserved: bool = False) -> Answer:
        """Asks for one URL; redirects are returned, not followed.

        Args:
            target: What to ask for.
            robots: It is a robots.txt or another file about the site: the beginning of a long one will do, and
                header opt-outs are not about us.
            reserved: The site's tdmrep.json reserves it; only its own header can lift that.
        """
        deadline = time.monotonic() + self.config.deadline_s
        try:
            connection = self._kept.take(target)
            if connection is not None:
                with suppress(_StaleError):
                    return self._ask(connection, target, deadline, robots, reserved)
            return self._ask(self._connect(target, deadline), target, deadline, robots, reserved)
        except RefusedError as error:
            return Answer(refusal=error.refusal)

    def _connect(self, target: Target, deadline: float) -> Connection:
        addresses = choose_addresses(
            target, self._names.addresses(target.host, target.port, deadline), self.allowed
        )
        if isinstance(addresses, Refusal):
            raise RefusedError(addresses.reason, addresses.detail)
        until = min(deadline, time.monotonic() + self.config.connect_timeout_s)
        refusal = RefusedError("connect_refused")
        for i, address in enumerate(addresses):
            left = until - time.monotonic()
            if left <= 0:
                refusal = RefusedError("connect_timeout")
                break
            # One that swallows everything, as IPv6 does in some networks, must leave time for the others.
            share = min(left, max(1.0, left / (len(addresses) - i)))
            try:
                # A literal address: nothing is resolved again between the check and the connection.
                sock = socket.create_connection((address, target.port), timeout=share)
            except TimeoutError:
                refusal = RefusedError("connect_timeout")
            except OSError as error:
                refusal = RefusedError("connect_refused", error.strerror)
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return Connection(
                    sock if target.scheme == "http" else self._wrap(sock, target, until), self.config
                )
        self._names.forget(target.host)
        raise refusal

    def _wrap(self, sock: socket.socket, target: Target, until: float) -> ssl.SSLSocket:
        try:
            sock.settimeout(max(0.001, until - time.monotonic()))
            return self._ssl.wrap_socket(sock, server_hostname=target.host.rstrip("."))
        except TimeoutError as error:
            sock.close()
            raise RefusedError("connect_timeout", "TLS handshake") from error
        except (OSError, ValueError) as error:
            sock.close()
            detail = error.reason if isinstance(error, ssl.SSLError) else type(error).__name__
            raise RefusedError("tls_error", detail) from error

    def _ask(
        self, connection: Connection, target: Target, deadline: float, robots: bool, reserved: bool
    ) -> Answer:
        """One request and its answer; keeps the connection if it can be used again, or hangs up.

        Raises:
            _StaleError: The server closed a kept connection before it answered.
        """
        keep = False
        try:
            connection.begin(deadline)
            response = self._send(connection.http, target)
            answer = self._take(connection, response, robots, reserved)
            keep = _is_whole(response)
            return answer
        except RefusedError as error:
            return Answer(refusal=error.refusal)
        except TimeoutError:
            spent = time.monotonic() >= deadline
            return Answer(refusal=Refusal("deadline" if spent else "read_timeout"))
        except OSError as error:  # http.client's RemoteDisconnected is one
            if connection.reused and not connection.incoming.received:
                raise _StaleError from error
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                return Answer(refusal=Refusal("tls_error", error.reason))
            closed = isinstance(error, ConnectionError | ssl.SSLEOFError)
            detail = "connection closed" if closed else error.strerror or type(error).__name__
            return Answer(refusal=Refusal("truncated", detail))
        except (http.client.HTTPException, ValueError) as error:
            return Answer(refusal=Refusal("bad_response", type(error).__name__))
        finally:
            if keep:
                self._kept.put(target, connection)
            else:
                connection.hang_up()

    def _send(self, http: http.client.HTTPConnection, target: Target) -> http.client.HTTPResponse:
        http.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
        http.putheader("Host", target.netloc)
        http.putheader("User-Agent", self._user_agent)
        http.putheader("Accept", "image/jpeg,image/png,image/webp,image/gif;q=0.9,*/*;q=0.1")
        http.putheader("Accept-Encoding", "identity")
        if not self.config.keep_alive_s:
            http.putheader("Connection", "close")
        http.endheaders()
        return http.getresponse()

    def _take(
        self, connection: Connection, response: http.client.HTTPResponse, robots: bool, reserved: bool
    ) -> Answer:
        headers = response.headers
        answer = self._judge(response, robots, reserved)
        if answer is None:
            answer = self._read(connection, response, robots)
        else:
            _read_rest(connection, response)
        return replace(
            answer,
            http_status=response.status,
            content_type=plain_field(headers.get("Content-Type")),
            etag=plain_field(headers.get("ETag")),
            last_modified=plain_field(headers.get("Last-Modified")),
        )

    def _judge(self, response: http.client.HTTPResponse, robots: bool, reserved: bool) -> Answer | None:
        """What status and headers alone decide; ``None`` if the body is wanted."""
        status, headers = response.status, response.headers
        if status in _REDIRECTS:
            return Answer(is_redirect=True, location=headers.get("Location"))
        refusal = refused_status(status)
        if refusal is None and not robots:
            tdm = headers.get("TDM-Reservation")
            refusal = header_opt_out(headers.get_all("X-Robots-Tag", []), tdm, self.agents)
            usage = refuses_training(",".join(headers.get_all("Content-Usage", [])))
            if refusal is None and usage is not None:
                refusal = Refusal("optout_header", usage)
            if refusal is None and reserved and tdm is None:
                refusal = Refusal("optout_tdm", "tdmrep.json")
        refusal = refusal or refused_framing(
            headers.get_all("Content-Length", []),
            headers.get("Transfer-Encoding"),
            headers.get("Content-Encoding"),
        )
        if refusal is None:
            return None
        return Answer(refusal=refusal, retry_after_s=retry_after_s(headers.get("Retry-After")))

    def _read(self, connection: Connection, response: http.client.HTTPResponse, robots: bool) -> Answer:
        max_bytes = ROBOTS_BYTES if robots else self.config.max_body_bytes
        # http.client counts this down while reading; ``None`` for chunked bodies and those that end by closing.
        announced = response.length
        too_large = Refusal("body_too_large", f"more than {max_bytes}")
        if announced is not None and announced > max_bytes and not robots:
            return Answer(refusal=too_large)
        connection.incoming.allow_body(max_bytes)
        body = bytearray()
        try:
            while len(body) <= max_bytes and (chunk := response.read1(CHUNK)):
                body += chunk
        except http.client.IncompleteRead:
            return Answer(refusal=Refusal("truncated", "chunked body"), received=len(body))
        except TimeoutError:
            spent = time.monotonic() >= connection.incoming.deadline
            return Answer(refusal=Refusal("deadline" if spent else "read_timeout"), received=len(body))
        except RefusedError as error:
            return Answer(refusal=error.refusal, received=len(body))
        received, refusal = len(body), None
        if received > max_bytes and not robots:
            refusal = too_large
        elif announced is not None and received < min(announced, max_bytes):
            refusal = Refusal("truncated", f"{announced} bytes announced")
        elif not body:
            refusal = Refusal("empty_body")
        if refusal is not None:
            return Answer(refusal=refusal, received=received)
        return Answer(body=bytes(body[:max_bytes]), received=received)


class _StaleError(Exception):
    pass


def _read_rest(connection: Connection, response: http.client.HTTPResponse) -> None:
    """Reads the short body of an unwanted answer, so that its connection can be kept; a long one is left."""
    if response.will_close or (response.length or 0) > _DRAIN_BYTES:
        return
    connection.begin(min(connection.incoming.deadline, time.monotonic() + _DRAIN_SECONDS))
    drained = 0
    with suppress(OSError, RefusedError, http.client.HTTPException, ValueError):
        while drained <= _DRAIN_BYTES and (chunk := response.read1(CHUNK)):
            drained += len(chunk)


def _is_whole(response: http.client.HTTPResponse) -> bool:
    """Whether an answer is read to its end, so that its connection may carry another."""
    if response.will_close or len(response.headers.get_all("Content-Length", [])) > 1:
        return False
    whole = response.isclosed() if response.length is None else response.length == 0
    response.close()
    return whole
