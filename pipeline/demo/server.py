"""The small world's three web sites on loopback.

A site is a folder of pages, its designer's pictures under ``/p/``, a zip of odd files, and ``_headers`` (path
prefix, header, value per line). Answers depend on the request alone: no dates, no server name.
"""

from __future__ import annotations

import contextlib
import mimetypes
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.core.errors import UsageError
from pipeline.demo.world import FIRST_PORT, SITES, archive

_TEXT = {".html": "text/html", ".txt": "text/plain; charset=utf-8", ".css": "text/css"}


class Site:
    """What one site serves.

    Args:
        world: The world's folder.
        name: The site's folder below ``web/``.
        port: First port of the three sites; links that name the world's own ports are rewritten to it.
    """

    def __init__(self, world: Path, name: str, port: int) -> None:
        folder = world / "web" / name
        self.files: dict[str, bytes] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in ("files.zip", "_headers"):
                self.files["/" + path.relative_to(folder).as_posix()] = _moved(path, port)
        for entry, data in archive(world / "pictures" / f"{name}.zip").items():
            self.files[f"/p/{entry}"] = data
        for entry, data in archive(folder / "files.zip").items():
            self.files["/" + entry.lstrip("/")] = data
        self.headers: list[tuple[str, str, str]] = []
        if (folder / "_headers").exists():
            for line in (folder / "_headers").read_text(encoding="utf-8").splitlines():
                if line.strip() and not line.startswith("#"):
                    prefix, header, value = line.split("\t", 2)
                    self.headers.append((prefix, header, value))

    def answer(self, path: str) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body for a request path."""
        path = unquote(urlsplit(path).path)
        if path.endswith("/"):
            path += "index.html"
        body = self.files.get(path)
        if body is None:
            return 404, [("Content-Type", "text/plain")], b"not found\n"
        extra = [(name, value) for prefix, name, value in self.headers if path.startswith(prefix)]
        if not any(name.lower() == "content-type" for name, _ in extra):
            suffix = Path(path).suffix.lower()
            kind = _TEXT.get(suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"
            extra.append(("Content-Type", kind))
        return 200, extra, body


def _moved(path: Path, port: int) -> bytes:
    data = path.read_bytes()
    if port != FIRST_PORT:
        for i in range(len(SITES)):
            data = data.replace(b"127.0.0.1:%d" % (FIRST_PORT + i), b"127.0.0.1:%d" % (port + i))
    return data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        """Answers a GET."""
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        """Answers a HEAD."""
        self._send(with_body=False)

    def _send(self, *, with_body: bool) -> None:
        status, headers, body = self.site.answer(self.path)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stays silent."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is its own business."""


@contextlib.contextmanager
def serve(world: Path, port: int) -> Iterator[list[str]]:
    """Serves the three sites on ``127.0.0.1`` and yields their base URLs, in the order of :data:`SITES`.

    Raises:
        UsageError: A port is taken.
    """
    servers: list[_Server] = []
    try:
        for i, name in enumerate(SITES):
            handler = type("Handler", (_Handler,), {"site": Site(world, name, port)})
            try:
                servers.append(_Server(("127.0.0.1", port + i), handler))
            except (OSError, OverflowError) as error:
                raise UsageError(
                    "cannot serve the small world on this port",
                    where=f"127.0.0.1:{port + i}",
                    found=getattr(error, "strerror", None) or error,
                    hint="pass --port with three free ports in a row",
                ) from error
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield [f"http://127.0.0.1:{port + i}" for i in range(len(SITES))]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
