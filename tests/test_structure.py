"""The house rules that a machine can hold us to: who may import whom, and who owns the package names."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("queries", "pipeline", "dedup", "model")
TOP = ("cli", "run", "report", "demo", "inspect", "__main__")
STAGES = ("candidates", "select", "fetch")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def forbidden(path: Path) -> list[str]:
    """Why the house does not allow a file's imports; empty if it does."""
    room = path.relative_to(ROOT).with_suffix("").parts
    wrong = []
    for name in sorted(imports(path)):
        head, *rest = name.split(".")
        inner = rest[0] if rest else ""
        if head == "torch" and room[0] in ("pipeline", "queries"):
            wrong.append("pipeline and queries never import torch")
        if head == "apache_beam" and room[0] == "model":
            wrong.append("model never imports Beam")
        if head not in PACKAGES:
            continue
        if room[0] != "pipeline":
            allowed = head == room[0] or (head == "pipeline" and inner in ("", "core"))
            allowed = allowed or (room[0] == "dedup" and name.startswith("model.layers"))
            if not allowed:
                wrong.append(f"{room[0]} imports {name}")
        elif room[1] not in TOP:
            if head != "pipeline":
                wrong.append(f"pipeline.{room[1]} imports {name}")
            allowed_inner = {"core", room[1], ""} | ({"text"} if room[1] in STAGES else set())
            # `fetch --top-up` makes the balance again: pure functions on arrays.
            balance = room[1] == "fetch" and name.startswith("pipeline.select.balance")
            if head == "pipeline" and inner not in allowed_inner and not balance:
                wrong.append(f"pipeline.{room[1]} imports {name}")
    return wrong


def sources() -> list[Path]:
    """All source files of the four packages."""
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    assert forbidden(path) == []


def test_the_import_rule_sees_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for name, code in {
        "queries/a.py": "import torch",
        "model/a.py": "def f():\n    from apache_beam import Map",
        "pipeline/core/a.py": "from pipeline.select import match",
        "pipeline/select/a.py": "import pipeline.fetch.policy",
        "dedup/a.py": "from model import clip",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
        assert len(forbidden(tmp_path / name)) >= 1, name
    (tmp_path / "dedup/b.py").write_text("from model.layers import BlurPool\nfrom pipeline.core import paths")
    assert forbidden(tmp_path / "dedup/b.py") == []


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_name_is_ours_alone(package: str) -> None:
    """Generic names collide silently: two distributions that both own ``queries`` would shadow each other."""
    assert set(importlib.metadata.packages_distributions()[package]) == {"webimagetext"}


def test_locks_pin_everything_that_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = (ROOT / "requirements" / "core.lock").read_text()
    dev = (ROOT / "requirements" / "dev.lock").read_text()
    for requirement in project["dependencies"]:
        name = re.split(r"[=<>\[]", requirement)[0]
        assert f"\n{name}==" in f"\n{core}", f"{name}: run `make lock`"
    for requirement in project["optional-dependencies"]["dev"]:
        name = re.split(r"[=<>\[]", requirement)[0]
        assert f"\n{name}==" in f"\n{dev}", f"{name}: run `make lock`"
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", core, re.M))
    assert pins.items() <= dict(re.findall(r"^([\w.-]+)==(\S+)", dev, re.M)).items(), "the two locks disagree"


def test_architecture_stays_short() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 120


def test_continuous_integration_runs_the_readmes_two_commands_as_written() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Two commands\n.*?```sh\n(.*?)```", readme, re.S)
    assert block is not None
    commands = [line.split("#")[0].strip() for line in block[1].splitlines()]
    assert len(commands) == 2
    lines = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    for command in commands:
        assert any(line == command or line.endswith(f"=tiny {command}") for line in lines), command


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/.]+)` \|[^|]*\| ([^|]+) \|$", text, re.M)
    assert len(rows) >= 12
    for room, names in rows:
        assert (ROOT / room).exists(), room
        for name in re.findall(r"`([\w/]+\.\w+)`", names):
            assert (ROOT / room / name).exists(), f"{room}{name}"
