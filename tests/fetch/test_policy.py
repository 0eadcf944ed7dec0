from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch import policy
from pipeline.fetch.policy import Refusal, Target, backoff_s, header_opt_out, is_global, parse_url, redirect


def target(url: str) -> Target:
    found = parse_url(url)
    assert isinstance(found, Target)
    return found


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("HTTP://Example.COM:80/a.jpg#top", "http://example.com/a.jpg"),
        ("https://example.com:443?x=1", "https://example.com/?x=1"),
        ("https://example.com:8443/ä b.jpg", "https://example.com:8443/%C3%A4%20b.jpg"),
        ("http://bücher.example/%20", "http://xn--bcher-kva.example/%20"),
        (" http://[2001:DB8::1]/x ", "http://[2001:db8::1]/x"),
    ],
)
def test_urls_have_one_form(url: str, canonical: str) -> None:
    assert target(url).url == canonical
    assert target(canonical) == target(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "blocked_scheme"),
        ("data:image/png;base64,AAAA", "blocked_scheme"),
        ("ftp://example.com/a.jpg", "blocked_scheme"),
        ("javascript:alert(1)", "blocked_scheme"),
        ("//example.com/a.jpg", "bad_url"),
        ("", "bad_url"),
        ("http://", "bad_url"),
        ("http://user:secret@example.com/", "bad_url"),
        ("http://exa\rmple.com/\r\nX: y", "bad_url"),
        ("http://example.com:99999/", "bad_url"),
        ("http://[::1", "bad_url"),
        ("http://exa mple.com/", "bad_url"),
        ("http://" + "a" * 64 + ".com/", "bad_url"),
        ("http://example.com/" + "a" * 9000, "bad_url"),
    ],
)
def test_urls_that_are_never_asked_for(url: str, reason: str) -> None:
    found = parse_url(url)
    assert isinstance(found, Refusal)
    assert found.reason == reason


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://h/", "http://h.example/?"]))
def test_any_text_is_a_target_or_a_known_reason(text: str, head: str) -> None:
    found = parse_url(head + text)
    if isinstance(found, Refusal):
        assert found.reason in policy.REASONS
    else:
        assert found.url.isascii()
        assert parse_url(found.url) == found


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1",
        "fe80::1%eth0", "fc00::1", "fec0::1", "ff0e::1", "2001:db8::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1",
        "2002:7f00:1::", "2001:0:0:0:0:0:f5ff:fffe", "nonsense",
    ],
)  # fmt: skip
def test_addresses_that_are_not_global(address: str) -> None:
    assert not is_global(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_addresses_that_are_global(address: str) -> None:
    assert is_global(address)


def test_ports_and_the_users_own_networks() -> None:
    allowed = policy.networks(["127.0.0.0/8", "::1/128"])
    at = target("http://example.com:8080/")
    assert policy.choose_addresses(at, ["8.8.8.8"], allowed) == Refusal("blocked_port", "8080")
    assert policy.choose_addresses(at, ["127.0.0.1"], allowed) == ("127.0.0.1",)
    assert policy.choose_addresses(at, ["::ffff:127.0.0.1"], allowed) == ("::ffff:127.0.0.1",)
    assert policy.choose_addresses(at, ["10.0.0.1"], allowed) == Refusal("blocked_address", "10.0.0.1")
    at = target("http://example.com/")
    assert policy.choose_addresses(at, ["10.0.0.1", "8.8.8.8"], allowed) == ("8.8.8.8",)


@pytest.mark.parametrize(
    ("values", "tdm", "reason"),
    [
        (["noai"], None, "optout_header"),
        (["NoImageAI"], None, "optout_header"),
        (["nofollow, NOINDEX"], None, "optout_header"),
        (["nofollow", "noimageindex"], None, "optout_header"),
        (["none"], None, "optout_header"),
        (["noml"], None, "optout_header"),
        (["webimagetext: noai"], None, "optout_header"),
        (["otherbot: nofollow, img2dataset: noindex"], None, "optout_header"),
        (["*: noai"], None, "optout_header"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], None, "optout_header"),
        ([], "1", "optout_tdm"),
        (["otherbot: noindex, noai"], None, None),
        (["all", "nofollow", "max-image-preview: none"], None, None),
        ([], "0", None),
        ([], None, None),
    ],
)
def test_header_opt_outs(values: list[str], tdm: str | None, reason: str | None) -> None:
    found = header_opt_out(values, tdm, ["webimagetext", "img2dataset"])
    assert (found.reason if found else None) == reason


