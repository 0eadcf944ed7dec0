"""``manifest.json``: written last, so that a folder without it is unfinished and no reader accepts it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from pipeline.core import paths
from pipeline.core.errors import ContractError, InputError, UnfinishedInputError

NAME = "manifest.json"
HASHED_BYTES = 2**20
_TIMES = ("started_at", "finished_at")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished folder says about itself.

    Attributes:
        contract: ``name/version`` of what it holds.
        stage: Command that made it.
        rows: Rows written.
        dropped: Rows dropped, by reason; together with ``rows`` they add up to ``rows_in``.
        rows_in: Rows that came in, in the unit the stage counts in.
        inputs: ``path`` with ``rows`` and ``manifest_sha256``, or ``bytes``, for each input.
        config: Resolved configuration.
        config_sha256: Hash of what in it can change the result.
        version: Version of this distribution.
        engine: What ran the stage (``local``, ``FnApiRunner``, …).
        started_at: UTC, ISO 8601.
        finished_at: UTC, ISO 8601.
        extra: Stage-specific entries, stored beside the others.
    """

    contract: str
    stage: str
    rows: int
    rows_in: int
    dropped: Mapping[str, int]
    inputs: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]
    config_sha256: str
    version: str
    engine: str
    started_at: str
    finished_at: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text: sorted keys, ``extra`` merged in."""
        values = asdict(self)
        values.update(values.pop("extra"))
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @property
    def sha256(self) -> str:
        """Hash of everything but the times, the engine and the input paths: equal work gives equal hashes."""
        values = json.loads(self.to_json())
        for name in (*_TIMES, "engine", "config"):
            values.pop(name)
        values["inputs"] = [identity(i) for i in values["inputs"]]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def identity(described: Mapping[str, Any]) -> dict[str, Any]:
    """What an input *is*, without where it lies."""
    return {k: v for k, v in described.items() if k != "path"}


def version() -> str:
    """This distribution's version."""
    return metadata.version("webimagetext")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(folder: str, *, made_by: str = "the stage that makes it", contract: str | None = None) -> Manifest:
    """Reads a folder's manifest.

    Args:
        folder: Of a finished stage.
        made_by: The command that makes such a folder.
        contract: ``name/version`` that it must hold; unless given, any.

    Raises:
        InputError: The folder is not there.
        UnfinishedInputError: It has no manifest.
        ContractError: Its manifest is not one of ours, or names another contract.
    """
    name = paths.join(folder, NAME)
    if not paths.exists(folder):
        raise InputError("no such folder", where=folder, hint=f"make it with `{made_by}`")
    if not paths.exists(name):
        raise UnfinishedInputError(
            "the folder is unfinished: it has no manifest.json",
            where=folder,
            hint=f"finish it with `{made_by}`",
        )
    try:
        values = json.loads(paths.read_bytes(name))
        known = {f: values.pop(f) for f in Manifest.__dataclass_fields__ if f != "extra"}
    except (ValueError, KeyError, AttributeError) as error:
        raise ContractError(
            "not a manifest of this project", where=name, found=f"{type(error).__name__}: {error}"
        ) from error
    if contract not in (None, known["contract"]):
        raise ContractError(
            "another contract",
            where=folder,
            expected=contract,
            found=known["contract"],
            hint=f"make it with `{made_by}`",
        )
    return Manifest(**known, extra=values)


def describe(path: str) -> dict[str, Any]:
    """How an input is named in a manifest: rows and manifest hash of a stage's folder, or bytes of files.

    Small files, such as lists of class names, carry a hash too: an edit can leave their length as it was.
    """
    if paths.is_folder(path):
        if paths.exists(paths.join(path, NAME)):
            found = read(path)
            return {"path": path, "rows": found.rows, "manifest_sha256": found.sha256}
        return {"path": path, "bytes": sum(_size(f) for f in paths.list_files(path))}
    if not paths.exists(path):
        return {"path": path, "bytes": sum(paths.size(f) for f in paths.expand([path]))}
    size = paths.size(path)
    if size > HASHED_BYTES:
        return {"path": path, "bytes": size}
    return {"path": path, "bytes": size, "sha256": hashlib.sha256(paths.read_bytes(path)).hexdigest()}


def _size(path: str) -> int:
    try:
        return paths.size(path)
    except OSError:  # as of a link to nothing: whoever reads it says so, and may go on without it
        return 0
