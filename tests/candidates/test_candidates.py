"""``wit candidates`` from end to end: WARC, WAT, saved pages and tables, good and damaged."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyarrow import csv
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipeline import cli
from pipeline.candidates import ranges
from pipeline.candidates.config import CandidatesConfig
from pipeline.candidates.found import REASONS
from pipeline.candidates.layouts import LAYOUTS, by_names
from pipeline.candidates.rows import table_parts
from pipeline.core import tables
from pipeline.core.config import from_table
from pipeline.core.contracts import CANDIDATES, pair_id


def writer_to(buffer: io.BytesIO, *, packed: bool) -> Any:
    """A WARC writer that leaves no temporary file open, as warcio's own does."""
    writer = WARCWriter(buffer, gzip=packed)
    writer._create_temp_file = io.BytesIO
    return writer


def write_warc(path: Path, records: list[dict[str, Any]], *, packed: bool = True) -> list[int]:
    """Writes records (url, body, and optionally headers, status, kind); returns their offsets."""
    buffer, offsets = io.BytesIO(), []
    writer = writer_to(buffer, packed=packed)
    for record in records:
        offsets.append(buffer.tell())
        headers = record.get("headers", [("Content-Type", "text/html; charset=utf-8")])
        http = StatusAndHeaders(record.get("status", "200 OK"), headers, protocol="HTTP/1.1")
        kind = record.get("kind", "response")
        made = writer.create_warc_record(
            record["url"],
            kind,
            payload=io.BytesIO(record["body"]),
            http_headers=http if kind == "response" else None,
        )
        writer.write_record(made)
    path.write_bytes(buffer.getvalue())
    return offsets


def pages(count: int) -> list[dict[str, Any]]:
    return [
        {
            "url": f"http://site.test/{i}.html",
            "body": b'<html lang=en><img src=%d.png alt="number %d">' % (i, i) + b"<p>text</p>" * 50,
        }
        for i in range(count)
    ]


def run(*arguments: str) -> int:
    return cli.main(["candidates", *arguments, "--quiet"])


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tables.read_folder(str(out), CANDIDATES).to_pylist()
    return found


def dropped(out: Path) -> Counter[str]:
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rows_in"] == manifest["rows"] + sum(manifest["dropped"].values())
    assert set(manifest["dropped"]) <= set(REASONS)
    return Counter(manifest["dropped"])


