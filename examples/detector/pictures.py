"""Fetches the pictures that the default detector is trained on, out of packages, and shrinks them into two folders.

    python -m examples.detector.pictures --packages DIR --out DIR

Debian's packages come with `apt-get download` (Debian 12, no root needed; a package that lies in ``--packages``
already is taken from there) and are opened with `dpkg-deb`; icons come with `npm pack` and are drawn by `resvg-py`; the
emoji are those of the small world. Nothing of it is committed. `examples/detector/README.md` has every licence.
Pictures that other projects judge detectors by are not among them, and must not be added: stamps, clip art, sample
images, wallpapers, photographs of web themes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dedup.detector import decode
from examples.packages import debian, npm

PACKAGES = (
    "nexuiz-textures",
    "openarena-081-textures",
    "ufoai-textures",
    "colobot-common-textures",
    "supertuxkart-data",
    "hedgewars-data",
    "supertux-data",
    "freeorion-data",
)
# Sets of icons and how many are drawn of each: small things on white, hard to tell apart, under permissive licences.
ICONS = {
    "@iconify-json/game-icons@1.2.4": 1_500,
    "@iconify-json/streamline-ultimate-color@1.2.2": 998,
    "@iconify-json/streamline-freehand-color@1.2.2": 1_000,
    "@iconify-json/streamline-emojis@1.2.4": 787,
    "@iconify-json/noto-v1@1.2.5": 800,
}
ICON_PX = 160
WORLD = Path(__file__).parent.parent / "world" / "pictures"
SIDE, LEAST_SIDE, QUALITY = 192, 32, 95
# Maps that say how a surface reflects, and fonts: no pictures that anybody would copy.
_NO_PICTURE = re.compile(
    r"(_(norm|nm|n|gloss|bump|luma|spec|s|height|h|normal|specular|glow|roughness|ao|mask)\.[a-z]+$)|font|/po/",
    re.IGNORECASE,
)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tga", ".webp")
COLLAGES = 5_000


def main() -> None:
    """Fetches, opens and shrinks."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--packages", type=Path, required=True)
    made.add_argument("--out", type=Path, required=True, help="gets the folders pictures and icons")
    options = made.parse_args()
    pictures, drawn = options.out / "pictures", options.out / "icons"
    for folder in (options.packages, pictures, drawn):
        folder.mkdir(parents=True, exist_ok=True)
    seen = Seen()
    for package in PACKAGES:
        count = sum(
            write(pictures / package, name, image, seen)
            for name, image in of_debian(package, options.packages)
        )
        print(f"{package}: {count} pictures")
    for file in sorted(WORLD.glob("*.zip")):
        with zipfile.ZipFile(file) as opened:
            read = ((n, opened.read(n)) for n in sorted(opened.namelist()))
            count = sum(write(pictures / file.stem, name, data, seen) for name, data in read)
        print(f"{file.stem}: {count} pictures")
    print(f"collages: {collages(pictures, COLLAGES)} pictures")
    for package, most in ICONS.items():
        folder = drawn / package.split("/")[1].split("@")[0]
        count = sum(write(folder, name, data, seen) for name, data in icons(package, options.packages, most))
        print(f"{folder.name}: {count} pictures")


