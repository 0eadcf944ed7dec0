"""`python -m benchmarks.choice`: the one step of `wit select` in which one worker is at work, alone.

Pairs are made up: each contains seven of 500,000 queries, whose frequencies follow Zipf's law, in parts of a million.
What is timed, in a process of its own, is the real step from the files of the parts to the files of the fates.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from benchmarks.measure import say, table
from benchmarks.scale import _peak_mb
from pipeline.select.choice import choose, write_ranked
from pipeline.select.config import SelectConfig
from pipeline.select.decide import HASHES, packed
from pipeline.select.shuffle import BySource, Spread

QUERIES: Final = 500_000
LENGTH: Final = 7
PART: Final = 1_000_000


def make(folder: str, size: int) -> None:
    """Writes parts in the order of rank."""
    for part, first in enumerate(range(0, size, PART)):
        rows = min(PART, size - first)
        draw = np.random.default_rng(part)
        ids = np.exp(draw.random(rows * LENGTH) * np.log(QUERIES)).astype(np.int32)
        hashes = np.sort(draw.integers(0, 2**64, rows, dtype=np.uint64))
        columns = {name: pa.array(hashes) for name in HASHES}
        lists = pa.LargeListArray.from_arrays(np.arange(rows + 1) * LENGTH, pa.array(ids))
        write_ranked(folder, part, packed(pa.table({**columns, "query_ids": lists}), part), QUERIES)


def run(folder: str, mode: str, cap: int) -> None:
    """Chooses, and prints what it took as JSON."""
    parts = sorted(int(path.stem) for path in Path(folder).glob("*.arrow"))
    config = SelectConfig(candidates="-", queries="-", cap=cap, mode=mode)  # type: ignore[arg-type]
    kept = 0
    for timed in (False, True):  # the first compiles
        started, spread = time.process_time(), Spread(f"{folder}/fates", BySource(4))
        spread.start_bundle()
        for fates in choose(folder, parts if timed else parts[:1], config, QUERIES):
            kept += fates.num_rows if timed else 0
            list(spread.process(fates))
        list(spread.finish_bundle())
    took = time.process_time() - started
    print(json.dumps({"cpu_s": took, "peak_mb": _peak_mb(), "kept": kept}))


def main() -> None:
    """Measures each size and mode."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, nargs="+", default=[2_000_000, 8_000_000], help="pairs")
    asked.add_argument("--cap", type=int, default=20_000)
    given = asked.parse_args()
    rows = []
    for size in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            _child(f"make({folder!r}, {size})")
            for mode in ("cap", "sample"):
                took = json.loads(_child(f"run({folder!r}, {mode!r}, {given.cap})"))
                each = took["cpu_s"] / size
                say(f"{mode} {size:,}: {took}")
                hours = f"{each * 1e10 / 3600:.2f}"
                rows.append(
                    [
                        mode,
                        f"{size:,}",
                        f"{took['kept']:,}",
                        f"{took['cpu_s']:.1f}",
                        f"{each * 1e6:.3f}",
                        hours,
                        f"{took['peak_mb']:,.0f}",
                    ]
                )
    say(table(["mode", "pairs", "kept", "CPU s", "µs a pair", "hours for 10 billion", "peak MB"], rows))


def _child(call: str) -> str:
    code = f"from benchmarks import choice; choice.{call}"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
