"""Proves the images' recipes where there is no Docker: does their steps in a Debian root, then uses what came out.

    python docker/prove.py --root DIR [--image worker|trainer] [--built]

From the worker's root a Beam SDK worker is started (environment EXTERNAL), and stages of the small world that a local
engine and PortableRunner run give the same bytes. In the trainer's root the compose file's services run in their order,
without a network, and the demo gives the bytes of this checkout's (`services.py`). In both no cache is left and nothing
is compiled that the image does not hold. Needs root, debootstrap, unshare and a package index.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from recipe import HERE, REPOSITORY, Image, Mount, build, built, enter, leftovers, machine_code, size_bytes
from services import prove_trainer

DUMP = REPOSITORY / "examples/world/text/enwiki-cut.xml.bz2"


@contextmanager
def worker(image: Image, shared: Path) -> Iterator[int]:
    """A Beam worker pool inside the root; gives its port.

    Args:
        image: The worker's image.
        shared: Folder of the host that lies at the same place inside.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["python", "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    started = subprocess.Popen(enter(image, words, [Mount(shared, str(shared))]))
    try:
        for _ in range(1500):  # a busy machine takes minutes to import Beam
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if started.poll() is not None:
                raise SystemExit(f"the worker pool ended with exit status {started.returncode}")
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


def prove_worker(image: Image, wanted: Sequence[str]) -> None:
    """Runs stages here and on a worker of the root, and compares them."""
    before = machine_code(image.root)
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        inputs(work)
        with worker(image, work) as port:
            stages(work / "local", [], wanted)
            external = ("--environment_type=EXTERNAL", f"--environment_config=localhost:{port}")
            stages(work / "image", ["--runner=PortableRunner", "--job_endpoint=embed", *external], wanted)
        local, image_parts = parts(work / "local"), parts(work / "image")
    different = [name for name in local if local[name] != image_parts.get(name)]
    if different or len(local) != len(image_parts):
        raise SystemExit(f"other bytes than the local engine's: {different or sorted(image_parts)}")
    if new := machine_code(image.root) - before:
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
    started = time.monotonic()
    image = built(root, dockerfile) if args.built else build(root, dockerfile)
    if not args.built:
        if left := leftovers(root):
            raise SystemExit(f"the image holds {len(left)} files of caches: {left[:5]}")
        print(
            f"built in {time.monotonic() - started:.0f} s, {size_bytes(root) / 1e9:.2f} GB, user {image.user}"
        )
    if args.image == "worker":
        prove_worker(image, args.stages)
    else:
        prove_trainer(image)
    print(f"proved in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
