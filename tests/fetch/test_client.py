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
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fetch.client import Answer, Client
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.connection import Connection
from pipeline.fetch.policy import DOWNLOAD_REASONS, Target, parse_url, redirect
from pipeline.fetch.resolve import Resolve, system_resolver
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


def test_an_address_that_swallows_everything_leaves_time_for_the_next() -> None:
    with socket.create_server(("127.0.0.1", 0)) as good, socket.socket() as full, socket.socket() as first:
        port = good.getsockname()[1]
        full.bind(("127.0.0.2", port))
        full.listen(0)
        first.setblocking(False)
        second = socket.socket()
        second.setblocking(False)
        for other in (first, second):
            other.connect_ex(full.getsockname())
        time.sleep(0.05)

        def serve() -> None:
            sock, _ = good.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")

        thread = threading.Thread(target=serve)
        thread.start()
        config = dataclasses.replace(
            FAST, allow_address=("127.0.0.0/29",), connect_timeout_s=2.0, deadline_s=5.0, read_timeout_s=2.0
        )
        answer = get(
            f"http://h.example:{port}/", config=config, resolve=lambda _h, _p: ["127.0.0.2", "127.0.0.1"]
        )
        assert reason(answer) is None
        thread.join()
        second.close()


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


def ask(client: Client, *urls: str) -> list[str | None]:
    return [reason(client.get(found)) for found in map(parse_url, urls) if isinstance(found, Target)]


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(FAST, version="1")
    yield made
    made.close()


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
    alone = Client(dataclasses.replace(FAST, keep_alive_s=0.0), version="1")
    assert ask(alone, url, url) == [None] * 2
    assert site.connections["127.0.0.1"] == 4
    assert site.headers["/img/1.jpg"]["Connection"] == "close"


def test_a_connection_rests_only_so_long(site: Site) -> None:
    client = Client(dataclasses.replace(FAST, keep_alive_s=0.05), version="1")
    url = site.url("/img/1.jpg")
    assert ask(client, url) == [None]
    time.sleep(0.1)
    assert ask(client, url) == [None]
    assert site.connections["127.0.0.1"] == 2
    client.close()


def test_other_authorities_have_connections_of_their_own(site: Site) -> None:
    everywhere = dataclasses.replace(FAST, allow_address=("127.0.0.0/29",))
    client = Client(everywhere, version="1")
    for host in ("127.0.0.1", "127.0.0.2"):
        assert ask(client, site.url("/img/1.jpg", host)) == [None]
    assert site.connections == {"127.0.0.1": 1, "127.0.0.2": 1}
    client.close()


@pytest.mark.parametrize("later", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"])
def test_a_kept_connection_that_broke_or_talks_costs_a_new_one_and_no_failure(later: bytes) -> None:
    """The server answers one request on each connection, then closes it, or sends an answer to nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    bodies = iter([b"one", b"two"])

    def serve() -> None:
        for body in bodies:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)
                time.sleep(0.05)
                sock.sendall(later)
                if later:
                    sock.recv(65536)

    thread = threading.Thread(target=serve)
    thread.start()
    client = Client(FAST, version="1")
    target = parse_url(f"http://127.0.0.1:{listener.getsockname()[1]}/")
    assert isinstance(target, Target)
    first = client.get(target).body
    time.sleep(0.15)
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
    client = Client(FAST, version="1")
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


def test_an_answer_that_is_too_slow_is_given_up_and_one_that_ends_in_time_is_not(site: Site) -> None:
    def pause_and_end(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1")
        request.end_headers()
        time.sleep(0.3)
        request.wfile.write(b"x")

    site.handlers.update({"/drip": drip, "/pause": pause_and_end})
    strict = dataclasses.replace(FAST, min_rate_bytes_s=5_000, min_rate_grace_s=0.2)
    assert reason(get(site.url("/drip"), config=strict)) == "too_slow"
    assert reason(get(site.url("/pause"), config=strict)) is None
    off = dataclasses.replace(strict, min_rate_bytes_s=0)
    assert reason(get(site.url("/drip"), config=off)) == "deadline"


def test_a_reservation_of_the_site_holds_unless_the_picture_lifts_it(site: Site) -> None:
    client = Client(FAST, version="1")
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
    client = Wired(FAST, version="1")
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
    assert Client(FAST, version="1")._ssl is Client(FAST, version="1")._ssl


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
