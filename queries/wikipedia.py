"""Wikipedia's articles from its dumps: pages-articles XML in any packing, or Parquet/JSONL with title and text.

A file is read in splits that workers take independently. A multistream dump splits between its bzip2 streams (the
first holds the header alone, each later one 100 whole pages), at the offsets of its index if that lies beside it
and anywhere else by scanning for stream headers; plain XML splits anywhere, a page belongs to the split in which it
begins; Parquet splits by row groups. Everything else is one split: gzip and zstd cannot be read from the middle, and
of a single bzip2 stream only the compressed blocks could, which begin at any bit and cut pages in two, so its reader
would have to guess at both; Wikipedia publishes each such file as multistream too. Elements are matched by local
name, so every schema version reads alike.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import json_input, paths
from pipeline.core.errors import InputError
from queries import streams
from queries.streams import Gap, Loss
from queries.wikitext import FILE_NAMES

SPLIT_BYTES = 8 << 20  # compressed; about 30 MB of XML
_XML_PER_BYTE = 4  # of a compressed dump
ROW_GROUPS = 8
# MediaWiki stores at most 2 MiB of text in a page; what is longer is not a page.
_LONGEST_PAGE = 64 << 20

_OPEN, _CLOSE = b"<page>", b"</page>"
_PLAIN_HEAD = 64  # bytes that tell whether a file is what its decompressed content is
_INDEX_LINE = re.compile(rb"^(\d+):\d+:", re.M)
_ENGLISH = ("Talk", "User", "User talk", "Wikipedia", "Wikipedia talk", "File", "File talk", "MediaWiki",
            "MediaWiki talk", "Template", "Template talk", "Help", "Help talk", "Category", "Category talk",
            "Portal", "Portal talk", "Draft", "Draft talk", "TimedText", "TimedText talk", "Module",
            "Module talk", "Book", "Book talk", "Special", "Media")  # fmt: skip


@dataclass(frozen=True)
class Site:
    """What a dump says about its wiki.

    Attributes:
        project: Language code as page views name it (``en``).
        namespaces: Names of all namespaces but the articles', case-folded.
        hidden: Names of the file and category namespaces.
        main_page: The main page's title.
        first_letter: Whether titles begin with a capital letter whatever was typed.
    """

    project: str = "en"
    namespaces: frozenset[str] = frozenset(n.casefold() for n in _ENGLISH)
    hidden: tuple[str, ...] = FILE_NAMES
    main_page: str = "Main Page"
    first_letter: bool = True


@dataclass(frozen=True)
class Split:
    """A part of a dump file that one worker reads.

    Attributes:
        path: File.
        kind: ``xml`` (packed, its splits hold whole pages), ``plain`` (XML, split anywhere), ``parquet`` or ``jsonl``.
        start: First byte, or first row group of Parquet.
        end: One past the last.
        site: The wiki it comes from.
    """

    path: str
    kind: str
    start: int
    end: int
    site: Site = field(repr=False, default_factory=Site)


@dataclass(frozen=True)
class Page:
    """An article or a redirect.

    Attributes:
        title: As stored, with spaces.
        text: Wikitext, or plain text; empty for redirects.
        target: Title that a redirect leads to, else ``None``.
        plain: Whether the text is plain already.
    """

    title: str
    text: str
    target: str | None = None
    plain: bool = False


def plan(files: Sequence[str]) -> list[Split]:
    """Splits of dump files, in the order of the files; index files serve the dump beside them.

    Raises:
        InputError: A file is not a dump, or there is none but indexes.
    """
    indexes = {f for f in files if _is_index(f)}
    splits: list[Split] = []
    for path in files:
        if path not in indexes:
            splits += _splits(path, indexes)
    if not splits:
        raise InputError("only index files, no dump", where=", ".join(sorted(indexes)))
    return splits


def _is_index(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return "-index" in name and ".txt" in name


def _splits(path: str, indexes: set[str]) -> list[Split]:
    if paths.size(path) == 0:
        raise InputError("the dump is an empty file", where=path)
    head, second = streams.first_stream(path)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"PAR1"):
        return _parquet_splits(path)
    if start.startswith(b"{"):
        return [Split(path, "jsonl", 0, paths.size(path))]
    if b"<mediawiki" not in start[:4096] and not (start.startswith(b"<") and b"<page>" in start):
        raise InputError(
            "not a Wikipedia dump",
            where=path,
            expected="pages-articles XML (plain, gz, bz2), or Parquet or JSONL with title and text",
            found=repr(start[:40]),
        )
    site, size = read_site(head), paths.size(path)
    with paths.open_input(path, decompress=False) as raw:
        plain = raw.read(_PLAIN_HEAD) == head[:_PLAIN_HEAD]
    if plain:
        ranges = _ranges(range(0, size, _XML_PER_BYTE * SPLIT_BYTES), size)
        return [Split(path, "plain", a, b, site) for a, b in ranges]
    # Only MediaWiki's own layout keeps pages whole within streams: the header alone in the first one.
    if second is None or _OPEN in head:
        return [Split(path, "xml", 0, size, site)]
    return [Split(path, "xml", a, b, site) for a, b in _ranges(_edges(path, indexes, second, size), size)]


def _edges(path: str, indexes: set[str], second: int, size: int) -> list[int]:
    """Places where a split may begin: streams of the index, or every SPLIT_BYTES where there is no index."""
    folder, _, name = path.rpartition("/")
    beside = paths.join(folder, index_name(name)) if folder else index_name(name)
    for index in (*sorted(i for i in indexes if i.endswith(index_name(name))), beside):
        if index in indexes or paths.exists(index):
            return sorted({second, *_offsets(index, size)})
    return list(range(second, size, SPLIT_BYTES))


def index_name(name: str) -> str:
    """A dump's index: ``…-multistream1.xml-p1p9.bz2`` has ``…-multistream-index1.txt-p1p9.bz2``."""
    return re.sub(r"(\d*)\.xml(-p\d+p\d+)?\.bz2$", r"-index\1.txt\2.bz2", name)


