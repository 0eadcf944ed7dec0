"""Every stage with its inputs and outputs in an S3 store: the bytes of a local run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.core import manifest, paths
from pipeline.core.fakes import jpeg, picture
from tests.fetch.hostile import Site, serving
from tests.object_store.store import BUCKET, Store

COLOURS, SHAPES = ("red", "green", "blue", "orange"), ("circle", "square", "triangle")
NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
TO_THE_SITE = ("--allow-address", "127.0.0.0/8", "--host-gap-s", "0", "--set", "fetch.backoff_base_s=0.01")
# Pictures that are gone, and one that comes later. Which are selected hangs on the server's port; of each query's five
# pictures one is gone, so some gone ones always are.
DEAD, LATE = range(12), 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving(Site()) as made:
        yield made


def write_inputs(folder: str, site: Site) -> None:
    """Word counts, an article, a table of candidates, evaluation pictures, class names, prompts."""
    words = sorted({*" ".join(NAMES).split(), "wooden", "table", "photo"})
    paths.write_bytes(
        paths.join(folder, "words.tsv"),
        ("word\tcount\n" + "".join(f"{w}\t{500 + i}\n" for i, w in enumerate(words))).encode(),
    )
    article = {"title": "Red circle", "text": "A red circle stands on a wooden table. " * 200}
    paths.write_bytes(paths.join(folder, "wiki.jsonl"), json.dumps(article).encode() + b"\n")
    rows = [(f"/img/{i}.jpg", f"a {NAMES[i % 12]} lies on the wooden table, photo {i}") for i in range(60)]
    table = pa.table({"url": [site.url(p) for p, _ in rows], "text": [t for _, t in rows]})
    with paths.open_atomic(paths.join(folder, "table.parquet")) as file:
        pq.write_table(table, file, row_group_size=20)
    for i, name in enumerate(NAMES[:4]):
        for n in range(2):
            made = jpeg(picture(*name.split(), size=64, seed=1000 * i + n))
            paths.write_bytes(paths.join(folder, "eval", name.replace(" ", "_"), f"{n}.jpg"), made)
    paths.write_bytes(paths.join(folder, "prompts.txt"), b"a {} on a table\n")


def run_all(root: str, site: Site) -> None:
    """All commands, one after the other, below one folder."""
    given, out = paths.join(root, "in"), paths.join(root, "out")

    def at(name: str) -> str:
        return paths.join(out, name)

    def wit(line: str, *more: str) -> None:
        words = [w.replace("IN:", given + "/").replace("OUT:", out + "/") for w in [*line.split(), *more]]
        assert main([*words, "--quiet"]) == 0, line

    for number in (*DEAD, LATE):
        site.add(f"/img/{number}.jpg", status=404 if number != LATE else 503)
    write_inputs(given, site)
    wit("queries --word-counts IN:words.tsv --wikipedia IN:wiki.jsonl --wordnet none --out OUT:queries")
    wit("candidates --table IN:table.parquet --url-column url --text-column text --out OUT:candidates")
    wit("select --candidates OUT:candidates --queries OUT:queries --cap 3 --reserve 0.5 --out OUT:pairs")
    fetch = "fetch --pairs OUT:pairs --rows-per-shard 10 --top-up --out OUT:shards"
    wit(fetch, *TO_THE_SITE)
    site.handlers.pop(f"/img/{LATE}.jpg")
    wit(f"{fetch} --retry", *TO_THE_SITE)
    kept = pq.read_table(paths.filesystem(at("shards/00000.parquet"))[1], filesystem=paths.filesystem(out)[0])
    gone = [r["pair_id"] for r in kept.to_pylist() if r["status"] == "success"][:2]
    paths.write_bytes(paths.join(given, "gone.txt"), "\n".join(gone).encode())
    wit("shards drop --shards OUT:shards --ids IN:gone.txt --reason asked")
    wit("dedup embed --images OUT:shards --dataset train --out OUT:embeddings/train")
    wit("dedup embed --images IN:eval --dataset eval --out OUT:embeddings/eval")
    wit("dedup search --train OUT:embeddings/train --eval OUT:embeddings/eval --k 3 --out OUT:neighbours")
    wit("dedup groups --train OUT:embeddings/train --out OUT:groups")
    wit(
        "train --shards OUT:shards --model RN-tiny --batch-size 8 --steps 3 --out OUT:checkpoint",
        *("--set", "train.checkpoint_steps=1", "--set", "train.warmup_steps=1", "--device", "cpu"),
    )
    wit(
        "evaluate zero-shot --model OUT:checkpoint --dataset IN:eval --prompts IN:prompts.txt --out OUT:scores"
    )
    wit("dedup report --neighbours OUT:neighbours --predictions OUT:scores --out OUT:overlaps")
    wit("report", out)


def contents(root: str) -> dict[str, bytes]:
    """Every file below a folder; of manifests what does not tell time and place, of the page nothing."""
    fs, name = fsspec.core.url_to_fs(root)
    found = {}
    for file in sorted(fs.find(name)):
        relative = file[len(name) :].lstrip("/")
        folder, _, last = relative.rpartition("/")
        if last == manifest.NAME:
            found[relative] = manifest.read(paths.join(root, folder)).sha256.encode()
        elif last in ("report.html", "croissant.json", "MODEL_CARD.md"):  # they tell the time of the run
            found[relative] = b""
        else:
            found[relative] = fs.cat_file(file).replace(root.encode(), b"ROOT")
    return found


def test_every_stage_writes_into_a_store_what_it_writes_on_a_disk(
    store: Store, site: Site, tmp_path: Path
) -> None:
    run_all(str(tmp_path), site)
    run_all(f"s3://{BUCKET}/all", site)
    local, stored = contents(str(tmp_path)), contents(f"s3://{BUCKET}/all")
    assert sorted(local) == sorted(stored)
    assert [name for name in local if local[name] != stored[name]] == []
    done = manifest.read(f"s3://{BUCKET}/all/out/shards")
    assert done.rows > 20
    assert done.dropped["takedown"] == 2
    assert done.extra["top_up"]["drawn"] > 0
    assert manifest.read(f"s3://{BUCKET}/all/out/overlaps").rows == 8
    leftovers = [n for n in stored if n.endswith(".tmp") or "unfinished" in n or "/." in n]
    assert leftovers == []
