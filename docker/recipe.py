"""Dockerfiles without Docker: their steps in a Debian root, and commands as their containers would run them.

`FROM` becomes Debian bookworm by debootstrap, with its Python 3.11 in a virtual environment; `ENV`, `WORKDIR`, `USER`,
`COPY` and `RUN` are done as they stand, `COPY` through `.dockerignore`. A command sees the image's variables, folder
and user, `/dev/shm` of 64 MB as Docker gives it, and its own mounts, which end with it.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
SUITE = "bookworm"
# libpython3-dev: Python's headers are in Docker's Python images too.
PACKAGES = "python3,python3-venv,libpython3-dev,ca-certificates"
# What a step may know of its host besides the ENV lines: how to reach the package index.
HANDED_ON = re.compile(r"(PIP|UV|SSL|REQUESTS|CURL)_|(HTTPS?|NO)_PROXY$", re.I)
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PYTHON = "/opt/python"
# Debian's images keep no packages after an installation.
DOCKER_CLEAN = (
    'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb"; };\n'
)
PATH = f"{PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Where installers leave what an image does not need.
CACHES = ("root/.cache", "home/*/.cache", "tmp", "var/tmp", "var/cache/apt/archives", "var/lib/apt/lists")


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile.

    Attributes:
        name: ``RUN``, ``COPY`` and so on.
        text: The rest of it.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Image:
    """A root, and what a container of it starts with.

    Attributes:
        root: Folder on the host.
        environment: Variables of the ``ENV`` lines.
        folder: Working directory.
        user: Name or ids (``1000:1000``).
    """

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "root"

    def after(self, step: Step) -> Image:
        """What the next step starts with."""
        if step.name == "ENV":
            return replace(self, environment={**self.environment, **variables(step.text)})
        if step.name == "WORKDIR":
            return replace(self, folder=step.text)
        return replace(self, user=step.text) if step.name == "USER" else self


@dataclass(frozen=True)
class Mount:
    """A folder of the host inside the root.

    Attributes:
        source: On the host.
        target: Inside, absolute.
        read_only: Nobody writes through it.
    """

    source: Path
    target: str
    read_only: bool = False


def steps(dockerfile: str) -> list[Step]:
    """The instructions of a Dockerfile's text, lines that end in a backslash joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def variables(text: str) -> dict[str, str]:
    """The variables of an ``ENV`` line."""
    return dict(word.partition("=")[::2] for word in shlex.split(text))


def ignored(path: str, patterns: Sequence[str]) -> bool:
    """Whether ``.dockerignore`` keeps a file of the context out; the last pattern that matches counts."""
    out = False
    places = [path, *(str(parent) for parent in Path(path).parents)]
    for pattern in patterns:
        wanted = pattern.removeprefix("!").removeprefix("**/")
        tails = places if not pattern.removeprefix("!").startswith("**/") else [Path(p).name for p in places]
        if any(fnmatch.fnmatch(place, wanted) for place in tails):
            out = not pattern.startswith("!")
    return out


