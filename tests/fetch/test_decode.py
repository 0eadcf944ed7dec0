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


def test_what_takes_too_long_costs_itself_alone() -> None:
    config = dataclasses.replace(CONFIG, decode_timeout_s=0.15, decode_processes=1)
    with decoder_for(config) as decoder:
        started = time.monotonic()
        assert list(decoder.decode([LARGE, GOOD])) == [
            Refusal("decode_error", TIMEOUT),
            process(GOOD, CONFIG),
        ]
        assert time.monotonic() - started < 5


def test_a_process_that_neither_answers_nor_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_GRACE_S", 0.1)
    worker = DecodingProcess(dataclasses.replace(CONFIG, decode_timeout_s=0.2))
    assert worker.answer(GOOD) == process(GOOD, CONFIG)
    os.kill(pid(worker), signal.SIGSTOP)
    assert worker.answer(GOOD) == Refusal("decode_error", TIMEOUT)
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


def test_what_always_crashes_is_refused() -> None:
    worker = DecodingProcess(dataclasses.replace(CONFIG, decode_memory_mb=512))
    ended = threading.Event()

    def kill() -> None:
        while not ended.is_set():
            for child in children():
                if Path(f"/proc/{child}/statm").exists() and resident_mb(child) > 90:  # it is decoding
                    os.kill(child, signal.SIGSEGV)
            time.sleep(0.002)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        assert worker.answer(LARGE) == Refusal("decode_error", CRASHED)
        ended.set()
        killing.result()
    assert worker.answer(GOOD) == process(GOOD, CONFIG)
    worker.close()


def resident_mb(process_id: int) -> float:
    try:
        return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * 4096 / 1e6
    except OSError:
        return 0.0


def pid(worker: DecodingProcess) -> int:
    assert worker._process is not None
    return worker._process.pid


def test_nothing_is_left_when_the_reader_stops_or_fails() -> None:
    with pytest.raises(KeyError), decoder_for(CONFIG) as decoder:
        for _ in decoder.decode([GOOD] * 50):
            raise KeyError
    with decoder_for(CONFIG) as decoder:
        results = decoder.decode([LARGE] * 20)
        started = time.monotonic()
        del results
    assert time.monotonic() - started < 5


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
    for _ in range(200):
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
