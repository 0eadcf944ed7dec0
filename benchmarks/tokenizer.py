"""The tokenizer against open_clip's SimpleTokenizer: equal ids on a fuzz corpus, captions a CPU second.

`python -m benchmarks.tokenizer`; the peers: `pip install --no-deps clip-anytorch==2.6.0 open-clip-torch==3.3.0
timm==1.0.31 torchvision==0.28.0`. The captions are WordNet's glosses, which ship with the project.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import say, table
from model.tokenizer import Tokenizer

WORDNET = Path(__file__).parent.parent / "queries" / "wordnet-3.0"
_PIECES = (
    "a", "The", "photo's", "DON'T", "it's", "I'LL", "'s", "''", "x" * 40, "3.14", "2026-11-22", "&amp;",
    "&amp;amp;", "&lt;b&gt;", "&#39;", "&nbsp;", "caf\u00e9", "cafe\u0301", "Stra\u00dfe", "\u0130stanbul",
    "na\u00efve", "\u201cq\u201d", "\u2018t", "schÃ¶n", "â€œhiâ€\x9d", "\u72ac", "\u732b\u304c", "\ud55c\uad6d",
    "\u0645\u0631\u062d", "\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1f7", "\u200b", "\u00a0",
    "\u2028", "\t", "\n", "\r\n", "\x00", "\x85", "\ufeff", "<|startoftext|>", "<|endoftext|>", "<|EndOfText|>",
    "\u00bd", "\u0664\u0662", "\u2167", "!!!", "?!", "#tag", "@me", "http://a.b/c?d=e&f=g", "\ufb01ne",
    "\uff21\uff22", "o\u0308", "\U0001d4d0", "_", "__init__", "don\u2019t", "\u1e9e",
)  # fmt: skip


def glosses(count: int) -> list[str]:
    """WordNet's glosses in a fixed random order."""
    found = []
    for path in sorted(WORDNET.glob("data.*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [line.partition(" | ")[2].strip() for line in file if " | " in line]
    random.Random(0).shuffle(found)
    return found[:count]


def fuzz_corpus(count: int, *, seed: int = 0) -> list[str]:
    """Texts of odd pieces, random characters of all planes, and printable ASCII."""
    draw = random.Random(seed)
    texts = []
    for i in range(count):
        kind = i % 3
        if kind == 0:
            texts.append(draw.choice((" ", "", ", ")).join(draw.choices(_PIECES, k=draw.randrange(1, 12))))
        elif kind == 1:
            codes = (
                draw.randrange(draw.choice((0x80, 0x250, 0x3000, 0x11000))) for _ in range(draw.randrange(40))
            )
            texts.append("".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000))
        else:
            texts.append("".join(chr(draw.randrange(0x20, 0x7F)) for _ in range(draw.randrange(60))))
    return texts


def different(found: np.ndarray, wanted: np.ndarray, texts: Sequence[str]) -> list[str]:
    """Texts whose rows differ."""
    return [texts[int(i)] for i in np.flatnonzero((found != wanted).any(axis=1))]


def openai() -> Callable[[str], list[int]]:
    """The ``encode`` of OpenAI's own tokenizer, loaded by its file: the package needs what setuptools dropped.

    Raises:
        ImportError: clip-anytorch is not installed.
    """
    for file in importlib.metadata.files("clip-anytorch") or ():
        if str(file) == "clip/simple_tokenizer.py":
            spec = importlib.util.spec_from_file_location("openai_tokenizer", str(file.locate()))
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.SimpleTokenizer().encode
    raise ImportError("clip-anytorch has no clip/simple_tokenizer.py")


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    """Checks and measures."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--captions", type=int, default=25_000)
    given.add_argument("--fuzz", type=int, default=30_000)
    given.add_argument("--rounds", type=int, default=5)
    args = given.parse_args()
    from open_clip.tokenizer import SimpleTokenizer

    fuzz, captions = fuzz_corpus(args.fuzz), glosses(args.captions)
    encode, ours = openai(), Tokenizer()
    wrong = [text for text in fuzz if ours.encode(text) != encode(text)]
    print(f"- OpenAI's ids on {len(fuzz):,} texts (fuzz corpus): {'yes' if not wrong else wrong[:3]}")
    # open_clip names the two special tokens otherwise.
    shared = [text for text in fuzz if "<|" not in text]
    for name, texts in (("fuzz corpus", shared), ("glosses", captions)):
        wrong = different(ours(texts), SimpleTokenizer()(texts).numpy(), texts)
        print(f"- open_clip's ids on {len(texts):,} texts ({name}): {'yes' if not wrong else wrong[:3]}")
    taken: dict[str, list[float]] = {
        name: [] for name in ("their cold", "our cold", "their warm", "our warm")
    }
    for number in range(args.rounds):
        say(f"round {number + 1} of {args.rounds}")
        theirs, ours = SimpleTokenizer(), Tokenizer()
        for state in ("cold", "warm"):
            taken[f"their {state}"].append(seconds(lambda: theirs(captions)))  # noqa: B023
            taken[f"our {state}"].append(seconds(lambda: ours(captions)))  # noqa: B023
    rows = []
    for state in ("cold", "warm"):
        their, our = (statistics.median(taken[f"{who} {state}"]) for who in ("their", "our"))
        rows.append((f"open_clip SimpleTokenizer, {state}", f"{len(captions) / their:,.0f}", "1.0"))
        rows.append((f"ours, {state}", f"{len(captions) / our:,.0f}", f"{their / our:.1f}"))
    print("\n" + table(("what", "captions per CPU s", "× SimpleTokenizer"), rows))


if __name__ == "__main__":
    main()
