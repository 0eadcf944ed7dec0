"""CPU time of one request: kept and new connections, http and https, beside the way img2dataset asks.

A server on loopback hands out the same bytes; the client's own CPU time is what counts. img2dataset asks with
urllib in threads, a connection for each picture.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

from benchmarks.measure import say
from pipeline.fetch.client import Client
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import Target, parse_url
from pipeline.fetch.schedule import Schedule
from tests.fetch.hostile_servers import Certificates

HOSTS = 20
HEAD = (
    b"HTTP/1.1 %s\r\nContent-Type: image/jpeg\r\nServer: loopback\r\nDate: Tue, 01 Jan 2030 00:00:00 GMT\r\n"
    b'ETag: "5f3c-61d"\r\nLast-Modified: Tue, 01 Jan 2030 00:00:00 GMT\r\nContent-Length: %d\r\n\r\n'
)


def serve(body_bytes: int, certificate: str | None) -> None:
    """Serves on a free port, which it prints, until it is stopped."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                found = request.split(b" ", 2)[1].endswith(b".jpg")
                body = bytes(body_bytes) if found else b"none"
                writer.write(HEAD % (b"200 OK" if found else b"404 No", len(body)) + body)
                await writer.drain()
                if b"connection: close" in request.lower():
                    break
        writer.close()

    async def main() -> None:
        context = None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
        server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context, backlog=512)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await server.serve_forever()

    asyncio.run(main())


@contextlib.contextmanager
def serving(body_bytes: int, certificate: Path | None) -> Iterator[int]:
    """The port of a server in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.connections", "--serve", "--bytes", str(body_bytes)]
    command += ["--certificate", str(certificate)] if certificate else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def ours(urls: list[str], context: ssl.SSLContext, keep_alive_s: float) -> int:
    """Bytes fetched by the schedule, with its robots.txt and tdmrep.json."""
    config = FetchConfig(allow_address=("127.0.0.1",), host_gap_s=0.0, keep_alive_s=keep_alive_s)
    client = Client(config, version="benchmark", resolve=lambda _h, _p: ["127.0.0.1"], ssl_context=context)
    targets = [t for t in map(parse_url, urls) if isinstance(t, Target)]
    return sum(len(answer.body) for _, answer in Schedule(client).run(targets))


def theirs(urls: list[str], context: ssl.SSLContext | None) -> int:
    """Bytes fetched by urllib in threads; without a context it makes one for each request, as it does by default."""

    def get(url: str) -> int:
        made = context
        if made is None and url.startswith("https:"):
            made = ssl.create_default_context()
            made.check_hostname, made.verify_mode = False, ssl.CERT_NONE  # the price is that of making it
        with urllib.request.urlopen(url, timeout=10, context=made) as answer:
            return len(answer.read())

    with ThreadPool(2 * HOSTS) as pool:
        return sum(pool.imap_unordered(get, urls))


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--bytes", type=int, default=10_000, help="of a picture")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--certificate", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.bytes, options.certificate)
        return
    say("| way | scheme | CPU ms per picture | pictures per second |")
    say("| --- | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as scratch:
        certificates = Certificates(Path(scratch))
        trust = certificates.client
        no_names = ssl.create_default_context()
        no_names.check_hostname, no_names.verify_mode = False, ssl.CERT_NONE
        for scheme, certificate in (("http", None), ("https", Path(scratch, "good.pem"))):
            ways: dict[str, Callable[[list[str]], int]] = {
                "wit fetch, connections kept": lambda urls: ours(urls, trust, 15.0),
                "wit fetch, a connection for each": lambda urls: ours(urls, trust, 0.0),
                "urllib in threads, one TLS context": lambda urls: theirs(urls, no_names),
                "urllib in threads, its default": lambda urls: theirs(urls, None),
            }
            with serving(options.bytes, certificate) as port:
                for name, way in ways.items():
                    if scheme == "http" and "TLS" in name:
                        continue
                    measure(name, scheme, port, options, way)


def measure(
    name: str, scheme: str, port: int, options: argparse.Namespace, way: Callable[[list[str]], int]
) -> None:
    """Prints the row of one way; fewer requests where each makes a TLS context."""
    count = options.requests if scheme == "http" or "default" not in name else options.requests // 10
    host = "h{}.site.test" if name.startswith("wit") else "127.0.0.1"
    urls = [f"{scheme}://{host.format(i % HOSTS)}:{port}/{i}.jpg" for i in range(count)]
    wall, cpu = time.monotonic(), time.process_time()
    received = way(urls)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    assert received == count * options.bytes
    say(f"| {name} | {scheme} | {1000 * cpu / count:.2f} | {count / wall:,.0f} |")


if __name__ == "__main__":
    main()
