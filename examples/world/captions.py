"""What the pages of the small world say about their pictures: good texts and the noise of the web."""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples.world.sources import Concept

DISPLAY_NAMES = {"openmoji": "OpenMoji", "twemoji": "Twemoji", "fluent": "Fluent"}

ALTS = (
    *("{label}",) * 8,
    *("{label} emoji",) * 3,
    "{a_label}",
    "{a_label}",
    "{designer} {label}",
    "{label} icon",
    "{Label}",
    "emoji of {a_label}",
    "picture of {a_label}",
    "{label} ({kw1})",
    "drawing of {a_label}",
)
TITLES = (
    "Emoji for {label}: {kw1}, {kw2}",
    "Emoji for {label}: {kw1}, {kw2}",
    "{label} – {kw1}, {kw2}, {kw3}",
    "{Label} in {designer}",
    "{Label} emoji meaning: {kw1}",
    "Copy the {label} emoji",
    "{Label}, from the {group} set",
    "{label}",
    "{kw1}, {kw2}, {kw3}",
    "{Label} ({kw1}, {kw2})",
)
SENTENCES = (
    "{A_label} drawn in the {designer} style.",
    "The {label} emoji, as {designer} draws it.",
    "{Label}, one of the emoji people look up for {kw1}.",
    "Type {kw1} or {kw2} and the {label} comes up.",
    "{A_label} from the {group} section.",
    "How {designer} pictures {a_label}.",
    "{Label} emoji, often used for {kw1} or {kw2}.",
    "Here is {a_label}, ready to copy.",
    "A small picture of {a_label}.",
    "{Label}",
    "{Label} ({kw1}, {kw2})",
    "This one stands for {label}.",
    "“{Label}” is what the standard calls it.",
    "Above: {a_label}. I keep it for {kw1}.",
    "My favourite {kw1} picture is this {label}.",
    "The sticker sheet also has {a_label}.",
)
GROUP_SENTENCES = {
    "smileys & emotion": (
        "She ended the message with {a_label}.",
        "The {label} says more than I could that morning.",
        "A mood in one picture: {label}.",
        "Nobody answers an invitation with the {label}, do they?",
    ),
    "people & body": (
        "For the club newsletter we chose {a_label}.",
        "{A_label} on the poster by the door.",
        "The sign for this chapter is {a_label}.",
        "Look closely: {a_label}, and nothing else on the card.",
    ),
    "animals & nature": (
        "Seen on the morning walk: {a_label}.",
        "{A_label} for the nature diary.",
        "The children drew {a_label} after this one.",
        "Page of the field guide with {a_label}.",
    ),
    "food & drink": (
        "Today in the kitchen diary: {a_label}.",
        "{A_label} on the menu card.",
        "We had {a_label} for lunch and drew it later.",
        "Shopping list with {a_label} at the top.",
    ),
    "travel & places": (
        "On the map {a_label} marks the spot.",
        "{A_label}, from the album of our journey.",
        "We passed {a_label} on the second day.",
        "Postcard with {a_label}.",
    ),
    "activities": (
        "Saturday afternoon: {a_label}.",
        "{A_label} for the programme of the village fair.",
        "The badge shows {a_label}.",
        "What we played last winter, with {a_label} beside it.",
    ),
    "objects": (
        "Found in the attic: {a_label}.",
        "{A_label} from the catalogue of small things.",
        "On the workbench lies {a_label}.",
        "The manual shows {a_label} on its first page.",
    ),
    "symbols": (
        "The sign on the wall: {label}.",
        "{A_label} as it is printed on the box.",
        "If you see the {label}, think of {kw1}.",
        "Key to the map: {label}.",
    ),
    "flags": ("Flying over the stand: {label}.", "The {label} picture from the last page of the chart."),
}

DECORATIVE = (
    "",
    "",
    "",
    "",
    "spacer",
    "image",
    "image",
    "logo",
    "icon",
    "photo",
    "pixel",
    "avatar",
    "*",
    "banner",
)
REPEATED = (
    "click to enlarge",
    "click to enlarge",
    "Click here to view larger image",
    "Share on Facebook",
    "Continue reading",
    "Image may be subject to copyright",
    "Loading...",
)
CAMERAS = (
    "OLYMPUS DIGITAL CAMERA",
    "SONY DSC",
    "Exif_JPEG_PICTURE",
    "KONICA MINOLTA DIGITAL CAMERA",
    "NIKON D90, f/{f}, 1/{t} s, ISO {iso}, {mm} mm",
    "Canon EOS 600D | {mm}mm | f/{f} | 1/{t}s | ISO {iso}",
    "f/{f}, 1/{t} sec, ISO {iso}",
)

