"""What others would do, each as a process of its own: `python -m benchmarks.peers NAME DUMP` prints JSON.

None of these is a dependency of the project: `pip install gensim mwparserfromhell` beside it.
"""

from __future__ import annotations

import bz2
import json
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.core.tokens import tokens

HIDDEN_TAGS = {
    "ref", "math", "gallery", "timeline", "source", "syntaxhighlight", "score", "imagemap", "code", "pre", "table",
}  # fmt: skip
_LINES = ("br", "hr", "p", "div", "li", "td", "tr")


def gensim(path: str) -> dict[str, Any]:
    """WikiCorpus in two processes (its tokeniser, articles of 50 words and more), then Phrases over them."""
    from gensim.corpora.wikicorpus import WikiCorpus
    from gensim.models.phrases import Phrases

    corpus = WikiCorpus(path, processes=2, dictionary={})
    phrases = Phrases(corpus.get_texts(), min_count=3, threshold=10)
    found = phrases.find_phrases([])
    return {"tokens": phrases.corpus_word_count, "entries": len(phrases.vocab), "phrases": len(found)}


def mwparserfromhell(path: str) -> dict[str, Any]:
    """Each article parsed to a tree, the tree walked, its words counted."""
    import mwparserfromhell as parser

    counts: Counter[str] = Counter()
    for text in articles(path):
        counts.update(tokens("".join(walk(parser.parse(text)))))
    return {"counts": counts}


def articles(path: str) -> Iterator[str]:
    """Wikitext of the articles of a dump, by the standard library alone."""
    with bz2.open(path) as file:
        for _, element in ET.iterparse(file):
            if element.tag.endswith("}page"):
                fields = {e.tag.rpartition("}")[2]: e for e in element.iter()}
                if (
                    fields["ns"].text == "0"
                    and "redirect" not in fields
                    and fields["model"].text == "wikitext"
                ):
                    yield fields["text"].text or ""
                element.clear()


def walk(code: Any) -> list[str]:
    """What a reader sees of a page, by mwparserfromhell's own tree."""
    from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink

    found: list[str] = []
    for node in code.nodes:
        if isinstance(node, Text):
            found.append(str(node.value))
        elif isinstance(node, HTMLEntity):
            found.append(node.normalize())
        elif isinstance(node, Heading):
            found += ["\n", *walk(node.title), "\n"]
        elif isinstance(node, Wikilink):
            if not str(node.title).strip().lower().startswith(("file:", "image:", "category:")):
                found += walk(node.title if node.text is None else node.text)
        elif isinstance(node, ExternalLink):
            found += walk(node.title) if node.title is not None else []
        elif isinstance(node, Tag):
            name = str(node.tag).strip().lower()
            if name not in HIDDEN_TAGS:
                found.append("\n" if name in _LINES else "")
                found += walk(node.contents) if node.contents is not None and not node.self_closing else []
    return found


PEERS = {"gensim": gensim, "mwparserfromhell": mwparserfromhell}

if __name__ == "__main__":
    print(json.dumps(PEERS[sys.argv[1]](sys.argv[2])))
