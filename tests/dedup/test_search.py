from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup import lists, tiles
from dedup.config import SearchConfig
from dedup.embed import embeddings_contract, vectors_to_arrow
from dedup.nearest import Best, block, compare, equal_rows, merged, nearest
from dedup.search import CompareBlocks, run
from dedup.tiles import DECIMALS
from dedup.vectors import plan_blocks, read_block
from pipeline.cli import main
from pipeline.core import manifest, paths, tables
from pipeline.core.contracts import EMBEDDINGS, NEIGHBOURS
from pipeline.core.fakes import fake_folder, finished_folder
from pipeline.core.stage import RunOptions

QUIET = RunOptions(quiet=True)


def _unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def _table(values: np.ndarray, ids: list[str], dataset: str) -> pa.Table:
    return pa.table({"id": ids, "dataset": [dataset] * len(ids), "embedding": vectors_to_arrow(values)})


def _folder(path: Path, values: np.ndarray, *, dataset: str = "d", **extra: object) -> str:
    contract = embeddings_contract(values.shape[1])
    ids = [f"{dataset}{i:04d}" for i in range(len(values))]
    return finished_folder(str(path), contract, _table(values, ids, dataset), **extra)


def _brute(queries: np.ndarray, base: np.ndarray, ids: list[str], k: int) -> list[list[str]]:
    likeness = np.round(queries.astype(np.float64) @ base.astype(np.float64).T, DECIMALS)
    return [sorted(ids, key=lambda i: (-row[ids.index(i)], i))[:k] for row in likeness]


def _listed(found: Best) -> list[list[str]]:
    return [[i for i in row if i is not None] for row in found.ids.tolist()]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 40), k=st.integers(1, 12), cuts=st.lists(st.integers(1, 39), max_size=4),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_cutting_the_training_set_leaves_no_trace(rows: int, k: int, cuts: list[int], seed: int) -> None:
    # Few values and few dimensions: many exact ties.
    base = np.random.default_rng(seed).integers(-1, 2, (rows, 3)).astype(np.float32)
    queries = np.random.default_rng(seed + 1).integers(-1, 2, (5, 3)).astype(np.float32)
    ids = [f"id{i * 7 % 101:03d}" for i in range(rows)]
    edges = sorted({0, rows, *(c for c in cuts if c < rows)})
    parts = list(itertools.pairwise(edges))
    streamed, other = Best.nothing(5, k), Best.nothing(5, k)
    for number, (start, end) in enumerate(parts):
        compare((streamed, other)[number % 2], queries, block(base[start:end], ids[start:end], k))
    for found in (merged(streamed, other), merged(other, streamed)):
        assert _listed(found) == _brute(queries, base, ids, k)


def test_a_thousand_identical_pictures_are_ordered_by_id() -> None:
    same = np.repeat(_unit(1, 64, 0), 1000, axis=0)
    ids = [f"{i * 379 % 1000:04d}" for i in range(1000)]
    found = nearest(same[:30], same, ids, 10)
    assert found.ids.tolist() == [[f"{i:04d}" for i in range(10)]] * 30


def test_end_to_end_is_exact_and_adds_up(tmp_path: Path) -> None:
    base, queries = _unit(50, 8, 1), _unit(7, 8, 2)
    train = _folder(tmp_path / "train", base, dataset="t", detector_sha256="x", threshold=0.8)
    first = _folder(tmp_path / "a", queries, dataset="a", detector_sha256="x", threshold=0.8)
    second = _folder(tmp_path / "b", queries[:3], dataset="b", detector_sha256="x", threshold=0.8)
    out = str(tmp_path / "out")
    run(SearchConfig(train=train, eval=(first, second), k=4, block_rows=9), out, QUIET)
    found = tables.read_folder(out, NEIGHBOURS).to_pylist()
    ids = [f"t{i:04d}" for i in range(50)]
    expected = _brute(queries, base, ids, 4)
    got: dict[str, list[str]] = {}
    for row in sorted(found, key=lambda r: (r["eval_id"], r["rank"])):
        got.setdefault(row["eval_id"], []).append(row["pair_id"])
    assert got == {f"{d}{i:04d}": expected[i] for d, n in (("a", 7), ("b", 3)) for i in range(n)}
    done = manifest.read(out)
    assert (done.rows, done.rows_in) == (40, 40)
    assert (done.extra["threshold"], done.extra["eval_rows"]) == (0.8, {"a": 7, "b": 3})


