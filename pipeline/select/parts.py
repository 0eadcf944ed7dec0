"""Sorted Parquet parts of more rows than fit into memory: buckets by hash, sorted one by one."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any, Final

import pyarrow as pa

from pipeline.core import paths, tables
from pipeline.core.beam import sorted_table, split_table
from pipeline.core.contracts import Contract

HELD_ROWS: Final = 65_536
"""Rows that are split at a time: few at a time would leave buckets of many small pieces."""
_LZ4: Final = pa.ipc.IpcWriteOptions(compression="lz4")


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
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._buckets: dict[int, tuple[IO[bytes], Any]] = {}

    def __enter__(self) -> SortedParts:
        return self

    def add(self, table: pa.Table) -> None:
        """Takes rows in any order."""
        self._held.append(self.contract.conform(table))
        self._held_rows += table.num_rows
        if self._held_rows >= HELD_ROWS:
            self._spread()

    def _spread(self) -> None:
        """Moves what is held to the buckets."""
        held = pa.concat_tables(self._held).combine_chunks()
        self._held, self._held_rows = [], 0
        for part, rows in split_table(held, key=self.key, partitions=self.parts):
            if part not in self._buckets:
                fs, name = paths.filesystem(self._name(part))
                paths.make_folder(self.work)
                file = fs.open(name, "wb")
                self._buckets[part] = (file, pa.ipc.new_file(file, held.schema, options=_LZ4))
            self._buckets[part][1].write_table(rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._held:
            self._spread()
        for file, writer in self._buckets.values():
            writer.close()
            file.close()
        if kind is not None:
            return
        for part in sorted(self._buckets):
            with paths.open_input(self._name(part), decompress=False) as file:
                chunk = pa.ipc.open_file(file).read_all()
            path = paths.join(self.folder, tables.part_name(part))
            self.rows += tables.write_table(path, sorted_table([chunk], self.order), self.contract)
            del chunk
            paths.remove(self._name(part))
        if not self._buckets:
            tables.write_table(
                paths.join(self.folder, tables.part_name(0)), self.contract.empty(), self.contract
            )

    def _name(self, part: int) -> str:
        return paths.join(self.work, f"{self.contract.name}-{part:05d}.arrow")
