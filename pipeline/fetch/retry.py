"""``--retry``: a folder fetches again what may succeed now, and keeps what it has.

The finished files move into ``.previous/``, which then is a source like any other (see :mod:`.reuse`): images are
copied from there byte for byte, final failures stay, and only retryable URLs are asked for. ``manifest.json`` moves
first and the new one is written last, so at every moment the folder is either finished or goes on where it was.

A folder that is through but was not finished, as too much was damaged, has all of it staged: there the staged failures
that may pass are forgotten, and what was made of the rest is made again.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import manifest, paths, tables
from pipeline.core.config import config_sha256
from pipeline.core.errors import OutputError
from pipeline.core.stage import MARKER, clear, unfinished_marker
from pipeline.fetch import staging
from pipeline.fetch.policy import RETRYABLE
from pipeline.fetch.reuse import ITSELF

PREVIOUS: Final = ".previous"
THROUGH: Final = "ledger"  # the last thing that a run does once
_MOVED: Final = "moved"
_FORGETTING: Final = "forgetting"


def is_finished(out: str) -> bool:
    """Whether a folder has its manifest."""
    return paths.exists(paths.join(out, manifest.NAME))


def under_way(out: str) -> bool:
    """Whether a retry of this folder has begun and not ended."""
    return not is_finished(out) and paths.exists(paths.join(out, PREVIOUS, manifest.NAME))


def begin(out: str, stage: str, config: Any, inputs: Sequence[str]) -> bool:
    """Makes a finished folder unfinished; ``False`` if it is none of ``stage`` with this configuration and inputs."""
    if not is_finished(out):
        return False
    found = manifest.read(out)
    described = [manifest.describe(path) for path in inputs]
    same = [manifest.identity(i) for i in found.inputs] == [manifest.identity(d) for d in described]
    if found.stage != stage or found.config_sha256 != config_sha256(config) or not same:
        return False
    paths.remove(paths.join(out, PREVIOUS))  # of a retry that ended and was killed while it cleaned up
    paths.make_folder(paths.join(out, PREVIOUS))
    paths.write_bytes(paths.join(out, MARKER), unfinished_marker(stage, config, described))
    move_file(out, manifest.NAME, PREVIOUS)
    return True


def move(out: str, patterns: Iterable[str]) -> None:
    """Moves the finished files of a retry that has begun; a killed one goes on."""
    done = paths.join(out, PREVIOUS, _MOVED)
    if not under_way(out) or paths.exists(done):
        return
    for file in _matching(out, patterns):
        move_file(out, file[len(out.rstrip("/")) + 1 :], PREVIOUS)
    paths.write_bytes(done, b"")


def _matching(out: str, patterns: Iterable[str]) -> list[str]:
    """Files of a folder by their names in it; hidden folders are left out."""
    inside, listed = len(out.rstrip("/")) + 1, tuple(patterns)
    return [f for f in paths.list_files(out) if any(fnmatch.fnmatch(f[inside:], p) for p in listed)]


def move_file(out: str, name: str, folder: str) -> None:
    """Moves a file of a folder into a folder inside it."""
    fs, old = paths.filesystem(paths.join(out, name))
    target = paths.join(out, folder, name)
    with paths.output_errors(out):
        paths.make_folder(target.rpartition("/")[0])
        fs.mv(old, paths.filesystem(target)[1])


def check(out: str, config: Any) -> None:
    """Refuses to go on with a retry under another configuration: that would throw away what was finished.

    Raises:
        OutputError: The retry that is under way has another configuration.
    """
    if not under_way(out):
        return
    found = manifest.read(paths.join(out, PREVIOUS))
    if found.config_sha256 != config_sha256(config):
        raise OutputError(
            "a retry with another configuration is unfinished here",
            where=out,
            hint="run it to its end with its own flags, or pass --overwrite to throw its images away",
        )


def forget_failures(out: str, made: Iterable[str], *, asked: bool) -> None:
    """Forgets what failed in a way that may pass in a folder that was through; a killed one goes on.

    Args:
        out: The folder.
        made: Patterns of the files that are made from what is staged.
        asked: Whether ``--retry`` was given.
    """
    work = paths.join(out, staging.FOLDER)
    begun = paths.join(work, _FORGETTING)
    if not paths.exists(begun):
        if not asked or not paths.exists(paths.join(work, f"{THROUGH}.done")):
            return
        paths.write_bytes(begun, b"")
    for file in staging.indexes(paths.join(work, staging.DECODED)):
        decoded = tables.read_files([file])
        failed = pc.is_in(decoded.column("reason"), value_set=pa.array(sorted(RETRYABLE), pa.string()))
        urls = decoded.column("fetch_url").filter(failed).combine_chunks()
        raw = paths.join(work, staging.RAW, file.rsplit("/", 1)[1])
        rows = tables.read_files([raw])
        rows = rows.filter(pc.invert(pc.is_in(rows.column("fetch_url"), value_set=urls)))
        # As after a retry of a finished folder: the next requests are not charged for these.
        source = pc.fill_null(rows.column("source"), ITSELF)
        place = rows.schema.get_field_index("source")
        staging.write_parquet(raw, rows.set_column(place, rows.schema.field(place), source))
        staging.write_parquet(file, decoded.filter(pc.invert(failed)))
    for file in _matching(out, (*made, "dropped/*")):
        paths.remove(file)
    clear(work, ("*.done", "joined/*", "drawn/*", "final.parquet"))
    paths.remove(begun)


def takedowns(out: str) -> list[Any]:
    """What was taken down from a folder before it is fetched again: it stays down, and on record."""
    if not under_way(out):
        return []
    return list(manifest.read(paths.join(out, PREVIOUS)).extra.get("takedowns", []))


def clean(out: str, folders: Iterable[str]) -> None:
    """Removes what a finished folder needs no more."""
    for name in (PREVIOUS, MARKER, *folders):
        paths.remove(paths.join(out, name))