@pytest.mark.parametrize("kind", ["gz", "plain", "zst"])
def test_warc(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.warc"
    offsets = write_warc(path, pages(3), packed=kind == "gz")
    if kind == "zst":
        path.write_bytes(zstandard.compress(path.read_bytes()))
    assert run("--warc", str(path), "--out", str(tmp_path / "out")) == 0
    found = sorted(rows(tmp_path / "out"), key=lambda r: str(r["url"]))
    assert [(r["url"], r["text"], r["page_language"]) for r in found] == [
        (f"http://site.test/{i}.png", f"number {i}", "en") for i in range(3)
    ]
    assert all(r["pair_id"] == pair_id(r["url"], r["text"]) and r["origin"] == "a.warc" for r in found)
    if kind != "zst":
        assert [r["origin_offset"] for r in found] == offsets
    assert dropped(tmp_path / "out") == {}


def test_what_is_no_page_is_dropped_with_its_reason(tmp_path: Path) -> None:
    image = b'<img src=a.png alt="an apple">'
    html = ("Content-Type", "text/html")
    records = [
        {"url": "http://x.test/gz", "body": gzip.compress(image), "headers": [html, ("Content-Encoding", "gzip")]},
        {"url": "http://x.test/liar", "body": image, "headers": [html, ("Content-Encoding", "gzip")]},
        {"url": "http://x.test/latin", "body": "<img src=l alt=café>".encode("cp1252"),
         "headers": [("Content-Type", "text/html; charset=ISO-8859-1")]},
        {"url": "http://x.test/404", "body": image, "status": "404 Not Found"},
        {"url": "http://x.test/png", "body": b"\x89PNG", "headers": [("Content-Type", "image/png")]},
        {"url": "http://x.test/noai", "body": image, "headers": [html, ("X-Robots-Tag", "noai")]},
        {"url": "http://x.test/bomb", "body": gzip.compress(b"x" * 200_000),
         "headers": [html, ("Content-Encoding", "gzip")]},
        {"url": "http://x.test/large", "body": b"x" * 200_000},
        {"url": "http://x.test/res", "body": b"text", "kind": "resource"},
    ]  # fmt: skip
    write_warc(tmp_path / "a.warc.gz", records)
    out = tmp_path / "out"
    assert run("--warc", str(tmp_path), "--out", str(out), "--max-page-bytes", "100000") == 0
    assert sorted((r["page_url"], r["text"]) for r in rows(out)) == [
        ("http://x.test/gz", "an apple"),
        ("http://x.test/latin", "café"),
        ("http://x.test/liar", "an apple"),
    ]
    assert dropped(out) == {"http_status": 1, "not_html": 2, "page_opted_out": 1, "too_large": 2}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("damage", ["header", "body", "end", "end_of_header"])
def test_one_bad_record_costs_that_record(tmp_path: Path, packed: bool, damage: str) -> None:
    path = tmp_path / "a.warc"
    offsets = write_warc(path, pages(6), packed=packed)
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[offsets[3] : offsets[3] + 8] = b"GARBAGE!"
    elif damage == "body":
        middle = (offsets[3] + offsets[4]) // 2
        data[middle : middle + 8] = b"GARBAGE!" if packed else bytes(data[middle : middle + 8])
        if not packed:
            at = data.index(b"Content-Length", offsets[3])
            data[at : at + 14] = b"Kontent-Length"
    elif damage == "end":
        del data[-60:]
    else:
        del data[offsets[5] + 7 :]
    path.write_bytes(bytes(data))
    assert run("--warc", str(path), "--out", str(tmp_path / "out")) == 0
    lost = 3 if damage in ("header", "body") else 5
    assert sorted(r["text"] for r in rows(tmp_path / "out")) == [f"number {i}" for i in range(6) if i != lost]
    assert sum(dropped(tmp_path / "out").values()) == 1
    if damage == "end":
        assert dropped(tmp_path / "out") == {"truncated": 1}


def wat_record(url: str, links: list[dict[str, str]], **head: Any) -> bytes:
    response = {
        "Response-Message": {"Status": "200"},
        "Headers": head.pop("headers", {"Content-Language": "en"}),
        "HTML-Metadata": {"Head": head, "Links": links},
    }
    envelope = {
        "WARC-Header-Metadata": {"WARC-Target-URI": url},
        "Payload-Metadata": {"HTTP-Response-Metadata": response},
    }
    return json.dumps({"Envelope": envelope}).encode()


def test_wat(tmp_path: Path) -> None:
    image = {"path": "IMG@/src", "url": "i/a.png", "alt": "an apple", "title": "an apple"}
    bodies = [
        wat_record(
            "http://x.test/d/p",
            [image, {"path": "A@/href", "url": "b"}, {"path": "IMG@/src", "url": "n.png"}],
        ),
        wat_record("http://x.test/b", [image], Base="http://cdn.test/"),
        wat_record("http://x.test/r", [image], Metas=[{"name": "robots", "content": "noai"}]),
        b"{broken",
        json.dumps({"Envelope": {"Payload-Metadata": {"HTTP-Request-Metadata": {}}}}).encode(),
    ]
    buffer = io.BytesIO()
    writer = writer_to(buffer, packed=True)
    for body in bodies:
        record = writer.create_warc_record(
            "http://x.test/", "metadata", payload=io.BytesIO(body), warc_content_type="application/json"
        )
        writer.write_record(record)
    (tmp_path / "a.warc.wat.gz").write_bytes(buffer.getvalue())
    out = tmp_path / "out"
    assert run("--wat", str(tmp_path), "--out", str(out)) == 0
    assert sorted((r["url"], r["text"], r["page_language"]) for r in rows(out)) == [
        ("http://cdn.test/i/a.png", "an apple", "en"),
        ("http://x.test/d/i/a.png", "an apple", "en"),
    ]
    assert dropped(out) == {"no_text": 1, "page_opted_out": 1, "parse_error": 1}


def test_saved_pages_know_their_url(tmp_path: Path) -> None:
    web = tmp_path / "web"
    (web / "sub").mkdir(parents=True)
    body = '<img src="a.png" alt="an apple">'
    (web / "listed.html").write_text(body)
    (web / "canonical.html").write_text(f'<link rel="canonical" href="http://own.test/c/">{body}')
    (web / "base.html").write_text(f'<base href="http://base.test/b/">{body}')
    (web / "sub" / "plain page.htm").write_text(body)
    (web / "urls.tsv").write_text("path\turl\nlisted.html\thttp://listed.test/l/\n")
    assert run("--html", str(web), "--out", str(tmp_path / "one")) == 0
    expected = {"http://listed.test/l/a.png", "http://own.test/c/a.png", "http://base.test/b/a.png"}
    assert {r["url"] for r in rows(tmp_path / "one")} == expected
    assert dropped(tmp_path / "one") == {"relative_url": 1}
    assert run("--html", str(web), "--base-url", "http://here.test/w", "--out", str(tmp_path / "two")) == 0
    assert {r["url"] for r in rows(tmp_path / "two")} == expected | {"http://here.test/w/sub/a.png"}
    assert {r["origin"] for r in rows(tmp_path / "two")} >= {"listed.html", "sub/plain page.htm"}


def test_saved_page_that_cannot_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.html.gz").write_bytes(gzip.compress(b"<img src=http://x.test/a alt=a>" * 9)[:-9])
    (tmp_path / "b.html").write_bytes(b"<img src=http://x.test/b alt=b>")
    assert run("--html", str(tmp_path), "--out", str(tmp_path / "out")) == 0
    assert len(rows(tmp_path / "out")) == 1
    assert dropped(tmp_path / "out") == {"parse_error": 1}


TABLE = [
    ("http://x.test/1.jpg", "one  apple"),
    ("http://x.test/2.jpg", 'two "good" apples'),
    ("not a url", "three"),
    ("ftp://x.test/4.jpg", "four"),
    ("http://x.test/5.jpg", ""),
]


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl", "csv.gz"])
def test_tables(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        columns = {"link": [u for u, _ in TABLE], "words": [t or None for _, t in TABLE]}
        pq.write_table(pa.table(columns), path, row_group_size=2)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"link": u, "words": t}) + "\n" for u, t in TABLE))
    elif kind == "tsv":
        path.write_text("link\twords\n" + "".join(f"{u}\t{t}\n" for u, t in TABLE))
    else:
        quoted = (t.replace('"', '""') for _, t in TABLE)
        text = "link,words\n" + "".join(f'{u},"{t}"\n' for (u, _), t in zip(TABLE, quoted, strict=True))
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    out = tmp_path / "out"
    assert run("--table", str(path), "--url-column", "link", "--text-column", "words", "--out", str(out)) == 0
    assert sorted((r["url"], r["text"], r["origin_offset"]) for r in rows(out)) == [
        ("http://x.test/1.jpg", "one apple", 0),
        ("http://x.test/2.jpg", 'two "good" apples', 1),
    ]
    assert dropped(out) == {"relative_url": 1, "blocked_scheme": 1, "no_text": 1}


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "cc12m.tsv"])
def test_large_text_tables_are_shared_out_by_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    table = [(f"http://x.test/{i}.jpg", f"apple {i} " + "é" * (i % 50)) for i in range(500)]
    if kind == "jsonl":
        text = "".join(json.dumps({"url": u, "text": t}, ensure_ascii=False) + "\n" for u, t in table)
    else:
        head = "" if kind == "cc12m.tsv" else "url\ttext\n"
        text = head + "".join(f"{u}\t{t}\n" for u, t in table)
    path = tmp_path / f"t.{kind}"
    path.write_text(text.rstrip("\n"))
    layout = ["--layout", "cc12m"] if kind == "cc12m.tsv" else []
    assert run("--table", str(path), *layout, "--out", str(tmp_path / "one")) == 0
    given = LAYOUTS["cc12m"] if layout else by_names("url", "text")
    assert len(table_parts(str(path), "t", given)) == 1
    monkeypatch.setattr(ranges.line_ranges, "__kwdefaults__", {"split_bytes": 1000})
    assert len(table_parts(str(path), "t", given)) > 20
    assert run("--table", str(path), *layout, "--out", str(tmp_path / "many")) == 0
    assert files(tmp_path / "one") == files(tmp_path / "many")
    assert sorted(r["origin_offset"] for r in rows(tmp_path / "many")) == list(range(500))
    packed = tmp_path / f"{kind}.gz"
    packed.write_bytes(gzip.compress(random.Random(0).randbytes(5000)))
    assert ranges.line_ranges(str(packed)) == [ranges.LineRange()]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_line_without_end_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("pipeline.candidates.rows.MOST_LINE_BYTES", 1000)
    rest = '{"url": "http://x.test/1", "text": "a"}\n' if kind == "jsonl" else "http://x.test/1,a\n"
    head = "" if kind == "jsonl" else "url,text\n"
    text = head + "x" * 1_500 + "\n" + rest
    (tmp_path / f"t.{kind}").write_text(text.replace(",", "\t") if kind == "tsv" else text)
    out = tmp_path / "out"
    assert run("--table", str(tmp_path / f"t.{kind}"), "--out", str(out)) == 0
    assert [r["text"] for r in rows(out)] == ["a"]
    assert dropped(out)["parse_error"] in (1, 2)


