"""The whole chain on a twentieth of the small world: the same twice, and the same after being killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core import manifest
from pipeline.demo import world as small_world
from pipeline.demo.record import record
from pipeline.demo.server import serve

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
# Each of pytest's processes serves on ports of its own.
PORT = small_world.FIRST_PORT + 1000 + 10 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
SHORT = (
    "dedup.train.pairs=256", "dedup.train.batch_size=64", "train.steps=6", "train.warmup_steps=1",
    "train.batch_size=32", "train.checkpoint_steps=2",
)  # fmt: skip
FOLDERS = (
    "queries", "candidates", "pairs", "shards", "detector", "embeddings/train", "embeddings/noto", "neighbours",
    "checkpoint", "scores/noto", "overlaps",
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def start(out: Path) -> subprocess.Popen[bytes]:
    """``wit run`` in a process of its own, in a process group that can be killed whole."""
    words = ["run", str(EXAMPLES / "demo-tiny.toml"), "--out", str(out), "--quiet"]
    sets = [word for assignment in SHORT for word in ("--set", assignment)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words, *sets],
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment,
        cwd=EXAMPLES.parent,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for success; shows what it said otherwise."""
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()


def prepare(out: Path, sites: list[str]) -> None:
    """What the demo does before its run file: the evaluation folder and the recorded pages."""
    small_world.unpack_evaluation(small_world.find(None), str(out / "world" / "noto"), every=20)
    record(sites, str(out / "world" / "pages.warc.gz"), every=20)


@pytest.fixture(scope="module")
def sites() -> Iterator[list[str]]:
    with serve(small_world.find(None), PORT) as served:
        yield served


@pytest.fixture(scope="module")
def undisturbed(sites: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    prepare(out, sites)
    finish(start(out))
    return out


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a run; of manifests and the page, what does not tell the time or the place."""
    found: dict[str, bytes] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if path.name == "manifest.json":
            found[name] = manifest.read(str(path.parent)).sha256.encode()
        elif name not in ("report.html", "croissant.json", "MODEL_CARD.md"):
            found[name] = path.read_bytes().replace(str(out).encode(), b"OUT")
    return found


def same(first: Path, second: Path) -> None:
    """Asserts that two runs hold the same files with the same contents."""
    one, two = contents(first), contents(second)
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []


def test_every_stage_finished_and_adds_up(undisturbed: Path) -> None:
    for folder in FOLDERS:
        done = manifest.read(str(undisturbed / folder))
        assert done.rows_in == done.rows + sum(done.dropped.values()), folder
        assert done.rows > 0, folder
    assert (undisturbed / "report.html").stat().st_size > 10_000
    assert json.loads((undisturbed / "croissant.json").read_text())["@type"] in ("sc:Dataset", "Dataset")


def test_stages_pass_on_what_they_wrote(undisturbed: Path) -> None:
    def rows(name: str) -> int:
        return manifest.read(str(undisturbed / name)).rows

    def came_in(name: str) -> int:
        return manifest.read(str(undisturbed / name)).rows_in

    assert came_in("pairs") == rows("candidates")
    assert came_in("shards") == rows("pairs")
    assert came_in("checkpoint") == rows("shards")
    assert came_in("embeddings/train") == rows("shards")
    assert rows("scores/noto") == rows("embeddings/noto")


def test_a_second_run_gives_the_same(undisturbed: Path, sites: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    prepare(out, sites)
    finish(start(out))
    same(undisturbed, out)


def test_running_again_does_nothing(undisturbed: Path) -> None:
    times = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("manifest.json")}
    finish(start(undisturbed))
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("manifest.json")} == times


def test_killed_again_and_again_it_ends_the_same(undisturbed: Path, sites: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    prepare(out, sites)
    draw = random.Random(7)
    kills = 0
    finished: dict[Path, int] = {}
    for _ in range(8):
        process = start(out)
        time.sleep(draw.uniform(2, 9))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        for path, changed in finished.items():
            assert path.stat().st_mtime_ns == changed, f"a finished stage was done again: {path}"
        finished = {p: p.stat().st_mtime_ns for p in out.rglob("manifest.json")}
        whole = all((out / folder / "manifest.json").exists() for folder in FOLDERS)
        assert whole or not (out / "report.html").exists()
    assert kills >= 3
    finish(start(out))
    same(undisturbed, out)
