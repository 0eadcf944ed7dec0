"""What an engine's own page shows while a stage runs: the numbers that its manifest ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.core import counters, manifest
from pipeline.core.fakes import jpeg, picture
from tests.fetch.hostile import Site, serving

ENGINES = {
    "FnApiRunner": (),
    "PortableRunner": ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"),
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> counters.Totals:
    """All counters of the pipelines of a test, added up."""
    total: counters.Totals = {}
    ask = counters.totals

    def asked(result: Any) -> counters.Totals:
        found = ask(result)
        for stage, names in found.items():
            for name, amount in names.items():
                total.setdefault(stage, {}).setdefault(name, 0)
                total[stage][name] += amount
        return found

    monkeypatch.setattr(counters, "totals", asked)
    return total


def expected(done: manifest.Manifest) -> dict[str, int]:
    """A manifest's numbers under the counters' names."""
    rows = {counters.ROWS_IN: done.rows_in, counters.ROWS_OUT: done.rows}
    return {name: amount for name, amount in {**rows, **done.dropped}.items() if amount}


@pytest.mark.parametrize("engine", ENGINES)
def test_counters_end_as_the_manifests_numbers(engine: str, counted: counters.Totals, tmp_path: Path) -> None:
    def wit(line: str, out: str) -> manifest.Manifest:
        words = line.replace("IN:", f"{tmp_path}/").split()
        beam = ENGINES[engine]
        assert main([*words, "--out", str(tmp_path / out), "--quiet", "--", *beam]) == 0
        return manifest.read(str(tmp_path / out))

    with serving(Site()) as site:
        site.add("/img/3.jpg", b"<html>no picture</html>")
        site.add("/img/4.jpg", status=404)
        urls = [*(site.url(f"/img/{i}.jpg") for i in range(12)), "data:image/png;base64,x", "http://"]
        texts = [*(f"a small boat on river number {i}" for i in range(11)), "IMG_0001.jpg", "a boat", "boats"]
        urls, texts = [*urls, urls[0]], [*texts, texts[0].upper()]
        pq.write_table(pa.table({"url": urls, "text": texts}), tmp_path / "table.parquet")
        (tmp_path / "words.tsv").write_text("word\tcount\nboat\t500\nriver\t400\n")
        wit("queries --word-counts IN:words.tsv --wordnet none", "queries")
        table = "candidates --table IN:table.parquet --url-column url --text-column text"
        candidates = wit(table, "candidates")
        pairs = wit("select --candidates IN:candidates --queries IN:queries", "pairs")
        shards = wit(
            "fetch --pairs IN:pairs --allow-address 127.0.0.0/8 --host-gap-s 0 --rows-per-shard 4", "shards"
        )
    assert counted["candidates"] == expected(candidates)
    assert candidates.dropped["bad_url"] == 1
    assert counted["fetch"] == expected(shards)
    assert shards.dropped == {"http_4xx": 1, "not_image": 1}
    # One of the ten is no picture.
    assert counted["fetch.urls"] == {"downloaded": 10, "http_4xx": 1, "decoded": 9}
    assert counted["select"] == {**expected(pairs), "matched": 12}
    assert pairs.dropped == {"file_name": 1, "duplicate": 1}


@pytest.mark.parametrize("engine", ENGINES)
def test_embed_search_and_groups_count_too(engine: str, counted: counters.Totals, tmp_path: Path) -> None:
    for i in range(3):
        folder = tmp_path / "pictures" / "a"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(jpeg(picture("red", "circle", size=64, seed=i)) if i else b"no")
    out = tmp_path / "embeddings"
    beam = ["--quiet", "--", *ENGINES[engine]]
    assert main(["dedup", "embed", "--images", str(tmp_path / "pictures"), "--out", str(out), *beam]) == 0
    done = manifest.read(str(out))
    assert counted["dedup embed"] == expected(done)
    assert done.rows == 2
    found = tmp_path / "found"
    words = ["dedup", "search", "--train", str(out), "--eval", str(out), "--out", str(found), *beam]
    assert main(words) == 0
    rows = manifest.read(str(found)).rows
    assert counted["dedup search"] == {"rows_in": rows, "rows_out": rows, "compared": 2}
    words = ["dedup", "groups", "--train", str(out), "--threshold=-0.99", "--out", str(tmp_path / "groups")]
    assert main([*words, *beam]) == 0
    assert manifest.read(str(tmp_path / "groups")).rows == 2
    assert counted["dedup groups"] == {"rows_in": 2, "rows_out": 2, "compared": 2}


def test_an_engine_without_counters_is_no_error() -> None:
    class Nothing:
        def metrics(self) -> None:
            raise NotImplementedError

    assert counters.totals(Nothing()) == {}
