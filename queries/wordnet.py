"""WordNet's synsets from its ``data.*`` files (3.0, 3.1, and later releases in the same format).

A line of ``data.noun`` reads ``offset lex_filenum ss_type w_cnt(hex) (word lex_id)… p_cnt … | gloss``; the licence
at the head of each file is indented by two spaces. Format: wndb(5WN), https://wordnet.princeton.edu.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.core import paths
from pipeline.core.errors import InputError
from queries.streams import DAMAGE

# File -> letter of its ids; satellites ("s" in the file) are adjectives and share data.adj's offsets.
FILES = {"data.noun": "n", "data.verb": "v", "data.adj": "a", "data.adv": "r"}

_MARKER = re.compile(r"\((?:a|p|ip)\)$")


@dataclass(frozen=True)
class Synset:
    """One synset.

    Attributes:
        id: Part of speech and offset, as ``n02084071``.
        lemmas: Its words in WordNet's order, spaces for underscores, without adjective markers, case kept.
    """

    id: str
    lemmas: tuple[str, ...]


def shipped() -> str:
    """The folder of the WordNet 3.0 that ships with this package."""
    return str(importlib.resources.files("queries") / "wordnet-3.0")


def parse_line(line: str, letter: str) -> Synset:
    """The synset of one data line.

    Args:
        line: The line.
        letter: ``n``, ``v``, ``a`` or ``r``.

    Raises:
        ValueError: The line is not a synset.
    """
    offset, _, kind, count, *rest = line.split("|", 1)[0].split()
    words = rest[: 2 * int(count, 16) : 2]
    if len(offset) != 8 or not offset.isdigit() or kind not in "nvasr" or len(words) != int(count, 16):
        raise ValueError("not a synset")
    return Synset(letter + offset, tuple(_MARKER.sub("", w).replace("_", " ") for w in words))


def parse(lines: Iterable[bytes], letter: str, *, where: str) -> Iterator[Synset]:
    """The synsets of one data file.

    Raises:
        InputError: A line is not a synset; the number of the line is named.
    """
    for number, line in enumerate(lines, 1):
        if line.startswith(b"  ") or not line.strip():
            continue
        try:
            yield parse_line(line.decode("utf-8"), letter)
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(
                f"line {number} is not a WordNet synset", where=where, found=repr(line[:60])
            ) from error


def data_files(folder: str) -> dict[str, str]:
    """The data files of a WordNet folder: path -> id letter; ``.gz`` counts, and a ``dict`` folder inside it.

    Raises:
        InputError: The folder is missing or holds none or only some of the four files.
    """
    if not paths.is_folder(folder):
        raise InputError("no such WordNet folder", where=folder, hint="`--wordnet none` does without")
    for place in (folder, paths.join(folder, "dict")):
        found = {
            path: letter
            for name, letter in FILES.items()
            for path in (paths.join(place, name), paths.join(place, f"{name}.gz"))
            if paths.exists(path)
        }
        if len(set(found.values())) == len(FILES):
            # An unpacked file beside its packed twin must not count twice.
            return {p: k for p, k in found.items() if not (p.endswith(".gz") and p[:-3] in found)}
        if found:
            break
    missing = [name for name, letter in FILES.items() if letter not in found.values()]
    raise InputError(
        "the WordNet folder lacks data files",
        where=folder,
        expected="data.noun, data.verb, data.adj, data.adv",
        found=f"no {', '.join(missing)}",
        hint="leave --wordnet out for the copy that ships",
    )


def read(folder: str) -> list[Synset]:
    """All synsets of a WordNet folder, ordered by id.

    Raises:
        InputError: The folder or a file in it is not WordNet.
    """
    found: list[Synset] = []
    for path, letter in data_files(folder).items():
        try:
            with paths.open_input(path) as file:
                found.extend(parse(file, letter, where=path))
        except DAMAGE as error:
            raise InputError("damaged WordNet file", where=path, found=str(error)) from error
    if not found:
        raise InputError("the WordNet files hold no synset", where=folder)
    return sorted(found, key=lambda s: s.id)


def terms(synsets: Iterable[Synset], which: str = "first_lemma") -> Iterator[tuple[str, str | None]]:
    """(term, synset id) pairs.

    Args:
        synsets: The synsets.
        which: ``first_lemma`` or ``all_lemmas`` of each synset, or ``metaclip``: as MetaCLIP's ``build_metadata.py``
            takes them (first lemma, lower-cased, cut at the first dot), with the numerals "0" to "99", which belong
            to no synset.
    """
    for synset in synsets:
        if which == "metaclip":
            term = synset.lemmas[0].lower().partition(".")[0]
            if term:
                yield term, synset.id
        else:
            for lemma in synset.lemmas if which == "all_lemmas" else synset.lemmas[:1]:
                yield lemma, synset.id
    if which == "metaclip":
        yield from ((str(number), None) for number in range(100))