def _offsets(index: str, size: int) -> set[int]:
    lost: list[Loss] = []
    found: set[int] = set()
    rest = b""
    for chunk in streams.read(index, 0, paths.size(index), lost):
        if isinstance(chunk, Gap):
            break
        lines = rest + chunk
        rest = lines[lines.rfind(b"\n") + 1 :]
        found.update(int(m[1]) for m in _INDEX_LINE.finditer(lines[: len(lines) - len(rest)]))
    return {offset for offset in found if offset < size}


def _ranges(edges: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    begin = edges[0]
    for edge in edges[1:]:
        if edge - begin >= SPLIT_BYTES:
            yield begin, edge
            begin = edge
    yield begin, size


def _parquet_splits(path: str) -> list[Split]:
    with paths.open_input(path, decompress=False) as file:
        try:
            opened = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError("not a readable Parquet file", where=path, found=str(error)) from error
        missing = [c for c in ("title", "text") if c not in opened.schema_arrow.names]
        if missing:
            raise InputError(
                "no such column",
                where=path,
                expected="title, text",
                found=", ".join(opened.schema_arrow.names),
            )
        groups = opened.metadata.num_row_groups
    return [Split(path, "parquet", a, min(a + ROW_GROUPS, groups)) for a in range(0, groups, ROW_GROUPS)]


def read_site(head: bytes) -> Site:
    """The wiki's own names from the start of a dump; English Wikipedia's where it gives none."""
    block = re.search(rb"<siteinfo\b.*?</siteinfo>", head, re.S)
    if block is None:
        return Site()
    try:
        info = ET.fromstring(block[0])
    except ET.ParseError:
        return Site()
    texts = {_local(e.tag): (e.text or "").strip() for e in info.iter()}
    names = {e.get("key"): (e.text or "").strip() for e in info.iter() if _local(e.tag) == "namespace"}
    database, base = texts.get("dbname", ""), texts.get("base", "")
    hidden = tuple(dict.fromkeys([*FILE_NAMES, *(names[k] for k in ("6", "14") if names.get(k))]))
    return Site(
        project=database.removesuffix("wiki").replace("_", "-") if database.endswith("wiki") else "en",
        namespaces=frozenset(n.casefold() for n in names.values() if n) or Site().namespaces,
        hidden=hidden,
        main_page=base.rsplit("/", 1)[-1].replace("_", " ") or "Main Page",
        first_letter=texts.get("case", "first-letter") == "first-letter",
    )


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def read(split: Split, lost: list[Loss], counts: dict[str, int]) -> Iterator[Page]:
    """Articles and redirects of a split.

    Args:
        split: What to read.
        lost: Filled with what could not be read.
        counts: ``pages``, ``articles``, ``redirects``, ``other_namespace``, ``other_model`` are counted up.
    """
    readers = {"xml": _read_xml, "plain": _read_xml, "parquet": _read_parquet, "jsonl": _read_jsonl}
    for page in readers[split.kind](split, lost, counts):
        counts["redirects" if page.target is not None else "articles"] += 1
        yield page


def _read_xml(split: Split, lost: list[Loss], counts: dict[str, int]) -> Iterator[Page]:
    broken = 0
    chunks = streams.read(split.path, split.start, split.end, lost)
    begins_within = split.end - split.start if split.kind == "plain" else None
    for fragment in fragments(chunks, split.path, lost, begins_within):
        counts["pages"] += 1
        try:
            page = parse_page(fragment, split.site)
        except (ET.ParseError, ValueError):
            broken += 1
            continue
        if isinstance(page, str):
            counts[page] += 1
        else:
            yield page
    if broken:
        lost.append(Loss(split.path, "page is not well-formed XML", split.start or None, broken))


def fragments(
    chunks: Iterator[bytes | Gap], path: str, lost: list[Loss], begins_within: int | None = None
) -> Iterator[bytes]:
    """Cuts ``<page>…</page>`` out of a stream of chunks; memory is bounded by a chunk and a page.

    Args:
        chunks: The stream.
        path: Its file, for losses.
        lost: Filled with what could not be read.
        begins_within: Only pages that begin in so many bytes count; ``None`` is all of them.
    """
    held, place = b"", 0  # `place` is where held[0] stands in the stream
    for chunk in chunks:
        if isinstance(chunk, Gap):
            held = b""
            continue
        held += chunk
        end = 0
        while (begun := held.find(_OPEN, end)) >= 0:
            if begins_within is not None and place + begun >= begins_within:
                return
            if (closed := held.find(_CLOSE, begun)) < 0:
                break
            end = closed + len(_CLOSE)
            yield held[begun:end]
        # Without a page begun, only the last bytes can matter: "<page>" may lie across two chunks.
        keep = begun if begun >= 0 else max(end, len(held) - len(_OPEN) + 1)
        held, place = held[keep:], place + keep
        if begins_within is not None and begun < 0 and place >= begins_within:
            return
        if len(held) > _LONGEST_PAGE:
            lost.append(Loss(path, f"a page longer than {_LONGEST_PAGE >> 20} MiB"))
            held, place = b"", place + len(held)
    if _OPEN in held:
        lost.append(Loss(path, "ends in the middle of a page"))


def parse_page(fragment: bytes, site: Site) -> Page | str:
    """A page element as a page, or the counter's name of why it is none.

    Raises:
        xml.etree.ElementTree.ParseError: Not well-formed.
        ValueError: No title, or a namespace that is not a number.
    """
    title, namespace, model, text, target = "", None, "wikitext", "", None
    for element in ET.fromstring(fragment):
        name = _local(element.tag)
        if name == "title":
            title = element.text or ""
        elif name == "ns":
            namespace = int(element.text or "")
        elif name == "redirect":
            target = element.get("title", "")
        elif name == "revision":  # the last one counts, in dumps that hold several
            inside = {_local(e.tag): e.text or "" for e in element}
            text, model = inside.get("text", ""), inside.get("model", "wikitext")
    if not title:
        raise ValueError("a page without a title")
    if namespace is None:
        namespace = 1 if title.partition(":")[0].casefold() in site.namespaces and ":" in title else 0
    if namespace != 0:
        return "other_namespace"
    if target is not None:
        return Page(title, "", target.partition("#")[0])
    if model != "wikitext":
        return "other_model"
    return Page(title, text)


def _read_parquet(split: Split, lost: list[Loss], counts: dict[str, int]) -> Iterator[Page]:
    missing = 0
    with paths.open_input(split.path, decompress=False) as file:
        try:
            opened = pq.ParquetFile(file)
            groups = list(range(split.start, split.end))
            for batch in opened.iter_batches(256, row_groups=groups, columns=["title", "text"]):
                for title, text in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                    counts["pages"] += 1
                    if isinstance(title, str) and isinstance(text, str) and title:
                        yield Page(title, text, plain=True)
                    else:
                        missing += 1
        except (pa.ArrowException, OSError) as error:
            lost.append(Loss(split.path, f"damaged Parquet from row group {split.start}: {error}"))
    if missing:
        lost.append(Loss(split.path, "row without title and text", None, missing))


def _read_jsonl(split: Split, lost: list[Loss], counts: dict[str, int]) -> Iterator[Page]:
    bad = 0
    for line in lines(streams.read(split.path, split.start, split.end, lost)):
        if not line.strip():
            continue
        counts["pages"] += 1
        try:
            row = json_input.loads(line)
            title, text = row["title"], row["text"]
            if not isinstance(title, str) or not isinstance(text, str) or not title:
                raise ValueError("not text")
        except (ValueError, KeyError, TypeError, RecursionError):
            bad += 1
            continue
        yield Page(title, text, plain=True)
    if bad:
        lost.append(Loss(split.path, "line is not JSON with title and text", None, bad))


def lines(chunks: Iterator[bytes | Gap]) -> Iterator[bytes]:
    """Lines of a stream of chunks, without their ends; a line that a gap cuts off is left out."""
    held = b""
    for chunk in chunks:
        if isinstance(chunk, Gap):
            held = b""
            continue
        *whole, held = (held + chunk).split(b"\n")
        yield from whole
    if held:
        yield held
