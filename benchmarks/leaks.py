"""The demo's planted leaks, found by several detectors with thresholds that the review's own procedure sets.

Usage: ``make demo``, then ``python -m benchmarks.leaks demo [--detector NAME…]``. The answers come from the world's
truth file instead of a person: a pair is the same if it is an evaluation picture and its planted copy. The demo's
detector is several, whose embeddings stand side by side: each alone, and with other shares than the demo's, is a
matter of scale, so nothing is embedded again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from dedup.config import EmbedConfig, SearchConfig
from dedup.embed import run as embed
from dedup.folder import load
from dedup.fused import Fused
from dedup.report import Best, best_matches
from dedup.review.labels import DIFFERENT, SAME, LabelFile
from dedup.review.session import ENOUGH, Session
from dedup.search import run as search
from pipeline.core import manifest, tables
from pipeline.core.contracts import EMBEDDINGS
from pipeline.core.stage import RunOptions
from pipeline.demo.world import EVALUATION, FIRST_PORT, find, leaks

STARTS = (0.90, 0.9265, 0.9365, 0.95)
SHARES = (0.5, 0.75)
PRECISION = 0.98


def urls_of(shards: str) -> dict[str, str]:
    """URL of each stored training picture by its id."""
    files = sorted(str(f) for f in Path(shards).glob("*.parquet"))
    rows = tables.read_files(files, columns=["pair_id", "url", "status"])
    stored = rows.filter(pc.equal(rows["status"], "success"))
    return dict(zip(stored["pair_id"].to_pylist(), stored["url"].to_pylist(), strict=True))


def embeddings(folder: str) -> tuple[list[str], np.ndarray]:
    """Ids and float32 [N, d] of a folder of embeddings, in the order of the ids."""
    table = tables.read_folder(folder, EMBEDDINGS, columns=["id", "embedding"]).sort_by("id")
    column = table["embedding"].combine_chunks()
    return table["id"].to_pylist(), column.flatten().to_numpy().reshape(len(column), -1)


def weighted(demo: str, widths: Sequence[int], shares: Sequence[float]) -> Best:
    """Each evaluation picture's nearest training picture, with other shares of the fused detector's members."""
    (ids, asked), (pair_ids, held) = (
        embeddings(f"{demo}/embeddings/{name}") for name in (EVALUATION, "train")
    )
    likeness = np.zeros((len(ids), len(pair_ids)))
    for place, width, share in zip(np.cumsum([0, *widths[:-1]]), widths, shares, strict=True):
        one, other = (made[:, place : place + width] for made in (asked, held))
        lengths = [np.linalg.norm(part, axis=1, keepdims=True) for part in (one, other)]
        likeness += share * ((one / lengths[0]) @ (other / lengths[1]).T)
    best = likeness.argmax(axis=1)
    return Best(
        ids=tuple(ids),
        pair_ids=tuple(pair_ids[i] for i in best),
        similarity=np.round(likeness[np.arange(len(ids)), best], 6),
    )


def other(demo: str, detector: str) -> tuple[Best, float | None]:
    """Likewise with another detector, and its calibrated threshold."""
    options = RunOptions(quiet=True)
    with tempfile.TemporaryDirectory() as made:
        for name, images in (("train", f"{demo}/shards"), (EVALUATION, f"{demo}/world/{EVALUATION}")):
            embed(EmbedConfig(images=(images,), detector=detector, dataset=name), f"{made}/{name}", options)
        search(SearchConfig(train=f"{made}/train", eval=(f"{made}/{EVALUATION}",)), f"{made}/found", options)
        return best_matches(f"{made}/found")[EVALUATION], manifest.read(f"{made}/found").extra.get(
            "threshold"
        )


def found(demo: str, detectors: Sequence[str]) -> Iterator[tuple[str, Best, float | None]]:
    """Each detector's name, what it finds nearest, and its calibrated threshold if it has one."""
    loaded = load(f"{demo}/detector")
    yield "the demo's", best_matches(f"{demo}/neighbours")[EVALUATION], loaded.threshold
    if isinstance(loaded.detector, Fused):
        widths = [part.dimension for part in loaded.detector.members]
        names = ["the one trained there, alone", "the one beside it (it ships), alone"]
        for name, shares in zip(names, ((1.0, 0.0), (0.0, 1.0)), strict=True):
            yield name, weighted(demo, widths, shares), None
        for share in SHARES:
            yield f"both, the share of the latter {share}", weighted(demo, widths, (1 - share, share)), None
    for detector in detectors:
        yield (detector, *other(demo, detector))


def reviewed(best: Best, start: float, copies: dict[str, str], urls: dict[str, str]) -> float:
    """The threshold proposed after as many labels as a person may stop at, given from the truth."""
    with tempfile.TemporaryDirectory() as folder:
        store = LabelFile(folder, "truth")
        session = Session(
            {EVALUATION: best}, {EVALUATION: start}, store, train=[], evals={}, precision=PRECISION
        )
        pairs = session.sets[EVALUATION]
        for _ in range(ENOUGH):
            asked = session.state(EVALUATION)["pair"]
            if asked is None:
                break
            index = asked["index"]
            same = copies.get(pairs.eval_ids[index]) == urls[pairs.pair_ids[index]]
            session.answer(EVALUATION, index, SAME if same else DIFFERENT)
        return float(session.state(EVALUATION)["best"]["threshold"])


def rates(best: Best, leaked: set[str], threshold: float) -> str:
    """A cell of the table: leaks found, precision."""
    reported = {n for n, s in zip(best.ids, best.similarity, strict=True) if s >= threshold}
    hits = len(reported & leaked)
    return f"{hits} at {hits / max(1, len(reported)):.1%}"


def best_possible(best: Best, leaked: set[str]) -> float:
    """The threshold that finds most at the wanted precision, by the truth."""
    order = np.argsort(-best.similarity, kind="stable")
    similarity = best.similarity[order]
    hits = np.cumsum([best.ids[i] in leaked for i in order])
    good = hits / np.arange(1, len(hits) + 1) >= PRECISION
    last = np.append(similarity[1:] < similarity[:-1], True)  # equal ones go together
    places = np.flatnonzero(good & last)
    return float(similarity[places[np.argmax(hits[places])]]) if len(places) else 1.0


def main() -> None:
    """Prints a table: each detector at its best, its own and the reviewed thresholds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("demo", help="folder of `make demo`")
    parser.add_argument("--detector", action="append", default=[], help="a folder, phash or pdq")
    parser.add_argument("--port", type=int, default=FIRST_PORT, help="port of the demo's run")
    args = parser.parse_args()
    urls = urls_of(f"{args.demo}/shards")
    stored = set(urls.values())
    copies = {leak.eval_id: leak.url for leak in leaks(find(None), port=args.port) if leak.url in stored}
    leaked = set(copies)
    starts = " | ".join(f"reviewed from {start}" for start in STARTS)
    print(f"| detector | best at {PRECISION:.0%}, by the truth | calibrated | {starts} |")
    print("| --- | ---: | ---: |" + " ---: |" * len(STARTS))
    for name, best, threshold in found(args.demo, args.detector):
        cells = [rates(best, leaked, best_possible(best, leaked))]
        cells.append("" if threshold is None else rates(best, leaked, threshold))
        cells += [rates(best, leaked, reviewed(best, start, copies, urls)) for start in STARTS]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
