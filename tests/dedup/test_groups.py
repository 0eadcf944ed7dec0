from __future__ import annotations

import dataclasses
import tracemalloc
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup import coarse, lists
from dedup.coarse import VisitLists
from dedup.config import GroupsConfig
from dedup.embed import embeddings_contract, vectors_to_arrow
from dedup.groups import LinkBlocks, run
from dedup.linking import Links, MergeLinks, joined, link
from dedup.vectors import plan_blocks
from pipeline.cli import main
from pipeline.core import counters, manifest, paths, tables
from pipeline.core.contracts import EMBEDDINGS, GROUPS
from pipeline.core.fakes import fake_folder, finished_folder
from pipeline.core.stage import RunOptions

QUIET = RunOptions(quiet=True)
TWO = RunOptions(quiet=True, beam=("--direct_num_workers=2", "--direct_running_mode=multi_processing"))


def _unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def _folder(path: Path, values: np.ndarray, ids: list[str], **extra: object) -> str:
    table = pa.table({"id": ids, "dataset": ["t"] * len(ids), "embedding": vectors_to_arrow(values)})
    return finished_folder(str(path), embeddings_contract(values.shape[1]), table, **extra)


def _truth(values: np.ndarray, ids: list[str], threshold: float) -> dict[str, tuple[str, float]]:
    """Group and best similarity of each picture that has one, by trying every pair."""
    likeness = np.round(values @ values.T, 5)
    np.fill_diagonal(likeness, -2)
    near = likeness >= np.float32(threshold)
    group = {i: {i} for i in range(len(ids))}
    for a, b in zip(*np.nonzero(near), strict=True):
        if group[a] is not group[b]:
            group[a] |= group[b]
            for i in group[b]:
                group[i] = group[a]
    return {
        ids[i]: (min(ids[j] for j in group[i]), float(likeness[i].max())) for i in group if len(group[i]) > 1
    }


def _clusters(seed: int, *, rows: int = 60) -> np.ndarray:
    """Chains and clumps: some pictures are equal, some only near one of a group."""
    draw = np.random.default_rng(seed)
    base = _unit(rows // 3, 5, seed)
    made = base[draw.integers(0, len(base), rows)]
    moved = made + (draw.random((rows, 1)) < 0.6) * 0.12 * _unit(rows, 5, seed + 1)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0.7, 0.999), block=st.integers(1, 70))
