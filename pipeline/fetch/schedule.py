"""Who is asked when: hosts interleaved, each within its own limits, in one group of hosts.

All URLs of a host are in one group and one worker handles a group at a time, so politeness needs no state that
workers share. One thread decides and the others only wait for servers. Each request is one hop: a redirect goes
back into the queue of the host it points to and meets that host's robots.txt and limits.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pipeline.fetch import robots
from pipeline.fetch.client import Answer, Client
from pipeline.fetch.policy import HOST_FAILURES, TRANSIENT, Refusal, Target, backoff_s, redirect
from pipeline.fetch.robots import Robots


@dataclass(frozen=True, order=True)
class _Job:
    not_before: float
    number: int
    asked: Target = field(compare=False)  # the URL whose answer is wanted
    target: Target = field(compare=False)  # where its redirects have led so far
    hops: int = field(compare=False, default=0)
    failures: int = field(compare=False, default=0)


@dataclass
class _Host:
    gap_s: float
    jobs: list[_Job] = field(default_factory=list)
    in_flight: int = 0
    next_start: float = 0.0
    scheduled: float | None = None
    reading_robots: bool = False
    robots: dict[str, Robots] = field(default_factory=dict)
    robots_failures: dict[str, int] = field(default_factory=dict)
    failures_in_a_row: int = 0
    closed: bool = False
    # Held until the host is done: if it turns out to be down, they all have one reason, in whatever order
    # their attempts happened to end.
    failed: list[tuple[Target, Answer]] = field(default_factory=list)

    def next_due(self) -> float:
        """When its next job may start; the jobs of a closed host only need to be put aside."""
        return 0.0 if self.closed else max(self.next_start, self.jobs[0].not_before)


class Schedule:
    """Fetches the URLs of one group of hosts.

    Args:
        client: Makes the requests; its configuration gives the limits.
    """

    def __init__(self, client: Client) -> None:
        self.client, self.config = client, client.config
        self._hosts: dict[str, _Host] = {}
        self._ready: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()
        self._ended: queue.SimpleQueue[tuple[str, _Job, Answer, Robots | None]] = queue.SimpleQueue()
        self._in_flight = 0

    def run(self, targets: Iterable[Target]) -> Iterator[tuple[Target, Answer]]:
        """Yields each URL with its final answer, in the order they end; bodies not yet taken stay few."""
        for target in targets:
            self._push(_Job(0.0, next(self._numbers), target, target))
        with ThreadPoolExecutor(self.config.fetch_threads, thread_name_prefix="fetch") as pool:
            while self._ready or self._in_flight:
                yield from self._start_due(pool)
                yield from self._wait()
        for host in self._hosts.values():
            yield from self._settle(host)

    def _host(self, name: str) -> _Host:
        if name not in self._hosts:
            self._hosts[name] = _Host(gap_s=self.config.host_gap_s)
        return self._hosts[name]

    def _push(self, job: _Job) -> None:
        name = job.target.host
        host = self._host(name)
        heapq.heappush(host.jobs, job)
        self._plan(name, host)

    def _plan(self, name: str, host: _Host) -> None:
        """Enters a host's next start into the common queue, unless it stands there for as early already."""
        if not host.jobs or host.reading_robots or host.in_flight >= self.config.host_concurrency:
            return
        when = host.next_due()
        if host.scheduled is None or when < host.scheduled:
            host.scheduled = when
            heapq.heappush(self._ready, (when, next(self._numbers), name))

    def _start_due(self, pool: ThreadPoolExecutor) -> Iterator[tuple[Target, Answer]]:
        while self._ready and self._in_flight < self.config.fetch_threads:
            now = time.monotonic()
            when, _, name = self._ready[0]
            if when > now:
                return
            heapq.heappop(self._ready)
            host = self._hosts[name]
            if host.scheduled != when:
                continue  # an earlier entry took its place
            host.scheduled = None
            if host.in_flight >= self.config.host_concurrency or host.reading_robots or not host.jobs:
                continue
            if host.next_due() <= now:
                yield from self._start(pool, name, host, now)
            self._plan(name, host)

    def _start(
        self, pool: ThreadPoolExecutor, name: str, host: _Host, now: float
    ) -> Iterator[tuple[Target, Answer]]:
        job = heapq.heappop(host.jobs)
        if host.closed:
            host.failed.append((job.asked, Answer(refusal=Refusal("host_backoff"))))
            return
        rules = host.robots.get(job.target.authority)
        refusal = None if rules is None else rules.refusal(job.target)
        if refusal is not None:
            yield job.asked, _after_redirect(job, Answer(refusal=refusal))
            return
        if rules is None:
            heapq.heappush(host.jobs, job)
            host.reading_robots = True
        host.in_flight += 1
        self._in_flight += 1
        host.next_start = now + host.gap_s
        pool.submit(self._request, name, job, rules is None)

    def _request(self, name: str, job: _Job, read_robots: bool) -> None:
        rules: Robots | None = None
        try:
            if read_robots:
                answer, rules = robots.read(self.client, job.target)
            else:
                answer = replace(self.client.get(job.target), final_url=job.target.url)
        except Exception as error:  # whatever a server's bytes can provoke costs its own URL only
            answer = Answer(refusal=Refusal("internal_error", type(error).__name__))
            rules = Robots(closed=answer.refusal) if read_robots else None
        self._ended.put((name, job, answer, rules))

    def _wait(self) -> Iterator[tuple[Target, Answer]]:
        if not self._in_flight and not self._ready:
            return
        full = self._in_flight >= self.config.fetch_threads
        pause = None if full or not self._ready else max(0.0, self._ready[0][0] - time.monotonic())
        try:
            ended = self._ended.get(timeout=pause)
        except queue.Empty:
            return
        while True:
            yield from self._end(*ended)
            try:
                ended = self._ended.get_nowait()
            except queue.Empty:
                return

    def _end(
        self, name: str, job: _Job, answer: Answer, rules: Robots | None
    ) -> Iterator[tuple[Target, Answer]]:
        host = self._hosts[name]
        host.in_flight -= 1
        self._in_flight -= 1
        if rules is not None:
            host.reading_robots = False
            self._end_robots(host, job, answer, rules)
        else:
            self._judge(host, answer)
            yield from self._end_fetch(host, job, answer)
        self._plan(name, host)

    def _end_robots(self, host: _Host, job: _Job, answer: Answer, rules: Robots) -> None:
        authority = job.target.authority
        failures = host.robots_failures.get(authority, 0) + 1
        if robots.is_retryable(answer) and failures <= self.config.retries:
            host.robots_failures[authority] = failures
            pause = self._pause(job.target.authority, failures, answer)
            if pause is not None:
                host.next_start = max(host.next_start, time.monotonic() + pause)
                return
        host.robots[authority] = rules
        if rules.crawl_delay_s > self.config.crawl_delay_cap_s:
            host.robots[authority] = Robots(
                closed=Refusal("host_backoff", f"robots.txt asks for a gap of {rules.crawl_delay_s:g} s")
            )
        else:
            host.gap_s = max(host.gap_s, rules.crawl_delay_s)
            host.next_start = max(host.next_start, time.monotonic() + rules.crawl_delay_s)

    def _judge(self, host: _Host, answer: Answer) -> None:
        """The circuit breaker: a host that only fails is left alone."""
        if answer.refusal is None or answer.refusal.reason not in HOST_FAILURES:
            host.failures_in_a_row = 0
            return
        host.failures_in_a_row += 1
        if host.failures_in_a_row >= self.config.breaker_failures:
            host.closed = True

    def _end_fetch(self, host: _Host, job: _Job, answer: Answer) -> Iterator[tuple[Target, Answer]]:
        refusal = answer.refusal
        if answer.is_redirect:
            yield from self._follow(job, answer)
        elif refusal is None:
            yield job.asked, answer
        elif refusal.reason in TRANSIENT:
            self._retry(host, job, answer)
        else:
            yield job.asked, _after_redirect(job, answer)

    def _follow(self, job: _Job, answer: Answer) -> Iterator[tuple[Target, Answer]]:
        found = redirect(job.target, answer.location)
        if job.hops >= self.config.max_redirects:
            found = Refusal("too_many_redirects", f"more than {self.config.max_redirects}")
        if isinstance(found, Refusal):
            yield job.asked, replace(answer, refusal=found)
        else:
            self._push(_Job(0.0, job.number, job.asked, found, job.hops + 1, job.failures))

    def _retry(self, host: _Host, job: _Job, answer: Answer) -> None:
        failures = job.failures + 1
        pause = self._pause(job.asked.url, failures, answer)
        if pause is None:
            host.closed = True
        if failures > self.config.retries or pause is None:
            host.failed.append((job.asked, answer))
            return
        then = time.monotonic() + pause
        if answer.http_status in (429, 503):
            host.next_start = max(host.next_start, then)
        heapq.heappush(host.jobs, replace(job, not_before=then, failures=failures))

    def _pause(self, url: str, failures: int, answer: Answer) -> float | None:
        """Seconds until the next attempt; ``None`` if the server asks for more than we wait."""
        if answer.retry_after_s is not None:
            return answer.retry_after_s if answer.retry_after_s <= self.config.retry_after_cap_s else None
        return backoff_s(url, failures, base_s=self.config.backoff_base_s, cap_s=self.config.backoff_cap_s)

    def _settle(self, host: _Host) -> Iterator[tuple[Target, Answer]]:
        for target, answer in host.failed:
            if host.closed:
                answer = Answer(refusal=Refusal("host_backoff"))
            yield target, answer
        host.failed.clear()


def _after_redirect(job: _Job, answer: Answer) -> Answer:
    """An answer whose refusal says that a redirect, not the URL itself, led to a forbidden place."""
    if job.hops and answer.refusal is not None and answer.refusal.reason.startswith("blocked_"):
        return replace(answer, refusal=Refusal("redirect_blocked", answer.refusal.reason))
    return answer
