"""Which pictures the page shows: chosen by hashes, so that the same run always shows the same ones."""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from pipeline.core import paths, tables, tars
from pipeline.core.contracts import NEIGHBOURS, PREDICTIONS
from pipeline.core.errors import InputError
from pipeline.report.figures import AbsentError, Run, query_names, shard_files
from pipeline.report.results import thresholds

# A sample is drawn from at most so many shards, evenly spread: a run of thousands need not be read whole.
MAX_SHARDS = 16
MAX_BATCHES = 4
THUMBNAIL_PIXELS = 144
MAX_PICTURE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A fetched pair: picture as a ``data:`` URI (``None`` if it cannot be shown), caption and query."""

    pair_id: str
    key: str
    shard: str
    caption: str
    query_id: int
    query: str | None = None
    matches: int = 1
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class Leak:
    """An evaluation picture and the training picture it is too like."""

    dataset: str
    eval_id: str
    similarity: float
    picture: str | None
    trained: Pair | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """An evaluation picture, its truth, what the model took it for, and which of its guesses was right.

    ``guesses`` holds the best classes' names with their probabilities, where the run kept them.
    """

    eval_id: str
    correct: bool
    truth: str
    predicted: str
    rank: int | None
    picture: str | None
    guesses: tuple[tuple[str, float], ...] = ()


def draw(name: str, salt: str) -> str:
    """The lot that decides whether a row is shown: a hash of its name."""
    return hashlib.sha256(f"{salt}\0{name}".encode(errors="replace")).hexdigest()


def spread(files: Sequence[str], count: int) -> list[str]:
    """At most ``count`` files, evenly over the list, the first always among them."""
    if len(files) <= count:
        return list(files)
    return [files[i * len(files) // count] for i in range(count)]


def sample_pairs(run: Run, *, count: int = 42) -> list[Pair]:
    """Fetched pairs of as many different queries as possible, with their pictures.

    Each query puts forward the pair with its smallest lot, and the smallest lots among queries win; a run with fewer
    queries than ``count`` fills up with further pairs.
    """
    best: dict[int, tuple[str, Pair]] = {}
    others: list[tuple[str, Pair]] = []
    for pair in _fetched(spread(shard_files(run), MAX_SHARDS)):
        lot = (draw(pair.pair_id, "pairs"), pair)
        held = best.get(pair.query_id)
        best[pair.query_id] = lot if held is None or lot[0] < held[0] else held
        others.append(lot)
        if len(others) > 4 * count:
            others = heapq.nsmallest(count, others, key=_lot)
    chosen = [
        p for _, p in sorted(best.values(), key=lambda entry: draw(str(entry[1].query_id), "queries"))[:count]
    ]
    taken = {p.pair_id for p in chosen}
    more = [p for _, p in sorted(others, key=_lot) if p.pair_id not in taken]
    chosen += more[: count - len(chosen)]
    if not chosen:
        raise AbsentError("no image was fetched")
    names = query_names(run, [p.query_id for p in chosen])
    return [replace(p, query=names.get(p.query_id)) for p in with_pictures(run, chosen)]


def _lot(entry: tuple[str, Pair]) -> str:
    return entry[0]


def _fetched(files: Sequence[str], wanted: pa.Array | None = None) -> Iterator[Pair]:
    columns = ["pair_id", "key", "caption", "status", "query_id", "query_ids"]
    for file in files:
        shard = file.rpartition("/")[2].removesuffix(".parquet")
        for batch in tables.read_batches([file], columns=columns):
            kept = batch.filter(pc.equal(batch["status"], "success"))
            if wanted is not None:
                kept = kept.filter(pc.is_in(kept["pair_id"], value_set=wanted))
            for row in kept.to_pylist():
                yield Pair(
                    pair_id=row["pair_id"],
                    key=row["key"],
                    shard=shard,
                    caption=row["caption"],
                    query_id=row["query_id"],
                    matches=len(row["query_ids"]),
                )


def dropped_examples(run: Run, part: str, *, count: int = 3) -> dict[str, list[str]]:
    """For each reason, what some dropped rows say of themselves: their detail, or their id where they have none."""
    folder = paths.join(run.part(part), "dropped")
    files = paths.list_files(folder, suffixes=(".parquet",)) if paths.exists(folder) else []
    drawn: dict[str, dict[str, str]] = {}
    for file in spread(files, MAX_SHARDS):
        for batch in islice(tables.read_batches([file], columns=["reason", "id", "detail"]), MAX_BATCHES):
            for row in batch.to_pylist():
                told = row["detail"] or row["id"]
                held = drawn.setdefault(row["reason"], {})
                held[told] = draw(told, "dropped")
                if len(held) > 16 * count:
                    drawn[row["reason"]] = dict(heapq.nsmallest(count, held.items(), key=_second))
    return {r: [t for t, _ in heapq.nsmallest(count, held.items(), key=_second)] for r, held in drawn.items()}


def _second(entry: tuple[str, str]) -> str:
    return entry[1]


def with_pictures(run: Run, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with their pictures from the shards' tars; one that cannot be read stays without."""
    folder, found = run.part("shards"), {}
    for shard in sorted({p.shard for p in pairs}):
        wanted = {p.key for p in pairs if p.shard == shard}
        try:
            for sample in tars.read_shard(paths.join(folder, f"{shard}.tar")):
                if sample.key in wanted:
                    wanted.discard(sample.key)
                    data = next((d for e, d in sample.members.items() if e not in ("txt", "json")), b"")
                    found[shard, sample.key] = thumbnail(data)
                if not wanted:
                    break
        except InputError:
            continue
    return [replace(p, picture=found.get((p.shard, p.key))) for p in pairs]


