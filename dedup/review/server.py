"""The review's web server: one person, this machine only, nothing from elsewhere.

It binds 127.0.0.1, answers only requests that name it as their host (a page elsewhere could otherwise reach it through
a name of its own: DNS rebinding), and takes changes only as JSON from its own page.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dedup.review.pictures import Shown
from dedup.review.session import Session
from pipeline.core import charts
from pipeline.core.errors import OutputError, UsageError, WitError

ADDRESS = "127.0.0.1"
POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MAX_BODY = 10_000
_FILES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript")}


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        told: Why.
    """

    def __init__(self, status: HTTPStatus, told: str) -> None:
        super().__init__(told)
        self.status = status


def check_source(headers: Mapping[str, str], port: int, *, changes: bool) -> None:
    """Refuses requests that another site's page may have made.

    Args:
        headers: Of the request, in any case of letters.
        port: The server's own.
        changes: Whether the request changes anything.

    Raises:
        RefusedError: It did not come from this server's own page.
    """
    told = {name.lower(): value for name, value in headers.items()}
    own = {f"{ADDRESS}:{port}", f"localhost:{port}"}
    if told.get("host") not in own:
        raise RefusedError(HTTPStatus.FORBIDDEN, "this server answers to its own address only")
    origin = told.get("origin")
    if origin is not None and origin not in {f"http://{name}" for name in own}:
        raise RefusedError(HTTPStatus.FORBIDDEN, "requests of other sites are refused")
    if changes and (told.get("content-type") or "").partition(";")[0].strip() != "application/json":
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "changes are taken as application/json only")


def route(session: Session, path: str, query: Mapping[str, str]) -> tuple[str, bytes]:
    """Answers a request that changes nothing: (content type, body).

    Raises:
        RefusedError: There is no such thing.
    """
    if path in _FILES:
        name, kind = _FILES[path]
        return f"{kind}; charset=utf-8", resources.files("dedup.review").joinpath(name).read_bytes()
    if path == "/page.css":
        own = resources.files("dedup.review").joinpath("page.css").read_text(encoding="utf-8")
        return "text/css; charset=utf-8", (charts.STYLE + own).encode()
    if path == "/favicon.ico":
        return "image/png", b""
    dataset = query.get("dataset") or session.names[0]
    try:
        if path == "/state":
            return _json(session.state(dataset))
        if path == "/picture":
            shown = session.picture(query["side"], dataset, int(query["pair"]))
            if isinstance(shown, Shown):
                return "image/png", shown.png
    except (KeyError, IndexError, ValueError) as error:
        raise RefusedError(HTTPStatus.NOT_FOUND, f"no such thing: {error}") from error
    raise RefusedError(HTTPStatus.NOT_FOUND, "no such page")


def change(session: Session, path: str, values: Any) -> tuple[str, bytes]:
    """Does what a request asks for and answers with the new state: (content type, body).

    Raises:
        RefusedError: It asks for something that cannot be.
        OutputError: It could not be kept.
    """
    try:
        dataset = values["dataset"]
        if path == "/label":
            session.answer(dataset, values["pair"], values["answer"])
        elif path == "/undo":
            session.undo(dataset)
        elif path == "/threshold":
            session.save(dataset, float(values["threshold"]))
        else:
            raise RefusedError(HTTPStatus.NOT_FOUND, "no such page")
        return _json(session.state(dataset))
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"cannot do that: {error}") from error


def _json(values: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(values, allow_nan=False).encode()


class ReviewServer(ThreadingHTTPServer):
    """Serves one session; pictures are read in several threads, everything else one request at a time.

    Args:
        session: The review.
        port: Where to listen; 0 takes a free one.

    Raises:
        UsageError: The port is taken.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int) -> None:
        self.session, self.lock = session, threading.Lock()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"cannot listen on port {port}", found=error.strerror, hint="pass another --port"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Answers the page and what it reads."""
        self._answer(lambda: self._read(), changes=False)

    def do_POST(self) -> None:
        """Answers labels, undo and thresholds."""
        self._answer(lambda: self._change(), changes=True)

    def _read(self) -> tuple[str, bytes]:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with self.server.lock:
            return route(self.server.session, parts.path, query)

    def _change(self) -> tuple[str, bytes]:
        size = self.headers.get("Content-Length") or ""
        if not size.isdigit() or int(size) > MAX_BODY:
            self.close_connection = True
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a small body of known length is expected"
            )
        try:
            values = json.loads(self.rfile.read(int(size)))
        except ValueError as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from error
        with self.server.lock:
            return change(self.server.session, urlsplit(self.path).path, values)

    def _answer(self, make: Callable[[], tuple[str, bytes]], *, changes: bool) -> None:
        status = HTTPStatus.OK
        try:
            check_source(dict(self.headers.items()), self.server.server_address[1], changes=changes)
            kind, body = make()
        except RefusedError as error:
            self.close_connection = True  # an unread body must not be taken for the next request
            status, (kind, body) = error.status, _json({"problem": str(error)})
        except WitError as error:
            told = HTTPStatus.INSUFFICIENT_STORAGE if isinstance(error, OutputError) else HTTPStatus.CONFLICT
            status, (kind, body) = told, _json({"problem": str(error)})
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "private, max-age=3600" if kind == "image/png" else "no-store"),
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keeps the terminal quiet."""
