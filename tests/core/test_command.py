from __future__ import annotations

import argparse
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import cli
from pipeline.core import command
from pipeline.core.command import Command, Task
from pipeline.core.config import input_paths
from pipeline.core.errors import ConfigError, UsageError
from pipeline.core.progress import Progress, duration, tick
from pipeline.core.stage import RunOptions


@dataclass(frozen=True, kw_only=True)
class Settings:
    cap: int = 20_000
    images: tuple[str, ...] = input_paths()


def _arguments(made: argparse.ArgumentParser) -> None:
    command.path_list(made, "--images", help="pictures")
    made.add_argument("--cap", type=int)


def stage(config: Settings, out: str, options: RunOptions) -> tuple[Settings, str, RunOptions]:
    return config, out, options


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Command:
    made = Command(
        name="toy",
        help="A toy.",
        config=Settings,
        arguments=_arguments,
        stage="x:y",
        table="dedup.toy",
        beam=True,
    )
    monkeypatch.setattr(command, "load_function", lambda _: stage)
    return made


def test_flags_beat_set_which_beats_the_file(toy: Command, tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text("[dedup.toy]\ncap = 1\nimages = ['x']\n[select]\nother = 1\n")
    file = ["--config", str(tmp_path / "f.toml")]
    assert command.run(toy, [*file, "--out", "o"], [])[0] == Settings(cap=1, images=("x",))
    assert command.run(toy, [*file, "--set", "dedup.toy.cap=2", "--out", "o"], [])[0].cap == 2
    flags = ["--set", "dedup.toy.cap=2", "--cap", "3", "--images", "a", "b", "--images", "c"]
    config, out, options = command.run(toy, [*file, *flags, "--out", "o"], ["--direct_num_workers=2"])
    assert config == Settings(cap=3, images=("a", "b", "c"))
    assert (out, options) == ("o", RunOptions(beam=("--direct_num_workers=2",)))


def test_misplaced_settings_are_refused(toy: Command, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected dedup\.toy\.KEY=VALUE"):
        command.run(toy, ["--set", "select.cap=2", "--out", "o"], [])
    (tmp_path / "f.toml").write_text("[dedup.toy]\ncapp = 1\n")
    with pytest.raises(ConfigError, match="did you mean 'cap'"):
        command.run(toy, ["--config", str(tmp_path / "f.toml"), "--out", "o"], [])
    (tmp_path / "f.toml").write_text("dedup = 3\n")
    with pytest.raises(UsageError, match="expected a table") as caught:
        command.run(toy, ["--config", str(tmp_path / "f.toml"), "--out", "o"], [])
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--ca", "3", "--out", "o"], "did you mean --cap"),
        (["--zzz=1", "--out", "o"], "see `wit toy --help`"),
        (["stray", "--out", "o"], "unrecognized arguments: stray"),
        (["--cap", "many", "--out", "o"], "invalid int value"),
        ([], "required: --out"),
    ],
)
def test_unknown_and_abbreviated_flags_are_wrong_usage(toy: Command, words: list[str], line: str) -> None:
    with pytest.raises(UsageError, match=line) as caught:
        command.run(toy, words, [])
    assert caught.value.exit_status == 2


def test_beam_options_only_where_there_is_a_beam_job() -> None:
    task = Task(name="report", help="h", arguments=lambda _: None, main="x:y")
    with pytest.raises(UsageError, match="takes no Beam options"):
        command.run(task, [], ["--runner=X"])


def test_help_lists_every_command_and_each_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in cli.STAGES:
        assert name in printed
        assert cli.load(name).name == name


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["selct"], 2, "did you mean `wit select`"),
        (
            ["dedup"],
            2,
            "needs one of, expected train, show-augmentations, embed, search, groups, review, audit, report",
        ),
        (["dedup", "nope"], 2, "found nope"),
        (["zzz"], 2, "see `wit --help`"),
        (["queries", "--out", "o", "--set", "x"], 2, "--set"),
    ],
)
def test_wrong_usage_is_one_line(
    words: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == status
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_words_show_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0
    assert "wit 0." in capsys.readouterr().out


def test_surprises_are_one_line_unless_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def surprise(*_: object) -> None:
        raise KeyError("boo")

    monkeypatch.setattr(command, "run", surprise)
    assert cli.main(["queries"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(KeyError):
        cli.main(["queries", "--debug"])


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.cli import main; main(['--help']);"
        "print(sorted({'apache_beam','torch','pyarrow','numpy','faiss','PIL','fsspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_rate_and_time_left_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Terminal()
    now = [1000.0]
    monkeypatch.setattr("pipeline.core.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    with Progress("select", total=100, unit="pairs", stream=screen) as shown:
        tick(25)
        shown.update(25, note="warm")
        now[0] += 10
        line = shown.line()
    tick()
    assert line.startswith("select: 50 of 100 pairs, 5.0/s, 10s left")
    assert line.endswith("warm")
    assert screen.getvalue().endswith("\r\x1b[K")
    silent = io.StringIO()
    with Progress("select", stream=silent):
        tick()
    assert silent.getvalue() == ""
    assert [duration(s) for s in (5, 125, 3700)] == ["5s", "2m 05s", "1h 01m"]


def test_a_result_called_model_hides_no_package(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    script = "import runpy, sys; sys.argv = ['wit', 'train', '--help']\n"
    script += "try:\n    runpy.run_module('pipeline', run_name='__main__', alter_sys=False)\n"
    script += "except SystemExit:\n    pass\nimport model; print(model.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert found.stdout.splitlines()[-1].endswith("__init__.py")
