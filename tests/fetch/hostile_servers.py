"""A table of servers that lie, stall, flood, redirect and reset, and a loopback network to run them on.

Each case is a host of its own. What it does to the request for its picture is an ``Act``: a function of the open
socket. robots.txt and tdmrep.json are answered well unless the case is about them.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.fetch.policy import Target
from tests.fetch.hostile import never_accepting

Act = Callable[[socket.socket], None]

CAP = 100_000
FILES = ("/robots.txt", "/.well-known/tdmrep.json")
HTTPS = "https://{host}:{tls}/p.jpg"
PICTURE = b"\xff\xd8\xff\xe0" + bytes(2_000)


@dataclass(frozen=True)
class Case:
    """One hostile server.

    Attributes:
        name: What it does.
        expected: The reason that its URL must end with; ``None`` if its picture is taken.
        act: Answer to the request for the picture.
        robots: Answer to robots.txt; by default 404.
        tdm: Answer to tdmrep.json; by default 404.
        url: URL of the picture: ``{host}`` is its own name, ``{port}``, ``{tls}`` and the names of listeners ports.
        addresses: What its name resolves to.
        error: What the resolver raises.
        meets: The limit of time that its robots.txt or tdmrep.json runs into, if one of them never ends.
        hangs: Whether the resolver does not answer.
    """

    name: str
    expected: str | None
    act: Act | None = None
    robots: Act | None = None
    tdm: Act | None = None
    url: str = "http://{host}:{port}/picture.jpg"
    addresses: Sequence[str] = ("127.0.0.1",)
    error: Exception | None = None
    meets: str | None = None
    hangs: bool = False

    @property
    def host(self) -> str:
        return self.name.lower().replace(" ", "-") + ".site.test"


def silence(sock: socket.socket) -> None:
    """Says nothing until the client hangs up."""
    while sock.recv(65536):
        pass


def raw(data: bytes = b"", *, stay: bool = False) -> Act:
    """Sends bytes; then closes, or stays silent."""

    def act(sock: socket.socket) -> None:
        sock.sendall(data)
        if stay:
            silence(sock)

    return act


def head(*fields: str, status: str = "200 OK") -> bytes:
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *fields, "")).encode("latin-1")


def answer(*fields: str, status: str = "200 OK", body: bytes = PICTURE) -> Act:
    """A complete answer with further header fields."""
    return raw(head(f"Content-Length: {len(body)}", *fields, status=status) + body)


def endless(before: bytes, again: bytes) -> Act:
    """Sends the same bytes until the client hangs up."""

    def act(sock: socket.socket) -> None:
        sock.sendall(before)
        while True:
            sock.sendall(again)

    return act


def drip(before: bytes, again: bytes, pause_s: float = 0.05) -> Act:
    """Sends the same bytes again and again, never fast and never silent."""

    def act(sock: socket.socket) -> None:
        sock.sendall(before)
        while True:
            sock.sendall(again)
            time.sleep(pause_s)

    return act


def reset_after(before: bytes) -> Act:
    """Sends bytes and then resets the connection instead of closing it."""

    def act(sock: socket.socket) -> None:
        sock.sendall(before)
        time.sleep(0.05)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return act


def to(location: str, status: str = "302 Found") -> Act:
    return answer(f"Location: {location}", status=status, body=b"")


def robots(text: str) -> Act:
    return answer(body=text.encode())


def reserve(*rules: tuple[str, int]) -> Act:
    """A tdmrep.json."""
    return answer(body=json.dumps([{"location": a, "tdm-reservation": b} for a, b in rules]).encode())


@dataclass
class Network:
    """Loopback listeners, and the names that lead to them."""

    cases: dict[str, Case]
    ports: dict[str, int] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def resolve(self, host: str, port: int) -> Sequence[str]:
        """As a resolver would; hosts of the table as it says, literal addresses as the system reads them."""
        case = self.cases.get(host)
        if case is None:
            if not host.endswith((".test", ".invalid")):
                return [str(f[4][0]) for f in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
            return ["127.0.0.1"]
        if isinstance(case.error, Exception):
            raise case.error
        if case.hangs:
            self.over.wait()
        return case.addresses

    def limit(self, target: Target) -> str | None:
        """The limit of time that a request runs into, by the reason for its end; ``None`` if it ends by itself."""
        ports, case = self.ports, self.cases.get(target.host)
        if case is not None and case.hangs:
            return "dns_temp"
        if target.port in (ports["silent"], ports["full"], ports["drips"]) or (
            target.scheme == "https" and target.port == ports["port"]
        ):
            silent = target.scheme == "http" and target.port == ports["silent"]
            return "read_timeout" if silent else "connect_timeout"
        if case is None:
            return None
        return case.meets if target.path in FILES else case.expected

    def url(self, case: Case) -> str:
        return case.url.format(host=case.host, **self.ports)

    def act(self, host: str, path: str) -> Act:
        case = self.cases.get(host)
        if path in FILES:
            chosen = case and (case.robots if path == "/robots.txt" else case.tdm)
            return chosen or answer(status="404 None", body=b"")
        return (case and case.act) or answer()

    def converse(self, sock: socket.socket) -> None:
        """One request, one answer."""
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := sock.recv(65536)):
                return
            request += data
        lines = request.decode("latin-1").split("\r\n")
        host = next(v for v in lines if v.startswith("Host: ")).removeprefix("Host: ").partition(":")[0]
        self.act(host, lines[0].split(" ")[1])(cast(socket.socket, _Filled(sock, self.ports)))


class _Filled:
    """A socket that writes the ports of the listeners into what is sent."""

    def __init__(self, sock: socket.socket, ports: dict[str, int]) -> None:
        self._sock, self._ports = sock, ports

    def sendall(self, data: bytes) -> None:
        if b"{" in data[:1000]:
            for name, port in self._ports.items():
                data = data.replace(b"{%s}" % name.encode(), str(port).encode())
        self._sock.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def _listen(stack: contextlib.ExitStack, serve: Act, tls: ssl.SSLContext | None = None) -> int:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def talk(sock: socket.socket) -> None:
        with contextlib.ExitStack() as open_sockets, contextlib.suppress(OSError, ValueError, StopIteration):
            open_sockets.callback(sock.close)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_side=True)
                open_sockets.callback(sock.close)
            serve(sock)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(sock,), daemon=True).start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    stack.callback(acceptor.join)
    stack.callback(listener.close)
    stack.callback(listener.shutdown, socket.SHUT_RDWR)
    return int(listener.getsockname()[1])


@contextlib.contextmanager
def network(cases: Sequence[Case], certificates: Certificates) -> Iterator[Network]:
    """Serves all cases until the end of the block."""
    made = Network({case.host: case for case in cases})
    assert len(made.cases) == len(cases), "names are unique"
    with contextlib.ExitStack() as stack:
        stack.callback(made.over.set)
        made.ports = {
            "port": _listen(stack, made.converse),
            "tls": _listen(stack, made.converse, certificates.server("good")),
            "expired": _listen(stack, made.converse, certificates.server("expired")),
            "selfsigned": _listen(stack, made.converse, certificates.server("selfsigned")),
            "full": stack.enter_context(never_accepting()),
            "silent": _listen(stack, silence),
            "closes": _listen(stack, raw()),
            "resets": _listen(stack, reset_after(b"")),
            "ssh": _listen(stack, raw(b"SSH-2.0-OpenSSH_9.2\r\n", stay=True)),
            "drips": _listen(stack, drip(b"\x16\x03\x03\x40\x00", b"\x02")),
            "floods": _listen(stack, endless(b"", bytes(8192))),
        }
        yield made


class Certificates:
    """A certificate authority of the test's own, and what it signed for ``*.site.test``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        authority = ec.generate_private_key(ec.SECP256R1())
        root = self._sign("root", authority, authority, issuer="root", days=1)
        self._sign("good", ec.generate_private_key(ec.SECP256R1()), authority, issuer="root", days=1)
        self._sign("expired", ec.generate_private_key(ec.SECP256R1()), authority, issuer="root", days=-1)
        alone = ec.generate_private_key(ec.SECP256R1())
        self._sign("selfsigned", alone, alone, issuer="selfsigned", days=1)
        self.client = ssl.create_default_context(cadata=root)

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        by: ec.EllipticCurvePrivateKey,
        *,
        issuer: str,
        days: int,
    ) -> str:
        called = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (name, issuer)]
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder(called[1], called[0], key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("*.site.test")]), critical=False)
            .sign(by, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self._folder / f"{name}.pem").write_bytes(secret + pem)
        return pem.decode()

    def server(self, name: str) -> ssl.SSLContext:
        """The context of a server that shows the certificate of this name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / f"{name}.pem")
        return context
