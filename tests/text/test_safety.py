"""The block list of words and the deny list of hosts."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.text.safety import DenyList, offensive_term, read_deny_list


def test_block_list_takes_whole_words_only() -> None:
    assert offensive_term("A NUDE figure") == "nude"
    assert offensive_term("Middlesex, Scunthorpe and a cockatoo") is None
    assert offensive_term("two girls, one cat") is None
    assert offensive_term("2 girls 1 cup") == "2 girls 1 cup"
    assert offensive_term("look: 🖕") == "🖕"
    assert offensive_term("") is None


@given(st.text(st.characters(codec=None), max_size=200))
def test_the_block_list_judges_any_text(text: str) -> None:
    term = offensive_term(text)
    assert offensive_term(f"{text} nude") == (term or "nude")
    assert offensive_term(f"{text.upper()} 🖕") is not None


LIST = """
# adult sites
bad.example            # and what is below it
*.worse.example
shared.example/adult/
/porn/
münchen.example
[2001:db8::1]
"""


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("http://bad.example/a.jpg", "bad.example"),
        ("https://img.cdn.BAD.example:8443", "bad.example"),
        ("//bad.example/a.jpg", "bad.example"),
        ("http://user:word@bad.example./a", "bad.example"),
        ("http:\\\\bad.example\\a", "bad.example"),
        ("http://b%61d.example/a", "bad.example"),
        ("http://worse.example/", "worse.example"),
        ("http://shared.example/adult/1.jpg", "shared.example/adult/"),
        ("http://www.shared.example/%41dult/1.jpg", "shared.example/adult/"),
        ("http://other.example/x/Porn/1.jpg", "/porn/"),
        ("http://other.example/get?of=/porn/1.jpg", "/porn/"),
        ("http://MÜNCHEN.example/", "xn--mnchen-3ya.example"),
        ("http://xn--mnchen-3ya.example/", "xn--mnchen-3ya.example"),
        ("http://[2001:DB8::1]:80/", "[2001:db8::1]"),
        ("http://notbad.example/", None),
        ("http://bad.example.test/", None),
        ("http://bad.example@good.example/", None),
        ("http://good.example/bad.example", None),
        ("http://good.example/pornography", None),
        ("http://shared.example/children/", None),
        ("http://shared.example/x/adult/", None),
        ("bad.example", None),
        ("data:image/png;base64,//bad.example/", None),
        ("", None),
    ],
)
def test_deny_list(url: str, entry: str | None) -> None:
    assert DenyList(LIST.splitlines()).entry(url) == entry


def test_an_empty_list_denies_nothing() -> None:
    assert DenyList(["", "  # nothing"]).entry("http://bad.example/porn/") is None


@pytest.mark.parametrize(
    "line", ["0.0.0.0 bad.example", "http://bad.example/", "/", "a b/c", "*", "bad.example:80", "."]
)
def test_a_line_that_is_no_entry_is_told(line: str) -> None:
    with pytest.raises(
        InputError, match=r"^hosts.txt:2: not a host or a piece of an address, expected HOST, "
    ):
        DenyList(["good.example", line], where="hosts.txt")


def test_lists_are_read_from_files(tmp_path: Path) -> None:
    plain, packed = tmp_path / "hosts.txt", tmp_path / "hosts.txt.gz"
    plain.write_bytes(b"\xef\xbb\xbfbad.example\r\n" + LIST.encode())
    packed.write_bytes(gzip.compress(LIST.encode()))
    for path in (plain, packed):
        assert read_deny_list(str(path)).entry("http://bad.example/") == "bad.example"
    plain.write_bytes(b"\xff.example")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_deny_list(str(plain))
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        read_deny_list(str(packed))
    with pytest.raises(InputError, match="cannot open"):
        read_deny_list(str(tmp_path / "none.txt"))


@given(st.text(st.characters(codec=None), max_size=100), st.text(max_size=50))
def test_any_address_can_be_asked_about(text: str, path: str) -> None:
    denied = DenyList(LIST.splitlines())
    denied.entry(text)
    denied.entry(f"http://{text}")
    assert denied.entry(f"http://sub.bad.example/{path}") == "bad.example"


@pytest.mark.parametrize(
    "part", ["a.", "a", "é", "%41", "@", "/", "//", "\\", "[", ":", "👩\u200d🚀", "/por"]
)
def test_a_megabyte_of_address_can_be_asked_about(part: str) -> None:
    long = part * (1_000_000 // len(part))
    denied = DenyList(LIST.splitlines())
    assert denied.entry(f"http://{long}.bad.example/") in (None, "bad.example")
    assert denied.entry(f"http://bad.example/{long}") == "bad.example"
