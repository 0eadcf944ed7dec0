"""Every hostile body ends in its reason within its limits, and the images beside it are none the worse."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.core.fakes import jpeg, picture
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.decode import TIMEOUT, decoder_for
from pipeline.fetch.images import Stored, process
from pipeline.fetch.policy import IMAGE_REASONS, Refusal
from tests.fetch.bodies import STORED, hostile_bodies

CONFIG = FetchConfig(image_size=64, min_image_size=8, decode_timeout_s=25.0, decode_memory_mb=700)
GOOD = jpeg(picture("red", "circle", size=200))


@pytest.fixture(scope="module")
def bodies() -> dict[str, tuple[bytes, str]]:
    """Bodies by name, with what they must end in."""
    return hostile_bodies()


@pytest.fixture(scope="module")
def outcomes(bodies: dict[str, tuple[bytes, str]]) -> dict[str, tuple[Stored | Refusal, Stored | Refusal]]:
    """What became of each body and of the good image behind it."""
    both = [b for body, _ in bodies.values() for b in (body, GOOD)]
    with decoder_for(CONFIG) as decoder:
        found = list(decoder.decode(both))
    return dict(zip(bodies, zip(found[::2], found[1::2], strict=True), strict=True))


def test_there_are_many(bodies: dict[str, tuple[bytes, str]]) -> None:
    assert len(bodies) >= 140
    assert sum(expected != STORED for _, expected in bodies.values()) >= 100
    assert max(len(body) for body, _ in bodies.values()) <= FetchConfig().max_body_bytes


def test_each_ends_in_its_reason(
    bodies: dict[str, tuple[bytes, str]], outcomes: dict[str, tuple[Stored | Refusal, Stored | Refusal]]
) -> None:
    expected = {name: reason for name, (_, reason) in bodies.items()}
    found = {
        name: first.reason if isinstance(first, Refusal) else STORED for name, (first, _) in outcomes.items()
    }
    wrong = {name: (expected[name], outcomes[name][0]) for name in expected if expected[name] != found[name]}
    assert not wrong
    assert set(found.values()) - {STORED} <= set(IMAGE_REASONS)


def test_no_neighbour_is_harmed(outcomes: dict[str, tuple[Stored | Refusal, Stored | Refusal]]) -> None:
    good = process(GOOD, CONFIG)
    assert [name for name, (_, neighbour) in outcomes.items() if neighbour != good] == []


def test_what_is_stored_carries_nothing_along(
    outcomes: dict[str, tuple[Stored | Refusal, Stored | Refusal]],
) -> None:
    for name, (found, _) in outcomes.items():
        if isinstance(found, Stored):
            assert min(found.width, found.height) == 64, name
            assert len(found.jpeg) < 10_000, name
            assert len(found.exif) < 25_000, name


def test_the_slowest_is_ended_by_its_deadline(bodies: dict[str, tuple[bytes, str]]) -> None:
    body, _ = bodies["JPEG of very many scans"]
    with decoder_for(FetchConfig(decode_timeout_s=1.0)) as decoder:
        assert list(decoder.decode([body])) == [Refusal("decode_error", TIMEOUT)]


# In a process of its own, because what is measured is the largest of all its children.
PEAK = """
import resource
from tests.fetch.bodies import hostile_bodies
from tests.fetch.test_hostile_bodies import CONFIG, decoder_for
large = [body for name, (body, _) in hostile_bodies().items() if "megapixels" in name or "unpacks" in name]
with decoder_for(CONFIG) as decoder:
    print(len(list(decoder.decode(large))))
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def test_no_body_takes_more_memory_than_its_limit() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    decoded, peak_mb = map(int, done.stdout.split())
    assert decoded >= 8
    assert 100 < peak_mb < CONFIG.decode_memory_mb
