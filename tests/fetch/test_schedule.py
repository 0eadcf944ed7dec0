from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterable

import pytest

from pipeline.fetch import robots
from pipeline.fetch.client import Answer, Client
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.policy import Target, parse_url
from pipeline.fetch.schedule import Schedule
from tests.fetch.hostile import Request, Site

LOOPBACK = FetchConfig(
    allow_address=("127.0.0.0/29",),
    host_gap_s=0.0,
    host_gap_cap_s=0.02,
    backoff_base_s=0.01,
    read_timeout_s=0.5,
    deadline_s=1.0,
)


def fetch(urls: Iterable[str], config: FetchConfig = LOOPBACK) -> dict[str, Answer]:
    targets = [parse_url(u) for u in urls]
    schedule = Schedule(Client(config, version="1"))
    ended = list(schedule.run(t for t in targets if isinstance(t, Target)))
    assert len(ended) == len({t.url for t, _ in ended})
    return {target.url: answer for target, answer in ended}


def reasons(answers: dict[str, Answer]) -> list[str | None]:
    return [a.refusal.reason if a.refusal else None for a in answers.values()]


def reason_of(site: Site, path: str, config: FetchConfig = LOOPBACK) -> str | None:
    return reasons(fetch([site.url(path)], config))[0]


def test_every_url_is_fetched_once_within_the_hosts_limit(site: Site) -> None:
    site.delay_s = 0.01
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
    fetch([site.url(f"/img/{i}.jpg", h) for i in range(6) for h in ("127.0.0.1", "127.0.0.2")], config)
    starts = defaultdict(list)
    for when, host, _ in site.log:
        starts[host].append(when)
    for times in starts.values():
        assert len(times) == 8  # robots.txt, tdmrep.json, six pictures
        assert times[-1] - times[0] >= 7 * 0.05 / 2  # slack: the server notes arrivals, not starts


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
    assert times[1] - times[0] >= 0.8


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


def test_a_stuck_host_does_not_delay_the_others(site: Site) -> None:
    site.handlers["/stuck"] = lambda _request: time.sleep(1.0)
    config = dataclasses.replace(LOOPBACK, fetch_threads=2, retries=0)
    order = list(
        fetch([site.url("/stuck", "127.0.0.4"), *(site.url(f"/img/{i}.jpg") for i in range(20))], config)
    )
    assert order[-1] == site.url("/stuck", "127.0.0.4")


def test_a_defect_of_ours_costs_one_url(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Client.get

    def broken(self: Client, target: Target, **options: bool) -> Answer:
        if target.path == "/img/1.jpg":
            raise RuntimeError("surprise")
        return real(self, target, **options)

    monkeypatch.setattr(Client, "get", broken)
    answers = fetch([site.url(f"/img/{i}.jpg") for i in range(3)])
    assert sorted(map(str, reasons(answers))) == ["None", "None", "internal_error"]
