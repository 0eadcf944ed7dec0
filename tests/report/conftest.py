"""A small run's folder with every part, made from fakes."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.core import fakes, tables, tars
from pipeline.core.contracts import (
    CANDIDATES,
    EMBEDDINGS,
    NEIGHBOURS,
    PAIRS,
    PREDICTIONS,
    QUERIES,
    QUERY_COUNTS,
    SHARDS,
    pair_id,
)
from pipeline.core.options import RunOptions
from pipeline.core.stage import StageResult, run_stage

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    '"\' onmouseover="alert(3)" style=\'position:fixed',
    "\u202eevil reversed\u202c \u2067rtl שלום עולם, a red circle",
    "a red circle " + "\u0301" * 300 + " with piled marks",
    "a red circle and " + "x" * 1_000_000,
    "nul \x00 and bell \x07 and <!-- a comment --> & &amp; ]]>",
    "averyveryverylongwordwithoutanyspacesthatmustnotpushthegridofsamplepicturesoutofthepageatall" * 2,
)
TOPICS = ("red circle", "blue square", "green triangle", "cross", "on the table", "a photo of")


@dataclass(frozen=True)
class FakeStage:
    """A configuration for folders that no real stage made."""

    cap: int = 200
    seed: int = 0


def finish(
    folder: Path, stage: str, contract: str, rows: int, *, dropped: dict[str, int] | None = None,
    files: dict[str, bytes] | None = None, inputs: tuple[str, ...] = (), **extra: Any,
) -> None:  # fmt: skip
    """Makes a finished folder with a manifest and given files."""
    lost = dropped or {}

    def body(out: str) -> StageResult:
        for name, data in (files or {}).items():
            place = Path(out, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        return StageResult(rows=rows, rows_in=rows + sum(lost.values()), dropped=lost, extra=extra)

    run_stage(
        body, stage=stage, contract=contract, config=FakeStage(), inputs=list(inputs), out=str(folder),
        options=RunOptions(quiet=True),
    )  # fmt: skip


def build_run(root: Path, *, pairs: int = 240) -> Path:
    """A run's folder with every part; deterministic but for the manifests' times."""
    draw = random.Random(7)
    run = root / "run"
    queries = [*TOPICS, *(f"word{i}" for i in range(600))]
    listed = [{"query_id": i, "query": q, "sources": ["word"]} for i, q in enumerate(queries)]
    fakes.finished_folder(str(run / "queries"), QUERIES, pa.Table.from_pylist(listed))
    finish(
        run / "candidates",
        "candidates",
        CANDIDATES.id,
        pairs * 3,
        dropped={"no_text": 300, "data_uri": 41, "opt_out": 25},
    )
    _pairs(run, pairs, draw, queries)
    _shards(run, pairs, draw)
    metrics = _metrics(draw)
    finish(run / "detector", "dedup train", "detector/1", 20, files={"metrics.jsonl": metrics})
    finish(run / "checkpoint", "train", "checkpoint/1", pairs - 30, files={"metrics.jsonl": metrics})
    _evaluation(root, run, draw)
    (run / "note.txt").write_text(
        "Page views are made from <b>links</b>.\nOnly a small world.", encoding="utf-8"
    )
    return run


def _pairs(run: Path, count: int, draw: random.Random, queries: list[str]) -> None:
    rows = []
    for i in range(count):
        url, text = f"http://host{draw.randrange(14)}.test/{i}.jpg", _caption(i)
        rows.append({
            "pair_id": pair_id(url, text), "url": url, "text": text.replace("\x00", ""), "rights": [], "origin": "x",
            "text_source": draw.choice(("alt", "alt", "title", "figcaption")),
            "language": draw.choice(("en", "en", "und")),
            "language_score": 1.0, "query_ids": [0, 1], "query_id": i % len(TOPICS),
        })  # fmt: skip
    matched = [max(1, round(9000 / (i + 1) ** 1.05)) for i in range(len(queries))]
    counts = pa.table(
        {"query_id": range(len(queries)), "matched": matched, "selected": [min(m, 200) for m in matched]}
    )
    lost = tables.dropped_table(
        "select",
        [("language", f"p{i}", draw.choice(("de: <b>hund</b>", "fr", "ja 0.9: 犬"))) for i in range(90)],
    )

    def body(out: str) -> StageResult:
        tables.write_table(f"{out}/part-00000.parquet", PAIRS.conform(pa.Table.from_pylist(rows)), PAIRS)
        tables.write_table(f"{out}/query-counts.parquet", counts, QUERY_COUNTS)
        dropped = {"language": 90, "no_query": count * 2 - 90}
        Path(out, "dropped").mkdir()
        pa.parquet.write_table(lost, f"{out}/dropped/part-00000.parquet")
        extra = {"queries_matched": len(queries), "queries_capped": sum(m > 200 for m in matched)}
        return StageResult(rows=count, rows_in=count * 3, dropped=dropped, extra=extra)

    run_stage(
        body, stage="select", contract=PAIRS.id, config=FakeStage(), inputs=[str(run / "candidates")],
        out=str(run / "pairs"), options=RunOptions(quiet=True),
    )  # fmt: skip


def _caption(i: int) -> str:
    colour, shape = fakes.COLOURS[i % 8], fakes.SHAPES[i // 8 % 4]
    return HOSTILE[i] if i < len(HOSTILE) else f"a photo of a {colour} {shape} on the table, number {i}"


def shard_rows(count: int, draw: random.Random) -> list[tuple[dict[str, object], bytes]]:
    """Rows and pictures of one shard."""
    made: list[tuple[dict[str, object], bytes]] = []
    for i in range(count):
        caption, side = _caption(i), draw.choice((72, 96, 128, 200))
        data = fakes.jpeg(fakes.picture(fakes.COLOURS[i % 8], fakes.SHAPES[i // 8 % 4], size=side, seed=i))
        made.append(({
            "key": tars.sample_key(0, i), "pair_id": pair_id(f"u{i}", caption), "url": f"http://h.test/{i}.jpg",
            "caption": caption, "status": "success", "width": side, "height": side, "original_width": side + 20,
            "original_height": side, "query_ids": [0, i % 6], "query_id": i % (len(TOPICS) + 60),
        }, data))  # fmt: skip
    return made


def _shards(run: Path, count: int, draw: random.Random) -> None:
    kept = shard_rows(count - 30, draw)

    def body(out: str) -> StageResult:
        fakes.write_fake_shard(out, 0, kept)
        return StageResult(rows=count - 30, rows_in=count, dropped={"http_404": 22, "not_an_image": 8})

    run_stage(
        body, stage="fetch", contract=SHARDS.id, config=FakeStage(), inputs=[str(run / "pairs")],
        out=str(run / "shards"), options=RunOptions(quiet=True),
    )  # fmt: skip


def _metrics(draw: random.Random) -> bytes:
    rows = [
        {
            "step": s,
            "loss": 5 * math.exp(-s / 400) + 0.6 + draw.random() * 0.3,
            "scale": 14 + s / 60,
            "lr": 1e-3,
        }
        for s in range(1, 900)
    ]
    return "\n".join(map(json.dumps, rows)).encode()


def _evaluation(root: Path, run: Path, draw: random.Random) -> None:
    pictures = root / "eval"
    pictures.mkdir(exist_ok=True)
    names = [f"{i:03d}.png" for i in range(80)]
    for i, name in enumerate(names):
        fakes.picture(fakes.COLOURS[i % 8], fakes.SHAPES[i // 8 % 4], seed=i).save(pictures / name)
    trained = pa.parquet.read_table(run / "shards" / "00000.parquet")["pair_id"].to_pylist()
    near = [
        {"eval_dataset": "noto", "eval_id": name, "rank": rank, "pair_id": trained[(i + rank * 9) % len(trained)],
         "similarity": (0.9 + i / 320 if i < 30 else draw.uniform(0.2, 0.8)) - rank / 10}
        for i, name in enumerate(names) for rank in range(3)
    ]  # fmt: skip
    fakes.finished_folder(str(run / "neighbours"), NEIGHBOURS, NEIGHBOURS.conform(pa.Table.from_pylist(near)))
    finish(run / "embeddings" / "noto", "dedup embed", EMBEDDINGS.id, 80, inputs=(str(pictures),))
    predictions = [
        {"eval_dataset": "noto", "eval_id": name, "correct": i % 4 == 0, "label": f"<i>{i}</i> shape",
         "predicted": "red circle & co", "rank": i % 4 + 1} for i, name in enumerate(names)
    ]  # fmt: skip
    score = {
        "task": "zero-shot", "dataset": "noto", "n": 80, "metrics": {"top1": 0.25, "top5": 0.6},
        "intervals": {"top1": [0.16, 0.36], "top5": [0.48, 0.71]}, "chance": {"top1": 1 / 32, "top5": 5 / 32},
    }  # fmt: skip
    scores = run / "scores" / "noto"
    fakes.finished_folder(str(scores), PREDICTIONS, PREDICTIONS.conform(pa.Table.from_pylist(predictions)))
    (scores / "scores.json").write_text(json.dumps(score))
    row = {
        "n_all": 80, "n_overlap": 30, "n_clean": 50, "contamination": 0.375, "acc_all": 0.25, "acc_overlap": 0.4,
        "acc_clean": 0.2, "all_minus_clean": 0.05, "p_value": 0.011, "significant": True,
        "significant_bonferroni": False, "ci_low": 0.17, "ci_high": 0.66, "threshold": 0.9, "reviewed": False,
    }  # fmt: skip
    files = {"overlap.json": json.dumps({"datasets": {"noto": row}}).encode(), "overlap.html": b"<p>"}
    finish(run / "overlaps", "dedup report", "overlap/1", 1, files=files)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with every part; tests that change it make their own."""
    return build_run(tmp_path_factory.mktemp("report"))
