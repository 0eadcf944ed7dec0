from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.fetch.client import Answer, Client, Resolve, system_resolver
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import Target, parse_url
from tests.fetch.hostile import Request, Site

FAST = FetchConfig(
    allow_address=("127.0.0.1/32",),
    connect_timeout_s=0.5,
    read_timeout_s=0.4,
    deadline_s=1.0,
    max_body_bytes=100_000,
    contact="mail@example.org",
)


def get(
    url: str,
    *,
    config: FetchConfig = FAST,
    resolve: Resolve = system_resolver,
    ssl_context: ssl.SSLContext | None = None,
    robots: bool = False,
) -> Answer:
    target = parse_url(url)
    assert isinstance(target, Target)
    client = Client(config, version="1", resolve=resolve, ssl_context=ssl_context)
    try:
        return client.get(target, robots=robots)
    finally:
        client.close()


def reason(answer: Answer) -> str | None:
    return answer.refusal.reason if answer.refusal else None


def test_a_plain_success(site: Site) -> None:
    answer = get(site.add("/a.jpg?b=%20c", b"body"))
    assert (reason(answer), answer.http_status, answer.body) == (None, 200, b"body")


def test_what_the_server_sees(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(netrc))
    assert reason(get(site.add("/a", b"x"))) is None
    seen = site.headers["/a"]
    assert seen["User-Agent"] == "webimagetext/1 (+mail@example.org)"
    assert seen["Accept-Encoding"] == "identity"
    assert seen["Host"] == f"127.0.0.1:{site.port}"
    assert not {"Authorization", "Cookie"} & set(seen)


def test_the_connection_goes_to_the_checked_address(site: Site) -> None:
    asked: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]  # a rebinding name server

    target = parse_url(f"http://pictures.example:{site.port}/img/1.jpg")
    assert isinstance(target, Target)
    client = Client(dataclasses.replace(FAST, keep_alive_s=0.0), version="1", resolve=resolve)
    assert [reason(client.get(target)) for _ in range(2)] == [None, None]
    assert asked == ["pictures.example"]
    assert site.headers["/img/1.jpg"]["Host"] == f"pictures.example:{site.port}"


@pytest.mark.parametrize(
    ("url", "resolved", "expected"),
    [
        ("http://127.0.0.2/", None, "blocked_address"),
        ("http://2130706434/", None, "blocked_address"),  # 127.0.0.2 as one number
        ("http://0x7f.2/", None, "blocked_address"),
        ("http://[::ffff:127.0.0.2]/", None, "blocked_address"),
        ("http://169.254.169.254/latest/meta-data/", None, "blocked_address"),
        ("http://inner.example/", ["10.0.0.1", "fd00::1"], "blocked_address"),
        ("http://outer.example:22/", ["8.8.8.8"], "blocked_port"),
    ],
)
def test_addresses_and_ports_refused(url: str, resolved: list[str] | None, expected: str) -> None:
    answer = get(url, resolve=(lambda _host, _port: resolved) if resolved else system_resolver)
    assert reason(answer) == expected


@pytest.mark.parametrize(
    ("code", "expected"), [(socket.EAI_NONAME, "dns_nxdomain"), (socket.EAI_AGAIN, "dns_temp")]
)
def test_names_that_do_not_resolve(code: int, expected: str) -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(code, "no")

    assert reason(get("http://gone.example/", resolve=resolve)) == expected


def test_nobody_listens() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert reason(get(f"http://127.0.0.1:{closed.getsockname()[1]}/")) == "connect_refused"


def test_a_connection_that_is_never_accepted() -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        time.sleep(0.05)
        assert reason(get(f"http://127.0.0.1:{full.getsockname()[1]}/")) == "connect_timeout"


def drip(request: Request) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    for _ in range(100):
        request.wfile.write(b"x")
        time.sleep(0.1)


def drip_headers(request: Request) -> None:
    for i in range(100):
        request.wfile.write(b"HTTP/1.1 200 OK\r\n" if i == 0 else b"X-%d: y\r\n" % i)
        time.sleep(0.1)


def stall(request: Request) -> None:
    time.sleep(1.5)


def endless(request: Request) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b"x" * 65536)


