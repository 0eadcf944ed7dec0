"""``wit dedup audit``: embed, search and report in one go; each finished part is kept when the command is repeated."""

from __future__ import annotations

import dataclasses
import sys
from typing import TypeVar

from dedup import embed, images, report, search
from dedup.backends import files_of, open_backend, stand_in
from dedup.config import AuditConfig, EmbedConfig, ReportConfig, SearchConfig
from pipeline.core import beam as stages
from pipeline.core import paths
from pipeline.core.errors import StageFailedError, UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.stage import RunOptions, StageResult, run_stage

STAGE = "dedup audit"
TRAIN, EVAL, NEIGHBOURS = "train-embeddings", "eval-embeddings", "neighbours"
ResultT = TypeVar("ResultT")


def run(config: AuditConfig, out: str, options: RunOptions) -> Manifest | None:
    """Runs the command; see :func:`pipeline.core.stage.run_stage`."""
    if not config.train or not config.eval:
        raise UsageError("an audit needs both sides", expected="--train PATH… --eval PATH…")
    detector = embed.require_detector(config.detector)
    _check_names(config)
    backend = open_backend(detector, input_file=config.detector_input, device=config.device)
    config = dataclasses.replace(config, hash=stand_in(detector, backend))
    own = files_of(detector, config.detector_input)
    inputs = [*config.train, *config.eval, *own, *config.predictions]
    if config.thresholds:
        inputs.append(config.thresholds)

    def body(folder: str) -> StageResult:
        return audit(config, folder, options)

    made = run_stage(
        body,
        stage=STAGE,
        contract=report.CONTRACT,
        config=config,
        inputs=inputs,
        out=out,
        options=options,
        # The parts look after their own folders: other thresholds or predictions must not cost a new embedding.
        owned=(report.OVERLAP_JSON, report.OVERLAP_HTML),
        resumable=True,
    )
    if made is not None and not config.thresholds and not options.quiet:
        neighbours = paths.join(out, NEIGHBOURS)
        print(f"  look at the pairs: wit dedup review --neighbours {neighbours}", file=sys.stderr)  # noqa: T201
    return made


def _check_names(config: AuditConfig) -> None:
    names: dict[str, str] = {}
    for path in config.eval:
        name = images.dataset_name(path)
        if names.setdefault(name, path) != path:
            raise UsageError(
                f"two evaluation sets are called {name!r}",
                where=path,
                found=f"also {names[name]}",
                hint="rename a folder, or use `wit dedup embed --dataset` and `wit dedup search`",
            )


def audit(config: AuditConfig, out: str, options: RunOptions) -> StageResult:
    """Runs the parts into folders below ``out`` and writes the report into ``out`` itself."""
    within = dataclasses.replace(options, overwrite=True)
    train, neighbours = paths.join(out, TRAIN), paths.join(out, NEIGHBOURS)
    wanted = EmbedConfig(
        detector=config.detector,
        detector_input=config.detector_input,
        half=config.half,
        device=config.device,
        decode_threads=config.decode_threads,
        threads=config.threads,
    )
    _done(embed.run(dataclasses.replace(wanted, images=config.train, dataset="train"), train, within))
    evals = []
    for path in config.eval:
        folder = paths.join(out, EVAL, images.dataset_name(path))
        _done(embed.run(dataclasses.replace(wanted, images=(path,)), folder, within))
        evals.append(folder)
    found = SearchConfig(
        train=train,
        eval=tuple(evals),
        k=config.k,
        index=config.index,
        probes=config.probes,
        threads=config.threads,
    )
    _done(search.run(found, neighbours, within))
    written = report.write_report(
        ReportConfig(neighbours=neighbours, thresholds=config.thresholds, predictions=config.predictions), out
    )
    return dataclasses.replace(written, engine=stages.engine(stages.pipeline_options(options.beam)))


def _done(made: Manifest | None) -> Manifest:
    if made is None:
        raise StageFailedError("a part of the audit did nothing")
    return made