def test_block_size_and_workers_change_no_byte(tmp_path: Path) -> None:
    train = _folder(tmp_path / "train", _unit(300, 16, 1), dataset="t")
    evals = _folder(tmp_path / "eval", _unit(40, 16, 2), dataset="e")
    two = RunOptions(quiet=True, beam=("--direct_num_workers=2", "--direct_running_mode=multi_processing"))
    outs = []
    for name, rows, options in (("one", 300, QUIET), ("small", 37, QUIET), ("two", 37, two)):
        out = str(tmp_path / name)
        run(SearchConfig(train=train, eval=(evals,), block_rows=rows), out, options)
        outs.append((tmp_path / name / "part-00000.parquet").read_bytes())
    assert outs[0] == outs[1] == outs[2]


def test_the_spans_of_a_file_are_about_equally_large(tmp_path: Path) -> None:
    """Beam's local engine deals spans out in turns: a small rest of each file would all go to one worker."""
    train = _folder(tmp_path / "train", _unit(80, 4, 1), dataset="t")
    spans = plan_blocks(tables.part_files(train, EMBEDDINGS), 65)
    assert [(start, rows) for _, start, rows in spans] == [(0, 40), (40, 40)]


def test_fewer_training_pictures_than_k(tmp_path: Path) -> None:
    train = _folder(tmp_path / "train", _unit(2, 8, 1), dataset="t")
    evals = _folder(tmp_path / "eval", _unit(3, 8, 2), dataset="e")
    done = run(SearchConfig(train=train, eval=(evals,)), str(tmp_path / "out"), QUIET)
    assert done is not None
    assert done.rows == 6


@pytest.mark.parametrize("empty", ["train", "eval"])
def test_an_empty_side_gives_no_neighbours(tmp_path: Path, empty: str) -> None:
    sides = {
        n: _folder(tmp_path / n, _unit(0 if n == empty else 3, 8, 1), dataset=n) for n in ("train", "eval")
    }
    done = run(SearchConfig(train=sides["train"], eval=(sides["eval"],)), str(tmp_path / "out"), QUIET)
    assert done is not None
    assert done.rows == 0


def test_variable_length_lists_are_read_too(tmp_path: Path) -> None:
    train = fake_folder(str(tmp_path / "train"), EMBEDDINGS, 20)
    evals = fake_folder(str(tmp_path / "eval"), EMBEDDINGS, 5, seed=0)
    run(SearchConfig(train=train, eval=(evals,)), str(tmp_path / "out"), QUIET)
    found = tables.read_folder(str(tmp_path / "out"), NEIGHBOURS).to_pylist()
    assert all(r["pair_id"] == r["eval_id"] and r["similarity"] == 1 for r in found if r["rank"] == 0)


def _bad(values: np.ndarray, value: float) -> np.ndarray:
    values[2, 3] = value
    return values


@pytest.mark.parametrize(
    ("side", "values", "message"),
    [
        ("eval", _bad(_unit(5, 8, 3), np.nan), "NaN or infinity"),
        ("train", _bad(_unit(5, 8, 3), np.inf), "NaN or infinity"),
        ("train", _unit(5, 8, 3) * 2, "not L2-normalised"),
        ("train", _unit(5, 12, 3), "different dimensions"),
    ],
)
def test_bad_embeddings_stop_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str, values: np.ndarray, message: str
) -> None:
    sides = {"train": _unit(5, 8, 1), "eval": _unit(5, 8, 2), side: values}
    folders = {name: _folder(tmp_path / name, v, dataset=name) for name, v in sides.items()}
    words = ["--train", folders["train"], "--eval", folders["eval"], "--out", str(tmp_path / "out")]
    assert main(["dedup", "search", *words]) == 1
    line = capsys.readouterr().err.strip()
    assert message in line
    assert "\n" not in line
    assert not paths.exists(str(tmp_path / "out" / "manifest.json"))


def test_different_detectors_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = _folder(tmp_path / "train", _unit(3, 8, 1), dataset="t", detector_sha256="x")
    evals = _folder(tmp_path / "eval", _unit(3, 8, 2), dataset="e", detector_sha256="y")
    assert main(["dedup", "search", "--train", train, "--eval", evals, "--out", str(tmp_path / "o")]) == 1
    assert "different detectors" in capsys.readouterr().err


def test_the_same_evaluation_set_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = _folder(tmp_path / "train", _unit(3, 8, 1), dataset="t")
    assert (
        main(["dedup", "search", "--train", train, "--eval", train, train, "--out", str(tmp_path / "o")]) == 1
    )
    assert "there twice" in capsys.readouterr().err


