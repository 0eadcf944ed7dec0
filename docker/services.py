"""The compose file without Docker: its services in their order in the trainer's root, and what they leave.

The demo's service writes into a fresh volume, as the image's user and without a network; this checkout's demo of the
same size writes beside it, to the same bytes. The report's service serves the volume, read-only. Then CUDA's libraries
are loaded, and a model is trained on the demo's shards, with compiled blocks too, by a user unknown to the image.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from recipe import HERE, REPOSITORY, Image, Mount, machine_code, run

COMPOSE = HERE / "compose.yaml"
# Results that tell neither time nor place.
COMPARED = re.compile(r"\.(parquet|tar|safetensors|gz)$|/(scores|overlap|leak-check)\.json$")
# CUDA's libraries as torch loads them; all of them but the driver's must be there, GPU or not.
CUDA = """
import ctypes, torch
print("CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version(), "NCCL", torch.cuda.nccl.version(),
      "a GPU" if torch.cuda.is_available() else "no GPU here")
maps = open("/proc/self/maps").read()
wanted = ("cublas", "cublasLt", "cudart", "cudnn", "cufft", "cupti", "curand", "cusolver", "cusparse", "nccl", "nvrtc")
missing = [name for name in wanted if f"/lib{name}.so" not in maps]
assert not missing, f"not loaded with torch: {missing}"
"""
READS_PAGE = """
import sys, time, urllib.request
for _ in range(300):
    try:
        page = urllib.request.urlopen(sys.argv[1]).read()
        break
    except OSError:
        time.sleep(0.2)
assert b"</html>" in page and b"zero-shot" in page.lower(), page[:200]
print(len(page), "bytes of report.html from", sys.argv[1])
"""


@dataclass(frozen=True)
class Service:
    """One service of a compose file.

    Attributes:
        name: Its name.
        image: The image's name.
        command: Program and arguments.
        environment: Variables besides the image's.
        volumes: Named volume, place inside, ``ro`` or ``rw``.
        after: Services that must have ended well before it starts.
    """

    name: str
    image: str
    command: Sequence[str]
    environment: Mapping[str, str]
    volumes: Sequence[tuple[str, str, str]]
    after: Sequence[str]


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """A compose file's text with ``${NAME:-default}`` filled in."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], text)


def services(text: str) -> list[Service]:
    """A compose file's services, each behind those that it waits for.

    Raises:
        SystemExit: They wait for each other, or for one that is not there.
    """
    document = yaml.safe_load(text)
    listed = [
        Service(
            name=name,
            image=given["image"],
            command=given["command"],
            environment=given.get("environment", {}),
            volumes=[_volume(volume) for volume in given.get("volumes", [])],
            after=list(given.get("depends_on", {})),
        )
        for name, given in document["services"].items()
    ]
    ordered: list[Service] = []
    while listed:
        done = {service.name for service in ordered}
        ready = [service for service in listed if set(service.after) <= done]
        if not ready:
            raise SystemExit(f"services wait for what never ends: {[service.name for service in listed]}")
        ordered += ready
        listed = [service for service in listed if service not in ready]
    return ordered


def _volume(text: str) -> tuple[str, str, str]:
    name, place, *mode = text.split(":")
    return name, place, mode[0] if mode else "rw"


def serve(image: Image, service: Service, folder: Path) -> None:
    """Runs a service on a fresh network; asks one that serves for its page, and ends it then.

    Args:
        image: The trainer's.
        service: The service.
        folder: Folder of the host for the volumes; a fresh volume has the owner and mode of its place in the image.
    """
    mounts = []
    for name, place, mode in service.volumes:
        source, inside = folder / name, image.root / place.lstrip("/")
        if not source.exists():
            source.mkdir()
            if inside.exists():
                shutil.copystat(inside, source)
                os.chown(source, inside.stat().st_uid, inside.stat().st_gid)
        mounts.append(Mount(source, place, read_only=mode == "ro"))
    container = replace(image, environment={**image.environment, **service.environment})
    command = shlex.join(service.command)
    print(f"== service {service.name}: {command}", flush=True)
    if "http.server" in service.command:
        port = service.command[service.command.index("http.server") + 1]
        asks = shlex.join(["python", "-c", READS_PAGE, f"http://localhost:{port}/report.html"])
        command = f"{command} & {asks} && kill $!"
    run(container, command, mounts, network=False)


def results(folder: Path) -> dict[str, bytes]:
    """What a demo made, by name; of files that tell time or place the names alone."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [f"/{path.relative_to(folder)}" for path in files]
    return {n: p.read_bytes() if COMPARED.search(n) else b"" for n, p in zip(names, files, strict=True)}


def compare(image: Path, local: Path) -> int:
    """Compares two demos; returns the number of files whose bytes are equal.

    Raises:
        SystemExit: They differ.
    """
    ours, theirs = results(local), results(image)
    if different := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
        raise SystemExit(f"other bytes than this checkout's demo: {different}")
    return sum(bool(COMPARED.search(name)) for name in ours)


def prove_trainer(image: Image) -> None:
    """Runs the compose file's services in the image, and its other uses.

    Args:
        image: The trainer's.
    """
    before = machine_code(image.root)
    listed = services(interpolated(COMPOSE.read_text(), os.environ))
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        work.chmod(0o755)
        for service in listed:
            serve(image, service, work)
        out = work / "runs" / "demo"
        size = listed[0].command[listed[0].command.index("--size") + 1]
        demo = ["demo", "--size", size, "--out", str(work / "local"), "--quiet"]
        print("== the same demo of this checkout", flush=True)
        local = shlex.join([sys.executable, "-m", "pipeline", *demo])
        alone = ["unshare", "--net", "sh", "-c", f"ip link set lo up; exec {local}"]
        subprocess.run(alone, check=True, cwd=REPOSITORY, env={**os.environ, **listed[0].environment})
        same = compare(out, work / "local")
        if new := machine_code(image.root) - before:
            raise SystemExit(f"the image lacks machine code of: {sorted(new)}")
        print(f"{same} files of the demo, the same bytes from the image")
        uses(image, out / "shards", work)


def uses(image: Image, shards: Path, work: Path) -> None:
    """Loads CUDA's libraries, and trains on shards: plainly, compiled, by torchrun, as a user unknown to the image.

    Args:
        image: The trainer's.
        shards: A folder of ``wit fetch`` on the host.
        work: A folder of the host for the results.
    """
    run(image, shlex.join(["python", "-c", CUDA]), network=False)
    data = work / "data"
    data.mkdir()
    os.chown(data, 4321, 4321)
    stranger = replace(image, user="4321:4321")
    mounts = [Mount(shards, "/shards", read_only=True), Mount(data, "/data")]
    train = "train --shards /shards --model RN-tiny --batch-size 32 --steps 3 --warmup-steps 1 --quiet --out /data/"
    for name, command in {
        "plain": f"wit {train}plain --workers 1",
        "compiled": f"wit {train}compiled --compile",
        "torchrun": f"torchrun --nproc_per_node 2 -m pipeline {train}torchrun",
    }.items():
        print(f"== {command}", flush=True)
        run(stranger, command, mounts, network=False)
        if not (data / name / "manifest.json").exists():
            raise SystemExit(f"{command}: no manifest")
