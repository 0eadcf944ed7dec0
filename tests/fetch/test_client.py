from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fetch.client import Answer, Client
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.connection import Connection
from pipeline.fetch.policy import DOWNLOAD_REASONS, Target, parse_url, redirect
from pipeline.fetch.resolve import Resolve, system_resolver
from tests.fetch.hostile import Clock, Handle, Request, Site, never_accepting, serving

# Limits of time that only a test that is about them makes short: no machine stalls for so long.
PATIENT = FetchConfig(
    allow_address=("127.0.0.1/32",),
    connect_timeout_s=60.0,
    read_timeout_s=60.0,
    deadline_s=120.0,
    min_rate_grace_s=60.0,
    keep_alive_s=600.0,
    max_body_bytes=100_000,
    contact="mail@example.org",
)


def get(
    url: str,
    *,
    config: FetchConfig = PATIENT,
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
    client = Client(dataclasses.replace(PATIENT, keep_alive_s=0.0), version="1", resolve=resolve)
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
    config = dataclasses.replace(PATIENT, connect_timeout_s=0.2)
    with never_accepting() as port:
        assert reason(get(f"http://127.0.0.1:{port}/", config=config)) == "connect_timeout"


def test_an_address_that_swallows_everything_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, given = socket.create_connection, []

    def impatient(address: tuple[str, int], timeout: float) -> socket.socket:
        given.append(timeout)
        return real(address, timeout=0.1 if address[0] == "127.0.0.2" else timeout)

    config = dataclasses.replace(PATIENT, allow_address=("127.0.0.0/29",))
    with serving(Site(), address="127.0.0.1") as good, never_accepting("127.0.0.2", good.port):
        monkeypatch.setattr(socket, "create_connection", impatient)
        addresses = ["127.0.0.2", "127.0.0.1"]
        url = f"http://h.example:{good.port}/img/1.jpg"
        assert reason(get(url, config=config, resolve=lambda _host, _port: addresses)) is None
    first, second = given
    assert first <= config.connect_timeout_s / 2 < second, "half of what is left, and the rest"


def drip(request: Request) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "90000")
    request.end_headers()
    while True:
        request.wfile.write(b"x")
        time.sleep(0.02)


def stall(request: Request) -> None:
    request.rfile.read(1)  # until the client hangs up


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
    ("handler", "limit", "expected"),
    [
        (drip, {"min_rate_grace_s": 0.2}, "too_slow"),
        (stall, {"read_timeout_s": 0.2}, "read_timeout"),
    ],
)
def test_what_never_ends_is_given_up(
    site: Site, handler: Handle, limit: dict[str, float], expected: str
) -> None:
    site.handlers["/x"] = handler
    answer = get(site.url("/x"), config=dataclasses.replace(PATIENT, **limit))  # type: ignore[arg-type]
    assert (reason(answer), answer.body) == (expected, b"")


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
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
def test_strange_servers_cost_their_limits_only(site: Site, handler: Handle, expected: str | None) -> None:
    site.handlers["/x"] = handler
    answer = get(site.url("/x"))
    assert reason(answer) == expected
    assert len(answer.body) <= PATIENT.max_body_bytes


def test_redirects_are_not_followed_here(site: Site) -> None:
    answer = get(site.add("/r", status=302, Location="http://169.254.169.254/"))
    assert answer.is_redirect
    assert answer.location == "http://169.254.169.254/"


def test_a_long_robots_txt_is_cut_and_its_own_opt_out_ignored(site: Site) -> None:
    url = site.add("/robots.txt", b"#" * 600_000, X_Robots_Tag="noindex")
    assert len(get(url, robots=True).body) == 512 * 1024
    assert reason(get(url)) == "optout_header"


def ask(client: Client, *urls: str) -> list[str | None]:
    return [reason(client.get(found)) for found in map(parse_url, urls) if isinstance(found, Target)]


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(PATIENT, version="1")
    yield made
    made.close()


@pytest.mark.usefixtures("no_hurry")
def test_one_connection_carries_many_requests(site: Site, client: Client) -> None:
    site.add("/none", b"no such page", 404)
    site.add("/on", b"over there", 302, Location="/none")
    urls = [site.url(f"/img/{i}.jpg") for i in range(5)]
    assert (
        ask(client, *urls, site.url("/none"), site.url("/on"), *urls)
        == [None] * 5 + ["http_4xx"] + [None] * 6
    )
    assert site.connections["127.0.0.1"] == 1


