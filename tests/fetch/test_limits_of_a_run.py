"""Through the command: a resolver that fails, quotas and budgets, and how the next run goes on."""

from __future__ import annotations

import itertools
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.core import manifest
from pipeline.core.fakes import jpeg, picture
from tests.fetch.hostile import Clock, Request, Site
from tests.fetch.test_stage import FLAGS, fetch, pairs_of, rows_of


class Resolver:
    """Stands for the system's: names under ``.test`` lead to loopback, or every third fails."""

    def __init__(self) -> None:
        self.fails = True
        self._real = socket.getaddrinfo

    def __call__(self, host: str, *rest: Any, **options: Any) -> Any:
        if not host.endswith(".test"):
            return self._real(host, *rest, **options)
        if self.fails and int(host.removesuffix(".test")[1:]) % 3 == 0:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._real("127.0.0.1", *rest, **options)


def reasons(out: Path) -> Counter[str | None]:
    return Counter(
        None if row["error_message"] is None else row["error_message"].partition(":")[0]
        for row in rows_of(out)
    )


def test_a_failing_resolver_stops_the_command_and_the_next_one_goes_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    pairs = pairs_of(tmp_path / "pairs", [site.url(f"/img/{i}.jpg", f"h{i}.test") for i in range(120)])
    out = tmp_path / "out"
    assert main(["fetch", "--pairs", pairs, "--out", str(out), *FLAGS]) == 1
    error = capsys.readouterr().err
    assert "the name resolver fails" in error
    assert "set up a caching resolver" in error
    assert not (out / "manifest.json").exists()
    before = Counter(path for _, _, path in site.log if path.startswith("/img/"))
    resolver.fails = False
    assert fetch(pairs, out).rows == 120
    assert reasons(out) == {None: 120}
    after = Counter(path for _, _, path in site.log if path.startswith("/img/"))
    assert len(before) < 120
    assert set(after.values()) == {1}, "nothing twice"


def test_a_quota_is_spent_and_a_retry_asks_for_the_rest(site: Site, tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path / "pairs", [site.url(f"/img/{i}.jpg") for i in range(12)])
    out = tmp_path / "out"
    assert fetch(pairs, out, "--max-per-host", "5").rows == 5
    assert manifest.read(str(out)).dropped == {"host_quota": 7}
    assert fetch(pairs, out, "--max-per-host", "5", "--retry").rows == 10
    assert fetch(pairs, out, "--max-per-host", "5", "--retry").rows == 12
    assert {n for path, n in site.hits.items() if path.startswith("/img/")} == {1}


def test_what_a_budget_leaves_is_asked_by_a_retry(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for room in ("schedule", "hosts"):
        monkeypatch.setattr(f"pipeline.fetch.{room}.time", clock)

    answers = itertools.count(1)

    def answer(request: Request) -> None:
        if next(answers) == 20:
            clock.now = 3600.0
        request.reply(jpeg(picture("red", "circle", size=64)))

    site.handlers.update({f"/img/{i}.jpg": answer for i in range(40)})
    pairs = pairs_of(tmp_path / "pairs", [site.url(f"/img/{i}.jpg") for i in range(40)])
    out = tmp_path / "out"
    first = fetch(pairs, out, "--group-budget-s", "3600", "--host-concurrency", "1")
    assert set(first.dropped) == {"deferred"}
    assert first.rows == 20
    assert fetch(pairs, out, "--retry").rows == 40
    assert {n for path, n in site.hits.items() if path.startswith("/img/")} == {1}