@pytest.mark.parametrize(
    ("value", "past"),
    [
        ("unavailable_after: 25 Jun 2010 15:00:00 PST", True),
        ("unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT", True),
        ("unavailable_after: Friday, 25-Jun-10 15:00:00 UTC", True),
        ("unavailable_after: 2010-06-25", True),
        ("unavailable_after: 2010-06-25T15:00:00+02:00", True),
        ("nofollow, unavailable_after: 2010-06-25, noarchive", True),
        ("img2dataset: unavailable_after: 2010-06-25", True),
        ("otherbot: unavailable_after: 2010-06-25", False),
        ("unavailable_after: 31 Dec 2025 23:59:59 GMT", True),
        ("unavailable_after: 1 Jan 2026 00:00:01 GMT", False),
        ("unavailable_after: Thu, 1 Jan 2026 00:00:01 GMT, nofollow", False),
        ("unavailable_after: 2999-01-01", False),
        ("unavailable_after: soon", False),
        ("unavailable_after:", False),
        ("unavailable_after", False),
    ],
)
def test_pictures_whose_time_is_over(value: str, past: bool) -> None:
    found = header_opt_out([value], None, ["webimagetext", "img2dataset"], datetime(2026, 1, 1, tzinfo=UTC))
    assert found == (Refusal("optout_header", "unavailable_after") if past else None)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("search=yes, ai-train=no", "ai-train=no"),
        ("AI-Train = No", "ai-train=no"),
        ("train-ai=n", "train-ai=n"),
        ("search=n, train-ai=y", None),
        ("search=yes, ai-input=no", None),
        ("ai-train", None),
        ("/private/ train-ai=n", None),
        ("", None),
    ],
)
def test_reservations_of_training(value: str, found: str | None) -> None:
    assert policy.refuses_training(value) == found


@pytest.mark.parametrize(
    ("lengths", "transfer", "content", "reason"),
    [
        ([], None, None, None),
        (["5"], "chunked", "identity", None),
        (["5", " 5"], "Chunked", "", None),
        (["5", "6"], None, None, "bad_response"),
        ([], "gzip, chunked", None, "encoded_body"),
        ([], None, "GZIP", "encoded_body"),
        ([], None, "identity, br", "encoded_body"),
        ([], None, "aws-chunked", None),
    ],
)
def test_framing(lengths: list[str], transfer: str | None, content: str | None, reason: str | None) -> None:
    found = policy.refused_framing(lengths, transfer, content)
    assert (found.reason if found else None) == reason


def test_the_first_of_each_host_are_within_its_quota() -> None:
    urls = [target(f"http://{h}.example/{i}") for i in range(4) for h in "ab"]
    assert policy.within_quota(urls, 0) == (urls, [])
    assert policy.within_quota(urls, 3) == (urls[:6], urls[6:])
    # A run that was interrupted after a/0 and b/0 chooses the same ones.
    assert policy.within_quota(urls[2:], 3, {"a.example": 1, "b.example": 1}) == (urls[2:6], urls[6:])


def test_reasons_that_a_later_run_asks_again() -> None:
    assert policy.RETRYABLE > policy.TRANSIENT
    assert set(policy.REASONS) >= policy.RETRYABLE
    assert not policy.RETRYABLE & set(policy.IMAGE_REASONS)
    assert {"host_quota", "deferred", "too_slow", "host_backoff", "dns_temp"} <= policy.RETRYABLE
    assert not policy.RETRYABLE & {
        "http_4xx",
        "robots_disallow",
        "optout_tdm",
        "dns_nxdomain",
        "encoded_body",
    }


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("b.jpg", "http://h.example/a/b.jpg"),
        ("//other.example/x", "http://other.example/x"),
        ("https://h.example/ü".encode().decode("latin-1"), "https://h.example/%C3%BC"),
        ("file:///etc/passwd", "redirect_blocked"),
        ("http://[", "redirect_blocked"),
        (None, "redirect_blocked"),
    ],
)
def test_redirects_pass_the_same_rules(location: str | None, expected: str) -> None:
    found = redirect(target("http://h.example/a/x.jpg"), location)
    assert (found.reason if isinstance(found, Refusal) else found.url) == expected


def test_statuses() -> None:
    reasons = {s: policy.refused_status(s) for s in (200, 206, 304, 404, 410, 429, 500, 503, 999)}
    assert {s: r.reason if r else None for s, r in reasons.items()} == {
        200: None, 206: None, 304: "bad_response", 404: "http_4xx", 410: "http_4xx", 429: "http_429",
        500: "http_5xx", 503: "http_5xx", 999: "bad_response",
    }  # fmt: skip


def test_retry_after() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    assert policy.retry_after_s("7", now) == 7
    assert policy.retry_after_s("Thu, 01 Jan 2026 12:01:00 GMT", now) == 60
    assert policy.retry_after_s("Thu, 01 Jan 2026 11:00:00 GMT", now) == 0
    assert policy.retry_after_s("soon", now) is None
    assert policy.retry_after_s(None, now) is None


@given(st.text(max_size=20), st.integers(1, 50))
def test_backoff_is_bounded_and_repeats(url: str, attempt: int) -> None:
    url = url.encode(errors="replace").decode()
    pause = backoff_s(url, attempt, base_s=1.0, cap_s=60.0)
    assert 0 <= pause <= min(60.0, 2.0 ** (attempt - 1))
    assert pause == backoff_s(url, attempt, base_s=1.0, cap_s=60.0)


def test_backoff_differs_between_urls() -> None:
    assert len({backoff_s(str(i), 1, base_s=1.0, cap_s=60.0) for i in range(50)}) == 50


def test_who_we_are() -> None:
    assert policy.user_agent("1.2", "mail@example.org") == "webimagetext/1.2 (+mail@example.org)"
    assert policy.user_agent("1.2", "") == "webimagetext/1.2"
