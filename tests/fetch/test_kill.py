"""kill -9 at twenty moments of one run: nothing that was fetched is asked for again, and the result is the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from pipeline.core.fakes import jpeg
from tests.fetch.hostile import Site
from tests.fetch.test_stage import FLAGS, assert_same, fetch, pairs_of

IMAGES, HOSTS = 3_000, 6
# With one request at a time a host's next request says that its last answer was written down.
MORE = ("--rows-per-shard", "300", "--host-concurrency", "1", "--set", "fetch.tdmrep=false")
# Importing Beam costs more than the run: one process does it and forks a new one for each life.
LIVES = """
import os, sys
import pipeline.fetch.stage
from pipeline.cli import main
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os._exit(main(line.split()))
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("over", flush=True)
"""


class Lives:
    """Runs ``wit`` again and again in new processes."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child

    def line(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline().strip()

    def begin(self, *arguments: str) -> int:
        assert self.child.stdin is not None
        print(*arguments, file=self.child.stdin, flush=True)
        return int(self.line())

    def killed_when(self, moment: Callable[[], bool], *arguments: str) -> bool:
        """Kills a life at a moment; whether it lived so long."""
        pid = self.begin(*arguments)
        until = time.monotonic() + 60
        while not moment() and time.monotonic() < until:
            time.sleep(0.002)
        killed = moment()
        os.kill(pid, signal.SIGKILL)
        assert self.line() == "over"
        return killed


@contextmanager
def lives() -> Iterator[Lives]:
    command = [sys.executable, "-c", LIVES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield Lives(child)
        finally:
            child.kill()


def count(folder: Path, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


def test_killed_at_twenty_moments_it_ends_as_if_undisturbed(site: Site, tmp_path: Path) -> None:
    draw = random.Random(20)
    for i in range(IMAGES):  # each its own picture, drawn once
        site.add(f"/{i}.jpg", jpeg(Image.new("RGB", (40, 40), (i % 256, i // 256, 99))))
    urls = [site.url(f"/{i}.jpg", f"127.0.0.{1 + i % HOSTS}") for i in range(IMAGES)]
    pairs, out = pairs_of(tmp_path / "pairs", urls), tmp_path / "killed"
    fetch(pairs, tmp_path / "calm", *MORE)
    site.hits.clear()
    site.log.clear()
    served = sorted(draw.sample(range(50, IMAGES - 50), 12))
    moments: list[Callable[[], bool]] = [
        *(lambda n=n: site.hits.total() >= n for n in served),
        *(lambda n=n: count(out, ".staging/decoded/*.parquet") >= n for n in (1, 4, 9)),
        lambda: count(out, ".staging/joined/*/*.parquet") >= 1,
        *(lambda n=n: count(out, "*_stats.json") >= n for n in (1, 4, 8)),
        lambda: count(out, "ledger/part-*.parquet") >= 1,
    ]
    assert len(moments) == 20
    again: set[str] = set()
    with lives() as wit:
        for moment in moments:
            begun = len(site.log)
            assert wit.killed_when(moment, "fetch", "--pairs", pairs, "--out", str(out), *FLAGS, *MORE)
            assert not (out / "manifest.json").exists()
            time.sleep(0.02)  # requests on their way are logged
            last = {host: path for _, host, path in site.log[begun:]}
            again |= set(last.values())
    fetch(pairs, out, *MORE)
    assert_same(tmp_path / "calm", out)
    asked = Counter(path for _, _, path in site.log if path != "/robots.txt")
    assert len(asked) == IMAGES
    twice = {path for path, times in asked.items() if times > 1}
    assert twice <= again  # in flight at a kill: its answer had not arrived
    assert sum(asked.values()) - IMAGES <= HOSTS * len(served)
