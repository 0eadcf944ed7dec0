"""Every Beam stage on the engines that need no cluster: the local engine's bytes."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.engines import chain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PROCESSES = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
EMBED = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")

# The rooms' own tests run two processes too; here all stages in a row, which takes a minute.
ENGINES = {"portable": EMBED} | ({"processes": PROCESSES} if os.environ.get("ENGINES") == "all" else {})


def _every_stage(base: Path, out: Path, requests: Counter[tuple[int, str]], engine: tuple[str, ...]) -> None:
    for stage in chain.STAGES:
        requests.clear()
        chain.run(stage, base, out / stage.folder, engine)
        chain.assert_same(stage, base, out / stage.folder)
        assert set(requests.values()) <= {1}, stage.name


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_every_stage(
    base: Path, requests: Counter[tuple[int, str]], tmp_path: Path, engine: tuple[str, ...]
) -> None:
    _every_stage(base, tmp_path, requests, engine)


@pytest.mark.skipif(not shutil.which("prism"), reason="Beam's prism is not installed (docs/spark.md)")
def test_every_stage_on_prism(
    base: Path, requests: Counter[tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _every_stage(
        base, tmp_path, requests, ("--runner=PrismRunner", f"--prism_location={shutil.which('prism')}")
    )