def thumbnail(data: bytes, *, pixels: int = THUMBNAIL_PIXELS) -> str | None:
    """A picture as a small WebP ``data:`` URI on white; ``None`` for what is no readable picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(io.BytesIO(data)) as opened:
                opened.draft("RGB", (2 * pixels, 2 * pixels))
                picture = opened.convert("RGBA")
        picture.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
        ground = Image.new("RGBA", picture.size, "white")
        ground.alpha_composite(picture)
        buffer = io.BytesIO()
        ground.convert("RGB").save(buffer, "WEBP", quality=80, method=4)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Leaks:
    """The leaks shown, most similar first, and how many there are in all."""

    shown: list[Leak]
    total: int
    thresholds: Mapping[str, float]


def leaks(run: Run, *, count: int = 24) -> Leaks:
    """Evaluation pictures at or above their data set's threshold, beside the nearest training picture.

    Of more than ``count``, the shown ones are spread evenly from the most similar to the one that only just counts.
    """
    run.part("neighbours")
    limits = thresholds(run)
    if not limits:
        raise AbsentError("without an overlap report there is no threshold to call a picture a leak")
    found = _over(run, limits)
    last = max(1, len(found) - 1)
    ranks = (
        range(len(found)) if len(found) <= count else [round(i * last / (count - 1)) for i in range(count)]
    )
    chosen = [found[i] for i in ranks]
    trained = _trained(run, [row["pair_id"] for row in chosen])
    shown = [
        Leak(
            dataset=row["eval_dataset"],
            eval_id=row["eval_id"],
            similarity=row["similarity"],
            picture=evaluation_picture(run, row["eval_dataset"], row["eval_id"]),
            trained=trained.get(row["pair_id"]),
        )
        for row in chosen
    ]
    return Leaks(shown, len(found), limits)


def _over(run: Run, limits: Mapping[str, float]) -> list[dict[str, Any]]:
    best: dict[tuple[str, str], dict[str, Any]] = {}
    columns = ["eval_dataset", "eval_id", "pair_id", "similarity"]
    for batch in tables.read_batches(tables.part_files(run.part("neighbours"), NEIGHBOURS), columns=columns):
        for row in batch.filter(pc.greater_equal(batch["similarity"], min(limits.values()))).to_pylist():
            name = (row["eval_dataset"], row["eval_id"])
            if row["similarity"] >= limits.get(row["eval_dataset"], float("inf")):
                held = best.get(name)
                best[name] = row if held is None or row["similarity"] > held["similarity"] else held
    return sorted(best.values(), key=lambda r: (-r["similarity"], r["eval_dataset"], r["eval_id"]))


def _trained(run: Run, pair_ids: Sequence[str]) -> dict[str, Pair]:
    try:
        found = list(_fetched(shard_files(run), pa.array(pair_ids, pa.string())))
        return {p.pair_id: p for p in with_pictures(run, found)}
    except InputError:
        return {}


def evaluation_picture(run: Run, dataset: str, eval_id: str) -> str | None:
    """A picture of an evaluation set, if the run's manifests say where the set lies and it still does."""
    if eval_id.startswith("/") or ".." in eval_id.split("/"):
        return None
    for part in (f"embeddings/{dataset}", f"scores/{dataset}"):
        made = run.stages.get(part)
        for described in made.inputs if made else ():
            file = paths.join(str(described.get("path", "")), eval_id)
            try:
                if paths.exists(file) and paths.size(file) <= MAX_PICTURE_BYTES:
                    return thumbnail(paths.read_bytes(file))
            except (InputError, OSError):
                continue
    return None


