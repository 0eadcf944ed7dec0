"""`python -m benchmarks.queries`: the query list from a made dump, against what others would do, in one run.

Prints Markdown: the table of all, the share of each of our steps, the memory at several sizes, and checks that what
was measured is right: one worker's bytes are two workers', word counts are mwparserfromhell's, PMI is that of a
count in plain Python.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks import dump, measure
from benchmarks.measure import Measured, say
from benchmarks.peers import PEERS, articles
from pipeline.core.tokens import WORD, fold

TWO_WORKERS = ("--", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
# mwparserfromhell reads half a megabyte in a second: it gets a part, and its time is scaled up.
PART_MB = 12
STEPS_MB = 100


def main() -> None:
    """Makes the data, runs everything, prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queries", description=__doc__)
    parser.add_argument("--size-mb", type=int, default=1000, metavar="MB", help="XML of the dump (1000)")
    parser.add_argument(
        "--peers", default=",".join(PEERS), metavar="NAMES", help=f"of {', '.join(PEERS)}; 'none' for none"
    )
    parser.add_argument("--memory-mb", default="", metavar="MB,MB", help="more sizes to measure memory at")
    parser.add_argument("--folder", metavar="DIR", help="where dumps are made and kept (a temporary folder)")
    given = parser.parse_args()
    peers = [p for p in given.peers.split(",") if p != "none"]
    if unknown := set(peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = [int(s) for s in given.memory_mb.split(",") if s]
        _benchmark(folder, Path(temporary), given.size_mb, peers, sizes)


def _benchmark(folder: Path, scratch: Path, size_mb: int, peers: list[str], sizes: list[int]) -> None:
    data, part = made(folder, size_mb), made(folder, PART_MB)
    xml_mb = _xml_mb(data)
    _ours(part, scratch / "out-first", 1)  # compiles what is compiled once in an installation's life
    ours = {workers: _ours(data, scratch / f"out-{workers}", workers) for workers in (1, 2)}
    rows = [_row(f"ours, {_count(n, 'worker')}", m, xml_mb, ours[2]) for n, m in ours.items()]
    part_mb = _xml_mb(part)
    theirs = Counter[str]()
    for peer in peers:
        say(f"{peer} …")
        whole = peer != "mwparserfromhell"
        found = measure.run([sys.executable, "-m", "benchmarks.peers", peer, str(data if whole else part)])
        name = "gensim WikiCorpus(processes=2) + Phrases"
        if not whole:
            name = f"mwparserfromhell + Counter, 1 process ({part_mb:.0f} MB, scaled up)"
            theirs = Counter(json.loads(found.output)["counts"])
            scale = xml_mb / part_mb
            found = Measured(found.wall_s * scale, found.cpu_s * scale, found.peak_mb, "")
        rows.append(_row(name, found, xml_mb, ours[2]))
    print(f"\n{xml_mb:,.0f} MB of XML, {data.stat().st_size / 1e6:,.0f} MB multistream bz2; {_cpus()} CPUs\n")
    head = ("what", "wall s", "CPU s", "MB/s", "MB per CPU s", "peak MB", "wall: ours ×", "CPU: ours ×")
    print(measure.table(head, rows))
    _print_steps(folder, ours[1], xml_mb)
    _print_memory(folder, scratch, {size_mb: ours[2]}, sizes)
    _print_checks(scratch, part, theirs)


def made(folder: Path, size_mb: int) -> Path:
    """The dump of a size, made unless the folder has it."""
    path = folder / f"made-{size_mb}mb.xml.bz2"
    if not path.exists():
        say(f"making {path.name} …")
        temporary = path.with_suffix(".tmp")
        total = dump.make(temporary, size_mb)
        path.with_suffix(".bytes").write_text(str(total))
        temporary.rename(path)
    return path


def _xml_mb(path: Path) -> float:
    return int(path.with_suffix(".bytes").read_text()) / 1e6


def _ours(data: Path, out: Path, workers: int, *more: str) -> Measured:
    say(f"ours, {_count(workers, 'worker')}, {data.name} …")
    wit = [
        sys.executable,
        "-m",
        "pipeline",
        "queries",
        "--wikipedia",
        str(data),
        "--wordnet",
        "none",
        "--quiet",
    ]
    return measure.run([*wit, *more, "--out", str(out), *(TWO_WORKERS if workers == 2 else ())])


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("s" if number != 1 else "")


def _row(name: str, found: Measured, xml_mb: float, ours: Measured) -> list[str]:
    numbers = (
        f"{found.wall_s:,.0f}", f"{found.cpu_s:,.0f}", f"{xml_mb / found.wall_s:.1f}", f"{xml_mb / found.cpu_s:.1f}",
        f"{found.peak_mb:,.0f}", f"{found.wall_s / ours.wall_s:.1f}", f"{found.cpu_s / ours.cpu_s:.1f}",
    )  # fmt: skip
    return [name, *numbers]


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _print_steps(folder: Path, whole: Measured, xml_mb: float) -> None:
    """Our steps one after the other in this process; the rest is Beam's and Python's own."""
    data = made(folder, STEPS_MB)
    say(f"steps, {data.name} …")
    scale = xml_mb / _xml_mb(data)
    seconds = {name: s * scale for name, s in steps(data).items()}
    rows = [(n, f"{s:.1f}", f"{s / whole.cpu_s:.0%}", f"{xml_mb / s:,.0f}") for n, s in seconds.items()]
    rest = whole.cpu_s - sum(seconds.values())
    rows.append(("start, Beam, merging, the list", f"{rest:.1f}", f"{rest / whole.cpu_s:.0%}", ""))
    print(f"\nCPU seconds of one worker by step (measured on {STEPS_MB} MB, scaled up)\n")
    print(measure.table(("step", "CPU s", "share", "MB of XML per CPU s"), rows))


def steps(data: Path) -> dict[str, float]:
    """CPU seconds of each step over a dump."""
    from queries import bigrams, passes, streams, wikipedia
    from queries.lexicon import Lexicon
    from queries.wikitext import plain_text

    clock = _Clock()
    with tempfile.TemporaryDirectory() as work:
        warm = Lexicon()
        warm.add(plain_text("compile"))
        warm.take()
        for number, split in enumerate(wikipedia.plan([str(data)])):
            with clock("decompress"):
                chunks = list(streams.read(split.path, split.start, split.end, []))
            with clock("cut into pages"):
                found = list(wikipedia.fragments(iter(chunks), "", []))
            with clock("parse XML"):
                pages = [wikipedia.parse_page(x, split.site) for x in found]
            texts = [p.text for p in pages if isinstance(p, wikipedia.Page) and p.target is None]
            with clock("wikitext to text"):
                plain = [plain_text(x) for x in texts]
            with clock("tokenise and count words"):
                lexicon = Lexicon()
                for text in plain:
                    lexicon.add(text)
                batch = lexicon.take(passes.WORD_PARTITIONS)
            with clock("write and read work files"):
                name = f"{number:05d}-00000"
                passes.write_batch(batch, work, name)
                tokens = passes.read_batch(f"{work}/tokens-{name}.arrow", 0)["token"].to_numpy()
            with clock("count bigrams"):
                frequent = np.where(batch.counts >= 5, np.arange(len(batch.counts)), -1)
                bigrams.count(np.append(frequent, -1)[tokens])
    return dict(clock.seconds)


class _Clock:
    """CPU seconds of this process by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.seconds[name] += time.process_time() - begun


def _print_memory(folder: Path, scratch: Path, known: dict[int, Measured], sizes: list[int]) -> None:
    for size in sizes:
        if size not in known:
            known[size] = _ours(made(folder, size), scratch / f"out-memory-{size}", 2)
    rows = [
        (f"{s:,} MB", f"{known[s].peak_mb:,.0f}", f"{known[s].wall_s:.0f}", f"{known[s].cpu_s:.0f}")
        for s in sorted(known)
    ]
    print("\nPeak memory of all processes together, 2 workers\n")
    print(measure.table(("XML", "peak MB", "wall s", "CPU s"), rows))


def _print_checks(scratch: Path, part: Path, theirs: Counter[str]) -> None:
    print("\nChecks\n")
    one, two = (_content(scratch / f"out-{n}") for n in (1, 2))
    print(f"- one worker's files are two workers', byte for byte: {_verdict(one == two)} ({len(one)} files)")
    out = scratch / "out-part"
    _ours(
        part, out, 1, "--min-count", "1", "--bigram-min-count", "3", "--size", "10000000", "--pmi-min", "-99"
    )
    rows = pq.read_table(sorted(out.glob("part-*.parquet"))).to_pylist()
    counts = {r["query"]: r["count"] for r in rows if "word" in r["sources"]}
    if theirs:
        distance = (
            sum(abs(counts.get(w, 0) - theirs[w]) for w in counts.keys() | theirs.keys()) / theirs.total()
        )
        frequent = [{w for w, n in c.items() if n >= 100} for c in (counts, theirs)]
        jaccard = len(frequent[0] & frequent[1]) / len(frequent[0] | frequent[1])
        print(
            f"- word counts against mwparserfromhell's walk: L1 {distance:.4f} of all words, Jaccard of words seen "
            f"100 times {jaccard:.4f}: {_verdict(distance < 0.02 and jaccard >= 0.98)}"
        )
    scored = {r["query"]: r["pmi"] for r in rows if r["pmi"] is not None}
    expected = _plain_pmi(part)
    worst = max(abs(expected[pair] - value) for pair, value in scored.items())
    same = scored.keys() == expected.keys() and worst < 1e-9
    print(
        f"- PMI of all {len(scored):,} pairs of the part against plain Python: off by {worst:.1e}: {_verdict(same)}"
    )


def _verdict(good: bool) -> str:
    return "yes" if good else "NO"


def _content(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*.parquet"))}


def _plain_pmi(part: Path) -> dict[str, float]:
    """PMI of every pair seen three times, by regular expressions and Counters."""
    from queries.wikitext import plain_text

    unigrams: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for text in articles(str(part)):
        for run in _runs(fold(plain_text(text))):
            unigrams.update(run)
            pairs.update(itertools.pairwise(run))
    total = unigrams.total()
    return {
        f"{a} {b}": math.log2(n * total / (unigrams[a] * unigrams[b]))
        for (a, b), n in pairs.items()
        if n >= 3
    }


def _runs(text: str) -> Iterator[list[str]]:
    """Words between which no bigram ends."""
    run: list[str] = []
    for match in re.finditer(rf"({WORD})|[^\w\s-]+|\n\s*|(?<=\s)-+|--+|-(?=\s)", text):
        if match[1] is not None:
            run.append(match[1])
        else:
            yield run
            run = []
    yield run


if __name__ == "__main__":
    main()
