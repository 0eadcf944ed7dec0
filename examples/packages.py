"""Packages of Debian and npm in a folder: fetched by name if they are not there, and opened."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


def npm(package: str, folder: Path) -> Path:
    """The archive of an npm package, ``NAME@VERSION``."""
    name, _, version = package.rpartition("@")
    file = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not file.exists():
        subprocess.run(
            ["npm", "pack", package, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    return file


def debian(package: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and places of a Debian package's files, links left out, in the order of names.

    The places are there until the next one is asked for.
    """
    if not list(folder.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    file = sorted(folder.glob(f"{package}_*.deb"))[-1]
    with tempfile.TemporaryDirectory() as opened:
        subprocess.run(["dpkg-deb", "-x", str(file), opened], check=True)
        for path in sorted(Path(opened).rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield str(path.relative_to(opened)), path
