"""The styles of the pages: how blogs, wikis, shops and galleries write pictures down in HTML."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

from examples.world.sources import WEB_DESIGNERS, Concept

FIRST_PORT = 8731
SITE_NAMES = {
    "openmoji": "The Open Picture Glossary",
    "twemoji": "Bird Song Diary",
    "fluent": "Flat Sticker Shop",
}
CREDITS = {
    "openmoji": "Pictures: OpenMoji, CC BY-SA 4.0.",
    "twemoji": "Pictures: Twemoji by Twitter and contributors, CC BY 4.0.",
    "fluent": "Pictures: Fluent Emoji by Microsoft, MIT licence.",
}
STYLES = {
    "openmoji": "body{font:15px Georgia,serif;max-width:60em;margin:1em auto;color:#222}",
    "twemoji": "body{font:16px sans-serif;max-width:46em;margin:1em auto;color:#333}h1{color:#1d6fa5}",
    "fluent": "body{font:15px Verdana,sans-serif;margin:1em 3em;background:#fbfaf7}h1{color:#7a3e9d}",
}
COMMON_STYLE = (
    "nav a{margin-right:1em}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:4px 8px;text-align:left}"
    "figure{margin:1em 0}figcaption{font-size:90%;color:#555}.grid{display:flex;flex-wrap:wrap;gap:12px}"
    ".card{width:150px;border:1px solid #ddd;padding:8px;text-align:center;background:#fff}"
    ".thumb{float:right;clear:right;width:130px;margin:4px 0 8px 14px;border:1px solid #c8ccd1;padding:3px;"
    "background:#f8f9fa;font-size:85%}.gallerybox{display:inline-block;width:150px;vertical-align:top;margin:4px}"
    "footer{clear:both;margin-top:2em;font-size:80%;color:#777}.small{font-size:85%;color:#666}"
)
BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
FILLERS = (
    "It rained all week, so we went on with our alphabet of small pictures.",
    "Some of these I had never seen before; my sister knew all of them.",
    "Two readers wrote to say that the last list was too short. Here is a longer one.",
    "The names are the official ones, the remarks are mine.",
    "You may print them for your classroom.",
    "I sorted them by hand, which took longer than I like to admit.",
    "The older drawings looked different, but the idea is the same.",
    "We will come back to this subject in spring.",
    "If one of them is missing on your phone, an update usually helps.",
    "As always, the small ones turned out to be the hardest to tell apart.",
)


@dataclass(frozen=True)
class Shot:
    """One img tag to be: where the picture is, what is said about it, and what kind of saying that is."""

    site: str
    path: str
    alt: str | None
    title: str | None = None
    caption: str | None = None
    kind: str = "good"
    concept: Concept | None = None
    url: str | None = None


@dataclass
class Page:
    """One page to be."""

    site: str
    path: str
    heading: str
    style: str
    shots: list[Shot]
    language: str | None = "en"
    base: str | None = None
    head: str = ""
    links: list[tuple[str, str]] = field(default_factory=list)
    encoding: str = "utf-8"
    declared: str | None = "utf-8"


def authority(site: str) -> str:
    """The host and port at which a site is served."""
    return f"127.0.0.1:{FIRST_PORT + WEB_DESIGNERS.index(site)}"


def reference(shot: Shot, page: Page, rng: random.Random) -> str:
    """The picture's address as this page writes it: relative, from the root, or whole."""
    if shot.url is not None:
        return shot.url
    whole = f"//{authority(shot.site)}{shot.path}"
    if shot.site != page.site:
        return whole if rng.random() < 0.3 else f"http:{whole}"
    if page.base == "/p/" and shot.path.startswith("/p/"):
        return shot.path.removeprefix("/p/")
    draw = rng.random()
    if draw < 0.5 or page.base:
        return shot.path
    if draw < 0.75:
        return "../" * (page.path.count("/") - 1) + shot.path[1:]
    return f"http:{whole}" if draw < 0.9 else whole


