"""The pictures outside /p/: planted leaks, other file formats, reserved files and deliberate trouble."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from examples.world.sources import WEB_DESIGNERS, Concept, IconSet

LEAK_SHARE = 0.05
BOMB_SIDE = 12_000
FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3, "lanczos": 1}
BACKGROUNDS = ("#ffffff", "#ffffff", "#fafafa", "#f4f1ea", "#eef3f8", "#fff8e7")
TRACKER = bytes.fromhex(
    "47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b"
)


@dataclass(frozen=True)
class ExtraFile:
    """A file of a site's files.zip: what it is, what it shows, and whether a fetcher may keep it."""

    path: str
    body: bytes
    what: str
    concept: Concept | None
    usable: bool


@dataclass(frozen=True)
class Leak:
    """An altered evaluation picture that stands on the web."""

    concept: Concept
    site: str
    path: str
    edits: str
    body: bytes


def flatten(body: bytes, background: str = "#ffffff") -> Image.Image:
    """A picture without transparency."""
    picture = Image.open(io.BytesIO(body)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, background)
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def encode(picture: Image.Image, form: str, **options: Any) -> bytes:
    """A picture as bytes of one format."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def make_leak(concept: Concept, body: bytes, seed: str) -> Leak:
    """A repost of one evaluation picture: cropped, resized and recompressed as chance has it."""
    rng = random.Random(f"{seed}/leak/{concept.hexcode}")
    background = rng.choice(BACKGROUNDS)
    picture = flatten(body, background)
    edits = [f"background={background}"]
    if rng.random() < 0.6:
        left, top, right, bottom = (rng.randrange(0, 6) for _ in range(4))
        picture = picture.crop((left, top, picture.width - right, picture.height - bottom))
        edits.append(f"crop={left},{top},{right},{bottom}")
    if rng.random() < 0.8:
        scale = rng.choice((0.5, 0.6, 0.75, 0.9, 1.25, 1.5, 2.0))
        name = rng.choice(sorted(FILTERS)) if scale < 1 else rng.choice(("bicubic", "bilinear", "lanczos"))
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling(FILTERS[name]))
        edits.append(f"resize={scale}:{name}")
    quality = rng.randrange(40, 86)
    form, extension = rng.choice((("JPEG", "jpg"), ("JPEG", "jpg"), ("WEBP", "webp")))
    edits.append(f"{form.lower()}={quality}")
    name = hashlib.sha256(f"{seed}/{concept.hexcode}".encode()).hexdigest()[:6]
    return Leak(
        concept=concept,
        site=rng.choice(WEB_DESIGNERS),
        path=f"/f/{name}.{extension}",
        edits=" ".join(edits),
        body=encode(picture, form, quality=quality),
    )


def make_leaks(concepts: list[Concept], evaluation: Mapping[str, bytes], seed: str) -> list[Leak]:
    """Leaks drawn by seed, the same share from every group."""
    rng = random.Random(f"{seed}/leaks")
    groups: dict[str, list[Concept]] = {}
    for concept in concepts:
        groups.setdefault(concept.group, []).append(concept)
    chosen = [
        c for group in groups.values() for c in rng.sample(group, max(1, round(len(group) * LEAK_SHARE)))
    ]
    return [make_leak(concept, evaluation[concept.hexcode], seed) for concept in chosen]


def slug(label: str) -> str:
    """A name as a webmaster would call the file."""
    kept = "".join(char if char.isascii() and char.isalnum() else "-" for char in label.lower())
    return "-".join(part for part in kept.split("-") if part) or "picture"


def other_formats(
    concepts: list[Concept], pictures: Mapping[str, bytes], rng: random.Random
) -> list[ExtraFile]:
    """Some of the site's pictures once more, as PNG, JPEG and GIF under readable names."""
    files = []
    for number, concept in enumerate(rng.sample(concepts, 24)):
        body = pictures[concept.hexcode]
        stem = f"/f/{slug(concept.label)}"
        if number % 3 == 0:
            image = encode(Image.open(io.BytesIO(body)), "PNG", optimize=True)
            files.append(ExtraFile(f"{stem}.png", image, "PNG", concept, usable=True))
        elif number % 3 == 1:
            image = encode(flatten(body), "JPEG", quality=82)
            files.append(ExtraFile(f"{stem}.jpg", image, "JPEG", concept, usable=True))
        else:
            image = encode(flatten(body).quantize(64), "GIF")
            files.append(ExtraFile(f"{stem}.gif", image, "GIF", concept, usable=True))
    return files


