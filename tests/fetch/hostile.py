"""A loopback web server that answers as strange servers do, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.core.fakes import jpeg, picture

Handle = Callable[["Request"], None]


@dataclass
class Clock:
    """Stands for the module ``time`` in the client or the schedule; goes on only when it is told to."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = (
        True  # a body behind its headers would wait 40 ms for the client's acknowledgement
    )
    site: Site

    def setup(self) -> None:
        super().setup()
        self.asked = 0

    def do_GET(self) -> None:
        site = self.site
        self.host = host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        self.counted = True
        self.asked += 1
        with site.lock:
            site.connections[host] += self.asked == 1
            site.hits[self.path] += 1
            site.log.append((time.monotonic(), host, self.path))
            site.headers[self.path] = dict(self.headers)
            site.now[host] += 1
            site.most[host] = max(site.most[host], site.now[host])
        self.close_connection = True
        try:
            site.handler(self.path)(self)
        except OSError:
            self.close_connection = True  # the client hung up, as it should
        finally:
            self._leave()

    def _leave(self) -> None:
        with self.site.lock:
            self.site.now[self.host] -= self.counted
            self.counted = False

    def reply(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self._leave()  # before the client can know that it has its answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.close_connection = not self.site.keeps_alive or bool(
            {"Content_Length", "Connection"} & set(headers)
        )
        if self.close_connection and "Connection" not in headers:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Site:
    """Paths to handlers; ``/img/N.jpg`` is always a small picture of its own."""

    handlers: dict[str, Handle] = field(default_factory=dict)
    delay_s: float = 0.0
    keeps_alive: bool = True
    connections: Counter[str] = field(default_factory=Counter)
    port: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    log: list[tuple[float, str, str]] = field(default_factory=list)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    now: Counter[str] = field(default_factory=Counter)
    most: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    lock: threading.Lock = field(default_factory=threading.Lock)
    talks: int = 0  # connections that have come and not ended

    def handler(self, path: str) -> Handle:
        if path in self.handlers:
            return self.handlers[path]
        if path.startswith("/img/"):
            return self._picture
        return lambda request: request.reply(b"no such page", 404)

    def _picture(self, request: Request) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        number = int(request.path.removeprefix("/img/").partition(".")[0])
        request.reply(jpeg(picture("red", "circle", size=64, seed=number)))

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def settle(self) -> None:
        """Waits until all that clients sent before they ended is noted."""
        # Connections are taken in the order they came, so after this one none is waiting to be taken.
        with socket.create_connection(("127.0.0.1", self.port)) as last:
            last.shutdown(socket.SHUT_WR)
            last.recv(1)
        while self.talks:
            time.sleep(0.001)

    def add(self, path: str, body: bytes = b"", status: int = 200, **headers: str) -> str:
        """A path that always answers the same; returns its URL."""
        self.handlers[path] = lambda request: request.reply(body, status, **headers)
        return self.url(path)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    site: Site

    def process_request(self, *connection: Any) -> None:
        with self.site.lock:
            self.site.talks += 1
        super().process_request(*connection)

    def process_request_thread(self, *connection: Any) -> None:
        try:
            super().process_request_thread(*connection)
        finally:
            with self.site.lock:
                self.site.talks -= 1

    def handle_error(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(site: Site, tls: ssl.SSLContext | None = None, address: str = "0.0.0.0") -> Iterator[Site]:
    """Serves on all loopback addresses, so that 127.0.0.1, 127.0.0.2, … are hosts of their own, or on one."""
    handler = type("Bound", (Request,), {"site": site})
    server = _Server((address, 0), handler)
    server.site = site
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def never_accepting(address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port whose queue is full, so that a connection to it is never made."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind((address, port))
        full.listen(0)
        waiting = [stack.enter_context(socket.socket()) for _ in range(4)]  # one or two find a place
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        assert select.select([], waiting, [], 60)[1]
        yield full.getsockname()[1]
