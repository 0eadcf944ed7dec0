from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from pipeline.core import beam as core_beam
from pipeline.core import paths, spill, tables
from pipeline.core.beam import (
    WriteDropped,
    WriteTables,
    WriteTotal,
    engine,
    finish_parts,
    partition_of,
    pipeline_options,
    read_total,
    run_pipeline,
    told_reason,
)
from pipeline.core.contracts import CANDIDATES
from pipeline.core.errors import InputError, StageFailedError, UsageError
from pipeline.core.fakes import fake_table
from pipeline.core.spill import Chunk, read_chunks, split, write_chunks
from pipeline.core.stage import OWNED, clear


def test_the_engine_is_pinned() -> None:
    assert engine(pipeline_options([])) == "FnApiRunner"
    assert engine(pipeline_options(["--runner=DirectRunner"])) == "FnApiRunner"
    assert (
        engine(pipeline_options(["--runner", "PortableRunner", "--job_endpoint=embed"])) == "PortableRunner"
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--nonsense=1"], "--nonsense"),
        (["stray"], "stray"),
        (["--direct_num_wrokers", "2"], "--direct_num_wrokers"),
    ],
)
def test_options_that_beam_does_not_know_are_errors(words: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        pipeline_options(words)


@pytest.mark.filterwarnings("ignore")
def test_malformed_beam_values_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        pipeline_options(["--direct_num_workers=many"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ValueError: bad [while running 'Step']", "ValueError: bad [while running 'Step']"),
        ("first\nValueError: bad", "ValueError: bad"),
        (
            "F: Traceback (most recent call last):\n  File x\nOSError: disk full\n\n\tat a.X(Y)\nDriver stacktrace:\n",
            "OSError: disk full",
        ),
        (
            "SparkException: no executors\n\tat org.apache.X(Y)\nDriver stacktrace:\n",
            "SparkException: no executors",
        ),
        ("", ""),
    ],
)
def test_an_engines_error_is_told_by_the_line_that_says_why(text: str, reason: str) -> None:
    assert told_reason(text) == reason


def _write(folder: Path, chunks: list[pa.Table], *options: str) -> dict[str, bytes]:
    def build(pipeline: beam.Pipeline) -> None:
        write = WriteTables(str(folder), CANDIDATES, key="pair_id", order=("pair_id", "url"), partitions=3)
        pipeline | beam.Create(chunks) | write

    run_pipeline(build, pipeline_options(options))
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_parts_do_not_depend_on_order_batching_or_engine(tmp_path: Path) -> None:
    table = fake_table(CANDIDATES, 60)
    chunks = [table.slice(i, 7) for i in range(0, 60, 7)]
    shuffled = list(chunks)
    random.Random(3).shuffle(shuffled)
    first = _write(tmp_path / "a", chunks)
    assert len(first) == 3
    assert _write(tmp_path / "b", shuffled) == first
    embed = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")
    assert _write(tmp_path / "c", chunks, *embed) == first
    found = tables.read_files([str(tmp_path / "a" / n) for n in first])
    assert sorted(found.column("pair_id").to_pylist()) == sorted(table.column("pair_id").to_pylist())


def test_parts_do_not_depend_on_when_rows_are_spilled_or_on_failed_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = fake_table(CANDIDATES, 60)
    chunks = [table.slice(i, 7) for i in range(0, 60, 7)]
    written: list[int] = []

    def noted(*given: Any) -> list[tuple[int, Chunk]]:
        written.append(1)
        return write_chunks(*given)

    monkeypatch.setattr(spill, "write_chunks", noted)
    first = _write(tmp_path / "a", chunks)
    assert len(written) < len(chunks)
    written.clear()
    monkeypatch.setattr(spill, "SPILL_BYTES", 1)
    # What a bundle wrote before it failed stays behind: no name of it arrives.
    (tmp_path / "b" / core_beam.SPILL_FOLDER).mkdir(parents=True)
    write_chunks(str(tmp_path / "b" / core_beam.SPILL_FOLDER), [(0, [table])])
    assert _write(tmp_path / "b", chunks) == first
    assert len(written) >= len(chunks)
    assert not (tmp_path / "b" / core_beam.SPILL_FOLDER).exists()


def test_a_part_that_stragglers_write_at_once_is_whole(tmp_path: Path) -> None:
    """Speculation and zombies: two attempts of each task, all attempts at writing the part at the same time."""
    table = CANDIDATES.conform(fake_table(CANDIDATES, 60))
    order = ("pair_id", "url")
    once = write_chunks(str(tmp_path / "spilled"), [(0, [table])])
    again = write_chunks(str(tmp_path / "spilled"), [(0, [table])])
    assert {path for _, (path, *_) in once}.isdisjoint(path for _, (path, *_) in again)

    def write(folder: str, chunks: list[tuple[int, Chunk]]) -> int:
        return core_beam._write_part((0, [c for _, c in chunks]), str(tmp_path / folder), CANDIDATES, order)

    assert write("alone", once) == 60
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda i: write("raced", once if i % 2 else again), range(16))) == {60}
    assert [p.name for p in (tmp_path / "raced").iterdir()] == ["part-00000.parquet"]
    written = [(tmp_path / name / "part-00000.parquet").read_bytes() for name in ("alone", "raced")]
    assert written[0] == written[1]


