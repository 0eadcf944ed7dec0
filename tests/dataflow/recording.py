"""A Beam runner that writes down each job as a cluster would get it, then runs it here.

Named as `--runner=tests.dataflow.recording.RecordingRunner`, so that a command is otherwise what a user types.
"""

from __future__ import annotations

import base64
import bz2
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner
from apache_beam.transforms import environments

Proto = beam_runner_api_pb2.Pipeline
_PICKLED = re.compile(rb"QlpoO[A-Za-z0-9+/]{20,}={0,2}")  # base64 of bzip2, as Beam's pickler writes


class RecordingRunner(PipelineRunner):
    """Records jobs in :attr:`recorded` and runs them with FnApiRunner."""

    recorded: ClassVar[list[Proto]] = []
    staged: ClassVar[list[Any] | None] = None  # asking pip what is installed takes a second
    dry_runs: ClassVar[list[Any]] = []

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> PipelineResult:
        self.recorded.append(job(pipeline, options))
        result = FnApiRunner().run_pipeline(pipeline, PipelineOptions([]))
        if dataflow_installed():  # last, because it replaces transforms in place
            self.dry_runs.append(dry_run(pipeline, options))
        return result


def job(pipeline: beam.Pipeline, options: PipelineOptions) -> Proto:
    """The job for containers, by what every installation of Beam has."""
    if RecordingRunner.staged is None:
        RecordingRunner.staged = environments.python_sdk_dependencies(options)
    environment = environments.DockerEnvironment.from_container_image(
        options.view_as(WorkerOptions).sdk_container_image,
        artifacts=RecordingRunner.staged,
        resource_hints=environments.resource_hints_from_options(options),
    )
    return pipeline.to_runner_api(default_environment=environment)


def dataflow_installed() -> bool:
    """Whether the extra [gcp] is there."""
    try:
        from apache_beam.runners.dataflow.internal import apiclient  # noqa: F401
    except ImportError:
        return False
    return True


def dry_run(pipeline: beam.Pipeline, options: PipelineOptions) -> Any:
    """What DataflowRunner would submit, made offline."""
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

    given = options.get_all_options(drop_default=True) | {"runner": "DataflowRunner", "dry_run": "True"}
    return DataflowRunner().run_pipeline(pipeline, PipelineOptions.from_dictionary(given)).job


def images(proto: Proto) -> set[str]:
    """The container images of a job's environments."""
    found = set()
    for environment in proto.components.environments.values():
        payload = beam_runner_api_pb2.DockerPayload.FromString(environment.payload)
        found.add(payload.container_image)
    return found


def names(proto: Proto) -> list[str]:
    """Full names of all transforms but the root."""
    found = proto.components.transforms
    return [found[key].unique_name for key in found if key not in proto.root_transform_ids]


def staged_files(proto: Proto) -> set[str]:
    """Names of the files that are sent along with a job."""
    found = set()
    for environment in proto.components.environments.values():
        for file in environment.dependencies:
            role = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(file.role_payload)
            found.add(role.staged_name)
    return found


def texts(proto: Proto) -> Iterator[bytes]:
    """A job's bytes without the list of files that are sent along, and what lies pickled and packed inside them."""
    kept = Proto()
    kept.CopyFrom(proto)
    for environment in kept.components.environments.values():
        environment.ClearField("dependencies")
    whole = kept.SerializeToString()
    yield whole
    for found in _PICKLED.findall(whole):
        yield bz2.decompress(base64.b64decode(found))
