"""`python -m benchmarks.language`: the language backends on labelled captions, in one run.

The captions are Tux Paint's stamp descriptions in 77 locales and CLDR's names of emoji and symbols in 130, read from
Debian's packages (downloaded by `apt-get` into the folder unless it has them). All English ones count, and of each
other locale a part; texts of other locales that are also an English caption are left out. Half of the texts, by
hash, served to choose the cascade's bounds; only the other half is measured here.

Prints Markdown: each backend's recall of English, its false accepts and speed by length of text; the cascade with
other vocabularies; and with pages whose language is known, or wrongly said to be English.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import measure
from benchmarks.measure import say
from pipeline.core import tables
from pipeline.core.contracts import QUERIES
from pipeline.core.tokens import fold, tokens
from pipeline.text import language
from pipeline.text.clean import clean
from pipeline.text.language import LanguageDetector, make_detector
from pipeline.text.vocabulary import english_words, latin_share

PACKAGES: Final = ("tuxpaint-stamps-default", "unicode-cldr-core")
PER_LOCALE: Final = {"stamps": 60, "CLDR": 40}
DUMP_CUT: Final = Path(__file__).parent.parent / "examples/world/text/enwiki-cut.xml.bz2"
CLASSES: Final = ("1-3 words", "4+ words")
BACKENDS: Final = tuple(name for name in language.BACKENDS if name != "none")


@dataclass(frozen=True)
class Caption:
    """A cleaned text, its locale's language and the collection it is from."""

    source: str
    language: str
    text: str

    @property
    def length(self) -> str:
        """The text's class of length."""
        return CLASSES[len(self.text.split()) > 3]


def main() -> None:
    """Gets the data, runs every backend, prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description=__doc__)
    parser.add_argument("--folder", metavar="DIR", help="where packages are kept (a temporary folder)")
    parser.add_argument(
        "--queries", metavar="DIR", help="query list whose words to know (made of the dump cut and WordNet)"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        captions = labelled(folder)
        words = vocabulary(given.queries or query_list(Path(temporary) / "queries"))
    _print_data(captions, words)
    _print_backends(captions, words)
    _print_vocabularies(captions, words)
    _print_pages(captions, words)


def labelled(folder: Path) -> list[Caption]:
    """The captions that are measured."""
    found = [c for c in (*stamps(_package(folder, 0)), *names(_package(folder, 1))) if _has_letters(c.text)]
    english = {_key(c.text) for c in found if c.language == "en"}
    groups: dict[tuple[str, str], dict[str, Caption]] = {}
    for caption in found:
        if caption.language == "en" or _key(caption.text) not in english:
            group = groups.setdefault((caption.source, caption.language), {})
            group.setdefault(fold(caption.text), caption)
    sample: list[Caption] = []
    for (source, code), group in sorted(groups.items()):
        ordered = sorted(group.values(), key=lambda c: _hash(f"{c.source}\0{c.language}\0{c.text}"))
        sample += ordered if code == "en" else ordered[: PER_LOCALE[source]]
    return [c for c in sample if _hash(c.text) % 2 == 0]


def stamps(package: Path) -> Iterator[Caption]:
    """Tux Paint's descriptions: English in the first line, then ``locale.utf8=text``."""
    for content in _files(package, re.compile(r".*/tuxpaint/stamps/.*\.txt")):
        first, *lines = content.decode(errors="replace").splitlines() or [""]
        yield Caption("stamps", "en", clean(first))
        for line in lines:
            if found := re.match(r"([a-z]+)[\w@.-]*\.utf8=(.*)", line):
                yield Caption("stamps", found[1], clean(found[2]))


def names(package: Path) -> Iterator[Caption]:
    """CLDR's names for reading emoji and symbols aloud."""
    for content in _files(package, re.compile(r".*/cldr/common/annotations/\w+\.xml")):
        root = ET.fromstring(content)
        identity = root.find("identity/language")
        code = identity.get("type", "") if identity is not None else ""
        for name in root.iter("annotation"):
            if (
                name.get("type") == "tts" and name.text and name.text != "↑↑↑"
            ):  # "as the parent locale has it"
                yield Caption("CLDR", code, clean(name.text))


def _package(folder: Path, number: int) -> Path:
    name = PACKAGES[number]
    if not list(folder.glob(f"{name}_*.deb")):
        say(f"apt-get download {name} …")
        subprocess.run(["apt-get", "download", "-q", name], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.glob(f"{name}_*.deb"))[-1]


def _files(package: Path, wanted: re.Pattern[str]) -> Iterator[bytes]:
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                if member.isfile() and wanted.fullmatch(member.name) and (file := tar.extractfile(member)):
                    yield file.read()
        if process.stdout:
            process.stdout.read()


def _has_letters(text: str) -> bool:
    return any(c.isalpha() for c in text)