def test_other_tables_and_missing_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = fake_folder(str(tmp_path / "n"), NEIGHBOURS, 3)
    out = ["--out", str(tmp_path / "o")]
    assert main(["dedup", "search", "--train", wrong, "--eval", wrong, *out]) == 1
    assert "expected embeddings/1" in capsys.readouterr().err
    assert main(["dedup", "search", "--train", wrong, *out]) == 2
    assert "needs both sides" in capsys.readouterr().err
    assert main(["dedup", "search", "--train", str(tmp_path / "no"), "--eval", wrong, *out]) == 1
    assert "wit dedup embed" not in capsys.readouterr().out


def test_files_hold_fixed_size_lists(tmp_path: Path) -> None:
    _folder(tmp_path / "a", _unit(3, 8, 1))
    kind = pq.read_schema(tmp_path / "a" / "part-00000.parquet").field("embedding").type
    assert pa.types.is_fixed_size_list(kind)
    assert kind.list_size == 8


def test_only_vectors_of_few_values_are_packed(tmp_path: Path) -> None:
    bits = np.where(np.random.default_rng(0).random((500, 256)) < 0.5, 1, -1).astype(np.float32) / 16
    for name, values, half in (
        ("hash", bits, False),
        ("half-hash", bits, True),
        ("network", _unit(500, 256, 1), False),
        ("half-network", _unit(500, 256, 1), True),
    ):
        table = pa.table({"embedding": vectors_to_arrow(values, half=half)})
        contract = embeddings_contract(256, half=half)
        table = table.append_column("id", [[str(i) for i in range(500)]]).append_column(
            "dataset", [["t"] * 500]
        )
        tables.write_table(str(tmp_path / name), table, contract)
        size = (tmp_path / name).stat().st_size
        few = name.endswith("hash")
        assert (size < 500 * 256 / 4) == few  # a bit a value, or all its bytes
        group = pq.ParquetFile(tmp_path / name).metadata.row_group(0)
        found = {
            group.column(i).path_in_schema.split(".")[0]: group.column(i).compression
            for i in range(group.num_columns)
        }
        assert found["embedding"] == ("ZSTD" if few else "UNCOMPRESSED")


def test_what_is_known_of_evaluation_pictures_comes_along(tmp_path: Path) -> None:
    values = _unit(5, 8, 0)
    ids = [f"e{i}" for i in range(5)]
    facts = {
        "width": pa.array([10, 20, 30, 40, 50], pa.int32()),
        "height": pa.array([5, 5, 5, 5, 5], pa.int32()),
        "spread": pa.array([1, 2, 3, 4, 5], pa.float32()),
        "label": pa.array(["a", "b", None, "d", "e"]),
    }
    table = _table(values, ids, "known")
    for name, column in facts.items():
        table = table.append_column(name, column)
    known = finished_folder(str(tmp_path / "known"), embeddings_contract(8), table)
    plain = _folder(tmp_path / "plain", _unit(3, 8, 1), dataset="plain")
    train = _folder(tmp_path / "train", _unit(9, 8, 2), dataset="t")
    run(SearchConfig(train=train, eval=(known, plain), k=2), str(tmp_path / "out"), QUIET)
    rows = tables.read_folder(str(tmp_path / "out"), NEIGHBOURS).to_pylist()
    found = {r["eval_id"]: (r["eval_label"], r["eval_width"], r["eval_spread"]) for r in rows}
    assert found["e1"] == ("b", 20, 2.0)
    assert found["e2"] == (None, 30, 3.0)
    assert found["plain0000"] == (None, None, None)
    assert len(rows) == 16


