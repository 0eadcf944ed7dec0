"""How each Beam stage grows: CPU seconds, memory and bytes on the way at 1, 4 and 16 times a base size.

`python -m benchmarks.scale measure` runs every stage at those sizes and at the least size there is (its start), one
process and one thread each, and writes what it measured to `pipeline/core/measured.json`, which `docs/scale.md` shows;
`one` runs stages at one size (`--size`). `page` writes `docs/scale.md` and its chart again. `workers` compares the wall
time of one and two worker processes, a CPU each: only on an idle machine.

A run is measured from inside (`child`): CPU time and peak memory within Beam's pipelines, which is what workers do, and
in all, which includes what the machine that submits does itself; and the bytes of all files that a stage writes and
removes again, for rows wait in files and not in the engine's shuffle.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.measure import say, table
from pipeline.core.scaling import MEASURED

REPOSITORY = Path(__file__).parents[1]
FACTORS = (1, 4, 16)
DIMENSION = 356  # of the detector that ships
EVALUATION = 2_000
PARTS = 8  # files of an input, so that workers can share it
MOST_OF_ONE = 0.6  # of one worker's time, for two


@dataclass(frozen=True, kw_only=True)
class Case:
    """One stage to measure.

    Attributes:
        make: Makes inputs of a size in a folder and returns the command's flags.
        base: The base size, in units.
        shared: Size for two workers: eight elements for them to share, or more.
        flags: More flags for two workers.
    """

    make: Callable[[Path, int], list[str]]
    base: int
    shared: int
    flags: tuple[str, ...] = ()


def dump(folder: Path, size: int) -> list[str]:
    """MB of XML."""
    from benchmarks.dump import make

    make(folder / "enwiki-multistream.xml.bz2", size, processes=1)
    return ["--wikipedia", str(folder), "--wordnet", "none", "--min-count", "20"]


def pages(folder: Path, size: int) -> list[str]:
    """Pages of the small world as WARC, each copy under another host."""
    from warcio.warcwriter import WARCWriter

    found = sorted((REPOSITORY / "examples/world/web").rglob("*.html"))
    (folder / "warc").mkdir()
    for part in range(PARTS):
        with (folder / f"warc/{part}.warc.gz").open("wb") as file:
            writer = WARCWriter(file, gzip=True)
            for n in range(part, size, PARTS):
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
                answer = io.BytesIO(head + found[n % len(found)].read_bytes())
                made = writer.create_warc_record(f"http://h{n}.example/", "response", payload=answer)
                writer.write_record(made)
    return ["--warc", str(folder / "warc")]


def captions(folder: Path, size: int) -> list[str]:
    """Candidates, and 50,000 queries."""
    from benchmarks.captions import Captions, write_candidates, write_queries

    made = Captions(50_000)
    queries = write_queries(folder / "queries", made.queries)
    return ["--candidates", write_candidates(folder / "candidates", made, size), "--queries", queries]


@lru_cache
def photo(seed: int) -> bytes:
    """A picture with something at every scale, 0.8 megapixels, about 100 kB of JPEG."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(seed)
    whole = np.zeros((768, 1024, 3), np.float32)
    for side, weight in ((4, 90), (16, 45), (64, 22), (256, 8)):
        noise = draw.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8)
        whole += (
            np.asarray(Image.fromarray(noise).resize((1024, 768), Image.Resampling.BICUBIC), np.float32)
            * weight
        )
    file = io.BytesIO()
    Image.fromarray((whole / 165).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def links(folder: Path, size: int) -> list[str]:
    """Pairs whose pictures the serving process has: see :func:`served`."""
    import pyarrow as pa

    from pipeline.core.contracts import PAIRS, pair_id
    from pipeline.core.fakes import fake_table, finished_folder

    rows = fake_table(PAIRS, size).to_pylist()
    for n, row in enumerate(rows):
        row["url"] = f"http://127.0.0.{1 + n % 50}:{os.environ['SCALE_PORT']}/{n}.jpg"
        row["pair_id"] = pair_id(row["url"], row["text"])
    finished_folder(str(folder / "pairs"), PAIRS, pa.Table.from_pylist(rows, schema=PAIRS.schema))
    return [
        "--pairs", str(folder / "pairs"), "--allow-address", "127.0.0.0/8", "--host-gap-s", "0",
    ]  # fmt: skip


def pictures(folder: Path, size: int) -> list[str]:
    """A folder of pictures as `wit fetch` stores them, 340 by 256."""
    from PIL import Image

    (folder / "pictures").mkdir()
    for n in range(size):
        with Image.open(io.BytesIO(photo(n % 50))) as opened:
            made = opened.resize((340, 256)).rotate(n // 50)
        made.save(folder / "pictures" / f"{n:06d}.jpg", quality=92)
    return ["--images", str(folder / "pictures")]


def vectors(folder: Path, name: str, rows: int, seed: int) -> str:
    """Embeddings around 2,000 centres."""
    import numpy as np
    import pyarrow as pa

    from benchmarks.captions import Made
    from dedup.embed import embeddings_contract, vectors_to_arrow
    from pipeline.core import tables
    from pipeline.core.stage import RunOptions, StageResult, run_stage

    centres = np.random.default_rng(0).standard_normal((2000, DIMENSION), dtype=np.float32)
    draw = np.random.default_rng(seed)
    values = centres[draw.integers(0, 2000, rows)] + draw.standard_normal((rows, DIMENSION), dtype=np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    columns = {
        "id": [f"{name}{n:09d}" for n in range(rows)],
        "dataset": [name] * rows,
        "embedding": vectors_to_arrow(values),
    }
    table, contract = pa.table(columns), embeddings_contract(DIMENSION)

    def body(out: str) -> StageResult:
        with tables.PartWriter(out, contract, part_rows=max(1, -(-rows // PARTS))) as writer:
            writer.write(table)
        return StageResult(rows=rows, rows_in=rows)

    run_stage(
        body, stage="dedup embed", contract=contract.id, config=Made(rows),
        inputs=[], out=str(folder / name), options=RunOptions(quiet=True),
    )  # fmt: skip
    return str(folder / name)


def both_sides(folder: Path, size: int) -> list[str]:
    """Training pictures, against 2,000 of an evaluation set."""
    train, evaluation = vectors(folder, "train", size, 1), vectors(folder, "eval", EVALUATION, 2)
    return ["--train", train, "--eval", evaluation]


def one_side(folder: Path, size: int) -> list[str]:
    """Training pictures, against each other."""
    return ["--train", vectors(folder, "train", size, 1), "--threshold", "0.9"]


BLOCKS = ("--set", "dedup.groups.block_rows=1500")
CASES = {
    "queries": Case(make=dump, base=16, shared=250),
    "candidates": Case(make=pages, base=1_000, shared=16_000),
    "select": Case(make=captions, base=10_000, shared=524_288),
    "fetch": Case(make=links, base=40, shared=1_000),
    "dedup embed": Case(make=pictures, base=40, shared=2_048),
    "dedup search": Case(make=both_sides, base=20_000, shared=640_000),
    "dedup groups": Case(make=one_side, base=4_000, shared=24_000, flags=BLOCKS),
    "dedup groups --index ivf": Case(make=one_side, base=10_000, shared=320_000),
}


@contextlib.contextmanager
def served() -> Iterator[int]:
    """A process that serves fifty pictures under any name; gives its port."""
    code = "from benchmarks.scale import serve; serve()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def serve() -> None:
    """Answers `/N.jpg` with a picture, and anything else with 404."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    made = [photo(n) for n in range(50)]

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.strip("/").removesuffix(".jpg")
            body = made[int(name) % 50] if name.isdigit() else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("0.0.0.0", 0), Answer)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


def child(words: Sequence[str]) -> None:
    """Runs a command and prints what it took as JSON, on its last line."""
    import apache_beam as beam

    from pipeline.cli import main
    from pipeline.core import manifest, paths

    if "SCALE_CPUS" in os.environ:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(os.environ["SCALE_CPUS"])])
    took = {"pipeline_s": 0.0, "pipeline_mb": 0.0, "waiting_bytes": 0.0}
    run_whole, remove_whole = beam.Pipeline.run, paths.remove

    def run(self: beam.Pipeline, *args: Any, **named: Any) -> Any:
        inner = sys._getframe(1).f_code is run_whole.__code__  # Beam calls itself once, on a copy
        before = _cpu()
        result = run_whole(self, *args, **named)
        if not inner:
            took["pipeline_s"] += _cpu() - before
            took["pipeline_mb"] = _peak_mb()
        return result

    def remove(path: str) -> None:
        fs, name = paths.filesystem(path)
        if fs.exists(name):
            took["waiting_bytes"] += fs.du(name)
        remove_whole(path)

    with mock.patch.object(beam.Pipeline, "run", run), mock.patch.object(paths, "remove", remove):
        status = main(list(words))
    out = words[words.index("--out") + 1]
    rows = manifest.read(out).rows_in if status == 0 else 0
    sys.stdout.write("\n" + json.dumps({**took, "cpu_s": _cpu(), "peak_mb": _peak_mb(), "rows": rows}) + "\n")
    sys.stdout.flush()
    sys.exit(status)


def _cpu() -> float:
    """CPU seconds of this process and of those of its children that have ended."""
    of = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in of)


def _peak_mb() -> float:
    # Not getrusage: a process that was started takes over the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def run_child(
    stage: str, flags: Sequence[str], out: Path, beam: Sequence[str] = (), cpus: int | None = None
) -> dict[str, float]:
    """Runs one stage in a process of its own, held to some of the CPUs, and returns what it took."""
    words = [*stage.split(), *flags, "--out", str(out), "--quiet", *(["--", *beam] if beam else [])]
    code = "import sys; from benchmarks.scale import child; child(sys.argv[1:])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if cpus:
        environment["SCALE_CPUS"] = str(cpus)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"wit {' '.join(words)}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "wall_s": time.monotonic() - started}


def one(stage: str, size: int) -> dict[str, float]:
    """Measures a stage at one size."""
    with tempfile.TemporaryDirectory() as made, _port(stage):
        flags = CASES[stage].make(Path(made), size)
        took = run_child(stage, flags, Path(made) / "out")
    found = {
        "size": float(size),
        **{name: round(value, 2) for name, value in took.items() if name != "wall_s"},
    }
    say(f"{stage} {size:,}: {found}")
    return found


def least(stage: str, size: int, rounds: int) -> dict[str, float]:
    """Of several runs the one that took the least CPU time: others' work only adds to it."""
    return min((one(stage, size) for _ in range(rounds)), key=lambda found: found["cpu_s"])


def measure(names: Sequence[str], path: Path, rounds: int) -> None:
    """Measures stages at all sizes; results of stages that are not named stay as they are."""
    for stage in names:
        case = CASES[stage]
        # A base takes little more than the start: what a single run is off by would hide how the stage grows.
        points = [least(stage, size, rounds) for size in (1, case.base)]
        points += [one(stage, case.base * factor) for factor in FACTORS[1:]]
        kept = {**(json.loads(path.read_text()) if path.exists() else {}), stage: points}
        path.write_text(json.dumps({name: kept[name] for name in CASES if name in kept}, indent=1) + "\n")


@contextlib.contextmanager
def _port(stage: str) -> Iterator[None]:
    if stage != "fetch":
        yield
        return
    with served() as port:
        os.environ["SCALE_PORT"] = str(port)
        yield


def workers(names: Sequence[str], rounds: int) -> None:
    """Wall seconds of one worker process on one CPU, of one that may use two (it decodes ahead), and of two."""
    say(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs: trust the figures of an idle machine only\n"
    )
    rows = []
    for stage in names:
        case = CASES[stage]
        least: dict[tuple[int, int, int], float] = {}
        with tempfile.TemporaryDirectory() as made, _port(stage):
            whole = Path(made)
            flags = {}
            for size in (1, case.shared):
                (whole / str(size)).mkdir()
                flags[size] = [*case.make(whole / str(size), size), *case.flags]
            order = [(size, *held) for size in flags for held in ((1, 1), (1, 2), (2, 2))] * rounds
            random.Random(0).shuffle(order)
            for n, (size, count, cpus) in enumerate(order):
                beam = [f"--direct_num_workers={count}", "--direct_running_mode=multi_processing"]
                took = run_child(stage, flags[size], whole / f"out{n}", beam, cpus)["wall_s"]
                least[size, count, cpus] = min(took, least.get((size, count, cpus), took))
            start, full = flags
        alone, free, two = (least[full, *held] - least[start, *held] for held in ((1, 1), (1, 2), (2, 2)))
        verdict = "yes" if two <= MOST_OF_ONE * alone else "no"
        rows.append(
            [
                stage,
                f"{alone:.1f}",
                f"{free:.1f}",
                f"{two:.1f}",
                f"{two / alone:.2f}",
                verdict,
                f"{two / free:.2f}",
            ]
        )
    heads = ("1 worker, 1 CPU, s", "1 worker, 2 CPUs, s", "2 workers, 2 CPUs, s")
    say(table(["stage", *heads, "ratio", f"at most {MOST_OF_ONE}", "ratio to 1 worker, 2 CPUs"], rows))


def main() -> None:
    """Reads what to do from the command line."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("what", choices=("measure", "one", "page", "workers"))
    asked.add_argument("--stages", nargs="+", choices=tuple(CASES), default=list(CASES))
    asked.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="the least of so many is taken; `measure`: of start and base size",
    )
    asked.add_argument("--size", type=int, default=1, help="of `one`, in the stage's units")
    given = asked.parse_args()
    if given.what == "measure":
        measure(given.stages, REPOSITORY / "pipeline/core" / MEASURED, given.rounds)
    elif given.what == "one":
        for stage in given.stages:
            one(stage, given.size)
    elif given.what == "workers":
        workers(given.stages, given.rounds)
    else:
        from benchmarks import scale_page

        scale_page.write()


if __name__ == "__main__":
    main()
