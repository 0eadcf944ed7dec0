"""Sorted Parquet parts of more rows than fit into memory: buckets by hash, sorted one by one."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import paths, tables
from pipeline.core.beam import sorted_table, split_table
from pipeline.core.contracts import Contract


class SortedParts:
    """Collects tables and writes ``part-*.parquet``; a part depends on its rows alone. A context manager.

    Args:
        folder: Where the parts go.
        work: Folder for the buckets; removed by whoever made it.
        contract: What the rows are.
        key: String column whose hash chooses a row's part.
        order: Columns that sort a part.
        parts: How many; memory is one part's rows.
    """

    def __init__(
        self, folder: str, work: str, contract: Contract, *, key: str, order: Sequence[str], parts: int
    ) -> None:
        self.folder, self.work, self.contract = folder, work, contract
        self.key, self.order, self.parts = key, tuple(order), parts
        self.rows = 0
        self._buckets: dict[int, tuple[IO[bytes], Any]] = {}

    def __enter__(self) -> SortedParts:
        return self

    def add(self, table: pa.Table) -> None:
        """Takes rows in any order."""
        conformed = self.contract.conform(table)
        for part, rows in split_table(conformed, key=self.key, partitions=self.parts):
            if part not in self._buckets:
                fs, name = paths.filesystem(self._name(part))
                paths.make_folder(self.work)
                file = fs.open(name, "wb")
                self._buckets[part] = (file, pq.ParquetWriter(file, conformed.schema, compression="lz4"))
            self._buckets[part][1].write_table(rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file, writer in self._buckets.values():
            writer.close()
            file.close()
        if kind is not None:
            return
        for part in sorted(self._buckets):
            chunk = tables.read_files([self._name(part)])
            path = paths.join(self.folder, tables.part_name(part))
            self.rows += tables.write_table(path, sorted_table([chunk], self.order), self.contract)
            paths.remove(self._name(part))
        if not self._buckets:
            tables.write_table(
                paths.join(self.folder, tables.part_name(0)), self.contract.empty(), self.contract
            )

    def _name(self, part: int) -> str:
        return paths.join(self.work, f"{self.contract.name}-{part:05d}.parquet")