def endless_chunks(request: Request) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    while True:
        request.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def broken_chunks(request: Request) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"100\r\nxxx")


def hang_up(_request: Request) -> None:
    return


def nonsense(request: Request) -> None:
    request.wfile.write(b"SSH-2.0-OpenSSH\r\n")


def endless_header(request: Request) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (drip, "deadline"),
        (drip_headers, "deadline"),
        (stall, "read_timeout"),
        (endless, "body_too_large"),
        (endless_chunks, "body_too_large"),
        (broken_chunks, "truncated"),
        (hang_up, "truncated"),
        (nonsense, "bad_response"),
        (endless_header, "bad_response"),
        (lambda r: r.reply(b"x" * 100, Content_Length="1000"), "truncated"),
        (lambda r: r.reply(b"x", Content_Length="10000000000"), "body_too_large"),
        (lambda r: r.reply(b"x" * 100_001), "body_too_large"),
        (lambda r: r.reply(b"x" * 100_000), None),
        (lambda r: r.reply(b""), "empty_body"),
        (lambda r: r.reply(b"x" * 100, Content_Length="50"), None),
        (lambda r: r.reply(b"x", Content_Length="many"), None),
        (lambda r: r.reply(b"x" * 100, Connection="close"), None),
        (lambda r: r.reply(b"no", 404), "http_4xx"),
        (lambda r: r.reply(b"no", 503), "http_5xx"),
        (lambda r: r.reply(b"no", 429), "http_429"),
        (lambda r: r.reply(b"x", X_Robots_Tag="noai"), "optout_header"),
        (lambda r: r.reply(b"x", tdm_reservation="1"), "optout_tdm"),
    ],
)
def test_strange_servers_cost_their_limits_only(site: Site, handler: object, expected: str | None) -> None:
    site.handlers["/x"] = handler  # type: ignore[assignment]
    started = time.monotonic()
    answer = get(site.url("/x"))
    assert reason(answer) == expected
    assert len(answer.body) <= FAST.max_body_bytes
    assert time.monotonic() - started < 10 * FAST.deadline_s  # not a timing: without limits it never ends


def test_redirects_are_not_followed_here(site: Site) -> None:
    answer = get(site.add("/r", status=302, Location="http://169.254.169.254/"))
    assert answer.is_redirect
    assert answer.location == "http://169.254.169.254/"


def test_a_long_robots_txt_is_cut_and_its_own_opt_out_ignored(site: Site) -> None:
    url = site.add("/robots.txt", b"#" * 600_000, X_Robots_Tag="noindex")
    assert len(get(url, robots=True).body) == 512 * 1024
    assert reason(get(url)) == "optout_header"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A key with a certificate for ``pictures.example``, and a context that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.example")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName(
        [x509.DNSName("pictures.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.3"))]
    )
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(secret + pem)
    return file, ssl.create_default_context(cadata=pem.decode())


@pytest.fixture
def tls(authority: tuple[Path, ssl.SSLContext]) -> Iterator[tuple[int, list[str | None]]]:
    """A TLS server that answers one picture's worth of bytes; its port and the names it was asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority[0])
    names: list[str | None] = []
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(raw, server_side=True) as sock:
                    sock.recv(65536)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
            except OSError:
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], names
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_tls_goes_to_the_checked_address_under_the_hosts_name(
    tls: tuple[int, list[str | None]], authority: tuple[Path, ssl.SSLContext]
) -> None:
    port, names = tls
    for host, expected in (("pictures.example", None), ("other.example", "tls_error")):
        answer = get(
            f"https://{host}:{port}/", resolve=lambda _h, _p: ["127.0.0.1"], ssl_context=authority[1]
        )
        assert reason(answer) == expected
    assert names == ["pictures.example", "other.example"]


def test_tls_is_verified_by_default(tls: tuple[int, list[str | None]], site: Site) -> None:
    resolve = lambda _host, _port: ["127.0.0.1"]  # noqa: E731
    assert reason(get(f"https://pictures.example:{tls[0]}/", resolve=resolve)) == "tls_error"
    assert reason(get(f"https://pictures.example:{site.port}/", resolve=resolve)) in (
        "tls_error",
        "connect_timeout",
    )
