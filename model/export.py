"""``wit export``: a checkpoint of any known form in the form that another program loads, with its model card."""

from __future__ import annotations

from typing import Any

from model import checkpoint, interchange, onnx_towers
from model.clip import CLIP
from model.config import ExportConfig
from pipeline.core import model_card, paths
from pipeline.core.errors import UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.stage import RunOptions, StageResult, run_stage

CONTRACT = "exported-model/1"
OWNED = (
    checkpoint.WEIGHTS, checkpoint.CONFIG, "open_clip_*", "pytorch_model.bin",
    onnx_towers.IMAGE_TOWER, onnx_towers.TEXT_TOWER, onnx_towers.PREPROCESSING, model_card.NAME,
)  # fmt: skip


def run(config: ExportConfig, out: str, options: RunOptions) -> Manifest | None:
    """Writes a model for open_clip, transformers or ONNX's runtimes, or as a checkpoint of ours.

    Raises:
        WitError: A missing or bad model, one that the other program does not have, or packages that are missing.
    """
    if config.model is None:
        raise UsageError("nothing to export", hint="pass --model PATH")
    source = config.model
    checkpoint.check(source)
    if config.form == "onnx":
        onnx_towers.check_installed()

    def body(folder: str) -> StageResult:
        model = checkpoint.load_model(source)
        facts = write(model, folder, config.form)
        paths.write_bytes(paths.join(folder, model_card.NAME), _card(config, source, model).encode())
        count = len(model.state_dict())
        return StageResult(rows=count, rows_in=count, extra={"form": config.form, **facts})

    return run_stage(
        body,
        stage="export",
        contract=checkpoint.CONTRACT if config.form == "wit" else CONTRACT,
        config=config,
        inputs=[source, *config.scores, *([config.overlaps] if config.overlaps else [])],
        out=out,
        options=options,
        owned=OWNED,
    )


def _card(config: ExportConfig, source: str, model: CLIP) -> str:
    """The model card, with the training's history where the checkpoint is ours."""
    name = config.name or source.rstrip("/").rpartition("/")[2]
    library = {"open_clip": "open_clip", "transformers": "transformers", "onnx": "onnx"}.get(config.form)
    return model_card.card(
        source, name=name, architecture=model.config.to_dict(), scores=config.scores, overlaps=config.overlaps,
        library=library,
    )  # fmt: skip


def write(model: CLIP, folder: str, form: str) -> dict[str, Any]:
    """Writes the files of one form; returns what the manifest says of them.

    Raises:
        UsageError: The other program has no such model.
        StageFailedError: An ONNX model does not compute what torch does.
    """
    if form == "wit":
        checkpoint.save_model(folder, model, name="imported")
        return {}
    facts: dict[str, Any] = {}
    if form == "onnx":
        made = onnx_towers.export(model)
        files = made.files
        facts = {"opset": onnx_towers.OPSET, "difference_from_torch": made.difference}
    else:
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        files = interchange.files_for(form)(model.config, state)
    for name, data in files.items():
        paths.write_bytes(paths.join(folder, name), data)
    return facts