def test_any_blocks_find_the_connected_components(
    seed: int, threshold: float, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = _clusters(seed)
    held = [
        link(values[i : i + block], None, threshold).at(np.arange(i, min(i + block, 60)))
        for i in range(0, 60, block)
    ]
    for i in range(0, 60, block):
        for j in range(i + block, 60, block):
            places = np.concatenate([np.arange(i, i + block), np.arange(j, min(j + block, 60))])
            held.append(link(values[i : i + block], values[j : j + block], threshold).at(places))
    found = joined(held)
    truth = _truth(values, [f"{i:02d}" for i in range(60)], threshold)
    assert {f"{r:02d}": f"{t:02d}" for r, t in zip(found.row, found.to, strict=True)} == {
        name: group for name, (group, _) in truth.items()
    }
    assert found.similarity == pytest.approx([truth[f"{r:02d}"][1] for r in found.row], abs=2e-5)


def test_groups_are_named_by_their_smallest_id(tmp_path: Path) -> None:
    values = _clusters(3)
    ids = [f"p{i * 37 % 101:03d}" for i in range(60)]
    train = _folder(tmp_path / "train", values, ids)
    done = run(GroupsConfig(train=train, threshold=0.98, block_rows=17), str(tmp_path / "out"), QUIET)
    assert done is not None
    rows = tables.read_folder(str(tmp_path / "out"), GROUPS).to_pylist()
    truth = _truth(values, ids, 0.98)
    assert {r["pair_id"]: r["group"] for r in rows} == {name: group for name, (group, _) in truth.items()}
    members = defaultdict(list)
    for row in rows:
        members[row["group"]].append(row)
        assert row["keep"] == (row["pair_id"] == row["group"])
        assert row["similarity"] == pytest.approx(truth[row["pair_id"]][1], abs=2e-5)
    assert min(map(len, members.values())) >= 2
    drop = (tmp_path / "out" / "drop-ids.txt").read_text().split()
    assert drop == sorted(r["pair_id"] for r in rows if not r["keep"])
    assert (done.extra["groups"], done.extra["to_drop"], done.extra["train_rows"]) == (
        len(members),
        len(drop),
        60,
    )


def test_block_size_and_workers_change_no_byte(tmp_path: Path) -> None:
    train = _folder(tmp_path / "train", _clusters(5, rows=300), [f"{i:04d}" for i in range(300)])
    made = []
    for name, block, options in (("a", 300, QUIET), ("b", 41, QUIET), ("c", 41, TWO)):
        run(GroupsConfig(train=train, threshold=0.97, block_rows=block), str(tmp_path / name), options)
        made.append([(tmp_path / name / f).read_bytes() for f in ("part-00000.parquet", "drop-ids.txt")])
    assert made[0] == made[1] == made[2]


def test_rows_not_quite_of_length_one_are_brought_to_it(tmp_path: Path) -> None:
    # As they are, the first two are less alike than the threshold, and each is alike enough to the third.
    values = np.array([[0.9995, 0], [0.9995, 0], [1.0005, 0], [0, 1]], np.float32)
    train = _folder(tmp_path / "train", values, ["a", "b", "c", "d"])
    for name, asked in (("1", {"block_rows": 1}), ("3", {"block_rows": 3}), ("ivf", {"index": "ivf"})):
        run(GroupsConfig(train=train, threshold=0.9999, **asked), str(tmp_path / name), QUIET)
        rows = tables.read_folder(str(tmp_path / name), GROUPS).to_pylist()
        assert [(r["pair_id"], r["group"], r["similarity"]) for r in rows] == [(i, "a", 1.0) for i in "abc"]


def test_blocks_of_one_row_change_no_byte(tmp_path: Path) -> None:
    # Products of one or two rows take another way through BLAS than those of many.
    draw = np.random.default_rng(9)
    base = np.repeat(draw.normal(size=(40, 356)), 3, axis=0)
    values = base + 0.3 * draw.normal(size=base.shape)
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    train = _folder(tmp_path / "train", values, [f"{i:03d}" for i in range(120)])
    made = set()
    for block in (1, 2, 7, 120):
        run(GroupsConfig(train=train, threshold=0.9, block_rows=block), str(tmp_path / f"{block}"), QUIET)
        made.add((tmp_path / f"{block}" / "part-00000.parquet").read_bytes())
    assert len(made) == 1
    rows = tables.read_folder(str(tmp_path / "1"), GROUPS).to_pylist()
    truth = values.astype(np.float64) @ values.astype(np.float64).T
    np.fill_diagonal(truth, -1)
    assert [r["similarity"] for r in rows] == [
        float(np.float32(np.round(truth[int(r["pair_id"])].max(), 5))) for r in rows
    ]


def test_an_index_says_what_it_misses_and_leaves_no_trace_of_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = _clusters(11, rows=900)
    values = np.concatenate(
        [values, np.repeat(values[:2], 40, axis=0)]
    )  # more copies than a picture is asked for
    train = _folder(tmp_path / "train", values, [f"{i * 37 % 1009:04d}" for i in range(len(values))])
    exact = GroupsConfig(train=train, threshold=0.995)
    ivf = dataclasses.replace(exact, index="ivf", probes=1)
    found = {}
    for name, config, options in (
        ("exact", exact, QUIET),
        ("all", dataclasses.replace(ivf, probes=99), QUIET),
        ("one", ivf, RunOptions()),
        ("block", dataclasses.replace(ivf, block_rows=23), QUIET),
        ("two", dataclasses.replace(ivf, block_rows=23), TWO),
    ):
        out = tmp_path / name
        done = run(config, str(out), options)
        assert done is not None
        assert sorted(p.name for p in out.iterdir()) == [
            "drop-ids.txt",
            "manifest.json",
            "part-00000.parquet",
        ]
        found[name] = ([(out / f).read_bytes() for f in ("part-00000.parquet", "drop-ids.txt")], done.extra)
    # As many probes as lists: everything is compared with everything.
    assert found["all"][0] == found["exact"][0]
    assert found["all"][1]["recall"]["together"] == 1
    assert (found["one"][1]["lists"], found["one"][1]["probes"]) == (63, 1)
    assert found["one"] == found["block"] == found["two"]
    said = found["one"][1]["recall"]
    assert f"{said['together']:.1%} are in their groups" in capsys.readouterr().err
    group = [
        {r["pair_id"]: r["group"] for r in tables.read_folder(str(tmp_path / n), GROUPS).to_pylist()}
        for n in ("exact", "one")
    ]
    assert said["pictures"] == len(values)
    assert 0.5 < said["together"] < 1
    kept = [group[1].get(name) for name in group[0]]
    assert 0.5 < sum(k is not None for k in kept) / len(kept) < 1


def test_no_picture_is_left_out_of_its_lists(tmp_path: Path) -> None:
    values = _clusters(4, rows=500)
    train = _folder(tmp_path / "train", values, [f"{i:04d}" for i in range(500)])
    files = tables.part_files(train, EMBEDDINGS)
    (tmp_path / "lists").mkdir()
    centroids = lists.centroids(values, 20)
    (tmp_path / "lists" / "centroids.npy").write_bytes(centroids.tobytes())
    visit = VisitLists(files, str(tmp_path / "lists"), 3, 4, 1)
    visit.setup()
    rows = [(part, row) for part, table in visit.process((0, 0, 500)) for row in table.to_pylist()]
    exact = np.round(values.astype(np.float64) @ centroids.astype(np.float64).T, 5)
    wanted = np.argsort(-exact, axis=1, kind="stable")[:, :3]
    assert sorted((r["place"], r["list"]) for _, r in rows) == sorted(
        (i, of) for i in range(500) for of in wanted[i]
    )
    assert sorted((r["place"], r["list"]) for _, r in rows if r["home"]) == list(enumerate(wanted[:, 0]))
    assert all(part == r["list"] % 4 for part, r in rows)
    assert all(r["embedding"] == values[r["place"]].tolist() for _, r in rows[:50])


def test_an_index_over_a_few_pictures(tmp_path: Path) -> None:
    one = _folder(tmp_path / "one", _unit(1, 8, 0), ["a"])
    done = run(GroupsConfig(train=one, threshold=0.9, index="ivf"), str(tmp_path / "o"), QUIET)
    assert done is not None
    assert (done.rows, done.extra["lists"]) == (0, 1)
    same = _folder(tmp_path / "same", np.repeat(_unit(1, 8, 0), 3, axis=0), list("abc"))
    done = run(GroupsConfig(train=same, threshold=0.9, index="ivf"), str(tmp_path / "s"), QUIET)
    assert done is not None
    assert (done.rows, done.extra["to_drop"], done.extra["recall"]["together"]) == (3, 2, 1)
    empty = fake_folder(str(tmp_path / "empty"), EMBEDDINGS, 0)
    done = run(GroupsConfig(train=empty, threshold=0.9, index="ivf"), str(tmp_path / "none"), QUIET)
    assert done is not None
    assert done.rows == 0


def test_an_index_in_any_folder_and_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = _clusters(3, rows=120)
    train = _folder(tmp_path / "train", values, [f"{i:04d}" for i in range(len(values))])
    config = GroupsConfig(train=train, threshold=0.99, index="ivf", probes=1)
    inside = str(tmp_path / "lists.tmp" / "part-1" / "out")  # named as what lies in an output folder
    plain, killed, store = str(tmp_path / "plain"), str(tmp_path / "killed"), "memory://groups-ivf/out"
    done = run(config, plain, QUIET)
    assert done is not None
    assert done.extra["recall"]["pairs_above_threshold"] > 100
    assert 0 < done.extra["recall"]["together"] < 1
    line = coarse.recall_line(done.extra)
    assert (
        f"have {done.extra['recall']['pairs_above_threshold']} near-duplicates among their 10 nearest" in line
    )

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(coarse, "recall", interrupted)
        run(config, killed, QUIET)
    assert (Path(killed) / "lists.tmp").exists()
    for out in (killed, inside, store):
        again = run(config, out, QUIET)
        assert again is not None
        assert again.extra == done.extra
        assert not paths.exists(paths.join(out, "lists.tmp"))
        for name in ("part-00000.parquet", "drop-ids.txt"):
            assert paths.read_bytes(paths.join(out, name)) == (Path(plain) / name).read_bytes()


def test_an_index_compares_in_the_name_of_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = _folder(tmp_path / "train", _unit(20, 8, 0), [f"{i:02d}" for i in range(20)])
    counted: list[tuple[str, str]] = []
    monkeypatch.setattr(counters, "count", lambda stage, name, _=1: counted.append((stage, name)))
    run(GroupsConfig(train=train, threshold=0.9, index="ivf"), str(tmp_path / "out"), QUIET)
    assert ("dedup groups", "compared") in counted
    assert {stage for stage, _ in counted} == {"dedup groups"}


def test_nothing_alike_gives_an_empty_table(tmp_path: Path) -> None:
    train = _folder(
        tmp_path / "train", np.eye(6, dtype=np.float32), [str(i) for i in range(6)], threshold=0.9
    )
    done = run(GroupsConfig(train=train), str(tmp_path / "out"), QUIET)
    assert done is not None
    assert (done.rows, done.extra["threshold"]) == (0, 0.9)
    empty = fake_folder(str(tmp_path / "empty"), EMBEDDINGS, 0)
    done = run(GroupsConfig(train=empty, threshold=0.9), str(tmp_path / "none"), QUIET)
    assert done is not None
    assert done.rows == 0
    assert (tmp_path / "none" / "drop-ids.txt").read_bytes() == b""


def test_a_great_many_equal_pictures_are_one_group_in_bounded_memory(tmp_path: Path) -> None:
    rows = 200_000
    values = np.repeat(_unit(2, 8, 0), rows // 2, axis=0)
    train = _folder(tmp_path / "train", values, [f"{i:07d}" for i in range(rows)])
    file = tables.part_files(train, EMBEDDINGS)[0]
    linked = LinkBlocks([file], 0.99, 1)
    linked.setup()
    merge = MergeLinks()
    state = merge.create_accumulator()
    tracemalloc.start()
    for _, start, count in plan_blocks([file], 32_768):
        for links in linked.process((0, start, count)):
            state = merge.add_input(state, links)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Some hundred bytes a row; all pairs of one group would be five billion.
    assert peak < 100e6
    found = merge.extract_output(state)
    assert isinstance(found, Links)
    assert (found.to == np.repeat([0, rows // 2], rows // 2)).all()


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = _folder(tmp_path / "train", _unit(4, 8, 0), list("abcd"))
    out = ["--out", str(tmp_path / "o")]
    broken = _unit(4, 8, 1)
    broken[2, 3] = np.nan
    bad = _folder(tmp_path / "bad", broken, list("abcd"))
    cases = [
        (["--threshold", "0.9"], 2, "no embeddings given"),
        (["--train", train], 2, "no threshold given"),
        (["--train", train, "--threshold", "1.5"], 2, "threshold must lie in"),
        (["--train", train, "--threshold", "0.9", "--probes", "2"], 2, "probes belongs to --index ivf"),
        (["--train", bad, "--threshold", "0.9"], 1, "NaN or infinity"),
        (["--train", str(tmp_path / "no"), "--threshold", "0.9"], 1, "no such folder"),
    ]
    for words, status, message in cases:
        assert main(["dedup", "groups", *words, *out]) == status, message
        line = capsys.readouterr().err.strip()
        assert message in line
        assert "\n" not in line
    assert not (tmp_path / "o" / manifest.NAME).exists()


def test_equal_ids_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = _folder(tmp_path / "train", np.repeat(_unit(1, 8, 0), 3, axis=0), list("aab"))
    words = ["--train", train, "--threshold", "0.9", "--out", str(tmp_path / "o")]
    assert main(["dedup", "groups", *words]) == 1
    assert "is there twice" in capsys.readouterr().err