def test_connections_are_not_kept_where_they_are_not_wanted(site: Site, client: Client) -> None:
    url = site.url("/img/1.jpg")
    assert ask(client, url, site.add("/last", b"x", Connection="close"), url) == [None] * 3
    assert site.connections["127.0.0.1"] == 2
    alone = Client(dataclasses.replace(PATIENT, keep_alive_s=0.0), version="1")
    assert ask(alone, url, url) == [None] * 2
    assert site.connections["127.0.0.1"] == 4
    assert site.headers["/img/1.jpg"]["Connection"] == "close"


def test_a_connection_rests_only_so_long(site: Site) -> None:
    client = Client(dataclasses.replace(PATIENT, keep_alive_s=0.05), version="1")
    url = site.url("/img/1.jpg")
    assert ask(client, url) == [None]
    time.sleep(0.1)
    assert ask(client, url) == [None]
    assert site.connections["127.0.0.1"] == 2
    client.close()


def test_other_authorities_have_connections_of_their_own(site: Site) -> None:
    everywhere = dataclasses.replace(PATIENT, allow_address=("127.0.0.0/29",))
    client = Client(everywhere, version="1")
    for host in ("127.0.0.1", "127.0.0.2"):
        assert ask(client, site.url("/img/1.jpg", host)) == [None]
    assert site.connections == {"127.0.0.1": 1, "127.0.0.2": 1}
    client.close()


