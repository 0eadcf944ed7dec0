"""Lays the pictures and texts out as three web sites, and writes down what was planted in them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from examples.world.captions import (
    DECORATIVE,
    LANGUAGES,
    REPEATED,
    camera_settings,
    file_name,
    good_alt,
    good_caption,
    good_title,
)
from examples.world.lookalikes import LOOKALIKE_COLUMNS, find_lookalikes
from examples.world.make_files import (
    TRACKER,
    ExtraFile,
    Leak,
    encode,
    flatten,
    make_leaks,
    odd_files,
    other_formats,
    reserved_files,
)
from examples.world.pages import FIGURE_STYLES, SITE_NAMES, Page, Shot, authority, render_page
from examples.world.sources import (
    WEB_DESIGNERS,
    Concept,
    IconSet,
    Packages,
    locale_labels,
    read_zip,
    write_tsv,
    write_zip,
)

SEED = "wit small world 1"
PAGE_LENGTH = 36
HOTLINKS_PER_SITE = 60
# Noise tags among the pictures of a normal page, by kind.
NOISE_PER_PAGE = {"decorative": 3.5, "file name": 3.0, "repeated": 2.0, "camera": 0.8, "other language": 0.8}
SITE_STYLES = {
    "openmoji": ("glossary", "wiki", "album", "wiki", "glossary", "gallery"),
    "twemoji": ("blog", "gallery", "album", "blog", "blog", "glossary"),
    "fluent": ("shop", "album", "gallery", "blog", "shop", "album"),
}
PAGE_LANGUAGES = {"openmoji": ("de", "ja", "pl"), "twemoji": ("fr", "ru", "ko"), "fluent": ("es", "zh", "pt")}
STRAY_LANGUAGES = ("de", "fr", "es", "pl", "ru", "ja")
ROBOTS = (
    "User-agent: *\nDisallow: /private/\nAllow: /\n\n"
    "User-agent: CCBot\nUser-agent: GPTBot\nUser-agent: img2dataset\nDisallow: /private/\nDisallow: /members/\n"
)
UNSAFE = (
    ("file:///etc/hostname", "file address"),
    ("http://169.254.169.254/latest/meta-data/picture.png", "link-local address"),
    ("http://10.0.0.1/camera.jpg", "private address"),
    ("ftp://127.0.0.1/old.jpg", "ftp address"),
)


def noise_text(kind: str, concept: Concept, packages: Packages, rng: random.Random) -> str:
    """A text that does not describe its picture to an English reader."""
    if kind == "file name":
        return file_name(rng)
    if kind == "repeated":
        return rng.choice(REPEATED)
    if kind == "camera":
        return camera_settings(rng)
    if kind == "other language":
        return locale_labels(packages, rng.choice(STRAY_LANGUAGES)).get(concept.hexcode, "Bild")
    return rng.choice(DECORATIVE)


def good_shot(
    concept: Concept, site: str, path: str, style: str, packages: Packages, rng: random.Random
) -> Shot:
    """A picture with at least one honest English text, and now and then a careless one beside it."""
    designer = site
    title = good_title(concept, designer, rng) if rng.random() < 0.35 else None
    caption = None
    if style in (*FIGURE_STYLES, "wiki", "malformed"):
        caption = good_caption(concept, designer, rng)
    spoken_elsewhere = title is not None or (style in FIGURE_STYLES and caption is not None)
    alt: str | None = good_alt(concept, designer, rng)
    if spoken_elsewhere and rng.random() < 0.25:
        kind = rng.choice(
            ("file name", "file name", "decorative", "decorative", "repeated", "other language")
        )
        alt = noise_text(kind, concept, packages, rng)
    elif style in FIGURE_STYLES and rng.random() < 0.06:
        caption = noise_text(rng.choice(("camera", "repeated")), concept, packages, rng)
    return Shot(site, path, alt, title, caption, "good", concept)


def noise_shots(page: Page, concepts: list[Concept], packages: Packages, rng: random.Random) -> list[Shot]:
    """The img tags of a page that say nothing useful."""
    shots = []
    for kind, mean in NOISE_PER_PAGE.items():
        for _ in range(int(mean) + (rng.random() < mean % 1)):
            concept = rng.choice(concepts)
            path = f"/p/{concept.hexcode}.webp"
            if kind == "decorative" and rng.random() < 0.5:
                path = "/f/spacer.gif"
            text = noise_text(kind, concept, packages, rng)
            caption = text if kind in ("camera", "repeated") and rng.random() < 0.4 else None
            shots.append(Shot(page.site, path, text, None, caption, kind, concept))
    if rng.random() < 0.5:
        concept = rng.choice(concepts)
        gone = rng.choice((f"/p/{concept.hexcode}_old.webp", f"/uploads/{rng.randrange(10**6)}.jpg"))
        shots.append(Shot(page.site, gone, good_alt(concept, page.site, rng), kind="broken", concept=concept))
    return shots


def mixed(shots: Iterable[Shot], noise: Iterable[Shot], rng: random.Random) -> list[Shot]:
    """The noise strewn among the pictures, whose own order stays."""
    result = list(shots)
    for shot in noise:
        result.insert(rng.randrange(len(result) + 1), shot)
    return result


def page_path(style: str, heading: str, site: str, rng: random.Random) -> str:
    """An address such as sites of that style use."""
    name = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
    if style == "wiki":
        return f"/wiki/{name.capitalize().replace('-', '_')}.html"
    if style == "blog":
        return f"/blog/20{rng.randrange(12, 20)}/{rng.randrange(1, 13):02}/{name}.html"
    return f"/{style}/{name}.html" if site != "twemoji" else f"/pages/{name}.html"


def normal_pages(site: str, concepts: list[Concept], packages: Packages, rng: random.Random) -> list[Page]:
    """Pages that together show every concept of the site once."""
    groups: dict[str, list[Concept]] = {}
    for concept in concepts:
        group = "symbols" if concept.group == "flags" else concept.group
        groups.setdefault(group, []).append(concept)
    pages: list[Page] = []
    for group, members in groups.items():
        if site != "openmoji":
            members = rng.sample(members, len(members))
        count = -(-len(members) // PAGE_LENGTH)
        for part in range(count):
            chunk = members[part * len(members) // count : (part + 1) * len(members) // count]
            style = SITE_STYLES[site][len(pages) % len(SITE_STYLES[site])]
            subject = (
                f"{group.capitalize()}: {chunk[0].subgroup}" if site == "openmoji" else group.capitalize()
            )
            heading = f"{subject}, part {part + 1}"
            shots = [good_shot(c, site, f"/p/{c.hexcode}.webp", style, packages, rng) for c in chunk]
            page = Page(site, page_path(style, heading, site, rng), heading, style, shots)
            page.base = "/p/" if style == "glossary" and part % 2 else None
            page.language = None if rng.random() < 0.1 else rng.choice(("en", "en", "en-GB", "en-US"))
            page.shots = mixed(page.shots, noise_shots(page, members, packages, rng), rng)
            pages.append(page)
    return pages


def place(pages: list[Page], extra: list[Shot], rng: random.Random) -> None:
    """Strews pictures over pages that show the same group, or else over any."""
    for shot in extra:
        group = shot.concept.group if shot.concept else ""
        kindred = [page for page in pages if page.heading.lower().startswith(group)] or pages
        page = rng.choice(kindred)
        page.shots.insert(rng.randrange(len(page.shots) + 1), shot)


def language_pages(site: str, concepts: list[Concept], packages: Packages, rng: random.Random) -> list[Page]:
    """Whole pages in other languages."""
    pages = []
    for locale in PAGE_LANGUAGES[site]:
        heading, alt, caption = LANGUAGES[locale]
        labels = locale_labels(packages, locale)
        shots = [
            Shot(
                site,
                f"/p/{c.hexcode}.webp",
                alt.format(labels[c.hexcode]) if rng.random() < 0.6 else labels[c.hexcode],
                None,
                caption.format(labels[c.hexcode]),
                "other language",
                c,
            )
            for c in rng.sample([c for c in concepts if c.hexcode in labels], 32)
        ]
        pages.append(Page(site, f"/{locale}/index.html", heading, "album", shots, language=locale))
    return pages


def special_pages(site: str, concepts: list[Concept], packages: Packages, rng: random.Random) -> list[Page]:
    """One page of each kind that the tidy ones are not."""

    def shots(count: int, style: str) -> list[Shot]:
        chosen = rng.sample(concepts, count)
        return [good_shot(c, site, f"/p/{c.hexcode}.webp", style, packages, rng) for c in chosen]

    def marked(count: int, style: str, kind: str) -> list[Shot]:
        return [replace(shot, kind=kind) for shot in shots(count, style)]

    opt_out = {
        "openmoji": '<meta name="robots" content="noai, noimageai">\n',
        "twemoji": '<meta name="tdm-reservation" content="1">\n',
        "fluent": '<meta name="robots" content="noimageindex, noai">\n<meta name="tdm-reservation" content="1">\n',
    }[site]
    encoding, declared = {
        "openmoji": ("cp1252", "utf-8"),
        "twemoji": ("utf-8", "iso-8859-1"),
        "fluent": ("cp1252", None),
    }[site]
    entities = [
        replace(shot, caption=f"Q&A: “{shot.caption}” — 100 % “drawn” & <free>, ½ price for cafés")
        for shot in shots(22, "blog")
    ]
    accents = [
        replace(
            shot,
            alt=f"{shot.alt} at the Café Élan" if shot.alt else shot.alt,
            caption=f"{shot.caption} – à la carte",
        )
        for shot in shots(22, "album")
    ]
    return [
        Page(
            site,
            "/pages/reserved.html",
            "All rights reserved",
            "album",
            marked(24, "album", "opt-out"),
            head=opt_out,
        ),
        Page(
            site,
            "/pages/cafe.html",
            "Our menu at the Café Élan",
            "album",
            accents,
            encoding=encoding,
            declared=declared,
        ),
        Page(
            site, "/pages/old.html", "My first home page", "malformed", shots(24, "malformed"), language=None
        ),
        Page(site, "/pages/questions.html", "Questions & answers", "blog", entities),
        Page(site, "/private/index.html", "Members only", "album", marked(20, "album", "robots.txt")),
    ]


def odd_page(site: str, files: list[ExtraFile], rng: random.Random) -> Page:
    """The page of odd formats, and of addresses that nobody should follow."""
    shots = []
    for file in files:
        kind = "good" if file.usable else "trouble"
        alt = good_alt(file.concept, site, rng) if file.concept else ""
        caption = good_caption(file.concept, site, rng) if file.concept else None
        shots.append(Shot(site, file.path, alt, None, caption, kind, file.concept))
    for url, _ in UNSAFE:
        shots.append(Shot(site, "", "a small picture of the weather camera", kind="unsafe", url=url))
    dot = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    shots.append(Shot(site, "", "a red dot", kind="unsafe", url=dot))
    return Page(site, "/pages/attic.html", "Things from the attic", "blog", shots)


def tags_of(pages: list[Page]) -> Counter[str]:
    """How many img tags there are of each kind."""
    return Counter(shot.kind for page in pages for shot in page.shots)


class Site:
    """Everything that one site serves."""

    def __init__(
        self, name: str, concepts: list[Concept], pictures: Mapping[str, bytes], packages: Packages
    ) -> None:
        self.name = name
        self.concepts = concepts
        rng = random.Random(f"{SEED}/{name}")
        icons = IconSet(packages, name)
        odd = odd_files(concepts, pictures, icons, rng)
        others = other_formats(concepts, pictures, rng)
        reserved = reserved_files(concepts, pictures, rng)
        self.files = [*odd, *others, *reserved]
        self.normal = normal_pages(name, concepts, packages, rng)
        extra = [self.shot(file, packages, rng) for file in (*others, *reserved)]
        place(self.normal, extra, rng)
        self.pages = [
            *self.normal,
            *language_pages(name, concepts, packages, rng),
            *special_pages(name, concepts, packages, rng),
            odd_page(name, odd, rng),
        ]
        self.logo = encode(flatten(pictures[concepts[0].hexcode]).resize((32, 32)), "PNG")

    def shot(self, file: ExtraFile, packages: Packages, rng: random.Random) -> Shot:
        """An honest img tag for an extra file."""
        assert file.concept is not None
        shot = good_shot(file.concept, self.name, file.path, "album", packages, rng)
        return shot if file.usable else replace(shot, kind="opt-out" if "noai" in file.what else "robots.txt")

    def write(self, out: Path, leaks: list[Leak]) -> None:
        """The site's folder."""
        folder = out / "web" / self.name
        rng = random.Random(f"{SEED}/{self.name}/html")
        for page in self.pages:
            target = folder / page.path[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(render_page(page, rng))
        public = [page for page in self.pages if not page.path.startswith("/private/")]
        index = Page(self.name, "/index.html", f"Welcome to {SITE_NAMES[self.name]}", "album", [])
        index.links = [(page.path, page.heading) for page in self.pages]
        (folder / "index.html").write_bytes(render_page(index, rng))
        (folder / "sitemap.txt").write_text(
            "".join(f"{p.path}\n" for p in (index, *public)), encoding="utf-8"
        )
        (folder / "robots.txt").write_text(ROBOTS, encoding="utf-8")
        (folder / "_headers").write_text("/f/reserved/\tX-Robots-Tag\tnoai\n", encoding="utf-8")
        members = [(file.path[1:], file.body) for file in self.files]
        members += [(leak.path[1:], leak.body) for leak in leaks if leak.site == self.name]
        members += [("f/logo.png", self.logo), ("f/spacer.gif", TRACKER)]
        write_zip(folder / "files.zip", members)

    def trouble(self) -> list[tuple[str, str, str, str]]:
        """What a fetcher cannot or must not get, by page and address."""
        what = {file.path: file.what for file in self.files} | dict(UNSAFE)
        rows = []
        for page in self.pages:
            for shot in page.shots:
                address = shot.url or f"http://{authority(shot.site)}{shot.path}"
                if shot.kind == "broken":
                    rows.append((self.name, page.path, address, "missing"))
                elif shot.kind in ("trouble", "unsafe"):
                    rows.append(
                        (self.name, page.path, address, what.get(shot.url or shot.path, "data address"))
                    )
        return rows


def make_web(packages: Packages, out: Path, concepts: list[Concept]) -> None:
    """Writes web/ and truth/ from the pictures already in pictures/."""
    pictures = {
        designer: {
            name.removesuffix(".webp"): body for name, body in read_zip(out / "pictures" / f"{designer}.zip")
        }
        for designer in (*WEB_DESIGNERS, "noto")
    }
    sites = {
        name: Site(name, [c for c in concepts if name in c.designers], pictures[name], packages)
        for name in WEB_DESIGNERS
    }
    rng = random.Random(f"{SEED}/between")
    for number, site in enumerate(sites.values()):
        other = sites[WEB_DESIGNERS[(number + 1) % len(WEB_DESIGNERS)]]
        hot = [
            good_shot(c, other.name, f"/p/{c.hexcode}.webp", "album", packages, rng)
            for c in rng.sample(other.concepts, HOTLINKS_PER_SITE)
        ]
        place(site.normal, hot, rng)
    leaks = make_leaks(concepts, pictures["noto"], SEED)
    for leak in leaks:
        shot = good_shot(leak.concept, leak.site, leak.path, "album", packages, rng)
        # These stand among the site's own pictures, but nobody there would credit the site's designer.
        alt = leak.concept.label if rng.random() < 0.6 else f"{leak.concept.label} emoji"
        place(sites[leak.site].normal, [replace(shot, alt=alt, title=None, caption=leak.concept.label)], rng)
    for site in sites.values():
        site.write(out, leaks)
    write_truth(out, list(sites.values()), leaks, pictures)


def write_truth(
    out: Path, sites: list[Site], leaks: list[Leak], pictures: Mapping[str, Mapping[str, bytes]]
) -> None:
    """truth/: what was planted, for checks alone; eval/left-out.tsv: what cannot be told from a copy."""
    truth = out / "truth"
    write_tsv(
        truth / "leaks.tsv",
        ("eval_id", "site", "path", "edits"),
        sorted((f"{k.concept.hexcode}/{k.concept.hexcode}.webp", k.site, k.path, k.edits) for k in leaks),
    )
    leaked = {leak.concept.hexcode for leak in leaks}
    write_tsv(out / "eval" / "left-out.tsv", LOOKALIKE_COLUMNS, find_lookalikes(pictures, leaked))
    rows = [row for site in sites for row in site.trouble()]
    write_tsv(truth / "broken.tsv", ("site", "page", "url", "reason"), sorted(set(rows)))
    kept = [(site.name, f.path, f.what, "yes" if f.usable else "no") for site in sites for f in site.files]
    write_tsv(truth / "files.tsv", ("site", "path", "what", "usable"), sorted(kept))
    counts = {site.name: tags_of(site.pages) for site in sites}
    write_tsv(
        truth / "tags.tsv",
        ("site", "kind", "img_tags"),
        (
            (name, kind, str(number))
            for name, kinds in counts.items()
            for kind, number in sorted(kinds.items())
        ),
    )
