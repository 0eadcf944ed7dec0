"""Rules that tell descriptions from file names, camera settings, addresses and boiler-plate.

A rule gives its reason when a (cleaned) text breaks it. A preset is an ordered tuple of rules; the first broken
one counts. Presets follow published accounts, as far as those speak of the text alone:

* ``clip``: the CLIP paper's account of YFCC100M (section 2.2). File names such as ``20160716_113957.JPG`` and
  "descriptions" of camera exposure settings go, natural-language titles stay.
* ``cc12m``: Conceptual 12M (Changpinyo et al. 2021, section 2) with what it keeps of Conceptual Captions (Sharma et
  al. 2018): 3 to 256 words, a determiner, few repetitions, no boiler-plate. Not rebuilt, for want of a tagger and of
  word counts: a noun is needed, no rare words, names become a token.
* ``datacomp``: DataComp's "basic filtering" (Gadre et al. 2023): more than two words and more than five characters.
  Its English is fastText's: ``--language fasttext-lite`` comes nearest.
* ``laion``: LAION-400M (Schuhmann et al. 2021): five characters or more; its other filter is a score of CLIP's own.

What they ask of images is the fetch stage's: ``cc12m`` has sides over 400 pixels and an aspect of at most 2.5
(``--set fetch.min_image_size=401``, ``fetch.max_aspect_ratio=2.5``), ``datacomp`` 200 pixels and 3.0, ``laion`` 5 KB
of image. What they do with offensive words is :mod:`pipeline.text.safety`'s and ``drop_offensive``'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from pipeline.text.vocabulary import ENGLISH
from pipeline.text.words import words

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
    "too_few_words",
    "no_determiner",
    "repeated_words",
)

_LONGEST_EXTENSION: Final = 5
_EXTENSION = r"\.(?:jpe?g|png|gif|tiff?|bmp|heic|webp|avif|svg|cr2|nef|raw)"
# What follows a name's number: more of it, "(2)", "copy"; but no words, for "Photo 12 of our wedding" is a title.
_REST = r"[\w().\-]*(?: \(?\d+\)?)*(?:[ \-](?:copy|edited|edit))?"
_FILE_NAME: Final = re.compile(
    r"(?:(?:(?:img|pict?|screenshot|scan|untitled|image|photo|picture|foto)[ _\-]*\d"
    r"|(?:dsc[nf]?|dscf|mvi|gopr|dji|sam|cimg|hpim|pano|vid|pxl|wp|p)[ _\-]*\d{3}"
    rf"|\d{{6,8}}[ _\-]?\d{{4,6}}){_REST}|[\d _\-().]+)"
    rf"(?:{_EXTENSION})?|\S+{_EXTENSION}|[\w\-]+(?: [\w\-]+)*{_EXTENSION}",
    re.IGNORECASE,
)
_URL: Final = re.compile(r"(?:https?://|www\.)\S+|\S+\.(?:com|org|net)(?:/\S*)?", re.IGNORECASE)
_DIGIT: Final = re.compile(r"\d")
_NO_LETTER: Final = bytes(b for b in range(128) if not chr(b).isalpha())
_CAMERA: Final = (
    re.compile(r"\bf\s?/\s?\d", re.IGNORECASE),
    re.compile(r"\biso\s?:?\s?\d{2,6}\b", re.IGNORECASE),
    re.compile(r"\b1/\d{1,5}\s?(?:s|sec|seconds?)?\b", re.IGNORECASE),
    re.compile(r"\b\d{1,4}(?:\.\d)?\s?mm\b", re.IGNORECASE),
    re.compile(
        r"\b(?:aperture|shutter(?: speed)?|exposure(?: time| bias)?|focal length)\s?[:=]", re.IGNORECASE
    ),
)
_CAMERA_SIGN: Final = re.compile(r"[/:=]|iso|mm", re.IGNORECASE)
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
_LONGEST_PHRASE: Final = max(phrase.count(" ") + 1 for phrase in BOILERPLATE | _CAMERA_NAMES)
_PREFIXES: Final = ("click to enlarge ", "click to view ", "image may contain: ", "embedded image permalink")
_LONGEST_PREFIX: Final = max(map(len, _PREFIXES))

MIN_CHARS: Final = 3
MAX_CHARS: Final = 1000
MAX_WORDS: Final = 256
MIN_LETTERS: Final = 0.5
MIN_WORDS: Final = 3
MAX_REPEATED: Final = 0.2
_DETERMINER_WORDS = """
    a all an another any both each either every few half her his its many most much my neither no our several some
    such that the their these this those what which whose your
