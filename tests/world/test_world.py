"""The small world keeps its promises: size, licences, coverage, links, and what was planted where."""

from __future__ import annotations

import bz2
import fnmatch
import hashlib
import io
import re
import zipfile
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from PIL import Image

WORLD = Path(__file__).parents[2] / "examples" / "world"
SITES = ("openmoji", "twemoji", "fluent")
DESIGNERS = (*SITES, "noto")
PORTS = {8731 + number: site for number, site in enumerate(SITES)}
MAX_BYTES = 25 * 2**20


def rows(name: str) -> list[dict[str, str]]:
    head, *lines = (WORLD / name).read_text(encoding="utf-8").splitlines()
    return [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]


@cache
def archive(name: str) -> dict[str, bytes]:
    with zipfile.ZipFile(WORLD / name) as opened:
        assert opened.testzip() is None
        return {member: opened.read(member) for member in opened.namelist()}


def world_files() -> list[str]:
    paths = (path for path in WORLD.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path.relative_to(WORLD).as_posix() for path in paths)


class ImageTags(HTMLParser):
    """The img tags of one page, with the address that its pictures are relative to."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.base = url
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "base":
            self.base = urljoin(self.base, values["href"])
        if tag == "img":
            written = values.get("data-src") or values.get("src", "")
            self.found.append({**values, "url": urljoin(self.base, written)})


@cache
def image_tags(site: str) -> dict[str, list[dict[str, str]]]:
    port = 8731 + SITES.index(site)
    result = {}
    for path in sorted((WORLD / "web" / site).rglob("*.html")):
        page = "/" + path.relative_to(WORLD / "web" / site).as_posix()
        tags = ImageTags(f"http://127.0.0.1:{port}{page}")
        tags.feed(path.read_bytes().decode("utf-8", "replace"))
        result[page] = tags.found
    return result


def target(url: str) -> bytes | None:
    """What the demo's server would answer."""
    parts = urlsplit(url)
    site = PORTS.get(parts.port or 0)
    if parts.scheme != "http" or parts.hostname != "127.0.0.1" or site is None:
        return None
    if parts.path.startswith("/p/"):
        return archive(f"pictures/{site}.zip").get(parts.path[3:])
    return archive(f"web/{site}/files.zip").get(parts.path[1:])


def test_it_fits_into_the_repository() -> None:
    assert sum((WORLD / name).stat().st_size for name in world_files()) <= MAX_BYTES


