from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.fetch.policy import RefusedError
from pipeline.fetch.resolve import Names, system_resolver


def soon() -> float:
    return time.monotonic() + 60.0


def test_each_host_is_looked_up_once_and_few_at_a_time() -> None:
    asked: Counter[str] = Counter()
    now, most, lock = 0, 0, threading.Lock()

    def resolve(host: str, _port: int) -> list[str]:
        nonlocal now, most
        with lock:
            asked[host] += 1
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return ["127.0.0.1"]

    names = Names(resolve, concurrency=3)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda i: names.addresses(f"h{i % 16}", 80, soon()), range(64)))
    assert set(asked.values()) == {1}
    assert most <= 3


@pytest.mark.parametrize(
    ("error", "reason", "asked_again"),
    [
        (socket.gaierror(socket.EAI_NONAME, "no"), "dns_nxdomain", False),
        (socket.gaierror(socket.EAI_AGAIN, "later"), "dns_temp", True),
        (OSError("broken"), "dns_temp", True),
        (UnicodeError("label"), "dns_temp", True),
    ],
)
def test_only_failures_that_may_pass_are_looked_up_again(
    error: Exception, reason: str, asked_again: bool
) -> None:
    asked = []

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        raise error

    names = Names(resolve, concurrency=1)
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            names.addresses("h", 80, soon())
        assert caught.value.refusal.reason == reason
    assert len(asked) == (2 if asked_again else 1)


def test_a_look_up_that_hangs_is_not_waited_for() -> None:
    done = threading.Event()

    def resolve(host: str, _port: int) -> list[str]:
        if host == "stuck":
            done.wait(60)
        return ["127.0.0.1"]

    names = Names(resolve, concurrency=2)
    with pytest.raises(RefusedError) as caught:
        names.addresses("stuck", 80, time.monotonic() + 0.05)
    assert caught.value.refusal.reason == "dns_temp"
    assert names.addresses("other", 80, soon()) == ("127.0.0.1",)
    done.set()


def test_addresses_that_do_not_answer_are_looked_up_again() -> None:
    found = iter([["127.0.0.1"], ["127.0.0.2"]])
    names = Names(lambda _host, _port: next(found), concurrency=1)
    assert [names.addresses("h", 80, soon()) for _ in range(2)] == [("127.0.0.1",)] * 2
    names.forget("h")
    assert names.addresses("h", 80, soon()) == ("127.0.0.2",)


def test_the_system_reads_literal_addresses() -> None:
    assert system_resolver("127.0.0.1", 80) == ["127.0.0.1"]
