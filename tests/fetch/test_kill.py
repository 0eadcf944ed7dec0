"""kill -9 at twenty moments of one run: nothing that was fetched is asked for again, and the result is the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from pipeline.core.fakes import jpeg
from tests.fetch.hostile import Request, Site
from tests.fetch.test_stage import FLAGS, assert_same, fetch, pairs_of

IMAGES, HOSTS = 1_500, 6
# With one request at a time a host's next request says that its last answer was written down.
MORE = ("--rows-per-shard", "150", "--host-concurrency", "1", "--set", "fetch.tdmrep=false")
# Importing Beam costs more than the run: one process does it and forks a new one for each life.
LIVES = """
import json, os, pathlib, sys, time
import pipeline.fetch.stage
from pipeline.cli import main

def stay(folder, pattern, count, publish=os.replace):
    def at_most(*names):
        while len(list(pathlib.Path(folder).glob(pattern))) >= count:
            time.sleep(1)
        publish(*names)
    os.replace = at_most

for line in sys.stdin:
    words, stays = json.loads(line)
    pid = os.fork()
    if not pid:
        if stays:
            stay(*stays)
        os._exit(main(words))
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

    def begin(self, *arguments: str, stays: tuple[str, str, int] | None = None) -> int:
        """Starts a life; it stays alive and publishes no more once a folder has so many files of a pattern."""
        assert self.child.stdin is not None
        print(json.dumps([arguments, stays]), file=self.child.stdin, flush=True)
        return int(self.line())

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        assert self.line() == "over"


@contextmanager
def lives() -> Iterator[Lives]:
    command = [sys.executable, "-c", LIVES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield Lives(child)
        finally:
            child.kill()


@pytest.mark.timeout(1200)  # of twenty lives
def test_killed_at_twenty_moments_it_ends_as_if_undisturbed(site: Site, tmp_path: Path) -> None:
    draw = random.Random(20)
    # Of the requests in a life so many are answered; the others wait, so that it does not end before its kill.
    most = all_of_them = IMAGES * 100

    def answer(body: bytes, request: Request) -> None:
        while request.site.hits.total() > most:
            time.sleep(0.002)
        request.reply(body)

    for i in range(IMAGES):  # each its own picture, drawn once
        body = jpeg(Image.new("RGB", (40, 40), (i % 256, i // 256, 99)))
        site.handlers[f"/{i}.jpg"] = partial(answer, body)
    urls = [site.url(f"/{i}.jpg", f"127.0.0.{1 + i % HOSTS}") for i in range(IMAGES)]
    pairs, out = pairs_of(tmp_path / "pairs", urls), tmp_path / "killed"
    fetch(pairs, tmp_path / "calm", *MORE)
    site.hits.clear()
    site.log.clear()
    served = sorted(draw.sample(range(50, IMAGES - 50), 12))
    files = [
        *((".staging/decoded/*.parquet", n) for n in (1, 4, 9)),
        (".staging/joined/*/*.parquet", 1),
        *(("*_stats.json", n) for n in (1, 4, 8)),
        ("ledger/part-*.parquet", 1),
    ]
    moments: list[int | tuple[str, int]] = [*served, *files]
    assert len(moments) == 20
    again: set[str] = set()
    command = ("fetch", "--pairs", pairs, "--out", str(out), *FLAGS, *MORE)
    with lives() as wit:
        for moment in moments:
            begun = len(site.log)
            if isinstance(moment, int):
                most = moment + 40
                pid = wit.begin(*command)
                while site.hits.total() < moment:
                    time.sleep(0.002)
            else:
                pid = wit.begin(*command, stays=(str(out), *moment))
                while len(list(out.glob(moment[0]))) < moment[1]:
                    time.sleep(0.002)
            wit.kill(pid)
            most = all_of_them
            site.settle()
            assert not (out / "manifest.json").exists()
            last = {host: path for _, host, path in site.log[begun:]}
            again |= set(last.values())
    fetch(pairs, out, *MORE)
    assert_same(tmp_path / "calm", out)
    asked = Counter(path for _, _, path in site.log if path != "/robots.txt")
    assert len(asked) == IMAGES
    twice = {path for path, times in asked.items() if times > 1}
    assert twice <= again  # in flight at a kill: its answer had not arrived
    assert sum(asked.values()) - IMAGES <= HOSTS * len(served)