def context() -> list[str]:
    """Files that a build sees: those of git that ``.dockerignore`` lets through."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    return [name for name in listed if not ignored(name, patterns) and (REPOSITORY / name).is_file()]


def sources(text: str, files: Sequence[str]) -> dict[str, list[str]]:
    """The files of the context that each source of a ``COPY`` means."""
    names = [name.removeprefix("./").rstrip("/") for name in text.split()[:-1]]
    return {name: [f for f in files if f == name or f.startswith(f"{name}/")] for name in names}


def make_base(root: Path) -> None:
    """A Debian with Python 3.11 as ``python``, unless it is there."""
    if not (root / "usr/bin/python3").exists():
        # In a name space of its own: an interrupted debootstrap leaves the host's /proc mounted below the root.
        words = [
            "unshare",
            "--mount",
            "debootstrap",
            "--variant=minbase",
            f"--include={PACKAGES}",
            SUITE,
            str(root),
        ]
        subprocess.run(words, check=True)
        run(Image(root), "apt-get clean; rm -rf /var/lib/apt/lists/*")
        (root / "etc/apt/apt.conf.d/docker-clean").write_text(DOCKER_CLEAN)
    for name in ("resolv.conf", "hosts", "pip.conf"):
        if Path("/etc", name).exists():
            shutil.copyfile(Path("/etc", name), root / "etc" / name)
    if CERTIFICATES.exists():
        shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    if not (root / PYTHON.lstrip("/")).exists():
        run(Image(root), f"python3 -m venv {PYTHON}")


def enter(
    image: Image, words: Sequence[str], mounts: Sequence[Mount] = (), *, network: bool = True
) -> list[str]:
    """The command that runs a program as a container of the image would.

    Args:
        image: What it starts with.
        words: The program and its arguments.
        mounts: Folders of the host that it sees.
        network: False leaves it the loopback interface alone, one of its own.
    """
    root = shlex.quote(str(image.root))
    before = [
        f"mount -t proc proc {root}/proc",
        f"mount --bind /dev {root}/dev",
        f"mount -t tmpfs -o size=64m,mode=1777 tmpfs {root}/dev/shm",
    ]
    for mount in mounts:
        inside = shlex.quote(f"{image.root}{mount.target}")
        before += [f"mkdir -p {inside}", f"mount --bind {shlex.quote(str(mount.source))} {inside}"]
        before += [f"mount -o remount,bind,ro {inside}"] if mount.read_only else []
    handed = {name: value for name, value in os.environ.items() if HANDED_ON.match(name)}
    known = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **handed, **image.environment}
    inner = ["chroot", f"--userspec={image.user}", str(image.root), "env", "-i", f"--chdir={image.folder}"]
    inner += [*(f"{name}={value}" for name, value in known.items()), *words]
    space = ["unshare", "--mount"]
    if not network:
        space += ["--net"]
        before += ["ip link set lo up"]
    return [*space, "sh", "-ec", "; ".join([*before, f"exec {shlex.join(inner)}"])]


def run(image: Image, command: str, mounts: Sequence[Mount] = (), *, network: bool = True) -> str:
    """Runs a shell command inside the root to its end; returns what it printed.

    Raises:
        SystemExit: The command failed.
    """
    words = enter(image, ["sh", "-c", command], mounts, network=network)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        printed = []
        for line in started.stdout:
            print(line, end="", flush=True)
            printed.append(line)
    if started.returncode:
        raise SystemExit(f"exit status {started.returncode}: {command}")
    return "".join(printed)


def build(root: Path, dockerfile: Path) -> Image:
    """Does a Dockerfile's steps inside the root."""
    image = Image(root)
    files = context()
    for step in steps(dockerfile.read_text()):
        print(f"== {step.name} {step.text}", flush=True)
        image = image.after(step)
        if step.name == "FROM":
            make_base(root)
        elif step.name == "WORKDIR":
            (root / image.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.name == "COPY":
            copy(root / image.folder.lstrip("/"), step.text, files)
        elif step.name == "RUN":
            run(image, step.text)
        elif step.name not in ("ENV", "USER", "CMD"):
            raise SystemExit(f"{dockerfile}: this program does not know {step.name}")
    return image


def built(root: Path, dockerfile: Path) -> Image:
    """The image of a root in which the steps are done."""
    image = Image(root)
    for step in steps(dockerfile.read_text()):
        image = image.after(step)
    return image


def copy(folder: Path, text: str, files: Sequence[str]) -> None:
    """Does a ``COPY``: files by their names in a folder, or one file or folder under the target's name."""
    target = text.split()[-1]
    for name, chosen in sources(text, files).items():
        if not chosen:
            raise SystemExit(f"COPY {text}: the context has no {name}")
        for file in chosen:
            inside = Path(file).relative_to(name) if file != name else Path()
            place = folder / target / (Path(name).name if target.endswith("/") else "") / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / file, place)


def size_bytes(root: Path) -> int:
    """Bytes of an image's files; links count once."""
    return sum(p.lstat().st_size for p in root.rglob("*") if p.is_file() and not p.is_symlink())


def leftovers(root: Path) -> list[str]:
    """Files that installers left in the image's caches; locks are empty."""
    places = [place for pattern in CACHES for place in root.glob(pattern)]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(root)) for path in files if path.stat().st_size)


def machine_code(root: Path) -> set[str]:
    """The compiled functions that lie in the root, in the packages, in a checkout or in a user's cache folder."""
    places = [root / "opt", root / "home", root / "root"]
    return {str(path.relative_to(root)) for place in places for path in place.rglob("*.nbc")}
