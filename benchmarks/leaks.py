"""The demo's planted leaks, found by several detectors with thresholds that the review's own procedure sets.

Usage: ``make demo``, then ``python -m benchmarks.leaks demo [--detector NAME…]``. The answers come from the world's
truth file instead of a person: a pair is the same if it is an evaluation picture and its planted copy.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from dedup.config import EmbedConfig, SearchConfig
from dedup.embed import run as embed
from dedup.review.labels import DIFFERENT, SAME
from dedup.review.main import open_session
from dedup.review.session import ENOUGH, Session
from dedup.search import run as search
from pipeline.core import tables
from pipeline.core.stage import RunOptions
from pipeline.demo.world import EVALUATION, FIRST_PORT, find, leaks

SHIPPED, DEMO = "the one that ships", "the demo's own"


def urls_of(shards: str) -> dict[str, str]:
    """URL of each stored training picture by its id."""
    files = sorted(str(f) for f in Path(shards).glob("*.parquet"))
    rows = tables.read_files(files, columns=["pair_id", "url", "status"])
    stored = rows.filter(pc.equal(rows["status"], "success"))
    return dict(zip(stored["pair_id"].to_pylist(), stored["url"].to_pylist(), strict=True))


@contextmanager
def neighbours(demo: str, detector: str) -> Iterator[str]:
    """The folder of a search with a detector; the demo has made one with its own."""
    if detector == DEMO:
        yield f"{demo}/neighbours"
        return
    options = RunOptions(quiet=True)
    with tempfile.TemporaryDirectory() as made:
        named = None if detector == SHIPPED else detector
        for name, images in (("train", f"{demo}/shards"), (EVALUATION, f"{demo}/world/{EVALUATION}")):
            embed(EmbedConfig(images=(images,), detector=named, dataset=name), f"{made}/{name}", options)
        search(SearchConfig(train=f"{made}/train", eval=(f"{made}/{EVALUATION}",)), f"{made}/found", options)
        yield f"{made}/found"


def review(session: Session, copies: dict[str, str], urls: dict[str, str]) -> int:
    """Answers what is asked, up to the number of labels at which a person may stop; returns how many."""
    pairs = session.sets[EVALUATION]
    for given in range(ENOUGH):
        asked = session.state(EVALUATION)["pair"]
        if asked is None:
            return given
        index = asked["index"]
        same = copies.get(pairs.eval_ids[index]) == urls[pairs.pair_ids[index]]
        session.answer(EVALUATION, index, SAME if same else DIFFERENT)
    return ENOUGH


def rates(session: Session, leaked: set[str], threshold: float) -> str:
    """Cells of the table: threshold, share found, precision."""
    pairs = session.sets[EVALUATION]
    reported = {n for n, s in zip(pairs.eval_ids, pairs.similarity, strict=True) if s >= threshold}
    found = len(reported & leaked)
    precision = found / len(reported) if reported else 0.0
    return f"{threshold:.4f} | {found} of {len(leaked)}: {found / len(leaked):.1%} | {precision:.1%}"


def best_possible(session: Session, leaked: set[str], *, precision: float) -> float:
    """The threshold that finds most at a wanted precision, by the truth."""
    pairs = session.sets[EVALUATION]
    hits = np.cumsum([name in leaked for name in pairs.eval_ids])
    good = hits / np.arange(1, len(hits) + 1) >= precision
    last = np.append(pairs.similarity[1:] < pairs.similarity[:-1], True)  # equal ones go together
    places = np.flatnonzero(good & last)
    return float(pairs.similarity[places[np.argmax(hits[places])]]) if len(places) else 1.0


def main() -> None:
    """Prints a table: each detector at its own, the reviewed and the best threshold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("demo", help="folder of `make demo`")
    parser.add_argument("--detector", action="append", default=[], help="a folder, phash or pdq")
    parser.add_argument("--port", type=int, default=FIRST_PORT, help="port of the demo's run")
    args = parser.parse_args()
    urls = urls_of(f"{args.demo}/shards")
    stored = set(urls.values())
    copies = {leak.eval_id: leak.url for leak in leaks(find(None), port=args.port) if leak.url in stored}
    leaked = set(copies)
    print("| detector | threshold | at | found | precision |")
    print("| --- | --- | ---: | ---: | ---: |")
    for detector in [DEMO, SHIPPED, *args.detector]:
        with neighbours(args.demo, detector) as folder, tempfile.TemporaryDirectory() as labels:
            session = open_session(folder, labels, train=[f"{args.demo}/shards"], reviewer="truth")
            pairs = session.sets[EVALUATION]
            given = review(session, copies, urls)
            reviewed = session.state(EVALUATION)["best"]["threshold"]
            perfect = best_possible(session, leaked, precision=session.precision)
            for name, threshold in (
                ("calibrated", pairs.working),
                (f"reviewed, {given} labels", reviewed),
                (f"best at {session.precision:.0%} by the truth", perfect),
            ):
                print(f"| {detector} | {name} | {rates(session, leaked, threshold)} |", flush=True)


if __name__ == "__main__":
    main()
