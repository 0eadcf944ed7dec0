from __future__ import annotations

import dataclasses
import itertools
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import StageFailedError
from pipeline.fetch import hosts, robots
from pipeline.fetch.client import Answer, Client
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.hosts import Host
from pipeline.fetch.policy import Refusal, Target, parse_url
from pipeline.fetch.schedule import DNS_HOSTS, Schedule
from tests.fetch.hostile import Clock, Request, Site, serving
from tests.fetch.hostile_servers import Certificates

LOOPBACK = FetchConfig(
    allow_address=("127.0.0.0/29",),
    host_gap_s=0.0,
    host_gap_cap_s=0.02,
    backoff_base_s=0.01,
    # No machine that runs the tests is so slow: what is proven here is an order, not a speed.
    connect_timeout_s=60.0,
    read_timeout_s=60.0,
    deadline_s=120.0,
    min_rate_bytes_s=0,
)
ROUNDING = 1e-6  # of the sum that a start is


class Noted(Schedule):
    """Notes when each request to a host starts, by its own clock: a server's threads may note one late."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.starts: dict[str, list[float]] = defaultdict(list)

    def _start(self, pool: ThreadPoolExecutor, host: Host, now: float) -> Iterator[tuple[Target, Answer]]:
        name, before = (host.errands or host.jobs)[0].target.host, host.in_flight
        yield from super()._start(pool, host, now)
        if host.in_flight > before:
            self.starts[name].append(now)

    def gaps(self, host: str) -> list[float]:
        return [b - a for a, b in itertools.pairwise(self.starts[host])]


def stop_the_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The schedule's time goes on only when the test says so."""
    clock = Clock()
    for room in ("schedule", "hosts"):
        monkeypatch.setattr(f"pipeline.fetch.{room}.time", clock)
    return clock


def targets_of(urls: Iterable[str]) -> list[Target]:
    return [t for t in map(parse_url, urls) if isinstance(t, Target)]


def fetch_noted(urls: Iterable[str], config: FetchConfig = LOOPBACK) -> tuple[dict[str, Answer], Noted]:
    schedule = Noted(Client(config, version="1"))
    ended = list(schedule.run(targets_of(urls)))
    assert len(ended) == len({t.url for t, _ in ended})
    return {target.url: answer for target, answer in ended}, schedule


def fetch(urls: Iterable[str], config: FetchConfig = LOOPBACK) -> dict[str, Answer]:
    return fetch_noted(urls, config)[0]


def reasons(answers: dict[str, Answer]) -> list[str | None]:
    return [a.refusal.reason if a.refusal else None for a in answers.values()]


def reason_of(site: Site, path: str, config: FetchConfig = LOOPBACK) -> str | None:
    return reasons(fetch([site.url(path)], config))[0]


def test_every_url_is_fetched_once_within_the_hosts_limit(site: Site) -> None:
    def wait_for_a_second(request: Request) -> None:
        until = time.monotonic() + 30.0
        while site.most[request.host] < 2 and time.monotonic() < until:
            time.sleep(0.001)
        request.reply(b"here")

    site.handlers.update({f"/img/{i}.jpg": wait_for_a_second for i in range(20)})
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    urls = [site.url(f"/img/{i}.jpg", host) for host in hosts for i in range(20)]
    assert set(fetch(urls)) == set(urls)
    assert set(site.most.values()) == {2}
    assert set(site.hits.values()) == {3}  # each path once at each of the three hosts
    about = ["/robots.txt", "/.well-known/tdmrep.json"]
    for host in hosts:  # they come before anything else
        assert [path for _, h, path in site.log if h == host][:2] == about
    first = [h for _, h, path in site.log if path not in about][:12]
    assert len(set(first)) > 1, "hosts take turns"


def test_the_gap_between_requests_to_a_host(site: Site) -> None:
    config = dataclasses.replace(LOOPBACK, host_gap_s=0.05)
    two = ["127.0.0.1", "127.0.0.2"]
    _, noted = fetch_noted([site.url(f"/img/{i}.jpg", h) for i in range(6) for h in two], config)
    for host in two:
        assert len(noted.gaps(host)) == 7  # robots.txt, tdmrep.json, six pictures
        assert min(noted.gaps(host)) >= 0.05 - ROUNDING
        times = [when for when, _ in log_of(site, host)]
        assert times[-1] - times[0] >= 0.2, "the server sees it too"


