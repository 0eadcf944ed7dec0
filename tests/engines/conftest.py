"""The small world's sites, and what the local engine makes of a cut of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.demo import server
from pipeline.demo import world as small_world
from tests.engines import chain

# What a check of a change leaves out and `make test-spark` runs.
collect_ignore = [] if os.environ.get("ENGINES") == "all" else ["test_flink.py"]

# Each of pytest's processes serves on ports of its own.
PORT = small_world.FIRST_PORT + 1200 + 10 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])


@pytest.fixture(scope="session")
def requests() -> Iterator[Counter[tuple[int, str]]]:
    """Requests so far, by site and path, while the sites are up; but for robots.txt, which each attempt reads."""
    seen: Counter[tuple[int, str]] = Counter()
    answer = server.Site.answer

    def counted(site: server.Site, path: str) -> tuple[int, list[tuple[str, str]], bytes]:
        if path != "/robots.txt":
            seen[id(site), path] += 1
        return answer(site, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.Site, "answer", counted)
        yield seen


@pytest.fixture(scope="session")
def base(requests: Counter[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Inputs, and each stage's result on the local engine; the sites stay up."""
    folder = tmp_path_factory.mktemp("reference")
    with server.serve(small_world.find(None), PORT) as sites:
        chain.prepare(folder, sites)
        chain.reference(folder)
        yield folder
