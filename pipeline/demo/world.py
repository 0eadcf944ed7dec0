"""The small world on disk: where it is, its sites, its evaluation set, its planted leaks."""

from __future__ import annotations

import csv
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.core import paths
from pipeline.core.errors import InputError

SITES = ("openmoji", "twemoji", "fluent")
EVALUATION = "noto"
FIRST_PORT = 8731  # the ports that absolute links in the world's pages name


@dataclass(frozen=True)
class Leak:
    """An altered evaluation picture that a page shows.

    Attributes:
        eval_id: Path of the original in the evaluation folder.
        url: Where the copy is served.
    """

    eval_id: str
    url: str


def find(given: str | None) -> Path:
    """The world's folder: the one given, or ``examples/world`` of the checkout this package runs from.

    Raises:
        InputError: It is not there.
    """
    root = Path(given) if given else Path(__file__).parents[2] / "examples" / "world"
    if not (root / "pictures").is_dir() or not (root / "web").is_dir():
        raise InputError(
            "the small world is not here",
            where=root,
            expected="folders pictures/ and web/",
            hint="run from a checkout of the repository or pass --world DIR",
        )
    return root.resolve()


def archive(path: Path) -> dict[str, bytes]:
    """All files of a zip by name; empty if there is no such zip."""
    if not path.exists():
        return {}
    try:
        with zipfile.ZipFile(path) as opened:
            return {name: opened.read(name) for name in sorted(opened.namelist()) if not name.endswith("/")}
    except zipfile.BadZipFile as error:
        raise InputError(
            "damaged archive", where=path, found=str(error), hint="clone the repository again"
        ) from error


def unpack_evaluation(world: Path, folder: str, *, every: int) -> int:
    """Lays the evaluation pictures out as an ImageFolder (``{hexcode}/{hexcode}.webp``); returns how many.

    Pictures that another designer drew nearly alike are left out: whether they leaked has no answer. The folder
    appears under its name only when it is complete.

    Args:
        world: The world's folder.
        folder: Local folder to make.
        every: Keep each n-th picture by name; 1 keeps all.
    """
    target = Path(folder)
    if target.exists():
        return sum(1 for _ in target.glob("*/*"))
    partial = target.with_name(f".{target.name}.partial")
    left_out = {row["eval_id"] for row in _rows(world / "eval" / "left-out.tsv")}
    with paths.output_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        pictures = archive(world / "pictures" / f"{EVALUATION}.zip")
        wanted = [name for name in sorted(pictures) if name.endswith(".webp")][::every]
        wanted = [name for name in wanted if f"{name.removesuffix('.webp')}/{name}" not in left_out]
        for name in wanted:
            stem = name.removesuffix(".webp")
            (partial / stem).mkdir(parents=True)
            (partial / stem / name).write_bytes(pictures[name])
        partial.rename(target)
    return len(wanted)


def leaks(world: Path, *, port: int) -> list[Leak]:
    """The planted leaks of the truth file; only the check of a finished run reads them."""
    return [
        Leak(row["eval_id"], f"http://127.0.0.1:{port + SITES.index(row['site'])}/{row['path'].lstrip('/')}")
        for row in _rows(world / "truth" / "leaks.tsv")
    ]


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except OSError as error:
        raise InputError("the small world lacks a file", where=path, found=error.strerror) from error
