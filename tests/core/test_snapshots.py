from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core import paths, snapshots
from pipeline.core.errors import InputError, OutputError
from pipeline.core.snapshots import NAME, NEW, PREVIOUS, Snapshots, asked_to_end


def text(data: bytes) -> str:
    return data.decode("ascii")


def test_the_last_snapshot_is_read_and_the_one_before_kept(tmp_path: Path) -> None:
    kept = Snapshots(str(tmp_path))
    assert kept.load(text) is None
    for name in ("one", "two", "three"):
        kept.save(name.encode())
        assert kept.load(text) == name
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((NAME, PREVIOUS))
    (tmp_path / NAME).unlink()
    assert kept.load(text) == "two"
    kept.forget()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", range(4))
def test_a_kill_between_any_two_steps_leaves_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    kept = Snapshots(str(tmp_path))
    kept.save(b"one")
    kept.save(b"two")
    calls = 0

    def killed(what: Callable[..., None]) -> Callable[..., None]:
        def step(*given: str) -> None:
            nonlocal calls
            calls += 1
            if calls > call:
                raise KeyboardInterrupt
            what(*given)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(paths, "write_bytes", killed(paths.write_bytes))
        patch.setattr(snapshots, "_rename", killed(snapshots._rename))
        if call < 3:
            with pytest.raises(KeyboardInterrupt):
                kept.save(b"three")
        else:
            kept.save(b"three")
    assert kept.load(text) == ("three" if call == 3 else "two")
    kept.save(b"four")  # what the kill left is no obstacle
    assert kept.load(text) == "four"


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text"])
def test_a_damaged_snapshot_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Snapshots(str(tmp_path))
    kept.save(b"one")
    kept.save("zwölf".encode() if damage == "text" else b"two")
    whole = (tmp_path / NAME).read_bytes()
    wrong = {"cut": whole[:-1], "bit": bytes([whole[0] ^ 1]) + whole[1:], "empty": b"", "text": whole}[damage]
    (tmp_path / NAME).write_bytes(wrong)
    assert kept.load(text) == "one"
    assert "damaged training state" in capsys.readouterr().err
    (tmp_path / PREVIOUS).write_bytes(b"?")
    with pytest.raises(InputError, match=r"training\.pt: damaged training state.*remove it"):
        kept.load(text)


def test_a_full_disk_keeps_the_last_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Snapshots(str(tmp_path))
    kept.save(b"one")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="the disk is full"):
            kept.save(b"two")
    assert kept.load(text) == "one"
    assert not (tmp_path / NEW).exists()


def test_a_signal_is_noted_and_the_handler_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with asked_to_end() as asked:
        assert not asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
