"""`python -m benchmarks.match`: the matcher of `wit select` against pyahocorasick and plain Python, in one run.

All read the same queries and texts, one after another in one thread of one process, and must find the same. Needs
`pip install pyahocorasick` beside the project, and a checkout: everything is made of what the repository holds.

* Queries: all lemmas of WordNet 3.0, then the words and then the word pairs, the most frequent first, of the cut of
  Wikipedia in `examples/` (its wikitext, as the project's tokeniser reads it), each once, until there are enough.
* Texts: captions of the demo's pages (`alt`, `title`, `figcaption`), the head of one joined to the tail of another,
  and one word in eight replaced by any word of the cut, for real captions hold rare words. Seeded.

"Text to arrays" begins with the text as it is found and ends with text and query numbers, each pair once, sorted: for
pyahocorasick that is spacing or tokenising in Python, the automaton's search, and a sorted set. "Search alone" gives
the automaton texts that were prepared before, and throws away what it finds. Each figure is the best of several
rounds, in which the contenders take turns.
"""

from __future__ import annotations

import argparse
import html
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measure import say, table
from benchmarks.peers import articles
from pipeline.core.tokens import tokens
from pipeline.select.match import MODES, Matcher
from pipeline.select.plain import SIGNS, PlainMatcher
from queries import wordnet

