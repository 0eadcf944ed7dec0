"""`python -m benchmarks.detector --packages DIR [--detector DIR]`: the detector beside perceptual hashes, in one run.

48 pictures of a gallery are altered in 51 graded ways and looked up again; 500 queries are altered pictures of the same
kinds that the gallery does not hold. Each method has one similarity and one threshold. Micro-AP ranks the ten nearest
of all queries together; recall is the share of present queries whose own picture is found at the loosest threshold
that keeps 99 % precision. Then follow the two failures that the paper names (:mod:`benchmarks.detector_failures`).
Peers: `pip install imagehash pdqhash opencv-python-headless` first.
"""

from __future__ import annotations

import argparse
import importlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

from benchmarks.detector_failures import tables
from benchmarks.detector_pictures import Item, stored
from benchmarks.detector_transforms import BEYOND, PAPER, TRANSFORMS
from dedup import fused
from dedup.folder import Loaded, load

SOURCES, ABSENT, LEFT_OUT, K = 48, 500, 125, 10
Embed = Callable[[Sequence[Image.Image]], np.ndarray]
PRECISION: Final = 0.99


@dataclass(frozen=True)
class Query:
    """An altered picture: what was done, and its place in the gallery or -1."""

    transform: str
    target: int
    photograph: bool
    image: Image.Image


