"""``wit dedup show-augmentations``: every augmentation at several strengths, on one sheet that a person can look at."""

from __future__ import annotations

import argparse
import base64
import html
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from dedup import images, repost
from dedup.augment import RESAMPLING, ROTATING, augment, compress, jitter_hsv, lay_on_ground, rotate
from dedup.config import AugmentConfig
from dedup.detector import decode
from pipeline.core import charts, paths
from pipeline.core.errors import InputError, OutputError, UsageError
from pipeline.core.stage import RunOptions

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
# Longest side of the picture that is altered, and of a cell of the sheet.
SIDE_PX, CELL_PX = 320, 170
COMBINED = 6


@dataclass(frozen=True, kw_only=True)
class Row:
    """One augmentation.

    Attributes:
        name: What it is called.
        cells: (strength in words, altered picture).
    """

    name: str
    cells: tuple[tuple[str, Image.Image], ...]


def rows(image: Image.Image, config: AugmentConfig, seed: int) -> list[Row]:
    """Every augmentation of one RGB picture; equal arguments give equal pixels."""
    both = (-1.0, -0.5, 0.5, 1.0)
    made = [
        Row(name="resized to a half and back", cells=tuple(_resized(image, f, 0.5) for f in RESAMPLING)),
        Row(name="crop and zoom", cells=tuple(_cropped(image, config, s, seed) for s in STRENGTHS)),
        Row(name="aspect ratio", cells=tuple(_stretched(image, config, s) for s in both)),
        Row(name="down-sizing", cells=tuple(_scaled(image, config.min_scale**s) for s in STRENGTHS)),
        Row(name="up-sizing", cells=tuple(_scaled(image, config.max_scale**s) for s in STRENGTHS)),
        Row(name="rotation", cells=tuple(_rotated(image, config, s, seed) for s in both)),
        Row(name="JPEG", cells=tuple(_compressed(image, config, s) for s in STRENGTHS)),
        Row(
            name="hue",
            cells=tuple(_jittered(image, "hue", config.max_hue, s) for s in both),
        ),
        Row(
            name="saturation",
            cells=tuple(
                _jittered(image, "saturation", config.max_saturation, s) for s in (-1.0, -0.5, 0.5, 1.0)
            ),
        ),
        Row(
            name="brightness",
            cells=tuple(_jittered(image, "value", config.max_value, s) for s in both),
        ),
        Row(name="another ground (ours)", cells=tuple(_laid(image, config, s) for s in STRENGTHS)),
    ]
    made += [
        Row(name=f"{name} (beyond the paper)", cells=tuple(cells))
        for name, cells in _reposted(image, seed).items()
    ]
    drawn = tuple((f"seed {seed + i}", augment(image, config, seed + i)) for i in range(COMBINED))
    return [*made, Row(name="as in training", cells=drawn)]


Cell = tuple[str, Image.Image]


def _resized(image: Image.Image, resample: Image.Resampling, scale: float) -> Cell:
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
    return resample.name.lower(), small.resize(image.size, resample)


def _cropped(image: Image.Image, config: AugmentConfig, strength: float, seed: int) -> Cell:
    share, draw = 1 - (1 - config.min_crop) * strength, random.Random(seed)
    left, top = ((1 - share) * side * draw.random() for side in image.size)
    box = (left, top, left + share * image.width, top + share * image.height)
    return f"{100 * share:.0f}% of a side", image.resize(image.size, draw.choice(RESAMPLING), box=box)


def _stretched(image: Image.Image, config: AugmentConfig, strength: float) -> Cell:
    ratio = config.max_aspect**strength
    size = (max(1, round(image.width * ratio**0.5)), max(1, round(image.height / ratio**0.5)))
    return f"{ratio:.2f}", image.resize(size, Image.Resampling.BICUBIC)


def _scaled(image: Image.Image, scale: float) -> Cell:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return f"times {scale:.2f}", image.resize(size, Image.Resampling.BICUBIC)


def _rotated(image: Image.Image, config: AugmentConfig, strength: float, seed: int) -> Cell:
    degrees = config.max_rotation_degrees * strength
    return f"{degrees:+.1f}°", rotate(image, degrees, random.Random(seed).choice(ROTATING))


def _compressed(image: Image.Image, config: AugmentConfig, strength: float) -> Cell:
    quality = round(95 - (95 - config.min_jpeg_quality) * strength)
    return f"quality {quality}", compress(image, quality)


def _jittered(image: Image.Image, channel: str, largest: float, strength: float) -> Cell:
    change = largest * strength
    values = {"hue": 0.0, "saturation": 1.0, "value": 1.0}
    values[channel] += change
    return f"{100 * change:+.1f}%", jitter_hsv(image, **values)


