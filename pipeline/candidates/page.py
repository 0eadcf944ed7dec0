"""Pairs of one HTML page: every image with its alt, title, aria-label, figure caption and MediaWiki caption."""

from __future__ import annotations

import html as entities
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selectolax.lexbor import LexborHTMLParser

from pipeline.candidates.found import Lost, Pair
from pipeline.candidates.rights import meta_marks
from pipeline.candidates.srcset import image_url
from pipeline.candidates.urls import UrlError, absolute_url, known_url

HAS_IMAGE = re.compile(r"<im(?:g|age)\b", re.IGNORECASE)
# Building a tree of depth d takes lexbor time that grows with d squared: 0.35 s at 10,000, 35 s at 100,000.
MAX_OPEN_ELEMENTS = 10_000
# The largest of 954 pages of the web had 1,100; a page of 10 MB that consists of nothing else has 2,000,000.
MAX_IMAGES = 100_000
# More sources than any picture has, and few enough that each image of a picture may read them all.
_MAX_SOURCES = 50
_CLIMB = 8
# Nodes that are looked at for the text round one image.
_NEAR_NODES = 500
_UNSEEN = frozenset({"script", "style", "template", "noscript"})
_STARTS = re.compile(
    r"<(?!(?:area|base|br|col|embed|hr|img|image|input|link|meta|source|track|wbr|p|li|td|th|tr|option|dd|dt"
    r"|tbody|thead|tfoot|colgroup|rp|rt)\b)[a-z]", re.IGNORECASE,
)  # fmt: skip
_INVISIBLE = re.compile(r"<(script|style|template)\b.*?(?:</\1\s*>|$)", re.IGNORECASE | re.DOTALL)
_BLOCK = re.compile(
    r"</?(?:br|p|div|li|ul|ol|dl|dt|dd|tr|td|th|h[1-6]|table|blockquote)\b[^>]*>", re.IGNORECASE
)
_TAG = re.compile(r"<[^>]*>")
_MEDIAWIKI_BOX = frozenset({"thumbinner", "gallerybox"})


@dataclass(frozen=True, slots=True)
class Context:
    """What is known about a page from outside its HTML.

    Attributes:
        url: The page's URL, or ``None``.
        origin: File it came from.
        origin_offset: Where in the file, or ``None``.
        rights: Opt-out marks of its response headers.
        language: ``Content-Language`` of its response, if any.
        own_url: Where ``url`` is not known, believe the page's canonical link or absolute ``<base>``.
        fallback_url: Its URL if nothing else tells.
        keep_opted_out: Keep pairs of pages that opt out.
        max_text_chars: Longest text to keep.
        nearest_chars: Longest nearest text to take; 0 takes none.
    """

    url: str | None
    origin: str
    origin_offset: int | None = None
    rights: tuple[str, ...] = ()
    language: str | None = None
    own_url: bool = False
    fallback_url: str | None = None
    keep_opted_out: bool = False
    max_text_chars: int = 10_000
    nearest_chars: int = 0


def collapse(text: str) -> str:
    """White space collapsed to single spaces, none at the ends."""
    return " ".join(text.split())


def language_tag(*found: str | None) -> str | None:
    """The first usable language tag, lower-case, as ``en`` or ``pt-br``."""
    for value in found:
        tag = (value or "").split(",")[0].strip().lower().replace("_", "-")
        if re.fullmatch(r"[a-z]{2,8}(?:-[a-z0-9]{1,8})*", tag):
            return tag
    return None


def read_page(html: str, context: Context) -> Iterator[Pair | Lost]:
    """Pairs of a page, and what was lost on it.

    Args:
        html: The page's text.
        context: What is known from outside.
    """
    if not HAS_IMAGE.search(html):
        return
    # Counting characters first is 50 times cheaper than the regular expression, and nearly always enough.
    if (
        html.count("<") - 2 * html.count("</") > MAX_OPEN_ELEMENTS
        and _open_elements(html) > MAX_OPEN_ELEMENTS
    ):
        yield Lost("too_nested", context.url or context.origin, context.origin)
        return
    tree = LexborHTMLParser(html)
    nodes = tree.css("img")
    if len(nodes) > MAX_IMAGES:
        yield Lost("too_complex", context.url or context.origin, f"{len(nodes):,} images")
        return
    if context.url is None:
        own = stated_url(tree) if context.own_url else None
        context = replace(context, url=own or context.fallback_url)
    metas = [n.attributes for n in tree.css("meta")]
    marks = [*context.rights, *meta_marks((m.get("name") or "", m.get("content") or "") for m in metas)]
    base = _base(tree, context.url)
    root = tree.root.attributes if tree.root is not None else {}
    equiv = [m.get("content") for m in metas if (m.get("http-equiv") or "").lower() == "content-language"]
    language = language_tag(root.get("lang"), root.get("xml:lang"), *equiv, context.language)
    around = _Surroundings()
    images = (_image(node, around, context.nearest_chars) for node in nodes)
    yield from pairs_of(images, context, base=base, language=language, rights=tuple(dict.fromkeys(marks)))


@dataclass(frozen=True, slots=True)
class Image:
    """An image on a page: its URL as found and its texts as ``(source, text)``, white space collapsed, none empty."""

    url: str
    texts: Sequence[tuple[str, str]]