def test_the_table_names_every_file_and_every_named_file_exists() -> None:
    readme = (WORLD / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("## Every file") :]
    patterns = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", table, flags=re.MULTILINE)
    files = world_files()

    def named(file: str, pattern: str) -> bool:
        return fnmatch.fnmatchcase(file, pattern.replace("**/*", "*"))

    assert [file for file in files if not any(named(file, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(named(file, pattern) for file in files)] == []


def test_labels_are_unique_and_class_names_are_the_labels() -> None:
    concepts = rows("pictures/concepts.tsv")
    labels = [row["label"].casefold() for row in concepts]
    assert len(set(labels)) == len(labels) >= 1_500
    classes = {row["folder"]: row["class_name"] for row in rows("eval/classnames.tsv")}
    assert classes == {row["hexcode"]: row["label"] for row in concepts}
    prompts = (WORLD / "eval" / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert 6 <= len(prompts) <= 8
    assert all(prompt.count("{}") == 1 for prompt in prompts)


@pytest.mark.parametrize("designer", DESIGNERS)
def test_the_pictures_are_those_of_the_table_and_decode(designer: str) -> None:
    pictures = archive(f"pictures/{designer}.zip")
    drawn = [
        row["hexcode"] for row in rows("pictures/concepts.tsv") if designer in row["designers"].split("|")
    ]
    assert sorted(pictures) == sorted(f"{name}.webp" for name in drawn)
    assert len(drawn) >= 1_500
    for name in sorted(pictures)[::40]:
        picture = Image.open(io.BytesIO(pictures[name]))
        picture.load()
        assert picture.size == (96, 96)


def test_every_concept_is_drawn_by_noto_and_two_others() -> None:
    for row in rows("pictures/concepts.tsv"):
        designers = set(row["designers"].split("|"))
        assert "noto" in designers
        assert len(designers) >= 3


@pytest.mark.parametrize("site", SITES)
def test_the_site_map_lists_pages_that_exist_and_all_but_the_private_ones(site: str) -> None:
    listed = (WORLD / "web" / site / "sitemap.txt").read_text(encoding="utf-8").split()
    assert 40 <= len(listed) <= 70
    assert {page for page in image_tags(site) if not page.startswith("/private/")} == set(listed)


def is_data(url: str) -> bool:
    return url.startswith("data:")


@pytest.mark.parametrize("site", SITES)
def test_every_picture_exists_but_those_that_are_missing_on_purpose(site: str) -> None:
    planted = {(row["page"], row["url"]) for row in rows("truth/broken.tsv") if row["site"] == site}
    missing = {
        (page, tag["url"])
        for page, tags in image_tags(site).items()
        for tag in tags
        if target(tag["url"]) is None
    }
    assert missing - planted == set()
    reasons = {row["reason"] for row in rows("truth/broken.tsv")}
    assert {"missing", "link-local address", "private address", "empty file", "HTML named .jpg"} <= reasons


def closed(site: str, page: str) -> bool:
    """Whether a page is kept from crawlers, opts out, or speaks another language."""
    text = (WORLD / "web" / site / page[1:]).read_bytes()
    language = re.search(rb'<html lang="([a-z]+)', text)
    foreign = language is not None and language[1] != b"en"
    return page.startswith("/private/") or b"noai" in text or b"tdm-reservation" in text or foreign


@pytest.mark.parametrize("site", SITES)
def test_every_concept_stands_on_an_open_page_and_most_are_named(site: str) -> None:
    labels = {
        row["hexcode"]: row["label"].lower()
        for row in rows("pictures/concepts.tsv")
        if site in row["designers"].split("|")
    }
    port = 8731 + SITES.index(site)
    shown: set[str] = set()
    named: set[str] = set()
    for page, tags in image_tags(site).items():
        if closed(site, page):
            continue
        text = (WORLD / "web" / site / page[1:]).read_bytes().decode("utf-8", "replace")
        assert "<html" in text
        for tag in tags:
            match = re.fullmatch(rf"http://127\.0\.0\.1:{port}/p/([^/]+)\.webp", tag["url"])
            if match and match[1] in labels:
                shown.add(match[1])
                said = (tag.get("alt", "") + " " + tag.get("title", "")).lower()
                if labels[match[1]] in said:
                    named.add(match[1])
    assert shown == set(labels)
    # The rest is named in figure captions.
    assert len(named) >= 0.8 * len(labels)


def test_about_a_quarter_of_the_img_tags_is_noise() -> None:
    for site in SITES:
        kinds = {row["kind"]: int(row["img_tags"]) for row in rows("truth/tags.tsv") if row["site"] == site}
        noise = sum(kinds.values()) - kinds["good"]
        assert 0.2 <= noise / sum(kinds.values()) <= 0.33


def test_leaks_exist_and_are_altered_copies_placed_on_open_pages() -> None:
    leaks = rows("truth/leaks.tsv")
    noto = archive("pictures/noto.zip")
    assert 0.04 <= len(leaks) / len(noto) <= 0.06
    assert len({row["eval_id"] for row in leaks}) == len(leaks)
    originals = {hashlib.sha256(body).digest() for body in noto.values()}
    for row in leaks:
        folder, name = row["eval_id"].split("/")
        assert name == f"{folder}.webp"
        assert name in noto
        body = archive(f"web/{row['site']}/files.zip")[row["path"][1:]]
        assert hashlib.sha256(body).digest() not in originals
        Image.open(io.BytesIO(body)).load()
        port = 8731 + SITES.index(row["site"])
        pages = [
            page
            for page, tags in image_tags(row["site"]).items()
            if any(tag["url"] == f"http://127.0.0.1:{port}{row['path']}" for tag in tags)
        ]
        assert pages
        assert not all(closed(row["site"], page) for page in pages)


def test_what_is_left_out_is_alike_and_never_planted() -> None:
    left_out = rows("eval/left-out.tsv")
    assert 20 <= len({row["eval_id"] for row in left_out}) <= 0.05 * len(archive("pictures/noto.zip"))
    assert not {row["eval_id"] for row in left_out} & {row["eval_id"] for row in rows("truth/leaks.tsv")}
    assert all(row["like"].partition("/")[2] == row["eval_id"].partition("/")[0] for row in left_out)
    assert all(0 < float(row["distance"]) <= 0.08 for row in left_out)


def test_no_picture_of_the_evaluation_set_stands_elsewhere_unaltered() -> None:
    originals = {hashlib.sha256(body).digest() for body in archive("pictures/noto.zip").values()}
    for name in [f"pictures/{site}.zip" for site in SITES] + [f"web/{site}/files.zip" for site in SITES]:
        for member, body in archive(name).items():
            assert hashlib.sha256(body).digest() not in originals, (name, member)


@pytest.mark.parametrize("site", SITES)
def test_the_odd_files_are_what_their_table_says(site: str) -> None:
    files = archive(f"web/{site}/files.zip")
    for row in rows("truth/files.tsv"):
        if row["site"] != site:
            continue
        body = files[row["path"][1:]]
        if row["usable"] == "yes":
            Image.open(io.BytesIO(body)).load()
    assert Image.open(io.BytesIO(files["f/odd/cmyk.jpg"])).mode == "CMYK"
    assert Image.open(io.BytesIO(files["f/odd/sixteen-bit.png"])).mode == "I;16"
    assert Image.open(io.BytesIO(files["f/odd/turned.jpg"])).getexif()[0x0112] == 6
    assert getattr(Image.open(io.BytesIO(files["f/odd/animated.gif"])), "n_frames", 1) == 2
    assert len(files["f/odd/huge.png"]) < 500_000
    assert int.from_bytes(files["f/odd/huge.png"][16:20], "big") >= 10_000
    assert files["f/odd/empty.jpg"] == b""
    with pytest.raises(OSError, match=r"[Tt]runcated"):
        Image.open(io.BytesIO(files["f/odd/half.jpg"])).load()


def test_the_page_views_have_the_format_of_the_real_ones() -> None:
    lines = bz2.decompress((WORLD / "text" / "pageviews-201604-user.bz2").read_bytes()).splitlines()
    english = [line for line in lines if line.startswith(b"en.wikipedia ")]
    assert len(english) > 1_000
    for line in english:
        fields = line.split(b" ")
        assert len(fields) == 6
        assert fields[3] in (b"desktop", b"mobile-web", b"mobile-app")
        assert int(fields[4]) > 0
    with pytest.raises(UnicodeDecodeError):
        b"\n".join(lines).decode()
    note = (WORLD / "text" / "SOURCE.md").read_text(encoding="utf-8")
    assert "numbers in this file are made" in note
