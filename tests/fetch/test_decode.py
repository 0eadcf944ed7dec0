from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from pipeline.core.errors import InputError, StageFailedError, UsageError
from pipeline.core.fakes import jpeg, picture
from pipeline.fetch import decode
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.decode import CRASHED, TIMEOUT, Decoder, DecodingProcess, decoder_for
from pipeline.fetch.images import OUT_OF_MEMORY, Stored, process
from pipeline.fetch.policy import Refusal
from pipeline.fetch.wire import packed, unpacked
from tests.fetch.bodies import saved
from tests.fetch.odd_child import CRASHES, SPINS, WAITS

CONFIG = FetchConfig(image_size=64, min_image_size=8)
SMALL = dataclasses.replace(CONFIG, decode_memory_mb=48)
GOOD = jpeg(picture("red", "circle", size=200))
LARGE = saved(Image.new("RGB", (6000, 5000), "blue"), "PNG")


def children() -> set[int]:
    """Ids of the processes that this one has started and that have not ended."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid() and fields[0] != "Z":
                found.add(int(entry.name))
    return found


@pytest.fixture(autouse=True)
def _leaves_no_process() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def test_results_are_those_of_the_decoder_itself_and_in_order() -> None:
    bodies = [jpeg(picture("red", "circle", size=n)) for n in range(20, 60)] + [b"no image", b"", GOOD[:500]]
    with decoder_for(CONFIG) as decoder:
        assert list(decoder.decode(bodies)) == [process(b, CONFIG) for b in bodies]
        assert list(decoder.decode([])) == []


def test_results_cross_the_pipe_whole() -> None:
    stored = Stored(b"\n\xff\n{}", 1, 2, 3, 4, '{"a": "\\n\u00e9"}', "00ff", ("plus:DMI-ALLOWED",), 0.25)
    for found in (
        stored,
        dataclasses.replace(stored, jpeg=b""),
        Refusal("decode_error", "x\ny"),
        Refusal("a"),
    ):
        assert unpacked(packed(found)) == found


def test_reads_only_a_few_bodies_ahead() -> None:
    read = 0

    def bodies() -> Iterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield GOOD

    with decoder_for(CONFIG) as decoder:
        results = decoder.decode(bodies())
        next(results)
        assert read <= 8
        results.close()  # type: ignore[attr-defined]


def test_what_needs_too_much_memory_costs_itself_alone() -> None:
    with decoder_for(SMALL) as decoder:
        before, large, after = decoder.decode([GOOD, LARGE, GOOD])
    assert large == Refusal("decode_error", OUT_OF_MEMORY)
    assert before == after == process(GOOD, CONFIG)


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies may say what shall go wrong in the process that decodes them."""
    monkeypatch.setitem(decode._MODULES, "native", "tests.fetch.odd_child")


def test_what_takes_too_long_costs_itself_alone() -> None:
    config = dataclasses.replace(CONFIG, decode_timeout_s=0.1, decode_processes=1)
    with decoder_for(config) as decoder:
        assert list(decoder.decode([LARGE, GOOD])) == [
            Refusal("decode_error", TIMEOUT),
            process(GOOD, CONFIG),
        ]


