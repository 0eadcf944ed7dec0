"""A finished query list with its side tables, as columns."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import manifest, paths, tables
from pipeline.core.contracts import QUERIES
from pipeline.core.manifest import Manifest
from pipeline.core.tokens import fold, tokens
from queries import runners_up
from queries.bigrams import npmi
from queries.merge import SOURCES

# Source -> the column that ranks its entries.
NUMBERS: Mapping[str, str] = {"word": "count", "bigram": "pmi", "title": "views"}


@dataclass(frozen=True, eq=False)
class QueryList:
    """A ``queries/1`` folder.

    Attributes:
        folder: Path or URL.
        manifest: What the folder says about itself.
        table: All rows, ordered by ``query_id``.
    """

    folder: str
    manifest: Manifest
    table: pa.Table

    @classmethod
    def read(cls, folder: str) -> QueryList:
        """Opens a folder.

        Raises:
            InputError: It is missing, unfinished, or holds another table.
        """
        table = tables.read_folder(folder, QUERIES).sort_by("query_id").combine_chunks()
        return cls(folder, manifest.read(folder), table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @functools.cached_property
    def queries(self) -> list[str]:
        """The queries as strings."""
        return list(self.table["query"].to_pylist())

    @functools.cached_property
    def sources(self) -> np.ndarray:
        """uint8[n], a bit for each of ``SOURCES``."""
        column = self.table["sources"].combine_chunks()
        bit = pc.index_in(column.flatten(), value_set=pa.array(SOURCES))
        rows = np.repeat(np.arange(len(self)), pc.list_value_length(column).to_numpy(zero_copy_only=False))
        # Somebody else's list may name sources of its own.
        ours = bit.is_valid().to_numpy(zero_copy_only=False)
        found = np.zeros(len(self), np.uint8)
        bits = pc.fill_null(bit, 0).to_numpy(zero_copy_only=False).astype(np.uint8)
        np.bitwise_or.at(found, rows[ours], np.left_shift(np.uint8(1), bits[ours]))
        return found

    def having(self, source: str) -> np.ndarray:
        """bool[n]: which queries a source names."""
        return (self.sources >> SOURCES.index(source) & 1).astype(bool)

    def numbers(self, column: str) -> np.ndarray:
        """float64[n]: a column of numbers, NaN where there is none."""
        if column == "npmi":
            tokens_in_all = int(self.manifest.extra["corpus_tokens"])
            with np.errstate(invalid="ignore", divide="ignore"):
                return npmi(self.numbers("pmi"), self.numbers("count"), tokens_in_all)
        return np.asarray(pc.fill_null(self.table[column].cast(pa.float64()), np.nan).to_numpy())

    def measure(self, source: str) -> str:
        """What ranks a source's entries: ``count``, ``pmi`` or ``npmi``, ``views``."""
        return str(self.config.get("bigram_measure", "pmi")) if source == "bigram" else NUMBERS[source]

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration that made the list; empty for a list made elsewhere."""
        return self.manifest.config

    @property
    def thresholds(self) -> Mapping[str, Any]:
        """Least numbers that the cut implies."""
        found: Mapping[str, Any] = self.manifest.extra.get("thresholds", {})
        return found

    def left_out(self, name: str) -> tuple[pa.Table, int] | None:
        """A side table and the number from which on it lacks nothing; ``None`` if the list has none.

        Args:
            name: ``words``, ``bigrams`` or ``titles``.

        Raises:
            InputError: The file is damaged.
        """
        if name not in self._side_tables:
            path = runners_up.side_table(self.folder, name)
            there = paths.exists(path)
            self._side_tables[name] = (
                (tables.read_files([path]), runners_up.least_of(path)) if there else None
            )
        return self._side_tables[name]

    @functools.cached_property
    def _side_tables(self) -> dict[str, tuple[pa.Table, int] | None]:
        return {}

    def find(self, text: str) -> tuple[int, bool] | None:
        """The row of a text, and whether it is spelt so there; ``None`` if there is none of the same words."""
        place = pc.index(self.table["query"], pa.scalar(" ".join(fold(text).split()))).as_py()
        if place >= 0:
            return place, True
        place = self._by_words.get(tuple(tokens(text)))
        return None if place is None else (place, False)

    @functools.cached_property
    def _by_words(self) -> dict[tuple[str, ...], int]:
        found = {tuple(tokens(query)): row for row, query in reversed(list(enumerate(self.queries)))}
        found.pop((), None)
        return found
