"""The loader: every image once an epoch, exact positions, bad samples counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data import Batch, Loader, epoch_order
from model.shards import Index, read_index
from model.tokenizer import Tokenizer
from pipeline.core import fakes
from pipeline.core.contracts import PAIRS, SHARDS, pair_id
from pipeline.core.errors import ContractError, InputError, StageFailedError, UnfinishedInputError, UsageError
from pipeline.core.stage import RunOptions, StageResult, run_stage
from pipeline.core.tars import Sample, write_shard

TOKENIZER = Tokenizer()


def row(
    key: str, url: str, caption: str, *, status: str = "success", sha256: str | None = None
) -> dict[str, object]:
    return {
        "key": key, "pair_id": pair_id(url, caption), "url": url, "caption": caption, "status": status,
        "sha256": sha256, "query_ids": [0], "query_id": 0,
    }  # fmt: skip


def shards(folder: Path, rows: list[tuple[dict[str, object], bytes]]) -> str:
    """A finished folder of one shard with given rows; rows without bytes have no image."""

    def body(out: str) -> StageResult:
        fakes.write_fake_shard(out, 0, rows)
        return StageResult(rows=len(rows), rows_in=len(rows))

    run_stage(
        body, stage="fetch", contract=SHARDS.id, config=fakes._FakeConfig(rows=len(rows), seed=0), inputs=[],
        out=str(folder), options=RunOptions(quiet=True),
    )  # fmt: skip
    return str(folder)


def jpeg(seed: int) -> bytes:
    return fakes.jpeg(fakes.picture("red", "circle", size=40, seed=seed))


def loader(
    index: Index, batch_size: int, *, cache_bytes: int = 1 << 30, share: float = 1.0, **more: Any
) -> Loader:
    return Loader(
        index, TOKENIZER, batch_size=batch_size, image_size=32, short_side=36, seed=1,
        cache_bytes=cache_bytes, max_corrupt_share=share, **more,
    )  # fmt: skip


def test_every_image_once_an_epoch(tmp_path: Path) -> None:
    index = read_index([fakes.fake_shards(str(tmp_path / "s"), 50, per_shard=20, size=40)])
    assert (index.rows_in, index.groups, len(index.tars)) == (50, 50, 3)
    orders = [epoch_order(index, seed=0, epoch=e) for e in range(3)]
    assert all(sorted(o) == list(range(50)) for o in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[1], epoch_order(index, seed=0, epoch=1))


def test_captions_of_one_image_alternate_and_never_meet(tmp_path: Path) -> None:
    rows = [(row(f"{i:09}", f"u{i % 10}", f"text {i}"), jpeg(i % 10)) for i in range(30)]
    index = read_index([shards(tmp_path / "s", rows)])
    assert index.groups == 10
    seen: set[int] = set()
    for epoch in range(12):
        order = epoch_order(index, seed=0, epoch=epoch)
        assert sorted(index.group[order]) == list(range(10))
        seen |= set(order.tolist())
    assert seen == set(range(30))


def test_equal_bytes_under_two_addresses_are_one_image(tmp_path: Path) -> None:
    rows = [(row(f"{i:09}", f"u{i}", "t", sha256="aa" if i < 2 else "bb"), jpeg(0)) for i in range(3)]
    assert read_index([shards(tmp_path / "s", rows)]).groups == 2


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_batches_go_on_from_any_position(tmp_path: Path, cache_bytes: int) -> None:
    index = read_index([fakes.fake_shards(str(tmp_path / "s"), 50, per_shard=20, size=40)])
    first = loader(index, 16, cache_bytes=cache_bytes)
    places, batches = [], []
    for _ in range(8):
        places.append((first.epoch, first.place))
        batches.append(first.next_batch())
    assert places[2:5] == [(0, 32), (0, 48), (1, 16)]
    assert batches[0].images.shape == (16, 32, 32, 3)
    assert batches[0].images.dtype == np.uint8
    assert batches[0].tokens.shape[1] == 5  # "a red circle" between start and end
    for place, wanted in zip(places, batches, strict=True):
        again = loader(index, 16)
        again.go_to(*place)
        found = again.next_batch()
        assert np.array_equal(found.images, wanted.images)
        assert np.array_equal(found.tokens, wanted.tokens)
        assert np.array_equal(found.samples, wanted.samples)


def test_bad_samples_are_dropped_with_their_reason(tmp_path: Path) -> None:
    rows = [(row(f"{i:09}", f"u{i}", f"text {i}"), jpeg(i)) for i in range(10)]
    rows[3] = (rows[3][0], b"not a jpeg")
    rows[4] = (row("000000004", "u4", "  "), jpeg(4))
    rows[5] = (row("000000005", "u5", "gone", status="failed_to_download"), jpeg(5))
    folder = shards(tmp_path / "s", rows)
    index = read_index([folder])
    assert index.rows_in == 9
    made = loader(index, 7)
    assert len(made.next_batch().samples) == 7
    made.close()
    dropped = made.dropped()
    assert [(reason, pair) for reason, pair, _ in dropped] == [
        ("empty_caption", rows[4][0]["pair_id"]),
        ("corrupt_image", rows[3][0]["pair_id"]),
    ]
    with pytest.raises(InputError, match=r"too many corrupt images, found 1 of 9"):
        loader(index, 7, share=0.1).next_batch()
    with pytest.raises(InputError, match="too few images can be decoded for one batch, found 7 of 8"):
        loader(index, 8).next_batch()


def test_truncated_tar_loses_only_its_tail(tmp_path: Path) -> None:
    folder = fakes.fake_shards(str(tmp_path / "s"), 40, size=40)
    tar = tmp_path / "s" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    index = read_index([folder])
    assert index.rows_in == 40
    assert 10 < len(index.pair_ids) < 30
    assert {reason for reason, _, _ in index.dropped} == {"missing_image"}


def test_refusals(tmp_path: Path) -> None:
    folder = fakes.fake_shards(str(tmp_path / "s"), 20, size=40)
    with pytest.raises(UsageError, match=r"train.batch_size.*expected at most 20, found 21"):
        loader(read_index([folder]), 21)
    with pytest.raises(InputError, match="no such folder"):
        read_index([str(tmp_path / "none")])
    with pytest.raises(ContractError, match="expected shards/1, found pairs/1"):
        read_index([fakes.fake_folder(str(tmp_path / "p"), PAIRS, 3)])
    manifest = tmp_path / "s" / "manifest.json"
    kept = json.loads(manifest.read_text())
    manifest.unlink()
    with pytest.raises(UnfinishedInputError, match=r"no manifest\.json"):
        read_index([folder])
    manifest.write_text(json.dumps(kept))
    (tmp_path / "s" / "00000.tar").unlink()
    with pytest.raises(InputError, match="the shard's tar is missing"):
        read_index([folder])
    with pytest.raises(InputError, match="no usable sample"):
        read_index([shards(tmp_path / "e", [(row("0", "u", "t", status="failed"), b"")])])


def same(found: Batch, wanted: Batch) -> bool:
    return all(np.array_equal(getattr(found, n), getattr(wanted, n)) for n in ("images", "tokens", "samples"))


@pytest.mark.parametrize("decoder", ["fast", "pillow"])
def test_workers_give_the_same_batches_from_any_position(tmp_path: Path, decoder: str) -> None:
    rows = [(row(f"{i:09}", f"u{i}", f"text {i}"), jpeg(i)) for i in range(90)]
    rows[7] = (rows[7][0], b"not a jpeg")
    rows[50] = (rows[50][0], b"")
    index = read_index([shards(tmp_path / "s", rows)])
    alone = loader(index, 20, decoder=decoder)
    crew = loader(index, 20, decoder=decoder, workers=2)
    try:
        for _ in range(6):
            wanted = alone.next_batch()
            assert same(crew.next_batch(), wanted)
            assert (crew.epoch, crew.place) == (alone.epoch, alone.place)
        assert crew.corrupt.keys() <= alone.corrupt.keys() == {7, 50}
        crew.go_to(0, 40)
        alone.go_to(0, 40)
        assert same(crew.next_batch(), alone.next_batch())
    finally:
        crew.close()


def test_a_dead_worker_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.decoding._PATIENCE_S", 0.2)
    index = read_index([fakes.fake_shards(str(tmp_path / "s"), 50, per_shard=20, size=40)])
    crew = loader(index, 16, workers=1)
    assert crew._decoders is not None
    worker = crew._decoders._workers[0]
    worker.kill()
    worker.join()
    with pytest.raises(StageFailedError, match="a loader worker died"):
        crew.next_batch()
    crew.close()


def test_corrupt_images_do_not_change_the_crops_of_others(tmp_path: Path) -> None:
    rows = [(row(f"{i:09}", f"u{i}", f"text {i}"), jpeg(i)) for i in range(40)]
    whole = loader(read_index([shards(tmp_path / "a", rows)]), 10)
    batches = [whole.next_batch() for _ in range(4)]
    pictures = {int(s): i for b in batches for s, i in zip(b.samples, b.images, strict=True)}
    rows[3] = (rows[3][0], b"not a jpeg")
    holed = loader(read_index([shards(tmp_path / "b", rows)]), 10)
    for _ in range(3):
        batch = holed.next_batch()
        for sample, image in zip(batch.samples, batch.images, strict=True):
            assert np.array_equal(image, pictures[int(sample)])


def test_ranks_share_the_batch_of_one(tmp_path: Path) -> None:
    index = read_index([fakes.fake_shards(str(tmp_path / "s"), 50, per_shard=20, size=40)])
    whole = loader(index, 16)
    parts = [loader(index, 16, rank=r, ranks=2) for r in (0, 1)]
    for _ in range(7):
        wanted = whole.next_batch()
        found = [p.next_batch() for p in parts]
        assert [p.epoch for p in parts] == [whole.epoch] * 2
        together = np.stack([f.samples for f in found], axis=1).ravel()
        assert np.array_equal(together, wanted.samples)
        images = np.stack([f.images for f in found], axis=1).reshape(wanted.images.shape)
        assert np.array_equal(images, wanted.images)
    with pytest.raises(UsageError, match="a multiple of the 2 processes"):
        loader(index, 15, rank=0, ranks=2)


def test_query_cap_balances_each_epoch(tmp_path: Path) -> None:
    rows = [
        ({**row(f"{i:09}", f"u{i}", "t"), "query_id": 0 if i < 40 else i % 5}, jpeg(i)) for i in range(60)
    ]
    index = read_index([shards(tmp_path / "s", rows)])
    queries = np.bincount(index.query)
    assert queries.tolist() == [44, 4, 4, 4, 4]
    epochs = [epoch_order(index, seed=0, epoch=e, query_cap=6) for e in range(8)]
    for order in epochs:
        assert np.bincount(index.query[order]).tolist() == [6, 4, 4, 4, 4]
    assert len(np.unique(np.concatenate(epochs))) > 40
    assert np.array_equal(epochs[2], epoch_order(index, seed=0, epoch=2, query_cap=6))
    assert loader(index, 11, query_cap=6).steps_per_epoch == 2
    with pytest.raises(UsageError, match="at most 22, found 23"):
        loader(index, 23, query_cap=6)


def plain_tar(path: Path, samples: list[dict[str, bytes]]) -> str:
    made = [Sample(f"s{i:03}", members) for i, members in enumerate(samples)]
    write_shard(str(path), made)
    return str(path)


def test_plain_webdataset_with_several_captions(tmp_path: Path) -> None:
    one = {
        "jpg": jpeg(1),
        "txt": b"a red circle",
        "json": json.dumps({"captions": ["x", "y"], "alt": "z"}).encode(),
    }
    bare = {"jpg": jpeg(2), "json": b"{}"}
    text_only = {"txt": b"no picture"}
    png = {"png": jpeg(3), "txt": "ein Bär".encode()}
    tar = plain_tar(tmp_path / "00000.tar", [one, bare, text_only, png])
    index = read_index([tar])
    assert (index.rows_in, index.groups, index.captions.to_pylist()) == (4, 2, ["a red circle", "ein Bär"])
    assert sorted((reason, pair) for reason, pair, _ in index.dropped) == [
        ("empty_caption", "s001"), ("missing_image", "s002"),
    ]  # fmt: skip
    more = read_index([str(tmp_path)], captions=("txt", "json.captions", "json.alt"))
    assert more.captions.to_pylist()[:4] == ["a red circle", "x", "y", "z"]
    assert more.groups == 2
    seen = {int(s) for e in range(30) for s in epoch_order(more, seed=0, epoch=e)}
    assert seen == set(range(5))
    assert read_index([str(tmp_path / "*.tar")]).captions == index.captions
    assert len(loader(index, 2).next_batch().samples) == 2


def test_img2dataset_folder(tmp_path: Path) -> None:
    plain_tar(tmp_path / "00000.tar", [{"jpg": jpeg(i), "txt": b"t", "json": b"{}"} for i in range(3)])
    table = pa.table({
        "key": ["s000", "s001", "s002", "s003"], "caption": ["a", None, "c", "d"], "url": ["u", "v", "u", "w"],
        "status": ["success", "success", "success", "failed_to_download"],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    index = read_index([str(tmp_path)])
    assert (index.rows_in, index.captions.to_pylist(), index.groups) == (3, ["a", "c"], 1)
    assert index.dropped[0][:2] == ("empty_caption", "s001")
    plain_tar(tmp_path / "00001.tar", [])
    with pytest.raises(UnfinishedInputError, match=r"00001.tar.*_stats.json last"):
        read_index([str(tmp_path)])
    (tmp_path / "00001_stats.json").write_text("{}")  # an empty shard is no error
    assert len(read_index([str(tmp_path)]).captions) == 2
    pq.write_table(table.drop_columns(["status"]), tmp_path / "00000.parquet")
    with pytest.raises(ContractError, match="lacks a column, expected key, caption, status, found no status"):
        read_index([str(tmp_path)])