@pytest.mark.usefixtures("odd")
def test_what_never_ends_is_ended_and_what_waits_for_the_machine_is_not() -> None:
    """What counts is processor time: a process that was stopped for longer than its limit goes on."""
    worker = DecodingProcess(dataclasses.replace(CONFIG, decode_timeout_s=0.5))
    assert worker.answer(SPINS) == Refusal("decode_error", TIMEOUT)
    assert worker.answer(GOOD) == process(GOOD, CONFIG)
    stopped = pid(worker)
    os.kill(stopped, signal.SIGSTOP)
    going_on = threading.Timer(0.7, os.kill, (stopped, signal.SIGCONT))
    going_on.start()
    assert worker.answer(GOOD) == process(GOOD, CONFIG)
    assert pid(worker) == stopped
    going_on.join()
    worker.close()


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("body", [WAITS, GOOD], ids=["waits", "is-stopped"])
def test_a_process_that_neither_answers_nor_ends_is_ended(
    monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    worker = DecodingProcess(CONFIG)
    assert worker.answer(GOOD) == process(GOOD, CONFIG)
    if body == GOOD:
        os.kill(pid(worker), signal.SIGSTOP)
    with monkeypatch.context() as impatient:
        impatient.setattr(decode, "_PATIENCE", 0)
        impatient.setattr(decode, "_GRACE_S", 0.1)
        assert worker.answer(body) == Refusal("decode_error", TIMEOUT)
    assert worker.answer(GOOD) == process(GOOD, CONFIG)
    worker.close()


def test_a_crash_is_tried_once_more_in_a_fresh_process() -> None:
    worker = DecodingProcess(CONFIG)
    assert isinstance(worker.answer(GOOD), Stored)
    first = pid(worker)
    os.kill(first, signal.SIGSEGV)
    assert worker.answer(GOOD) == process(GOOD, CONFIG)
    assert pid(worker) != first
    worker.close()


@pytest.mark.usefixtures("odd")
def test_what_always_crashes_is_refused() -> None:
    worker = DecodingProcess(CONFIG)
    assert worker.answer(GOOD) == process(GOOD, CONFIG)
    assert worker.answer(CRASHES) == Refusal("decode_error", CRASHED)
    assert worker.answer(GOOD) == process(GOOD, CONFIG)
    worker.close()


def pid(worker: DecodingProcess) -> int:
    assert worker._process is not None
    return worker._process.pid


def test_nothing_is_left_when_the_reader_fails() -> None:
    with pytest.raises(KeyError), decoder_for(CONFIG) as decoder:
        for _ in decoder.decode([GOOD] * 50):
            raise KeyError


@pytest.mark.usefixtures("odd")
def test_a_reader_that_stops_waits_for_nothing() -> None:
    with decoder_for(dataclasses.replace(CONFIG, decode_timeout_s=1e6)) as decoder:
        results = decoder.decode([GOOD, *[WAITS] * 20])
        assert next(iter(results)) == process(GOOD, CONFIG)
        del results


def test_a_body_that_cannot_be_read_is_the_readers_error() -> None:
    def bodies() -> Iterator[bytes]:
        yield GOOD
        raise OSError("disk")

    with decoder_for(CONFIG) as decoder, pytest.raises(OSError, match="disk"):
        list(decoder.decode(bodies()))


def test_several_threads_share_a_decoder() -> None:
    expected = process(GOOD, CONFIG)
    with decoder_for(CONFIG) as decoder, ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda n: list(decoder.decode([GOOD] * n)), range(8)):
            assert all(f == expected for f in found)


def test_the_process_ends_with_its_parent() -> None:
    code = (
        "import os, signal, sys\n"
        "from pipeline.fetch.config import FetchConfig\n"
        "from pipeline.fetch.decode import DecodingProcess\n"
        "worker = DecodingProcess(FetchConfig())\n"
        "worker.answer(b'')\n"
        "print(worker._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    child = int(done.stdout)
    for _ in range(1200):
        try:
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the child outlives its parent")


def test_a_process_that_cannot_start_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(decode._MODULES, "native", "pipeline.fetch.not_there")
    with decoder_for(CONFIG) as decoder, pytest.raises(StageFailedError, match="did not start"):
        list(decoder.decode([GOOD]))
    assert "not_there" in capfd.readouterr().err


def test_a_missing_engine_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'webimagetext\[img2dataset\]'"):
        decoder_for(dataclasses.replace(CONFIG, engine="img2dataset"))


def test_the_deny_list(tmp_path: Path) -> None:
    listed = tmp_path / "deny.txt"
    listed.write_text(f"# known\n\n{hashlib.sha256(GOOD).hexdigest().upper()}  photo.jpg\n")
    with Decoder(dataclasses.replace(CONFIG, deny_hashes=str(listed))) as decoder:
        denied, passed = decoder.decode([GOOD, GOOD + b"\0"])
    assert denied == Refusal("blocklisted_hash")
    assert isinstance(passed, Stored)
    listed.write_text("# known\nabc\n")
    with (
        pytest.raises(InputError, match=r"deny\.txt, line 2: not a SHA-256 sum, expected 64 hex"),
        Decoder(dataclasses.replace(CONFIG, deny_hashes=str(listed))),
    ):
        pass
    with (
        pytest.raises(InputError, match="cannot open"),
        Decoder(dataclasses.replace(CONFIG, deny_hashes=str(tmp_path / "none"))),
    ):
        pass
