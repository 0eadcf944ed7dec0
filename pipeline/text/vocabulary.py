"""What a text's script and words say of its being English, without any language model.

Cheap evidence in this order: the script (a text whose letters are mostly not Latin is not English), the share of
words that the query list's vocabulary knows, function words of English and of other languages; the page's
language, where it is known, moves the bars.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.core.tokens import tokens
from pipeline.text.words import words

SMALL_VOCABULARY: Final = 10_000


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the words say.

    Attributes:
        english: Whether the text is English; ``None`` where they do not tell.
        known: Share of its words that the vocabulary knows; 0 for a text without words in Latin letters.
    """

    english: bool | None
    known: float


class Vocabulary:
    """Judges texts by script, by words, and by the language of their page.

    Args:
        words: Single-word queries: an English vocabulary, case-folded. With fewer than
            :data:`SMALL_VOCABULARY` an unknown word is no evidence, and most texts stay undecided.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._known = frozenset(words) | ENGLISH | MODERN
        self._small = len(self._known) < SMALL_VOCABULARY

    def opinion(self, text: str, page_language: str | None = None) -> Opinion:
        """What script and words of a cleaned text say; ``page_language`` is a BCP 47 tag or ``None``."""
        if latin_share(text) < 0.5:
            return Opinion(False, 0.0)
        found = [w for w in words(text) if w.isalpha() or any(map(str.isalpha, w))]
        return Opinion(*self._by_words(found, subtag(page_language))) if found else Opinion(False, 0.0)

    def _by_words(self, words: list[str], page: str | None) -> tuple[bool | None, float]:
        """Whether the words say English (``None``: they do not say), and the share of known ones."""
        known = sum(1 for w in words if w in self._known or is_known(w, self._known))
        share = known / len(words)
        english = sum(map(TELLING.__contains__, words))
        foreign = sum(map(FOREIGN.__contains__, words))
        marked = sum(1 for w in words if not w.isascii() and w not in self._known)
        if marked and len(words) >= 4:  # "at the Café Élan": in a longer text a borrowed word proves little
            marked = sum(1 for w in words if not w.isascii() and _plain(w) not in self._known)
        against = foreign + marked
        score = round(share, 4)
        if page not in (None, "en"):
            # On a page of another language only a whole English phrase counts.
            if english >= 1 and english > against and share >= 0.75 and len(words) >= 4:
                return True, score
            return (None, score) if share >= 0.75 and against == 0 and len(words) >= 4 else (False, score)
        if against > english:
            return False, score
        if self._small:  # then an unknown word says nothing
            sure = against == 0 and (english >= 1 or (page == "en" and len(words) <= 3))
            return (True, 1.0) if sure else (None, score)
        if len(words) <= 3:
            return share >= (0.6 if page == "en" else 1.0) and against == 0, score
        bar = (0.7 if page == "en" else 0.8) - (0.2 if english else 0.0)
        if share >= bar and against <= english // 2:
            return True, score
        return (False, score) if share < 0.3 and english == 0 else (None, score)


def english_words(queries: Iterable[tuple[str, Collection[str]]]) -> Iterator[str]:
    """The words of queries from running text and WordNet; article titles alone are no vocabulary of English.

    Args:
        queries: Texts and sources of a ``queries/1`` table.
    """
    for query, sources in queries:
        if "word" in sources or "synset" in sources:
            yield from tokens(query)


@functools.lru_cache(maxsize=4096)
def _is_latin(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("LATIN", "FULLWIDTH LATIN", "MODIFIER LETTER"))


def latin_share(text: str) -> float:
    """Share of a text's letters that are Latin; 0 for a text without letters."""
    if text.isascii():
        return 1.0 if any(map(str.isalpha, text)) else 0.0
    letters = list(filter(str.isalpha, text))
    return sum(1 for c in letters if c.isascii() or _is_latin(c)) / len(letters) if letters else 0.0


def is_known(word: str, vocabulary: Collection[str]) -> bool:
    """Whether a vocabulary of dictionary forms knows a word or what it is inflected from."""
    return word in vocabulary or any(form in vocabulary for form in _base_forms(word))


def _base_forms(word: str) -> Iterator[str]:
    if word.endswith("'s"):
        yield word[:-2]
    if len(word) < 4:
        return
    if word.endswith("s"):
        yield word[:-1]
        if word.endswith("es"):
            yield word[:-2]
        if word.endswith("ies"):
            yield word[:-3] + "y"
    for ending in ("ed", "ing", "er", "est"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= 3:
            yield stem
            yield stem + "e"
            if stem[-1] == stem[-2]:
                yield stem[:-1]
            if stem[-1] == "i":
                yield stem[:-1] + "y"
    if word.endswith("ly"):
        yield word[:-2]


def _plain(word: str) -> str:
    """A word without accents."""
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))


def subtag(tag: str | None) -> str | None:
    """The language of a BCP 47 tag: ``en`` of ``en-GB``."""
    return tag.replace("_", "-").split("-")[0].lower() if tag else None


_ENGLISH = """
    a about above after all along an and another any are as at away back be because been before behind being below
    between both but by can could did do does down each every few for from get had has have having he her here him
    his how i if in inside into is it its just like made make many me more most my near no not of off on one only
    onto or other our out outside over own same she should so some such than that the their them then there these
    they this those through to together too under until up upon us very was we were what when where which while who
    whose why will with within without would you your
"""
_FOREIGN = """
    aan al alla als auf aus avec az beim bei bez ce ces cet cette che com como con coi da dal dalla dans das de degli
    dei del della delle dem der des det di dos du dwa dwie e een egy ei ein eine einem einen einer el ella en entre er
    es esta este est et ett eu fra för het hij hun ile il im için ja jako je jest kis kot kun la las le les leur los
    lui med mit mot na nad nagy nas nebo nem nicht nie não och od og om para pas po por pour pre przez på quatre que
    qui sa se sem seu sich sie sobre som sous sowie su sua sulla três til tot tout trois um un una und une uma uno
    unter van ve ved vom von vor voor w wie wir wo y z za ze zu zum zur zwei drei deux bir és é över ako ili
"""
_ALSO_FOREIGN = """
    a all an are as at do for had has have he her his i in is it made man me more most no of on or over so to under
    up was we were will
"""
_MODERN = """
    app apps blog blogger blogs dvd ebook email emails emoji emojis emoticon emoticons facebook gif google hashtag
    instagram laptop meme memes online podcast selfie selfies smartphone smartphones superhero sushi twitter usb
    video vlog webcam webpage website websites wifi wikipedia yoga youtube zombie
"""
ENGLISH: Final = frozenset(_ENGLISH.split())
"""Function words of English: they are in no dictionary's list of concepts."""
TELLING: Final = ENGLISH - frozenset(_ALSO_FOREIGN.split())
"""Those that are no common words of another language in Latin letters."""
MODERN: Final = frozenset(_MODERN.split())
"""Words of the web that WordNet 3.0 (2006) is too old to list; a large query list has them anyway."""
FOREIGN: Final = frozenset(_FOREIGN.split()) - ENGLISH
"""Function words of other languages in Latin letters that are no English words."""
