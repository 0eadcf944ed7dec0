"""``wit dedup embed``: pictures to embeddings, as a Beam stage (``embeddings/1``).

An element is a shard or a chunk of files; its pictures are read in a fixed order and embedded in batches of a
fixed size, so an embedding's bits do not depend on which worker made it. Pictures are decoded in threads while the
detector works on those before them, and equal files in a chunk are embedded once. What a chunk gave is kept in
:data:`CHUNKS` until the folder is finished: a killed run goes on with the chunks that are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from dedup import decoding, images
from dedup.backends import Backend, files_of, open_backend, stand_in
from dedup.collection import UNREADABLE
from dedup.config import EmbedConfig
from dedup.decoding import MISSING, Lost, Once, Prepared, batches, prepared
from dedup.folder import WEIGHTS
from pipeline.core import beam as stages
from pipeline.core import counters, paths, tables
from pipeline.core.contracts import DROPPED, EMBEDDINGS, Contract
from pipeline.core.errors import InputError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.progress import Progress, duration, tick
from pipeline.core.stage import RunOptions, StageResult, clear, run_stage
from pipeline.core.worklog import working

STAGE = "dedup embed"
REASONS = (UNREADABLE, MISSING)
# A trained detector as `wit dedup train` writes it, or nothing.
SHIPPED = resources.files("dedup").joinpath("default")
ROWS_PER_PART = 100_000
_TOTAL = "rows-in.tmp"
CHUNKS = ".chunks"
# Marks a kept chunk that was made anew.
_AGAIN = ".again"


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
    if not paths.exists(paths.join(shipped, WEIGHTS)):
        raise UsageError(
            "no detector given, and none ships with this installation",
            hint="train one with `wit dedup train --images PATH --out DIR` and pass --detector DIR",
        )
    return shipped


def run(config: EmbedConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs the command; see :func:`pipeline.core.stage.run_stage`."""
    name = require_detector(config.detector)
    chunks = images.plan(config.images, dataset=config.dataset)
    backend = open_backend(name, input_file=config.detector_input, device=config.device)
    config = dataclasses.replace(config, hash=stand_in(name, backend))
    said: list[str] = []

    def body(written: str) -> StageResult:
        # What an attempt that failed at its end wrote; its chunks stay.
        clear(written, ("part-*.parquet", f"{CHUNKS}/*{_AGAIN}"))
        paths.remove(paths.join(written, "dropped"))
        files = {_kept_file(written, c): c.rows for c in chunks}
        before = [file for file in files if paths.exists(file)]
        started = time.monotonic()
        result = embed_chunks(config, chunks, backend, written, options)
        kept = sum(files[file] for file in before if not paths.exists(file + _AGAIN))
        said.append(rate_line(result.rows_in - kept, kept, time.monotonic() - started))
        return result

    done = run_stage(
        body,
        stage=STAGE,
        contract=EMBEDDINGS.id,
        config=config,
        inputs=[*config.images, *files_of(name, config.detector_input)],
        out=out,
        options=options,
        owned=(_TOTAL, f"{CHUNKS}/*"),
        resumable=True,
        damage=REASONS,
    )
    if done is not None:  # not before: a stage that fails in its last check goes on from them
        paths.remove(paths.join(out, CHUNKS))
    if said and not options.quiet:
        print(f"  {said[0]}", file=sys.stderr)  # noqa: T201
    return done


def rate_line(made: int, kept: int, seconds: float) -> str:
    """What the closing line says of speed: of all pictures that came in, repeats and dropped ones too."""
    line = f"{made:,} pictures in {duration(seconds)}, {made / max(seconds, 1e-9):,.1f} images/s"
    return f"{line}; {kept:,} kept from an earlier run" if kept else line


