"""Evaluation datasets in the forms they are handed round in, as one list of (id, label) with a reader.

ImageFolder, WebDataset tars, Parquet, CSV or TSV with a path column, MNIST's idx files and CIFAR's pickled batches.
Ids are stable names (relative paths, keys, row numbers), so that predictions join with overlap reports.
"""

from __future__ import annotations

import csv
import gzip
import io
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.decoding import ShardReader
from model.shards import tar_image, tar_members
from pipeline.core import paths, tables
from pipeline.core.errors import ContractError, InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
Picture = bytes | np.ndarray  # an encoded image, or pixels uint8 [H, W, 3]
_IMAGE_COLUMNS = ("image", "img", "jpg", "png")
_LABEL_COLUMNS = ("label", "class", "labels", "cls", "fine_label")
_ID_COLUMNS = ("id", "key", "image_id", "pair_id")
_PATH_COLUMNS = ("path", "file", "filename", "image", "filepath")
_CAPTION_COLUMNS = ("caption", "captions", "text", "title")


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    Attributes:
        root: Where it lies.
        classes: Names of the classes, in the order of their numbers.
        files: Id and class number of each image; the first one where an image has several.
        read: Gives the picture of an image by its place in ``files``.
        several: bool [N, C] where images may have several classes, else ``None``.
    """

    root: str
    classes: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    read: Callable[[int], Picture]
    several: np.ndarray | None = None


@dataclass(frozen=True)
class Captioned:
    """Images with one or more captions each.

    Attributes:
        root: Where they lie.
        ids: Of the images.
        captions: Texts of each image.
        read: Gives the picture of an image by its place in ``ids``.
        bare: Ids of images without a caption, which are not in ``ids``.
    """

    root: str
    ids: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    read: Callable[[int], Picture]
    bare: tuple[str, ...] = ()


def read_dataset(path: str) -> Dataset:
    """A labelled dataset of any known form, told by its files.

    Raises:
        InputError: Missing, damaged, or of no known form.
    """
    if not paths.exists(path):
        raise InputError("no such dataset folder", where=path, hint="it holds one folder of images per class")
    if not paths.is_folder(path):
        return _from_file(path)
    names = [f.rsplit("/", 1)[-1] for f in paths.list_files(path) if f.rsplit("/", 1)[0] == path.rstrip("/")]
    if any("idx3-ubyte" in n for n in names):
        return _mnist(path, names)
    if any(n in ("test_batch", "test") for n in names) and any(n in ("batches.meta", "meta") for n in names):
        return _cifar(path, ["test_batch"] if "test_batch" in names else ["test"])
    for suffix, reader in ((".tar", _from_tars), (".parquet", _from_parquet)):
        if any(n.endswith(suffix) for n in names):
            return reader(path, [paths.join(path, n) for n in sorted(names) if n.endswith(suffix)])
    return read_image_folder(path)


def _from_file(path: str) -> Dataset:
    if path.endswith(".tar"):
        return _from_tars(path, [path])
    if path.endswith(".parquet"):
        return _from_parquet(path, [path])
    if path.lower().endswith((".csv", ".tsv")):
        rows = _table_rows(path)
        label = _column(rows, _LABEL_COLUMNS, path)
        return _of_rows(path, rows, label, _file_reader(path, rows))
    if "idx3-ubyte" in path:
        folder, name = path.rsplit("/", 1)
        return _mnist(folder, [name])
    return _cifar(path.rsplit("/", 1)[0], [path.rsplit("/", 1)[-1]])


def read_image_folder(root: str) -> Dataset:
    """A dataset whose folders are its classes.

    Raises:
        InputError: The folder is missing, or has no images in at least two class folders.
    """
    if not paths.is_folder(root):
        raise InputError("no such dataset folder", where=root, hint="it holds one folder of images per class")
    base = root.rstrip("/")
    relative = [f[len(base) + 1 :] for f in paths.list_files(base, suffixes=IMAGE_SUFFIXES)]
    inside = [name for name in relative if "/" in name]
    classes = tuple(sorted({name.split("/", 1)[0] for name in inside}))
    if len(classes) < 2:
        raise InputError(
            "not an image folder",
            where=root,
            expected="at least two class folders with images",
            found=f"{len(classes)} with {len(inside)} images",
        )
    number = {name: i for i, name in enumerate(classes)}
    files = tuple((name, number[name.split("/", 1)[0]]) for name in sorted(inside))
    return Dataset(root, classes, files, lambda i: paths.read_bytes(paths.join(root, files[i][0])))


def _labelled(
    root: str, ids: Sequence[str], labels: Sequence[Sequence[str]], read: Callable[[int], Picture],
    classes: Sequence[str] | None = None,
) -> Dataset:  # fmt: skip
    """A dataset from ids and the names of each image's classes; the classes sorted unless given."""
    if classes is None:
        found = {name for names in labels for name in names}
        digits = all(name.isdecimal() for name in found)
        classes = sorted(found, key=(lambda n: (int(n), n)) if digits else None)
    if len(classes) < 2:
        raise InputError("a dataset needs at least two classes", where=root, found=f"{len(classes)}")
    number = {name: i for i, name in enumerate(classes)}
    several = None
    if any(len(names) != 1 for names in labels):
        several = np.zeros((len(ids), len(classes)), dtype=bool)
        for i, names in enumerate(labels):
            several[i, [number[n] for n in names]] = True
    files = tuple((i, number[names[0]] if names else 0) for i, names in zip(ids, labels, strict=True))
    return Dataset(root, tuple(classes), files, read, several)


