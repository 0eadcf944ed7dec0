"""Records a site's pages as a WARC over real HTTP: sitemap, robots.txt, one response record per page."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator, Sequence
from urllib.parse import urljoin

import requests
from protego import Protego
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipeline.core import paths
from pipeline.core.errors import StageFailedError
from pipeline.core.progress import tick

AGENT = "webimagetext-demo"
# A fixed date makes the archive, and with it record offsets, the same on each run.
RECORDED_AT = "2026-11-01T00:00:00Z"


def pages(session: requests.Session, site: str) -> Iterator[str]:
    """URLs of a site's pages that its robots.txt allows, in the sitemap's order."""
    robots = Protego.parse(_get(session, f"{site}/robots.txt").text)
    for line in _get(session, f"{site}/sitemap.txt").text.splitlines():
        url = urljoin(f"{site}/", line.strip())
        if line.strip() and robots.can_fetch(url, AGENT):
            yield url


def record(sites: Sequence[str], path: str, *, every: int) -> int:
    """Writes the WARC (gzip, one member per record) atomically and returns its response records.

    Args:
        sites: Base URLs.
        path: File to write.
        every: Record each n-th page of a site; 1 records all.
    """
    count = 0
    with requests.Session() as session, paths.open_atomic(path) as file:
        session.trust_env = False  # a proxy of the environment cannot reach this machine's loopback
        session.headers["User-Agent"] = AGENT
        writer = WARCWriter(file, gzip=True)
        for site in sites:
            for url in list(pages(session, site))[::every]:
                writer.write_record(_response_record(writer, url, _get(session, url)))
                count += 1
                tick()
    return count


def _get(session: requests.Session, url: str) -> requests.Response:
    response = session.get(url, timeout=10)
    if response.status_code != 200:
        raise StageFailedError(
            "cannot record a page", where=url, expected="HTTP 200", found=response.status_code
        )
    return response


def _response_record(writer: WARCWriter, url: str, response: requests.Response) -> object:
    status = f"{response.status_code} {response.reason or 'OK'}"
    headers = StatusAndHeaders(status, list(response.headers.items()), protocol="HTTP/1.1")
    return writer.create_warc_record(
        url,
        "response",
        payload=io.BytesIO(response.content),
        length=len(response.content),
        http_headers=headers,
        warc_headers_dict={
            "WARC-Date": RECORDED_AT,
            "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, url)}>",
        },
    )
