"""A real S3 server in this process (moto, behind HTTP), which can be told to fail."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
BUCKET = "world"
DENIED = ("403 Forbidden", "AccessDenied")
BROKEN = ("500 Internal Server Error", "InternalError")
THROTTLED = ("503 Slow Down", "SlowDown")


@dataclass(frozen=True)
class Asked:
    """A request: what S3 calls the operation's method, and the key."""

    method: str
    key: str

    @property
    def writes(self) -> bool:
        return self.method in ("PUT", "POST")


@dataclass
class Store:
    """The server: what it was asked, and which requests it answers with an error.

    Attributes:
        app: Moto's.
        fault: ``(status line, S3's code)`` for a request that shall fail.
    """

    app: WSGI
    fault: Callable[[Asked], tuple[str, str] | None] = lambda _: None
    log: list[Asked] = field(default_factory=list)
    port: int = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = Asked(environ["REQUEST_METHOD"], environ["PATH_INFO"].removeprefix(f"/{BUCKET}/"))
        self.log.append(asked)
        answer = self.fault(asked)
        if answer is None:
            return self.app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code = answer
        body = f"<Error><Code>{code}</Code><Message>told to fail</Message></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [b"" if asked.method == "HEAD" else body]

    @contextlib.contextmanager
    def failing(self, fault: Callable[[Asked], tuple[str, str] | None]) -> Iterator[None]:
        """Fails while it lasts."""
        before, self.fault = self.fault, fault
        try:
            yield
        finally:
            self.fault = before


@contextlib.contextmanager
def serving() -> Iterator[Store]:
    """Serves an empty bucket; sets what a client finds it by."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = Store(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True)
    store.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # a test does not wait for the client's own retries
        import s3fs

        try:
            s3fs.S3FileSystem().mkdir(BUCKET)
            yield store
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.shutdown()
            thread.join()
            server.server_close()
