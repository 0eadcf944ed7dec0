from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.policy import Target, parse_url
from pipeline.fetch.tdm import Reservations, address_of, parse


def target(path: str) -> Target:
    found = parse_url(f"http://h.example{path}")
    assert isinstance(found, Target)
    return found


def rules(*found: tuple[object, object]) -> Reservations:
    return parse(json.dumps([{"location": a, "tdm-reservation": b} for a, b in found]))


@pytest.mark.parametrize(
    ("location", "path", "reserved"),
    [
        ("/", "/a.jpg", True),
        ("/a", "/a.jpg", True),
        ("a", "/a.jpg", True),
        ("/b", "/a.jpg", False),
        ("/A", "/a.jpg", False),
        ("*", "/a.jpg", True),
        ("/*.jpg", "/x/a.jpg?size=1", True),
        ("/*.jpg$", "/x/a.jpg?size=1", False),
        ("/*.jpg$", "/x/a.jpg", True),
        ("/*.jpg$", "/a.jpg/b.jpg", True),
        ("/a$", "/a", True),
        ("/a$", "/a.jpg", False),
        ("/x/*/y/*.png", "/x/1/2/y/z.png", True),
        ("/x/*/y/*.png", "/x/y/z.png", False),
        ("/p+q", "/p+q", True),
        ("/p.q", "/pxq", False),
        ("/%C3%BC", "/ü", True),
        ("/ü", "/%C3%BC.jpg", True),
        ("/a%2A", "/a*b", True),
        ("/a%2A", "/ab", False),
    ],
)
def test_locations(location: str, path: str, reserved: bool) -> None:
    assert rules((location, 1)).reserve(target(path)) is reserved


def test_the_first_rule_that_matches_decides() -> None:
    found = rules(("/free/*", 0), ("/", "1"), ("/free/not", 1))
    assert [found.reserve(target(p)) for p in ("/free/not", "/x")] == [False, True]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "1",
        "null",
        "[1, null, []]",
        "[" * 50_000,
        '{"location": "/"}',
        '[{"tdm-reservation": 1}]',
    ],
)
def test_what_is_no_rule_reserves_nothing(text: str) -> None:
    assert parse(text) == Reservations()


@pytest.mark.parametrize("value", [True, 2, None, "yes", [1], -1])
def test_only_0_and_1_are_values(value: object) -> None:
    assert rules(("/", value)) == Reservations()


def test_one_rule_without_a_list() -> None:
    assert parse('{"location": "/", "tdm-reservation": 1}').reserve(target("/x"))


@given(st.text(alphabet="*$/ab%2.", max_size=30), st.text(alphabet="/ab*.", max_size=30))
def test_any_location_is_a_pattern(location: str, path: str) -> None:
    assert isinstance(rules((location, 1)).reserve(target(f"/{path}")), bool)


def test_a_hostile_pattern_costs_no_more_than_a_pass() -> None:
    found = rules(("/" + "*a" * 2_000 + "*b$", 1), ("/" + "*a" * 2_000 + "b", 1))
    started = time.process_time()
    assert not found.reserve(target("/" + "a" * 8_000))
    assert time.process_time() - started < 2.0  # with backtracking it would not end


def test_its_place() -> None:
    assert address_of(target("/a/b?c")).url == "http://h.example/.well-known/tdmrep.json"