def _key(text: str) -> str:
    return fold(text).strip(" .!")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def query_list(out: Path) -> str:
    """Makes the query list of the dump cut and WordNet; returns its folder."""
    say("wit queries …")
    command = [sys.executable, "-m", "pipeline", "queries", "--wikipedia", str(DUMP_CUT), "--quiet"]
    measure.run([*command, "--out", str(out)])
    return str(out)


def vocabulary(folder: str) -> frozenset[str]:
    """The words that `wit select` would take from a query list."""
    listed = tables.read_files(tables.part_files(folder, QUERIES), columns=["query", "sources"])
    columns = (listed.column(name).to_pylist() for name in ("query", "sources"))
    return frozenset(english_words(zip(*columns, strict=True)))


@dataclass(frozen=True)
class Result:
    """What a detector made of a class of texts."""

    recall: float
    accepts: float
    latin_accepts: float
    texts_per_s: float


def judged(
    detector: LanguageDetector,
    captions: Sequence[Caption],
    page: Callable[[Caption], str | None] = lambda caption: None,
) -> Result:
    """Recall of English, false accepts (of all others, of those in Latin letters), texts per CPU second."""
    for name in ("fasttext-lite", "langdetect"):
        make_detector(name, ()).detect("What is loaded once is loaded before the clock starts.")
    language._langdetect.cache_clear()
    begun = time.process_time()
    taken = [detector.detect(c.text, page(c)).code == "en" for c in captions]
    seconds = time.process_time() - begun
    english = [t for t, c in zip(taken, captions, strict=True) if c.language == "en"]
    others = [
        (t, latin_share(c.text) >= 0.5) for t, c in zip(taken, captions, strict=True) if c.language != "en"
    ]
    return Result(
        recall=_mean(english),
        accepts=_mean(t for t, _ in others),
        latin_accepts=_mean(t for t, latin in others if latin),
        texts_per_s=len(captions) / max(seconds, 1e-9),
    )


def _mean(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _print_data(captions: list[Caption], words: frozenset[str]) -> None:
    rows = []
    for source in PER_LOCALE:
        here = [c for c in captions if c.source == source]
        counts = [
            sum(1 for c in here if (c.language == "en") is english and c.length == length)
            for english in (True, False)
            for length in CLASSES
        ]
        rows.append((source, *counts, len({c.language for c in here if c.language != "en"})))
    head = [f"{kind}, {length}" for kind in ("English", "other") for length in CLASSES]
    print(f"\nTexts; the query list knows {len(words):,} words\n")
    print(measure.table(("source", *head, "other languages"), rows))


def _print_backends(captions: list[Caption], words: frozenset[str]) -> None:
    rows = []
    for name in BACKENDS:
        say(f"{name} …")
        rows.append((name, *_by_class(make_detector(name, words), captions)))
    print("\nBackends\n")
    _print_results("backend", rows)


def _by_class(
    detector: LanguageDetector,
    captions: list[Caption],
    page: Callable[[Caption], str | None] = lambda caption: None,
) -> list[str]:
    results = [judged(detector, [c for c in captions if c.length == length], page) for length in CLASSES]
    return [
        *(f"{r.recall:.3f}" for r in results),
        *(f"{r.accepts:.3f}" for r in results),
        *(f"{r.latin_accepts:.3f}" for r in results),
        *(f"{r.texts_per_s:,.0f}" for r in results),
    ]


def _print_results(first: str, rows: Iterable[Sequence[str]]) -> None:
    columns = ("recall", "false accepts", "of Latin script", "texts per CPU s")
    print(
        measure.table((first, *(f"{c}, {length[:3].strip()}" for c in columns for length in CLASSES)), rows)
    )


def _print_vocabularies(captions: list[Caption], words: frozenset[str]) -> None:
    known = {"no query list": frozenset[str](), "the query list": words}
    if importlib.util.find_spec("wikiwords"):
        counts = importlib.import_module("wikiwords.occdb").db
        more = frozenset(word for text in counts for word in tokens(text))
        known[f"and {len(more):,} words of Wikipedia"] = words | more
    rows = [
        (f"{name}, {label}", *_by_class(make_detector(name, chosen), captions))
        for label, chosen in known.items()
        for name in ("vocabulary", "cascade")
    ]
    print("\nOther vocabularies\n")
    _print_results("backend, words", rows)


def _print_pages(captions: list[Caption], words: frozenset[str]) -> None:
    pages: dict[str, Callable[[Caption], str | None]] = {
        "right": lambda caption: caption.language,
        "always `en`": lambda caption: "en",
    }
    rows = [
        (f"{name}, {label}", *_by_class(make_detector(name, words), captions, page))
        for label, page in pages.items()
        for name in ("vocabulary", "cascade")
    ]
    print("\nThe page's language is known\n")
    _print_results("backend, page's language", rows)


if __name__ == "__main__":
    main()
