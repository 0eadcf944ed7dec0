"""The two failures that the paper names: textures halved by different filters, and things that only look alike.

Textures are those of a game that no detector here was trained on, the ones that lose most when they are halved. Each
is looked up by its halves, by every filter, among all of them: the paper's detector missed such pairs. Alike are two
designers' drawings of one thing, and every picture with the one of its source that its thumbnail is nearest to: the
paper's detector took such pairs for copies. `benchmarks.detector` prints both tables.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.detector_pictures import EMOJI, Item
from dedup.detector import decode
from examples.packages import debian

PACKAGE: Final = "warzone2100-data"
FOLDERS: Final = ("texpages/",)
# Smaller copies of the same tiles.
LEFT_OUT: Final = ("hw-64/", "hw-32/", "hw-16/")
TEXTURES, SIDE, TWIN = 120, 256, 0.9
_SETS: Final = tuple(package.replace("/", " ") for package in EMOJI)
Embed = Callable[[Sequence[Image.Image]], np.ndarray]


def textures(packages: Path) -> list[Image.Image]:
    """The textures that lose most by halving, none of them nearly another one, largest loss first."""
    lost: list[tuple[float, int]] = []
    found: list[Image.Image] = []
    thumbnails: list[np.ndarray] = []
    for data in _stored(packages):
        image = decode(data)
        if min(image.size) < 64:
            continue
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        small = thumbnail(image)
        if not small.any() or (thumbnails and float((np.stack(thumbnails) @ small).max()) > TWIN):
            continue
        thumbnails.append(small)
        lost.append((-loss(image), len(found)))
        found.append(image)
    return [found[place] for _, place in sorted(lost)[:TEXTURES]]


def loss(image: Image.Image) -> float:
    """Share of a picture's variance that is gone once it was halved and enlarged again."""
    grey = np.asarray(image.convert("L"), np.float32)
    half = image.convert("L").resize(
        (max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX
    )
    back = np.asarray(half.resize(image.size, Image.Resampling.BILINEAR), np.float32)
    return float(((grey - back) ** 2).mean() / max(float(grey.var()), 1e-6))


def thumbnail(image: Image.Image) -> np.ndarray:
    """Grey, 16 x 16, centred, of length 1; zeros for pictures of one colour: float32 [256]."""
    small = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX), np.float32).reshape(-1)
    small = small - small.mean()
    length = float(np.linalg.norm(small))
    return small / length if length > 16 else np.zeros_like(small)


def halves(images: Sequence[Image.Image]) -> tuple[list[Image.Image], np.ndarray]:
    """Every picture halved by each of Pillow's six filters, and its place: int64 [6 N]."""
    made = [
        image.resize((max(1, image.width // 2), max(1, image.height // 2)), kind)
        for kind in Image.Resampling
        for image in images
    ]
    return made, np.tile(np.arange(len(images)), len(Image.Resampling))


def alike(items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different pictures that look alike.

    Returns:
        The drawings of one thing by two designers, and each picture with the nearest of its source: int64 [P, 2] each.
    """
    first, second = (
        {_thing(x): place for place, x in enumerate(items) if _source(x) == one} for one in _SETS
    )
    drawn = [(first[name], second[name]) for name in sorted(first.keys() & second.keys())]
    sources = np.array([_source(item) for item in items])
    thumbnails = np.stack([thumbnail(item.image) for item in items])
    likeness = np.where(sources[:, None] == sources[None, :], thumbnails @ thumbnails.T, -1)
    np.fill_diagonal(likeness, -1)
    nearest = likeness.argmax(axis=1)
    pairs = sorted({(min(a, b), max(a, b)) for a, b in enumerate(nearest.tolist()) if likeness[a, b] > 0})
    return np.array(drawn, np.int64).reshape(-1, 2), np.array(pairs, np.int64).reshape(-1, 2)


def below(embeddings: np.ndarray, pairs: np.ndarray, threshold: float) -> float:
    """Share of pairs that are less alike than a threshold."""
    return float(((embeddings[pairs[:, 0]] * embeddings[pairs[:, 1]]).sum(axis=1) < threshold).mean())


def tables(
    methods: Mapping[str, Embed], bars: Mapping[str, Sequence[float]], packages: Path, items: Sequence[Item]
) -> None:
    """Prints both tables; ``bars`` are each method's thresholds, that of 99 % precision first."""
    from benchmarks.detector import PRECISION, nearest

    images = textures(packages)
    queries, targets = halves(images)
    print(
        f"\n{len(images)} textures, each halved by six filters:\n"
        "| method | micro-AP | R@1 | recall at 99 % | least recall of a filter there |\n|" + " --- |" * 5
    )
    for name, embed in methods.items():
        scores = nearest(embed(images), embed(queries), targets)
        recall, bar = scores.recall_at(len(queries), PRECISION)
        found = (scores.right & (scores.similarity >= bar)).any(axis=1).reshape(len(Image.Resampling), -1)
        first = scores.right[:, 0].mean()
        least = found.mean(axis=1).min()
        print(f"| {name} | {scores.micro_ap(len(queries)):.3f} | {first:.3f} | {recall:.3f} | {least:.3f} |")
    drawn, near = alike(items)
    print(
        f"\nShare below the threshold of {len(drawn)} pairs of one thing drawn by two designers, and of {len(near)} "
        "pairs of nearest pictures of one source:\n"
        "| method, threshold | two designers | nearest of one source |\n|" + " --- |" * 3
    )
    for name, embed in methods.items():
        embeddings = embed([item.image for item in items])
        for bar, what in zip(bars[name], ("of 99 % precision", "shipped"), strict=False):
            shares = f"{below(embeddings, drawn, bar):.4f} | {below(embeddings, near, bar):.4f}"
            print(f"| {name}, {what} ({bar:.3f}) | {shares} |")


def _source(item: Item) -> str:
    parts = item.name.split(" ")
    return " ".join(parts[:2]) if item.name.startswith("@") else parts[0]


def _thing(item: Item) -> str:
    return item.name.rpartition(" ")[2].replace("-", "")


def _stored(packages: Path) -> list[bytes]:
    files = (path.read_bytes() for name, path in debian(PACKAGE, packages) if name.endswith("/base.wz"))
    with zipfile.ZipFile(io.BytesIO(next(files))) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith((".png", ".jpg")))
        wanted = [n for n in names if n.startswith(FOLDERS) and not any(part in n for part in LEFT_OUT)]
        return [opened.read(name) for name in wanted]