@settings(max_examples=60)
@given(rows=st.integers(1, 60), different=st.integers(1, 6), k=st.integers(1, 8), seed=st.integers(0, 1000))
def test_many_equal_vectors_are_ranked_by_id(rows: int, different: int, k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    base = _unit(different, 6, seed)[draw.integers(0, different, rows)]
    ids = [f"i{i:03d}" for i in draw.permutation(rows)]
    queries = np.concatenate([base[:3], _unit(2, 6, seed + 1)])
    assert _listed(nearest(queries, base, ids, k)) == _brute(queries, base, ids, k)
    groups = equal_rows(base)
    assert [(groups == g).sum() for g in groups] == [int((base == row).all(axis=1).sum()) for row in base]
    assert groups.max() + 1 == len(np.unique(base, axis=0))


def test_a_great_many_identical_pictures_take_bounded_memory_and_time(tmp_path: Path) -> None:
    rows, k = 300_000, 10
    one = _unit(1, 16, 0)
    train = _folder(tmp_path / "train", np.repeat(one, rows, axis=0), dataset="t")
    queries = _folder(tmp_path / "eval", np.concatenate([_unit(500, 16, 1), one]), dataset="e")
    compare_blocks = CompareBlocks([f"{queries}/part-00000.parquet"], SearchConfig(k=k))
    compare_blocks.setup()
    compare_blocks.start_bundle()
    file = tables.part_files(train, EMBEDDINGS)[0]
    tracemalloc.start()
    for span in plan_blocks([file], 16_384)[:6]:
        compare_blocks.process(span)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6
    (made,) = (windowed.value[1] for windowed in compare_blocks.finish_bundle())
    assert made.ids.tolist() == [[f"t{i:04d}" for i in range(k)]] * 501
    assert made.similarity[-1] == pytest.approx(np.ones(k), abs=1e-5)


@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_any_order_of_similarities_over_many_tiles(order: str) -> None:
    # Rising similarities: every row counts when it is met, and notes are settled before a tile's end.
    base = _unit(tiles.COLUMNS * 2 + 77, 24, 5)
    queries = np.repeat(_unit(2, 24, 6), tiles.ROWS // 2 + 20, axis=0)
    likeness = queries[0].astype(np.float64) @ base.astype(np.float64).T
    if order != "mixed":
        base = base[np.argsort(likeness if order == "rising" else -likeness)]
    ids = [f"{i:05d}" for i in range(len(base))]
    found = nearest(queries, base, ids, 9)
    assert _listed(found.slice(0, 1)) == _brute(queries[:1], base, ids, 9)
    assert _listed(found.slice(len(queries) - 1, len(queries))) == _brute(queries[-1:], base, ids, 9)
    for half in (found.ids[: len(queries) // 2], found.ids[len(queries) // 2 :]):
        assert (half == half[0]).all()


def test_no_shape_of_a_block_changes_a_similarity() -> None:
    # Many rows within a rounding of one another: what the last bits of a product would decide.
    draw = np.random.default_rng(0)
    base = _unit(1, 200, 0) + draw.normal(scale=2e-5, size=(1500, 200)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    queries = np.concatenate([base[:20], _unit(5, 200, 1)])
    ids = [f"{i * 379 % 1500:04d}" for i in range(1500)]
    whole = nearest(queries, base, ids, 7)
    exact = queries.astype(np.float64) @ base.astype(np.float64).T
    assert whole.similarity[:, 0] == pytest.approx(exact.max(axis=1), abs=0.6e-5)
    assert _listed(whole) == _brute(queries, base, ids, 7)
    for cut in (1, 13, 700):
        best = Best.nothing(len(queries), 7)
        for part in (slice(cut, None), slice(0, cut)):
            compare(best, queries, block(base[part], ids[part], 7))
        assert (best.key == whole.key).all()
        assert _listed(best) == _listed(whole)


def test_rows_are_read_by_row_group(tmp_path: Path) -> None:
    values = _unit(50, 8, 0)
    ids = [f"{i:02d}" for i in range(50)]
    table = _table(values, ids, "d")
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    for start, rows in ((0, 50), (3, 20), (14, 7), (49, 1)):
        read = list(read_block(str(tmp_path / "t.parquet"), start, rows, 5))
        assert [i for some, _ in read for i in some] == ids[start : start + rows]
        assert (np.concatenate([v for _, v in read]) == values[start : start + rows]).all()
        assert max(len(some) for some, _ in read) <= 5


def _clustered(rows: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    values = _unit(30, 24, 99)[draw.integers(0, 30, rows)] + 0.15 * _unit(rows, 24, seed)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def test_an_index_gives_exact_similarities_and_says_what_it_misses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = _folder(tmp_path / "train", _clustered(900, 1), dataset="t", threshold=0.95)
    evals = _folder(tmp_path / "eval", _clustered(300, 2), dataset="e", threshold=0.95)
    words = ["dedup", "search", "--train", train, "--eval", evals, "--k", "5"]
    assert main([*words, "--out", str(tmp_path / "exact"), "--quiet"]) == 0
    assert main([*words, "--out", str(tmp_path / "ivf"), "--index", "ivf", "--probes", "2"]) == 0
    line = capsys.readouterr().err
    exact, found = (tables.read_folder(str(tmp_path / n), NEIGHBOURS).to_pylist() for n in ("exact", "ivf"))
    likeness = (_clustered(300, 2).astype(np.float64) @ _clustered(900, 1).astype(np.float64).T).round(5)
    for row in found:
        true = likeness[int(row["eval_id"][1:]), int(row["pair_id"][1:])]
        assert row["similarity"] == pytest.approx(true, abs=1.1e-5)
    done = manifest.read(str(tmp_path / "ivf"))
    assert (done.extra["index"], done.extra["probes"], done.extra["lists"]) == ("ivf", 2, 35)
    recall = done.extra["recall"]
    wanted = {(r["eval_id"], r["pair_id"]) for r in exact}
    share = len(wanted & {(r["eval_id"], r["pair_id"]) for r in found}) / len(wanted)
    assert 0.5 < share < 1
    assert recall["queries"] == 256
    assert recall["at_k"] == pytest.approx(share, abs=0.03)
    assert recall["pairs_above_threshold"] > 0
    assert f"{recall['at_1']:.1%} have the same nearest neighbour" in line
    assert sorted(p.name for p in (tmp_path / "ivf").iterdir()) == ["manifest.json", "part-00000.parquet"]
    # As many probes as lists: everything is compared with everything.
    assert main([*words, "--out", str(tmp_path / "all"), "--index", "ivf", "--probes", "99", "--quiet"]) == 0
    assert tables.read_folder(str(tmp_path / "all"), NEIGHBOURS).to_pylist() == exact
    assert manifest.read(str(tmp_path / "all")).extra["recall"]["at_k"] == 1


@pytest.mark.parametrize("empty", ["train", "eval"])
def test_an_index_over_nothing(tmp_path: Path, empty: str) -> None:
    sides = {
        n: _folder(tmp_path / n, _unit(0 if n == empty else 3, 8, 1), dataset=n) for n in ("train", "eval")
    }
    config = SearchConfig(train=sides["train"], eval=(sides["eval"],), index="ivf")
    done = run(config, str(tmp_path / "out"), QUIET)
    assert done is not None
    assert done.rows == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--probes", "4"], "probes belongs to --index ivf"),
        (["--index", "ivf", "--probes", "0"], "probes must be at least 1"),
        (["--index", "hnsw"], "invalid choice"),
        (["--k", "0"], "k must be at least 1"),
    ],
)
def test_bad_values_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    train = _folder(tmp_path / "train", _unit(3, 8, 1), dataset="t")
    assert main(["dedup", "search", "--train", train, "--eval", train, "--out", str(tmp_path / "o"), *words])
    line = capsys.readouterr().err.strip()
    assert message in line
    assert "\n" not in line


def test_half_precision_is_widened(tmp_path: Path) -> None:
    base, queries = _unit(200, 64, 1), _unit(20, 64, 2)
    queries[:10] = base[:10]
    folders = {}
    for name, half in (("whole", False), ("half", True)):
        contract = embeddings_contract(64, half=half)
        for side, values in (("train", base), ("eval", queries)):
            ids = [f"{side}{i:04d}" for i in range(len(values))]
            table = pa.table(
                {"id": ids, "dataset": [side] * len(ids), "embedding": vectors_to_arrow(values, half=half)}
            )
            folders[side, name] = finished_folder(str(tmp_path / f"{side}-{name}"), contract, table)
    likeness = {}
    for name in ("whole", "half"):
        out = str(tmp_path / name)
        run(SearchConfig(train=folders["train", name], eval=(folders["eval", name],), k=200), out, QUIET)
        rows = tables.read_folder(out, NEIGHBOURS).to_pylist()
        likeness[name] = {(r["eval_id"], r["pair_id"]): r["similarity"] for r in rows}
    off = [abs(likeness["whole"][pair] - likeness["half"][pair]) for pair in likeness["whole"]]
    assert 0 < max(off) < 5e-4
    assert all(likeness["half"][f"eval{i:04d}", f"train{i:04d}"] == 1 for i in range(10))
    small, large = (tmp_path / f"train-{n}" / "part-00000.parquet" for n in ("half", "whole"))
    assert small.stat().st_size < 0.65 * large.stat().st_size


def test_the_lists_a_row_visits_do_not_depend_on_its_block() -> None:
    draw = np.random.default_rng(3)
    centroids = draw.normal(size=(64, 356))
    # Pairs of lists that single precision can hardly tell apart.
    centroids[32:] = centroids[:32] + 1e-6 * draw.normal(size=(32, 356))
    values = draw.normal(size=(200, 356))
    values, centroids = (
        (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (values, centroids)
    )
    exact = values.astype(np.float64) @ centroids.astype(np.float64).T
    for probes in (1, 7, 64):
        row, of = lists.visited(values, centroids, probes)
        assert (row == np.repeat(np.arange(200), probes)).all()
        for i in range(200):
            alone = lists.visited(values[i : i + 1], centroids, probes)[1]
            assert (alone == of[row == i]).all()
            assert (alone == np.sort(np.argsort(-exact[i])[:probes])).all()
