"""All hostile servers of the table at once: each ends with its reason, within its limits, beside well-behaved ones."""

from __future__ import annotations

import dataclasses
import resource
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.fetch import connection
from pipeline.fetch.client import Answer, Client
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import REASONS, Target, parse_url
from pipeline.fetch.schedule import Schedule
from tests.fetch.hostile_cases import FAMILIES
from tests.fetch.hostile_servers import CAP, Case, Certificates, Network, answer, network

# No machine stalls for so long: a request that a server ends by itself meets none of these limits of time.
PATIENT = FetchConfig(
    allow_address=("127.0.0.1/32", "127.0.0.6/32"),
    connect_timeout_s=60.0,
    read_timeout_s=60.0,
    deadline_s=120.0,
    min_rate_bytes_s=2_000,
    min_rate_grace_s=60.0,
    max_body_bytes=CAP,
    retries=0,
    backoff_base_s=0.01,
    host_gap_s=0.0,
    fetch_threads=128,
    dns_abort_share=1.0,
)
# For a request that never ends: the one limit that is to end it, so that no other comes first.
LIMITS = {
    "connect_timeout": dataclasses.replace(PATIENT, connect_timeout_s=0.3),
    "dns_temp": dataclasses.replace(PATIENT, deadline_s=0.3),
    "read_timeout": dataclasses.replace(PATIENT, read_timeout_s=0.3),
    "too_slow": dataclasses.replace(PATIENT, min_rate_grace_s=0.2),
    "deadline": dataclasses.replace(PATIENT, min_rate_grace_s=0.2, deadline_s=20.0),
}
# The servers that are just fast enough, by the clock of their requests. It goes on by leaps, so that between them there
# are seconds left for a machine that is slow.
LEAP_S, LEAP_BYTES = 10.0, 25_000
# Headers, one chunk read ahead, and the framing of chunks.
MOST_BYTES = CAP + CAP // 64 + connection.HEAD_BYTES + 2 * connection.CHUNK
ROBOTS_BYTES = 512 * 1024 * 65 // 64 + connection.HEAD_BYTES + 2 * connection.CHUNK
NEIGHBOURS = 8
PICTURES = 4


@dataclass
class Outcome:
    answers: dict[str, Answer] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # of the longest answer
    file_bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    grown_mib: float = 0.0