def test_robots_crawl_delay_widens_the_gap_or_closes_the_host(site: Site) -> None:
    site.add("/robots.txt", b"User-agent: *\nCrawl-delay: 0.1\n")
    fetch([site.url(f"/img/{i}.jpg") for i in range(3)])
    assert site.log[-1][0] - site.log[0][0] >= 0.3 / 2
    site.add("/robots.txt", b"User-agent: *\nCrawl-delay: 3600\n")
    assert reason_of(site, "/img/9.jpg") == "host_backoff"
    assert site.hits["/img/9.jpg"] == 0


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        ("", 200, None),
        ("User-agent: *\nDisallow: /img/", 200, "robots_disallow"),
        ("User-agent: *\nDisallow: /*.jpg$", 200, "robots_disallow"),
        ("User-agent: *\nDisallow: /img/\nAllow: /img/1.jpg", 200, None),
        ("User-agent: webimagetext\nDisallow: /", 200, "robots_disallow"),
        ("User-agent: img2dataset\nDisallow: /\n\nUser-agent: *\nAllow: /", 200, "robots_disallow"),
        ("User-agent: img2dataset\nDisallow: /\n\nUser-agent: webimagetext\nAllow: /", 200, None),
        ("User-agent: otherbot\nDisallow: /", 200, None),
        ("User-agent: *\nContent-Signal: search=yes,ai-train=no\nAllow: /", 200, "optout_tdm"),
        ("Content-Signal: ai-train=no # all\nUser-agent: *\nAllow: /", 200, "optout_tdm"),
        ("User-agent: a\nUser-agent: *\nContent-Usage: train-ai=n", 200, "optout_tdm"),
        ("User-agent: CCBot\nContent-Usage: train-ai=n\n\nUser-agent: *\nAllow: /", 200, "optout_tdm"),
        ("User-agent: otherbot\nContent-Signal: ai-train=no\n\nUser-agent: *\nAllow: /", 200, None),
        ("User-agent: *\nContent-Signal: ai-train=no\n\nUser-agent: webimagetext\nAllow: /", 200, None),
        ("User-agent: *\nContent-Signal: ai-train=yes, search=no", 200, None),
        ("User-agent: *\nContent-Usage: /other/ train-ai=n", 200, None),
        ("<html>not a robots file</html>", 200, None),
        ("gone", 404, None),
        ("no", 403, None),
        ("down", 500, "robots_unreachable"),
        ("slow down", 429, "robots_unreachable"),
    ],
)
def test_robots_txt(site: Site, text: str, status: int, expected: str | None) -> None:
    site.add("/robots.txt", text.encode(), status)
    assert reason_of(site, "/img/1.jpg") == expected
    assert site.hits["/img/1.jpg"] == (expected is None)
    assert site.hits["/robots.txt"] == (3 if expected == "robots_unreachable" else 1)


def test_robots_txt_that_redirects(site: Site) -> None:
    site.add("/real.txt", b"User-agent: *\nDisallow: /img/")
    site.add("/robots.txt", status=301, Location="/real.txt")
    assert reason_of(site, "/img/1.jpg") == "robots_disallow"
    site.add("/robots.txt", status=301, Location="http://169.254.169.254/robots.txt")
    assert reason_of(site, "/img/1.jpg") == "robots_unreachable"
    site.add("/robots.txt", status=301, Location="/robots.txt")
    assert reason_of(site, "/img/1.jpg") is None
    assert robots.MAX_REDIRECTS + 1 == 6


def test_robots_txt_on_another_host_keeps_that_hosts_gap(site: Site) -> None:
    site.add("/real.txt", b"User-agent: *\nDisallow: /hidden/")
    first, second = "127.0.0.1", "127.0.0.2"

    def send_on(request: Request) -> None:
        request.reply(b"", 301, Location=site.url("/real.txt", second)) if request.host == first else (
            request.reply(b"", 404)
        )

    site.handlers["/robots.txt"] = send_on
    urls = [site.url(f"/img/{i}.jpg", h) for i in range(5) for h in (first, second)]
    config = dataclasses.replace(LOOPBACK, host_gap_s=0.06)
    answers, noted = fetch_noted([site.url("/hidden/x", first), *urls], config)
    assert Counter(reasons(answers)) == {None: 10, "robots_disallow": 1}
    for host in (first, second):
        assert len(noted.starts[host]) == len(log_of(site, host))
        assert min(noted.gaps(host)) >= 0.06 - ROUNDING
    assert len(log_of(site, second)) == 8


