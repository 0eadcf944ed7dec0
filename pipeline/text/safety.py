"""Offensive texts by a word list, and pages and images by a list of hosts that the user gives.

The word list has whole words of LDNOOBW's English list (CC BY 4.0), case-folded. It is a word list and no more:
English only, blind to images and to what decent words say, and it also hits medical and art captions. The host list
knows only what is written in it: no list is shipped, none is brought up to date, and an image that moved to another
host is not recognised. Neither finds illegal material, nor says of what is left that it is safe; hash lists and
image scorers belong to the fetch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Final
from urllib.parse import unquote

from pipeline.core import paths
from pipeline.core.errors import InputError
from pipeline.core.tokens import fold, tokens
from pipeline.text.words import words

LIST: Final = "blocklist_en.txt"
_LONGEST_HOST: Final = 253
_URL: Final = re.compile(
    r"(?:[a-z][a-z0-9+.\-]*:)?[/\\]{2}(?:[^/\\?#]*@)?(\[[^\]/]*\]|[^/\\?#:@]*)[^/\\?#]*(.*)", re.I | re.S
)


@functools.lru_cache(maxsize=1)
def _terms() -> tuple[Mapping[str, tuple[tuple[str, ...], ...]], frozenset[str]]:
    """Terms by their first word, and terms without words (emoji)."""
    lines = (resources.files("pipeline.text") / LIST).read_text(encoding="utf-8").splitlines()
    by_first: dict[str, list[tuple[str, ...]]] = {}
    bare: set[str] = set()
    for line in lines:
        words = tuple(tokens(line))
        if words:
            by_first.setdefault(words[0], []).append(words)
        elif line.strip():
            bare.add(fold(line.strip()))
    return {first: tuple(found) for first, found in by_first.items()}, frozenset(bare)


def offensive_term(text: str) -> str | None:
    """The first listed term that a text contains as whole words, or ``None``."""
    by_first, bare = _terms()
    found = words(text)
    if not by_first.keys().isdisjoint(found):
        for place, word in enumerate(found):
            for term in by_first.get(word, ()):
                if found[place : place + len(term)] == term:
                    return " ".join(term)
    if not text.isascii():
        return next((sign for sign in sorted(bare) if sign in text), None)
    return None


class DenyList:
    """Hosts, parts of hosts, and pieces of addresses that nothing is wanted from.

    A line of the list is one of

    * ``example.com``: the host and all hosts below it (``*.example.com`` and ``.example.com`` mean the same);
    * ``example.com/adult/``: addresses of these hosts whose path begins so;
    * ``/adult/``: addresses of any host with this piece in path or query;

    or a comment from ``#`` to its end. Case does not count, nor do percent-encoding and Unicode spelling of hosts.

    Args:
        lines: Of the list.
        where: Its name, for messages.

    Raises:
        InputError: A line holds anything else.
    """

    def __init__(self, lines: Iterable[str], *, where: str = "deny list") -> None:
        hosts: dict[str, set[str]] = {}
        pieces: set[str] = set()
        for number, line in enumerate(lines, 1):
            entry = line.partition("#")[0].strip().casefold()
            if not entry:
                continue
            host, slash, path = entry.partition("/")
            if not host and path and not any(c.isspace() for c in entry):
                pieces.add(_plain(entry))
                continue
            host = _host(host.removeprefix("*."))
            if not _is_host(host):
                raise InputError(
                    "not a host or a piece of an address",
                    where=f"{where}:{number}",
                    expected="HOST, HOST/PATH or /PIECE",
                    found=repr(line.strip()[:80]),
                )
            hosts.setdefault(host, set()).add(_plain(slash + path))
        self._paths = {host: tuple(sorted(found)) for host, found in hosts.items()}
        self._pieces = re.compile("|".join(map(re.escape, sorted(pieces)))) if pieces else None

    def entry(self, url: str) -> str | None:
        """The line that an address falls under, or ``None``; text that is no absolute address falls under none."""
        if (found := _URL.match(url.strip())) is None:
            return None
        path = _plain(found[2].replace("\\", "/")) or "/"
        host = _host(unquote(found[1]))
        while host and len(host) <= _LONGEST_HOST:
            for prefix in self._paths.get(host, ()):
                if path.startswith(prefix):
                    return host + prefix
            host = host.partition(".")[2]
        piece = self._pieces.search(path) if self._pieces else None
        return piece[0] if piece else None


def read_deny_list(path: str) -> DenyList:
    """Reads a list of :class:`DenyList`'s lines, plain or compressed.

    Raises:
        InputError: It is missing, unreadable, no UTF-8, or has a line that cannot be read.
    """
    with paths.open_input(path) as file:
        try:
            return DenyList(
                (line.decode("utf-8-sig" if not n else "utf-8") for n, line in enumerate(file)), where=path
            )
        except UnicodeDecodeError as error:
            raise InputError("not UTF-8 text", where=path, found=str(error)) from error
        except (OSError, EOFError) as error:
            raise InputError("cannot be read", where=path, found=str(error)) from error


def _plain(path: str) -> str:
    return unquote(path).casefold()


def _host(name: str) -> str:
    """A host as names are compared: lower case, Unicode spelt as DNS does, no dots around it."""
    name = name.casefold().strip(".")
    if name.isascii() or len(name) > _LONGEST_HOST:
        return name
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return name


def _is_host(name: str) -> bool:
    return re.fullmatch(r"[^\s/:@?#%*\[\]]+|\[[0-9a-f:.]+\]", name) is not None
