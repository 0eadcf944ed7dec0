"""``--retry``: a finished folder fetches again what may succeed now, and keeps what it has.

The finished files move into ``.previous/``, which then is a source like any other (see :mod:`.reuse`): images are
copied from there byte for byte, final failures stay, and only retryable URLs are asked for. ``manifest.json`` moves
first and the new one is written last, so at every moment the folder is either finished or goes on where it was.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pipeline.core import manifest, paths
from pipeline.core.config import config_sha256
from pipeline.core.errors import OutputError
from pipeline.core.stage import MARKER, unfinished_marker

PREVIOUS: Final = ".previous"
_MOVED: Final = "moved"


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
    for file in paths.list_files(out):
        name = file[len(out.rstrip("/")) + 1 :]
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            move_file(out, name, PREVIOUS)
    paths.write_bytes(done, b"")


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


def takedowns(out: str) -> list[Any]:
    """What was taken down from a folder before it is fetched again: it stays down, and on record."""
    if not under_way(out):
        return []
    return list(manifest.read(paths.join(out, PREVIOUS)).extra.get("takedowns", []))


def clean(out: str, folders: Iterable[str]) -> None:
    """Removes what a finished folder needs no more."""
    for name in (PREVIOUS, MARKER, *folders):
        paths.remove(paths.join(out, name))