def test_robots_txt_is_read_again_when_it_is_a_day_old(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = stop_the_clock(monkeypatch)

    def answer_and_wait(request: Request) -> None:
        clock.now += hosts.ROBOTS_AGE_S / 2 + 1.0
        request.reply(b"here")

    site.handlers.update({f"/img/{i}.jpg": answer_and_wait for i in range(4)})
    config = dataclasses.replace(LOOPBACK, host_concurrency=1, tdmrep=False)
    fetch([site.url(f"/img/{i}.jpg") for i in range(4)], config)
    first, second = ["/robots.txt", "/img/0.jpg", "/img/1.jpg"], ["/robots.txt", "/img/2.jpg", "/img/3.jpg"]
    assert [path for _, _, path in site.log] == first + second


def test_two_hosts_whose_robots_txt_name_each_other(site: Site) -> None:
    two = ["127.0.0.1", "127.0.0.2"]
    site.handlers["/robots.txt"] = lambda request: request.reply(
        b"", 302, Location=site.url("/robots.txt", two[request.host == two[0]])
    )
    assert reasons(fetch([site.url("/img/1.jpg", h) for h in two])) == [None, None]
    assert site.hits["/robots.txt"] == 12


def test_robots_txt_speaks_for_its_own_port_only(site: Site) -> None:
    site.add("/robots.txt", b"User-agent: *\nDisallow: /img/")
    answers = fetch([site.url("/img/1.jpg"), "http://127.0.0.1:9/img/1.jpg"])
    assert sorted(map(str, reasons(answers))) == ["connect_refused", "robots_disallow"]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/img/1.jpg", None),
        ("http://127.0.0.2:{port}/img/1.jpg", None),
        ("http://169.254.169.254/latest/meta-data/", "redirect_blocked"),
        ("http://127.0.0.9:{port}/img/1.jpg", "redirect_blocked"),  # loopback, but not allowed
        ("http://[::ffff:10.0.0.1]/", "redirect_blocked"),
        ("file:///etc/passwd", "redirect_blocked"),
        ("ftp://127.0.0.1/", "redirect_blocked"),
        ("/loop", "too_many_redirects"),
        ("/hidden/1.jpg", "robots_disallow"),
        ("/none", "http_4xx"),
    ],
)
def test_redirects_meet_all_rules_again(site: Site, location: str, expected: str | None) -> None:
    site.add("/robots.txt", b"User-agent: *\nDisallow: /hidden/")
    site.add("/loop", status=302, Location=location.format(port=site.port))
    assert reason_of(site, "/loop") == expected
    assert site.hits["/loop"] == (6 if expected == "too_many_redirects" else 1)


def test_429_is_asked_again_after_the_pause_it_names(site: Site) -> None:
    def busy_once(request: Request) -> None:
        if request.site.hits["/busy"] == 1:
            request.reply(b"", 429, Retry_After="1")
        else:
            request.reply(b"here")

    site.handlers["/busy"] = busy_once
    assert reason_of(site, "/busy") is None
    times = [when for when, _, path in site.log if path == "/busy"]
    assert times[1] - times[0] >= 1.0


def test_failures_that_may_pass_are_tried_three_times_and_others_once(site: Site) -> None:
    for path, status in (("/a", 500), ("/b", 404), ("/c", 429)):
        site.add(path, status=status)
    assert sorted(map(str, reasons(fetch(map(site.url, ("/a", "/b", "/c")))))) == [
        "http_429",
        "http_4xx",
        "http_5xx",
    ]
    assert (site.hits["/a"], site.hits["/b"], site.hits["/c"]) == (3, 1, 3)


