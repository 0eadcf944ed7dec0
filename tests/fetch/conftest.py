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
