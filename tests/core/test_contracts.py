from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core import contracts, manifest, tables
from pipeline.core.contracts import ALL, CANDIDATES, EMBEDDINGS, PAIRS, PREDICTIONS, SHARDS, Contract, pair_id
from pipeline.core.errors import ContractError, InputError, UnfinishedInputError
from pipeline.core.fakes import fake_folder, fake_shards, fake_table, finished_folder

GOLDEN = Path(__file__).parent.parent / "golden" / "contracts.json"
FAKED = [c for c in ALL.values() if c.id not in ("shards/1", "dropped/1", "query-counts/1")]


def test_contracts_are_the_golden_ones() -> None:
    """Other people's scripts rely on these columns: a change here is a new version, not an edit."""
    found = {
        c.id: [f"{f.name}: {f.type}{'' if f.nullable else ' not null'}" for f in c.schema]
        for c in ALL.values()
    }
    assert found == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("contract", FAKED, ids=lambda c: c.id)
def test_fakes_are_valid_and_repeatable(contract: Contract, tmp_path: Path) -> None:
    folder = fake_folder(str(tmp_path / "x"), contract, 20)
    assert tables.read_folder(folder, contract).num_rows == 20
    assert fake_table(contract, 20).equals(fake_table(contract, 20))


def test_fake_shards_are_valid(tmp_path: Path) -> None:
    folder = fake_shards(str(tmp_path / "s"), 5, per_shard=3)
    assert manifest.read(folder).contract == SHARDS.id
    SHARDS.check(tables.read_schema(f"{folder}/00000.parquet"), where="x")


def test_pair_id_is_the_documented_hash() -> None:
    import hashlib

    assert pair_id("u", "t") == hashlib.sha256(b"u\0t").hexdigest()[:32]
    assert pair_id("u", "\ud800") == pair_id("u", "?")


def test_another_contract_a_missing_column_and_a_wrong_type_are_told_apart(tmp_path: Path) -> None:
    folder = fake_folder(str(tmp_path / "c"), CANDIDATES, 3)
    with pytest.raises(
        ContractError, match=r"another contract, expected pairs/1, found candidates/1.*wit select"
    ):
        tables.part_files(folder, PAIRS)
    part = f"{folder}/part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["rights"]), part)
    with pytest.raises(ContractError, match=r"column 'rights' is missing"):
        tables.part_files(folder, CANDIDATES)
    wrong = table.set_column(1, "url", pa.array([1, 2, 3])).replace_schema_metadata(table.schema.metadata)
    pq.write_table(wrong, part)
    with pytest.raises(ContractError, match=r"column 'url' has the wrong type, expected string, found int64"):
        tables.part_files(folder, CANDIDATES)
    pq.write_table(table.replace_schema_metadata(None), part)
    with pytest.raises(ContractError, match="names no contract"):
        tables.part_files(folder, CANDIDATES)


def test_unfinished_damaged_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder.*wit candidates"):
        tables.part_files(str(tmp_path / "none"), CANDIDATES)
    (tmp_path / "half").mkdir()
    with pytest.raises(UnfinishedInputError, match=r"no manifest\.json"):
        tables.part_files(str(tmp_path / "half"), CANDIDATES)
    folder = fake_folder(str(tmp_path / "c"), CANDIDATES, 3)
    Path(folder, "part-00000.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        tables.part_files(folder, CANDIDATES)
    Path(folder, "part-00000.parquet").unlink()
    with pytest.raises(InputError, match="no part"):
        tables.part_files(folder, CANDIDATES)
    Path(folder, "manifest.json").write_text("{}")
    with pytest.raises(ContractError, match="not a manifest"):
        tables.part_files(folder, CANDIDATES)


def test_conform_casts_orders_and_refuses() -> None:
    table = pa.table({"extra": [1], "correct": [True], "eval_id": ["b"], "eval_dataset": ["a"]})
    made = PREDICTIONS.conform(table)
    assert made.column_names == ["eval_dataset", "eval_id", "correct", "extra"]
    with pytest.raises(ContractError, match="'correct' is missing"):
        PREDICTIONS.conform(table.drop_columns(["correct"]))
    with pytest.raises(ContractError, match="holds 1 nulls"):
        PREDICTIONS.conform(table.set_column(1, "correct", pa.array([None], pa.bool_())))
    with pytest.raises(ContractError, match="wrong type"):
        PREDICTIONS.conform(table.set_column(1, "correct", pa.array([[1]])))


def test_embeddings_keep_their_dimension(tmp_path: Path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 0.0], pa.float32()), 2)
    table = pa.table({"id": ["a"], "dataset": ["d"], "embedding": vectors})
    fixed = contracts.EMBEDDINGS
    folder = finished_folder(str(tmp_path / "e"), EMBEDDINGS, table)
    assert tables.read_folder(folder, fixed).column("embedding").to_pylist() == [[1.0, 0.0]]


def test_vectors_are_not_packed(tmp_path: Path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(range(64), pa.float32()), 2)
    table = pa.table({"id": ["a"] * 32, "dataset": ["d"] * 32, "embedding": vectors})
    (file,) = tables.part_files(finished_folder(str(tmp_path / "e"), EMBEDDINGS, table), contracts.EMBEDDINGS)
    group = pq.ParquetFile(file).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    packed = {c.path_in_schema.split(".")[0]: c.compression == "ZSTD" for c in columns}
    assert packed == {"id": True, "dataset": True, "label": True, "embedding": False}
    assert not any(c.has_dictionary_page for c in columns if "embedding" in c.path_in_schema)