def class_names(run: Run, dataset: str) -> dict[str, str]:
    """Names of an evaluation set's classes by folder, where the evaluation was given a file of them."""
    made = run.stages.get(f"scores/{dataset}")
    file = made.config.get("class_names") if made else None
    try:
        if not isinstance(file, str) or not paths.exists(file) or paths.size(file) > MAX_PICTURE_BYTES:
            return {}
        lines = paths.read_bytes(file).decode(errors="replace").splitlines()
    except (InputError, OSError):
        return {}
    return {cells[0]: cells[1] for cells in (line.split("\t") for line in lines) if len(cells) > 1}


@dataclass(frozen=True)
class Predictions:
    """Right and wrong predictions drawn by lot, and how many there are of each."""

    right: list[Prediction]
    wrong: list[Prediction]
    rights: int
    wrongs: int


def sample_predictions(run: Run, dataset: str, *, count: int = 32) -> Predictions:
    """Predictions drawn by lot, as many right as wrong ones while both last.

    Raises:
        AbsentError: The run kept no labels beside the predictions.
    """
    files = tables.part_files(run.part(f"scores/{dataset}"), PREDICTIONS)
    columns, stored = ["eval_id", "correct", "label", "predicted"], tables.read_schema(files[0]).names
    if not set(columns) <= set(stored):
        raise AbsentError("the predictions carry no labels")
    columns += [name for name in ("rank", "top5", "top5_probabilities") if name in stored]
    drawn: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    totals = {True: 0, False: 0}
    for batch in tables.read_batches(files, columns=columns):
        rows = batch.to_pylist()
        for sign in drawn:
            kind = [row for row in rows if row["correct"] is sign]
            totals[sign] += len(kind)
            drawn[sign] = heapq.nsmallest(count, drawn[sign] + kind, key=_prediction_lot)
    names = class_names(run, dataset)

    def shown(sign: bool) -> list[Prediction]:
        room = count - min(len(drawn[not sign]), count // 2)
        return [_prediction(run, dataset, names, row) for row in drawn[sign][:room]]

    return Predictions(shown(True), shown(False), totals[True], totals[False])


def _prediction_lot(row: Mapping[str, Any]) -> str:
    return draw(row["eval_id"], "predictions")


def _prediction(run: Run, dataset: str, names: Mapping[str, str], row: Mapping[str, Any]) -> Prediction:
    best = zip(row.get("top5") or (), row.get("top5_probabilities") or (), strict=False)
    return Prediction(
        eval_id=row["eval_id"],
        correct=row["correct"],
        truth=names.get(row["label"], str(row["label"])),
        predicted=names.get(row["predicted"], str(row["predicted"])),
        rank=row.get("rank"),
        picture=evaluation_picture(run, dataset, row["eval_id"]),
        guesses=tuple((names.get(name, str(name)), float(share)) for name, share in best),
    )