def test_opt_outs_are_not_asked_again(site: Site) -> None:
    url = site.add("/out", b"x", X_Robots_Tag="noai")
    assert reasons(fetch([url])) == ["optout_header"]
    assert site.hits["/out"] == 1


def test_a_host_that_only_fails_is_left_alone_and_its_neighbour_is_not(site: Site) -> None:
    for i in range(50):
        site.add(f"/bad/{i}", status=503)
    bad = [site.url(f"/bad/{i}") for i in range(50)]
    good = [site.url(f"/img/{i}.jpg", "127.0.0.2") for i in range(5)]
    answers = fetch(bad + good)
    assert len(answers) == 55
    # One reason for all, whichever attempts came first: equal input gives equal rows.
    assert {a.refusal.reason for u, a in answers.items() if u in bad and a.refusal} == {"host_backoff"}
    assert all(answers[u].refusal is None for u in good)
    asked = sum(site.hits[f"/bad/{i}"] for i in range(50))
    assert LOOPBACK.breaker_failures <= asked <= LOOPBACK.breaker_failures + 1


def test_a_server_that_wants_an_hour_of_peace_has_it(site: Site) -> None:
    site.add("/busy", status=503, Retry_After="3600")
    assert reasons(fetch([site.url("/busy")])) == ["host_backoff"]
    assert site.hits["/busy"] == 1


def test_a_dead_host_costs_three_attempts_not_three_per_url() -> None:
    answers = fetch([f"http://127.0.0.3:9/{i}.jpg" for i in range(30)])
    assert set(reasons(answers)) == {"connect_refused"}
    assert len(answers) == 30


def fetch_beside_stuck_hosts(
    client: Client, quick: list[str], stuck: list[str], released: threading.Event
) -> list[str]:
    """Fetches URLs, of which the stuck ones are answered only after the quick ones have ended; in that order."""
    ended = []
    for target, answer in Schedule(client).run(targets_of(stuck + quick)):
        assert answer.refusal is None or answer.refusal.reason == "http_4xx"
        ended.append(target.url)
        if set(quick) <= set(ended):
            released.set()
    return ended


def test_a_stuck_host_does_not_delay_the_others(site: Site) -> None:
    released = threading.Event()
    site.handlers["/stuck"] = lambda request: request.reply(b"at last" if released.wait(60) else b"")
    quick = [site.url(f"/img/{i}.jpg") for i in range(10)]
    config = dataclasses.replace(LOOPBACK, fetch_threads=2, retries=0, tdmrep=False)
    ended = fetch_beside_stuck_hosts(
        Client(config, version="1"), quick, [site.url("/stuck", "127.0.0.4")], released
    )
    assert set(ended[:10]) == set(quick)
    assert len(ended) == 11


def test_many_stuck_hosts_do_not_delay_one_that_answers(site: Site) -> None:
    """More hosts hang than there are slots; the one that answers has some of its own."""
    released = threading.Event()

    def hang_unless_good(request: Request) -> None:
        if request.host != "good.test":
            released.wait(60)
        request.reply(b"", 404)

    site.handlers["/stuck"] = site.handlers["/robots.txt"] = hang_unless_good
    quick = [f"http://good.test:{site.port}/img/{i}.jpg" for i in range(20)]
    stuck = [f"http://stuck-{i}.test:{site.port}/stuck" for i in range(30)]
    config = dataclasses.replace(LOOPBACK, fetch_threads=8, retries=0, host_gap_s=0.01)
    client = Client(config, version="1", resolve=lambda _host, _port: ["127.0.0.1"])
    ended = fetch_beside_stuck_hosts(client, quick, stuck, released)
    assert set(ended[:20]) == set(quick)
    assert len(ended) == 50


def log_of(site: Site, host: str) -> list[tuple[float, str]]:
    return [(when, path) for when, h, path in site.log if h == host]


