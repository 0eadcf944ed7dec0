"""A Beam worker process of this installation, for clusters whose nodes have no Docker.

Beam's environment PROCESS starts a program on each executor; outside Beam's container images the Python SDK ships none.
``wit-beam-worker`` is it: it asks the runner for the job's options and becomes an SDK worker (Beam's "SDK container
contract": https://s.apache.org/beam-fn-api-container-contract). What a job needs must be installed; nothing is staged.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import MutableMapping, Sequence

import grpc
from apache_beam.portability.api import beam_provision_api_pb2 as provision
from apache_beam.portability.api import beam_provision_api_pb2_grpc, endpoints_pb2
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.runners.worker.worker_id_interceptor import WorkerIdInterceptor
from google.protobuf import json_format, text_format


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """The flags that runners start a worker with; those of other runners are passed over."""
    parser = argparse.ArgumentParser(prog="wit-beam-worker", allow_abbrev=False)
    parser.add_argument("--id", required=True)
    for name in ("provision", "logging", "control", "artifact"):
        parser.add_argument(f"--{name}_endpoint", default="")
    known, _ = parser.parse_known_args(words)
    return known


def job_info(endpoint: str, worker: str) -> provision.ProvisionInfo:
    """What the runner says of the job: its options, and endpoints that were not given as flags."""
    with grpc.insecure_channel(endpoint) as plain:
        channel = grpc.intercept_channel(plain, WorkerIdInterceptor(worker))
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        return service.GetProvisionInfo(provision.GetProvisionInfoRequest()).info


def environment(given: argparse.Namespace, info: provision.ProvisionInfo) -> dict[str, str]:
    """The variables that Beam's worker reads."""
    found = {
        "WORKER_ID": given.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "LOGGING_API_SERVICE_DESCRIPTOR": _address(given.logging_endpoint, info.logging_endpoint),
        "CONTROL_API_SERVICE_DESCRIPTOR": _address(given.control_endpoint, info.control_endpoint),
    }
    if info.status_endpoint.url:
        found["STATUS_API_SERVICE_DESCRIPTOR"] = _address("", info.status_endpoint)
    return found


def _address(given: str, told: endpoints_pb2.ApiServiceDescriptor) -> str:
    return text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=given or told.url))


def start(words: Sequence[str], variables: MutableMapping[str, str]) -> None:
    """Runs a worker until its runner lets it go."""
    given = arguments(words)
    info = (
        job_info(given.provision_endpoint, given.id)
        if given.provision_endpoint
        else provision.ProvisionInfo()
    )
    variables.update(environment(given, info))
    sdk_worker_main.main([])


def main() -> None:
    """``wit-beam-worker --id=ID --provision_endpoint=HOST:PORT …``."""
    start(sys.argv[1:], os.environ)


if __name__ == "__main__":
    main()
