"""Proves the images' recipes where there is no Docker: runs their steps in a Debian root, then Beam workers from it.

    python docker/prove.py --root DIR [--image worker|trainer]

`FROM` becomes Debian bookworm by debootstrap, with its Python 3.11 in a virtual environment; `ENV`, `WORKDIR`, `COPY`
and `RUN` are done as they stand, `COPY` through `.dockerignore`. From the worker's root a Beam SDK worker is then
started (environment EXTERNAL), and stages of the small world that a local engine and PortableRunner run give the same
bytes. In the trainer's root the demo runs at its small size. Needs root, debootstrap and a package index.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
SUITE = "bookworm"
DUMP = REPOSITORY / "examples/world/text/enwiki-cut.xml.bz2"
# What a step may know of its host besides the ENV lines: how to reach the package index.
HANDED_ON = re.compile(r"(PIP|UV|SSL|REQUESTS|CURL)_|(HTTPS?|NO)_PROXY$", re.I)
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PYTHON = "/opt/python"
PATH = f"{PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile.

    Attributes:
        name: ``RUN``, ``COPY`` and so on.
        text: The rest of it.
    """

    name: str
    text: str


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
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, SUITE, str(root)], check=True)
    for name in ("resolv.conf", "hosts", "pip.conf"):
        if Path("/etc", name).exists():
            shutil.copyfile(Path("/etc", name), root / "etc" / name)
    if CERTIFICATES.exists():
        shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    if not (root / PYTHON.lstrip("/")).exists():
        run(root, f"python3 -m venv {PYTHON}", "/", {})


def enter(
    root: Path, command: str, folder: str, environment: Mapping[str, str], shared: Path | None
) -> list[str]:
    """The command that runs a shell command inside the root; its mounts end with it.

    Args:
        root: The root.
        command: For ``sh -c``.
        folder: Working directory.
        environment: All variables that it sees.
        shared: Folder of the host that lies at the same place inside.
    """
    mounts = [f"mount -t proc proc {root}/proc", f"mount --bind /dev {root}/dev"]
    if shared is not None:
        mounts += [f"mkdir -p {root}{shared}", f"mount --bind {shared} {root}{shared}"]
    listed = [f"{name}={value}" for name, value in environment.items()]
    inner = ["chroot", str(root), "env", "-i", *listed, "sh", "-ec", f"cd {folder}; {command}"]
    return ["unshare", "--mount", "sh", "-ec", "; ".join([*mounts, f"exec {shlex.join(inner)}"])]


def surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables inside: the image's, and how to reach the package index."""
    handed = {name: value for name, value in os.environ.items() if HANDED_ON.match(name)}
    return {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **handed, **environment}


def run(
    root: Path, command: str, folder: str, environment: Mapping[str, str], shared: Path | None = None
) -> None:
    """Runs a shell command inside the root to its end."""
    subprocess.run(enter(root, command, folder, surroundings(environment), shared), check=True)


def build(root: Path, dockerfile: Path) -> dict[str, str]:
    """Does a Dockerfile's steps inside the root; returns its variables."""
    environment: dict[str, str] = {}
    folder = "/"
    files = context()
    for step in steps(dockerfile.read_text()):
        print(f"== {step.name} {step.text}", flush=True)
        if step.name == "FROM":
            make_base(root)
        elif step.name == "ENV":
            environment |= variables(step.text)
        elif step.name == "WORKDIR":
            folder = step.text
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.name == "COPY":
            copy(root / folder.lstrip("/"), step.text, files)
        elif step.name == "RUN":
            run(root, step.text, folder, environment)
        elif step.name != "CMD":
            raise SystemExit(f"{dockerfile}: this program does not know {step.name}")
    return environment


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