def _column(rows: Sequence[Mapping[str, Any]], names: Iterable[str], where: str) -> str:
    for name in names:
        if rows and name in rows[0]:
            return name
    found = ", ".join(rows[0]) if rows else "no rows"
    raise ContractError("the table lacks a column", where=where, expected=" or ".join(names), found=found)


def _table_rows(path: str) -> list[dict[str, Any]]:
    with paths.open_input(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        separator = "\t" if path.lower().endswith(".tsv") else ","
        return list(csv.DictReader(text, delimiter=separator))


def _file_reader(path: str, rows: Sequence[Mapping[str, Any]]) -> Callable[[int], Picture]:
    column, folder = _column(rows, _PATH_COLUMNS, path), path.rsplit("/", 1)[0] if "/" in path else "."

    def read(i: int) -> Picture:
        name = str(rows[i][column])
        return paths.read_bytes(name if name.startswith("/") or "://" in name else paths.join(folder, name))

    return read


def _ids(rows: Sequence[Mapping[str, Any]], more: Sequence[str]) -> list[str]:
    """Each row's own id where there is one that differs from row to row, else its path or number."""
    for name in (*_ID_COLUMNS, *more):
        if rows and name in rows[0] and isinstance(rows[0][name], str | int):
            found = [str(row[name]) for row in rows]
            if len(set(found)) == len(found):
                return found
    return [f"{i:08}" for i in range(len(rows))]


def _of_rows(
    root: str, rows: Sequence[Mapping[str, Any]], label: str, read: Callable[[int], Picture]
) -> Dataset:
    """``a|b`` in a text column, or a list, names several classes."""
    labels = []
    for row in rows:
        value = row[label]
        names = (
            value
            if isinstance(value, list | tuple)
            else str(value).split("|")
            if value not in (None, "")
            else []
        )
        labels.append([str(n) for n in names])
    return _labelled(root, _ids(rows, _PATH_COLUMNS), labels, read)


def _parquet_rows(root: str, files: Sequence[str]) -> tuple[list[dict[str, Any]], Callable[[int], Picture]]:
    rows = tables.read_files(files).to_pylist()
    column = _column(rows, _IMAGE_COLUMNS, root)

    def read(i: int) -> Picture:
        value = rows[i][column]
        data = (
            value.get("bytes") if isinstance(value, dict) else value
        )  # Hugging Face's struct of bytes and path
        return data if isinstance(data, bytes) else b""

    return rows, read


def _from_parquet(root: str, files: Sequence[str]) -> Dataset:
    rows, read = _parquet_rows(root, files)
    return _of_rows(root, rows, _column(rows, _LABEL_COLUMNS, root), read)


def _tar_rows(
    files: Sequence[str], wanted: Iterable[str]
) -> tuple[list[dict[str, Any]], Callable[[int], Picture]]:
    reader, rows, places = ShardReader(), [], []
    for tar in files:
        for key, parts in tar_members(tar).items():
            image = tar_image(parts)
            if image is not None:
                text = {
                    e: reader.read(tar, *parts[e]).decode("utf-8", "replace").strip()
                    for e in wanted
                    if e in parts
                }
                rows.append({"key": key, **text})
                places.append((tar, *image))
    return rows, lambda i: reader.read(*places[i])


def _from_tars(root: str, files: Sequence[str]) -> Dataset:
    rows, read = _tar_rows(files, ("cls", "label"))
    return _of_rows(root, rows, _column(rows, ("cls", "label"), root), read)


def _unzipped(path: str) -> bytes:
    data = paths.read_bytes(path)
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _idx(path: str) -> np.ndarray:
    """The array of an idx file (MNIST's form): uint8 of any shape."""
    data = _unzipped(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != 8:
        raise InputError("not an idx file of bytes", where=path, expected="00 00 08", found=data[:3].hex(" "))
    dimensions = data[3]
    shape = tuple(int(n) for n in np.frombuffer(data, ">i4", dimensions, 4))
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if values.size != np.prod(shape):
        raise InputError(
            "a truncated idx file", where=path, expected=f"{np.prod(shape):,}", found=f"{values.size:,}"
        )
    return values.reshape(shape)


def _mnist(folder: str, names: Sequence[str]) -> Dataset:
    """The test images if both splits are there."""
    images = sorted(n for n in names if "images" in n and "idx3-ubyte" in n)
    chosen = next((n for n in images if n.startswith("t10k") or "test" in n), images[0])
    labels = _idx(paths.join(folder, chosen.replace("images", "labels").replace("idx3", "idx1")))
    pixels = _idx(paths.join(folder, chosen))
    if pixels.ndim != 3 or len(labels) != len(pixels):
        raise InputError(
            "images and labels do not fit", where=paths.join(folder, chosen), found=str(pixels.shape)
        )
    classes = [str(i) for i in range(int(labels.max()) + 1)]
    ids = [f"{chosen.split('-')[0]}-{i:05}" for i in range(len(pixels))]
    read = lambda i: np.repeat(pixels[i][:, :, None], 3, axis=2)  # noqa: E731
    return _labelled(folder, ids, [[str(int(n))] for n in labels], read, classes)


class _Plain(pickle.Unpickler):
    """Unpickles arrays, lists and dictionaries, and nothing that could run code."""

    _ALLOWED = frozenset({
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
        ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict"),
    })  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not data")
        return super().find_class(module, name)


def _unpickled(path: str) -> dict[Any, Any]:
    try:
        found = _Plain(io.BytesIO(paths.read_bytes(path)), encoding="latin1").load()
    except Exception as error:  # pickles fail in any way they like
        raise InputError("not a pickled CIFAR batch", where=path, found=str(error)[:200]) from error
    if not isinstance(found, dict):
        raise InputError("not a pickled CIFAR batch", where=path, found=type(found).__name__)
    return {k.decode() if isinstance(k, bytes) else k: v for k, v in found.items()}


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _cifar(folder: str, names: Sequence[str]) -> Dataset:
    """CIFAR-10's or CIFAR-100's pickled batches (fine labels)."""
    batches = [_unpickled(paths.join(folder, n)) for n in names]
    try:
        pixels = np.concatenate([np.asarray(b["data"], np.uint8) for b in batches])
        labels = [int(n) for b in batches for n in b.get("labels") or b["fine_labels"]]
        ids = [_text(n) for b in batches for n in b.get("filenames", [])] or [
            f"{i:05}" for i in range(len(labels))
        ]
        images = pixels.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("not a CIFAR batch", where=folder, found=str(error)) from error
    meta = next((m for m in ("batches.meta", "meta") if paths.exists(paths.join(folder, m))), None)
    named = _unpickled(paths.join(folder, meta)) if meta else {}
    classes = list(named.get("label_names", named.get("fine_label_names", [])))
    classes = [_text(c) for c in classes] or [str(i) for i in range(max(labels) + 1)]
    return _labelled(folder, ids, [[classes[n]] for n in labels], lambda i: images[i].copy(), classes)


def read_captioned(path: str, *, captions: str | None = None) -> Captioned:
    """Images with captions: WebDataset tars or folders of them, Parquet, or CSV with a path and a caption column.

    Rows that name the same image are its captions; a list column holds several.

    Args:
        path: Where they lie.
        captions: Column, or ending in tars, if another than the usual names.

    Raises:
        InputError: Missing or damaged.
        ContractError: No column of captions.
    """
    if not paths.exists(path):
        raise InputError("no such dataset", where=path, hint="a folder of tars or Parquet, or a CSV file")
    inside = paths.list_files(path) if paths.is_folder(path) else [path]
    tars = [f for f in inside if f.endswith(".tar")]
    parquet = [f for f in inside if f.endswith(".parquet")]
    names = (captions,) if captions else _CAPTION_COLUMNS
    if tars:
        rows, read = _tar_rows(tars, (captions or "txt",))
        column, same = captions or "txt", None
    elif parquet:
        rows, read = _parquet_rows(path, parquet)
        column, same = (
            _column(rows, names, path),
            next((c for c in _ID_COLUMNS if rows and c in rows[0]), None),
        )
    else:
        table = next((f for f in inside if f.lower().endswith((".csv", ".tsv"))), None)
        if table is None:
            raise InputError("no captions here", where=path, expected="tars, Parquet or CSV")
        rows = _table_rows(table)
        read = _file_reader(table, rows)
        column, same = _column(rows, names, table), _column(rows, _PATH_COLUMNS, table)
    return _grouped(path, rows, column, same, read)


def _grouped(
    path: str,
    rows: Sequence[Mapping[str, Any]],
    column: str,
    same: str | None,
    read: Callable[[int], Picture],
) -> Captioned:
    """One image per value of the column ``same``, with all its captions, in the order of the rows."""
    names = [str(row[same]) for row in rows] if same else _ids(rows, ())
    firsts: dict[str, int] = {}
    texts: dict[str, list[str]] = {}
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        value: Any = row.get(column)
        found = [
            str(v) for v in (value if isinstance(value, list | tuple) else [value]) if v and str(v).strip()
        ]
        if found:
            firsts.setdefault(name, i)
            texts.setdefault(name, []).extend(found)
    if not firsts:
        raise InputError("no image has a caption", where=path, found=f"{len(rows)} rows")
    places = list(firsts.values())
    bare = tuple(dict.fromkeys(name for name in names if name not in firsts))
    captions_of = tuple(tuple(texts[n]) for n in firsts)
    return Captioned(path, tuple(firsts), captions_of, lambda i: read(places[i]), bare)