def pairs_of(
    images: Iterator[Image],
    context: Context,
    *,
    base: str | None,
    language: str | None,
    rights: tuple[str, ...],
) -> Iterator[Pair | Lost]:
    """One pair per (URL, distinct text) of a page's images; everything else is lost with its reason."""
    seen: set[tuple[str, str]] = set()
    where = context.url or context.origin
    for image in images:
        if not image.texts:
            yield Lost("no_text", image.url[:200], where)
            continue
        try:
            url = absolute_url(image.url, base)
        except UrlError as error:
            yield from (Lost(error.reason, image.url[:200], where) for _ in image.texts)
            continue
        for source, text in image.texts:
            if rights and not context.keep_opted_out:
                yield Lost("page_opted_out", url, "; ".join(rights))
            elif len(text) > context.max_text_chars:
                yield Lost("text_too_long", url, f"{len(text)} characters; {where}")
            elif (url, text) in seen:
                yield Lost("repeated_on_page", url, where)
            else:
                seen.add((url, text))
                yield Pair(
                    url, text, source, context.url, language, rights, context.origin, context.origin_offset
                )


def stated_url(tree: Any) -> str | None:
    """The URL that a parsed page states for itself: its canonical link, or an absolute ``<base>``."""
    for selector in ('link[rel~="canonical" i]', "base[href]"):
        for node in tree.css(selector):
            if url := known_url(node.attributes.get("href")):
                return url
    return None


def _open_elements(html: str) -> int:
    return sum(1 for _ in _STARTS.finditer(html)) - html.count("</")


def _base(tree: Any, page_url: str | None) -> str | None:
    node = tree.css_first("base[href]")
    if node is None:
        return page_url
    try:
        return absolute_url(node.attributes.get("href") or "", page_url)
    except UrlError:
        return page_url


def _image(img: Any, around: _Surroundings, nearest_chars: int) -> Image:
    """An ``<img>`` node's URL and texts; the same text from two places comes once."""
    attributes = img.attributes
    given: dict[str, str] = {}
    for source in ("alt", "title", "aria-label"):
        given.setdefault(collapse(attributes.get(source) or ""), source)
    if (caption := around.caption(img)) is not None:
        given.setdefault(caption[1], caption[0])
    if nearest_chars:
        given.setdefault(around.nearest(img, nearest_chars), "nearest")
    texts = tuple((source, text) for text, source in given.items() if text)
    return Image(image_url(attributes, around.sources(img)) or "", texts)


class _Surroundings:
    """What the images of one page share with their neighbours, read once for all of them.

    Without that, a caption or text beside ten thousand images would be looked for ten thousand times.
    """

    def __init__(self) -> None:
        self._captions: dict[int, tuple[bool, tuple[str, str] | None]] = {}
        self._sources: dict[int, list[dict[str, str | None]]] = {}
        self._texts: dict[int, tuple[int, str] | None] = {}

    def caption(self, img: Any) -> tuple[str, str] | None:
        """``(source, text)`` of the caption of the nearest figure or MediaWiki box around an image."""
        node = img
        for _ in range(_CLIMB):
            node = node.parent
            if node is None:
                return None
            known = self._captions.get(node.mem_id)
            if known is None:
                known = self._captions[node.mem_id] = _caption_of(node)
            ends, caption = known
            if ends:
                return caption
        return None

    def nearest(self, img: Any, most_chars: int) -> str:
        """The text of the nearest element round an image that has any; empty if it is longer than ``most_chars``."""
        node, left = img, _NEAR_NODES
        for _ in range(_CLIMB):
            node = node.parent
            if node is None or node.tag in ("body", "html"):
                return ""
            if node.mem_id not in self._texts:
                self._texts[node.mem_id] = _short_text(node, most_chars)
            known = self._texts[node.mem_id]
            if known is None or known[0] > left:
                return ""
            left -= known[0]
            if known[1]:
                return known[1]
        return ""

    def sources(self, img: Any) -> list[dict[str, str | None]]:
        """Attributes of the ``<source>`` elements beside an image."""
        picture = img.parent
        if picture is None or picture.tag != "picture":
            return []
        if picture.mem_id not in self._sources:
            found = picture.css("source")[:_MAX_SOURCES]
            self._sources[picture.mem_id] = [node.attributes for node in found]
        return self._sources[picture.mem_id]


def _caption_of(node: Any) -> tuple[bool, tuple[str, str] | None]:
    """Whether the way up from an image ends at a node, and with which caption."""
    tag = node.tag
    if tag in ("body", "html", "article", "main", "table"):
        return True, None
    if tag == "figure":
        caption = node.css_first("figcaption")
        return True, None if caption is None else ("figcaption", collapse(_text(caption)))
    if not _MEDIAWIKI_BOX.isdisjoint((node.attributes.get("class") or "").split()):
        caption = node.css_first(".thumbcaption, .gallerytext")
        return True, None if caption is None else ("caption", collapse(_text(caption)))
    return False, None


def _short_text(node: Any, most_chars: int) -> tuple[int, str] | None:
    """How many nodes an element holds and its text, or ``None`` if it has too many nodes or characters."""
    pieces: list[str] = []
    nodes = length = 0
    for inner in node.traverse(include_text=True):
        nodes += 1
        if inner.tag == "-text" and inner.parent.tag not in _UNSEEN:
            pieces.append(inner.text_content)
            length += len(collapse(pieces[-1]))
        if nodes > _NEAR_NODES or length > most_chars:
            return None
    text = collapse(" ".join(pieces))
    return (nodes, text) if len(text) <= most_chars else None


def _text(node: Any) -> str:
    inner = node.inner_html or ""
    if "<" in inner:
        inner = _TAG.sub("", _BLOCK.sub(" ", _INVISIBLE.sub(" ", inner)))
    return entities.unescape(inner)