YFCC = "\t".join(
    ["{id}", "1@N0", "nick", "date", "1", "cam", "{title}", "{text}", "tag", "", "", "", "", "http://f.test/p", "{url}",
     "licence", "http://l.test", "1", "1", "s", "o", "jpg", "{marker}"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "name", "content", "expected"),
    [
        ("cc3m", "t.tsv", "a red apple\thttp://x.test/1.jpg\n", [("a red apple", "caption")]),
        ("cc12m", "t.tsv", "http://x.test/1.jpg\ta red apple\nhttp://x.test/2.jpg\ttwo\tthree\n",
         [("a red apple", "caption")]),
        ("laion", "t.csv", "SAMPLE_ID,URL,TEXT\n1,http://x.test/1.jpg,a red apple\n", [("a red apple", "caption")]),
        ("laion", "t.csv", "url,caption\nhttp://x.test/1.jpg,a red apple\n", [("a red apple", "caption")]),
        ("img2dataset", "t.jsonl", '{"url": "http://x.test/1.jpg", "caption": "an apple"}\n{"url": "http://x.test/2"}\n',
         [("an apple", "caption")]),
        ("yfcc100m", "t.tsv", "\n".join(
            [YFCC.format(id=1, title="Red+apple", text="on+a%20table", url="http://x.test/1.jpg", marker=0),
             YFCC.format(id=2, title="Film", text="", url="http://x.test/2.jpg", marker=1)]) + "\n",
         [("Red apple", "title"), ("on a table", "description")]),
        ("yfcc100m", "t.tsv",
         "7\t" + YFCC.format(id="1\tf00d", title="Apple", text="", url="http://x.test/1.jpg", marker=0),
         [("Apple", "title")]),
    ],
)  # fmt: skip
def test_layouts_of_known_datasets(
    tmp_path: Path, layout: str, name: str, content: str, expected: list[tuple[str, str]]
) -> None:
    (tmp_path / name).write_text(content)
    out = tmp_path / "out"
    assert run("--table", str(tmp_path / name), "--layout", layout, "--out", str(out)) == 0
    assert sorted((r["text"], r["text_source"]) for r in rows(out)) == sorted(expected)
    assert {r["url"] for r in rows(out)} == {"http://x.test/1.jpg"}
    lost = {"cc12m": "parse_error", "img2dataset": "no_text"} | (
        {"yfcc100m": "not_an_image"} if len(expected) > 1 else {}
    )
    assert dropped(out) == ({lost[layout]: 1} if layout in lost else {})


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_rows_whose_scores_break_a_limit_are_dropped(tmp_path: Path, kind: str) -> None:
    scored = [
        ("kept", 0.05, 0.3),
        ("edge", 0.1, 0.28),
        ("unsafe", 0.9, 0.3),
        ("unlike", 0.0, 0.1),
        ("unknown", None, 0.3),
    ]
    table = pa.table(
        {
            "url": [f"http://x.test/{name}.jpg" for name, *_ in scored],
            "text": [f"an apple, {name}" for name, *_ in scored],
            "punsafe": [unsafe for _, unsafe, _ in scored],
            "similarity": [alike for *_, alike in scored],
        }
    )
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        csv.write_csv(table, path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    out = tmp_path / "out"
    limits = ("--score", "punsafe<=0.1", "--score", "similarity >= 0.28")
    assert run("--table", str(path), *limits, "--out", str(out)) == 0
    assert sorted(r["text"] for r in rows(out)) == ["an apple, edge", "an apple, kept"]
    assert dropped(out) == {"score": 3}
    details = (
        tables.read_files([str(f) for f in (out / "dropped").glob("*.parquet")]).column("detail").to_pylist()
    )
    assert any("punsafe is 0.9" in d for d in details)
    assert any("similarity is 0.1" in d for d in details)


def test_limits_that_cannot_be_kept_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("url,text\nhttp://x.test/1.jpg,a\n")
    given = ("--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"))
    assert run(*given, "--score", "punsafe<=0.1") == 1
    assert "no column 'punsafe'" in capsys.readouterr().err
    assert run(*given, "--score", "punsafe=0.1") == 2
    assert "COLUMN<=NUMBER" in capsys.readouterr().err


