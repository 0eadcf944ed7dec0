"""The search of `wit dedup search` against a bare matrix product, FAISS and torch; one thread, results checked equal.

`python -m benchmarks.search`. The evaluation side lies in memory and the training side is read from Parquet files, as
in the command: ours is the work of one Beam worker, from the file to the k best. The others get the training side from
memory. The bare product makes the same tiles into the same buffer and looks at none of them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa

from benchmarks.measure import say, table
from dedup import lists, tiles
from dedup.config import SearchConfig
from dedup.embed import embeddings_contract, vectors_to_arrow
from dedup.nearest import Best
from dedup.search import PROBES, CompareBlocks
from dedup.vectors import plan_blocks, read_block
from pipeline.core import tables

K = 10
BLOCK_ROWS = SearchConfig().block_rows


def unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Random directions around 2,000 centres, rows of length 1: float32 [N, d]."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((2000, dimension), dtype=np.float32)
    values = centres[draw.integers(0, len(centres), rows)] + draw.standard_normal(
        (rows, dimension), dtype=np.float32
    )
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def write(path: Path, values: np.ndarray, name: str, *, half: bool = False) -> str:
    """A file of ``embeddings/1``."""
    ids = [f"{name}{i * 2654435761 % 2**32:032x}" for i in range(len(values))]
    made = pa.table(
        {"id": ids, "dataset": [name] * len(ids), "embedding": vectors_to_arrow(values, half=half)}
    )
    tables.write_table(str(path), made, embeddings_contract(values.shape[1], half=half))
    return str(path)


def ours(evals: str, train: str, config: SearchConfig, made_lists: str | None = None) -> Best:
    """What one worker does with all blocks, but for loading the evaluation side."""
    worker = CompareBlocks([evals], config, made_lists)
    worker.setup()
    worker.start_bundle()

    def work() -> Best:
        for span in plan_blocks([train], 65_536):
            worker.process(span)
        found = [w.value for w in worker.finish_bundle()]
        return Best(
            key=np.concatenate([best.key for number, best in found if number >= 0]),
            ids=np.concatenate([best.ids for number, best in found if number >= 0]),
        )

    return timed("ours", work)


def bare(queries: np.ndarray, base: np.ndarray, rows: int, columns: int) -> None:
    """The products alone, in tiles [rows, columns]."""
    buffer = np.empty(rows * columns, np.float32)
    for start in range(0, len(base), BLOCK_ROWS):
        block = base[start : start + BLOCK_ROWS]
        for i in range(0, len(queries), rows):
            some = queries[i : i + rows]
            for j in range(0, len(block), columns):
                part = block[j : j + columns]
                np.matmul(some, part.T, out=buffer[: len(some) * len(part)].reshape(len(some), -1))


def by_faiss(queries: np.ndarray, base: np.ndarray) -> np.ndarray:
    """IndexFlatIP over each block of the training side, the blocks' results merged: places int64 [N, k]."""
    import faiss

    held: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(base), BLOCK_ROWS):
        index = faiss.IndexFlatIP(base.shape[1])
        index.add(base[start : start + BLOCK_ROWS])
        likeness, places = index.search(queries, K)
        held = [_best([*held, (likeness, places + start)])]
    return held[0][1]


def by_torch(queries: np.ndarray, base: np.ndarray) -> np.ndarray:
    """``torch.topk`` of each block's product with 1,024 queries, merged: places int64 [N, k]."""
    import torch

    found = []
    for i in range(0, len(queries), 1024):
        held: list[tuple[np.ndarray, np.ndarray]] = []
        some = torch.from_numpy(queries[i : i + 1024])
        for start in range(0, len(base), BLOCK_ROWS):
            product = some @ torch.from_numpy(base[start : start + BLOCK_ROWS]).T
            likeness, places = torch.topk(product, K)
            held = [_best([*held, (likeness.numpy(), places.numpy() + start)])]
        found.append(held[0][1])
    return np.concatenate(found)


