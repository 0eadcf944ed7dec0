"""Every Beam stage's jobs as a cluster gets them: on inputs of a remote file system, with the options of the docs."""

from __future__ import annotations

import io
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest

from pipeline.cli import find, load, main
from pipeline.core import paths
from pipeline.core.beam import WORKER_RAM, pipeline_options
from pipeline.core.command import Command, configured, parser
from pipeline.core.contracts import CANDIDATES, PAIRS, QUERIES, pair_id
from pipeline.core.errors import UsageError
from pipeline.core.fakes import fake_table, finished_folder, picture
from tests.dataflow import recording
from tests.dataflow.recording import Proto, RecordingRunner
from tests.fetch.hostile import Site, serving

REPOSITORY = Path(__file__).parents[2]
IMAGE = "us-central1-docker.pkg.dev/my-project/wit/worker:1"
OPTIONS = (
    "--project=my-project", "--region=us-central1", "--temp_location=gs://my-bucket/tmp",
    f"--sdk_container_image={IMAGE}", "--sdk_location=container", "--max_num_workers=50",
)  # fmt: skip
RECORD = ("--runner=tests.dataflow.recording.RecordingRunner", *OPTIONS)
BUCKET = "memory://wit-jobs"
STAGES = ("queries", "candidates", "select", "fetch", "dedup embed", "dedup search", "dedup groups")
Jobs = dict[str, list[Proto]]

pytestmark = pytest.mark.timeout(900)  # seven stages in one fixture


def commands(site: Site) -> Iterator[tuple[str, list[str]]]:
    """Each stage's command; what it reads lies in the bucket before it runs."""
    text = REPOSITORY / "tests/dataflow/small.xml"
    paths.write_bytes(f"{BUCKET}/dump.xml", text.read_bytes())
    yield "queries", ["--wikipedia", f"{BUCKET}/dump.xml", "--wordnet", "none", "--min-count", "1"]
    paths.write_bytes(f"{BUCKET}/table.csv", b"url,text\nhttp://a.b/1.jpg,a red dog\nhttp://a.b/2.jpg,\n")
    yield "candidates", ["--table", f"{BUCKET}/table.csv"]
    finished_folder(f"{BUCKET}/in/candidates", CANDIDATES, fake_table(CANDIDATES, 9))
    finished_folder(f"{BUCKET}/in/queries", QUERIES, fake_table(QUERIES, 9))
    yield "select", ["--candidates", f"{BUCKET}/in/candidates", "--queries", f"{BUCKET}/in/queries"]
    rows = fake_table(PAIRS, 3).to_pylist()
    for n, row in enumerate(rows):
        row["url"] = site.url(f"/img/{n}.jpg")
        row["pair_id"] = pair_id(row["url"], row["text"])
    finished_folder(f"{BUCKET}/in/pairs", PAIRS, pa.Table.from_pylist(rows, schema=PAIRS.schema))
    yield "fetch", [
        "--pairs", f"{BUCKET}/in/pairs", "--allow-address", "127.0.0.0/8", "--host-gap-s", "0"
    ]  # fmt: skip
    for n in range(3):
        file = io.BytesIO()
        picture("red", "circle", size=40, seed=n).save(file, "PNG")
        paths.write_bytes(f"{BUCKET}/pictures/{n}.png", file.getvalue())
    yield "dedup embed", ["--images", f"{BUCKET}/pictures"]
    embedded = f"{BUCKET}/dedup-embed"
    yield "dedup search", ["--train", embedded, "--eval", embedded]
    yield "dedup groups", ["--train", embedded, "--threshold", "0.9"]


@pytest.fixture(scope="module")
def jobs() -> Jobs:
    found: Jobs = {}
    RecordingRunner.dry_runs.clear()
    with serving(Site()) as site:
        for stage, flags in commands(site):
            RecordingRunner.recorded.clear()
            out = f"{BUCKET}/{stage.replace(' ', '-')}"
            assert main([*stage.split(), *flags, "--out", out, "--quiet", "--", *RECORD]) == 0, stage
            found[stage] = list(RecordingRunner.recorded)
    return found


