"""Makes the small world of `wit demo` from packages of the public registries.

    python -m examples.world.make_world --packages DIR --out examples/world

README.md, which this script writes too, says how to get the packages. The same packages, Pillow and
renderer give the same bytes. A developer runs this once; its result is part of the repository.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from examples.world.make_notes import make_notes
from examples.world.make_pictures import make_pictures
from examples.world.make_text import make_text
from examples.world.make_web import make_web
from examples.world.sources import Concept, Packages


def read_concepts(out: Path) -> list[Concept]:
    """The concepts as an earlier run wrote them down."""
    lines = (out / "pictures" / "concepts.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return [
        Concept(
            code, label, tuple(filter(None, words.split("|"))), group, subgroup, tuple(designers.split("|"))
        )
        for code, label, words, group, subgroup, designers in rows
    ]


def main() -> None:
    """Reads the command line and makes every part."""
    parser = argparse.ArgumentParser(description="make the small world", allow_abbrev=False)
    parser.add_argument("--packages", type=Path, required=True, help="folder of downloaded packages")
    parser.add_argument("--out", type=Path, required=True, help="the world's folder")
    parser.add_argument("--keep-pictures", action="store_true", help="do not render the pictures again")
    options = parser.parse_args()
    packages, out = Packages(options.packages), options.out
    concepts = read_concepts(out) if options.keep_pictures else make_pictures(packages, out)
    for part in ("web", "truth", "text", "LICENSES"):
        shutil.rmtree(out / part, ignore_errors=True)
    make_web(packages, out, concepts)
    make_text(packages, out)
    make_notes(packages, out)


if __name__ == "__main__":
    main()
