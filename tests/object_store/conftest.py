from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from tests.object_store import store as stores  # noqa: E402


@pytest.fixture(scope="session")
def store() -> Iterator[stores.Store]:
    for needed in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(needed, reason="of the extras [s3] and [dev]")
    with stores.serving() as served:
        yield served
