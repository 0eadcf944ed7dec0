from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import json_input

_VALUES = st.recursive(
    st.none() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
)


@given(_VALUES)
def test_whatever_json_spells_utf8_can_hold(value: object) -> None:
    read = json_input.loads(json.dumps(value).encode())
    json.dumps(read, ensure_ascii=False).encode()
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert read == value


def test_half_a_character_becomes_the_mark_for_it() -> None:
    assert json_input.loads(rb'{"a": ["x\ud83d", "\ud83d\ude00", "\\ud83d"]}') == {
        "a": ["x�", "😀", r"\ud83d"]
    }


@pytest.mark.parametrize("bad", [b"", b"{", b"\xff", b"nul"])
def test_not_json(bad: bytes) -> None:
    with pytest.raises(ValueError):
        json_input.loads(bad)
