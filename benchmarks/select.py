"""`python -m benchmarks.select`: the whole `wit select`, and MetaCLIP's curation beside it, in one run.

Candidates and queries are made by `benchmarks/captions.py`, which says how. `wit select` runs as a command with one
and with two workers, by default with the `fasttext-lite` backend; its parts are told from outside by the files that it
has written. The peer is MetaCLIP's published algorithm (matching by an automaton, counts, sampling with
P = 1 - Π(1 - t / max(count, t))) re-expressed with pyahocorasick (`pip install pyahocorasick`) and with our keyed hash
for its random numbers, so that it must keep the very same pairs as `wit select --mode sample --matching metaclip`. It
reads cleaned texts without duplicates, as it does neither.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import captions, measure
from benchmarks.match import AhoCorasick
from benchmarks.measure import Measured, say
from pipeline.core import tables
from pipeline.core.contracts import CANDIDATES, QUERIES
from pipeline.core.tokens import fold
from pipeline.select.balance import draw, pair_hash
from pipeline.select.config import SelectConfig
from pipeline.select.filter import filter_and_match, make_tools
from pipeline.text import rules
from pipeline.text.clean import clean
from pipeline.text.language import LanguageDetector, make_detector
from pipeline.text.safety import offensive_term
from pipeline.text.vocabulary import english_words

TWO_WORKERS: Final = ("--", "--direct_num_workers=2", "--direct_running_mode=multi_processing")
PEERS_CAP: Final = 200
"""MetaCLIP's t for the peer's million: 20,000 would bind almost nowhere."""
STEP_ROWS: Final = 2 * captions.BLOCK
PHASES: Final = ("start", "filter and match", "balance", "write")


def main() -> None:
    """Makes the data, runs everything, prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.select", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="candidates (1,000,000)")
    parser.add_argument("--queries", type=int, default=500_000, metavar="N", help="(500,000)")
    parser.add_argument("--cap", type=int, default=20_000, metavar="N", help="(20,000)")
    parser.add_argument("--language", default="fasttext-lite", metavar="NAME", help="(fasttext-lite)")
    parser.add_argument("--workers", default="1,2", metavar="N,N", help="(1,2)")
    parser.add_argument(
        "--part-rows", type=int, default=1_000_000, metavar="N",
        help="candidates of the peer and of the checks with other input (1,000,000 or all)",
    )  # fmt: skip
    parser.add_argument("--folder", metavar="DIR", help="where data is made and kept (a temporary folder)")
    parser.add_argument("--peer", nargs=3, metavar="PATH", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        metaclip(*given.peer)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        _benchmark(given, folder, Path(temporary))


def _benchmark(given: argparse.Namespace, folder: Path, scratch: Path) -> None:
    say(f"making {given.queries:,} queries and {given.rows:,} candidates …")
    made = captions.Captions(given.queries)
    queries = captions.write_queries(folder / "queries", made.queries)
    whole = captions.write_candidates(folder / f"candidates-{given.rows}", made, given.rows)
    size = min(given.part_rows, given.rows)
    part = captions.write_candidates(folder / f"candidates-{size}", made, size)
    del made
    inputs = ("--queries", queries, "--cap", str(given.cap), "--language", given.language)
    select(
        (*inputs, "--candidates", captions_of(folder, part, 1000)), scratch / "out-first", 1
    )  # compiles once
    print(f"\n{given.rows:,} candidates, {given.queries:,} queries, {given.language}; {_cpus()} CPUs\n")
    ours = {
        workers: select((*inputs, "--candidates", whole), scratch / f"out-{workers}", workers)
        for workers in map(int, given.workers.split(","))
    }
    _print_ours(ours, given.rows)
    _print_steps(whole, queries, given.rows)
    _print_peer(part, queries, scratch, size)
    print("\nChecks\n")
    outs = [scratch / f"out-{workers}" for workers in ours]
    for out in outs:
        print(f"- {out.name}: {_totals(out, given.rows, given.cap)}")
    if len(outs) > 1:
        same = len({_digest(out) for out in outs}) == 1
        print(
            f"- the files of {' and '.join(o.name for o in outs)} are equal, byte for byte: {_verdict(same)}"
        )
    _print_input_checks(part, inputs, scratch, size)


def captions_of(folder: Path, part: str, rows: int) -> str:
    """The first rows of a folder of candidates as a folder."""
    table = next(tables.read_batches(tables.part_files(part, CANDIDATES), batch_rows=rows))
    return captions.write_blocks(
        folder / f"first-{rows}", [CANDIDATES.conform(pa.Table.from_batches([table]))], captions.Made(rows)
    )


def select(arguments: Sequence[str], out: Path, workers: int) -> Measured:
    """Runs `wit select`."""
    say(f"wit select, {workers} worker{'s' if workers > 1 else ''}, {out.name} …")
    found = measure.run(_command(arguments, out, workers), _phase_of(out))
    say(f"  {found.wall_s:,.0f} s, {found.cpu_s:,.0f} CPU s, {found.peak_mb:,.0f} MB")
    return found


def _command(arguments: Sequence[str], out: Path, workers: int) -> list[str]:
    wit = [sys.executable, "-m", "pipeline", "select", "--quiet", *arguments, "--out", str(out)]
    return [*wit, *(TWO_WORKERS if workers == 2 else ())]


def _phase_of(out: Path) -> Callable[[], str]:
    work, reached = out / ".work", 0

    def phase() -> str:
        nonlocal reached
        signs = ((out / ".rows.tmp", 3), (work / "by-caption", 2), (work / "matched", 1))
        reached = max(reached, *(number if sign.exists() else 0 for sign, number in signs))
        return PHASES[reached]

    return phase


def _print_ours(ours: dict[int, Measured], rows: int) -> None:
    lines = []
    for workers, found in ours.items():
        name = f"{workers} worker{'s' if workers > 1 else ''}"
        phases = {f"{name}: {phase}": (p.wall_s, p.cpu_s, p.peak_mb) for phase, p in found.phases.items()}
        for what, (wall, cpu, peak) in {
            **phases,
            f"**{name}, all**": (found.wall_s, found.cpu_s, found.peak_mb),
        }.items():
            lines.append(
                (what, f"{wall:,.1f}", f"{cpu:,.1f}", _rate(rows, wall), _rate(rows, cpu), f"{peak:,.0f}")
            )
    head = ("`wit select`", "wall s", "CPU s", "rows/s", "rows per CPU s", "peak MB of all processes")
    print(measure.table(head, lines))


def _print_steps(candidates: str, queries: str, rows: int) -> None:
    say("steps …")
    files = tables.part_files(candidates, CANDIDATES)
    batches = list(islice(tables.read_batches(files, batch_rows=8_192), STEP_ROWS // 8_192))
    count = sum(b.num_rows for b in batches)
    seconds = steps(batches, queries)
    print(f"\nSteps of the filter, of {count:,} rows in this process\n")
    lines = [(name, f"{s / count * 1e6:.1f}", f"{s / count * rows:,.0f}") for name, s in seconds.items()]
    print(measure.table(("step", "µs/row", f"CPU s for {rows:,}"), lines))
    extra = seconds["language: cascade"] - seconds["language: fasttext-lite"]
    print(f"\nThe cascade costs {extra / count * rows:,.0f} CPU s more than `fasttext-lite` for all rows.")


def steps(batches: Sequence[pa.RecordBatch], queries: str) -> dict[str, float]:
    """CPU seconds of the filter's steps, each alone; what passes one is what the next gets."""
    listed = tables.read_folder(queries, QUERIES, columns=["query_id", "query", "sources"])
    config = SelectConfig(candidates="-", queries="-", language="fasttext-lite")
    tools = make_tools(listed, config)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        seconds[name] = time.process_time() - started
        return result

    found = [
        row
        for b in batches
        for row in zip(*(b[n].to_pylist() for n in ("text", "page_language")), strict=True)
    ]
    cleaned = timed("clean", lambda: [clean(text) for text, _ in found])
    broken = timed("rules", lambda: [rules.broken_rule(text, rules.PRESETS["clip"]) for text in cleaned])
    left = [(t, page) for t, (_, page), reason in zip(cleaned, found, broken, strict=True) if not reason]
    vocabulary = list(english_words(zip(*(listed[n].to_pylist() for n in ("query", "sources")), strict=True)))
    english: list[str] = []
    for name in ("fasttext-lite", "cascade"):
        detector = make_detector(name, vocabulary)
        detector.detect("a red bus", None)  # loads what it needs
        codes = timed(f"language: {name}", functools.partial(_codes, detector, left))
        english = english or [t for (t, _), code in zip(left, codes, strict=True) if code == "en"]
    timed("word list", lambda: [offensive_term(text) for text in english])
    arrow = pa.array(english)
    timed("match", lambda: tools.matcher.match(arrow))
    whole = [CANDIDATES.conform(pa.Table.from_batches([batch])) for batch in batches]
    timed("all of them, with hashes and Arrow", lambda: [filter_and_match(table, tools) for table in whole])
    return seconds


def _codes(detector: LanguageDetector, texts: Sequence[tuple[str, str | None]]) -> list[str]:
    return [detector.detect(text, page).code for text, page in texts]


def _print_peer(part: str, queries: str, scratch: Path, rows: int) -> None:
    """MetaCLIP's way against ours on cleaned, different texts, sampled with the same draws."""
    say("cleaning the peer's candidates …")
    plain = captions.write_blocks(scratch / "plain", _different(part), captions.Made(rows), part_rows=rows)
    count = tables.count_rows(tables.part_files(plain, CANDIDATES))
    metaclips = ("--mode", "sample", "--matching", "metaclip", "--cap", str(PEERS_CAP))
    unfiltered = ("--rules", "none", "--language", "none", "--keep-offensive")
    everything = ("--max-images-per-caption", str(count + 1))
    arguments = ("--candidates", plain, "--queries", queries, *metaclips, *unfiltered, *everything)
    ours = select(arguments, scratch / "out-sample", 1)
    say("MetaCLIP's way …")
    file = scratch / "metaclip.jsonl"
    peer = [sys.executable, "-m", "benchmarks.select", "--peer", plain, queries, str(file)]
    theirs = measure.run(peer)
    parts = sorted((scratch / "out-sample").glob("part-*.parquet"))
    kept = set(pq.read_table(parts, columns=["pair_id"])["pair_id"].to_pylist())
    with file.open(encoding="utf-8") as written:
        peers = {json.loads(line)["pair_id"] for line in written}
    print(
        f"\nMetaCLIP's rule, t = {PEERS_CAP}, {count:,} cleaned texts without duplicates, one process each\n"
    )
    lines = [
        (
            name,
            f"{m.wall_s:.1f}",
            f"{m.cpu_s:.1f}",
            f"{m.cpu_s / count * 1e6:.1f}",
            f"{m.peak_mb:,.0f}",
            f"{pairs:,}",
        )
        for name, m, pairs in (
            ("`wit select`: cleans, unites, matches, samples, writes all columns", ours, len(kept)),
            ("pyahocorasick: matches, samples, writes id, URL and text", theirs, len(peers)),
        )
    ]
    print(measure.table(("what", "wall s", "CPU s", "µs/row", "peak MB", "pairs kept"), lines))
    print()
    print(measure.table(("part of the peer", "CPU s"), json.loads(theirs.output).items()))
    print(f"\nBoth kept the same pairs: {_verdict(kept == peers)}")


def _different(part: str) -> Iterator[pa.Table]:
    """Candidates with cleaned texts, one of each URL and folded text, none empty."""
    seen: set[bytes] = set()
    for batch in tables.read_batches(tables.part_files(part, CANDIDATES)):
        texts = [clean(text) for text in batch["text"].to_pylist()]
        keep = []
        for row, (url, text) in enumerate(zip(batch["url"].to_pylist(), texts, strict=True)):
            key = hashlib.blake2b(f"{url}\0{fold(text)}".encode(), digest_size=16).digest()
            if text and key not in seen:
                seen.add(key)
                keep.append(row)
        table = pa.Table.from_batches([batch])
        yield table.set_column(table.column_names.index("text"), "text", pa.array(texts)).take(pa.array(keep))


def metaclip(candidates: str, queries: str, out: str) -> None:
    """MetaCLIP's curation by pyahocorasick: substring matching, counts over all, sampling; prints seconds as JSON."""
    clock = [time.process_time()]
    listed = tables.read_folder(queries, QUERIES, columns=["query_id", "query"]).sort_by("query_id")
    automaton = AhoCorasick(listed["query"].to_pylist(), "metaclip")
    clock.append(time.process_time())
    held = tables.read_folder(candidates, CANDIDATES, columns=["pair_id", "url", "text"])
    ids, urls, texts = (held[name].to_pylist() for name in ("pair_id", "url", "text"))
    clock.append(time.process_time())
    counts, found = automaton.match(texts)
    clock.append(time.process_time())
    entry_count = np.bincount(found, minlength=listed.num_rows)
    probability = PEERS_CAP / np.maximum(entry_count, PEERS_CAP)
    owner = np.repeat(np.arange(len(texts)), counts)
    won = draw(pair_hash(ids, 0)[owner], found) < probability[found]
    kept = np.unique(owner[won])
    clock.append(time.process_time())
    with open(out, "w", encoding="utf-8") as file:
        for row in kept.tolist():
            file.write(json.dumps({"pair_id": ids[row], "url": urls[row], "text": texts[row]}) + "\n")
    clock.append(time.process_time())
    names = ("build the automaton", "read", "match", "count and sample", "write")
    print(json.dumps(dict(zip(names, (f"{s:.1f}" for s in np.diff(clock)), strict=True))))


def _print_input_checks(part: str, inputs: Sequence[str], scratch: Path, rows: int) -> None:
    """The same candidates in another order, and a run that was killed and started again, give the same files."""
    plain, mixed, killed = (scratch / f"out-{name}" for name in ("part", "mixed", "killed"))
    select((*inputs, "--candidates", part), plain, 2)
    wanted = _digest(plain)
    say("shuffling …")
    shuffled = captions.write_shuffled(scratch / "shuffled", tables.part_files(part, CANDIDATES), rows)
    select((*inputs, "--candidates", shuffled), mixed, 1)
    print(
        f"- {rows:,} rows in another order, in other parts: the same files: {_verdict(_digest(mixed) == wanted)}"
    )
    done = _kill_midway(_command((*inputs, "--candidates", part), killed, 1), killed)
    select((*inputs, "--candidates", part), killed, 1)
    same = _digest(killed) == wanted
    print(f"- killed after {done} row groups and started again: the same files: {_verdict(same)}")


def _kill_midway(command: Sequence[str], out: Path) -> int:
    """Kills a run when its filter has written a few row groups; returns how many."""
    say("killing one …")
    with subprocess.Popen(command, start_new_session=True) as process:
        while len(done := list((out / ".work" / "matched").glob("*.parquet"))) < 3 and process.poll() is None:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if (out / "manifest.json").exists():
        raise RuntimeError("the run ended before it could be killed: pass more --part-rows")
    return len(done)


def _totals(out: Path, rows: int, cap: int) -> str:
    """Whether what came in is what went out, in every table, and no query counts more than the cap."""
    manifest = json.loads((out / "manifest.json").read_text())
    counts = pq.read_table(out / "query-counts.parquet")
    most, selected = pc.max(counts["selected"]).as_py(), pc.sum(counts["selected"]).as_py()
    pairs = tables.count_rows(map(str, out.glob("part-*.parquet")))
    dropped = tables.count_dropped(str(out))
    adds_up = (
        manifest["rows_in"] == rows == pairs + sum(dropped.values())
        and manifest["rows"] == pairs == selected
        and manifest["dropped"] == dropped
        and most <= cap
    )
    reasons = ", ".join(f"{reason} {times:,}" for reason, times in dropped.items())
    lost = f"{sum(dropped.values()):,} dropped ({reasons})"
    return f"{rows:,} in = {pairs:,} pairs + {lost}; most of a query {most:,}: {_verdict(adds_up)}"


def _digest(out: Path) -> str:
    """Of all tables of a folder, with their names."""
    digest = hashlib.blake2b()
    for file in sorted(out.rglob("*.parquet")):
        digest.update(str(file.relative_to(out)).encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "blake2b").digest())
    return digest.hexdigest()


def _rate(rows: int, seconds: float) -> str:
    return f"{rows / seconds:,.0f}" if seconds > 0.05 else ""


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _verdict(good: bool) -> str:
    return "yes" if good else "NO"


if __name__ == "__main__":
    main()
