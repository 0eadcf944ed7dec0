"""Folders of saved pages."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from pipeline.candidates.apart import PageReader
from pipeline.candidates.encoding import decode
from pipeline.candidates.found import Lost, Pair
from pipeline.candidates.page import Context
from pipeline.candidates.urls import known_url
from pipeline.core import paths
from pipeline.core.errors import InputError

SUFFIXES = (".html", ".htm", ".xhtml", ".html.gz", ".htm.gz")
URLS = "urls.tsv"


@dataclass(frozen=True, slots=True)
class SavedPage:
    """One saved page.

    Attributes:
        path: Where the file lies.
        origin: How the result names it.
        url: Its URL as ``urls.tsv`` gives it, if it does.
        fallback_url: ``--base-url`` and its path, for a page that says nothing about its URL.
    """

    path: str
    origin: str
    url: str | None
    fallback_url: str | None


def saved_pages(given: Sequence[str], base_url: str | None) -> list[SavedPage]:
    """The pages below the given folders (or single files), with what is known about their URLs.

    Raises:
        InputError: A path does not exist or holds no page; a line of ``urls.tsv`` is not ``path<TAB>url``.
    """
    origins = origins_of(paths.expand(given, suffixes=SUFFIXES, what="saved pages"))
    pages: dict[str, SavedPage] = {}
    for pattern in given:
        folder = pattern.rstrip("/") if paths.is_folder(pattern) else None
        known = _url_table(folder) if folder is not None else {}
        for path in paths.expand([pattern], suffixes=SUFFIXES, what="saved pages"):
            relative = path[len(folder) :].lstrip("/") if folder is not None else path.rsplit("/", 1)[-1]
            fallback = None if base_url is None else base_url.rstrip("/") + "/" + quote(relative)
            pages.setdefault(path, SavedPage(path, origins[path], known.get(relative), fallback))
    return [pages[path] for path in sorted(pages)]


def origins_of(files: Sequence[str]) -> dict[str, str]:
    """Each file's name without the folder that all of them share: equal wherever the input lies."""
    split = {f: f.split("/") for f in files}
    shared = 0
    folders = [parts[:-1] for parts in split.values()]
    while folders and all(len(f) > shared and f[shared] == folders[0][shared] for f in folders):
        shared += 1
    return {f: "/".join(parts[shared:]) for f, parts in split.items()}


def read_saved(
    page: SavedPage,
    pages: PageReader,
    *,
    max_page_bytes: int,
    max_text_chars: int,
    keep_opted_out: bool,
    nearest_chars: int = 0,
) -> Iterator[Pair | Lost]:
    """Pairs of one saved page, and what was lost."""
    try:
        with paths.open_input(page.path) as file:
            data = file.read(max_page_bytes + 1)
    except (OSError, EOFError, InputError) as error:
        yield Lost("parse_error", page.origin, str(error))
        return
    if len(data) > max_page_bytes:
        yield Lost("too_large", page.origin, f"more than {max_page_bytes} bytes")
        return
    context = Context(
        url=page.url,
        origin=page.origin,
        own_url=True,
        fallback_url=page.fallback_url,
        keep_opted_out=keep_opted_out,
        max_text_chars=max_text_chars,
        nearest_chars=nearest_chars,
    )
    yield from pages.read(decode(data), context)


def _url_table(folder: str) -> Mapping[str, str]:
    name = paths.join(folder, URLS)
    if not paths.exists(name):
        return {}
    text = paths.read_bytes(name).decode("utf-8-sig", errors="replace")
    known: dict[str, str] = {}
    rows = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(rows, start=1):
        if not row or row == ["path", "url"]:
            continue
        url = known_url(row[1]) if len(row) >= 2 else None
        if url is None:
            raise InputError(
                "cannot read a line", where=f"{name}:{number}", expected="path<TAB>url", found=repr(row)[:200]
            )
        known[row[0].removeprefix("./")] = url
    return known