def test_the_nearest_text_of_saved_pages(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.html").write_text("<div><img src=a.jpg> a fox in the snow</div>")
    given = ("--html", str(tmp_path / "in"), "--base-url", "http://x.test/", "--out", str(tmp_path / "out"))
    assert run(*given, "--nearest-chars", "100") == 0
    assert [(r["text"], r["text_source"]) for r in rows(tmp_path / "out")] == [
        ("a fox in the snow", "nearest")
    ]


def test_every_layout_may_be_configured() -> None:
    for name in LAYOUTS:
        assert (
            from_table(CandidatesConfig, {"table": ("t.csv",), "layout": name}, where="[candidates]").layout
            == name
        )


def test_layouts_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("link,words\nhttp://x.test/1.jpg,a\n")
    out = str(tmp_path / "out")
    assert run("--table", str(tmp_path / "t.csv"), "--layout", "laion", "--out", out) == 1
    assert "no column 'URL' or 'url'" in capsys.readouterr().err
    assert run("--table", str(tmp_path / "t.csv"), "--layout", "yfcc100m", "--out", out) == 1
    assert "too few columns: no 'downloadurl'" in capsys.readouterr().err
    assert (
        run("--table", str(tmp_path / "t.csv"), "--layout", "laion", "--url-column", "link", "--out", out)
        == 2
    )
    assert "leave out url_column" in capsys.readouterr().err


def test_bad_lines_cost_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"url": "http://x.test/1", "text": "cut \\ud83d"}\n{broken\n[1]\n{"text": "b"}\n'
    )
    (tmp_path / "b.csv").write_text("url,text\nhttp://x.test/2,b\nonly\nhttp://x.test/3,c,more\n")
    out = tmp_path / "out"
    assert run("--table", str(tmp_path), "--out", str(out)) == 0
    assert sorted(r["url"] for r in rows(out)) == ["http://x.test/1", "http://x.test/2", "http://x.test/3"]
    assert {r["text"] for r in rows(out)} == {"cut \ufffd", "b", "c"}
    assert dropped(out) == {"parse_error": 4}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}


