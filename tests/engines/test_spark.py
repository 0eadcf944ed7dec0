"""Every Beam stage on Spark, inside the job server and on a cluster whose workers die: the local engine's bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.engines import chain, jars, spark
from tests.engines.faulty import Fault

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    # LOOPBACK's workers are threads of this process; they complain when the job server hangs up on them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.skipif(
        bool(jars.missing_tools()), reason=f"not installed: {', '.join(jars.missing_tools())}"
    ),
]


@pytest.fixture(scope="module")
def spark_jars() -> Sequence[Path]:
    try:
        found = jars.resolve("spark")
    except jars.UnreachableError as error:
        pytest.skip(str(error))
    return jars.checked("spark", found)


def test_every_stage_in_embedded_spark(
    spark_jars: Sequence[Path], base: Path, requests: Counter[tuple[int, str]], tmp_path: Path
) -> None:
    with spark.job_server(spark_jars, tmp_path / "spark", "local[2]") as endpoint:
        engine = ["--runner=SparkRunner", f"--job_endpoint={endpoint}", "--environment_type=LOOPBACK"]
        for stage in chain.STAGES:
            requests.clear()
            chain.run(stage, base, tmp_path / stage.folder, engine)
            chain.assert_same(stage, base, tmp_path / stage.folder)
            assert set(requests.values()) <= {1}, stage.name


def test_every_stage_on_a_cluster_whose_executors_die(
    spark_jars: Sequence[Path], base: Path, requests: Counter[tuple[int, str]], tmp_path: Path
) -> None:
    fault = Fault(tmp_path / "fault")
    with (
        spark.cluster(spark_jars, tmp_path / "cluster") as master,
        spark.job_server(spark_jars, tmp_path / "spark", master) as endpoint,
    ):
        engine = ["--runner=SparkRunner", f"--job_endpoint={endpoint}", *fault.options]
        engine += [spark.unstaged(tmp_path), "--environment_cache_millis=30000"]
        for stage in chain.STAGES:
            requests.clear()
            fault.arm(2)
            chain.run(stage, base, tmp_path / stage.folder, engine)
            assert fault.struck, stage.name
            chain.assert_same(stage, base, tmp_path / stage.folder)
            # What was asked for is staged: a task that runs again asks for nothing twice.
            assert set(requests.values()) <= {1}, stage.name
