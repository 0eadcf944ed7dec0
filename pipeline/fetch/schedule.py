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
from pipeline.fetch.hosts import Host, Job, Site
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


@dataclass
class _Ended:
    job: Job
    unproven: bool
    answer: Answer = field(default_factory=Answer)
    rules: Robots | Target | None = None
    reservations: Reservations | None = None


class Schedule:
    """Fetches the URLs of one group of hosts, once.

    Args:
        client: Makes the requests; its configuration gives the limits.
    """

    def __init__(self, client: Client) -> None:
        self.client, self.config = client, client.config
        self._hosts: dict[str, Host] = {}
        self._waiting: deque[str] = deque()  # hosts that have not had a turn
        self._active = 0
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
        self._unresolved: list[tuple[Job, Answer]] = []

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
            job = Job(0.0, next(self._numbers), target, target)
            self._hosts.setdefault(target.host, Host(self.config)).push(job)
        # The longest first, so that no long one is left for the end.
        self._waiting.extend(sorted(self._hosts, key=lambda name: -len(self._hosts[name].jobs)))
        self._activate_waiting()
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

    def _push(self, job: Job) -> None:
        name = job.target.host
        host = self._hosts.setdefault(name, Host(self.config))
        host.push(job)
        self._activate(host)
        self._plan(name, host)

    def _activate(self, host: Host) -> None:
        self._active += not host.active
        host.active = True

    def _activate_waiting(self) -> None:
        while self._waiting and self._active < self.config.active_hosts:
            name = self._waiting.popleft()
            self._activate(self._hosts[name])
            self._plan(name, self._hosts[name])

    def _go_on(self, name: str, host: Host) -> Iterator[tuple[Target, Answer]]:
        """Plans a host's next start, or makes room for the next host and forgets what this one's sites said."""
        if not host.is_done:
            self._plan(name, host)
            return
        self._active -= host.active
        host.active = False
        host.sites.clear()
        yield from self._settle(host)
        self._activate_waiting()

    def _plan(self, name: str, host: Host) -> None:
        """Enters a host's next start into the common queue, unless it stands there for as early already."""
        when = host.next_due()
        if when is not None and (host.scheduled is None or when < host.scheduled):
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
            due = host.next_due()
            if due is not None and due <= now:
                yield from self._start(pool, host, now)
            yield from self._go_on(name, host)

    def _start(self, pool: ThreadPoolExecutor, host: Host, now: float) -> Iterator[tuple[Target, Answer]]:
        job = host.pop()
        if host.closed:
            yield from self._leave_alone(host, job)
            return
        reads_tdm = False
        if job.robots_for is None:
            site = host.site(job.target.authority)
            refusal = None if site.robots is None else site.robots.refusal(job.target)
            if refusal is not None:
                yield from self._refuse(job, refusal)
                return
            if site.reservations is None and not self._may_read_tdm(site, job.target):
                site.reservations = Reservations()
            host.reading_site = site.robots is None or site.reservations is None
            reads_tdm = site.robots is not None and site.reservations is None
            if host.reading_site:
                host.push(job)
            if site.robots is None:
                place = robots.address_of(job.target)
                job = Job(0.0, job.number, job.asked, place, robots_for=job.target)
        host.in_flight += 1
        self._in_flight += 1
        self._unproven += not host.answers
        host.next_start = now + host.gap_s
        pool.submit(self._request, job, reads_tdm, self._is_reserved(host, job), not host.answers)

    def _leave_alone(self, host: Host, job: Job) -> Iterator[tuple[Target, Answer]]:
        closed = Answer(refusal=Refusal("host_backoff"))
        if job.robots_for is None:
            host.failed.append((job.asked, closed))
        else:
            self._end_robots(job, closed, Robots(closed=closed.refusal))
        yield from ()

    def _refuse(self, job: Job, refusal: Refusal) -> Iterator[tuple[Target, Answer]]:
        answer = _after_redirect(job, Answer(refusal=refusal))
        if refusal.reason == "dns_temp":
            self._unresolved.append((job, answer))
        else:
            yield job.asked, answer

    def _may_read_tdm(self, site: Site, target: Target) -> bool:
        allowed = site.robots is None or site.robots.refusal(tdm.address_of(target)) is None
        return self.config.tdmrep and allowed

    @staticmethod
    def _is_reserved(host: Host, job: Job) -> bool:
        site = host.sites.get(job.target.authority)
        return site is not None and site.reservations is not None and site.reservations.reserve(job.target)

    def _defer(self) -> Iterator[tuple[Target, Answer]]:
        """The time is over: gives back all that has not started."""
        self._waiting.clear()
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
            host.errands.clear()

    # Asking, in threads of their own

    def _request(self, job: Job, reads_tdm: bool, reserved: bool, unproven: bool) -> None:
        ended = _Ended(job, unproven)
        try:
            if reads_tdm:
                ended.reservations = Reservations()
                ended.answer, ended.reservations = tdm.read(self.client, job.target)
            elif job.robots_for is not None:
                ended.answer = self.client.get(job.target, robots=True)
                ended.rules = robots.judge(ended.answer, job.target, job.hops, self.config.also_obey)
            else:
                answer = self.client.get(job.target, reserved=reserved)
                ended.answer = replace(answer, final_url=job.target.url)
        except Exception as error:  # whatever a server's bytes can provoke costs its own URL only
            ended.answer = Answer(refusal=Refusal("internal_error", type(error).__name__))
            ended.rules = Robots(closed=ended.answer.refusal)
        self._ended.put(ended)

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
        job, answer, name = ended.job, ended.answer, ended.job.target.host
        host = self._hosts[name]
        host.in_flight -= 1
        self._in_flight -= 1
        self._unproven -= ended.unproven
        if host.judge(answer):
            host.scheduled = None  # it changes queues
        if ended.reservations is not None:
            host.sites[job.target.authority].reservations = ended.reservations
            host.reading_site = False
        elif job.robots_for is not None and ended.rules is not None:
            self._end_robots(job, answer, ended.rules)
        else:
            host.break_circuit(answer)
            yield from self._end_fetch(host, job, answer)
        yield from self._go_on(name, host)

    def _end_robots(self, job: Job, answer: Answer, rules: Robots | Target) -> None:
        """Takes a robots.txt over, or asks on; the file may speak for another host than the one that was asked."""
        if isinstance(rules, Target):
            self._push(replace(job, target=rules, hops=job.hops + 1))
            return
        assert job.robots_for is not None
        name, authority = job.robots_for.host, job.robots_for.authority
        host = self._hosts[name]
        host.reading_site = False
        unresolved = rules.closed is not None and rules.closed.reason == "dns_temp"
        self._count_look_up(name, unresolved)
        site = host.sites[authority]
        site.failures += 1
        pause = None
        if robots.is_retryable(answer) and not unresolved and site.failures <= self.config.retries:
            pause = self._pause(authority, site.failures, answer)
        if pause is not None:
            host.rest(pause)
        else:
            host.obey(authority, rules)
        self._plan(name, host)

    def _end_fetch(self, host: Host, job: Job, answer: Answer) -> Iterator[tuple[Target, Answer]]:
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

    def _follow(self, job: Job, answer: Answer) -> Iterator[tuple[Target, Answer]]:
        found = redirect(job.target, answer.location)
        if job.hops >= self.config.max_redirects:
            found = Refusal("too_many_redirects", f"more than {self.config.max_redirects}")
        if isinstance(found, Refusal):
            yield job.asked, replace(answer, refusal=found)
        else:
            self._push(Job(0.0, job.number, job.asked, found, job.hops + 1, job.failures))

    def _retry(self, host: Host, job: Job, answer: Answer) -> None:
        failures = job.failures + 1
        pause = self._pause(job.asked.url, failures, answer)
        if pause is None:
            host.closed = True
        passes = answer.refusal is not None and answer.refusal.reason in TRANSIENT
        if failures > self.config.retries or pause is None or not passes:
            host.failed.append((job.asked, answer))
            return
        if answer.http_status in (429, 503):
            host.rest(pause)
        host.push(replace(job, not_before=time.monotonic() + pause, failures=failures))

    def _pause(self, url: str, failures: int, answer: Answer) -> float | None:
        """Seconds until the next attempt; ``None`` if the server asks for more than we wait."""
        if answer.retry_after_s is not None:
            return answer.retry_after_s if answer.retry_after_s <= self.config.retry_after_cap_s else None
        return backoff_s(url, failures, base_s=self.config.backoff_base_s, cap_s=self.config.backoff_cap_s)

    def _settle(self, host: Host) -> Iterator[tuple[Target, Answer]]:
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


def _after_redirect(job: Job, answer: Answer) -> Answer:
    """An answer whose refusal says that a redirect, not the URL itself, led to a forbidden place."""
    if job.hops and answer.refusal is not None and answer.refusal.reason.startswith("blocked_"):
        return replace(answer, refusal=Refusal("redirect_blocked", answer.refusal.reason))
    return answer