def image(shot: Shot, page: Page, rng: random.Random, extra: str = "", lazy: bool = False) -> str:
    """One img tag."""
    url = escape(reference(shot, page, rng))
    parts = ["<img"]
    source = f'src="{BLANK}" data-src="{url}"' if lazy else f'src="{url}"'
    alt = "" if shot.alt is None else f'alt="{escape(shot.alt)}"'
    parts += [alt, source] if rng.random() < 0.3 else [source, alt]
    if shot.title is not None:
        parts.append(f'title="{escape(shot.title)}"')
    if extra:
        parts.append(extra)
    return " ".join(part for part in parts if part) + (" />" if page.site == "openmoji" else ">")


def glossary(page: Page, rng: random.Random) -> str:
    """A table of pictures, names and meanings."""
    rows = []
    for shot in page.shots:
        name = escape(shot.concept.label) if shot.concept and shot.kind == "good" else "&nbsp;"
        words = (
            escape(", ".join(shot.concept.keywords[:5])) if shot.concept and shot.kind == "good" else "&nbsp;"
        )
        tag = image(shot, page, rng, 'width="48"')
        rows.append(f"<tr><td>{tag}</td><td>{name}</td><td>{words}</td></tr>")
    return (
        "<table>\n<tr><th>Picture</th><th>Name</th><th>Look it up under</th></tr>\n"
        + "\n".join(rows)
        + "\n</table>"
    )


def blog(page: Page, rng: random.Random) -> str:
    """A post: paragraphs with figures between them."""
    parts = []
    for number, shot in enumerate(page.shots):
        if number % 4 == 0:
            parts.append(f"<p>{' '.join(rng.sample(FILLERS, 2))}</p>")
        caption = f"<figcaption>{escape(shot.caption)}</figcaption>" if shot.caption is not None else ""
        extra = 'loading="lazy"' if rng.random() < 0.3 else ""
        parts.append(f"<figure>{image(shot, page, rng, extra)}{caption}</figure>")
    return "<article>\n" + "\n".join(parts) + "\n</article>"


def wiki(page: Page, rng: random.Random) -> str:
    """An article with thumbs at its side, as old MediaWiki writes them, and a gallery at its end."""
    half = len(page.shots) // 2
    parts = [f"<p><b>{escape(page.heading)}</b> are small pictures used in text. {rng.choice(FILLERS)}</p>"]
    for shot in page.shots[:half]:
        url = escape(reference(shot, page, rng))
        extra = f'width="96" height="96" class="thumbimage" srcset="{url} 1.5x, {url} 2x"'
        parts.append(
            f'<div class="thumb tright"><div class="thumbinner"><a href="{url}" class="image">'
            f'{image(shot, page, rng, extra)}</a><div class="thumbcaption">'
            f"{escape(shot.caption or '')}</div></div></div>"
        )
        if shot.concept and shot.kind == "good":
            words = ", ".join(shot.concept.keywords[:3])
            parts.append(f"<p>The <i>{escape(shot.concept.label)}</i> is found under {escape(words)}.</p>")
    parts.append('<h2>Gallery</h2>\n<ul class="gallery mw-gallery-traditional">')
    for shot in page.shots[half:]:
        tag = image(shot, page, rng, 'width="96" height="96"')
        parts.append(
            f'<li class="gallerybox"><div class="thumb-in">{tag}</div>'
            f'<div class="gallerytext"><p>{escape(shot.caption or "")}</p></div></li>'
        )
    return "\n".join(parts) + "\n</ul>"


def gallery(page: Page, rng: random.Random) -> str:
    """A grid whose pictures load when they come into view."""
    cells = []
    for shot in page.shots:
        lazy = not shot.url and rng.random() < 0.7
        tag = image(shot, page, rng, 'class="lazy" width="96" height="96"', lazy)
        if lazy and rng.random() < 0.25:
            tag += f"<noscript>{image(shot, page, rng)}</noscript>"
        cells.append(f'<div class="card">{tag}</div>')
    # What the scripts of such galleries do, in one line.
    script = "document.querySelectorAll('img.lazy[data-src]').forEach(function(i){i.src=i.dataset.src})"
    return '<div class="grid">\n' + "\n".join(cells) + f"\n</div>\n<script>{script}</script>"