def _best(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    likeness = np.concatenate([p[0] for p in parts], axis=1)
    places = np.concatenate([p[1] for p in parts], axis=1)
    order = np.argsort(-likeness, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(likeness, order, axis=1), np.take_along_axis(places, order, axis=1)


_seconds: dict[str, list[float]] = {}


def timed(name: str, work: Callable[[], Any]) -> Any:
    """Runs it, and keeps the process's CPU seconds under a name."""
    started = time.process_time()
    found = work()
    _seconds.setdefault(name, []).append(time.process_time() - started)
    return found


def agreement(best: Best, places: np.ndarray, queries: np.ndarray, base: np.ndarray) -> str:
    """Whether a peer's neighbours have our similarities, and how far off the worst is in units of the last digit."""
    exact = np.einsum("nd,nkd->nk", queries.astype(np.float64), base[places].astype(np.float64))
    off = np.abs(np.rint(-np.sort(-exact, axis=1) * tiles.SCALE) - best.key).max()
    return "yes" if off == 0 else f"NO, off by {off:.0f}e-5"


def measure(folder: Path, queries_rows: int, train_rows: int, dimension: int, rounds: int) -> None:
    """Makes data of one shape, runs everything ``rounds`` times and prints a table."""
    _seconds.clear()
    queries, base = unit(queries_rows, dimension, 1), unit(train_rows, dimension, 2)
    evals = write(folder / "eval.parquet", queries, "e")
    train = write(folder / "train.parquet", base, "t")
    half = write(folder / "half.parquet", base, "t", half=True)
    made_lists = folder / "lists"
    made_lists.write_bytes(lists.make(queries).to_bytes())
    config = SearchConfig(k=K)
    ours(evals, train, config)  # compiles
    _seconds.clear()
    for number in range(rounds):
        say(f"d = {dimension}: round {number + 1} of {rounds}")
        best = ours(evals, train, config)
        timed("bare", lambda: bare(queries, base, tiles.ROWS, tiles.COLUMNS))
        timed("large", lambda: bare(queries, base, 4096, 4096))
        flat = timed("faiss", lambda: by_faiss(queries, base))
        top = timed("torch", lambda: by_torch(queries, base))
        timed("read", lambda: sum(len(ids) for ids, _ in read_block(train, 0, train_rows, BLOCK_ROWS)))
        timed("half", lambda: sum(len(ids) for ids, _ in read_block(half, 0, train_rows, BLOCK_ROWS)))
        kept = _seconds["ours"]
        _seconds["ours"] = []
        coarse = ours(evals, train, SearchConfig(k=K, index="ivf"), str(made_lists))
        _seconds.setdefault("ivf", []).extend(_seconds["ours"])
        _seconds["ours"] = kept
    pairs = queries_rows * train_rows
    best_of = {name: min(seconds) for name, seconds in _seconds.items()}
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(best.ids, coarse.ids, strict=True)])
    names = {
        "bare": f"bare matrix product, the same tiles ({tiles.ROWS} x {tiles.COLUMNS})",
        "large": "bare matrix product, tiles of 4096 x 4096",
        "ours": "ours, from Parquet to the 10 best",
        "faiss": "FAISS IndexFlatIP, merged",
        "torch": "torch matmul and topk, merged",
        "ivf": f"ours, --index ivf --probes {PROBES}; recall {recall:.3f}",
    }
    same = {
        "ours": "",
        "faiss": agreement(best, flat, queries, base),
        "torch": agreement(best, top, queries, base),
    }
    rows = []
    for name, what in names.items():
        second = best_of[name]
        rows.append(
            (what, f"{second:.1f}", f"{pairs / second / 1e9:.3f}", f"{2 * pairs * dimension / second / 1e9:.0f}",
             f"{best_of['bare'] / second:.0%}", same.get(name, ""))
        )  # fmt: skip
    print(
        f"\n{queries_rows:,} evaluation vectors, {train_rows:,} training vectors past them, d = {dimension}, k = {K}\n"
    )
    head = ("what", "CPU s", "Gpairs/s", "GFLOP/s", "of the bare product", "same neighbours")
    print(table(head, rows))
    reading = f"{best_of['read']:.2f} s of it, at half precision {best_of['half']:.2f} s"
    print(f"\nReading and checking the training side takes {reading}.")
    hours = 1e6 * 400e6 / (pairs / best_of["ours"]) / 3600
    print(f"A million against 400 million at this rate: {hours:,.0f} core-hours.")


def main() -> None:
    """Measures two dimensions."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--eval-rows", type=int, default=16_384)
    given.add_argument("--train-rows", type=int, default=131_072)
    given.add_argument(
        "--dimensions", type=int, nargs="+", default=[356, 128], help="356 is the default detector's"
    )
    given.add_argument("--rounds", type=int, default=3)
    args = given.parse_args()
    import faiss
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    for dimension in args.dimensions:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), args.eval_rows, args.train_rows, dimension, args.rounds)


if __name__ == "__main__":
    main()
