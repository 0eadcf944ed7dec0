"""Every Beam stage in the job server's own Flink: the local engine's bytes. `make test-spark` runs it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.engines import chain, flink, jars

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    # LOOPBACK's workers are threads of this process; they complain when the job server hangs up on them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.skipif(
        bool(jars.missing_tools()), reason=f"not installed: {', '.join(jars.missing_tools())}"
    ),
]


def test_every_stage_in_embedded_flink(
    base: Path, requests: Counter[tuple[int, str]], tmp_path: Path
) -> None:
    with flink.job_server(jars.checked("flink", jars.resolve("flink")), tmp_path / "flink") as endpoint:
        engine = ["--runner=FlinkRunner", "--flink_master=[local]", f"--job_endpoint={endpoint}"]
        for stage in chain.STAGES:
            requests.clear()
            out = tmp_path / stage.folder
            chain.run(stage, base, out, [*engine, "--environment_type=LOOPBACK", "--parallelism=2"])
            chain.assert_same(stage, base, out)
            assert set(requests.values()) <= {1}, stage.name
