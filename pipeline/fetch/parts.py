"""The second pass: a part of downloaded bodies becomes a part of encoded images, each URL's once.

An image with many texts is decoded here once and copied into shards as often as pairs need it. Parts are of like
size whatever hosts they come from, so the work is even over workers, and a part that is there is not made again.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipeline.core import counters, paths, tables
from pipeline.core.progress import tick
from pipeline.core.worklog import working
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.decode import Decoder, decoder_for
from pipeline.fetch.hooks import read_deny_list
from pipeline.fetch.images import Stored
from pipeline.fetch.policy import Refusal
from pipeline.fetch.reuse import as_it_is
from pipeline.fetch.rights import reserving
from pipeline.fetch.staging import DECODED, RAW, ROW, Bodies, Row, decoded_bodies, indexes, write_parquet


def undecoded(work: str) -> list[str]:
    """Names of the parts of ``raw/`` that have no part in ``decoded/``."""
    names = [{f.rsplit("/", 1)[1] for f in indexes(paths.join(work, inner))} for inner in (RAW, DECODED)]
    return sorted(name.removesuffix(".parquet") for name in names[0] - names[1])


def decode_part(
    name: str, work: str, config: FetchConfig, decoder: Decoder, denied: frozenset[str] = frozenset()
) -> int:
    """Decodes one part and returns how many images it has; nothing happens if that was done before.

    The downloaded bodies are removed: images are what is needed from here on. Decoding has limits of time, so two
    attempts at one part may differ: each writes a file of images of its own, which its index names.

    Args:
        name: Of the part.
        work: The staging folder.
        config: How images are stored.
        decoder: Of the same configuration.
        denied: Sums of images as fetched that are not taken over from elsewhere either.
    """
    target = paths.join(work, DECODED, f"{name}.parquet")
    if paths.exists(target):
        return 0
    rows = tables.read_files([paths.join(work, RAW, f"{name}.parquet")]).to_pylist()
    for row in rows:
        marks = (
            reserving(tuple((row["image_rights"] or "").split(", "))) if config.drop_reserved_images else ()
        )
        if row["sha256"] in denied:
            row |= _refused(Refusal("blocklisted_hash"))
        elif marks:  # known from when it was fetched: a stored image has lost its metadata
            row |= _refused(Refusal("rights_flag", ", ".join(marks)))
    images = f"{name}-{uuid.uuid4().hex[:8]}"
    with (
        Bodies(work) as bodies,
        paths.open_atomic(paths.join(work, DECODED, f"{images}.bin")) as file,
    ):
        size = 0
        waiting = [row for row in rows if needs_decoding(row)]
        tick(len(rows) - len(waiting))
        results = zip(waiting, decoder.decode(bodies.read(row) for row in waiting), strict=True)
        for row, found in results:
            row |= _decoded(row, found, bodies, config)
            if isinstance(found, Stored):
                jpeg = row.pop("jpeg")
                file.write(jpeg)
                row |= {"bodies": decoded_bodies(images), "offset": size, "length": len(jpeg)}
                size += len(jpeg)
            tick()
    write_parquet(target, pa.Table.from_pylist(rows, schema=ROW))
    paths.remove(paths.join(work, RAW, f"{name}.bin"))
    return sum(row["reason"] is None for row in rows)


def needs_decoding(row: Row) -> bool:
    """Whether a row has a body and no image; one taken over from equal settings has its image already."""
    return row["reason"] is None and row["width"] is None


def _decoded(row: Row, found: Stored | Refusal, bodies: Bodies, config: FetchConfig) -> dict[str, Any]:
    """What decoding changes in a row; a success comes with its ``jpeg``."""
    if isinstance(found, Refusal):
        return _refused(found)
    same = as_it_is(bodies.read(row), found, config) if row["source"] is not None else None
    jpeg = found.jpeg if same is None else same
    seen = row["original_width"] is not None
    return {
        "jpeg": jpeg,
        "sha256": row["sha256"] or hashlib.sha256(bodies.read(row)).hexdigest(),
        "width": found.width,
        "height": found.height,
        "original_width": row["original_width"] if seen else found.original_width,
        "original_height": row["original_height"] if seen else found.original_height,
        "exif": found.exif if row["exif"] is None else row["exif"],
        "phash": found.phash if same is None else row["phash"] or found.phash,
        "image_rights": row["image_rights"] or ", ".join(found.rights) or None,
        "image_score": found.score,
    }


def _refused(refusal: Refusal) -> dict[str, Any]:
    nothing = {"bodies": None, "offset": 0, "length": 0}
    return {"reason": refusal.reason, "detail": refusal.detail, **nothing}


class DecodeParts(beam.DoFn):
    """Names of parts to their number of images; the decoder lives as long as the worker.

    Args:
        work: The staging folder.
        config: How images are stored.
    """

    def __init__(self, work: str, config: FetchConfig) -> None:
        self._work, self._config = work, config

    def setup(self) -> None:
        """Starts the decoder."""
        self._decoder = decoder_for(self._config)
        self._decoder.__enter__()
        path = self._config.deny_hashes
        self._denied = read_deny_list(path) if path else frozenset[str]()

    def process(self, element: str) -> Iterator[int]:
        """Decodes one part; a retried element finds it done."""
        with working("fetch", f"decode {element}"):
            made = decode_part(element, self._work, self._config, self._decoder, self._denied)
        counters.count("fetch.urls", "decoded", made)
        yield made

    def teardown(self) -> None:
        """Ends the decoder."""
        self._decoder.__exit__(None, None, None)
