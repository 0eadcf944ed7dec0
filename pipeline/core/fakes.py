"""Valid fake data for every contract, for tests and for people who want to try one stage alone."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image, ImageDraw

from pipeline.core import paths, tables, tars
from pipeline.core.contracts import (
    CANDIDATES,
    EMBEDDINGS,
    GROUPS,
    NEIGHBOURS,
    PAIRS,
    PREDICTIONS,
    QUERIES,
    SHARDS,
    Contract,
    pair_id,
)
from pipeline.core.stage import RunOptions, StageResult, run_stage

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
SHAPES = ("circle", "square", "triangle", "cross")


@dataclass(frozen=True, kw_only=True)
class _FakeConfig:
    rows: int
    seed: int


def fake_table(contract: Contract, rows: int, *, seed: int = 0) -> pa.Table:
    """A valid table of a contract: ``rows`` rows that depend on the seed alone."""
    makers = {
        QUERIES.id: _queries,
        CANDIDATES.id: _candidates,
        PAIRS.id: _pairs,
        EMBEDDINGS.id: _embeddings,
        NEIGHBOURS.id: _neighbours,
        GROUPS.id: _groups,
        PREDICTIONS.id: _predictions,
    }
    made = makers[contract.id](rows, random.Random(seed))
    return contract.conform(pa.Table.from_pylist(made) if made else contract.empty())


def fake_folder(folder: str, contract: Contract, rows: int, *, seed: int = 0) -> str:
    """A finished folder (one part and a manifest) of a contract; returns the folder."""
    return finished_folder(folder, contract, fake_table(contract, rows, seed=seed))


def finished_folder(folder: str, contract: Contract, table: pa.Table, **extra: object) -> str:
    """A finished folder that holds a given table; returns the folder."""

    def body(out: str) -> StageResult:
        tables.write_table(paths.join(out, tables.part_name(0)), table, contract)
        return StageResult(rows=table.num_rows, rows_in=table.num_rows, extra=extra)

    run_stage(
        body,
        stage=contract.made_by.removeprefix("wit "),
        contract=contract.id,
        config=_FakeConfig(rows=table.num_rows, seed=0),
        inputs=[],
        out=folder,
        options=RunOptions(quiet=True),
    )
    return folder


def picture(colour: str, shape: str, *, size: int = 96, seed: int = 0) -> Image.Image:
    """A coloured shape on a light ground; the seed moves and scales it."""
    draw_seed = random.Random(seed)
    image = Image.new("RGB", (size, size), (draw_seed.randrange(200, 256),) * 3)
    draw = ImageDraw.Draw(image)
    width = draw_seed.randrange(size // 3, size * 3 // 4)
    left, top = draw_seed.randrange(size - width), draw_seed.randrange(size - width)
    box = (left, top, left + width, top + width)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([(left, box[3]), (box[2], box[3]), (left + width // 2, top)], fill=colour)
    else:
        draw.line(box, fill=colour, width=size // 10)
        draw.line((left, box[3], box[2], top), fill=colour, width=size // 10)
    return image


def jpeg(image: Image.Image, *, quality: int = 90) -> bytes:
    """An image as JPEG bytes."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def fake_shards(folder: str, rows: int, *, per_shard: int = 100, size: int = 96, seed: int = 0) -> str:
    """A finished shards folder: coloured shapes captioned ``a red circle`` and so on; returns the folder."""

    def body(out: str) -> StageResult:
        for shard, first in enumerate(range(0, max(rows, 1), per_shard)):
            made = [
                _shard_row(shard, i - first, i, per_shard, size, seed)
                for i in range(first, min(first + per_shard, rows))
            ]
            write_fake_shard(out, shard, made)
        return StageResult(rows=rows, rows_in=rows)

    run_stage(
        body,
        stage="fetch",
        contract=SHARDS.id,
        config=_FakeConfig(rows=rows, seed=seed),
        inputs=[],
        out=folder,
        options=RunOptions(quiet=True),
    )
    return folder


