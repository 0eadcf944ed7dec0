"""``wit dedup embed``: pictures to embeddings, as a Beam stage (``embeddings/1``).

An element is a shard or a chunk of files; its pictures are read in a fixed order and embedded in batches of a
fixed size, so an embedding's bits do not depend on which worker made it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from dedup import confounders, images
from dedup import detector as detectors
from dedup.backends import HASHES, Backend, open_backend
from dedup.collection import UNREADABLE
from dedup.config import EmbedConfig
from dedup.detector import decode, size
from pipeline.core import beam as stages
from pipeline.core import paths, tables
from pipeline.core.contracts import EMBEDDINGS, Contract
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress, tick
from pipeline.core.stage import RunOptions, StageResult, run_stage

STAGE = "dedup embed"
MISSING = "missing-image"
REASONS = (UNREADABLE, MISSING)
# A trained detector as `wit dedup train` writes it, or nothing.
SHIPPED = resources.files("dedup").joinpath("default")
ROWS_PER_PART = 100_000
_TOTAL = "rows-in.tmp"


def embeddings_contract(dimension: int, *, half: bool = False) -> Contract:
    """``embeddings/1`` with the dimension fixed, so that files hold fixed-size lists, of float16 if ``half``."""
    vector = _vector_type(dimension, half)
    place = EMBEDDINGS.schema.get_field_index("embedding")
    field = pa.field("embedding", vector, nullable=False)
    return dataclasses.replace(EMBEDDINGS, schema=EMBEDDINGS.schema.set(place, field))


def require_detector(folder: str | None) -> str:
    """The detector's folder: the one given, else the trained one that ships in ``dedup/default/``.

    Raises:
        UsageError: None was given and none ships with this installation.
    """
    if folder is not None:
        return folder
    shipped = str(SHIPPED)
    if not paths.exists(paths.join(shipped, detectors.WEIGHTS)):
        raise UsageError(
            "no detector given, and none ships with this installation",
            hint="train one with `wit dedup train --images PATH --out DIR` and pass --detector DIR",
        )
    return shipped


def run(config: EmbedConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs the command; see :func:`pipeline.core.stage.run_stage`."""
    folder = require_detector(config.detector)
    chunks = images.plan(config.images, dataset=config.dataset)
    backend = open_backend(folder)
    config = dataclasses.replace(config, hash=folder if folder in HASHES else None)

    def body(written: str) -> StageResult:
        return embed_chunks(config, chunks, backend, written, options)

    return run_stage(
        body,
        stage=STAGE,
        contract=EMBEDDINGS.id,
        config=config,
        inputs=[*config.images, *([] if folder in HASHES else [folder])],
        out=out,
        options=options,
        owned=(_TOTAL,),
    )


def embed_chunks(
    config: EmbedConfig, chunks: Sequence[images.Chunk], backend: Backend, out: str, options: RunOptions
) -> StageResult:
    """Runs the pipeline over planned chunks and writes the folder's parts."""
    beam_options = stages.pipeline_options(options.beam)
    dimension = backend.dimension
    contract = embeddings_contract(dimension)
    total = sum(chunk.rows for chunk in chunks)

    def build(pipeline: beam.Pipeline) -> None:
        made = (
            pipeline
            | "Chunks" >> beam.Create(list(chunks), reshuffle=True)
            | "Embed"
            >> beam.ParDo(EmbedChunks(config.detector, config.batch_size, config.threads)).with_outputs(
                "dropped", "rows", main="embedded"
            )
        )
        made.embedded | "Write" >> stages.WriteTables(
            out, contract, key="id", order=("dataset", "id"), partitions=1 + total // ROWS_PER_PART
        )
        made.dropped | "WriteDropped" >> stages.WriteDropped(out)
        made.rows | "CountRows" >> stages.WriteTotal(paths.join(out, _TOTAL))

    with Progress(STAGE, total=total, unit="pictures", quiet=options.quiet):
        stages.run_pipeline(build, beam_options)
    return StageResult(
        rows=stages.finish_parts(out, contract),
        rows_in=stages.read_total(paths.join(out, _TOTAL)),
        engine=stages.engine(beam_options),
        extra={
            "detector_sha256": backend.sha256,
            "dimension": dimension,
            "threshold": backend.threshold,
            "datasets": sorted({chunk.dataset for chunk in chunks}),
        },
    )


