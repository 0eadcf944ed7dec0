from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from tests.fetch.hostile import Site, serving  # noqa: E402


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as made:
        yield made


@pytest.fixture
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of an answer that nobody wants is waited for, so that connections can be counted on a slow machine."""
    monkeypatch.setattr("pipeline.fetch.client._DRAIN_SECONDS", 60.0)
