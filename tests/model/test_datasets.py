"""Every form in which evaluation data is handed round, read to the same pictures and labels."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model.datasets import read_captioned, read_dataset
from model.predictions import pixels_of
from pipeline.core import fakes
from pipeline.core.errors import ContractError, InputError
from pipeline.core.tars import Sample, write_shard


def jpeg(seed: int) -> bytes:
    return fakes.jpeg(fakes.picture("red", "circle", size=40, seed=seed))


def test_webdataset(tmp_path: Path) -> None:
    made = [Sample(f"k{i}", {"jpg": jpeg(i), "cls": str(i % 3 * 5).encode()}) for i in range(7)]
    write_shard(str(tmp_path / "test-00000.tar"), made)
    for path in (tmp_path, tmp_path / "test-00000.tar"):
        found = read_dataset(str(path))
        assert found.classes == ("0", "5", "10")
        assert found.files[:4] == (("k0", 0), ("k1", 1), ("k2", 2), ("k3", 0))
        assert found.read(4) == jpeg(4)
        assert found.several is None


def test_parquet_with_plain_and_hugging_face_columns(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(4)]
    pq.write_table(pa.table({"image": images, "label": [1, 0, 1, 0]}), tmp_path / "test.parquet")
    found = read_dataset(str(tmp_path))
    assert (found.classes, [n for _, n in found.files]) == (("0", "1"), [1, 0, 1, 0])
    assert found.files[2][0] == "00000002"
    assert found.read(3) == jpeg(3)
    several = {
        "id": ["a", "b", "c"],
        "jpg": [jpeg(i) for i in range(3)],
        "labels": [["cat", "dog"], ["dog"], []],
    }
    pq.write_table(pa.table(several), tmp_path / "voc.parquet")
    voc = read_dataset(str(tmp_path / "voc.parquet"))
    assert voc.several is not None
    assert voc.several.tolist() == [[True, True], [False, True], [False, False]]
    assert [i for i, _ in voc.files] == ["a", "b", "c"]
    pq.write_table(pa.table({"image": images}), tmp_path / "bare.parquet")
    with pytest.raises(ContractError, match=r"lacks a column, expected label or class.*found image"):
        read_dataset(str(tmp_path / "bare.parquet"))


def test_csv_with_a_path_column(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        (tmp_path / "pictures" / f"{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "t.csv").write_text(
        "path,label\npictures/0.jpg,cat\npictures/1.jpg,dog\npictures/2.jpg,cat|dog\n"
    )
    found = read_dataset(str(tmp_path / "t.csv"))
    assert found.classes == ("cat", "dog")
    assert found.files[1] == ("pictures/1.jpg", 1)
    assert found.read(2) == jpeg(2)
    assert found.several is not None
    assert found.several[2].all()


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes() + values.tobytes()


def test_mnist(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pixels, labels = (
        draw.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        np.array([3, 1, 0, 2, 1, 3], dtype=np.uint8),
    )
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(pixels))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[:2])))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[:2])))
    found = read_dataset(str(tmp_path))
    assert (found.classes, len(found.files), found.files[5]) == (("0", "1", "2", "3"), 6, ("t10k-00005", 3))
    picture = found.read(4)
    assert isinstance(picture, np.ndarray)
    assert np.array_equal(picture[:, :, 1], pixels[4])
    assert pixels_of(picture, 28).shape == (28, 28, 3)
    train = read_dataset(str(tmp_path / "train-images-idx3-ubyte.gz"))
    assert len(train.files) == 2
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(pixels)[:-5])
    with pytest.raises(InputError, match="a truncated idx file"):
        read_dataset(str(tmp_path))


def test_cifar(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    data = draw.integers(0, 256, (4, 3072), dtype=np.uint8)
    batch = {
        b"data": data,
        b"fine_labels": [0, 1, 1, 0],
        b"filenames": [b"a.png", b"b.png", b"c.png", b"d.png"],
    }
    (tmp_path / "test").write_bytes(pickle.dumps(batch, protocol=2))
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"apple", b"fish"]}, protocol=2))
    found = read_dataset(str(tmp_path))
    assert (found.classes, found.files[3]) == (("apple", "fish"), ("d.png", 0))
    assert [n for _, n in found.files] == [0, 1, 1, 0]
    picture = found.read(2)
    assert isinstance(picture, np.ndarray)
    assert np.array_equal(picture[:, :, 0], data[2, :1024].reshape(32, 32))


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("true",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": _Evil()}))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match=r"not a pickled CIFAR batch.*system is not data"):
        read_dataset(str(tmp_path))


def test_captions_from_every_form(tmp_path: Path) -> None:
    write_shard(
        str(tmp_path / "a.tar"),
        [Sample("k0", {"jpg": jpeg(0), "txt": b"one"}), Sample("k1", {"jpg": jpeg(1)})],
    )
    found = read_captioned(str(tmp_path / "a.tar"))
    assert (found.ids, found.captions) == (("k0",), (("one",),))
    assert found.read(0) == jpeg(0)
    table = pa.table({"image": [jpeg(0), jpeg(1)], "captions": [["a", "b"], ["c"]], "image_id": [7, 9]})
    pq.write_table(table, tmp_path / "p.parquet")
    found = read_captioned(str(tmp_path / "p.parquet"))
    assert (found.ids, found.captions) == (("7", "9"), (("a", "b"), ("c",)))
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    (tmp_path / "f.csv").write_text('file,caption\n0.jpg,"x, y"\n1.jpg,z\n0.jpg,w\n')
    found = read_captioned(str(tmp_path / "f.csv"))
    assert (found.ids, found.captions) == (("0.jpg", "1.jpg"), (("x, y", "w"), ("z",)))
    assert found.read(1) == jpeg(1)
    with pytest.raises(ContractError, match="lacks a column, expected nope"):
        read_captioned(str(tmp_path / "f.csv"), captions="nope")


def test_arrays_and_files_give_the_same_pixels() -> None:
    pixels = np.asarray(fakes.picture("red", "circle", size=64, seed=1).convert("RGB"))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert np.array_equal(pixels_of(pixels, 32), pixels_of(buffer.getvalue(), 32))
    assert json.dumps(pixels_of(pixels, 64).shape) == "[64, 64, 3]"
