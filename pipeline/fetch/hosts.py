"""One host: what waits for it, when it may be asked next, what its sites say, and when to leave it alone."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field

from pipeline.fetch.client import Answer
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import HOST_FAILURES, Refusal, Target
from pipeline.fetch.robots import Robots
from pipeline.fetch.tdm import Reservations

CALM = 10  # successes in a row after which a gap that was widened is halved
ROBOTS_AGE_S = 24 * 3600  # RFC 9309 §2.4
_STUCK = frozenset({"dns_temp", "connect_timeout", "read_timeout", "deadline", "too_slow"})


@dataclass(frozen=True, order=True)
class Job:
    """A request that waits for its turn; each redirect makes a new one.

    Attributes:
        not_before: Earliest start (``time.monotonic``).
        number: Place in the group's order.
        asked: The URL whose answer is wanted.
        target: Where its redirects have led so far.
        hops: Redirects so far.
        failures: Failed attempts so far.
        robots_for: If the job reads a robots.txt: a URL of the authority that it speaks for.
    """

    not_before: float
    number: int
    asked: Target = field(compare=False)
    target: Target = field(compare=False)
    hops: int = field(compare=False, default=0)
    failures: int = field(compare=False, default=0)
    robots_for: Target | None = field(compare=False, default=None)


@dataclass
class Site:
    """What one authority says about itself; ``None`` is not read yet."""

    robots: Robots | None = None
    read_at: float = 0.0
    reservations: Reservations | None = None
    failures: int = 0


@dataclass
class Host:
    """State of one host in one group.

    Attributes:
        config: Limits.
        least_gap_s: Gap that the configuration or a robots.txt asks for.
        gap_s: Present gap; wider while the host says that it is asked too much.
        jobs: Heap of what waits.
        errands: The robots.txt files that wait; they go first, also while the host's own is being read.
        in_flight: Requests under way.
        next_start: When the next request may start.
        scheduled: The start that stands in the common queue.
        reading_site: Whether its robots.txt or tdmrep.json is being read, which all jobs wait for.
        sites: By authority.
        active: Whether it takes its turns.
        answers: Whether its last answer came in time.
        closed: Left alone for the rest of the run.
        failed: Held until the host is done: if it turns out to be down, they all have one reason, in whatever
            order their attempts happened to end.
    """

    config: FetchConfig
    least_gap_s: float = 0.0
    gap_s: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    errands: list[Job] = field(default_factory=list)
    in_flight: int = 0
    next_start: float = 0.0
    scheduled: float | None = None
    reading_site: bool = False
    sites: dict[str, Site] = field(default_factory=dict)
    failures_in_a_row: int = 0
    successes: int = 0
    active: bool = False
    answers: bool = False
    closed: bool = False
    failed: list[tuple[Target, Answer]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.least_gap_s = self.gap_s = self.config.host_gap_s

    def push(self, job: Job) -> None:
        """Adds a request."""
        heapq.heappush(self.jobs if job.robots_for is None else self.errands, job)

    def pop(self) -> Job:
        """Takes the next request; there is one."""
        return heapq.heappop(self.errands or self.jobs)

    @property
    def is_done(self) -> bool:
        """Whether nothing waits for it and nothing is under way."""
        return not (self.jobs or self.errands or self.in_flight or self.reading_site)

    def next_due(self) -> float | None:
        """When its next request may start; ``None`` if there is none or it must wait for another."""
        if self.in_flight >= self.config.host_concurrency:
            return None
        if self.errands:
            return max(self.next_start, self.errands[0].not_before)
        if not self.jobs or self.reading_site:
            return None
        # The jobs of a closed host only need to be put aside.
        return 0.0 if self.closed else max(self.next_start, self.jobs[0].not_before)

    def site(self, authority: str) -> Site:
        """What an authority says, if that is known and of today."""
        site = self.sites.get(authority)
        if site is None or (site.robots is not None and time.monotonic() - site.read_at > ROBOTS_AGE_S):
            site = self.sites[authority] = Site()
        return site

    def rest(self, seconds: float) -> None:
        """Nothing is asked of it for so long."""
        self.next_start = max(self.next_start, time.monotonic() + seconds)

    def judge(self, answer: Answer) -> bool:
        """Adapts the gap to an answer of any kind; returns whether :attr:`answers` changed."""
        if answer.http_status in (429, 503):
            wider = max(2 * self.gap_s, self.config.backoff_base_s)
            self.gap_s = max(self.least_gap_s, min(wider, self.config.host_gap_cap_s))
            self.rest(self.gap_s)
            self.successes = 0
        elif answer.refusal is None:
            self.successes += 1
            if self.successes % CALM == 0:
                half = self.gap_s / 2
                self.gap_s = max(self.least_gap_s, half if half >= self.config.backoff_base_s else 0.0)
        before = self.answers
        self.answers = answer.refusal is None or answer.refusal.reason not in _STUCK
        return self.answers != before

    def break_circuit(self, answer: Answer) -> None:
        """Leaves a host alone that only fails, by its answers to requests for pictures."""
        if answer.refusal is None or answer.refusal.reason not in HOST_FAILURES:
            self.failures_in_a_row = 0
            return
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= self.config.breaker_failures:
            self.closed = True

    def obey(self, authority: str, rules: Robots) -> None:
        """Takes over the robots.txt of one of its authorities."""
        site = self.sites[authority]
        site.robots, site.read_at = rules, time.monotonic()
        if rules.crawl_delay_s > self.config.crawl_delay_cap_s:
            detail = f"robots.txt asks for a gap of {rules.crawl_delay_s:g} s"
            site.robots = Robots(closed=Refusal("host_backoff", detail))
        elif rules.crawl_delay_s > self.least_gap_s:
            self.least_gap_s = rules.crawl_delay_s
            self.gap_s = max(self.gap_s, rules.crawl_delay_s)
            self.rest(rules.crawl_delay_s)