def shop(page: Page, rng: random.Random) -> str:
    """Product cards with picture elements."""
    cards = []
    for shot in page.shots:
        url = escape(reference(shot, page, rng))
        name = escape(shot.concept.label) if shot.concept and shot.kind == "good" else "Sticker"
        tag = image(shot, page, rng, 'width="96"')
        if not shot.url and shot.path.endswith(".webp"):
            tag = f'<picture><source type="image/webp" srcset="{url} 1x, {url} 2x">{tag}</picture>'
        cards.append(
            f'<div class="card"><a href="#">{tag}</a><p>{name}<br><b>{rng.randrange(1, 6)}.90</b></p></div>'
        )
    return '<div class="grid">\n' + "\n".join(cards) + "\n</div>"


def album(page: Page, rng: random.Random) -> str:
    """New MediaWiki and photo albums: one figure beside the other."""
    parts = []
    for shot in page.shots:
        caption = f"<figcaption>{escape(shot.caption)}</figcaption>" if shot.caption is not None else ""
        url = escape(reference(shot, page, rng))
        parts.append(
            f'<figure class="card" typeof="mw:File/Thumb"><a href="{url}">{image(shot, page, rng)}</a>'
            f"{caption}</figure>"
        )
    return '<div class="grid">\n' + "\n".join(parts) + "\n</div>"


def malformed(page: Page, rng: random.Random) -> str:
    """Tags closed in the wrong order or not at all."""
    parts = []
    for number, shot in enumerate(page.shots):
        tag = image(shot, page, rng)
        caption = escape(shot.caption or "")
        parts.append(
            (
                f"<p><b>{tag}<i>{caption}</b></i>",
                f"<figure><a href=#>{tag}<figcaption>{caption}</a></figure>",
                f"<li>{tag}<br><font color=gray>{caption}",
                f"<td><div>{tag}</td></div></span>{caption}<p>",
            )[number % 4]
        )
    return "<table><tr><ul>\n" + "\n".join(parts) + "\n</table>"


BODIES: dict[str, Callable[[Page, random.Random], str]] = {
    "glossary": glossary,
    "blog": blog,
    "wiki": wiki,
    "gallery": gallery,
    "shop": shop,
    "album": album,
    "malformed": malformed,
}
FIGURE_STYLES = ("blog", "album")


def render_page(page: Page, rng: random.Random) -> bytes:
    """The page's bytes."""
    language = f' lang="{page.language}"' if page.language else ""
    charset = f'<meta charset="{page.declared}">\n' if page.declared else ""
    base = f'<base href="{page.base}">\n' if page.base else ""
    links = "".join(f'<li><a href="{escape(path)}">{escape(name)}</a></li>\n' for path, name in page.links)
    body = BODIES[page.style](page, rng)
    logo = '<a href="/index.html"><img src="/f/logo.png" alt="logo" width="32" height="32"></a>'
    text = (
        f"<!DOCTYPE html>\n<html{language}>\n<head>\n{charset}{base}<title>{escape(page.heading)} – "
        f"{escape(SITE_NAMES[page.site])}</title>\n{page.head}"
        f"<style>{STYLES[page.site]}{COMMON_STYLE}</style>\n</head>\n<body>\n"
        f'<nav>{logo} <a href="/index.html">{escape(SITE_NAMES[page.site])}</a></nav>\n'
        f"<h1>{escape(page.heading)}</h1>\n{body}\n"
        + (f"<ul>\n{links}</ul>\n" if links else "")
        + f"<footer>{CREDITS[page.site]} Names: Unicode CLDR.</footer>\n</body>\n</html>\n"
    )
    return text.encode(page.encoding, "xmlcharrefreplace")