@pytest.mark.usefixtures("no_hurry")
def test_the_servers_log_proves_good_manners(site: Site) -> None:
    """Three hosts with many pictures: connections, order of files, gaps, and a pause that was asked for."""
    site.delay_s = 0.02
    busy: list[float] = []

    def busy_once(request: Request) -> None:
        busy.append(time.monotonic())
        request.reply(b"", 503, Retry_After="1") if len(busy) == 1 else request.reply(b"here")

    site.handlers["/busy.jpg"] = busy_once
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    urls = [site.url(f"/img/{i}.jpg", host) for host in hosts for i in range(12)]
    config = dataclasses.replace(LOOPBACK, host_gap_s=0.04, host_concurrency=2, host_gap_cap_s=0.04)
    answers, noted = fetch_noted([*urls, site.url("/busy.jpg", hosts[0])], config)
    assert reasons(answers) == [None] * 37
    for host in hosts:
        assert site.most[host] <= 2
        assert site.connections[host] <= 3  # two kept ones, and the one that the 503 may have cost
        log = log_of(site, host)
        assert [path for _, path in log[:2]] == ["/robots.txt", "/.well-known/tdmrep.json"]
        assert max(Counter(path for _, path in log if path != "/busy.jpg").values()) == 1
        assert len(noted.starts[host]) == len(log)
        assert min(noted.gaps(host)) >= 0.04 - ROUNDING
        # All but the first two wait for these two, whenever the server's threads note them.
        assert log[-1][0] - log[0][0] >= 0.04 * (len(log) - 3)
    assert busy[1] - busy[0] >= 1.0
    assert max(noted.gaps(hosts[0])) >= 1.0, "the host rests, not the URL"


def test_a_host_that_says_slow_down_is_asked_half_as_often(site: Site) -> None:
    count = itertools.count()
    for i in range(8):
        site.handlers[f"/a/{i}"] = lambda request: request.reply(b"x", 429 if next(count) < 3 else 200)
    config = dataclasses.replace(
        LOOPBACK, host_gap_s=0.02, host_gap_cap_s=0.12, host_concurrency=1, tdmrep=False, retries=9
    )
    answers, noted = fetch_noted([site.url(f"/a/{i}") for i in range(8)], config)
    assert set(reasons(answers)) == {None}
    gaps = noted.gaps("127.0.0.1")[1:]  # robots.txt is well
    assert len(gaps) == 10
    assert [gaps[0] >= 0.04, gaps[1] >= 0.08, gaps[2] >= 0.12] == [True] * 3
    assert min(gaps[3:]) >= 0.12 - ROUNDING, "the cap, not the double"
    assert noted._hosts["127.0.0.1"].gap_s == 0.12


def test_a_wider_gap_shrinks_again_with_successes() -> None:
    host = Host(dataclasses.replace(LOOPBACK, host_gap_s=0.1, host_gap_cap_s=9.0))
    gaps = []
    for answer in [Answer(http_status=429)] * 3 + [Answer(http_status=200)] * 40:
        host.judge(answer)
        gaps.append(host.gap_s)
    assert gaps[:3] == [0.2, 0.4, 0.8]
    assert [gaps[i] for i in (11, 12, 22, 32, 42)] == [0.8, 0.4, 0.2, 0.1, 0.1]


def test_a_hosts_quota(site: Site) -> None:
    urls = [site.url(f"/img/{i}.jpg", h) for i in range(5) for h in ("127.0.0.1", "127.0.0.2")]
    answers = fetch(urls, dataclasses.replace(LOOPBACK, max_per_host=2))
    assert {u: a.refusal.reason if a.refusal else None for u, a in answers.items()} == {
        **dict.fromkeys(urls[:4]),
        **dict.fromkeys(urls[4:], "host_quota"),
    }
    assert sum(n for path, n in site.hits.items() if path.startswith("/img/")) == 4


def test_what_has_not_started_when_the_time_is_over_is_left_for_another_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = stop_the_clock(monkeypatch)
    site.add("/again", status=500)
    urls = [site.url(f"/img/{i}.jpg") for i in range(200)]

    def answer_until_the_time_is_over(request: Request) -> None:
        clock.now = 3600.0
        request.reply(b"here")

    site.handlers["/img/20.jpg"] = answer_until_the_time_is_over
    config = dataclasses.replace(LOOPBACK, group_budget_s=3600.0, backoff_base_s=30.0, host_concurrency=1)
    answers = fetch([site.url("/again"), *urls, "http://127.0.0.3:9/x"], config)
    assert len(answers) == 202
    found = Counter(reasons(answers))
    assert set(found) == {None, "deferred"}
    assert found[None] == sum(site.hits[f"/img/{i}.jpg"] for i in range(200)) == 21, "with what was under way"
    assert site.hits["/again"] == 1
    assert answers[site.url("/again")].refusal == Refusal("deferred", "after 3600 s")