"""
_DETERMINERS: Final = frozenset(_DETERMINER_WORDS.split())


def empty(text: str) -> str | None:
    """Nothing is left after cleaning."""
    return None if text else "empty"


def url(text: str) -> str | None:
    """The whole text is an address (LAION and others drop those)."""
    return "url" if " " not in text and _URL.fullmatch(text) else None


def file_name(text: str) -> str | None:
    """A camera's or an editor's file name: CLIP paper section 2.2, ``20160716_113957.JPG``; ``IMG_2041``."""
    # The pattern is dear. It needs an extension, a digit, or nothing but signs.
    likely = "." in text[-_LONGEST_EXTENSION:] or text[:1] in "_-(). " or _DIGIT.search(text)
    return "file_name" if likely and _FILE_NAME.fullmatch(text) else None


def camera_settings(text: str) -> str | None:
    """Exposure data (CLIP paper section 2.2) or a camera's own text as a description.

    One hit of exposure data alone may be "a 50 mm lens".
    """
    # All patterns but one hold a digit, and each one of these signs.
    likely = _DIGIT.search(text) and _CAMERA_SIGN.search(text)
    hits = sum(1 for p in _CAMERA if p.search(text)) if likely else 0
    return "camera_settings" if hits >= 2 or _is_one_of(text, _CAMERA_NAMES) else None


def boilerplate(text: str) -> str | None:
    """What templates say of any image; Conceptual Captions (2018) drops and crops such phrases."""
    found = _is_one_of(text, BOILERPLATE) or text[:_LONGEST_PREFIX].lower().startswith(_PREFIXES)
    return "boilerplate" if found else None


def _is_one_of(text: str, phrases: frozenset[str]) -> bool:
    found = words(text)
    return len(found) <= _LONGEST_PHRASE and " ".join(found) in phrases


def few_letters(text: str) -> str | None:
    """Less than half of what is not space is a letter: codes, prices, rulers of dashes."""
    visible = sum(map(len, text.split()))
    # Marks and joiners belong to letters in many scripts; emoji and digits do not.
    letters = (
        len(text.encode().translate(None, _NO_LETTER)) if text.isascii() else sum(map(str.isalpha, text))
    )
    return "few_letters" if letters < MIN_LETTERS * visible else None


def too_short(text: str) -> str | None:
    """Under three characters. The paper has no minimum: one word that is a query is a pair."""
    return "too_short" if len(text) < MIN_CHARS else None


def too_long(text: str) -> str | None:
    """Over 1,000 characters or 256 words (Conceptual 12M's limit): a page's text, not a caption."""
    return "too_long" if len(text) > MAX_CHARS or text.count(" ") >= MAX_WORDS else None


def words_3_to_256(text: str) -> str | None:
    """Under 3 or over 256 words, as spaces part them (Conceptual 12M, section 2)."""
    parts = len(text.split())
    if parts > MAX_WORDS:
        return "too_long"
    return "too_few_words" if parts < MIN_WORDS else None


def more_than_two_words(text: str) -> str | None:
    """Two words or fewer, as spaces part them (DataComp, basic filtering)."""
    return "too_few_words" if len(text.split()) < MIN_WORDS else None


def more_than_five_chars(text: str) -> str | None:
    """Five characters or fewer (DataComp, basic filtering)."""
    return "too_short" if len(text) <= 5 else None


def five_chars(text: str) -> str | None:
    """Under five characters (LAION-400M)."""
    return "too_short" if len(text) < 5 else None


def no_determiner(text: str) -> str | None:
    """No determiner: Conceptual Captions asks for one, and Conceptual 12M still does.

    They had a tagger; this is a list of words, so "that" and "her" count as determiners whatever they are.
    """
    return None if _DETERMINERS.intersection(words(text)) else "no_determiner"


def repeated_words(text: str) -> str | None:
    """Over a fifth of the words have occurred before in the text (Conceptual 12M: "max word repetition" 0.2).

    Function words are left out, for "the man and the woman on the street" repeats nothing; under five other words
    one repetition would be enough, and nothing is dropped.
    """
    telling = [w for w in words(text) if w not in ENGLISH]
    repeated = len(telling) - len(set(telling))
    return "repeated_words" if len(telling) >= 5 and repeated > MAX_REPEATED * len(telling) else None


PRESETS: Final[Mapping[str, tuple[Rule, ...]]] = {
    "clip": (empty, url, file_name, camera_settings, boilerplate, too_short, too_long, few_letters),
    "cc12m": (empty, boilerplate, words_3_to_256, no_determiner, repeated_words),
    "datacomp": (empty, more_than_two_words, more_than_five_chars),
    "laion": (empty, five_chars),
    "none": (empty,),
}


def broken_rule(text: str, rules: tuple[Rule, ...]) -> str | None:
    """The reason of the first rule that a text breaks, or ``None``."""
    for rule in rules:
        if reason := rule(text):
            return reason
    return None
