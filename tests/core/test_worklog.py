"""Log lines of workers: which stage and part, how much, how fast, and by whom; seldom."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest

from pipeline.core import worklog
from pipeline.core.progress import Progress, tick


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves when it is told."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(worklog, "_works", {})
    return now


def test_lines_come_at_a_steady_rate_whatever_is_counted(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="wit")
    for part in range(600):  # ten minutes, a part a second
        with worklog.working("select", f"{part:05d}.parquet"):
            for _ in range(100):
                tick(10)
            clock[0] += 1
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 20
    assert lines[0].startswith("stage=select part=00029.parquet parts_done=30 rows=30000 seconds=30.0")
    assert "rows_per_s=1000.0" in lines[-1]
    assert lines[0].endswith(f"/{os.getpid()}")


def test_parts_of_one_thread_lie_in_one_another_and_threads_apart(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="wit")
    with worklog.working("outer", "a"):
        with worklog.working("inner", "b"):
            tick(3)
        other = threading.Thread(target=tick, args=(100,))  # at nothing: counts nowhere
        other.start()
        other.join()
        clock[0] += 60
        tick(1)
    assert "stage=outer part=a parts_done=0 rows=1 seconds=60.0" in caplog.records[0].getMessage()
    assert len(caplog.records) == 1


def test_a_stage_that_begins_again_counts_from_nothing(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="wit")
    for _ in range(2):
        worklog.begin("s", "out")
        with Progress("s"), worklog.working("s", "a"):
            tick(7)
            clock[0] += 40
    lines = [record.getMessage() for record in caplog.records if "part=" in record.getMessage()]
    assert [" ".join(line.split()[2:5]) for line in lines] == ["parts_done=1 rows=7 seconds=40.0"] * 2


def test_a_failed_part_is_not_done(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="wit")
    with pytest.raises(KeyError), worklog.working("s", "a"):
        raise KeyError
    with worklog.working("s", "two words"):
        clock[0] += 31
    assert 'part="two words" parts_done=1' in caplog.records[0].getMessage()


def test_the_local_engine_shows_progress_and_logs_only_when_asked(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(worklog.SWITCH, raising=False)
    with Progress("select"), worklog.working("select", "a"):
        clock[0] += 60
        tick(5)
    worklog.say("select", begins="out")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(worklog.SWITCH, "1")
    handlers = list(worklog.LOGGER.handlers)
    try:
        worklog.say("select", begins="out")
        assert " stage=select begins=out worker=" in capsys.readouterr().err
    finally:
        worklog.LOGGER.handlers[:] = handlers
        worklog.LOGGER.propagate = True
