"""Configuration of the query list."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipeline.core.config import input_path, input_paths

NO_WORDNET = "none"

# A pair seen 100 times is frequent in English Wikipedia's 5 billion words; in a small corpus three times is.
_FULL_CORPUS_TOKENS = 5_000_000_000
_FULL_BIGRAM_COUNT = 100
_LEAST_BIGRAM_COUNT = 3

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "paper": {"bigram_min_count": None, "pmi_min": 5.0, "views_min": 1, "synset_terms": "first_lemma"},
    "metaclip": {"bigram_min_count": 1, "pmi_min": 30.0, "views_min": 70, "synset_terms": "metaclip"},
}
"""Values of fields that are not given."""
_BY_PRESET: Any = None


@dataclass(frozen=True, kw_only=True)
class QueriesConfig:
    """What the query list is made from and how long it is. Paper section 2.2, footnote 1.

    The preset ``metaclip`` is MetaCLIP's published reading of the same list (arXiv 2309.16671, table 1), with what it
    does to it (docs/decisions/0007-metaclip-preset.md):

    * Synsets give 86,654 entries from WordNet 3.0: the first lemma, lower-cased and cut at its first dot ("mr. moto"
      becomes "mr", ".22 caliber" vanishes), and the numerals "0" to "99".
    * Bigrams need a PMI of 30 and no number of occurrences. No pair can have more than log2(N / c) for the count c of
      its more frequent word, so in five billion words both words occur at most four times: these are names and typing
      errors seen a handful of times, and none of their words is a query of its own. A corpus below 2³⁰ words has none.
    * Titles need 70 views. (MetaCLIP's 70 are summed over one busy desktop hour and more of 26 days; ours are the
      views of the files given, of articles and of the redirects to them.)
    * Two entries are one query only if they are spelt alike, case apart: "x-ray" and "x ray" are two.

    Attributes:
        preset: Where the values come from that are not given: the ``paper`` or ``metaclip``.
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
            a number; 5, the paper preset's, means 32 times as often as chance. It matters where a corpus is too
            small to fill --size.
        views_min: Least page views of a title. Footnote 1: "above a certain search volume", no number: 1 leaves it to
            the cut at --size.
        bigram_share: Share of the room left by words and synsets that goes to bigrams, the rest to titles:
            100,646 / (100,646 + 61,235) in MetaCLIP's table of the same list (arXiv 2309.16671, table 1).
        synset_terms: A synset's first lemma, all its lemmas, or MetaCLIP's cut first lemma with the numerals.
        title_check: ``dump`` keeps views of titles that are articles of the given dump, ``none`` of all.
        project: Wikipedia whose views count, as ``en``; ``None`` takes it from the dump, else ``en``. Without a dump
            only the English names of namespaces are known, which every Wikipedia has beside its own.
    """

    wikipedia: tuple[str, ...] = input_paths()
    word_counts: str | None = input_path()
    pageviews: tuple[str, ...] = input_paths()
    wordnet: str | None = input_path()
    preset: Literal["paper", "metaclip"] = "paper"
    size: int = 500_000
    min_count: int = 100
    bigram_min_count: int | None = _BY_PRESET
    bigram_measure: Literal["pmi", "npmi"] = "pmi"
    pmi_min: float = _BY_PRESET
    views_min: int = _BY_PRESET
    bigram_share: float = 0.62
    synset_terms: Literal["first_lemma", "all_lemmas", "metaclip"] = _BY_PRESET
    title_check: Literal["dump", "none"] = "dump"
    project: str | None = None

    def __post_init__(self) -> None:
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("size", "min_count", "views_min"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.bigram_min_count is not None and self.bigram_min_count < 1:
            raise ValueError(f"bigram_min_count must be at least 1, not {self.bigram_min_count}")
        if not 0 <= self.bigram_share <= 1:
            raise ValueError(f"bigram_share must lie between 0 and 1, not {self.bigram_share}")
        if not math.isfinite(self.pmi_min):
            raise ValueError(f"pmi_min must be a finite number of bits, not {self.pmi_min}")

    @property
    def exact_spelling(self) -> bool:
        """Whether only equal spellings are one query, not equal words."""
        return self.preset == "metaclip"

    @property
    def bigrams_of_rare_words(self) -> bool:
        """Whether a bigram's words need not be queries themselves."""
        return self.preset == "metaclip"

    def least_bigram_count(self, corpus_tokens: int) -> int:
        """Occurrences that let a bigram be scored in a corpus of so many words."""
        if self.bigram_min_count is not None:
            return self.bigram_min_count
        return max(_LEAST_BIGRAM_COUNT, math.ceil(_FULL_BIGRAM_COUNT * corpus_tokens / _FULL_CORPUS_TOKENS))