@contextmanager
def worker(root: Path, environment: Mapping[str, str], shared: Path) -> Iterator[int]:
    """A Beam worker pool inside the root; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"exec python -m apache_beam.runners.worker.worker_pool_main --service_port={port}"
    started = subprocess.Popen(enter(root, command, "/", surroundings(environment), shared))
    try:
        for _ in range(1500):  # a busy machine takes minutes to import Beam
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        else:
            raise SystemExit("the worker pool did not start")
        yield port
    finally:
        started.terminate()
        started.wait()


def stages(out: Path, beam: Sequence[str], wanted: Sequence[str]) -> None:
    """Runs stages of the small world with the checkout's own Python."""
    given = out.parent
    commands = {
        "queries": ["--wikipedia", str(given / DUMP.name), "--size", "3000", "--min-count", "20"],
        "candidates": ["--table", str(given / "captions.tsv")],
        "select": ["--candidates", str(out / "candidates"), "--queries", str(out / "queries")],
        "dedup embed": ["--images", str(given / "pictures")],
        "dedup search": ["--train", str(out / "dedup-embed"), "--eval", str(out / "dedup-embed")],
        "dedup groups": ["--train", str(out / "dedup-embed"), "--threshold", "0.9"],
    }
    for name, flags in commands.items():
        if wanted and name not in wanted:
            continue
        folder = str(out / name.replace(" ", "-"))
        print(f"== wit {name}", *beam, flush=True)
        words = [
            sys.executable,
            "-m",
            "pipeline",
            *name.split(),
            *flags,
            "--out",
            folder,
            "--quiet",
            "--",
            *beam,
        ]
        subprocess.run(words, check=True, cwd=REPOSITORY)


def inputs(folder: Path) -> None:
    """A dump, captions and pictures for the stages."""
    from PIL import Image

    shutil.copyfile(DUMP, folder / DUMP.name)
    words = (REPOSITORY / "README.md").read_text().split()
    rows = [f"http://example.org/{n}.jpg\tThe {' '.join(words[n : n + 6])}" for n in range(0, 400, 2)]
    (folder / "captions.tsv").write_text("url\ttext\n" + "\n".join(r.replace('"', "") for r in rows) + "\n")
    (folder / "pictures").mkdir()
    for n in range(8):
        made = Image.radial_gradient("L").rotate(12 * n).resize((64 + n, 64))
        made.save(folder / "pictures" / f"{n}.png")


def parts(folder: Path) -> dict[str, bytes]:
    """The tables of a run."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}


def machine_code(root: Path) -> set[str]:
    """The compiled functions that lie in the root."""
    return {str(path.relative_to(root)) for path in (root / PYTHON.lstrip("/")).rglob("*.nbc")}


def prove_worker(root: Path, environment: Mapping[str, str], wanted: Sequence[str]) -> None:
    """Runs stages here and on a worker of the root, and compares them."""
    before = machine_code(root)
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        inputs(work)
        with worker(root, environment, work) as port:
            stages(work / "local", [], wanted)
            external = ("--environment_type=EXTERNAL", f"--environment_config=localhost:{port}")
            stages(work / "image", ["--runner=PortableRunner", "--job_endpoint=embed", *external], wanted)
        local, image = parts(work / "local"), parts(work / "image")
        different = [name for name in local if local[name] != image.get(name)]
        if different or len(local) != len(image):
            raise SystemExit(f"other bytes than the local engine's: {different or sorted(image)}")
        if new := machine_code(root) - before:
            raise SystemExit(f"the image lacks machine code of: {sorted(new)}")
        print(
            f"{len(local)} tables, the same bytes from the image's worker; {len(before)} functions compiled in it"
        )


def main() -> None:
    """Builds an image's root and tries it."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--root", type=Path, required=True, help="folder for the Debian root; some 8 GB")
    asked.add_argument("--image", choices=("worker", "trainer"), default="worker")
    asked.add_argument("--built", action="store_true", help="the root is built already: only try it")
    asked.add_argument("--stages", nargs="+", default=[], help="of the worker: only these (default: all)")
    args = asked.parse_args()
    root = args.root.resolve()
    dockerfile = HERE / f"{args.image}.Dockerfile"
    if args.built:
        listed = [variables(s.text) for s in steps(dockerfile.read_text()) if s.name == "ENV"]
        environment = {name: value for found in listed for name, value in found.items()}
    else:
        environment = build(root, dockerfile)
    if args.image == "worker":
        prove_worker(root, environment, args.stages)
    else:
        run(root, "wit demo --size tiny --out /tmp/demo --quiet", "/", environment)


if __name__ == "__main__":
    main()