# Title, alt and caption of a whole page in one language; {} takes the picture's name in it.
LANGUAGES = {
    "de": ("Kleines Bilderlexikon", "Bild: {}", "Das Emoji „{}“ aus unserer Sammlung."),
    "fr": ("Petit dictionnaire d’images", "image de : {}", "L’émoji « {} » tel que nous l’aimons."),
    "es": ("Pequeño diccionario de imágenes", "dibujo de {}", "El emoji «{}» de nuestra colección."),
    "pl": ("Mały słownik obrazków", "obrazek: {}", "Emoji „{}” z naszego zbioru."),
    "ja": ("絵文字の小さな辞典", "{}の絵文字", "「{}」を表す絵文字です。"),
    "ko": ("작은 그림 사전", "{} 그림", "‘{}’ 이모티콘입니다."),
    "ru": ("Маленький словарь картинок", "картинка: {}", "Эмодзи «{}» из нашей коллекции."),
    "zh": ("小小图画词典", "{}表情", "这是“{}”的表情符号。"),
    "pt": ("Pequeno dicionário de imagens", "desenho de {}", "O emoji “{}” da nossa coleção."),
}

MASS_NOUNS = {
    "bread",
    "rice",
    "sushi",
    "garlic",
    "broccoli",
    "honey",
    "salt",
    "butter",
    "fog",
    "fire",
    "hibiscus",
}


def with_article(label: str) -> str:
    """The name as a phrase: "an apple", "clapping hands", "the keycap: 1"."""
    if ":" in label:
        return f"the {label}"
    head = label
    for word in (" with ", " of ", " in ", " and ", " on ", " without "):
        head = head.split(word)[0]
    last = head.split()[-1].lower()
    if last in MASS_NOUNS or (last.endswith("s") and not last.endswith(("ss", "us", "is", "os"))):
        return label
    first = label.split()[0].lower()
    silent = first.startswith(("hour", "atm", "ng", "sos")) or label.split()[0] == "X-ray"
    vowel = first[0] in "aeiou" and not first.startswith(("uni", "one", "eu", "use"))
    return f"{'an' if silent or vowel else 'a'} {label}"


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def fill(template: str, concept: Concept, designer: str, rng: random.Random) -> str:
    """One template filled in for one picture."""
    named = concept.label.lower().split()
    words = [word for word in concept.keywords if word not in named] or [concept.subgroup, concept.group]
    words = rng.sample(words, min(3, len(words)))
    words += [words[0]] * (3 - len(words))
    phrase = with_article(concept.label)
    return template.format(
        label=concept.label,
        Label=capital(concept.label),
        a_label=phrase,
        A_label=capital(phrase),
        kw1=words[0],
        kw2=words[1] if words[1] != words[0] else "emoji",
        kw3=words[2] if words[2] != words[0] else "picture",
        group=concept.group,
        designer=DISPLAY_NAMES[designer],
    )


def good_alt(concept: Concept, designer: str, rng: random.Random) -> str:
    """An honest alt text."""
    return fill(rng.choice(ALTS), concept, designer, rng)


def good_title(concept: Concept, designer: str, rng: random.Random) -> str:
    """An honest title attribute."""
    return fill(rng.choice(TITLES), concept, designer, rng)


def good_caption(concept: Concept, designer: str, rng: random.Random) -> str:
    """An honest caption: a general sentence or one that suits the subject."""
    own: Sequence[str] = GROUP_SENTENCES.get(concept.group, SENTENCES)
    return fill(rng.choice(own if rng.random() < 0.4 else SENTENCES), concept, designer, rng)


def file_name(rng: random.Random) -> str:
    """A file name left as an alt text by a camera, a phone or a word processor."""
    number = rng.randrange(1, 9999)
    date = f"20{rng.randrange(9, 20):02}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}"
    clock = f"{rng.randrange(7, 22):02}{rng.randrange(60):02}{rng.randrange(60):02}"
    return rng.choice(
        (
            f"IMG_{number:04}.JPG",
            f"IMG_{number:04}",
            f"DSC_{number:04}.jpg",
            f"DSC{number:05}",
            f"{date}_{clock}.JPG",
            f"P10{number:05}.JPG",
            f"Screenshot_{date}-{clock}.png",
            f"image{number % 100:03}.png",
        )
    )


def camera_settings(rng: random.Random) -> str:
    """What a camera writes into a picture and a blog shows as its caption."""
    return rng.choice(CAMERAS).format(
        f=rng.choice(("1.8", "2.8", "4", "5.6", "8")),
        t=rng.choice((60, 125, 250, 500)),
        iso=rng.choice((100, 200, 400, 800)),
        mm=rng.choice((18, 35, 50, 85)),
    )