def test_a_long_pause_ends_when_the_time_is_over(site: Site) -> None:
    """Else the one URL that is to be asked again would hold the group for weeks."""
    site.add("/again", status=500)
    config = dataclasses.replace(
        LOOPBACK, group_budget_s=0.05, backoff_base_s=1e7, backoff_cap_s=1e7, tdmrep=False
    )
    assert reason_of(site, "/again", config) == "deferred"


def test_the_answer_names_where_it_came_from(site: Site) -> None:
    site.add("/old.jpg", status=301, Location="/img/1.jpg")
    site.add("/robots.txt", b"User-agent: *\nDisallow: /no")
    answers = fetch(map(site.url, ("/old.jpg", "/img/2.jpg", "/no.jpg", "/gone.jpg")))
    assert {u.rpartition("/")[2]: a.final_url for u, a in answers.items()} == {
        "old.jpg": site.url("/img/1.jpg"),
        "2.jpg": site.url("/img/2.jpg"),
        "no.jpg": None,
        "gone.jpg": site.url("/gone.jpg"),
    }


@pytest.mark.parametrize(
    ("tdmrep", "header", "switch", "expected"),
    [
        (b'[{"location": "/img/*", "tdm-reservation": 1}]', None, True, "optout_tdm"),
        (b'[{"location": "/img/*", "tdm-reservation": 1}]', "0", True, None),
        (b'[{"location": "/img/*", "tdm-reservation": 1}]', None, False, None),
        (b'[{"location": "/other/*", "tdm-reservation": 1}]', None, True, None),
        (b'[{"location": "/img/*", "tdm-reservation": 0}]', "1", True, "optout_tdm"),
        (b"nonsense", None, True, None),
    ],
)
def test_tdm_reservations(
    site: Site, tdmrep: bytes, header: str | None, switch: bool, expected: str | None
) -> None:
    site.add("/.well-known/tdmrep.json", tdmrep)
    fields = {} if header is None else {"tdm_reservation": header}
    site.handlers["/img/a.jpg"] = lambda request: request.reply(b"x", **fields)  # type: ignore[arg-type]
    urls = [site.url("/img/a.jpg"), site.url("/img/b.jpg")]
    site.handlers["/img/b.jpg"] = site.handlers["/img/a.jpg"]
    assert reasons(fetch(urls, dataclasses.replace(LOOPBACK, tdmrep=switch))) == [expected] * 2
    assert site.hits["/.well-known/tdmrep.json"] == switch


def test_a_site_that_keeps_us_from_its_tdmrep_is_not_asked_for_it(site: Site) -> None:
    site.add("/robots.txt", b"User-agent: *\nDisallow: /.well-known/")
    assert reason_of(site, "/img/1.jpg") is None
    assert site.hits["/.well-known/tdmrep.json"] == 0


class Names:
    """A resolver that fails for the hosts that it is told, so many times."""

    def __init__(self, failures: dict[str, int]) -> None:
        self.failures = Counter(failures)
        self.asked: Counter[str] = Counter()

    def __call__(self, host: str, _port: int) -> list[str]:
        self.asked[host] += 1
        if self.asked[host] <= self.failures[host]:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return ["127.0.0.1"]


def run_named(
    site: Site, hosts: int, names: Names, **options: Any
) -> tuple[dict[str, Answer], Exception | None]:
    urls = [f"http://h{i}.test:{site.port}/img/{i}.jpg" for i in range(hosts)]
    client = Client(dataclasses.replace(LOOPBACK, tdmrep=False, **options), version="1", resolve=names)
    answers, error = {}, None
    try:
        for target, answer in Schedule(client).run(t for t in map(parse_url, urls) if isinstance(t, Target)):
            answers[target.host] = answer
    except StageFailedError as raised:
        error = raised
    return answers, error


