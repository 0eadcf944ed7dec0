"""Configuration of the query list."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.core.config import input_path, input_paths

NO_WORDNET = "none"

# A pair seen 100 times is frequent in English Wikipedia's 5 billion words; in a small corpus three times is.
_FULL_CORPUS_TOKENS = 5_000_000_000
_FULL_BIGRAM_COUNT = 100
_LEAST_BIGRAM_COUNT = 3


@dataclass(frozen=True, kw_only=True)
class QueriesConfig:
    """What the query list is made from and how long it is. Paper section 2.2, footnote 1.

    Attributes:
        wikipedia: pages-articles XML (plain, gz, bz2, multistream with or without its index) or Parquet/JSONL with
            ``title`` and ``text``.
        word_counts: Parquet or TSV with ``word`` and ``count``; takes the place of counting words in the dump.
        pageviews: ``pageview_complete`` or hourly ``pageviews`` files; their views are summed.
        wordnet: Folder of ``data.*`` files; ``None`` is the WordNet 3.0 that ships, ``"none"`` goes without.
        size: Queries wanted (paper 2.2: 500,000). Words and synsets are all kept even if they are more.
        min_count: Occurrences that make a word a query (footnote 1: at least 100).
        bigram_min_count: Occurrences that let a bigram be scored; ``None`` scales full Wikipedia's 100 to the
            corpus: max(3, 100 · tokens / 5·10⁹). Without a minimum the highest PMI belongs to typing errors.
        bigram_measure: What ranks the bigrams: ``pmi`` as footnote 1 says, or ``npmi``, PMI as a share of the most
            that a pair of its count can reach, which favours rare pairs less.
        pmi_min: Least pointwise mutual information of a bigram, in bits. Footnote 1 asks for "high" PMI without
            a number; 5 means 32 times as often as chance. It matters where a corpus is too small to fill --size.
        views_min: Least page views of a title. Footnote 1: "above a certain search volume", no number.
        bigram_share: Share of the room left by words and synsets that goes to bigrams, the rest to titles:
            100,646 / (100,646 + 61,235) in MetaCLIP's table of the same list (arXiv 2309.16671, table 1).
        synset_terms: A synset's first lemma (as MetaCLIP) or all its lemmas.
        title_check: ``dump`` keeps views of titles that are articles of the given dump, ``none`` of all.
        project: Wikipedia whose views count, as ``en``; ``None`` takes it from the dump, else ``en``.
    """

    wikipedia: tuple[str, ...] = input_paths()
    word_counts: str | None = input_path()
    pageviews: tuple[str, ...] = input_paths()
    wordnet: str | None = input_path()
    size: int = 500_000
    min_count: int = 100
    bigram_min_count: int | None = None
    bigram_measure: Literal["pmi", "npmi"] = "pmi"
    pmi_min: float = 5.0
    views_min: int = 1
    bigram_share: float = 0.62
    synset_terms: Literal["first_lemma", "all_lemmas"] = "first_lemma"
    title_check: Literal["dump", "none"] = "dump"
    project: str | None = None

    def __post_init__(self) -> None:
        for name in ("size", "min_count", "views_min"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.bigram_min_count is not None and self.bigram_min_count < 1:
            raise ValueError(f"bigram_min_count must be at least 1, not {self.bigram_min_count}")
        if not 0 <= self.bigram_share <= 1:
            raise ValueError(f"bigram_share must lie between 0 and 1, not {self.bigram_share}")
        if not math.isfinite(self.pmi_min):
            raise ValueError(f"pmi_min must be a finite number of bits, not {self.pmi_min}")

    def least_bigram_count(self, corpus_tokens: int) -> int:
        """Occurrences that let a bigram be scored in a corpus of so many words."""
        if self.bigram_min_count is not None:
            return self.bigram_min_count
        return max(_LEAST_BIGRAM_COUNT, math.ceil(_FULL_BIGRAM_COUNT * corpus_tokens / _FULL_CORPUS_TOKENS))
