"""The demo's own parts on a toy world: sites over real HTTP, the WARC, the evaluation folder, the check."""

from __future__ import annotations

import io
import json
import socket
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
import requests
from warcio.archiveiterator import ArchiveIterator

from pipeline import cli
from pipeline.core import paths, tables
from pipeline.core.contracts import EMBEDDINGS, NEIGHBOURS, SHARDS
from pipeline.core.errors import InputError, StageFailedError, UsageError
from pipeline.core.fakes import fake_shards, finished_folder
from pipeline.demo import world as small_world
from pipeline.demo.check import LeakCheck, check_leaks, read_check
from pipeline.demo.record import record
from pipeline.demo.server import serve
from tests.engines.java import free_port


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, data in files.items():
            made.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    root = tmp_path / "world"
    (root / "pictures").mkdir(parents=True)
    (root / "pictures" / "noto.zip").write_bytes(zip_bytes({f"{i:x}.webp": b"n%d" % i for i in range(7)}))
    (root / "eval").mkdir()
    (root / "eval" / "left-out.tsv").write_text("eval_id\tlike\tdistance\n3/3.webp\tfluent/3\t0.04\n")
    for name in small_world.SITES:
        (root / "pictures" / f"{name}.zip").write_bytes(zip_bytes({"1f600.webp": name.encode()}))
        site = root / "web" / name
        (site / "posts").mkdir(parents=True)
        (site / "index.html").write_text('<a href="http://127.0.0.1:8732/x">x</a>')
        (site / "posts" / "a b.html").write_text("<p>ü</p>", encoding="utf-8")
        (site / "secret.html").write_text("no")
        (site / "robots.txt").write_text("User-agent: *\nDisallow: /secret\n")
        (site / "sitemap.txt").write_text("/\n/secret.html\n/posts/a%20b.html\n\n")
        (site / "_headers").write_text(
            "/p/\tX-Robots-Tag\tnoai\n/posts/\tContent-Type\ttext/html; charset=x\n"
        )
        (site / "files.zip").write_bytes(zip_bytes({"f/odd.jpg": b"jpeg"}))
    return root


def test_sites_answer_over_http(world: Path) -> None:
    port = free_port(3)
    with serve(world, port) as sites, requests.Session() as session:
        session.trust_env = False
        page = session.get(f"{sites[0]}/")
        assert page.headers["Content-Type"] == "text/html"
        assert f"127.0.0.1:{port + 1}/x" in page.text, "links follow the sites to other ports"
        assert "Date" not in page.headers
        picture = session.get(f"{sites[1]}/p/1f600.webp?x=1")
        assert (picture.content, picture.headers["X-Robots-Tag"]) == (b"twemoji", "noai")
        assert session.get(f"{sites[2]}/posts/a%20b.html").headers["Content-Type"] == "text/html; charset=x"
        assert session.get(f"{sites[2]}/f/odd.jpg").content == b"jpeg"
        assert session.get(f"{sites[2]}/../noto.zip").status_code == 404
        assert session.head(f"{sites[0]}/").headers["Content-Length"] == page.headers["Content-Length"]


def test_a_taken_port_is_one_line_with_the_mend(world: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="--port"), serve(world, taken.getsockname()[1]):
            pass


def test_the_recorded_warc_is_the_same_each_time_and_obeys_robots(world: Path, tmp_path: Path) -> None:
    with serve(world, free_port(3)) as sites:
        for name in ("a.warc.gz", "b.warc.gz"):
            assert record(sites, str(tmp_path / name), every=1) == 6
        assert record(sites, str(tmp_path / "c.warc.gz"), every=2) == 3
    assert (tmp_path / "a.warc.gz").read_bytes() == (tmp_path / "b.warc.gz").read_bytes()
    with open(tmp_path / "a.warc.gz", "rb") as file:
        urls = [r.rec_headers.get_header("WARC-Target-URI") for r in ArchiveIterator(file)]
    assert [urlsplit(u).path for u in urls] == ["/", "/posts/a%20b.html"] * 3


