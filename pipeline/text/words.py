"""A text's words, for all who judge it one after another."""

from __future__ import annotations

import functools

from pipeline.core.tokens import tokens


@functools.lru_cache(maxsize=64)
def words(text: str) -> tuple[str, ...]:
    """:func:`pipeline.core.tokens.tokens` of a text; the last few texts are remembered."""
    return tuple(tokens(text))