def test_parts_on_a_remote_file_system() -> None:
    table = fake_table(CANDIDATES, 20)

    def build(pipeline: beam.Pipeline) -> None:
        write = WriteTables("memory://bucket/out", CANDIDATES, key="pair_id", order=("pair_id", "url"))
        pipeline | beam.Create([table.slice(0, 9), table.slice(9)]) | write

    run_pipeline(build, pipeline_options([]))
    assert paths.list_files("memory://bucket/out") == ["memory://bucket/out/part-00000.parquet"]
    found = tables.read_files(["memory://bucket/out/part-00000.parquet"])
    assert found.num_rows == 20
    assert not paths.exists(f"memory://bucket/out/{core_beam.SPILL_FOLDER}")


def test_spilled_rows_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "dropped"):
        write_chunks(str(folder / core_beam.SPILL_FOLDER), [(0, [fake_table(CANDIDATES, 3)])])
    clear(str(tmp_path), OWNED)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_chunks_are_read_where_they_were_written(tmp_path: Path) -> None:
    table = CANDIDATES.conform(fake_table(CANDIDATES, 30))
    held = [(4, [table.slice(0, 5), table.slice(5, 5)]), (7, [table.slice(10)])]
    chunks = write_chunks(str(tmp_path), held)
    assert [part for part, _ in chunks] == [4, 7]
    assert read_chunks([chunks[1][1]])[0].equals(table.slice(10))
    assert pa.concat_tables(read_chunks([c for _, c in chunks])).equals(table)


def test_rows_of_a_part_keep_their_order() -> None:
    rows = pa.table({"n": list(range(9))})
    part = np.array([7, 2, 7, 2, 2, 0, 7, 0, 7])
    found = {number: piece.column("n").to_pylist() for number, piece in split(rows, part)}
    assert found == {0: [5, 7], 2: [1, 3, 4], 7: [0, 2, 6, 8]}
    assert list(found) == sorted(found)
    assert split(rows.slice(0, 0), part[:0]) == []


def test_partitions_depend_on_the_key_alone() -> None:
    assert (
        partition_of(["a", "b", "é", "\ud800"], 4).tolist() == partition_of(["a", "b", "é", "?"], 4).tolist()
    )
    assert partition_of(["abc"], 1_000).tolist() == [0x352441C2 % 1_000]


def test_dropped_rows_and_totals(tmp_path: Path) -> None:
    rows = tables.dropped_table("x", [("bad", "1", "why"), ("bad", "2", None), ("late", "3", "z" * 900)])

    def build(pipeline: beam.Pipeline) -> None:
        pipeline | "d" >> beam.Create([rows.slice(0, 1), rows.slice(1)]) | WriteDropped(str(tmp_path))
        pipeline | "n" >> beam.Create([1, 2, 39]) | WriteTotal(str(tmp_path / "total"))

    run_pipeline(build, pipeline_options([]))
    assert tables.count_dropped(str(tmp_path)) == {"bad": 2, "late": 1}
    assert read_total(str(tmp_path / "total")) == 42
    assert not (tmp_path / "total").exists()
    assert finish_parts(str(tmp_path), CANDIDATES) == 0, "an empty part shows readers the columns"
    assert tables.read_files([str(tmp_path / "part-00000.parquet")]).num_rows == 0


def _refuse(_: int) -> int:
    raise InputError("cannot open", where="x.warc")


def _crash(_: int) -> int:
    raise KeyError("surprise")


def test_a_workers_own_error_comes_out_as_it_was() -> None:
    def build(pipeline: beam.Pipeline) -> None:
        pipeline | beam.Create([1]) | beam.Map(_refuse)

    with pytest.raises(InputError, match=r"x\.warc: cannot open"):
        run_pipeline(build, pipeline_options([]))


def test_a_workers_crash_is_one_line() -> None:
    def build(pipeline: beam.Pipeline) -> None:
        pipeline | beam.Create([1]) | beam.Map(_crash)

    with pytest.raises(StageFailedError, match="surprise") as caught:
        run_pipeline(build, pipeline_options([]))
    assert "\n" not in str(caught.value)


def test_write_tables_checks_its_arguments() -> None:
    with pytest.raises(UsageError, match="no column 'nope'"):
        WriteTables("x", CANDIDATES, key="nope", order=("pair_id",))
    with pytest.raises(UsageError, match="at least one partition"):
        WriteTables("x", CANDIDATES, key="url", order=("pair_id",), partitions=0)