def test_a_missing_page_fails_and_leaves_no_archive(world: Path, tmp_path: Path) -> None:
    (world / "web" / "fluent" / "sitemap.txt").write_text("/gone.html\n")
    with (
        serve(world, free_port(3)) as sites,
        pytest.raises(StageFailedError, match="expected HTTP 200, found 404"),
    ):
        record(sites, str(tmp_path / "a.warc.gz"), every=1)
    assert not list(tmp_path.glob("*warc*"))


def test_the_evaluation_set_is_an_image_folder(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "noto"
    (tmp_path / ".noto.partial" / "junk").mkdir(parents=True)
    assert small_world.unpack_evaluation(world, str(folder), every=3) == 2
    assert sorted(str(p.relative_to(folder)) for p in folder.glob("*/*")) == ["0/0.webp", "6/6.webp"]
    assert small_world.unpack_evaluation(world, str(folder), every=3) == 2
    (world / "pictures" / "noto.zip").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="damaged archive"):
        small_world.unpack_evaluation(world, str(tmp_path / "again"), every=1)
    (world / "eval" / "left-out.tsv").unlink()
    with pytest.raises(InputError, match=r"left-out\.tsv: the small world lacks a file"):
        small_world.unpack_evaluation(world, str(tmp_path / "again"), every=1)


def test_demo_without_its_world_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--world", str(tmp_path), "--out", str(tmp_path / "o")]) == 1
    assert "pass --world DIR" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_check_counts_what_leaked_and_what_was_reported(tmp_path: Path) -> None:
    out, world = str(tmp_path / "out"), tmp_path / "world"
    fake_shards(paths.join(out, "shards"), 4)
    urls = tables.read_files([paths.join(out, "shards", "00000.parquet")]).column("url").to_pylist()
    # Where the truth says that a copy is served, and whether that URL is in the shards.
    site = "openmoji\t{}\tcrop"
    truth = {"a": urls[0], "b": urls[1], "d": "never/stored.jpg", "gone": urls[2]}
    (world / "truth").mkdir(parents=True)
    lines = [f"{e}\t{site.format(u.partition('example.test/')[2] or u)}" for e, u in truth.items()]
    (world / "truth" / "leaks.tsv").write_text("\n".join(["eval_id\tsite\tpath\tedits", *lines]))
    rows = [("a", 0.9), ("b", 0.2), ("c", 0.8), ("d", 0.7), ("e", 0.5)]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0] * 5, pa.float32()), 1)
    embeddings = pa.table({"id": [r[0] for r in rows], "dataset": ["noto"] * 5, "embedding": vectors})
    finished_folder(paths.join(out, "embeddings", "noto"), EMBEDDINGS, embeddings)
    neighbours = pa.table(
        {
            "eval_dataset": ["noto"] * 5,
            "eval_id": [r[0] for r in rows],
            "rank": pa.array([0] * 5, pa.int16()),
            "pair_id": ["p"] * 5,
            "similarity": pa.array([r[1] for r in rows], pa.float32()),
        }
    )
    finished_folder(paths.join(out, "neighbours"), NEIGHBOURS, neighbours)
    report = {"datasets": {"noto": {"threshold": 0.5}}}
    paths.write_bytes(paths.join(out, "overlaps", "overlap.json"), json.dumps(report).encode())
    check_leaks(out, world, port=8731)
    assert read_check(out) == LeakCheck(planted=3, leaked=0, found=0, reported=4, recall=0.0, precision=0.0)
    stored = tables.read_files([paths.join(out, "shards", "00000.parquet")])
    served = pa.array([u.replace("http://example.test", "http://127.0.0.1:8731") for u in urls])
    tables.write_table(
        paths.join(out, "shards", "00000.parquet"),
        stored.set_column(stored.schema.get_field_index("url"), "url", served),
        SHARDS,
    )
    check_leaks(out, world, port=8731)
    assert read_check(out) == LeakCheck(planted=3, leaked=2, found=1, reported=4, recall=0.5, precision=0.25)
