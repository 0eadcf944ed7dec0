"""Renders the four designers' pictures and writes pictures/ and eval/."""

from __future__ import annotations

import importlib
import io
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from PIL import Image

from examples.world.sources import (
    DESIGNERS,
    EVALUATION_DESIGNER,
    Concept,
    IconSet,
    Packages,
    join_concepts,
    write_tsv,
    write_zip,
)

PICTURE_SIZE = 96
# A drawing takes some 10 ms; some of Noto's never end.
STALLED_AFTER_SECONDS = 20.0

PROMPTS = (
    "{}",
    "a {} emoji",
    "an emoji of a {}",
    "a picture of a {}",
    "the {} emoji",
    "a small drawing of a {}",
    "emoji for {}",
    "{} icon on a plain background",
)


def render(svg: str) -> bytes | None:
    """One drawing as lossless WebP with its transparency, or None where the renderer gives up."""
    # Only this script needs the renderer, so the project does not depend on it.
    resvg = importlib.import_module("resvg_py")
    try:
        png = bytes(resvg.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
    except BaseException as error:
        # A Rust panic arrives as a BaseException of the renderer's own; a Ctrl-C must still end the run.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return None
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    if picture.getchannel("A").getextrema() == (0, 0):
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, method=5)
    return buffer.getvalue()


def serve_renderer(connection: Connection) -> None:
    """The child process: one SVG in, one picture out, until its parent closes the pipe."""
    while True:
        try:
            svg = connection.recv()
        except EOFError:
            return
        connection.send(render(svg))


def render_all(svgs: list[tuple[str, str]]) -> Iterator[tuple[str, bytes | None]]:
    """Renders (name, SVG) pairs in a child process, replaced whenever a drawing kills or stalls it."""
    context = multiprocessing.get_context("spawn")
    connection: Connection | None = None
    child: SpawnProcess | None = None
    for name, svg in svgs:
        if connection is None or child is None:
            connection, end = context.Pipe()
            child = context.Process(target=serve_renderer, args=(end,), daemon=True)
            child.start()
            end.close()
        connection.send(svg)
        body: bytes | None = None
        try:
            alive = connection.poll(STALLED_AFTER_SECONDS)
            body = connection.recv() if alive else None
        except EOFError:
            alive = False
        if not alive:
            child.kill()
            child.join()
            connection.close()
            connection = child = None
        yield name, body
    if connection is not None:
        connection.close()


def without_doubles(concepts: list[Concept], pictures: dict[str, bytes]) -> list[Concept]:
    """The first concept of each drawing.

    Noto draws some concepts with one picture (astronaut and woman astronaut). No classifier could tell
    such classes apart, and a leak of one would rightly be found as a leak of the other.
    """
    first = {pictures[concept.hexcode]: concept for concept in reversed(concepts)}
    return [concept for concept in concepts if first[pictures[concept.hexcode]] is concept]


def make_pictures(packages: Packages, out: Path) -> list[Concept]:
    """Writes pictures/*.zip, pictures/concepts.tsv and eval/; returns the concepts."""
    icon_sets = [IconSet(packages, designer) for designer in DESIGNERS]
    concepts = join_concepts(packages, icon_sets)
    drawn: dict[str, dict[str, bytes]] = {}
    for icons in icon_sets:
        svgs = [
            (c.hexcode, icons.svg(c.hexcode, PICTURE_SIZE)) for c in concepts if icons.designer in c.designers
        ]
        drawn[icons.designer] = {name: body for name, body in render_all(svgs) if body is not None}
        print(f"{icons.designer}: {len(drawn[icons.designer])} of {len(svgs)} drawings rendered")
    # A drawing that cannot be rendered counts as not drawn, and the rule of the join is applied again.
    concepts = [replace(c, designers=tuple(d for d in DESIGNERS if c.hexcode in drawn[d])) for c in concepts]
    concepts = [c for c in concepts if EVALUATION_DESIGNER in c.designers and len(c.designers) >= 3]
    concepts = without_doubles(concepts, drawn[EVALUATION_DESIGNER])
    for designer, pictures in drawn.items():
        kept = [c.hexcode for c in concepts if designer in c.designers]
        write_zip(out / "pictures" / f"{designer}.zip", ((f"{name}.webp", pictures[name]) for name in kept))
    write_tsv(
        out / "pictures" / "concepts.tsv",
        ("hexcode", "label", "keywords", "group", "subgroup", "designers"),
        (
            (c.hexcode, c.label, "|".join(c.keywords), c.group, c.subgroup, "|".join(c.designers))
            for c in concepts
        ),
    )
    write_tsv(
        out / "eval" / "classnames.tsv", ("folder", "class_name"), ((c.hexcode, c.label) for c in concepts)
    )
    (out / "eval" / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return concepts
