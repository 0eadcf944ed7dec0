"""`python -m benchmarks.choice`: what `wit select` decides between its filter and its writing.

Pairs are made up: each contains seven of 500,000 queries, whose frequencies follow Zipf's law. Two things are timed,
each in a process of its own: the choice, in which one worker is at work alone, from the files of ranked parts of a
million pairs to the files of the fates; and the largest part of rows that a worker has, of which many have one at
once, from its pieces through duplicates and captions to its rank.
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
from pipeline.select.decide import HASHES, packed, thinned, united
from pipeline.select.shuffle import ByHash, BySource, Spread, gathered
from pipeline.select.stage import PACKED_ROWS

QUERIES: Final = 500_000
LENGTH: Final = 7
PART: Final = 1_000_000


def made(part: int, rows: int) -> pa.Table:
    """Packed rows; one in ten is a duplicate, one in a hundred has a caption that many have."""
    draw = np.random.default_rng(part)
    columns = {name: draw.integers(0, 2**64, rows, dtype=np.uint64) for name in HASHES}
    for name in ("key_high", "key_low"):
        columns[name][::10] = columns[name][1::10][: len(columns[name][::10])]
    columns["caption_hash"][::100] %= np.uint64(20)
    ids = np.exp(draw.random(rows * LENGTH) * np.log(QUERIES)).astype(np.int32)
    lists = pa.LargeListArray.from_arrays(np.arange(rows + 1) * LENGTH, pa.array(ids))
    named = {name: pa.array(values) for name, values in columns.items()}
    return packed(pa.table({**named, "query_ids": lists}), part)


def make_ranked(folder: str, size: int) -> None:
    """Writes parts in the order of rank."""
    for part, first in enumerate(range(0, size, PART)):
        write_ranked(folder, part, made(part, min(PART, size - first)), QUERIES)


def make_pieces(folder: str, size: int) -> None:
    """Writes one part as the step before it does."""
    spread = Spread(folder, ByHash("key_high", 1))
    spread.start_bundle()
    chunks = [
        chunk for n in range(0, size, 65_536) for chunk in spread.process(made(n, min(65_536, size - n)))
    ]
    chunks += [held.value for held in spread.finish_bundle()]
    Path(folder, "chunks.json").write_text(json.dumps([chunk for _, chunk in chunks]))


def decide(folder: str) -> None:
    """Decides over that part, and prints what it took as JSON."""
    chunks = [(path, start, end) for path, start, end in json.loads(Path(folder, "chunks.json").read_text())]
    before, started = _peak_mb(), time.process_time()
    rows = thinned(united(gathered(chunks))[0], 1_000)[0]
    write_ranked(folder, 0, rows, QUERIES)
    took = time.process_time() - started
    print(json.dumps({"cpu_s": took, "peak_mb": _peak_mb(), "before_mb": before, "kept": rows.num_rows}))


def chosen(folder: str, mode: str, cap: int) -> None:
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
    with tempfile.TemporaryDirectory() as folder:
        _child(f"make_pieces({folder!r}, {PACKED_ROWS})")
        say(f"a part of {PACKED_ROWS:,}: {json.loads(_child(f'decide({folder!r})'))}")
    for size in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            _child(f"make_ranked({folder!r}, {size})")
            for mode in ("cap", "sample"):
                took = json.loads(_child(f"chosen({folder!r}, {mode!r}, {given.cap})"))
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
