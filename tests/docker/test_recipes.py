"""The images' recipes: what they copy is there, and their pins are the locks'. `make test-images` runs their steps."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docker"
IMAGES = ("worker", "trainer")


@pytest.fixture(scope="module")
def prove() -> ModuleType:
    """`docker/prove.py`, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("docker_prove", FOLDER / "prove.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def pins(lock: str) -> dict[str, str]:
    text = (REPOSITORY / "requirements" / f"{lock}.lock").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.M))


def recipe(prove: ModuleType, image: str) -> list[Any]:
    steps: list[Any] = prove.steps((FOLDER / f"{image}.Dockerfile").read_text())
    return steps


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_in_the_context(prove: ModuleType, image: str) -> None:
    files = prove.context()
    copied = [step for step in recipe(prove, image) if step.name == "COPY"]
    assert copied
    for step in copied:
        for name, found in prove.sources(step.text, files).items():
            assert found, f"{image}: {name}"


def test_the_context_holds_no_more_than_is_wanted(prove: ModuleType) -> None:
    tops = {name.partition("/")[0] for name in prove.context()}
    wanted = {"dedup", "docker", "examples", "model", "pipeline", "queries", "requirements"}
    assert tops == wanted | {"pyproject.toml", "README.md", "LICENSE"}
    assert prove.ignored("pipeline/__pycache__/cli.pyc", ["*", "!pipeline", "**/__pycache__"])
    assert not prove.ignored("pipeline/core/paths.py", ["*", "!pipeline", "**/__pycache__"])
    assert prove.ignored("tests/conftest.py", ["*", "!pipeline"])


def test_the_workers_have_the_pins_of_the_core() -> None:
    core, worker = pins("core"), pins("worker")
    assert core.items() <= worker.items()
    assert {"gcsfs", "s3fs", "google-cloud-storage"} <= set(worker)


def test_the_workers_base_is_beam_of_the_lock_and_python_of_the_lock(prove: ModuleType) -> None:
    (base,) = (step.text for step in recipe(prove, "worker") if step.name == "FROM")
    assert base == f"apache/beam_python3.11_sdk:{pins('core')['apache-beam']}"
    (trainer,) = (step.text for step in recipe(prove, "trainer") if step.name == "FROM")
    assert trainer.startswith("python:3.11-")


@pytest.mark.parametrize(("image", "lock"), [("worker", "worker"), ("trainer", "core")])
def test_installs_are_by_hash_from_the_lock(prove: ModuleType, image: str, lock: str) -> None:
    installs = [s.text for s in recipe(prove, image) if s.name == "RUN" and "pip install" in s.text]
    locked = [text for text in installs if "--require-hashes" in text]
    assert len(locked) == 1
    assert locked[0].endswith(f"-r requirements/{lock}.lock")
    for text in installs:  # all else is uv itself, by version, and this package
        assert "--require-hashes" in text or "--no-deps" in text or re.search(r" uv==[\d.]+$", text)


def test_the_demo_uses_the_image_that_is_built(prove: ModuleType) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    (dockerfile,) = re.findall(r"dockerfile: (\S+)", text)
    assert (REPOSITORY / dockerfile).is_file()
    assert set(re.findall(r"image: (\S+)", text)) == {"webimagetext-trainer"}
    assert "examples" in " ".join(s.text for s in recipe(prove, "trainer") if s.name == "COPY")
