"""Rules that tell descriptions from file names, camera settings, addresses and boiler-plate.

A rule gives its reason when a (cleaned) text breaks it. A preset is an ordered tuple of rules; the first broken
one counts. ``clip`` follows the CLIP paper's account of YFCC100M (section 2.2): file names such as
``20160716_113957.JPG`` and "descriptions" of camera exposure settings go, natural-language titles stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from pipeline.core.tokens import tokens

Rule = Callable[[str], str | None]

REASONS: Final = (
    "empty",
    "url",
    "file_name",
    "camera_settings",
    "boilerplate",
    "few_letters",
    "too_short",
    "too_long",
)

_EXTENSION = r"\.(?:jpe?g|png|gif|tiff?|bmp|heic|webp|avif|svg|cr2|nef|raw)"
# What follows a name's number: more of it, "(2)", "copy"; but no words, for "Photo 12 of our wedding" is a title.
_REST = r"[\w().\-]*(?: \(?\d+\)?)*(?:[ \-](?:copy|edited|edit))?"
_FILE_NAME: Final = re.compile(
    r"(?:(?:(?:img|pict?|screenshot|scan|untitled|image|photo|picture|foto)[ _\-]*\d"
    r"|(?:dsc[nf]?|dscf|mvi|gopr|dji|sam|cimg|hpim|pano|vid|pxl|wp|p)[ _\-]*\d{3}"
    rf"|\d{{6,8}}[ _\-]?\d{{4,6}}){_REST}|[\d _\-().]+)"
    rf"(?:{_EXTENSION})?|\S+{_EXTENSION}|[\w\-]+(?:[ _\-][\w\-]+)*{_EXTENSION}",
    re.IGNORECASE,
)
_URL: Final = re.compile(r"(?:https?://|www\.)\S+|\S+\.(?:com|org|net)(?:/\S*)?", re.IGNORECASE)
_CAMERA: Final = (
    re.compile(r"\bf\s?/\s?\d", re.IGNORECASE),
    re.compile(r"\biso\s?:?\s?\d{2,6}\b", re.IGNORECASE),
    re.compile(r"\b1/\d{1,5}\s?(?:s|sec|seconds?)?\b", re.IGNORECASE),
    re.compile(r"\b\d{1,4}(?:\.\d)?\s?mm\b", re.IGNORECASE),
    re.compile(
        r"\b(?:aperture|shutter(?: speed)?|exposure(?: time| bias)?|focal length)\s?[:=]", re.IGNORECASE
    ),
)
# Texts that stand for any image: what templates put there, and what images are for.
# What cameras write into an image's description by default, and web software copies into its texts.
_CAMERA_NAMES: Final = frozenset(
    ("sony dsc", "olympus digital camera", "konica minolta digital camera", "kodak digital still camera",
     "samsung digital camera", "digital camera", "exif jpeg picture", "samsung csc", "dcim", "casio computer co ltd")
)  # fmt: skip
_BOILERPLATE = """
    advertisement | avatar | background | background image | banner | blank | button | caption | click |
    click for larger image | click here | click image to enlarge | click to enlarge | click to enlarge image |
    click to view | click to zoom | close | cover | cover image | default | default image | download |
    embedded image permalink | enlarge | enlarge image | favicon | feature image | featured image | figure |
    header | header image | hero | hero image | icon | image | image description | image not available |
    image not found | image placeholder | image result | image unavailable | images | img | lazy image |
    lazy loaded | lightbox | loading | loading image | logo | main image | menu | more | next | no image |
    no image available | no photo | none | null | open image | photo | photo not available | photos | pic |
    picture | pictures | pixel | placeholder | placeholder image | play | post image | preview | previous |
    product image | profile | profile image | profile photo | profile picture | screenshot | search |
    separator | share | share on facebook | share on twitter | site logo | slide | slider | spacer |
    stock photo | thumb | thumbnail | thumbnail image | tracking pixel | transparent | undefined | untitled |
    user avatar | video | video thumbnail | view image | view larger image | website logo
"""
BOILERPLATE: Final = frozenset(entry.strip() for entry in _BOILERPLATE.split("|"))
_PREFIXES: Final = ("click to enlarge ", "click to view ", "image may contain: ", "embedded image permalink")

MIN_CHARS: Final = 3
MAX_CHARS: Final = 1000
MAX_WORDS: Final = 256
MIN_LETTERS: Final = 0.5


def empty(text: str) -> str | None:
    """Nothing is left after cleaning."""
    return None if text else "empty"


def url(text: str) -> str | None:
    """The whole text is an address (LAION and others drop those)."""
    return "url" if _URL.fullmatch(text) else None


def file_name(text: str) -> str | None:
    """A camera's or an editor's file name: CLIP paper section 2.2, ``20160716_113957.JPG``; ``IMG_2041``."""
    return "file_name" if _FILE_NAME.fullmatch(text) else None


def camera_settings(text: str) -> str | None:
    """Exposure data (CLIP paper section 2.2) or a camera's own text as a description.

    One hit of exposure data alone may be "a 50 mm lens".
    """
    hits = sum(1 for p in _CAMERA if p.search(text))
    return "camera_settings" if hits >= 2 or " ".join(tokens(text)) in _CAMERA_NAMES else None


def boilerplate(text: str) -> str | None:
    """What templates say of any image; Conceptual Captions (2018) drops and crops such phrases."""
    words = " ".join(tokens(text))
    found = words in BOILERPLATE or text.lower().startswith(_PREFIXES)
    return "boilerplate" if found else None


def few_letters(text: str) -> str | None:
    """Less than half of what is not space is a letter: codes, prices, rulers of dashes."""
    visible = [c for c in text if not c.isspace()]
    # Marks and joiners belong to letters in many scripts; emoji and digits do not.
    letters = sum(1 for c in visible if c.isalpha())
    return "few_letters" if letters < MIN_LETTERS * len(visible) else None


def too_short(text: str) -> str | None:
    """Under three characters. The paper has no minimum: one word that is a query is a pair."""
    return "too_short" if len(text) < MIN_CHARS else None


def too_long(text: str) -> str | None:
    """Over 1,000 characters or 256 words (Conceptual 12M's limit): a page's text, not a caption."""
    return "too_long" if len(text) > MAX_CHARS or text.count(" ") >= MAX_WORDS else None


PRESETS: Final[Mapping[str, tuple[Rule, ...]]] = {
    "clip": (empty, url, file_name, camera_settings, boilerplate, too_short, too_long, few_letters),
    "none": (empty,),
}


def broken_rule(text: str, rules: tuple[Rule, ...]) -> str | None:
    """The reason of the first rule that a text breaks, or ``None``."""
    for rule in rules:
        if reason := rule(text):
            return reason
    return None
