from __future__ import annotations

import filecmp
import gc
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.core import manifest, tables, tars
from pipeline.core.contracts import PAIRS, SHARDS, pair_id
from pipeline.core.fakes import fake_table, finished_folder, jpeg, picture
from pipeline.fetch.policy import REASONS
from tests.fetch.hostile import Site

# No machine that runs the tests stalls for so long.
PATIENT = ("connect_timeout_s=60", "read_timeout_s=60", "deadline_s=120", "min_rate_grace_s=60")
FLAGS = (
    *("--allow-address", "127.0.0.0/8", "--host-gap-s", "0", "--quiet"),
    *(word for limit in PATIENT for word in ("--set", f"fetch.{limit}")),
)


def pairs_of(folder: Path, urls: list[str], **columns: list[Any]) -> str:
    """A finished pairs folder with these URLs."""
    rows = fake_table(PAIRS, len(urls)).to_pylist()
    for i, (row, url) in enumerate(zip(rows, urls, strict=True)):
        row["url"] = url
        row |= {name: values[i] for name, values in columns.items()}
        row["pair_id"] = pair_id(url, row["text"])
    table = pa.Table.from_pylist(rows, schema=PAIRS.schema)
    return finished_folder(str(folder), PAIRS, PAIRS.conform(table))


def fetch(pairs: str, out: Path, *more: str) -> manifest.Manifest:
    assert main(["fetch", "--pairs", pairs, "--out", str(out), *FLAGS, *more]) == 0
    return manifest.read(str(out))


