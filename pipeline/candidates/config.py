"""What ``wit candidates`` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.candidates.layouts import ScoreLimit
from pipeline.core.config import input_paths

KINDS = ("warc", "wat", "html", "table")


@dataclass(frozen=True, kw_only=True)
class CandidatesConfig:
    """Configuration of ``wit candidates``; exactly one kind of input is given.

    Attributes:
        warc: WARC files (gzip, zstd or plain).
        wat: WAT files: metadata that Common Crawl extracts from WARC.
        html: Folders or files of saved pages.
        table: Tables of URL and text: Parquet, CSV, TSV or JSONL (these may be compressed).
        base_url: URL under which a folder of saved pages was served; a page's URL is this plus its path.
        url_column: Column of a table that holds the image's URL.
        text_column: Column of a table that holds the text.
        layout: A well-known dataset whose tables are read, in place of naming columns
            (:mod:`pipeline.candidates.layouts`).
        score: Bounds on a table's columns of scores, as ``punsafe<=0.1`` or ``similarity>=0.28``; a row that breaks
            one, or has no such score, is dropped.
        nearest_chars: Also take the nearest text round an image (``text_source`` ``nearest``) if it has at most so
            many characters; 0 takes none. WARC and saved pages only: a WAT has no text.
        opted_out: Whether pairs of pages that opt out of indexing or text and data mining are dropped or kept
            with their marks in ``rights``.
        max_page_bytes: A page larger than this, after HTTP decoding, is dropped.
        max_text_chars: A text longer than this is dropped.
    """

    warc: tuple[str, ...] = input_paths()
    wat: tuple[str, ...] = input_paths()
    html: tuple[str, ...] = input_paths()
    table: tuple[str, ...] = input_paths()
    base_url: str | None = None
    url_column: str = "url"
    text_column: str = "text"
    layout: Literal["laion", "datacomp", "coyo", "img2dataset", "cc3m", "cc12m", "yfcc100m"] | None = None
    score: tuple[str, ...] = ()
    nearest_chars: int = 0
    opted_out: Literal["drop", "keep"] = "drop"
    max_page_bytes: int = 10_000_000
    max_text_chars: int = 10_000

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind)]
        if len(given) != 1:
            what = "none is given" if not given else f"{' and '.join(given)} are given"
            raise ValueError(f"exactly one of warc, wat, html and table is needed, {what}: name one kind")
        if self.base_url is not None:
            if not self.html:
                raise ValueError(f"base_url={self.base_url!r} is for saved pages: use it with html")
            if not self.base_url.startswith(("http://", "https://")):
                raise ValueError(f"base_url={self.base_url!r} must start with http:// or https://")
        if self.layout is not None and (self.url_column, self.text_column) != ("url", "text"):
            raise ValueError(
                f"layout={self.layout!r} names the columns: leave out url_column and text_column"
            )
        for limit in self.score:
            ScoreLimit.parse(limit)
        if self.score and not self.table:
            raise ValueError("score is for tables, which have columns: use it with table")
        if self.nearest_chars < 0 or (self.nearest_chars and not (self.warc or self.html)):
            raise ValueError(f"nearest_chars={self.nearest_chars}: 0 or more, with warc or html")
        if self.max_page_bytes < 1 or self.max_text_chars < 1:
            raise ValueError(
                f"max_page_bytes={self.max_page_bytes} and max_text_chars={self.max_text_chars} must be positive"
            )

    @property
    def kind(self) -> str:
        """The kind of input that is given."""
        return next(kind for kind in KINDS if getattr(self, kind))

    @property
    def given(self) -> tuple[str, ...]:
        """The PATHs of that kind."""
        paths: tuple[str, ...] = getattr(self, self.kind)
        return paths
