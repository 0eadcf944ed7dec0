"""The program that starts a Beam worker where there is no container: what it asks, and what it tells Beam's worker."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from concurrent import futures
from typing import Any

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_provision_api_pb2 as provision
from apache_beam.portability.api import beam_provision_api_pb2_grpc, endpoints_pb2
from apache_beam.runners.worker import sdk_worker_main

from pipeline.core import worker


class Runner(beam_provision_api_pb2_grpc.ProvisionServiceServicer):
    """A runner's provision service; it remembers who asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.info = provision.ProvisionInfo(
            runner_capabilities=["beam:protocol:control_response_elements_embedding:v1"],
            control_endpoint=endpoints_pb2.ApiServiceDescriptor(url="told:1"),
            logging_endpoint=endpoints_pb2.ApiServiceDescriptor(url="told:2"),
        )
        self.info.pipeline_options.update({"beam:option:runner:v1": "SparkRunner"})

    def GetProvisionInfo(self, _: Any, context: Any) -> Any:
        self.asked += [value for key, value in context.invocation_metadata() if key == "worker_id"]
        return provision.GetProvisionInfoResponse(info=self.info)


@pytest.fixture
def runner() -> Iterator[tuple[Runner, str]]:
    service = Runner()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(None)


def test_a_worker_knows_the_jobs_options_and_whom_to_call(
    runner: tuple[Runner, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, endpoint = runner
    monkeypatch.setattr(sdk_worker_main, "main", lambda _: None)
    variables: MutableMapping[str, str] = {}
    words = ["--id=7", f"--provision_endpoint={endpoint}", "--control_endpoint=flag:3", "--other=x"]
    worker.start(words, variables)
    assert service.asked == ["7"]
    assert variables["WORKER_ID"] == "7"
    assert variables["CONTROL_API_SERVICE_DESCRIPTOR"].strip() == 'url: "flag:3"'
    assert variables["LOGGING_API_SERVICE_DESCRIPTOR"].strip() == 'url: "told:2"'
    assert "STATUS_API_SERVICE_DESCRIPTOR" not in variables
    assert variables["RUNNER_CAPABILITIES"] == "beam:protocol:control_response_elements_embedding:v1"
    options = PipelineOptions.from_dictionary(
        sdk_worker_main._load_pipeline_options(variables["PIPELINE_OPTIONS"])
    )
    assert options.view_as(StandardOptions).runner == "SparkRunner"