def reserved_files(
    concepts: list[Concept], pictures: Mapping[str, bytes], rng: random.Random
) -> list[ExtraFile]:
    """Pictures that a header or robots.txt keeps back."""
    files = []
    folders = (
        ("/f/reserved", "X-Robots-Tag: noai"),
        ("/private", "robots.txt: *"),
        ("/members", "robots.txt: CCBot"),
    )
    chosen = iter(rng.sample(concepts, 15))
    for folder, what in folders:
        for _ in range(5):
            concept = next(chosen)
            path = f"{folder}/{slug(concept.label)}.webp"
            files.append(ExtraFile(path, pictures[concept.hexcode], what, concept, usable=False))
    return files


def bomb() -> bytes:
    """A picture of one colour, small on the wire and huge in memory."""
    return encode(Image.new("L", (BOMB_SIDE, BOMB_SIDE), 200), "PNG", compress_level=9)


def odd_files(
    concepts: list[Concept], pictures: Mapping[str, bytes], icons: IconSet, rng: random.Random
) -> list[ExtraFile]:
    """One file of each kind that a fetcher must either read rightly or refuse calmly."""
    chosen = iter(rng.sample(concepts, 16))
    files: list[ExtraFile] = []

    def add(name: str, what: str, concept: Concept | None, body: bytes, *, usable: bool) -> None:
        files.append(ExtraFile(f"/f/odd/{name}", body, what, concept, usable))

    first, second = next(chosen), next(chosen)
    frames = [flatten(pictures[c.hexcode]).quantize(64) for c in (first, second)]
    moving = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=500, loop=0)
    add("animated.gif", "animated GIF, two frames", first, moving, usable=True)
    one = next(chosen)
    palette = flatten(pictures[one.hexcode]).quantize(32)
    add("palette.png", "palette PNG", one, encode(palette, "PNG"), usable=True)
    one = next(chosen)
    # A grey value twice in a row is the same brightness on 16 bits.
    doubled = bytes(
        value for grey in flatten(pictures[one.hexcode]).convert("L").tobytes() for value in (grey, grey)
    )
    deep = Image.frombytes("I;16", (96, 96), doubled)
    add("sixteen-bit.png", "16-bit grey PNG", one, encode(deep, "PNG"), usable=True)
    one = next(chosen)
    cmyk = flatten(pictures[one.hexcode]).convert("CMYK")
    add("cmyk.jpg", "CMYK JPEG", one, encode(cmyk, "JPEG", quality=85), usable=True)
    one = next(chosen)
    grey = flatten(pictures[one.hexcode]).convert("L")
    add("grey.jpg", "grey JPEG", one, encode(grey, "JPEG", quality=85), usable=True)
    one = next(chosen)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = flatten(pictures[one.hexcode]).rotate(90, expand=True)
    add(
        "turned.jpg",
        "JPEG, EXIF orientation 6",
        one,
        encode(turned, "JPEG", quality=85, exif=exif),
        usable=True,
    )
    one = next(chosen)
    add("windows.bmp", "BMP", one, encode(flatten(pictures[one.hexcode]), "BMP"), usable=False)
    one = next(chosen)
    add("vector.svg", "SVG", one, icons.svg(one.hexcode, 96).encode(), usable=False)
    one = next(chosen)
    whole = encode(flatten(pictures[one.hexcode]), "JPEG", quality=85)
    add("half.jpg", "JPEG cut in the middle", one, whole[: len(whole) // 2], usable=False)
    one = next(chosen)
    sorry = b"<!DOCTYPE html><html><head><title>Not found</title></head><body>This picture has moved.</body></html>\n"
    add("moved.jpg", "HTML named .jpg", one, sorry, usable=False)
    one = next(chosen)
    add("empty.jpg", "empty file", one, b"", usable=False)
    one = next(chosen)
    add("huge.png", f"decompression bomb, {BOMB_SIDE} pixels square", one, bomb(), usable=False)
    add("tracker.gif", "1x1 tracker", None, TRACKER, usable=False)
    return files