@pytest.fixture(scope="module")
def dry_runs(jobs: Jobs) -> list[Any]:
    if not recording.dataflow_installed():
        pytest.skip("needs the extra: pip install 'webimagetext[gcp]'")
    assert len(RecordingRunner.dry_runs) == sum(map(len, jobs.values()))
    return RecordingRunner.dry_runs


def check(proto: Proto) -> None:
    """What must hold for a job on a cluster."""
    assert recording.images(proto) == {IMAGE}
    for environment in proto.components.environments.values():
        hint = environment.resource_hints["beam:resources:min_ram_bytes:v1"]
        assert int(hint) == int(WORKER_RAM.removesuffix("GB")) * 10**9
    # Code, models and packages are in the image; Beam sends a list of what the submitter has, for the log.
    assert recording.staged_files(proto) <= {"submission_environment_dependencies.txt"}
    names = recording.names(proto)
    assert len(names) == len(set(names))
    for name in names:
        assert re.fullmatch(r"[A-Z][A-Za-z]*", name.partition("/")[0]), name


def local_paths(text: bytes) -> list[str]:
    """Places of this machine that a text names; Beam's own files, named for tracebacks, do not count."""
    places = {str(REPOSITORY), sys.prefix, sys.base_prefix, tempfile.gettempdir(), str(Path.home())}
    any_of = "|".join(re.escape(place) for place in places if len(place) > 3)
    found = {name.decode() for name in re.findall(rf"(?:{any_of})[ -~]*".encode(), text)}
    return sorted(name for name in found if not name.startswith(str(Path(beam.__file__).parent)))


@pytest.mark.parametrize("stage", STAGES)
def test_steps_have_the_names_that_the_docs_list(jobs: Jobs, stage: str) -> None:
    text = (REPOSITORY / "docs/dataflow.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(f"| `{stage}` |"))
    listed = [sorted(job.split()) for job in line.split("|")[2].split(";")]
    assert listed == [sorted({n.partition("/")[0] for n in recording.names(job)}) for job in jobs[stage]]


def test_the_docs_commands_are_understood() -> None:
    text = (REPOSITORY / "docs/dataflow.md").read_text()
    given = re.search(r'DATAFLOW="(.*?)"', text, re.S)
    assert given is not None
    options = pipeline_options(given[1].replace("$IMAGE", IMAGE).split()).get_all_options(drop_default=True)
    assert options == {
        **pipeline_options(["--runner=DataflowRunner", *OPTIONS]).get_all_options(drop_default=True)
    }
    for line in text.splitlines():
        if line.startswith("wit "):
            name, words = find(line.partition(" -- ")[0].split()[1:])
            assert name in STAGES
            command = load(name)
            assert isinstance(command, Command)
            configured(command, parser(command).parse_args(words))
    with pytest.raises(UsageError, match="does not know"):
        pipeline_options([*OPTIONS, "--max_workers=3"])


def test_jobs_run_anywhere(jobs: Jobs) -> None:
    assert tuple(jobs) == STAGES
    for made in jobs.values():
        for job in made:
            check(job)


def test_jobs_name_no_place_of_the_machine_that_submits_them(jobs: Jobs) -> None:
    for stage, made in jobs.items():
        for job in made:
            for text in recording.texts(job):
                assert local_paths(text) == [], stage


def test_what_dataflow_would_be_sent(dry_runs: list[Any]) -> None:
    for submitted in dry_runs:
        check(submitted.proto_pipeline)


def test_a_user_may_ask_for_more_memory_and_for_a_main_session() -> None:
    options = pipeline_options([*RECORD, "--resource_hints=min_ram=16GB"]).get_all_options()
    assert options["resource_hints"] == ["min_ram=16GB"]
    assert options["save_main_session"] is False
