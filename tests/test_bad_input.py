"""Every command meets the same bad inputs: one line that says what and what to do, and nothing left to trust."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.core.contracts import CANDIDATES, EMBEDDINGS, NEIGHBOURS, PAIRS, PREDICTIONS, QUERIES, Contract
from pipeline.core.fakes import fake_folder, fake_shards


@dataclass(frozen=True)
class Case:
    """A command with valid inputs.

    Attributes:
        command: As typed.
        flags: Input flags and the kind of input each takes.
        table: Its table, for ``--set``.
        beam: Whether it takes Beam's options.
    """

    command: str
    flags: tuple[tuple[str, Contract | str], ...]
    table: str
    beam: bool = True

    @property
    def folders(self) -> tuple[tuple[str, Contract | str], ...]:
        """The flags that take a finished folder of a contract."""
        return tuple((flag, kind) for flag, kind in self.flags if kind != "file")


CASES = (
    Case("queries", (("--wikipedia", "file"),), "queries"),
    Case("candidates", (("--warc", "file"),), "candidates"),
    Case("select", (("--candidates", CANDIDATES), ("--queries", QUERIES)), "select"),
    Case("fetch", (("--pairs", PAIRS),), "fetch"),
    Case("dedup train", (("--images", "shards"),), "dedup.train", beam=False),
    Case("dedup embed", (("--images", "shards"), ("--detector", "detector")), "dedup.embed"),
    Case("dedup search", (("--train", EMBEDDINGS), ("--eval", EMBEDDINGS)), "dedup.search"),
    Case(
        "dedup report",
        (("--neighbours", NEIGHBOURS), ("--predictions", PREDICTIONS)),
        "dedup.report",
        beam=False,
    ),
    Case("train", (("--shards", "shards"),), "train", beam=False),
    Case(
        "evaluate zero-shot",
        (("--model", "checkpoint"), ("--dataset", "pictures")),
        "evaluate.zero-shot",
        beam=False,
    ),
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Valid inputs of every kind that needs no training, by contract id."""
    root = tmp_path_factory.mktemp("given")
    for contract in (CANDIDATES, QUERIES, PAIRS, EMBEDDINGS, NEIGHBOURS, PREDICTIONS):
        fake_folder(str(root / contract.name), contract, 8)
    fake_shards(str(root / "shards"), 8)
    (root / "file").write_text("x")
    (root / "pictures" / "class").mkdir(parents=True)
    return root


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("manifest.json")), "something was left that a later run would trust"


def words(case: Case, given: Path, **instead: str) -> list[str]:
    """The command with valid inputs, or others instead."""
    found = case.command.split()
    for flag, kind in case.flags:
        name = kind.name if isinstance(kind, Contract) else kind
        found += [flag, instead.get(flag.lstrip("-"), str(given / name))]
    return found


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("wit: ")
    assert printed.err.count("\n") == 1, printed.err
    assert "unexpected error" not in printed.err
    assert "Traceback" not in printed.err
    return printed.err


each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.command)
with_folders = pytest.mark.parametrize("case", [c for c in CASES if c.folders], ids=lambda case: case.command)
# The others need a trained input or a real archive to get as far as their output.
with_output = pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.command not in ("dedup embed", "evaluate zero-shot", "candidates")],
    ids=lambda case: case.command,
)


@each
def test_missing_input(case: Case, given: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flag = case.flags[0][0].lstrip("-")
    gone = str(tmp_path / "gone")
    assert cli.main([*words(case, given, **{flag: gone}), "--out", "o", "--quiet"]) == 1
    assert gone in told(capsys)


@with_folders
def test_unfinished_input(
    case: Case, given: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flag = case.folders[0][0].lstrip("-")
    half = tmp_path / "half"
    half.mkdir()
    (half / "unfinished.json").write_text('{"stage": "x"}')
    assert cli.main([*words(case, given, **{flag: str(half)}), "--out", "o", "--quiet"]) == 1
    line = told(capsys)
    assert str(half) in line
    assert "unfinished" in line


@with_folders
def test_another_contract(case: Case, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flag, kind = case.folders[0]
    other = given / (QUERIES.name if kind is not QUERIES else PAIRS.name)
    assert cli.main([*words(case, given, **{flag.lstrip("-"): str(other)}), "--out", "o", "--quiet"]) == 1
    assert str(other) in told(capsys)


@each
def test_unknown_flag_and_key(case: Case, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words(case, given), "--out", "o", "--nonsense", "1"]) == 2
    assert "--nonsense" in told(capsys)
    assert cli.main([*words(case, given), "--out", "o", "--set", f"{case.table}.nonsense=1"]) == 2
    assert "unknown key 'nonsense'" in told(capsys)
    assert not Path("o").exists()


@each
def test_unknown_beam_option(case: Case, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words(case, given), "--out", "o", "--quiet", "--", "--nonsense=1"]) == 2
    assert ("--nonsense" if case.beam else "takes no Beam options") in told(capsys)
    assert not Path("o").exists()


@with_output
def test_output_that_cannot_be_used(
    case: Case, given: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if case.command in ("dedup embed", "evaluate zero-shot", "candidates"):
        pytest.skip(
            "needs a trained input or a real archive to get as far as its output; its own room tests it"
        )
    (tmp_path / "file").write_text("mine")
    assert cli.main([*words(case, given), "--out", "file", "--quiet"]) == 1
    assert "file" in told(capsys)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "part-00000.parquet").write_text("mine")
    assert cli.main([*words(case, given), "--out", "mine", "--quiet"]) == 1
    assert "not made by this command" in told(capsys)
    assert (tmp_path / "mine" / "part-00000.parquet").read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a place where nobody may write")
@with_output
def test_output_where_nobody_may_write(case: Case, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if case.command in ("dedup embed", "evaluate zero-shot", "candidates"):
        pytest.skip(
            "needs a trained input or a real archive to get as far as its output; its own room tests it"
        )
    assert cli.main([*words(case, given), "--out", "/proc/wit", "--quiet"]) == 1
    line = told(capsys)
    assert "/proc/wit" in line
    assert "write" in line