def embed_chunks(
    config: EmbedConfig, chunks: Sequence[images.Chunk], backend: Backend, out: str, options: RunOptions
) -> StageResult:
    """Runs the pipeline over planned chunks and writes the folder's parts."""
    beam_options = stages.pipeline_options(options.beam)
    dimension = backend.dimension
    contract = embeddings_contract(dimension, half=config.half)
    total = sum(chunk.rows for chunk in chunks)
    paths.make_folder(paths.join(out, CHUNKS))

    def build(pipeline: beam.Pipeline) -> None:
        made = (
            pipeline
            | "Chunks" >> beam.Create(list(chunks), reshuffle=True)
            | "Embed"
            >> beam.ParDo(EmbedChunks(config, out, backend.sha256)).with_outputs(
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


def _kept_file(out: str, chunk: images.Chunk) -> str:
    name = hashlib.sha256(repr(chunk).encode(errors="replace")).hexdigest()[:32]
    return paths.join(out, CHUNKS, f"{name}.parquet")


def _kept_dropped(file: str) -> str:
    return file.removesuffix(".parquet") + ".dropped.parquet"


class EmbedChunks(beam.DoFn):
    """Embeds chunks; the detector is loaded once in each worker.

    Args:
        config: The command's configuration.
        out: The command's folder, in which finished chunks are kept.
        sha256: The detector's identity.
    """

    def __init__(self, config: EmbedConfig, out: str, sha256: str) -> None:
        self.config, self.out, self.sha256 = config, out, sha256

    def setup(self) -> None:
        """Loads the detector.

        Raises:
            InputError: It is another one than the command was started with.
        """
        import torch

        torch.set_num_threads(self.config.threads)
        name = require_detector(self.config.detector)
        self.backend = open_backend(name, input_file=self.config.detector_input, device=self.config.device)
        if self.backend.sha256 != self.sha256:
            raise InputError(
                "the detector is another one each time it is opened, or on each worker",
                where=name,
                expected=f"sha256 {self.sha256[:16]}",
                found=self.backend.sha256[:16],
                hint="it must load fixed weights, the same ones everywhere, and not change while it is used",
            )

    def process(self, chunk: images.Chunk) -> Iterator[Any]:
        """Yields tables of embeddings and of dropped rows, and the number of pictures that came in."""
        with working(STAGE, f"{chunk.root}/{chunk.names[0]}"):
            table, lost = self._kept(chunk) or self._embed(chunk)
            counters.count_rows(STAGE, rows_in=table.num_rows + lost.num_rows, rows_out=table.num_rows)
            if table.num_rows:
                yield table
            if lost.num_rows:
                yield beam.pvalue.TaggedOutput("dropped", lost)
            yield beam.pvalue.TaggedOutput("rows", table.num_rows + lost.num_rows)

    def _kept(self, chunk: images.Chunk) -> tuple[pa.Table, pa.Table] | None:
        file = _kept_file(self.out, chunk)
        if not paths.exists(file):
            return None
        table, lost = tables.read_files([file]), tables.read_files([_kept_dropped(file)])
        if lost.num_rows and self._is_mended(chunk, set(lost.column("id").to_pylist())):
            # As a whole: an embedding's last bits may depend on its batch.
            paths.write_bytes(file + _AGAIN, b"")
            paths.remove(file)
            return None
        tick(table.num_rows + lost.num_rows)
        return table, lost

    def _is_mended(self, chunk: images.Chunk, lost: set[str]) -> bool:
        """Whether a picture that an earlier run dropped is there now."""
        pictures = (p for p in images.read(chunk) if p.id.encode(errors="replace").decode() in lost)
        return any(decoding.prepare(picture, self.backend).lost is None for picture in pictures)

    def _embed(self, chunk: images.Chunk) -> tuple[pa.Table, pa.Table]:
        """A chunk's embeddings and its dropped rows, which are kept."""
        contract = embeddings_contract(self.backend.dimension, half=self.config.half)
        found: list[pa.Table] = []
        lost: list[Lost] = []
        once = Once(images.read(chunk))
        pictures = prepared(once, self.backend, 2 * self.config.batch_size, self.config.decode_threads)
        for batch in batches(pictures, self.config.batch_size):
            table, dropped = embed_batch(self.backend, batch, chunk.dataset, half=self.config.half)
            once.note(batch)
            found.append(table)
            lost += dropped
        table = pa.concat_tables(found) if found else contract.empty()
        table, dropped = once.again(table)
        made = (table, tables.dropped_table(STAGE, lost + dropped))
        file = _kept_file(self.out, chunk)
        # The embeddings last: where they are, the whole chunk is.
        tables.write_table(_kept_dropped(file), made[1], DROPPED)
        tables.write_table(file, made[0], contract)
        return made


def embed_batch(
    backend: Backend, batch: Sequence[Prepared], dataset: str, *, half: bool = False
) -> tuple[pa.Table, list[Lost]]:
    """Embeds some pictures.

    Returns:
        A table of ``embeddings/1``, and the dropped rows as (reason, id, detail).
    """
    kept = [one for one in batch if one.pixels is not None]
    lost = [(one.lost[0], one.picture.id, one.lost[1]) for one in batch if one.lost is not None]
    found = backend.embed([one.pixels for one in kept if one.pixels is not None])
    if not np.isfinite(found).all():
        raise InputError("the detector gives embeddings that are not numbers", where=dataset)
    contract = embeddings_contract(backend.dimension, half=half)
    table = pa.table(
        {
            "id": pa.array([one.picture.id for one in kept], pa.string()),
            "dataset": pa.array([dataset] * len(kept), pa.string()),
            "label": pa.array([one.picture.label for one in kept], pa.string()),
            "embedding": vectors_to_arrow(found, half=half),
            # What the report needs to tell blank and tiny pictures from copies.
            "width": pa.array([one.width for one in kept], pa.int32()),
            "height": pa.array([one.height for one in kept], pa.int32()),
            "spread": pa.array([one.spread for one in kept], pa.float32()),
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
