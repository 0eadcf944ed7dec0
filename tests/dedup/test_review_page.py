"""The review page in a real browser: clicks, keys, strangers' text."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from dedup.review.main import open_session
from dedup.review.server import ReviewServer
from pipeline.core.contracts import NEIGHBOURS
from pipeline.core.fakes import finished_folder, picture

EVIL = "<img src=x onerror=alert(1)>"


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"dedup_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


browser = _beside("browser")
pytestmark = pytest.mark.skipif(browser.find() is None, reason="no Chromium on this machine")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    rows = []
    for name in ("a", EVIL):
        for i in range(30):
            for side in ("eval", "train"):
                place = tmp_path / side / ("one" if name == "a" else "two")
                place.mkdir(parents=True, exist_ok=True)
                file = place / f"{i:02d}.png"
                picture("red" if side == "eval" else "blue", "circle", size=60, seed=i).save(file)
            rows.append(
                {"eval_dataset": name, "eval_id": f"{'one' if name == 'a' else 'two'}/{i:02d}.png", "rank": 0,
                 "pair_id": f"{'one' if name == 'a' else 'two'}/{i:02d}.png", "similarity": 0.99 - 0.01 * i}
            )  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=NEIGHBOURS.schema)
    found = finished_folder(str(tmp_path / "n"), NEIGHBOURS, table, threshold=0.9)
    (tmp_path / "eval").rename(tmp_path / "a")
    train, evals = [str(tmp_path / "train")], [str(tmp_path / "a")]
    session = open_session(found, str(tmp_path / "review"), train=train, evals=evals, reviewer="Ada")
    with ReviewServer(session, 0) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


LOADED = "[...document.querySelectorAll('.pic img')].every(i => i.complete && i.naturalWidth === 60)"


def _labels(page: Any) -> int:
    return int(page.value("state.counts.same + state.counts.different + state.counts.skip"))


def test_a_review_by_keys_and_clicks(server: ReviewServer, tmp_path: Path) -> None:
    with browser.Browser() as page:
        page.open(server.url)
        page.wait("state && state.pair")
        page.value(
            "(() => { const s = at('datasets'); s.value = 'a'; s.dispatchEvent(new Event('change')); })()"
        )
        page.wait("state.dataset === 'a' && document.querySelectorAll('.pic img').length === 2")
        page.wait(LOADED)
        first = page.value("state.pair.index")
        page.key("s")
        page.wait("state.counts.same === 1")
        page.key("d")
        page.wait("state.counts.different === 1")
        page.key(" ")
        page.wait("state.counts.skip === 1")
        for _ in range(3):
            before = _labels(page)
            page.key("u")
            page.wait(f"document.querySelector('#progress') && state.counts.same + state.counts.different"
                      f" + state.counts.skip === {before - 1}")  # fmt: skip
        assert page.value("state.pair.index") == first
        assert page.value("document.querySelector('#undo').disabled") is True

        page.key("b")
        page.wait("document.querySelector('#pair').classList.contains('second')")
        assert page.value("getComputedStyle(document.querySelector('img.over')).opacity") == "1"
        boxes = (
            "[...document.querySelectorAll('#eval img')].map(i => JSON.stringify(i.getBoundingClientRect()))"
        )
        assert len(set(page.value(boxes))) == 1  # one lies exactly over the other
        page.key("b")
        page.wait("!document.querySelector('img.over')")

        while _labels(page) < 26:
            count, index = _labels(page), page.value("state.pair.index")
            page.wait(LOADED)  # a picture that comes late would move the button away
            page.click("#same" if index < 12 else "#different")
            page.wait(f"state.counts.same + state.counts.different === {count + 1}")
        assert page.value("state.best.found") == 12
        page.key("Enter")
        page.wait("state.datasets[1].saved !== null")
        assert "Saved" in page.value("document.querySelector('#saved').textContent")
        saved = json.loads((tmp_path / "review" / "thresholds.json").read_text())
        assert list(saved) == ["a"]
        assert 0.87 < saved["a"] < 0.88

        moved = "s.value = 0; s.dispatchEvent(new Event('input'));"
        slider = f"(() => {{ const s = document.querySelector('#slider'); {moved} }})()"
        page.value(slider)
        page.click("#save")
        page.wait("Math.abs(state.datasets[1].saved - state.curve[state.curve.length - 1].threshold) < 1e-9")
        assert page.errors == []
        assert {url.split("/")[2] for url in page.requests if not url.startswith("about:")} == {
            f"127.0.0.1:{server.server_address[1]}"
        }


def test_strangers_names_are_text(server: ReviewServer) -> None:
    with browser.Browser(width=600, dark=True) as page:
        page.open(server.url)
        page.wait("state && state.pair")
        assert page.value("state.dataset") == EVIL
        assert page.value("document.querySelector('#dataset').textContent") == EVIL
        assert page.value("document.querySelectorAll('img[src=x]').length") == 0
        # Nothing stands out of a narrow window.
        assert page.value("document.documentElement.scrollWidth <= innerWidth") is True
        assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 24)"
        assert page.errors == []