WORLD = Path(__file__).parents[1] / "examples" / "world"
_CAPTION = re.compile(r'(?:alt|title)="([^"]+)"|<figcaption[^>]*>(.*?)</figcaption>', re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_REPLACED = 1 / 8

Found = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Makes the data, runs everything, prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.match", description=__doc__)
    parser.add_argument("--queries", type=int, default=500_000, metavar="N", help="(500,000)")
    parser.add_argument("--texts", type=int, default=100_000, metavar="N", help="(100,000)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="the best of them counts (7)")
    given = parser.parse_args()
    say("making queries and texts …")
    queries, vocabulary = make_queries(given.queries)
    texts = make_texts(given.texts, vocabulary)
    words = sum(len(text.split()) for text in texts) / len(texts)
    letters = sum(map(len, texts)) / len(texts)
    print(f"{len(queries):,} queries; {len(texts):,} texts of {letters:.0f} characters, {words:.1f} words\n")
    for mode in MODES:
        _benchmark(queries, texts, mode, given.rounds)


def make_queries(count: int) -> tuple[list[str], list[str]]:
    """Queries, and all words of the cut; see the module's text."""
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for text in articles(str(WORLD / "text" / "enwiki-cut.xml.bz2")):
        found = tokens(text)
        words.update(found)
        pairs.update(pairwise(found))
    lemmas = (lemma for synset in wordnet.read(wordnet.shipped()) for lemma in synset.lemmas)
    listed = dict.fromkeys(lemmas)
    listed |= dict.fromkeys(word for word, _ in words.most_common())
    listed |= dict.fromkeys(" ".join(pair) for pair, _ in pairs.most_common())
    return list(listed)[:count], list(words)


def make_texts(count: int, vocabulary: list[str]) -> list[str]:
    """Captions recombined; see the module's text."""
    captions: dict[str, None] = {}
    for page in sorted((WORLD / "web").rglob("*.html")):
        for attribute, element in _CAPTION.findall(page.read_text(encoding="utf-8", errors="ignore")):
            captions[" ".join(html.unescape(_TAG.sub(" ", attribute or element)).split())] = None
    split = [caption.split() for caption in captions]
    draw = random.Random(0)
    made = []
    for _ in range(count):
        head, tail = draw.choice(split), draw.choice(split)
        words = head[: draw.randint(0, len(head))] + tail[draw.randint(0, max(0, len(tail) - 1)) :]
        made.append(" ".join(draw.choice(vocabulary) if draw.random() < _REPLACED else w for w in words))
    return made


class AhoCorasick:
    """MetaCLIP's faster way, for both modes: an automaton over spaced texts.

    Args:
        queries: The list; a query's place is its id.
        mode: ``clean`` or ``metaclip``.
    """

    def __init__(self, queries: list[str], mode: str) -> None:
        import ahocorasick  # type: ignore[import-not-found]

        self._mode = mode
        same: dict[str, list[int]] = {}
        for query_id, query in enumerate(queries):
            if mode == "metaclip" or tokens(query):
                same.setdefault(self.query(query), []).append(query_id)
        self.automaton = ahocorasick.Automaton()
        for query, ids in same.items():
            self.automaton.add_word(query, ids)
        self.automaton.make_automaton()

    def query(self, query: str) -> str:
        """A query as the automaton looks for it."""
        return f" {query} " if self._mode == "metaclip" else f" {' '.join(tokens(query))} "

    def prepared(self, text: str) -> str:
        """A text as the automaton reads it: MetaCLIP's ``spacing``, or the tokeniser's words."""
        if self._mode == "clean":
            return f" {' '.join(tokens(text))} "
        text = f" {text} "
        for sign in SIGNS:
            text = text.replace(sign, f" {sign} ")
        return text.replace("\t", " ").replace("\n", " ").replace("\r", " ")

    def match(self, texts: list[str]) -> Found:
        """Matches of each text, and their queries."""
        counts, found = np.zeros(len(texts), np.int64), []
        for row, text in enumerate(texts):
            here: set[int] = set()
            for _, ids in self.automaton.iter(self.prepared(text)):
                here.update(ids)
            counts[row] = len(here)
            found += sorted(here)
        return counts, np.array(found, np.int32)

    def search(self, prepared: list[str]) -> None:
        """The automaton alone."""
        for text in prepared:
            for _ in self.automaton.iter(text):
                pass


def _benchmark(queries: list[str], texts: list[str], mode: str, rounds: int) -> None:
    say(f"{mode}: building …")
    Matcher([(0, "dog")], mode).match(["dög"])  # what is compiled once is compiled before the clock starts
    arrow = pa.array(texts)
    listed = pa.table({"query_id": np.arange(len(queries), dtype=np.int32), "query": queries})
    ours, ours_s = _timed(lambda: Matcher(listed, mode))
    theirs, theirs_s = _timed(lambda: AhoCorasick(queries, mode))
    plain, plain_s = _timed(lambda: PlainMatcher(enumerate(queries), mode))
    prepared = [theirs.prepared(text) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        stored = str(Path(folder) / "matcher")
        _, store_s = _timed(lambda: ours.store(stored))
        size = Path(stored).stat().st_size
        mapped, map_s = _timed(lambda: Matcher(listed, mode, stored=stored))
        contenders: dict[str, tuple[Callable[[], Any], float, int | None]] = {
            "ours: text to arrays": (lambda: ours.match(arrow), ours_s, size),
            "ours, mapped from its file": (lambda: mapped.match(arrow), map_s, size),
            "pyahocorasick: search alone": (
                lambda: theirs.search(prepared), theirs_s, theirs.automaton.get_stats()["total_size"]),
            "pyahocorasick: text to arrays": (lambda: theirs.match(texts), theirs_s, None),
            "plain Python: text to arrays": (lambda: plain.match(texts), plain_s, None),
        }  # fmt: skip
        best = dict.fromkeys(contenders, float("inf"))
        for number in range(rounds):
            say(f"{mode}: round {number + 1} of {rounds} …")
            for name, (work, _, _) in contenders.items():
                best[name] = min(best[name], _timed(work)[1])
    fastest = best["ours: text to arrays"]
    print(f"**{mode}**\n")
    print(
        table(
            ("what", "µs/text", "texts/s", "ours ×", "build s", "MB"),
            (
                (
                    name, f"{best[name] / len(texts) * 1e6:.2f}", f"{len(texts) / best[name]:,.0f}",
                    f"{best[name] / fastest:.1f}", f"{built:.2f}", f"{held / 1e6:.0f}" if held else "",
                )
                for name, (_, built, held) in contenders.items()
            ),
        )
    )  # fmt: skip
    print(f"\nWriting the file: {store_s:.2f} s. Mapping it includes hashing it and the list.")
    _check(ours.match(arrow), theirs.match(texts), plain.match(texts), queries=len(queries), mode=mode)


def _check(ours: Any, theirs: Found, plain: Found, *, queries: int, mode: str) -> None:
    same = all(
        np.array_equal(ours.rows, np.repeat(np.arange(len(counts)), counts))
        and np.array_equal(ours.query_ids, ids)
        for counts, ids in (theirs, plain)
    )
    hit = len(np.unique(ours.query_ids))
    print(
        f"{len(ours.rows):,} matches of {hit:,} queries; all three found the same: {'yes' if same else 'NO'}\n"
    )
    if not same:
        raise SystemExit(f"{mode}: the contenders disagree")


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


if __name__ == "__main__":
    main()
