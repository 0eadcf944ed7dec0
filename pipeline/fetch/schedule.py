"""Who is asked when: hosts interleaved, each within its own limits, in one group of hosts.

All URLs of a host are in one group and one worker handles a group at a time, so politeness needs no state that
workers share. One thread decides and the others only wait for servers. Each request is one hop: a redirect goes
back into the queue of the host it points to and meets that host's robots.txt and limits. A quarter of the slots is
kept for hosts that answer, so that hosts that hang, however many, delay only one another.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pipeline.core.errors import StageFailedError
from pipeline.fetch import robots, tdm
from pipeline.fetch.client import Answer, Client
from pipeline.fetch.policy import (
    HOST_FAILURES,
    TRANSIENT,
    Refusal,
    Target,
    backoff_s,
    redirect,
    within_quota,
)
from pipeline.fetch.robots import Robots
from pipeline.fetch.tdm import Reservations

DNS_HOSTS = 50  # hosts looked up before their failures say something about the resolver
_DNS_WINDOW = 100
_CALM = 10  # successes in a row after which a gap that was widened is halved
_STUCK = frozenset({"dns_temp", "connect_timeout", "read_timeout", "deadline", "too_slow"})


@dataclass(frozen=True, order=True)
class _Job:
    not_before: float
    number: int
    asked: Target = field(compare=False)  # the URL whose answer is wanted
    target: Target = field(compare=False)  # where its redirects have led so far
    hops: int = field(compare=False, default=0)
    failures: int = field(compare=False, default=0)


@dataclass
class _Site:
    """What one authority says about itself; ``None`` is not read yet."""

    robots: Robots | None = None
    reservations: Reservations | None = None
    failures: int = 0


@dataclass
class _Host:
    least_gap_s: float
    gap_s: float
    jobs: list[_Job] = field(default_factory=list)
    in_flight: int = 0
    next_start: float = 0.0
    scheduled: float | None = None
    reading_site: bool = False
    sites: dict[str, _Site] = field(default_factory=dict)
    failures_in_a_row: int = 0
    successes: int = 0
    answers: bool = False
    closed: bool = False
    # Held until the host is done: if it turns out to be down, they all have one reason, in whatever order
    # their attempts happened to end.
    failed: list[tuple[Target, Answer]] = field(default_factory=list)

    def next_due(self) -> float:
        """When its next job may start; the jobs of a closed host only need to be put aside."""
        return 0.0 if self.closed else max(self.next_start, self.jobs[0].not_before)


@dataclass(frozen=True)
class _Ended:
    host: str
    job: _Job
    unproven: bool
    answer: Answer
    learned: Robots | Reservations | None


class Schedule:
    """Fetches the URLs of one group of hosts, once.

    Args:
        client: Makes the requests; its configuration gives the limits.
    """

    def __init__(self, client: Client) -> None:
        self.client, self.config = client, client.config
        self._hosts: dict[str, _Host] = {}
        # By whether the host answers: those that do not may not fill all slots.
        self._ready: dict[bool, list[tuple[float, int, str]]] = {True: [], False: []}
        self._numbers = itertools.count()
        self._ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        self._in_flight = self._unproven = 0
        self._unproven_slots = self.config.fetch_threads - self.config.fetch_threads // 4
        self._stop_at = float("inf")
        self._looked_up: set[str] = set()
        self._recent: deque[bool] = deque(maxlen=_DNS_WINDOW)  # of the last look-ups, which failed for now
        self._resolver_fails = False
        self._unresolved: list[tuple[_Job, Answer]] = []

    def run(
        self, targets: Iterable[Target], spent: Mapping[str, int] | None = None
    ) -> Iterator[tuple[Target, Answer]]:
        """Yields each URL with its final answer, in the order they end; bodies not yet taken stay few.

        Args:
            targets: URLs in the group's order; the first ones of a host are within its quota.
            spent: URLs of each host that this run asked for before it was interrupted.

        Raises:
            StageFailedError: The name resolver fails. All that was yielded is final and worth staging, and no
                ``dns_temp`` is among it; a new schedule goes on with the rest.
        """
        if self.config.group_budget_s:
            self._stop_at = time.monotonic() + self.config.group_budget_s
        taken, over = within_quota(targets, self.config.max_per_host, spent)
        for target in over:
            yield target, Answer(refusal=Refusal("host_quota", f"more than {self.config.max_per_host}"))
        for target in taken:
            self._push(_Job(0.0, next(self._numbers), target, target))
        try:
            with ThreadPoolExecutor(self.config.fetch_threads, thread_name_prefix="fetch") as pool:
                yield from self._work(pool)
                self._look_up_again()
                yield from self._work(pool)
        finally:
            self.client.close()
        for host in self._hosts.values():
            yield from self._settle(host)
        if self._resolver_fails:
            raise self._resolver_error()
        for job, answer in self._unresolved:
            yield job.asked, answer

    def _work(self, pool: ThreadPoolExecutor) -> Iterator[tuple[Target, Answer]]:
        while self._in_flight or any(self._ready.values()):
            if self._resolver_fails:
                if not self._in_flight:
                    return
            elif time.monotonic() >= self._stop_at:
                yield from self._defer()
            else:
                yield from self._start_due(pool)
            yield from self._wait()

    # Choosing what to start

    def _push(self, job: _Job) -> None:
        name = job.target.host
        if name not in self._hosts:
            self._hosts[name] = _Host(self.config.host_gap_s, self.config.host_gap_s)
        host = self._hosts[name]
        heapq.heappush(host.jobs, job)
        self._plan(name, host)

    def _plan(self, name: str, host: _Host) -> None:
        """Enters a host's next start into the common queue, unless it stands there for as early already."""
        if not host.jobs or host.reading_site or host.in_flight >= self.config.host_concurrency:
            return
        when = host.next_due()
        if host.scheduled is None or when < host.scheduled:
            host.scheduled = when
            heapq.heappush(self._ready[host.answers], (when, next(self._numbers), name))

    def _open_queues(self) -> list[list[tuple[float, int, str]]]:
        """The queues that a slot is free for, the one that is due first before the other."""
        if self._resolver_fails or self._in_flight >= self.config.fetch_threads:
            return []
        queues = [self._ready[True]]
        if self._unproven < self._unproven_slots:
            queues.append(self._ready[False])
        return sorted((q for q in queues if q), key=lambda q: q[0])

    def _start_due(self, pool: ThreadPoolExecutor) -> Iterator[tuple[Target, Answer]]:
        while queues := self._open_queues():
            now = time.monotonic()
            when, _, name = queues[0][0]
            if when > now:
                return
            heapq.heappop(queues[0])
            host = self._hosts[name]
            if host.scheduled != when:
                continue  # an earlier entry took its place
            host.scheduled = None
            if host.in_flight >= self.config.host_concurrency or host.reading_site or not host.jobs:
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
        site = host.sites.setdefault(job.target.authority, _Site())
        refusal = None if site.robots is None else site.robots.refusal(job.target)
        if refusal is not None:
            answer = _after_redirect(job, Answer(refusal=refusal))
            if refusal.reason == "dns_temp":
                self._unresolved.append((job, answer))
            else:
                yield job.asked, answer
            return
        if site.reservations is None and not self._may_read_tdm(site, job.target):
            site.reservations = Reservations()
        if site.robots is None or site.reservations is None:
            heapq.heappush(host.jobs, job)
            host.reading_site = True
        host.in_flight += 1
        self._in_flight += 1
        self._unproven += not host.answers
        host.next_start = now + host.gap_s
        pool.submit(self._request, name, job, replace(site), not host.answers)

    def _may_read_tdm(self, site: _Site, target: Target) -> bool:
        allowed = site.robots is None or site.robots.refusal(tdm.address_of(target)) is None
        return self.config.tdmrep and allowed

    def _defer(self) -> Iterator[tuple[Target, Answer]]:
        """The time is over: gives back all that has not started."""
        for entries in self._ready.values():
            entries.clear()
        for host in self._hosts.values():
            host.scheduled = None
            for job in host.jobs:
                yield (
                    job.asked,
                    Answer(refusal=Refusal("deferred", f"after {self.config.group_budget_s:g} s")),
                )
            host.jobs.clear()

    # Asking, in threads of their own

    def _request(self, name: str, job: _Job, site: _Site, unproven: bool) -> None:
        learned: Robots | Reservations | None = None
        try:
            if site.robots is None:
                answer, learned = robots.read(self.client, job.target)
            elif site.reservations is None:
                answer, learned = tdm.read(self.client, job.target)
            else:
                answer = self.client.get(job.target, reserved=site.reservations.reserve(job.target))
                answer = replace(answer, final_url=job.target.url)
        except Exception as error:  # whatever a server's bytes can provoke costs its own URL only
            answer = Answer(refusal=Refusal("internal_error", type(error).__name__))
            if site.robots is None:
                learned = Robots(closed=answer.refusal)
            elif site.reservations is None:
                learned = Reservations()
        self._ended.put(_Ended(name, job, unproven, answer, learned))

    def _wait(self) -> Iterator[tuple[Target, Answer]]:
        queues = self._open_queues()
        if not self._in_flight and not queues:
            return
        pause = None
        if queues:
            pause = max(0.0, min(queues[0][0][0], self._stop_at) - time.monotonic())
        try:
            ended = self._ended.get(timeout=pause)
        except queue.Empty:
            return
        while True:
            yield from self._end(ended)
            try:
                ended = self._ended.get_nowait()
            except queue.Empty:
                return

    # Judging what came

    def _end(self, ended: _Ended) -> Iterator[tuple[Target, Answer]]:
        host, job, answer = self._hosts[ended.host], ended.job, ended.answer
        host.in_flight -= 1
        self._in_flight -= 1
        self._unproven -= ended.unproven
        answers = answer.refusal is None or answer.refusal.reason not in _STUCK
        if host.answers != answers:
            host.answers, host.scheduled = answers, None
        self._adapt_gap(host, answer)
        if isinstance(ended.learned, Robots):
            self._end_robots(ended.host, job, answer, ended.learned)
        elif isinstance(ended.learned, Reservations):
            host.sites[job.target.authority].reservations = ended.learned
            host.reading_site = False
        else:
            self._judge(host, answer)
            yield from self._end_fetch(host, job, answer)
        self._plan(ended.host, host)

    def _adapt_gap(self, host: _Host, answer: Answer) -> None:
        """A host that is asked too much is asked half as often, until it answers well again."""
        if answer.http_status in (429, 503):
            wider = max(2 * host.gap_s, self.config.backoff_base_s)
            host.gap_s = max(host.least_gap_s, min(wider, self.config.host_gap_cap_s))
            host.next_start = max(host.next_start, time.monotonic() + host.gap_s)
            host.successes = 0
        elif answer.refusal is None:
            host.successes += 1
            if host.successes % _CALM == 0:
                half = host.gap_s / 2
                host.gap_s = max(host.least_gap_s, half if half >= self.config.backoff_base_s else 0.0)

    def _end_robots(self, name: str, job: _Job, answer: Answer, rules: Robots) -> None:
        host, authority = self._hosts[name], job.target.authority
        host.reading_site = False
        unresolved = rules.closed is not None and rules.closed.reason == "dns_temp"
        self._count_look_up(name, unresolved)
        site = host.sites[authority]
        site.failures += 1
        if robots.is_retryable(answer) and not unresolved and site.failures <= self.config.retries:
            pause = self._pause(authority, site.failures, answer)
            if pause is not None:
                host.next_start = max(host.next_start, time.monotonic() + pause)
                return
        site.robots = rules
        if rules.crawl_delay_s > self.config.crawl_delay_cap_s:
            site.robots = Robots(
                closed=Refusal("host_backoff", f"robots.txt asks for a gap of {rules.crawl_delay_s:g} s")
            )
        elif rules.crawl_delay_s > host.least_gap_s:
            host.least_gap_s = rules.crawl_delay_s
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
        elif refusal.reason == "dns_temp":
            self._unresolved.append((job, answer))
        elif refusal.reason in HOST_FAILURES or refusal.reason in TRANSIENT:
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
        passes = answer.refusal is not None and answer.refusal.reason in TRANSIENT
        if failures > self.config.retries or pause is None or not passes:
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

    # The name resolver

    def _count_look_up(self, name: str, failed: bool) -> None:
        if name in self._looked_up:
            return
        self._looked_up.add(name)
        self._recent.append(failed)
        share = sum(self._recent) / len(self._recent)
        if len(self._looked_up) >= DNS_HOSTS and share > self.config.dns_abort_share:
            self._resolver_fails = True

    def _look_up_again(self) -> None:
        """At the group's end, one more attempt for the hosts that could not be looked up."""
        again, self._unresolved = self._unresolved, []
        for job, _ in again:
            self._hosts[job.target.host].sites.pop(job.target.authority, None)
            pause = self._pause(job.target.authority, 1, Answer()) or 0.0
            self._push(replace(job, not_before=time.monotonic() + pause))

    def _resolver_error(self) -> StageFailedError:
        return StageFailedError(
            "the name resolver fails",
            expected=f"at most {self.config.dns_abort_share:.0%} of hosts that cannot be looked up for now",
            found=f"{sum(self._recent)} of the last {len(self._recent)}",
            hint="set up a caching resolver on this machine (unbound, knot-resolver) or lower"
            " fetch.dns_concurrency; the same command goes on where it stopped",
        )


def _after_redirect(job: _Job, answer: Answer) -> Answer:
    """An answer whose refusal says that a redirect, not the URL itself, led to a forbidden place."""
    if job.hops and answer.refusal is not None and answer.refusal.reason.startswith("blocked_"):
        return replace(answer, refusal=Refusal("redirect_blocked", answer.refusal.reason))
    return answer