def test_same_bytes_for_any_order_place_and_engine(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    write_warc(tmp_path / "here" / "a.warc.gz", pages(5))
    write_warc(tmp_path / "here" / "b.warc.gz", pages(8)[3:])
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = tmp_path / "here", tmp_path / "there"
    assert run("--warc", str(here), "--out", str(tmp_path / "one")) == 0
    assert (
        run("--warc", str(there / "b.warc.gz"), str(there / "a.warc.gz"), "--out", str(tmp_path / "two")) == 0
    )
    engine = ["--", "--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]
    assert (
        cli.main(["candidates", "--quiet", "--warc", str(here), "--out", str(tmp_path / "three"), *engine])
        == 0
    )
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")
    assert len(rows(tmp_path / "one")) == 10


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--warc", "missing.warc"], 1, "missing.warc: no such warc files"),
        (["--html", "empty"], 1, "the folder holds no saved pages"),
        (["--table", "photo.jpg"], 1, "not a table that we read"),
        (["--table", "fake.parquet"], 1, "not a readable Parquet file"),
        (["--table", "t.csv"], 1, "no column 'url'"),
        (["--warc", "photo.jpg"], 1, "nothing in the input can be read as warc"),
        (["--warc", "zero.warc"], 1, "nothing in the input can be read as warc"),
        ([], 2, "exactly one of warc, wat, html and table"),
        (["--warc", "a", "--html", "b"], 2, "warc and html are given"),
        (["--warc", "photo.jpg", "--base-url", "http://x"], 2, "is for saved pages"),
        (["--html", "empty", "--base-url", "x.test"], 2, "must start with http"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], status: int, words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff" + zlib.compress(b"x" * 1000))
    (tmp_path / "zero.warc").write_bytes(b"")
    (tmp_path / "fake.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert run(*arguments, "--out", "out") == status
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()