class Here(threading.local):
    """The request of this thread.

    Attributes:
        bytes: Received so far.
        paced_since: When it began, if from then on its time is told by what it received.
    """

    bytes = 0
    paced_since: float | None = None

    def monotonic(self) -> float:
        """Stands for ``time.monotonic`` in the client."""
        if self.paced_since is None:
            return time.monotonic()
        return self.paced_since + LEAP_S * (self.bytes // LEAP_BYTES)


HERE = Here()


class Measured(Client):
    """Gives each request its limits and notes what it costs."""

    def __init__(self, loopback: Network, certificates: Certificates) -> None:
        options: Any = {"version": "1", "resolve": loopback.resolve, "ssl_context": certificates.client}
        super().__init__(PATIENT, **options)
        self.outcome, self._loopback = Outcome(), loopback
        self._limited = {name: Client(limits, **options) for name, limits in LIMITS.items()}

    def get(self, target: Target, **options: bool) -> Answer:
        limit = self._loopback.limit(target)
        HERE.bytes, HERE.paced_since = 0, time.monotonic() if limit == "deadline" else None
        try:
            client = self._limited.get(limit or "")
            return super().get(target, **options) if client is None else client.get(target, **options)
        finally:
            kind = self.outcome.file_bytes if options.get("robots") else self.outcome.bytes
            kind[target.host] = max(kind[target.host], HERE.bytes)

    def close(self) -> None:
        super().close()
        for client in self._limited.values():
            client.close()


def target_of(url: str) -> Target:
    found = parse_url(url)
    assert isinstance(found, Target)
    return found


def neighbours(loopback: Network) -> list[str]:
    """URLs of pictures at hosts that behave."""
    port = loopback.ports["port"]
    return [f"http://neighbour-{i % NEIGHBOURS}.test:{port}/{i}.jpg" for i in range(NEIGHBOURS * PICTURES)]


def run(cases: list[Case], loopback: Network, certificates: Certificates) -> Outcome:
    client = Measured(loopback, certificates)
    outcome = client.outcome
    keys = {target_of(loopback.url(case)): case.name for case in cases}
    keys |= {target_of(url): url for url in neighbours(loopback)}
    assert len(keys) == len(cases) + NEIGHBOURS * PICTURES
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for target, found in Schedule(client).run(list(keys)):
        assert keys[target] not in outcome.answers
        outcome.answers[keys[target]] = found
    outcome.grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return outcome


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    real = connection._Incoming.readinto

    def counted(self: Any, buffer: Any) -> int | None:
        count = real(self, buffer)
        HERE.bytes += count or 0
        return count

    everything = [case for cases in FAMILIES.values() for case in cases]
    with pytest.MonkeyPatch.context() as patch, network(everything, certificates) as loopback:
        patch.setattr(connection._Incoming, "readinto", counted)
        for room in ("client", "connection"):
            patch.setattr(f"pipeline.fetch.{room}.time", HERE)
        yield {family: run(cases, loopback, certificates) for family, cases in FAMILIES.items()}


@pytest.mark.parametrize(
    ("family", "case"),
    [pytest.param(family, case, id=case.name) for family, cases in FAMILIES.items() for case in cases],
)
def test_a_hostile_server_costs_its_limits_and_no_more(
    outcomes: dict[str, Outcome], family: str, case: Case
) -> None:
    outcome = outcomes[family]
    found = outcome.answers[case.name]
    assert (found.refusal.reason if found.refusal else None) == case.expected, found.refusal
    assert len(found.body) <= CAP
    assert found.received <= CAP + connection.CHUNK
    assert outcome.bytes[case.host] <= MOST_BYTES
    assert outcome.file_bytes[case.host] <= ROBOTS_BYTES
    for value in (found.content_type, found.etag, found.last_modified):
        assert value is None or (len(value) <= 200 and value.isprintable())


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_have_their_pictures(outcomes: dict[str, Outcome], family: str) -> None:
    answers = [a for name, a in outcomes[family].answers.items() if name.startswith("http:")]
    assert [a.refusal for a in answers] == [None] * (NEIGHBOURS * PICTURES)


def test_neighbours_wait_for_no_stuck_server(tmp_path: Path) -> None:
    """A hundred servers are silent, in each place where one can be, until all neighbours have their pictures."""
    released = threading.Event()

    def in_the_end(sock: socket.socket) -> None:
        released.wait(60)
        answer()(sock)

    places: list[dict[str, Any]] = [{"act": in_the_end}, {"robots": in_the_end}, {"tdm": in_the_end}]
    stuck = [Case(f"stuck {i}", None, **places[i % 3]) for i in range(100)]
    certificates = Certificates(tmp_path)
    ended = []
    with network(stuck, certificates) as loopback:
        quick = neighbours(loopback)
        targets = [target_of(url) for url in (*map(loopback.url, stuck), *quick)]
        for target, found in Schedule(Measured(loopback, certificates)).run(targets):
            assert found.refusal is None
            ended.append(target.url)
            if set(quick) <= set(ended):
                released.set()
    assert set(ended[: len(quick)]) == set(quick)
    assert len(ended) == len(targets)


def test_memory_stays_bounded(outcomes: dict[str, Outcome]) -> None:
    assert sum(o.grown_mib for o in outcomes.values()) < 150


def test_the_table_is_long_and_its_reasons_are_known() -> None:
    cases = [case for family in FAMILIES.values() for case in family]
    assert len(cases) >= 200
    assert {c.expected for c in cases if c.expected} <= set(REASONS)