@pytest.mark.parametrize("later", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"])
def test_a_kept_connection_that_broke_or_talks_costs_a_new_one_and_no_failure(later: bytes) -> None:
    """The server answers one request on each connection, then closes it, or sends an answer to nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    has_talked, hung_up = threading.Event(), threading.Event()

    def serve() -> None:
        for body in (b"one", b"two"):
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)
                if later:
                    kept.wait(60)
                    sock.sendall(later)
                    has_talked.set()
                    sock.recv(65536)
            hung_up.set()

    kept = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    client = Client(PATIENT, version="1")
    target = parse_url(f"http://127.0.0.1:{listener.getsockname()[1]}/")
    assert isinstance(target, Target)
    first = client.get(target).body
    kept.set()  # the first answer is read and its connection kept
    (has_talked if later else hung_up).wait(60)
    assert (first, client.get(target).body) == (b"one", b"two")
    client.close()
    thread.join()
    listener.close()


def test_a_kept_connection_that_breaks_under_the_request_is_asked_again_on_a_new_one() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    requests = []

    def serve() -> None:
        for answers in (1, 1):
            sock, _ = listener.accept()
            with sock:
                for _ in range(answers):
                    requests.append(sock.recv(65536))
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
                requests.append(sock.recv(65536))  # takes the next request and closes

    thread = threading.Thread(target=serve)
    thread.start()
    client = Client(PATIENT, version="1")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    assert ask(client, url, url) == [None, None]
    client.close()
    thread.join()
    listener.close()
    assert [bool(r) for r in requests] == [True, True, True, False]


def test_what_a_ledger_keeps_of_an_answer(site: Site) -> None:
    long = "image/jpeg; " + "x" * 500
    answer = get(
        site.add("/a", b"body", Content_Type=long, ETag='"\x07abc"', Last_Modified="Tue, 1 Jan 2030")
    )
    assert (answer.content_type, answer.etag) == (long[:200], '"abc"')
    assert (answer.last_modified, answer.received) == ("Tue, 1 Jan 2030", 4)
    answer = get(site.add("/b", b"x" * 100, Content_Length="1000"))
    assert (reason(answer), answer.received, answer.etag) == ("truncated", 100, None)


class Wire:
    """A socket whose other end sends pieces, each after some seconds of a clock."""

    def __init__(self, clock: Clock, pieces: Iterable[tuple[float, bytes]]) -> None:
        self.clock, self.pieces = clock, iter(pieces)

    def recv_into(self, buffer: memoryview) -> int:
        seconds, piece = next(self.pieces)
        self.clock.now += seconds
        buffer[: len(piece)] = piece
        return len(piece)

    def sendall(self, _data: bytes) -> None:
        pass

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= min(10.0, 1012.0 - self.clock.now)

    def close(self) -> None:
        pass


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("pieces", "least", "expected"),
    [
        ([(0.0, OK), *[(0.1, b"Content-Length: 9000\r\n\r\n"), *[(0.1, b"x")] * 9000]], 0, "deadline"),
        ([(0.0, OK), *[(0.3, b"X-A: y\r\n")] * 90], 0, "deadline"),
        ([(0.0, OK), (0.1, b"\r\n"), *[(0.1, b"x" * 400)] * 1000], 5_000, "too_slow"),
        ([(0.0, OK), (0.1, b"\r\n"), *[(0.1, b"x" * 600)] * 1000], 5_000, "deadline"),
        ([(0.0, OK), *[(0.3, b"X-A: y\r\n")] * 90], 5_000, "too_slow"),
        # What ends with the piece that was waited for is never too slow.
        ([(0.0, OK + b"Content-Length: 1\r\n\r\n"), (9.0, b"x")], 5_000, None),
        ([(9.0, OK + b"Content-Length: 1\r\n\r\n"), (0.1, b"x")], 5_000, None),
    ],
)
def test_an_answer_that_is_too_slow_or_too_late_is_given_up(
    monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[float, bytes]], least: int, expected: str | None
) -> None:
    clock = Clock(now=1000.0)
    for room in ("client", "connection"):
        monkeypatch.setattr(f"pipeline.fetch.{room}.time", clock)
    config = dataclasses.replace(
        PATIENT, read_timeout_s=10.0, deadline_s=12.0, min_rate_bytes_s=least, min_rate_grace_s=1.0
    )
    client = Client(config, version="1")
    wire = cast(socket.socket, Wire(clock, pieces))
    monkeypatch.setattr(client, "_connect", lambda _target, _deadline: Connection(wire, config))
    assert ask(client, "http://h.example/") == [expected]
    if expected is not None:
        assert clock.now == pytest.approx(1000.0 + (12.0 if expected == "deadline" else 1.0), abs=0.3)


def test_a_reservation_of_the_site_holds_unless_the_picture_lifts_it(site: Site) -> None:
    client = Client(PATIENT, version="1")
    for url, expected in (
        (site.add("/a", b"x"), "optout_tdm"),
        (site.add("/b", b"x", tdm_reservation="0"), None),
        (site.add("/c", b"x", tdm_reservation="1"), "optout_tdm"),
    ):
        found = parse_url(url)
        assert isinstance(found, Target)
        assert reason(client.get(found, reserved=True)) == expected
    client.close()


class Wired(Client):
    """Talks to one end of a pair of sockets, into whose other end an answer was written."""

    answer = b""

    def _connect(self, target: Target, deadline: float) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(self.answer)
        return Connection(ours, self.config)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [
            b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 302 On\r\nLocation: ",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: ",
            b"HTTP/1.1 200 OK\r\nX-Robots-Tag: ", b"HTTP/1.1 200 OK\r\nX-Robots-Tag: unavailable_after: ",
            b"HTTP/1.1 503 No\r\nRetry-After: ", b"HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n",
        ]
    ),
    st.binary(max_size=200)
    | st.text("0123456789abcdefx:;,- \r\n\t\0ÿ", max_size=60).map(lambda text: text.encode("latin-1")),
    st.sampled_from([b"", b"\r\n\r\n", b"\r\n\r\nbody", b"\n\n0\r\n\r\n"]),
)  # fmt: skip
def test_any_bytes_are_an_answer_or_a_known_reason(before: bytes, middle: bytes, after: bytes) -> None:
    client = Wired(PATIENT, version="1")
    client.answer = before + middle + after
    target = parse_url("http://h.example/")
    assert isinstance(target, Target)
    answer = client.get(target)
    client.close()
    if answer.refusal is not None:
        assert answer.refusal.reason in DOWNLOAD_REASONS
        assert answer.body == b""
    elif answer.is_redirect:
        redirect(target, answer.location)
    else:
        assert answer.body in client.answer or b"chunked" in client.answer.lower()


def test_the_trusted_authorities_are_read_once_in_a_process() -> None:
    assert Client(PATIENT, version="1")._ssl is Client(PATIENT, version="1")._ssl


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
    config = dataclasses.replace(PATIENT, connect_timeout_s=0.5)
    assert reason(get(f"https://pictures.example:{site.port}/", resolve=resolve, config=config)) in (
        "tls_error",
        "connect_timeout",
    )