def rows_of(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for file in sorted(out.glob("[0-9]*.parquet")):
        SHARDS.check(tables.read_schema(str(file)), where=str(file))
        found += pq.read_table(file).to_pylist()
    return found


def assert_same(one: Path, other: Path) -> None:
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    _, different, unreadable = filecmp.cmpfiles(one, other, [str(n) for n in names], shallow=False)
    assert (set(different) - {"manifest.json"}, unreadable) == (set(), [])  # its times may be equal
    assert manifest.read(str(one)).sha256 == manifest.read(str(other)).sha256


def bad_web(site: Site) -> dict[str, str]:
    """URLs and what becomes of each."""
    good = jpeg(picture("red", "circle", size=64))
    wrong_way = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50), "red").save(wrong_way, "JPEG", exif=exif)
    return {
        "file:///etc/hostname": "blocked_scheme",
        "http://": "bad_url",
        "http://169.254.169.254/latest/meta-data/": "blocked_address",
        "http://10.0.0.1/x.jpg": "blocked_address",
        site.add("/r1", status=302, Location="http://169.254.169.254/"): "redirect_blocked",
        site.add("/r2", status=302, Location="file:///etc/passwd"): "redirect_blocked",
        site.add("/r3", status=302, Location="/good"): "success",
        site.add("/good", good): "success",
        site.add("/turned", wrong_way.getvalue()): "success",
        site.add("/html", b"<html>Not found</html>", Content_Type="image/jpeg"): "not_image",
        site.add("/bmp", b"BM" + b"\0" * 50): "unsupported_format",
        site.add("/half", good[: len(good) // 2]): "decode_error",
        site.add("/short", good, Content_Length="100000"): "truncated",
        site.add("/empty", b""): "empty_body",
        site.add("/huge", b"\xff\xd8\xff" + b"x" * 200_000): "body_too_large",
        site.add("/tiny", jpeg(Image.new("RGB", (1, 1)))): "too_small",
        site.add("/noai", good, X_Robots_Tag="noai"): "optout_header",
        site.add("/tdm", good, tdm_reservation="1"): "optout_tdm",
        site.add("/gone", b"", 410): "http_4xx",
        site.add("/down", b"", 500): "http_5xx",
        site.url("/private/1.jpg"): "robots_disallow",
        "http://127.0.0.2:9/x.jpg": "connect_refused",
    }


def test_every_pair_ends_as_a_row_with_its_reason(site: Site, tmp_path: Path) -> None:
    site.add("/robots.txt", b"User-agent: *\nDisallow: /private/")
    web = bad_web(site)
    pairs = pairs_of(tmp_path / "pairs", list(web))
    settings = ("--set", "fetch.max_body_bytes=100000", "--set", "fetch.backoff_base_s=0.01")
    done = fetch(pairs, tmp_path / "a", *settings)
    rows = rows_of(tmp_path / "a")
    got = {
        r["url"]: r["error_message"].partition(":")[0] if r["error_message"] else r["status"] for r in rows
    }
    assert got == web
    assert (done.rows, done.rows_in) == (3, len(web))
    assert done.dropped == dict(Counter(reason for reason in web.values() if reason != "success"))
    assert set(done.dropped) <= set(REASONS)
    dropped = tables.read_files([str(tmp_path / "a/dropped/part-00000.parquet")])
    assert set(dropped.column("id").to_pylist()) == {r["pair_id"] for r in rows if r["error_message"]}
    assert {r["url"]: (r["width"], r["height"]) for r in rows}[site.url("/turned")] == (50, 100)
    assert site.hits["/private/1.jpg"] == 0
    assert not (tmp_path / "a/.staging").exists()
    fetch(pairs, tmp_path / "b", *settings)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_shards_do_not_depend_on_the_order_of_pairs_or_on_workers(site: Site, tmp_path: Path) -> None:
    urls = [site.url(f"/img/{i}.jpg", f"127.0.0.{1 + i % 5}") for i in range(60)]
    one = pairs_of(tmp_path / "one", urls)
    table = tables.read_folder(one, PAIRS)
    shuffled = table.take(pa.array([(7 * i + 3) % 60 for i in range(60)]))
    other = finished_folder(str(tmp_path / "other"), PAIRS, shuffled)
    fetch(one, tmp_path / "a", "--rows-per-shard", "25")
    done = fetch(
        other, tmp_path / "b", "--rows-per-shard", "25",
        "--", "--direct_num_workers=2", "--direct_running_mode=multi_processing",
    )  # fmt: skip
    for name in ("tar", "parquet"):
        for shard in range(3):
            file = f"{shard:05d}.{name}"
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert [s["pairs"] for s in done.extra["shards"]] == [25, 25, 10]
    keys = [r["key"] for r in rows_of(tmp_path / "b")]
    assert keys[0] == "0000000"
    assert keys[-1] == "0000209"
    assert max(site.most.values()) <= 2
    assert set(site.hits.values()) - {10} == {
        2
    }  # each picture once per run; robots.txt once per host and run


def test_one_image_with_many_texts_is_fetched_once(site: Site, tmp_path: Path) -> None:
    urls = [site.url("/img/1.jpg"), site.url("/img/1.jpg#top"), f"HTTP://127.0.0.1:{site.port}/img/1.jpg"]
    done = fetch(pairs_of(tmp_path / "pairs", urls), tmp_path / "out")
    assert (done.rows, site.hits["/img/1.jpg"]) == (3, 1)
    rows = rows_of(tmp_path / "out")
    assert len({r["sha256"] for r in rows}) == 1
    assert len({r["caption"] for r in rows}) == 3
    assert {r["url"] for r in rows} == set(urls)


def test_pages_that_opt_out_are_not_asked_for(site: Site, tmp_path: Path) -> None:
    pairs = pairs_of(
        tmp_path / "pairs", [site.url("/img/1.jpg"), site.url("/img/2.jpg")], rights=[["noai"], []]
    )
    assert fetch(pairs, tmp_path / "out").dropped == {"optout_meta": 1}
    assert site.hits["/img/1.jpg"] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_the_layout_is_img2datasets_and_webdataset_reads_it(site: Site, tmp_path: Path) -> None:
    import webdataset

    urls = [*(site.url(f"/img/{i}.jpg") for i in range(12)), site.url("/missing.jpg")]
    done = fetch(pairs_of(tmp_path / "pairs", urls), tmp_path / "out", "--rows-per-shard", "10")
    tar_files = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    read = list(
        webdataset.WebDataset(tar_files, shardshuffle=False)
        .decode("pil")
        .to_tuple("__key__", "jpg", "txt", "json")
    )
    gc.collect()
    kept = [r for r in rows_of(tmp_path / "out") if r["status"] == "success"]
    assert len(read) == done.rows == 12
    for (key, image, text, record), row in zip(read, kept, strict=True):
        assert (key, text, image.size) == (row["key"], row["caption"], (row["width"], row["height"]))
        assert record == row
    stats = [json.loads((tmp_path / f"out/{n}_stats.json").read_text()) for n in ("00000", "00001")]
    assert [s["count"] for s in stats] == [10, 3]
    assert sum(s["successes"] for s in stats) == 12
    assert [s["sha256"] for s in done.extra["shards"]] == [s["sha256"] for s in stats]
    samples = next(tars.read_shard(tar_files[0]))
    assert list(samples.members) == ["jpg", "txt", "json"]


def test_equal_bytes_are_marked_and_dropped_only_if_asked(site: Site, tmp_path: Path) -> None:
    body = jpeg(picture("red", "circle", size=64))
    near = jpeg(picture("red", "circle", size=64), quality=80)
    urls = [
        site.add("/a", body),
        site.add("/b", body),
        site.url("/a#x"),
        site.add("/near", near),
        site.url("/img/1.jpg"),
    ]
    texts = ["one", "one", "two", "one", "one"]
    pairs = pairs_of(tmp_path / "pairs", urls, text=texts)
    rows = rows_by_url(fetch(pairs, tmp_path / "all"), tmp_path / "all", urls)
    copies = sorted(rows[:3], key=lambda r: str(r["pair_id"]))
    assert [r["duplicate_of"] for r in copies] == [None, copies[0]["pair_id"], copies[0]["pair_id"]]
    assert [r["duplicate_of"] for r in rows[3:]] == [None, None]
    apart = (int(rows[0]["phash"], 16) ^ int(rows[3]["phash"], 16)).bit_count()
    assert (rows[0]["phash"], apart <= 6) == (rows[1]["phash"], True)
    assert all(r["status"] == "success" for r in rows)
    done = fetch(pairs, tmp_path / "pair", "--drop-duplicates", "pair")
    kept = {r["caption"] for r in rows_by_url(done, tmp_path / "pair", urls)[:3] if r["status"] == "success"}
    assert (done.dropped, kept) == ({"duplicate": 1}, {"one", "two"})
    done = fetch(pairs, tmp_path / "image", "--drop-duplicates", "image")
    assert (done.rows, done.dropped) == (3, {"duplicate": 2})
    dropped = [r for r in rows_of(tmp_path / "image") if r["status"] == "duplicate"]
    assert {r["error_message"] for r in dropped} == {f"duplicate: {copies[0]['pair_id']}"}


def rows_by_url(done: manifest.Manifest, out: Path, urls: list[str]) -> list[dict[str, Any]]:
    rows = {r["url"]: r for r in rows_of(out)}
    assert done.rows + sum(done.dropped.values()) == len(rows) == len(urls)
    return [rows[url] for url in urls]


def test_shards_can_be_cut_by_bytes(site: Site, tmp_path: Path) -> None:
    urls = [site.add(f"/{i}", jpeg(picture("red", "cross", size=256, seed=i))) for i in range(40)]
    pairs = pairs_of(tmp_path / "pairs", urls)
    done = fetch(pairs, tmp_path / "out", "--bytes-per-shard", "100000")
    sizes = [s["bytes"] for s in done.extra["shards"]]
    assert len(sizes) > 3
    assert all(80_000 < size < 120_000 for size in sizes[:-1])
    assert done.extra["rows_per_shard"] == done.extra["shards"][0]["pairs"]


@pytest.mark.parametrize(
    "engine",
    [
        ("--direct_num_workers=2", "--direct_running_mode=multi_processing"),
        ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"),
    ],
    ids=["processes", "portable"],
)
def test_engines_write_equal_bytes(site: Site, tmp_path: Path, engine: tuple[str, ...]) -> None:
    body = jpeg(picture("blue", "cross", size=90))
    urls = [site.url(f"/img/{i}.jpg", f"127.0.0.{1 + i % 5}") for i in range(20)]
    urls += [site.url("/missing.jpg"), "ftp://x.test/", site.add("/a", body), site.add("/b", body)]
    pairs = pairs_of(tmp_path / "pairs", urls)
    reused = ("--reuse", str(tmp_path / "old"), "--rows-per-shard", "7")
    fetch(pairs_of(tmp_path / "some", urls[:6]), tmp_path / "old")
    fetch(pairs, tmp_path / "one", *reused)
    fetch(pairs, tmp_path / "other", *reused, "--", *engine)
    assert_same(tmp_path / "one", tmp_path / "other")


def test_no_pairs_make_an_empty_shard(tmp_path: Path) -> None:
    done = fetch(finished_folder(str(tmp_path / "pairs"), PAIRS, PAIRS.empty()), tmp_path / "out")
    assert (done.rows, done.rows_in, len(done.extra["shards"])) == (0, 0, 1)
    assert rows_of(tmp_path / "out") == []


def test_loopback_needs_to_be_allowed(site: Site, tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path / "pairs", [site.url("/img/1.jpg")])
    assert main(["fetch", "--pairs", pairs, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert manifest.read(str(tmp_path / "out")).dropped == {"blocked_address": 1}
    assert not site.log


def test_bad_input_is_one_line(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(*arguments: str) -> tuple[int, str]:
        status = main(["fetch", *arguments])
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        assert "Traceback" not in text
        return status, text

    out = ("--out", str(tmp_path / "out"))
    assert line(*out)[0] == 2
    assert line("--pairs", str(tmp_path / "nowhere"), *out)[0] == 1
    (tmp_path / "unfinished").mkdir()
    assert "unfinished" in line("--pairs", str(tmp_path / "unfinished"), *out)[1]
    pairs = pairs_of(tmp_path / "pairs", [site.url("/img/1.jpg")])
    assert "10.0.0.0" in line("--pairs", pairs, *out, "--allow-address", "10.0.0.0/99")[1]
    assert "rows_per_shard" in line("--pairs", pairs, *out, "--rows-per-shard", "0")[1]
    assert line("--pairs", pairs, *out, "--", "--no_such_option=1")[0] == 2
    (tmp_path / "file").write_text("")
    assert line("--pairs", pairs, "--out", str(tmp_path / "file"))[0] == 1
    part = tmp_path / "pairs/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-200])
    assert "Parquet" in line("--pairs", pairs, *out)[1]
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_second_run_is_a_no_op_and_another_configuration_is_refused(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = pairs_of(tmp_path / "pairs", [site.url("/img/1.jpg")])
    fetch(pairs, tmp_path / "out")
    before = site.hits.total()
    fetch(pairs, tmp_path / "out", "--host-concurrency", "1")
    assert site.hits.total() == before
    arguments = ["fetch", "--pairs", pairs, "--out", str(tmp_path / "out"), *FLAGS, "--image-size", "32"]
    assert main(arguments) == 1
    assert "image_size was 256, is 32" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert rows_of(tmp_path / "out")[0]["width"] == 32