class EmbedChunks(beam.DoFn):
    """Embeds chunks; the detector is loaded once in each worker.

    Args:
        detector: Folder of the detector; ``None`` is the one that ships with the worker's installation.
        batch_size: Pictures embedded at once.
        threads: Threads of the arithmetic.
    """

    def __init__(self, detector: str | None, batch_size: int, threads: int) -> None:
        self.detector, self.batch_size, self.threads = detector, batch_size, threads

    def setup(self) -> None:
        """Loads the detector."""
        import torch

        torch.set_num_threads(self.threads)
        self.backend = open_backend(require_detector(self.detector))

    def process(self, chunk: images.Chunk) -> Iterator[Any]:
        """Yields tables of embeddings and of dropped rows, and the number of pictures that came in."""
        lost: list[tuple[str, str, str | None]] = []
        rows = 0
        for batch in batches(_counted(images.read(chunk)), self.batch_size):
            rows += len(batch)
            table, dropped = embed_batch(self.backend, batch, chunk.dataset)
            lost += dropped
            if table.num_rows:
                yield table
        if lost:
            yield beam.pvalue.TaggedOutput("dropped", tables.dropped_table(STAGE, lost))
        yield beam.pvalue.TaggedOutput("rows", rows)


def _counted(pictures: Iterable[images.Picture]) -> Iterator[images.Picture]:
    for picture in pictures:
        tick()
        yield picture


def batches(pictures: Iterable[images.Picture], size: int) -> Iterator[list[images.Picture]]:
    """Groups pictures in their order; the last group may be smaller."""
    held: list[images.Picture] = []
    for picture in pictures:
        held.append(picture)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def embed_batch(
    backend: Backend, batch: Sequence[images.Picture], dataset: str
) -> tuple[pa.Table, list[tuple[str, str, str | None]]]:
    """Embeds some pictures.

    Returns:
        A table of ``embeddings/1``, and the dropped rows as (reason, id, detail).
    """
    kept: list[images.Picture] = []
    prepared: list[np.ndarray] = []
    facts: list[tuple[int, int, float]] = []
    lost: list[tuple[str, str, str | None]] = []
    for picture in batch:
        if picture.data is None:
            lost.append((MISSING, picture.id, picture.problem))
            continue
        try:
            image = decode(picture.data)
            prepared.append(backend.prepare(image))
            facts.append((*size(picture.data), confounders.spread(image)))
        except ValueError as error:
            lost.append((UNREADABLE, picture.id, str(error)))
            continue
        kept.append(picture)
    found = backend.embed(prepared)
    if not np.isfinite(found).all():
        raise InputError("the detector gives embeddings that are not numbers", where=dataset)
    contract = embeddings_contract(backend.dimension)
    table = pa.table(
        {
            "id": pa.array([p.id for p in kept], pa.string()),
            "dataset": pa.array([dataset] * len(kept), pa.string()),
            "label": pa.array([p.label for p in kept], pa.string()),
            "embedding": vectors_to_arrow(found),
            # What the report needs to tell blank and tiny pictures from copies.
            "width": pa.array([width for width, _, _ in facts], pa.int32()),
            "height": pa.array([height for _, height, _ in facts], pa.int32()),
            "spread": pa.array([spread for _, _, spread in facts], pa.float32()),
        }
    )
    return contract.conform(table), lost


def vectors_to_arrow(vectors: np.ndarray, *, half: bool = False) -> pa.FixedSizeListArray:
    """float32 [N, d] as a column of fixed-size lists, of float16 if ``half``."""
    kept = np.ascontiguousarray(vectors, np.float16 if half else np.float32)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(kept.reshape(-1)), type=_vector_type(vectors.shape[1], half)
    )


def _vector_type(dimension: int, half: bool) -> pa.DataType:
    return pa.list_(pa.field("element", pa.float16() if half else pa.float32()), dimension)
