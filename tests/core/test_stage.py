from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.core import manifest, paths, tables
from pipeline.core.config import input_paths
from pipeline.core.contracts import CANDIDATES, DROPPED
from pipeline.core.errors import OutputError, StageFailedError
from pipeline.core.fakes import fake_folder, fake_table
from pipeline.core.manifest import Manifest
from pipeline.core.stage import RunOptions, StageResult, run_stage


@dataclass(frozen=True, kw_only=True)
class Settings:
    rows: int = 3
    inputs: tuple[str, ...] = input_paths()


QUIET = RunOptions(quiet=True)


def body(rows: int, *, drop: int = 0, rows_in: int | None = None) -> Callable[[str], StageResult]:
    def work(out: str) -> StageResult:
        tables.write_table(paths.join(out, "part-00000.parquet"), fake_table(CANDIDATES, rows), CANDIDATES)
        if drop:
            rows_dropped = tables.dropped_table("x", [("bad", str(i), None) for i in range(drop)])
            tables.write_table(paths.join(out, "dropped", "part-00000.parquet"), rows_dropped, DROPPED)
        return StageResult(rows=rows, rows_in=rows + drop if rows_in is None else rows_in)

    return work


def stage(
    out: Path | str,
    work: Callable[[str], StageResult],
    settings: Settings | None = None,
    options: RunOptions = QUIET,
    name: str = "candidates",
    *,
    resumable: bool = False,
) -> Manifest | None:
    settings = settings or Settings()
    return run_stage(
        work,
        stage=name,
        contract=CANDIDATES.id,
        config=settings,
        inputs=settings.inputs,
        out=str(out),
        options=options,
        resumable=resumable,
    )


def test_a_finished_folder_says_what_happened(tmp_path: Path) -> None:
    done = stage(tmp_path / "o", body(3, drop=2))
    assert done is not None
    assert (done.rows, done.rows_in, done.dropped) == (3, 5, {"bad": 2})
    assert manifest.read(str(tmp_path / "o")) == done
    assert not (tmp_path / "o" / "unfinished.json").exists()


def test_the_same_again_is_a_no_op_that_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = stage(tmp_path / "o", body(3))

    def never(_: str) -> StageResult:
        raise AssertionError("the work was done twice")

    assert stage(tmp_path / "o", never, options=RunOptions()) == first
    assert "already done" in capsys.readouterr().err


def test_another_configuration_needs_overwrite(tmp_path: Path) -> None:
    stage(tmp_path / "o", body(3))
    with pytest.raises(OutputError, match=r"rows was 3, is 4.*--overwrite"):
        stage(tmp_path / "o", body(4), Settings(rows=4))
    done = stage(tmp_path / "o", body(4), Settings(rows=4), RunOptions(quiet=True, overwrite=True))
    assert done is not None
    assert done.rows == 4


def test_other_inputs_need_overwrite_but_moved_inputs_do_not(tmp_path: Path) -> None:
    one = fake_folder(str(tmp_path / "one"), CANDIDATES, 3)
    same = fake_folder(str(tmp_path / "same"), CANDIDATES, 3)
    more = fake_folder(str(tmp_path / "more"), CANDIDATES, 4)
    first = stage(tmp_path / "o", body(3), Settings(inputs=(one,)))
    assert stage(tmp_path / "o", body(3), Settings(inputs=(same,))) == first
    with pytest.raises(OutputError, match="--overwrite"):
        stage(tmp_path / "o", body(3), Settings(inputs=(more,)))


def test_totals_must_add_up(tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match=r"rows do not add up, expected 7 in"):
        stage(tmp_path / "o", body(3, drop=2, rows_in=7))
    assert not (tmp_path / "o" / "manifest.json").exists()


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "part-00000.parquet").write_text("my own")
    with pytest.raises(OutputError, match="not empty and was not made by this command"):
        stage(tmp_path / "thesis", body(3), options=RunOptions(quiet=True, overwrite=True))
    assert (tmp_path / "thesis" / "part-00000.parquet").read_text() == "my own"
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a file stands where"):
        stage(tmp_path / "file", body(3))
    stage(tmp_path / "o", body(3))
    with pytest.raises(
        OutputError, match="result of another command, expected wit select, found wit candidates"
    ):
        stage(tmp_path / "o", body(3), name="select")


