"""Where tables of URL and text keep them: by the names of columns, and as well-known datasets lay them out.

Sources: the datasets' own pages for LAION-400M/2B/5B (``URL``, ``TEXT``) and Re-LAION (``url``, ``caption``),
DataComp's CommonPool and COYO-700M (``url``, ``text``), img2dataset (``url``, ``caption``), Conceptual Captions (a TSV
of caption and URL) and Conceptual 12M (a TSV of URL and caption), both without a header line. YFCC100M is a TSV of 23
columns without a header; a later release put a line number and a hash before them (openai/CLIP,
``data_md/yfcc100m.md``), so its columns are named from the right. CLIP's own subset of it kept titles and descriptions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus


@dataclass(frozen=True, slots=True)
class ScoreLimit:
    """A bound on a column of scores, such as LAION's ``punsafe`` and ``pwatermark`` or CLIP's similarity.

    Attributes:
        column: Name of the column.
        at_most: Whether ``bound`` is the highest that passes, else the lowest.
        bound: The number.
    """

    column: str
    at_most: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> ScoreLimit:
        """Reads ``punsafe<=0.1`` or ``similarity>=0.28``.

        Raises:
            ValueError: It is neither.
        """
        for sign in ("<=", ">="):
            column, found, bound = text.partition(sign)
            if found and column.strip():
                try:
                    return cls(column.strip(), sign == "<=", float(bound))
                except ValueError:
                    break
        raise ValueError(f"score {text!r}: write COLUMN<=NUMBER or COLUMN>=NUMBER")

    def broken(self, value: object) -> str | None:
        """Why a row does not pass; a score that is missing or no number says nothing in the row's favour."""
        try:
            score = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            score = math.nan
        if math.isnan(score):
            return f"{self.column} is {str(value)[:50]}"
        passes = score <= self.bound if self.at_most else score >= self.bound
        return None if passes else f"{self.column} is {score:g}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which columns of a table hold what. Of several names the first that a table has is meant.

    Attributes:
        urls: Names of the column of image URLs.
        texts: Names of each column of texts, with what the result calls such a text.
        header: Names of the last columns of CSV and TSV files, which have no header line; empty if they have one.
        escaped: Whether spaces are ``+`` and other signs are percent-encoded in texts.
        only: A column, and the value that rows of pictures have there.
        scores: Bounds that a row's scores must keep.
    """

    urls: tuple[str, ...]
    texts: tuple[tuple[tuple[str, ...], str], ...]
    header: tuple[str, ...] = ()
    escaped: bool = False
    only: tuple[str, str] | None = None
    scores: tuple[ScoreLimit, ...] = ()

    def columns(self, names: Sequence[str]) -> Columns:
        """The columns of a table with these names.

        Raises:
            KeyError: One is missing; it holds the names that would do.
        """
        for name in [*([self.only[0]] if self.only else []), *(limit.column for limit in self.scores)]:
            if name not in names:
                raise KeyError((name,))
        return Columns(
            url=_first(self.urls, names),
            texts=tuple((_first(wanted, names), source) for wanted, source in self.texts),
            only=self.only[0] if self.only else None,
            scores=tuple(limit.column for limit in self.scores),
        )

    def named(self, width: int) -> list[str]:
        """Names of the columns of a file without header line, from the right."""
        padding = [""] * (width - len(self.header))
        return [*padding, *self.header[max(len(self.header) - width, 0) :]]

    def text(self, found: str) -> str:
        """A text as it was before the table's makers escaped it."""
        return unquote_plus(found) if self.escaped else found


@dataclass(frozen=True)
class Columns:
    """A table's own columns.

    Attributes:
        url: Column of image URLs.
        texts: Columns of texts, with what the result calls such a text.
        only: Column that tells pictures from other rows.
        scores: Columns of scores.
    """

    url: str
    texts: tuple[tuple[str, str], ...]
    only: str | None = None
    scores: tuple[str, ...] = ()

    @functools.cached_property
    def sources(self) -> tuple[str, ...]:
        """What the result calls the texts of each column."""
        return tuple(source for _, source in self.texts)

    @property
    def wanted(self) -> list[str]:
        """The columns that are read: of the URL, of the texts, of the scores, and ``only``."""
        texts = (name for name, _ in self.texts)
        return [self.url, *texts, *self.scores, *([self.only] if self.only else [])]


def _first(wanted: tuple[str, ...], names: Sequence[str]) -> str:
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise KeyError(wanted)
    return found


def _caption(url: str, *names: str, header: tuple[str, ...] = ()) -> Layout:
    return Layout(urls=tuple(url.split("|")), texts=((names, "caption"),), header=header)


LAYOUTS = {
    "laion": _caption("URL|url", "TEXT", "caption", "text"),
    "datacomp": _caption("url", "text"),
    "coyo": _caption("url", "text"),
    "img2dataset": _caption("url", "caption"),
    "cc3m": _caption("url", "caption", header=("caption", "url")),
    "cc12m": _caption("url", "caption", header=("url", "caption")),
    "yfcc100m": Layout(
        urls=("downloadurl",),
        texts=((("title",), "title"), (("description",), "description")),
        header=(
            "title", "description", "usertags", "machinetags", "longitude", "latitude", "accuracy", "pageurl",
            "downloadurl", "licensename", "licenseurl", "serverid", "farmid", "secret", "secretoriginal", "ext",
            "marker",
        ),
        escaped=True,
        only=("marker", "0"),
    ),
}  # fmt: skip
"""Layouts of well-known datasets."""


def by_names(url_column: str, text_column: str) -> Layout:
    """The layout of a table whose columns somebody named."""
    return _caption(url_column, text_column)
