"""All hostile servers of the table at once: each ends with its reason, within its limits, beside well-behaved ones."""

from __future__ import annotations

import resource
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from pipeline.fetch import connection
from pipeline.fetch.client import Answer, Client
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import REASONS, Target, parse_url
from pipeline.fetch.schedule import Schedule
from tests.fetch.hostile_cases import FAMILIES
from tests.fetch.hostile_servers import CAP, Case, Certificates, Network, network

LIMITS = FetchConfig(
    allow_address=("127.0.0.1/32", "127.0.0.6/32"),
    connect_timeout_s=1.2,
    read_timeout_s=1.2,
    deadline_s=3.0,
    min_rate_bytes_s=2_000,
    min_rate_grace_s=0.5,
    max_body_bytes=CAP,
    retries=0,
    backoff_base_s=0.01,
    host_gap_s=0.0,
    fetch_threads=128,
    dns_abort_share=1.0,
)
SLACK_S = 2.0  # for a busy machine; without limits these servers take 8 seconds or for ever
# Headers, one chunk read ahead, and the framing of chunks.
MOST_BYTES = CAP + CAP // 64 + connection.HEAD_BYTES + 2 * connection.CHUNK
ROBOTS_BYTES = 512 * 1024 * 65 // 64 + connection.HEAD_BYTES + 2 * connection.CHUNK
NEIGHBOURS = 8
PICTURES = 4


@dataclass
class Outcome:
    answers: dict[str, Answer] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    ended_s: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # longest request by host
    bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # of the longest answer
    file_bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    grown_mib: float = 0.0


class Measured(Client):
    """Notes what each request costs."""

    outcome: Outcome
    here = threading.local()

    def get(self, target: Target, **options: bool) -> Answer:
        self.here.bytes, started = 0, time.monotonic()
        try:
            return super().get(target, **options)
        finally:
            seen = self.outcome
            seen.seconds[target.host] = max(seen.seconds[target.host], time.monotonic() - started)
            kind = seen.file_bytes if options.get("robots") else seen.bytes
            kind[target.host] = max(kind[target.host], self.here.bytes)


def run(cases: list[Case], loopback: Network, certificates: Certificates) -> Outcome:
    outcome = Outcome()
    client = Measured(LIMITS, version="1", resolve=loopback.resolve, ssl_context=certificates.client)
    client.outcome = outcome
    targets, keys = [], {}
    for case in cases:
        found = parse_url(loopback.url(case))
        assert isinstance(found, Target)
        targets.append(found)
        keys[found.url] = case.name
    for i in range(NEIGHBOURS * PICTURES):
        url = f"http://neighbour-{i % NEIGHBOURS}.test:{loopback.ports['port']}/{i}.jpg"
        found = parse_url(url)
        assert isinstance(found, Target)
        targets.append(found)
        keys[url] = url
    assert len(keys) == len(targets)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for target, answer in Schedule(client).run(targets):
        key = keys[target.url]
        assert key not in outcome.answers
        outcome.answers[key] = answer
        outcome.ended_s[key] = time.monotonic() - started
    outcome.grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return outcome


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    real = connection._Incoming.readinto

    def counted(self: Any, buffer: Any) -> int | None:
        count = real(self, buffer)
        Measured.here.bytes += count or 0
        return count

    everything = [case for cases in FAMILIES.values() for case in cases]
    with pytest.MonkeyPatch.context() as patch, network(everything, certificates) as loopback:
        patch.setattr(connection._Incoming, "readinto", counted)
        yield {family: run(cases, loopback, certificates) for family, cases in FAMILIES.items()}


@pytest.mark.parametrize(
    ("family", "case"),
    [pytest.param(family, case, id=case.name) for family, cases in FAMILIES.items() for case in cases],
)
def test_a_hostile_server_costs_its_limits_and_no_more(
    outcomes: dict[str, Outcome], family: str, case: Case
) -> None:
    outcome = outcomes[family]
    answer = outcome.answers[case.name]
    assert (answer.refusal.reason if answer.refusal else None) == case.expected, answer.refusal
    assert len(answer.body) <= CAP
    assert answer.received <= CAP + connection.CHUNK
    assert outcome.seconds[case.host] <= LIMITS.deadline_s + SLACK_S
    assert outcome.bytes[case.host] <= MOST_BYTES
    assert outcome.file_bytes[case.host] <= ROBOTS_BYTES
    for value in (answer.content_type, answer.etag, answer.last_modified):
        assert value is None or (len(value) <= 200 and value.isprintable())


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_have_their_pictures_at_once(outcomes: dict[str, Outcome], family: str) -> None:
    outcome = outcomes[family]
    for i in range(NEIGHBOURS * PICTURES):
        name = next(k for k in outcome.answers if k.startswith("http:") and k.endswith(f"/{i}.jpg"))
        assert outcome.answers[name].refusal is None
        assert outcome.ended_s[name] < LIMITS.deadline_s, "before the first stuck host is given up"


def test_memory_stays_bounded(outcomes: dict[str, Outcome]) -> None:
    assert sum(o.grown_mib for o in outcomes.values()) < 150


def test_the_table_is_long_and_its_reasons_are_known() -> None:
    cases = [case for family in FAMILIES.values() for case in family]
    assert len(cases) >= 200
    assert {c.expected for c in cases if c.expected} <= set(REASONS)