def test_a_failed_stage_starts_again_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def breaks(out: str) -> StageResult:
        tables.write_table(paths.join(out, "part-00007.parquet"), fake_table(CANDIDATES, 9), CANDIDATES)
        raise StageFailedError("power cut")

    with pytest.raises(StageFailedError, match="power cut"):
        stage(tmp_path / "o", breaks)
    assert not (tmp_path / "o" / "manifest.json").exists()
    with pytest.raises(OutputError, match="unfinished `wit candidates`"):
        stage(tmp_path / "o", body(1), name="select")
    stage(tmp_path / "o", body(3))
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["manifest.json", "part-00000.parquet"]


def test_a_resumable_stage_finds_its_files_again(tmp_path: Path) -> None:
    def breaks(out: str) -> StageResult:
        paths.write_bytes(paths.join(out, "part-00001.parquet"), b"half")
        raise StageFailedError("power cut")

    seen: list[bool] = []

    def goes_on(out: str) -> StageResult:
        seen.append(Path(out, "part-00001.parquet").exists())
        return body(3)(out)

    for settings in (Settings(), Settings(rows=8)):
        with pytest.raises(StageFailedError):
            stage(tmp_path / f"o{settings.rows}", breaks, resumable=True)
        stage(tmp_path / f"o{settings.rows}", goes_on, settings, resumable=True)
    assert seen == [True, False], "only the same configuration may go on from old files"


@pytest.mark.parametrize(
    ("number", "line"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "not allowed to write here")]
)
def test_a_full_or_read_only_disk_is_one_line(tmp_path: Path, number: int, line: str) -> None:
    def breaks(_: str) -> StageResult:
        raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError, match=line):
        stage(tmp_path / "o", breaks)


def test_killed_in_the_middle_then_finished(tmp_path: Path) -> None:
    """kill -9 while a part is being written: the folder is not trusted, and the same command makes it whole."""
    script = textwrap.dedent(
        """
        import sys, time
        from tests_stage import body, stage
        from pipeline.core import paths
        def slow(out):
            with paths.open_atomic(paths.join(out, "part-00003.parquet")) as file:
                file.write(b"half a part")
                file.flush()
                print("writing", flush=True)
                time.sleep(60)
        stage(sys.argv[1], slow)
        """
    )
    (tmp_path / "tests_stage.py").write_text(Path(__file__).read_text())
    (tmp_path / "work.py").write_text(script)
    out = tmp_path / "o"
    child = subprocess.Popen(
        [sys.executable, str(tmp_path / "work.py"), str(out)], stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert json.loads((out / "unfinished.json").read_text())["stage"] == "candidates"
    assert not (out / "part-00003.parquet").exists()
    stage(out, body(3))
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "part-00000.parquet"]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_killed_while_it_clears_the_old_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """What another configuration left is cleared by the next run, and never taken for its own work."""

    def two(out: str) -> StageResult:
        for part in range(2):
            table = fake_table(CANDIDATES, 2)
            tables.write_table(paths.join(out, f"part-0000{part}.parquet"), table, CANDIDATES)
        return StageResult(rows=4, rows_in=4)

    def goes_on(out: str) -> StageResult:
        seen.append(sorted(p.name for p in Path(out).glob("part-*")))
        return body(8)(out)

    seen: list[list[str]] = []
    out = tmp_path / "o"
    stage(out, two, resumable=True)
    remove, left = LocalFileSystem.rm, [after]

    def dies(self: LocalFileSystem, path: str, **given: object) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        remove(self, path, **given)

    monkeypatch.setattr(LocalFileSystem, "rm", dies)
    again = RunOptions(quiet=True, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        stage(out, goes_on, Settings(rows=8), again, resumable=True)
    monkeypatch.setattr(LocalFileSystem, "rm", remove)
    done = stage(out, goes_on, Settings(rows=8), again, resumable=True)
    assert done is not None
    assert done.rows == 8
    assert seen == [[]]
    assert [p.name for p in out.glob("part-*")] == ["part-00000.parquet"]


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = fake_folder(str(tmp_path / "in"), CANDIDATES, 3)
    assert stage(tmp_path / "o", body(3), Settings(inputs=(given,)), RunOptions(dry_run=True)) is None
    printed = capsys.readouterr().out
    assert "would write candidates/1" in printed
    assert "3 rows" in printed
    assert not (tmp_path / "o").exists()


def test_equal_work_has_equal_manifest_hashes(tmp_path: Path) -> None:
    first, second = stage(tmp_path / "a", body(3)), stage(tmp_path / "b", body(3))
    assert first is not None
    assert second is not None
    assert first.sha256 == second.sha256
    other = stage(tmp_path / "c", body(4))
    assert other is not None
    assert other.sha256 != first.sha256
