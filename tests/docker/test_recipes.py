"""The images' recipes: what they copy is there, and their pins are the locks'. `make test-images` runs their steps."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.demo.main import SIZES

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docker"
IMAGES = ("worker", "trainer")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """`docker/recipe.py`, which is no module of a package."""
    return script("recipe")


@pytest.fixture(scope="module")
def compose() -> ModuleType:
    """`docker/services.py`."""
    return script("services")


def script(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        return importlib.import_module(name)


def pins(lock: str) -> dict[str, str]:
    text = (REPOSITORY / "requirements" / f"{lock}.lock").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.M))


def steps(recipe: ModuleType, image: str) -> list[Any]:
    found: list[Any] = recipe.steps((FOLDER / f"{image}.Dockerfile").read_text())
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_in_the_context(recipe: ModuleType, image: str) -> None:
    files = recipe.context()
    copied = [step for step in steps(recipe, image) if step.name == "COPY"]
    assert copied
    for step in copied:
        for name, found in recipe.sources(step.text, files).items():
            assert found, f"{image}: {name}"


def test_the_context_holds_no_more_than_is_wanted(recipe: ModuleType) -> None:
    tops = {name.partition("/")[0] for name in recipe.context()}
    wanted = {"dedup", "docker", "examples", "model", "pipeline", "queries", "requirements"}
    assert tops == wanted | {"pyproject.toml", "README.md", "LICENSE"}
    assert recipe.ignored("pipeline/__pycache__/cli.pyc", ["*", "!pipeline", "**/__pycache__"])
    assert not recipe.ignored("pipeline/core/paths.py", ["*", "!pipeline", "**/__pycache__"])
    assert recipe.ignored("tests/conftest.py", ["*", "!pipeline"])


def test_the_workers_have_the_pins_of_the_core() -> None:
    core, worker = pins("core"), pins("worker")
    assert core.items() <= worker.items()
    assert {"gcsfs", "s3fs", "google-cloud-storage"} <= set(worker)


def test_the_workers_base_is_beam_of_the_lock_and_python_of_the_lock(recipe: ModuleType) -> None:
    (base,) = (step.text for step in steps(recipe, "worker") if step.name == "FROM")
    assert base == f"apache/beam_python3.11_sdk:{pins('core')['apache-beam']}"
    (trainer,) = (step.text for step in steps(recipe, "trainer") if step.name == "FROM")
    assert trainer.startswith("python:3.11-")


@pytest.mark.parametrize(("image", "lock"), [("worker", "worker"), ("trainer", "core")])
def test_installs_are_by_hash_from_the_lock(recipe: ModuleType, image: str, lock: str) -> None:
    installs = [s.text for s in steps(recipe, image) if s.name == "RUN" and "pip install" in s.text]
    locked = [text for text in installs if "--require-hashes" in text]
    assert len(locked) == 1
    assert locked[0].endswith(f"-r requirements/{lock}.lock")
    for text in installs:  # all else is uv itself, by version, and this package
        assert "--require-hashes" in text or "--no-deps" in text or re.search(r" uv==[\d.]+$", text)


def test_who_uses_the_trainer_is_not_root(recipe: ModuleType, tmp_path: Path) -> None:
    image = recipe.built(tmp_path, FOLDER / "trainer.Dockerfile")
    assert (image.user, image.folder, image.environment["HOME"]) == ("wit", "/runs", "/home/wit")
    worker = recipe.built(tmp_path, FOLDER / "worker.Dockerfile")
    assert (worker.user, worker.environment["OMP_NUM_THREADS"]) == ("root", "1")


def test_a_command_has_the_images_user_folder_and_variables(recipe: ModuleType, tmp_path: Path) -> None:
    image = recipe.Image(tmp_path, {"HOME": "/home/a b"}, "/runs", "12:34")
    mounts = [recipe.Mount(tmp_path / "x", "/runs", read_only=True)]
    *space, script = recipe.enter(image, ["wit", "demo"], mounts, network=False)
    assert space == ["unshare", "--mount", "--net", "sh", "-ec"]
    assert f"mount --bind {tmp_path}/x {tmp_path}/runs; mount -o remount,bind,ro {tmp_path}/runs" in script
    assert f"exec chroot --userspec=12:34 {tmp_path} env -i --chdir=/runs " in script
    assert " 'HOME=/home/a b' " in script
    assert script.endswith(" wit demo")
    assert "--net" not in recipe.enter(image, ["wit"])


def test_caches_in_an_image_are_found(recipe: ModuleType, tmp_path: Path) -> None:
    for name in (
        "root/.cache/pip/wheel",
        "home/wit/.cache/x",
        "var/lib/apt/lists/list",
        "opt/kept",
        "home/wit/y",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12")
    (tmp_path / "var/lib/apt/lists/lock").touch()
    assert recipe.leftovers(tmp_path) == [
        "home/wit/.cache/x",
        "root/.cache/pip/wheel",
        "var/lib/apt/lists/list",
    ]
    assert recipe.size_bytes(tmp_path) == 10


def test_the_demo_uses_the_image_that_is_built(recipe: ModuleType) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    (dockerfile,) = re.findall(r"dockerfile: (\S+)", text)
    assert (REPOSITORY / dockerfile).is_file()
    assert f"docker build -f {dockerfile} -t webimagetext-trainer ." in (REPOSITORY / dockerfile).read_text()
    assert set(re.findall(r"image: (\S+)", text)) == {"webimagetext-trainer"}
    assert "examples" in " ".join(s.text for s in steps(recipe, "trainer") if s.name == "COPY")


@pytest.mark.parametrize("size", SIZES)
def test_the_services_meet_in_a_volume_that_is_the_users(
    recipe: ModuleType, compose: ModuleType, size: str
) -> None:
    text = compose.interpolated((FOLDER / "compose.yaml").read_text(), {"DEMO_SIZE": size})
    demo, report = compose.services(text)
    assert demo.command == ["wit", "demo", "--size", size, "--out", "/runs/demo"]
    assert report.command[-2:] == ["--directory", "/runs/demo"]
    assert (demo.volumes, report.volumes) == ([("runs", "/runs", "rw")], [("runs", "/runs", "ro")])
    assert (demo.after, report.after) == ([], ["demo"])
    assert any(re.search(r"install -d -m 1777 .*/runs\b", s.text) for s in steps(recipe, "trainer"))


def test_the_demo_is_tiny_unless_asked(compose: ModuleType) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    demo, _ = compose.services(compose.interpolated(text, {}))
    assert "tiny" in demo.command


def test_services_that_wait_for_each_other_are_refused(compose: ModuleType) -> None:
    pair = "{image: i, command: [c], depends_on: {%s: {condition: service_completed_successfully}}}"
    with pytest.raises(SystemExit, match=r"never ends: \['a', 'b'\]"):
        compose.services(f"services: {{a: {pair % 'b'}, b: {pair % 'a'}}}")


def test_demos_are_compared_by_what_tells_neither_time_nor_place(compose: ModuleType, tmp_path: Path) -> None:
    for name in ("image", "local"):
        (tmp_path / name / "scores").mkdir(parents=True)
        (tmp_path / name / "scores" / "scores.json").write_text("{}")
        (tmp_path / name / "report.html").write_text(name)
    assert compose.compare(tmp_path / "image", tmp_path / "local") == 1
    (tmp_path / "image" / "scores" / "scores.json").write_text("{ }")
    with pytest.raises(SystemExit, match=r"\['/scores/scores.json'\]"):
        compose.compare(tmp_path / "image", tmp_path / "local")
    (tmp_path / "local" / "more.html").write_text("")
    with pytest.raises(SystemExit, match=r"/more\.html"):
        compose.compare(tmp_path / "image", tmp_path / "local")
