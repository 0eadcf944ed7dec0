"""What ``wit select`` can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from pipeline.core.config import input_path

MOST_RESERVE: Final = 100


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Configuration of ``wit select``.

    Attributes:
        candidates: Folder of ``wit candidates``.
        queries: Folder of ``wit queries``.
        cap: Most pairs that count for one query (paper 2.2: 20,000).
        mode: ``cap`` keeps at most ``cap`` pairs for each query, exactly; ``sample`` is MetaCLIP's rule, which
            keeps each pair with P = 1 - Π(1 - min(1, cap / matched)).
        matching: ``clean`` compares case-folded words; ``metaclip`` is MetaCLIP's spacing rule to the letter.
        seed: Key of the hash that chooses between pairs.
        rules: Preset of text rules (:mod:`pipeline.text.rules`); ``clip`` is the paper's (2.2), ``none`` is for text
            that was filtered before.
        language: How English is told from other languages; ``cascade`` is measured best, see
            ``benchmarks/README.md``.
        max_images_per_caption: A caption that more images share counts for this many of them (ALIGN drops texts
            of more than 10 images; the paper names no number, so the default only stops boiler-plate).
        drop_offensive: Drop texts with a word of the block list.
        reserve: Beside the pairs, ``reserve/`` gets those that a cap larger by this fraction would add, for
            ``wit fetch --top-up``; they stay dropped as ``over_cap``. Only with mode ``cap``.
        blocked_hosts: File with hosts and pieces of addresses, one a line (:class:`pipeline.text.safety.DenyList`);
            pairs whose image or page falls under one are dropped.
    """

    candidates: str | None = input_path()
    queries: str | None = input_path()
    cap: int = 20_000
    mode: Literal["cap", "sample"] = "cap"
    matching: Literal["clean", "metaclip"] = "clean"
    seed: int = 0
    rules: Literal["clip", "cc12m", "datacomp", "laion", "none"] = "clip"
    language: Literal["cascade", "vocabulary", "fasttext-lite", "cld2", "langdetect", "none"] = "cascade"
    max_images_per_caption: int = 1_000
    drop_offensive: bool = True
    reserve: float = 0.0
    blocked_hosts: str | None = input_path()

    def __post_init__(self) -> None:
        for name in ("candidates", "queries"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing: pass --{name} DIR")
        for name in ("cap", "max_images_per_caption"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie between 0 and 2**63 - 1")
        if not 0 <= self.reserve <= MOST_RESERVE:
            raise ValueError(f"reserve={self.reserve} must lie between 0 and {MOST_RESERVE}")
        if self.reserve and self.mode != "cap":
            raise ValueError(
                f"reserve={self.reserve} needs mode='cap', but mode={self.mode!r}: a sample has no cap"
            )

    @property
    def reserve_cap(self) -> int:
        """``cap`` x (1 + ``reserve``), rounded up."""
        # The decimal number that was written, not the binary one beside it: 10% of 20,000 is no more than 2,000.
        return self.cap + math.ceil(self.cap * Fraction(repr(self.reserve)))
