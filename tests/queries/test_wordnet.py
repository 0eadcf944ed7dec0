from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pipeline.core.errors import InputError
from queries import wordnet
from queries.wordnet import Synset

NOUN = "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 002 @ 02083346 n 0000 | a member of the genus Canis"
ADJECTIVE = "00004723 00 s 01 galore(ip) 0 001 & 00004413 a 0000 | in great numbers"


def test_wordnet_3_0_has_its_known_numbers() -> None:
    synsets = wordnet.read(wordnet.shipped())
    assert len(synsets) == 117_659
    assert len({s.lemmas[0].lower() for s in synsets}) == 86_571
    assert len({s.id for s in synsets}) == 117_659
    assert sum(s.id.startswith("n") for s in synsets) == 82_115
    dog = next(s for s in synsets if s.id == "n02084071")
    assert dog.lemmas == ("dog", "domestic dog", "Canis familiaris")
    assert not any(s.lemmas[0].endswith(("(a)", "(p)", "(ip)")) for s in synsets)
    # Of the lower-cased first lemmas none is empty, and all lemmas are 147,306 (the index files' entries).
    assert len({lemma.lower() for s in synsets for lemma in s.lemmas}) == 147_306


def test_the_licence_lies_beside_the_data() -> None:
    text = (Path(wordnet.shipped()) / "LICENSE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text


def test_lines() -> None:
    assert wordnet.parse_line(NOUN, "n") == Synset("n02084071", ("dog", "domestic dog", "Canis familiaris"))
    assert wordnet.parse_line(ADJECTIVE, "a") == Synset("a00004723", ("galore",))
    # w_cnt is hexadecimal.
    words = " ".join(f"w{i} 0" for i in range(16))
    assert len(wordnet.parse_line(f"00000001 00 n 10 {words} 000 | gloss", "n").lemmas) == 16


@pytest.mark.parametrize("line", ["", "nonsense", "0001 00 n 01 dog 0 000 | g", "00000001 00 n 02 dog 0 | g"])
def test_lines_that_are_no_synsets(line: str) -> None:
    with pytest.raises(ValueError):
        wordnet.parse_line(line, "n")


def test_terms() -> None:
    synsets = [Synset("n1", ("dog", "hound")), Synset("n2", ("dog",))]
    assert list(wordnet.terms(synsets)) == [("dog", "n1"), ("dog", "n2")]
    assert list(wordnet.terms(synsets, "all_lemmas")) == [("dog", "n1"), ("hound", "n1"), ("dog", "n2")]


def write_wordnet(folder: Path, *, packed: bool = False) -> Path:
    """A WordNet of one line per file, with its licence head."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, letter in wordnet.FILES.items():
        text = f"  1 licence\n00000001 00 {letter} 01 {letter}_word 0 000 | gloss\n".encode()
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text))
        else:
            (folder / name).write_bytes(text)
    return folder


def test_folders_may_be_packed_or_hold_a_dict_folder(tmp_path: Path) -> None:
    plain = wordnet.read(str(write_wordnet(tmp_path / "plain")))
    assert [s.lemmas for s in plain] == [("a word",), ("n word",), ("r word",), ("v word",)]
    assert wordnet.read(str(write_wordnet(tmp_path / "packed", packed=True))) == plain
    write_wordnet(tmp_path / "whole" / "dict")
    assert wordnet.read(str(tmp_path / "whole")) == plain
    write_wordnet(tmp_path / "plain", packed=True)  # both: once
    assert wordnet.read(str(tmp_path / "plain")) == plain


def test_folders_without_data_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such WordNet folder"):
        wordnet.read(str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"lacks data files.*data\.noun"):
        wordnet.read(str(tmp_path))
    write_wordnet(tmp_path)
    (tmp_path / "data.verb").unlink()
    with pytest.raises(InputError, match=r"found no data\.verb"):
        wordnet.read(str(tmp_path))
    (tmp_path / "data.verb").write_text("00000001 this is not wordnet\n")
    with pytest.raises(InputError, match=r"data\.verb: line 1 is not a WordNet synset"):
        wordnet.read(str(tmp_path))
    (tmp_path / "data.verb").write_bytes(b"")
    (tmp_path / "data.adv").unlink()
    (tmp_path / "data.adv.gz").write_bytes(gzip.compress(b"  licence\n" * 100)[:20])
    with pytest.raises(InputError, match="damaged WordNet file"):
        wordnet.read(str(tmp_path))
