"""Where the pictures of a review lie, and how they are shown: found once by id, read one at a time when asked for."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dedup import images
from dedup.detector import decode
from pipeline.core import manifest, paths, tables, tars
from pipeline.core.contracts import EMBEDDINGS, NEIGHBOURS
from pipeline.core.errors import InputError, WitError

# Longest side of a picture as it is shown; larger ones are scaled down.
SHOWN_PX = 1000
TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class Spot:
    """Where one picture lies.

    Attributes:
        chunk: The chunk that holds it.
        key: Its key, if it lies in a shard.
        facts: What is known about it beside its pixels, as (name, text) in the order to show.
    """

    chunk: images.Chunk
    key: str | None = None
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture as the page shows it.

    Attributes:
        png: Its pixels, losslessly, scaled down if large.
        width: Pixels of the original.
        height: Pixels of the original.
        size: Bytes of the original.
        kind: Format of the original.
    """

    png: bytes
    width: int
    height: int
    size: int
    kind: str


def embedded_from(neighbours: str) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The pictures that a search's embeddings were made from, as the manifests tell.

    Returns:
        PATHs of the training pictures, and of each evaluation set's; empty where a folder is gone.
    """
    searched = manifest.read(neighbours, made_by=NEIGHBOURS.made_by).config
    train: tuple[str, ...] = ()
    evals: dict[str, tuple[str, ...]] = {}
    for side, folders in ((TRAIN, [searched.get("train")]), ("eval", searched.get("eval", []))):
        for folder in folders:
            try:
                made = manifest.read(str(folder), made_by=EMBEDDINGS.made_by)
            except InputError:
                continue
            sources = tuple(str(path) for path in made.config.get("images", ()))
            if side == TRAIN:
                train = sources
                continue
            for path in sources:
                name = str(made.config.get("dataset") or images.dataset_name(path))
                evals[name] = (*evals.get(name, ()), path)
    return train, evals


def locate(chunks: Sequence[images.Chunk], wanted: Collection[str]) -> dict[str, Spot]:
    """The places of some pictures, by id; ids that are not there are left out.

    Reads the ids of shards and tables in one pass, so ask for all at once.
    """
    held = set(wanted)
    column = pa.array(sorted(held), pa.string())
    found: dict[str, Spot] = {}
    for chunk in chunks:
        if chunk.kind == "files":
            for name in chunk.names:
                if name in held:
                    found[name] = Spot(chunk=dataclasses.replace(chunk, names=(name,), rows=1))
        elif chunk.kind == "shard":
            found.update(_in_shard(chunk, column))
        else:
            found.update(_in_table(chunk, column))
    return found


def _in_shard(chunk: images.Chunk, wanted: pa.Array) -> Iterable[tuple[str, Spot]]:
    columns = ["key", "pair_id", "status", "caption", "url", "original_width", "original_height"]
    file = paths.join(chunk.root, f"{chunk.names[0]}.parquet")
    for batch in tables.read_batches([file], columns=columns):
        chosen = batch.filter(pc.is_in(batch.column("pair_id"), value_set=wanted))
        for row in chosen.to_pylist():
            if row["status"] != "success":
                continue
            facts = [("caption", row["caption"]), ("url", row["url"])]
            if row["original_width"] and row["original_height"]:
                facts.append(("on the web", f"{row['original_width']} × {row['original_height']} pixels"))
            yield row["pair_id"], Spot(chunk=chunk, key=row["key"], facts=tuple(facts))


def _in_table(chunk: images.Chunk, wanted: pa.Array) -> Iterable[tuple[str, Spot]]:
    import pyarrow.parquet as pq

    with paths.open_input(chunk.root, decompress=False) as opened:
        try:
            file = pq.ParquetFile(opened)
            key = "id" if "id" in file.schema_arrow.names else "pair_id"
            ids = file.read_row_group(int(chunk.names[0]), columns=[key]).column(key).cast(pa.string())
        except (pa.ArrowException, OSError) as error:
            raise InputError("damaged Parquet file", where=chunk.root, found=str(error)) from error
    for name in ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist():
        yield name, Spot(chunk=chunk)


@functools.lru_cache(maxsize=16)
def _members(shard: str) -> dict[str, tuple[int, int]]:
    return tars.plain_members(shard)


def read(spot: Spot, name: str) -> bytes:
    """One picture's encoded bytes.

    Raises:
        ValueError: It is not there.
        InputError: Its file is damaged.
    """
    if spot.key is not None:
        shard = paths.join(spot.chunk.root, f"{spot.chunk.names[0]}.tar")
        members = _members(shard)
        found = next((m for m in images.MEMBERS if f"{spot.key}.{m}" in members), None)
        if found is not None:
            place, size = members[f"{spot.key}.{found}"]
            with paths.open_input(shard, decompress=False) as file:
                file.seek(place)
                return file.read(size)
    picture = next((p for p in images.read(spot.chunk) if p.id == name), None)
    if picture is None or picture.data is None:
        raise ValueError((picture and picture.problem) or "the picture is not where it was")
    return picture.data


def show(spot: Spot, name: str) -> Shown:
    """Reads and decodes one picture.

    Raises:
        ValueError: It cannot be read or decoded; the text says why.
    """
    from PIL import Image

    try:
        data = read(spot, name)
        with Image.open(io.BytesIO(data)) as opened:
            kind, (width, height) = str(opened.format), opened.size
    except (WitError, OSError) as error:
        raise ValueError(str(error)) from error
    image = decode(data)
    image.thumbnail((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return Shown(png=buffer.getvalue(), width=width, height=height, size=len(data), kind=kind)


def facts(spot: Spot | None, shown: Shown | None, name: str) -> list[tuple[str, str]]:
    """What the page tells about a picture, as (name, text)."""
    told: list[tuple[str, str]] = [*(spot.facts if spot else ())]
    told.append(("id", name))
    if shown is not None:
        told.append(("file", f"{shown.kind}, {shown.width} × {shown.height} pixels, {_bytes(shown.size)}"))
    return told


def _bytes(size: int) -> str:
    return f"{size:,} bytes" if size < 10_000 else f"{size / 1000:,.0f} kB"


def sources(
    neighbours: str, train: Sequence[str], evals: Sequence[str]
) -> tuple[tuple[str, ...], Mapping[str, tuple[str, ...]]]:
    """Where to look for pictures: what the person named, else what the manifests name."""
    named_train, named_evals = embedded_from(neighbours)
    if evals:
        named_evals = {}
        for path in evals:
            name = images.dataset_name(path)
            named_evals[name] = (*named_evals.get(name, ()), path)
    return tuple(train) or named_train, named_evals
