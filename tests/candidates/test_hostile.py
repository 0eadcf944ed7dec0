"""Pages and archives built to stall a reader: bounded time, bounded memory, a reason for each."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipeline.candidates import apart
from pipeline.candidates.apart import PageReader
from pipeline.candidates.found import Lost, Pair
from pipeline.candidates.page import MAX_IMAGES, Context
from pipeline.candidates.srcset import parse_srcset
from pipeline.core import tables
from pipeline.core.contracts import CANDIDATES

CONTEXT = Context(url="http://site.test/p", origin="o")
IMAGE = "<img src=a.png alt=apple>"


def cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def read(html: str, *, cpu_s: int = 1) -> list[Pair | Lost]:
    with PageReader(cpu_seconds=cpu_s) as pages:
        return list(pages.read(html, CONTEXT))


# Each costs the parser time that grows with the square of its size: minutes at this one.
STALLING = {
    "different attributes of one tag": "<p " + " ".join(f"a{i}=1" for i in range(120_000)) + ">",
    "options": "<select>" + "<option>" * 120_000,
    "divs with end tags of nothing": "<div></x>" * 120_000,
    "divs with end tags in attributes": "<div x='</'>" * 100_000,
    "divs after end tags": "</div>" * 170_000 + "<div>" * 100_000,
}


@pytest.mark.parametrize("name", STALLING)
def test_pages_that_stall_the_parser_are_given_up(name: str) -> None:
    started = cpu_seconds()
    assert [(f.reason, f.id) for f in read(IMAGE + STALLING[name]) if isinstance(f, Lost)] == [
        ("too_complex", "http://site.test/p")
    ]
    # Of it one or two for the page, and the start of the process; of what a machine counts when it is busy, the double.
    assert cpu_seconds() - started < 15


# These did the same to our own reading of the tree.
MANY = 40_000
WIDE = {
    "images of one figure": "<figure>" + "<img src=a>" * MANY + "<figcaption>x</figcaption></figure>",
    "a long caption": f"<figure><figcaption>{'x' * 500_000}</figcaption>" + "<img src=a>" * MANY + "</figure>",
    "images of one box": "<div class=thumbinner>" + "<img src=a>" * MANY + "</div>",
    "many classes": f"<div class='{'a ' * 100_000}'>" + "<img src=a>" * MANY + "</div>",
    "a picture": "<picture>" + "<source srcset=b>" * 10_000 + "<img src=a alt=x>" * 10_000 + "</picture>",
    "spaces in a srcset": f"<img alt=x srcset='{' ' * 1_000_000}'>",
    "a long address in a srcset": f"<img alt=x srcset='{'a' * 500_000} b'>",
    "nested figures": "<figure>" * 4_000 + IMAGE * MANY,
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_large_pages_take_time_in_proportion(name: str) -> None:
    started = cpu_seconds()
    found = read(IMAGE + WIDE[name], cpu_s=apart.CPU_SECONDS)
    assert not any(isinstance(f, Lost) and f.reason == "too_complex" for f in found)
    assert any(isinstance(f, Pair) and f.text == "apple" for f in found)
    assert cpu_seconds() - started < 20


def test_too_many_images() -> None:
    assert [f.reason for f in read("<img>" * (MAX_IMAGES + 1)) if isinstance(f, Lost)] == ["too_complex"]


def test_reading_goes_on_after_a_page_was_given_up() -> None:
    large = IMAGE + "<p>text</p>" * 20_000
    with PageReader(cpu_seconds=1) as pages:
        assert [f.text for f in pages.read(large, CONTEXT) if isinstance(f, Pair)] == ["apple"]
        first = pages._process
        assert [f.text for f in pages.read(large, CONTEXT) if isinstance(f, Pair)] == ["apple"]
        assert pages._process is first, "one process for all"
        list(pages.read(IMAGE + STALLING["options"], CONTEXT))
        assert [f.text for f in pages.read(large, CONTEXT) if isinstance(f, Pair)] == ["apple"]
        assert pages._process is not None
        pages._process.kill()
        pages._process.wait()
        assert [f.reason for f in pages.read(large, CONTEXT) if isinstance(f, Lost)] == ["parse_error"]
        assert [f.text for f in pages.read(large, CONTEXT) if isinstance(f, Pair)] == ["apple"]


def test_a_page_is_read_alike_in_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (IMAGE + "<img src='\ud800.png' alt='é \ud800'><img>" + "<p>text</p>") * 3
    here = read(page)
    monkeypatch.setattr(apart, "SMALL_CHARS", 10)
    assert read(page) == here
    assert read("<p>no picture</p>" * 10) == []


SMALL = {
    "attributes": "<p " + "/".join(f"{i:x}" for i in range(53_000)) + ">",
    "depth": "<span>" * 4_900 + "<li>" * 4_900,
    "options": "<select>" + "<option>" * 9_900,
}


@pytest.mark.parametrize("name", SMALL)
def test_small_pages_take_bounded_time(name: str) -> None:
    started = cpu_seconds()
    with PageReader() as pages:
        list(pages.read(IMAGE + SMALL[name], CONTEXT))
        assert pages._process is None, "read here"
    assert cpu_seconds() - started < 3 * apart.CPU_SECONDS


def test_srcset_as_browsers_read_it() -> None:
    assert parse_srcset("a.png 1x,b.png 2x") == [("a.png", 1, "x"), ("b.png", 2, "x")]
    assert parse_srcset(" ,, a,b.png , c.png 100w 50h,d.png") == [
        ("a,b.png", 1, "x"),
        ("c.png", 100, "w"),
        ("d.png", 1, "x"),
    ]
    assert parse_srcset("a.png 100h, b.png 1x 2x, c.png w, ,,") == []


def warc_record(writer: Any, url: str, body: bytes, *headers: tuple[str, str]) -> None:
    http = StatusAndHeaders("200 OK", [("Content-Type", "text/html"), *headers], protocol="HTTP/1.1")
    writer.write_record(
        writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=http)
    )


def cost(archive: Path, out: Path) -> tuple[float, float]:
    """Most resident memory of any process of ``wit candidates`` on an archive in MiB, and CPU seconds of them all."""
    command = [sys.executable, "-m", "pipeline", "candidates", "--warc", str(archive), "--out", str(out)]
    with subprocess.Popen([*command, "--quiet"]) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss / 1024, used.ru_utime + used.ru_stime


def test_memory_and_time_of_a_hostile_archive(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.warc.gz", tmp_path / "bad.warc.gz"
    packed = gzip.compress(b"<p>" + IMAGE.encode() * 2_500_000, 1)  # 62 MB
    for path in (good, bad):
        with path.open("wb") as file:
            writer = WARCWriter(file, gzip=True)
            writer._create_temp_file = io.BytesIO
            warc_record(writer, "http://x.test/first", IMAGE.encode())
            if path == bad:
                warc_record(writer, "http://x.test/large", b"x" * 50_000_000)
                warc_record(writer, "http://x.test/bomb", packed, ("Content-Encoding", "gzip"))
                warc_record(writer, "http://x.test/deep", IMAGE.encode() + b"<div>" * 1_900_000)
                warc_record(writer, "http://x.test/wide", IMAGE.encode() * 390_000)
                warc_record(writer, "http://x.test/liar", IMAGE.encode(), ("Content-Length", "999999999"))
                file.write(
                    gzip.compress(b"WARC/1.1\r\nWARC-Type: response\r\nContent-Length: 50\r\n\r\nshort")
                )
                file.write(gzip.compress(b"WARC/1.1\r\nWARC-Type: " + b"r" * 50_000_000, 1))
            warc_record(writer, "http://x.test/last", IMAGE.encode())
    usual_mb, usual_s = cost(good, tmp_path / "a")
    peak_mb, cpu_s = cost(bad, tmp_path / "b")
    assert peak_mb - usual_mb < 300
    assert cpu_s - usual_s < 60
    found = tables.read_folder(str(tmp_path / "b"), CANDIDATES).column("page_url").to_pylist()
    assert sorted(found) == ["http://x.test/first", "http://x.test/last", "http://x.test/liar"]
    lost = json.loads((tmp_path / "b" / "manifest.json").read_text())["dropped"]
    # The short record and the endless header line are one parse_error each.
    assert lost == {"parse_error": 2, "too_complex": 1, "too_large": 2, "too_nested": 1}
