"""Paths, tars and tables."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import paths, tables, tars
from pipeline.core.contracts import CANDIDATES
from pipeline.core.errors import InputError, OutputError, StoreError
from pipeline.core.fakes import fake_shards, fake_table


def test_expand_takes_files_folders_and_globs_without_repeats(tmp_path: Path) -> None:
    for name in ("a.warc.gz", "b.warc", "c.txt", "deep/d.warc", ".hidden.warc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    root = str(tmp_path)
    found = paths.expand([root, f"{root}/b.warc", f"{root}/*.warc"], suffixes=(".warc", ".warc.gz"))
    wanted = ("a.warc.gz", "b.warc", "deep/d.warc", ".hidden.warc")
    assert [f for f in found if "hidden" not in f] == sorted(f"{root}/{n}" for n in wanted[:3])
    assert f"{root}/c.txt" not in found
    assert paths.expand([f"{root}/c.txt"], suffixes=(".warc",)) == [f"{root}/c.txt"], (
        "a named file always counts"
    )


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.warc", "no such"),
        ("*.none", "match this pattern"),
        ("empty", "holds no"),
        ("nope://x/y", "no reader"),
    ],
)
def test_expand_says_what_is_missing(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    target = pattern if "://" in pattern else str(tmp_path / pattern)
    with pytest.raises(InputError, match=message):
        paths.expand([target], suffixes=(".warc",))


def test_input_is_decompressed_by_content(tmp_path: Path) -> None:
    import zstandard

    data = b"hello " * 1000
    packed = {"a": data, "b": gzip.compress(data), "c": bz2.compress(data) + bz2.compress(b"!"),
              "d": zstandard.compress(data) + zstandard.compress(b"!")}  # fmt: skip
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
        with paths.open_input(str(tmp_path / name)) as file:
            assert file.read() == data + (b"!" if name in "cd" else b"")
    with pytest.raises(InputError, match="cannot open"):
        paths.open_input(str(tmp_path / "none"))


def test_atomic_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x.bin"
    with pytest.raises(RuntimeError), paths.open_atomic(str(target)) as file:
        file.write(b"half")
        raise RuntimeError("stop")
    assert list(target.parent.iterdir()) == []
    paths.write_bytes(str(target), b"whole")
    assert [p.name for p in target.parent.iterdir()] == ["x.bin"]
    assert paths.read_bytes(str(target)) == b"whole"


def test_atomic_files_on_an_object_store() -> None:
    paths.write_bytes("memory://bucket/a/x.bin", b"whole")
    assert paths.read_bytes("memory://bucket/a/x.bin") == b"whole"
    assert paths.list_files("memory://bucket/a") == ["memory://bucket/a/x.bin"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with (
        pytest.raises(OutputError, match="the disk is full"),
        paths.output_errors("there"),
        open("/dev/full", "wb") as file,
    ):
        file.write(b"x")
        file.flush()


_stems = st.text("abcdefghij0123456789_-", min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        _stems, st.dictionaries(st.sampled_from(["jpg", "txt", "json"]), st.binary(max_size=2000), min_size=1)
    )
)
def test_tar_round_trip(members: dict[str, dict[str, bytes]]) -> None:
    samples = [tars.Sample(key, files) for key, files in members.items()]
    first, second = io.BytesIO(), io.BytesIO()
    tars.write_tar(first, samples)
    tars.write_tar(second, samples)
    assert first.getvalue() == second.getvalue()
    paths.write_bytes("memory://tars/x.tar", first.getvalue())
    assert list(tars.read_shard("memory://tars/x.tar")) == samples


def test_tar_headers_carry_no_trace_of_the_machine(tmp_path: Path) -> None:
    tars.write_shard(str(tmp_path / "x.tar"), [tars.Sample("000000000", {"txt": b"hi"})])
    with tarfile.open(tmp_path / "x.tar") as tar:
        info = tar.getmembers()[0]
    assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)


def test_a_truncated_shard_gives_what_it_has_then_one_error(tmp_path: Path) -> None:
    samples = [tars.Sample(f"{i:09d}", {"jpg": bytes(5000)}) for i in range(4)]
    tars.write_shard(str(tmp_path / "x.tar"), samples)
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:13_000])
    seen: list[str] = []
    with pytest.raises(InputError, match="damaged tar shard"):
        seen.extend(s.key for s in tars.read_shard(str(tmp_path / "x.tar")))
    assert len(whole) > 13_000


def test_keys_are_img2datasets() -> None:
    assert tars.sample_key(0, 0) == "000000000"
    assert tars.sample_key(12, 34) == "000120034"
    assert tars.sample_key(3, 7, rows_per_shard=100) == "0000307"


@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    import webdataset

    folder = fake_shards(str(tmp_path / "s"), 5)
    found = list(webdataset.WebDataset(f"{folder}/00000.tar", shardshuffle=False).decode("pil"))
    assert [s["txt"] for s in found][:2] == ["a red circle", "a green circle"]
    assert found[0]["jpg"].size == (96, 96)
    assert found[0]["json"]["key"] == found[0]["__key__"]


def test_parts_are_cut_by_rows_and_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    table = fake_table(CANDIDATES, 25)
    for name in ("a", "b"):
        with tables.PartWriter(str(tmp_path / name), CANDIDATES, part_rows=10) as writer:
            for start in range(0, 25, 7):
                writer.write(table.slice(start, 7))
        assert (writer.parts, writer.rows) == (3, 25)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    files = sorted(str(p) for p in (tmp_path / "a").iterdir())
    assert tables.read_files(files).column("pair_id").equals(table.column("pair_id"))
    assert tables.count_rows(files) == 25


def test_no_rows_still_make_a_readable_part(tmp_path: Path) -> None:
    with tables.PartWriter(str(tmp_path), CANDIDATES):
        pass
    assert tables.read_files([str(tmp_path / "part-00000.parquet")]).column_names == CANDIDATES.schema.names


def test_a_store_whose_client_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    for url, extra in (("s3://bucket/x", "s3"), ("gs://bucket/x", "gcp")):
        with pytest.raises(InputError, match=rf"webimagetext\[{extra}\]"):
            paths.exists(url)


@pytest.mark.parametrize("base", ["", "memory://"])
def test_ranges_of_files_are_read_in_the_order_asked(tmp_path: Path, base: str) -> None:
    folder = base + str(tmp_path)
    for name in "ab":
        paths.write_bytes(f"{folder}/{name}", name.encode() * 3 + b"0123456789")
    asked = [(f"{folder}/b", 2, 5), (f"{folder}/a", 3, 13), (f"{folder}/b", 0, 1), (f"{folder}/a", 4, 4)]
    assert paths.read_ranges(asked) == [b"b01", b"0123456789", b"b", b""]
    assert paths.read_ranges([]) == []
    with pytest.raises(InputError, match="none: cannot open"):
        paths.read_ranges([*asked, (f"{folder}/none", 0, 1)])
    with pytest.raises(InputError, match="a: the file is cut short, expected bytes 10 to 14, found 3"):
        paths.read_ranges([*asked, (f"{folder}/a", 10, 14)])


def test_a_store_that_fails_in_a_range_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of stores give the failure in the place of the bytes, some whatever they are asked."""
    fs, _ = paths.filesystem("memory://ranges")
    paths.write_bytes("memory://ranges/a", b"0123456789")
    monkeypatch.setattr(type(fs), "protocol", "s3")
    for error, message in (
        (FileNotFoundError("gone"), "ranges/a: the store has no such bucket or object"),
        (TimeoutError("slow"), "ranges/a: the store failed"),
    ):
        monkeypatch.setattr(type(fs), "cat_ranges", lambda *_, error=error, **__: [b"01", error])
        with pytest.raises(StoreError, match=message):
            paths.read_ranges([("memory://ranges/b", 0, 2), ("memory://ranges/a", 0, 2)])