def of_debian(package: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a Debian package's pictures, those in its `.pk3` archives too, in the order of names."""
    for name, path in debian(package, folder):
        if path.suffix.lower() in _SUFFIXES:
            yield name, path.read_bytes()
        elif path.suffix.lower() == ".pk3":
            with zipfile.ZipFile(path) as archive:
                for member in sorted(archive.namelist()):
                    if member.lower().endswith(_SUFFIXES):
                        yield member, archive.read(member)


def icons(package: str, folder: Path, most: int) -> Iterator[tuple[str, bytes]]:
    """Names and PNG bytes of some icons of a set, those whose names have the smallest hashes."""
    resvg = importlib.import_module("resvg_py")
    file = npm(package, folder)
    with tarfile.open(file) as opened:
        data = opened.extractfile("package/icons.json")
        assert data is not None, f"{file}: no icons.json"
        found = json.load(data)
    sides = {key: found.get(key, 16) for key in ("width", "height")}
    hashes = {icon: hashlib.sha256(icon.encode()).digest() for icon in found["icons"]}
    for icon in sorted(hashes, key=lambda x: hashes[x])[:most]:
        shape = {**sides, **found["icons"][icon]}
        # Sets of one colour leave it to the page: half of them stay black.
        first = hashes[icon][-4:]
        colour = "#000000" if first[0] % 2 else f"#{bytes(x // 2 for x in first[1:]).hex()}"
        box = f"{shape.get('left', 0)} {shape.get('top', 0)} {shape['width']} {shape['height']}"
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{ICON_PX}" height="{ICON_PX}">'
        )
        svg = f"{head}{shape['body'].replace('currentColor', colour)}</svg>"
        yield icon, bytes(resvg.svg_to_bytes(svg_string=svg, skip_system_fonts=True))


class Seen:
    """Thumbnails of the pictures kept so far: a picture that is almost one of them teaches a wrong difference."""

    def __init__(self) -> None:
        self._thumbnails = np.zeros((0, 192), np.float32)
        self._count = 0

    def add(self, image: Image.Image) -> bool:
        """Whether a picture is new; it is remembered."""
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), np.float32).reshape(-1)
        known = self._thumbnails[: self._count]
        if len(known) and float(np.abs(known - small).mean(axis=1).min()) < 3:
            return False
        if self._count == len(self._thumbnails):
            self._thumbnails = np.concatenate([known, np.zeros((4096, 192), np.float32)])
        self._thumbnails[self._count] = small
        self._count += 1
        return True


def write(folder: Path, name: str, data: bytes, seen: Seen) -> int:
    """Shrinks one picture to ``SIDE`` and stores it; returns 0 if it is too small, flat, no picture, or known."""
    if _NO_PICTURE.search(name):
        return 0
    try:
        image = decode(data)
    except ValueError:
        return 0
    if min(image.size) < LEAST_SIDE or max(image.size) > 6 * min(image.size):
        return 0
    image.thumbnail(
        (SIDE, SIDE), Image.Resampling.BOX if max(image.size) > 4 * SIDE else Image.Resampling.LANCZOS
    )
    if np.asarray(image, np.float32).std(axis=(0, 1)).max() < 6 or not seen.add(image):
        return 0
    folder.mkdir(exist_ok=True)
    store(folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.jpg", image)
    return 1


def store(path: Path, image: Image.Image) -> None:
    """Writes a JPEG; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    path.write_bytes(buffer.getvalue())


def collages(folder: Path, count: int) -> int:
    """Scenes out of the pictures stored before: one as ground, two to six others laid on it in other sizes."""
    files = sorted(path for path in folder.glob("*/*.jpg") if path.parent.name != "collages")
    draw = np.random.default_rng(0)
    (folder / "collages").mkdir(exist_ok=True)
    for number in range(count):
        chosen = [files[i] for i in draw.integers(0, len(files), 1 + draw.integers(2, 7))]
        size = (SIDE, int(SIDE * draw.uniform(0.6, 1)))
        scene = decode(chosen[0].read_bytes()).resize(size if draw.random() < 0.5 else size[::-1])
        for path in chosen[1:]:
            piece = decode(path.read_bytes())
            piece.thumbnail((int(draw.uniform(0.25, 0.7) * SIDE),) * 2)
            mask = None
            if draw.random() < 0.5:
                light = np.asarray(piece).min(axis=2) > 245
                mask = Image.fromarray(np.where(light, 0, 255).astype(np.uint8))
            place = [int(draw.uniform(-0.2, 0.9) * side) for side in scene.size]
            scene.paste(piece, (place[0], place[1]), mask)
        store(folder / "collages" / f"{number:05d}.jpg", scene)
    return count


if __name__ == "__main__":
    main()