def _reposted(image: Image.Image, seed: int) -> dict[str, list[Cell]]:
    def drawn(step: Callable[[Image.Image, random.Random], Image.Image]) -> list[Cell]:
        return [(f"seed {seed + i}", step(image, random.Random(seed + i))) for i in range(len(STRENGTHS))]

    def blurred(strength: float) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(repost.MAX_BLUR * strength * min(image.size)))

    return {
        "mirror": [("", ImageOps.mirror(image))],
        "grey": [("", image.convert("L").convert("RGB"))],
        "blur": [(f"{100 * repost.MAX_BLUR * s:.2f}% of a side", blurred(s)) for s in STRENGTHS],
        "grain": [
            (f"{repost.MAX_GRAIN * s:.0f} levels", repost.grain(image, repost.MAX_GRAIN * s, seed))
            for s in STRENGTHS
        ],
        "lettering and marks": drawn(repost.letter),
        "frames": drawn(repost.frame),
        "on a page": drawn(repost.on_page),
    }


def _laid(image: Image.Image, config: AugmentConfig, strength: float) -> Cell:
    shares = [1 - config.max_ground * strength * part for part in (0.3, 0.6, 1.0)]
    return f"{100 * config.max_ground * strength:.1f}% darker", lay_on_ground(image, shares)


def as_png(sheets: Sequence[tuple[str, Sequence[Row]]]) -> bytes:
    """All sheets below one another as one PNG."""
    title, text = ImageFont.load_default(18), ImageFont.load_default(13)
    gap, name_px, label_px = 10, 26, 20
    widest = max(len(row.cells) for _, made in sheets for row in made)
    high = sum(40 + len(made) * (name_px + CELL_PX + label_px + gap) for _, made in sheets)
    page = Image.new("RGB", (gap + widest * (CELL_PX + gap), high + gap), "#f4f5f7")
    pen, y = ImageDraw.Draw(page), gap
    for name, made in sheets:
        pen.text((gap, y), name[:90], fill="#1b1f24", font=title)
        y += 40 - gap
        for row in made:
            pen.text((gap, y), row.name, fill="#1b1f24", font=ImageFont.load_default(15))
            y += name_px
            for i, (label, image) in enumerate(row.cells):
                x = gap + i * (CELL_PX + gap)
                small = ImageOps.contain(image, (CELL_PX, CELL_PX))
                page.paste(small, (x, y))
                pen.text((x, y + CELL_PX + 2), label, fill="#5b6470", font=text)
            y += CELL_PX + label_px + gap
        y += gap
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


_STYLE = """
body { margin: 0 auto; max-width: 1240px; padding: 20px; background: var(--panel); color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
.row { display: flex; flex-wrap: wrap; gap: 10px; } figure { margin: 0; width: 190px; }
figure img { width: 100%; height: 190px; object-fit: contain; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; }
figcaption { color: var(--muted); font-size: .85rem; }
"""


def as_html(sheets: Sequence[tuple[str, Sequence[Row]]]) -> bytes:
    """All sheets as one page that holds its pictures."""
    parts = []
    for name, made in sheets:
        parts.append(f"<h1>{html.escape(name)}</h1>")
        for row in made:
            cells = "".join(
                f'<figure><img alt="" src="{_uri(image)}"><figcaption>{html.escape(label)}</figcaption></figure>'
                for label, image in row.cells
            )
            parts.append(f'<h2>{html.escape(row.name)}</h2><div class="row">{cells}</div>')
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><title>Augmentations</title><style>{charts.STYLE}{_STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    ).encode()


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def main(args: argparse.Namespace, options: RunOptions) -> None:
    """Writes the sheet of the first readable pictures.

    Raises:
        UsageError: The file is neither PNG nor HTML, or a number makes no sense.
        InputError: There is no readable picture.
        OutputError: The file is there already.
    """
    writers = {"png": as_png, "html": as_html}
    write = writers.get(args.out.lower().rpartition(".")[2])
    if write is None:
        raise UsageError("--out must end in .png or .html", found=args.out)
    if not 0 <= args.beyond <= 1:
        raise UsageError(f"--beyond must lie in [0, 1], is {args.beyond}")
    if args.count < 1:
        raise UsageError(f"--count must be at least 1, is {args.count}")
    if paths.exists(args.out) and not options.overwrite:
        raise OutputError("the file is there already", where=args.out, hint="pass --overwrite to replace it")
    found = pictures(args.images, args.count)
    if options.dry_run:
        print(f"wit dedup show-augmentations: would write {args.out} from {', '.join(n for n, _ in found)}")  # noqa: T201
        return
    config = AugmentConfig(beyond=args.beyond)
    paths.write_bytes(args.out, write([(name, rows(image, config, args.seed)) for name, image in found]))
    if not options.quiet:
        print(f"augmentations: {args.out}")  # noqa: T201


def pictures(sources: Sequence[str], count: int) -> list[tuple[str, Image.Image]]:
    """The first readable pictures of some paths, scaled down if large.

    Raises:
        InputError: None is readable.
    """
    found: list[tuple[str, Image.Image]] = []
    for chunk in images.plan(sources):
        for picture in images.read(chunk):
            try:
                image = decode(picture.data) if picture.data is not None else None
            except ValueError:
                continue
            if image is not None:
                image.thumbnail((SIDE_PX, SIDE_PX))
                found.append((picture.id, image))
            if len(found) == count:
                return found
    if not found:
        raise InputError("no readable picture", where=", ".join(sources))
    return found
