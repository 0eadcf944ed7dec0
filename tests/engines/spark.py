"""Spark on this machine: Beam's job server with Spark inside it, and a standalone cluster of a master and workers."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.engines.java import HOST, free_port, java, listening, process

JOB_SERVER = "org.apache.beam.runners.spark.SparkJobServerDriver"
MASTER = "org.apache.spark.deploy.master.Master"
WORKER = "org.apache.spark.deploy.worker.Worker"
# Short runs: start-up is most of the work. A job's executors stay for the next one.
DRIVER = {
    "spark.ui.enabled": "false",
    "spark.driver.host": HOST,
    "spark.driver.bindAddress": HOST,
    "spark.executor.memory": "640m",
    "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "beam.spark.test.reuseSparkContext": "true",
}
LOGGING = """\
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n
"""


@contextlib.contextmanager
def job_server(jars: Sequence[Path], folder: Path, master: str, **variables: str) -> Iterator[str]:
    """Beam's job server for a Spark master; yields its endpoint. ``local[N,F]`` is a Spark inside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log4j2.properties").write_text(LOGGING)
    settings = {"log4j2.configurationFile": (folder / "log4j2.properties").as_uri(), **DRIVER}
    port = free_port()
    words = [f"--spark-master-url={master}", f"--job-port={port}", "--artifact-port=0", "--expansion-port=0"]
    words.append(f"--artifacts-dir={folder / 'artifacts'}")
    log = folder / "job-server.log"
    command = java(jars, JOB_SERVER, *words, properties=settings)
    with process(command, log, SPARK_LOCAL_IP=HOST, **variables) as started:
        listening(port, started, log)
        yield f"localhost:{port}"


@contextlib.contextmanager
def cluster(jars: Sequence[Path], folder: Path, workers: int = 2, **variables: str) -> Iterator[str]:
    """A master and workers of one core each; yields the master's URL.

    The executors find Beam's runner among Spark's jars, as on a cluster that has it installed.
    """
    home = folder / "spark"
    (home / "jars").mkdir(parents=True)
    for jar in jars:
        (home / "jars" / jar.name).symlink_to(jar)
    spark = {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": HOST, "SPARK_SCALA_VERSION": "2.12", **variables}
    port = free_port()
    url = f"spark://{HOST}:{port}"
    common = ["--host", HOST, "--webui-port", "0"]
    with contextlib.ExitStack() as running:
        log = folder / "master.log"
        command = java(jars, MASTER, *common, "--port", str(port), properties={})
        listening(port, running.enter_context(process(command, log, **spark)), log)
        for i in range(workers):
            words = [
                *common,
                "--cores",
                "1",
                "--memory",
                "1g",
                "--work-dir",
                str(folder / f"worker-{i}"),
                url,
            ]
            command = java(jars, WORKER, *words, properties={})
            running.enter_context(process(command, folder / f"worker-{i}.log", **spark))
        yield url


def unstaged(folder: Path) -> str:
    """The option that keeps the class path from being sent to executors, which have it: a jar of nothing instead."""
    with zipfile.ZipFile(folder / "nothing.jar", "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    return f"--files_to_stage={folder / 'nothing.jar'}"
