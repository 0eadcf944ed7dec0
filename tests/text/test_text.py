"""Cleaning and rules."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.clean import clean
from pipeline.text.rules import PRESETS, REASONS, broken_rule


@pytest.mark.parametrize(
    ("found", "cleaned"),
    [
        ("A &amp;quot;red&amp;quot; apple", 'A "red" apple'),
        ("<b>bold</b><br/>text <!-- note -->", "bold text"),
        ("a <!-- <b> --> c <!-- not closed", "a c <!-- not closed"),
        ("I <3 you, 2 < 3 > 1", "I <3 you, 2 < 3 > 1"),
        ("A%20red%20apple", "A red apple"),
        ("Blumen+am+Weg%21", "Blumen am Weg!"),
        ("red+apple+tree", "red apple tree"),
        ("100% cotton", "100% cotton"),
        ("100%", "100%"),
        ("C++", "C++"),
        ("rock+roll", "rock+roll"),
        ("50%ff", "50%ff"),  # not UTF-8: not an encoded text
        ("cafe\u0301 \u200bau\u00adrora\ufeff", "café aurora"),
        ("tab\tline\nnul\0end\u00a0", "tab line nul end"),
        ("👩\u200d🚀 astronaut", "👩\u200d🚀 astronaut"),
        ("&lt;i&gt;nested&lt;/i&gt;", "nested"),
        ("", ""),
    ],
)
def test_clean(found: str, cleaned: str) -> None:
    assert clean(found) == cleaned


@given(st.text(max_size=300))
def test_cleaned_texts_are_composed_and_single_spaced(text: str) -> None:
    cleaned = clean(text)
    assert cleaned == " ".join(cleaned.split())
    assert unicodedata.is_normalized("NFC", cleaned)
    cleaned.encode()


@given(st.text("ab &;%+<>/0123456789ABCDEFampltgqu\u0301é", max_size=40))
def test_cleaning_twice_changes_nothing_unless_encoded_many_times(text: str) -> None:
    assert clean(clean(clean(text))) == clean(clean(text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("20160716_113957.JPG", "file_name"),
        ("20160716 113957.JPG", "file_name"),
        ("IMG_2041", "file_name"),
        ("DSC00412", "file_name"),
        ("P1010033", "file_name"),
        ("Photo 12", "file_name"),
        ("holiday.jpg", "file_name"),
        ("our holiday in Rome.jpg", "file_name"),
        ("100 0123", "file_name"),
        ("IMG_1234 (2).jpg", "file_name"),
        ("DSC_0001 copy", "file_name"),
        ("Screenshot_20150628-111100.png", "file_name"),
        ("P51 Mustang", None),
        ("Canon EOS 600D | 50mm | f/8 | 1/125s | ISO 200", "camera_settings"),
        ("Exposure: 1/60, ISO 400", "camera_settings"),
        ("OLYMPUS DIGITAL CAMERA", "camera_settings"),
        ("Click to enlarge!", "boilerplate"),
        ("logo", "boilerplate"),
        ("https://example.test/a/b?c", "url"),
        ("www.example.test", "url"),
        ("*", "too_short"),
        ("", "empty"),
        ("$19.99 - 20%", "few_letters"),
        ("ab " * 255 + "ab", None),
        ("ab " * 256 + "ab", "too_long"),
        ("x" * 1001, "too_long"),
        ("img of a dog", None),
        ("2012-07-04 Parade on Main St", None),
        ("1957 Chevrolet", None),
        ("A 50 mm lens", None),
        ("the new logo of the club", None),
        ("dog", None),
        ("Photo 12 of our wedding", None),
    ],
)
def test_clip_rules(text: str, reason: str | None) -> None:
    assert broken_rule(text, PRESETS["clip"]) == reason
    assert reason is None or reason in REASONS


@pytest.mark.parametrize(
    ("preset", "text", "reason"),
    [
        ("cc12m", "a dog in the park", None),
        ("cc12m", "the man and the woman on the street by the sea", None),
        ("cc12m", "the dog", "too_few_words"),
        ("cc12m", "a " + "dog " * 255 + "cat", "too_long"),
        ("cc12m", "dogs playing in parks", "no_determiner"),
        ("cc12m", "this cheap hotel cheap hotel room", "repeated_words"),
        ("cc12m", "a red red car here", None),  # four words: one repetition is no pattern
        ("cc12m", "Click to enlarge!", "boilerplate"),
        ("datacomp", "dogs playing in", None),
        ("datacomp", "red dogs", "too_few_words"),
        ("datacomp", "a b c", "too_short"),
        ("datacomp", "a b cd", None),
        ("datacomp", "IMG 2041 JPG", None),
        ("laion", "dogs", "too_short"),
        ("laion", "puppy", None),
        ("laion", "IMG_2041.JPG", None),
    ],
)
def test_presets(preset: str, text: str, reason: str | None) -> None:
    assert broken_rule(text, PRESETS[preset]) == reason


def test_every_reason_is_some_rules_and_every_rule_says_why() -> None:
    rules = {rule for preset in PRESETS.values() for rule in preset}
    texts = ["", "http://a.b/c", "IMG_2041", "iso 200 f/8", "logo", "1234 5678 $", "*", "x" * 1001, "red dogs",
             "dogs playing in parks", "a hotel cheap hotel cheap room"]  # fmt: skip
    assert {rule(text) for rule in rules for text in texts} - {None} == set(REASONS)
    assert all(rule.__doc__ for rule in rules)


def test_preset_none_takes_every_text() -> None:
    assert broken_rule("IMG_2041", PRESETS["none"]) is None
    assert broken_rule("", PRESETS["none"]) == "empty"


HOSTILE = st.one_of(
    st.text(max_size=2000),
    st.text(st.characters(codec=None), max_size=50),
    st.text("a The\0\n\u200d\u202e\ud800אב👩🇸%&<>/.1", max_size=60),
)


@pytest.mark.parametrize("preset", PRESETS)
@given(text=HOSTILE)
def test_rules_judge_any_text(preset: str, text: str) -> None:
    reason = broken_rule(clean(text), PRESETS[preset])
    assert reason is None or reason in REASONS
    assert (reason == "empty") is (clean(text) == "")


# What looks like the beginning of something at every place: no rule may try all of them against each other.
LONG = ["the cat ", "x", "é\0", "👩\u200d🚀", "-", "_", "a-", "a_b ", "1 ", "img 1 (1) ", "f/", "1/1 ", "<!--", "<a ",
        "<", "&amp;", "%41", "a+", "www.", "http://", "a.com/"]  # fmt: skip


@pytest.mark.parametrize("text", LONG)
def test_a_megabyte_is_cleaned_and_judged(text: str) -> None:
    cleaned = clean(text * (1_000_000 // len(text)) + "!")
    assert len(cleaned) <= 1_000_001
    for preset in PRESETS:
        assert broken_rule(cleaned, PRESETS[preset]) in {None, *REASONS}
    assert broken_rule(cleaned, PRESETS["clip"]) is not None