def questions(items: Sequence[Item], seed: int, per: int = SOURCES) -> tuple[list[Image.Image], list[Query]]:
    """The gallery and the queries: the first pictures are left out, the next are sources, half photographs."""
    out, gallery = items[:LEFT_OUT], items[LEFT_OUT:]
    order = random.Random(seed).sample(range(len(gallery)), len(gallery))
    sources = [i for i in order if gallery[i].photograph][: per // 2]
    sources += [i for i in order if not gallery[i].photograph][: per - per // 2]
    made = [
        Query(name, i, gallery[i].photograph, alter(gallery[i].image, random.Random(f"{seed} {name} {i}")))
        for name, alter in TRANSFORMS.items()
        for i in sources
    ]
    names = list(TRANSFORMS)
    for number in range(ABSENT):
        item, name = out[number % len(out)], names[number * 7 % len(names)]
        draw = random.Random(f"{seed} {name} absent {number}")
        made.append(Query(name, -1, item.photograph, TRANSFORMS[name](item.image, draw)))
    return [item.image for item in gallery], made


@dataclass(frozen=True)
class Scores:
    """Similarities [Q, K] of each query's nearest, and whether they are its own picture."""

    similarity: np.ndarray
    right: np.ndarray

    def part(self, chosen: np.ndarray) -> Scores:
        """Some queries."""
        return Scores(self.similarity[chosen], self.right[chosen])

    def micro_ap(self, present: int) -> float:
        """Average precision over all pairs ranked together; wrong pairs first among equals."""
        right = self._ranked()
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        return float((precision * right).sum() / present)

    def recall_at(self, present: int, precision: float) -> tuple[float, float]:
        """The most recall at some precision, and the similarity from which on it is reached."""
        order = np.lexsort((self.right.ravel(), -self.similarity.ravel()))
        right = self.right.ravel()[order]
        values = self.similarity.ravel()[order]
        last = np.append(values[1:] < values[:-1], True)  # a threshold takes all equals
        enough = np.flatnonzero((np.cumsum(right) / np.arange(1, len(right) + 1) >= precision) & last)
        if not len(enough):
            return 0.0, float("inf")
        return float(right[: enough[-1] + 1].sum() / present), float(values[enough[-1]])

    def _ranked(self) -> np.ndarray:
        return self.right.ravel()[np.lexsort((self.right.ravel(), -self.similarity.ravel()))]


def nearest(gallery: np.ndarray, queries: np.ndarray, targets: np.ndarray) -> Scores:
    """The ``K`` most alike pictures of each query, by the inner product of vectors of length 1."""
    similarity = np.round(queries @ gallery.T, 6)
    # Equal similarities are no reason to prefer the right one.
    place = np.argsort(-similarity, axis=1, kind="stable")[:, :K]
    return Scores(np.take_along_axis(similarity, place, axis=1), place == targets[:, None])


@dataclass(frozen=True)
class Result:
    """A method's scores on the queries."""

    name: str
    dimension: int
    cpu_ms: float
    scores: Scores
    threshold: float | None = None


def run(
    name: str,
    embed: Embed,
    gallery: Sequence[Image.Image],
    queries: Sequence[Query],
    threshold: float | None = None,
) -> Result:
    """Embeds and looks up."""
    began = time.process_time()
    known = embed(gallery)
    asked = embed([q.image for q in queries])
    took = (time.process_time() - began) / (len(gallery) + len(queries))
    targets = np.array([q.target for q in queries])
    return Result(name, known.shape[1], 1000 * took, nearest(known, asked, targets), threshold)


def ours(loaded: Loaded) -> Embed:
    """The detector: preparing and embedding, without decoding."""

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        parts = []
        for start in range(0, len(images), 64):
            pixels = [loaded.detector.looks(x) for x in images[start : start + 64]]
            parts.append(fused.embed(loaded.detector, np.stack(pixels)))
        return np.concatenate(parts)

    return embed


def peers() -> dict[str, Embed]:
    """Perceptual hashes as vectors of +1 and -1 of length 1, whose inner product falls as bits differ."""
    hashes, pdq = importlib.import_module("imagehash"), importlib.import_module("pdqhash")

    def vectors(bits: Callable[[Image.Image], np.ndarray]) -> Embed:
        def embed(images: Sequence[Image.Image]) -> np.ndarray:
            found = np.stack([np.asarray(bits(image)).ravel().astype(np.float32) * 2 - 1 for image in images])
            return found / np.sqrt(found.shape[1])

        return embed

    return {
        "pHash 64": vectors(lambda image: hashes.phash(image).hash),
        "pHash 256": vectors(lambda image: hashes.phash(image, hash_size=16).hash),
        "PDQ": vectors(lambda image: pdq.compute(np.asarray(image))[0]),
    }


def table(results: Sequence[Result], queries: Sequence[Query]) -> None:
    """Prints the methods' figures, then their micro-AP by transform."""
    kinds = np.array([q.transform for q in queries])
    present = np.array([q.target >= 0 for q in queries])
    photograph = np.array([q.photograph for q in queries])
    paper = np.isin(kinds, list(PAPER))
    print(
        "| method | d | CPU ms per picture | micro-AP | recall at 99 % | paper's: micro-AP | R@1 | recall at 99 % "
        "| beyond: micro-AP | photographs | drawings | false alarms there | at the shipped threshold: recall (paper's) "
        "| precision | false alarms |\n|" + " --- |" * 15
    )
    for r in results:
        recall, bar = r.scores.recall_at(int(present.sum()), PRECISION)
        parts = [
            (paper | ~present, int((paper & present).sum())),
            (~paper | ~present, int((~paper & present).sum())),
            (photograph, int((photograph & present).sum())),
            (~photograph, int((~photograph & present).sum())),
        ]
        micro = [r.scores.part(chosen).micro_ap(count) for chosen, count in parts]
        of_paper, _ = r.scores.part(parts[0][0]).recall_at(parts[0][1], PRECISION)
        first = r.scores.right[paper & present, 0].mean()
        alarms = (r.scores.similarity[~present, 0] >= bar).mean()
        shipped = "| | "
        if r.threshold is not None:
            above = r.scores.similarity >= r.threshold
            found = (r.scores.right & above)[paper & present].any(axis=1).mean()
            exact = (r.scores.right & above).sum() / max(1, above.sum())
            shipped = f"{found:.3f} | {exact:.3f} | {above[~present, 0].mean():.3f}"
        print(
            f"| {r.name} | {r.dimension} | {r.cpu_ms:.1f} | {r.scores.micro_ap(int(present.sum())):.3f} | {recall:.3f} "
            f"| {micro[0]:.3f} | {first:.3f} | {of_paper:.3f} | {micro[1]:.3f} | {micro[2]:.3f} | {micro[3]:.3f} "
            f"| {alarms:.3f} | {shipped} |"
        )
    print(
        "\n| micro-AP / R@1 | "
        + " | ".join(r.name for r in results)
        + " |\n|"
        + " --- |" * (len(results) + 1)
    )
    for name in TRANSFORMS:
        chosen = (kinds == name) | ~present
        one = (kinds == name) & present
        cells = [
            f"{r.scores.part(chosen).micro_ap(int(one.sum())):.2f}/{r.scores.right[one, 0].mean():.2f}"
            for r in results
        ]
        print(f"| {name}{' *' if name in BEYOND else ''} | " + " | ".join(cells) + " |")


def main() -> None:
    """Runs the benchmark."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--packages", type=Path, required=True, help="where packages are or are fetched to")
    made.add_argument("--detector", nargs="*", default=[], help="folders of `wit dedup train`")
    made.add_argument("--seed", type=int, default=7)
    made.add_argument("--per", type=int, default=SOURCES, help="sources of each transform")
    made.add_argument("--no-peers", action="store_true")
    options = made.parse_args()
    torch.set_num_threads(1)
    items = stored(options.packages)
    gallery, queries = questions(items, options.seed, options.per)
    print(f"gallery {len(gallery)}, queries {len(queries)}, of them absent {ABSENT}\n")
    methods = {} if options.no_peers else peers()
    shipped: dict[str, float | None] = {}
    for folder in options.detector:
        loaded = load(folder)
        methods[folder] = ours(loaded)
        shipped[folder] = loaded.threshold
    results = [run(name, embed, gallery, queries, shipped.get(name)) for name, embed in methods.items()]
    table(results, queries)
    present = sum(q.target >= 0 for q in queries)
    bars = {r.name: [r.scores.recall_at(present, PRECISION)[1]] for r in results}
    for name, threshold in shipped.items():
        bars[name] += [] if threshold is None else [threshold]
    tables(methods, bars, options.packages, items)


if __name__ == "__main__":
    main()