def write_fake_shard(out: str, shard: int, made: Sequence[tuple[dict[str, object], bytes]]) -> None:
    """Writes one shard's tar, Parquet and stats from rows and JPEG bytes."""
    name = tars.shard_name(shard)
    samples = [
        tars.Sample(
            str(row["key"]),
            {
                "jpg": data,
                "txt": str(row["caption"]).encode(),
                "json": json.dumps(row, sort_keys=True).encode(),
            },
        )
        for row, data in made
    ]
    tars.write_shard(paths.join(out, f"{name}.tar"), samples)
    table = SHARDS.conform(pa.Table.from_pylist([row for row, _ in made], schema=SHARDS.schema))
    tables.write_table(paths.join(out, f"{name}.parquet"), table, SHARDS)
    stats = {"count": len(made), "successes": len(made), "status_dict": {"success": len(made)}}
    paths.write_bytes(paths.join(out, f"{name}_stats.json"), json.dumps(stats, sort_keys=True).encode())


def _shard_row(
    shard: int, row: int, index: int, per_shard: int, size: int, seed: int
) -> tuple[dict[str, object], bytes]:
    colour, shape = COLOURS[index % len(COLOURS)], SHAPES[index // len(COLOURS) % len(SHAPES)]
    url, caption = f"http://example.test/{index}.jpg", f"a {colour} {shape}"
    data = jpeg(picture(colour, shape, size=size, seed=seed * 1_000_003 + index))
    return {
        "key": tars.sample_key(shard, row, rows_per_shard=per_shard),
        "pair_id": pair_id(url, caption),
        "url": url,
        "caption": caption,
        "status": "success",
        "error_message": None,
        "width": size,
        "height": size,
        "original_width": size,
        "original_height": size,
        "sha256": None,
        "exif": None,
        "http_status": 200,
        "query_ids": [index % len(COLOURS)],
        "query_id": index % len(COLOURS),
    }, data


def _queries(rows: int, _: random.Random) -> list[dict[str, object]]:
    words = [*COLOURS, *SHAPES, *(f"word{i}" for i in range(rows))]
    return [
        {"query_id": i, "query": words[i], "sources": ["word"], "count": 1000 - i % 900} for i in range(rows)
    ]


def _candidates(rows: int, draw: random.Random) -> list[dict[str, object]]:
    made = []
    for i in range(rows):
        url = f"http://example.test/{i}.jpg"
        text = f"a photo of a {draw.choice(COLOURS)} {draw.choice(SHAPES)} on the table, number {i}"
        made.append(
            {
                "pair_id": pair_id(url, text),
                "url": url,
                "text": text,
                "text_source": "alt",
                "page_url": f"http://example.test/page{i // 10}.html",
                "page_language": "en",
                "rights": [],
                "origin": "fake",
                "origin_offset": i,
            }
        )
    return made


def _pairs(rows: int, draw: random.Random) -> list[dict[str, object]]:
    more: dict[str, object] = {"language": "en", "language_score": 1.0, "query_ids": [0, 1], "query_id": 0}
    return [{**row, **more} for row in _candidates(rows, draw)]


def _embeddings(rows: int, draw: random.Random) -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    for i in range(rows):
        vector = [draw.gauss(0, 1) for _ in range(16)]
        norm = sum(v * v for v in vector) ** 0.5
        made.append({"id": f"{i:06d}", "dataset": "fake", "embedding": [v / norm for v in vector]})
    return made


def _neighbours(rows: int, draw: random.Random) -> list[dict[str, object]]:
    return [
        {
            "eval_dataset": "fake",
            "eval_id": f"{i:06d}",
            "rank": 0,
            "pair_id": pair_id("u", str(i)),
            "similarity": draw.uniform(-1, 1),
        }
        for i in range(rows)
    ]


def _groups(rows: int, draw: random.Random) -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    for first in range(0, rows - 1, 2):
        # An odd number of rows gives one group of three.
        count = 3 if first == rows - 3 else 2
        ids = sorted(pair_id("u", str(first + i)) for i in range(count))
        similarity = draw.uniform(0.9, 1)
        made += [{"pair_id": i, "group": ids[0], "similarity": similarity, "keep": i == ids[0]} for i in ids]
        if count == 3:
            break
    return made


def _predictions(rows: int, draw: random.Random) -> list[dict[str, object]]:
    return [
        {"eval_dataset": "fake", "eval_id": f"{i:06d}", "correct": draw.random() < 0.5} for i in range(rows)
    ]
