"""``wit export``: a checkpoint of any known form in the form that another program loads."""

from __future__ import annotations

from model import checkpoint, interchange
from model.clip import CLIP
from model.config import ExportConfig
from pipeline.core import paths
from pipeline.core.errors import UsageError
from pipeline.core.manifest import Manifest
from pipeline.core.stage import RunOptions, StageResult, run_stage

CONTRACT = "exported-model/1"
OWNED = (checkpoint.WEIGHTS, checkpoint.CONFIG, "open_clip_*", "pytorch_model.bin")


def run(config: ExportConfig, out: str, options: RunOptions) -> Manifest | None:
    """Writes a model's weights and configuration for open_clip or transformers, or as a checkpoint of ours.

    Raises:
        WitError: A missing or bad model, or one that the other program does not have.
    """
    if config.model is None:
        raise UsageError("nothing to export", hint="pass --model PATH")
    source = config.model
    checkpoint.check(source)

    def body(folder: str) -> StageResult:
        model = checkpoint.load_model(source)
        write(model, folder, config.form)
        count = len(model.state_dict())
        return StageResult(rows=count, rows_in=count, extra={"form": config.form})

    return run_stage(
        body,
        stage="export",
        contract=checkpoint.CONTRACT if config.form == "wit" else CONTRACT,
        config=config,
        inputs=[source],
        out=out,
        options=options,
        owned=OWNED,
    )


def write(model: CLIP, folder: str, form: str) -> None:
    """Writes the files of one form.

    Raises:
        UsageError: The other program has no such model.
    """
    if form == "wit":
        checkpoint.save_model(folder, model, name="imported")
        return
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    for name, data in interchange.files_for(form)(model.config, state).items():
        paths.write_bytes(paths.join(folder, name), data)