def test_names_that_fail_for_now_are_looked_up_once_more_at_the_end(site: Site) -> None:
    names = Names({"h0.test": 1, "h1.test": 9})
    answers, error = run_named(site, 10, names)
    assert error is None
    assert list(answers)[-1] == "h1.test"
    assert [h for h, a in answers.items() if a.refusal] == ["h1.test"]
    assert answers["h1.test"].refusal == Refusal("dns_temp", "try again")
    assert (names.asked["h0.test"], names.asked["h1.test"], names.asked["h2.test"]) == (2, 2, 1)


def test_a_resolver_that_fails_stops_the_run_and_leaves_nothing_wrong_behind(site: Site) -> None:
    names = Names({f"h{i}.test": 99 for i in range(0, 200, 3)})
    answers, error = run_named(site, 200, names, fetch_threads=4)
    assert error is not None
    assert "resolver" in str(error)
    assert "20%" in str(error)
    assert all(a.refusal is None for a in answers.values()), "no dns_temp is final"
    assert len(answers) < 133, "it stopped early"
    assert DNS_HOSTS <= len(names.asked) < 120
    # The same run with a better resolver goes on with the rest.
    rest, error = run_named(site, 200, Names({}))
    assert error is None
    assert len(rest) == 200


def test_a_few_bad_names_or_a_short_run_are_not_the_resolvers_fault(site: Site) -> None:
    _, error = run_named(site, 100, Names({f"h{i}.test": 9 for i in range(0, 100, 10)}))
    assert error is None
    answers, error = run_named(site, DNS_HOSTS - 1, Names({f"h{i}.test": 9 for i in range(DNS_HOSTS)}))
    assert error is None
    assert {a.refusal.reason for a in answers.values() if a.refusal} == {"dns_temp"}
    answers, error = run_named(site, 80, Names({f"h{i}.test": 9 for i in range(80)}), dns_abort_share=1.0)
    assert error is None


@pytest.mark.usefixtures("no_hurry")
def test_https_from_end_to_end_with_a_handshake_for_each_connection_only(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    names = ["a.site.test", "b.site.test"]
    with serving(Site(), certificates.server("good")) as site:
        urls = [site.url(f"/img/{i}.jpg", name, "https") for name in names for i in range(10)]
        client = Client(
            LOOPBACK, version="1", resolve=lambda _h, _p: ["127.0.0.1"], ssl_context=certificates.client
        )
        answers = dict(Schedule(client).run(t for t in map(parse_url, urls) if isinstance(t, Target)))
        assert {t.url for t, a in answers.items() if a.body} == set(urls)
        for name in names:
            assert site.hits["/robots.txt"] == 2
            assert site.most[name] <= 2
            assert site.connections[name] <= 2, "twelve requests over two connections"


def test_so_many_hosts_take_turns_and_the_longest_begin(site: Site) -> None:
    """Robots.txt files are held for hosts that have a turn only, and each host's are read once."""
    urls = [f"http://h{i}.test:{site.port}/img/{i}-{j}.jpg" for i in range(30) for j in range(1 + (i == 20))]
    site.handlers.update(
        {f"/img/{i}-{j}.jpg": lambda request: request.reply(b"x") for i in range(30) for j in (0, 1)}
    )
    config = dataclasses.replace(LOOPBACK, active_hosts=3, tdmrep=False)
    schedule = Noted(Client(config, version="1", resolve=lambda _host, _port: ["127.0.0.1"]))
    held = [
        sum(bool(host.sites) for host in schedule._hosts.values())
        for _ in schedule.run(t for t in map(parse_url, urls) if isinstance(t, Target))
    ]
    assert len(held) == 31
    assert max(held) <= 3
    assert site.hits["/robots.txt"] == 30
    assert next(iter(schedule.starts)) == "h20.test"
    assert {path for _, _, path in site.log[:4]} > {"/robots.txt"}, "not all robots.txt first"


def test_a_defect_of_ours_costs_one_url(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Client.get

    def broken(self: Client, target: Target, **options: bool) -> Answer:
        if target.path == "/img/1.jpg":
            raise RuntimeError("surprise")
        return real(self, target, **options)

    monkeypatch.setattr(Client, "get", broken)
    answers = fetch([site.url(f"/img/{i}.jpg") for i in range(3)])
    assert sorted(map(str, reasons(answers))) == ["None", "None", "internal_error"]
