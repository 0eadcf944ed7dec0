"""Every Beam stage on a cut of the small world, each on the inputs that one reference run made.

So a stage's output on another engine is compared with the local engine's, whatever the stages before it did.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli import main
from pipeline.core import manifest
from pipeline.demo import world as small_world
from pipeline.demo.record import record

DUMPS = 3
PAGES_PER_DUMP = 4


@dataclass(frozen=True)
class Stage:
    """One Beam stage.

    Attributes:
        name: As typed after ``wit``.
        words: Its flags, from the folder of inputs and reference results.
    """

    name: str
    words: Callable[[Path], Sequence[str]]

    @property
    def folder(self) -> str:
        """Its result's place beside the other stages'."""
        return self.name.replace(" ", "-")


def _queries(base: Path) -> list[str]:
    text = small_world.find(None) / "text"
    dumps = sorted(str(p) for p in (base / "dumps").iterdir())
    views = str(text / "pageviews-201604-user.bz2")
    return ["--wikipedia", *dumps, "--pageviews", views, "--wordnet", "none", "--min-count", "2"]


def _candidates(base: Path) -> list[str]:
    return ["--warc", *sorted(str(p) for p in (base / "warcs").iterdir())]


def _select(base: Path) -> list[str]:
    return ["--candidates", str(base / "candidates"), "--queries", str(base / "queries"), "--cap", "3"]


def _fetch(base: Path) -> list[str]:
    return [
        "--pairs", str(base / "select"), "--contact", "tests@example.invalid", "--allow-address", "127.0.0.0/8",
        "--host-gap-s", "0", "--image-size", "72", "--set", "fetch.min_image_size=16", "--rows-per-shard", "20",
        "--set", "fetch.read_timeout_s=60", "--set", "fetch.deadline_s=120",
    ]  # fmt: skip


def _embed(base: Path) -> list[str]:
    return ["--images", str(base / "fetch"), "--dataset", "train"]


def _search(base: Path) -> list[str]:
    return ["--train", str(base / "dedup-embed"), "--eval", str(base / "dedup-embed")]


def _groups(base: Path) -> list[str]:
    return ["--train", str(base / "dedup-embed")]


STAGES = (
    Stage("queries", _queries),
    Stage("candidates", _candidates),
    Stage("select", _select),
    Stage("fetch", _fetch),
    Stage("dedup embed", _embed),
    Stage("dedup search", _search),
    Stage("dedup groups", _groups),
)


def prepare(base: Path, sites: Sequence[str], *, every: int = 30) -> None:
    """Writes what the first stages read: three short dumps, and a WARC of each site."""
    whole = bz2.decompress((small_world.find(None) / "text" / "enwiki-cut.xml.bz2").read_bytes())
    head = whole[: whole.index(b"<page>")]
    pages = re.findall(rb"<page>.*?</page>\n?", whole, re.DOTALL)
    (base / "dumps").mkdir(parents=True)
    for i in range(DUMPS):
        some = b"".join(pages[i : i + DUMPS * PAGES_PER_DUMP : DUMPS])
        (base / "dumps" / f"enwiki-{i}.xml.bz2").write_bytes(bz2.compress(head + some + b"</mediawiki>\n"))
    for i, site in enumerate(sites):
        record([site], str(base / "warcs" / f"{i}.warc.gz"), every=every)


def run(stage: Stage, base: Path, out: Path, engine: Sequence[str] = ()) -> None:
    """Runs one stage on the inputs in ``base``."""
    words = [*stage.name.split(), *stage.words(base), "--out", str(out), "--quiet", "--debug"]
    assert main([*words, *(["--", *engine] if engine else [])]) == 0, stage.name


def reference(base: Path) -> None:
    """Runs all stages in order on the local engine."""
    for stage in STAGES:
        run(stage, base, base / stage.folder)


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a stage's result; of the manifest what tells neither time nor engine nor place."""
    files = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    files[manifest.NAME] = manifest.read(str(out)).sha256.encode()
    return files


def assert_same(stage: Stage, base: Path, out: Path) -> None:
    """Asserts that a result holds the files of the reference, byte for byte."""
    expected, found = contents(base / stage.folder), contents(out)
    assert sorted(found) == sorted(expected), stage.name
    assert [name for name in expected if found[name] != expected[name]] == [], stage.name
