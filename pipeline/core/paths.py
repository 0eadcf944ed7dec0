"""Finding, opening and atomically writing files, local or remote (any fsspec URL)."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.core.errors import InputError, OutputError, WitError
from pipeline.core.stores import StoreFile, failure, is_store, store_errors

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcp", "gcs": "gcp"}


def join(folder: str, *names: str) -> str:
    """Joins a folder (path or URL) and names with single slashes."""
    return "/".join([folder.rstrip("/") or "/", *names])


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path and the path as that filesystem spells it."""
    # Workers write what other processes list: a listing that is remembered would be wrong.
    options = {"use_listings_cache": False} if "://" in path else {}
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(path, **options))
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(path.partition("://")[0])
        hint = f"pip install 'webimagetext[{extra}]'" if extra else None
        raise InputError(
            "no reader for this kind of address", where=path, found=str(error), hint=hint
        ) from error


def exists(path: str) -> bool:
    """Whether a file or folder is there; a store's folder is there while it holds something."""
    fs, name = filesystem(path)
    return _stored_as(fs, name, path) is not None if is_store(fs) else bool(fs.exists(name))


def is_folder(path: str) -> bool:
    """Whether the path is a folder."""
    fs, name = filesystem(path)
    return _stored_as(fs, name, path) == "directory" if is_store(fs) else bool(fs.isdir(name))


def _stored_as(fs: Any, name: str, path: str) -> str | None:
    """``file``, ``directory`` or nothing; a store that does not answer is an error, not an answer."""
    with store_errors(path):
        try:
            return str(fs.info(name)["type"])
        except FileNotFoundError:
            return None


def size(path: str) -> int:
    """Size of a file in bytes."""
    fs, name = filesystem(path)
    with store_errors(path) if is_store(fs) else contextlib.nullcontext():
        return int(fs.size(name) or 0)


def find(folder: str) -> list[str]:
    """All files below a folder, hidden ones too, as the file system spells them; sorted."""
    fs, root = filesystem(folder)
    with store_errors(folder) if is_store(fs) else contextlib.nullcontext():
        return sorted(fs.find(root))


def list_files(folder: str, *, suffixes: Sequence[str] = ()) -> list[str]:
    """All files below a folder, sorted by path; hidden and temporary ones are left out.

    Args:
        folder: Path or URL.
        suffixes: Keep only names that end so (any case); empty keeps all.
    """
    _, root = filesystem(folder)
    wanted = tuple(s.lower() for s in suffixes)
    found = []
    for name in find(folder):
        relative = name[len(root) :].lstrip("/")
        if any(part.startswith(".") for part in relative.split("/")):
            continue
        if not wanted or name.lower().endswith(wanted):
            found.append(join(folder, relative))
    return sorted(found)


def expand(patterns: Sequence[str], *, suffixes: Sequence[str] = (), what: str = "input files") -> list[str]:
    """Turns PATH arguments (files, folders, globs, URLs) into a sorted list of files without repeats.

    Args:
        patterns: What the user gave.
        suffixes: Which files of a folder count; a file named directly always counts.
        what: Name of the thing for messages.

    Raises:
        InputError: A path does not exist, a glob matches nothing, or a folder holds no such file.
    """
    files: set[str] = set()
    for pattern in patterns:
        fs, name = filesystem(pattern)
        kind = _stored_as(fs, name, pattern) if is_store(fs) else None
        if kind == "file" or (kind is None and fs.isfile(name)):
            files.add(pattern)
        elif kind == "directory" or (kind is None and fs.isdir(name)):
            inside = list_files(pattern, suffixes=suffixes)
            if not inside:
                ends = " or ".join(suffixes) or "any name"
                raise InputError(
                    f"the folder holds no {what}", where=pattern, expected=f"files ending in {ends}"
                )
            files.update(inside)
        elif any(sign in pattern for sign in "*?["):
            matches = fs.glob(name)
            if not matches:
                raise InputError(f"no {what} match this pattern", where=pattern)
            head = pattern.partition("://")[0] + "://" if "://" in pattern else ""
            files.update(head + m.lstrip("/") if head else m for m in matches if fs.isfile(m))
        else:
            raise InputError(f"no such {what}", where=pattern, hint="check the path")
    return sorted(files)


def open_input(path: str, *, decompress: bool = True) -> IO[bytes]:
    """Opens a file for reading bytes; gzip, bzip2 and zstd are recognised by their first bytes.

    Raises:
        InputError: The file cannot be opened.
    """
    fs, name = filesystem(path)
    try:
        raw = cast("IO[bytes]", fs.open(name, "rb"))
    except FileNotFoundError as error:
        raise InputError("cannot open", where=path, found=error.strerror or error) from error
    except Exception as error:
        told = failure(error, path) if is_store(fs) else None
        if told is None and isinstance(error, OSError):
            raise InputError("cannot open", where=path, found=error.strerror or error) from error
        raise told or error from error
    if is_store(fs):
        raw = cast("IO[bytes]", StoreFile(raw, path))
    if not decompress:
        return raw
    magic = raw.read(4)
    raw.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if magic[:3] == b"BZh":
        return bz2.BZ2File(raw)
    if magic == b"\x28\xb5\x2f\xfd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return io.BufferedReader(cast("io.RawIOBase", reader))
    return raw


@contextlib.contextmanager
def output_errors(where: str) -> Iterator[None]:
    """Turns a full disk, a read-only folder and their like into one clear line."""
    try:
        yield
    except WitError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise OutputError(
                "the disk is full", where=where, hint="free some space and run the same command again"
            ) from error
        if error.errno in _REFUSED:
            raise OutputError(
                "not allowed to write here", where=where, hint="choose another --out folder"
            ) from error
        raise OutputError("cannot write", where=where, found=error.strerror or str(error)) from error
    except Exception as error:
        told = failure(error, where)
        if told is None:
            raise
        raise told from error


def make_folder(folder: str) -> None:
    """Creates a folder and its parents; a store has none, and no bucket is made because a name was misspelt."""
    fs, name = filesystem(folder)
    if is_store(fs):
        return
    with output_errors(folder):
        fs.makedirs(name, exist_ok=True)


@contextlib.contextmanager
def open_atomic(path: str) -> Iterator[IO[bytes]]:
    """Opens a file that appears under its name only when it is complete.

    Local files are written beside the target, synced and renamed. Object stores publish an object when its upload
    is closed, so there the target is written directly and discarded on an error. Other file systems rename.
    """
    fs, name = filesystem(path)
    folder, base = os.path.split(name)
    temporary = os.path.join(folder, f".{base}.{uuid.uuid4().hex[:8]}.tmp")
    if is_store(fs):
        with store_errors(path):
            file = StoreFile(fs.open(name, "wb"), path)
        try:
            yield cast("IO[bytes]", file)
        except BaseException:
            file.discard()
            raise
        file.close()
        return
    if not isinstance(fs, LocalFileSystem):
        with output_errors(path):
            fs.makedirs(folder, exist_ok=True)
            try:
                with fs.open(temporary, "wb") as remote:
                    yield remote
                fs.mv(temporary, name)
            except BaseException:
                with contextlib.suppress(Exception):
                    fs.rm(temporary)
                raise
        return
    with output_errors(path):
        os.makedirs(folder, exist_ok=True)
        try:
            with open(temporary, "wb") as local:
                yield local
                local.flush()
                os.fsync(local.fileno())
            os.replace(temporary, name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file atomically."""
    with open_atomic(path) as file:
        file.write(data)


def read_bytes(path: str) -> bytes:
    """Reads a whole file as it is, without decompressing."""
    with open_input(path, decompress=False) as file:
        return file.read()


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Pieces of files of one file system, by first byte and the one after the last; a store is asked for all at once.

    Raises:
        InputError: A file cannot be opened, or ends before a piece does.
        StoreError: The store failed.
    """
    if not ranges:
        return []
    fs, _ = filesystem(ranges[0][0])
    names = {path: filesystem(path)[1] for path in {path for path, _, _ in ranges}}
    starts, ends = [start for _, start, _ in ranges], [end for _, _, end in ranges]
    with store_errors(ranges[0][0]) if is_store(fs) else contextlib.nullcontext():
        # What fails takes its piece's place, so it can be told which file it was.
        pieces = fs.cat_ranges([names[path] for path, _, _ in ranges], starts, ends, on_error="return")
    return [_piece(fs, piece, *asked) for piece, asked in zip(pieces, ranges, strict=True)]


def _piece(fs: Any, piece: bytes | BaseException, path: str, start: int, end: int) -> bytes:
    if isinstance(piece, BaseException):
        told: WitError | None = failure(piece, path) if is_store(fs) else None
        if told is None and isinstance(piece, OSError):
            told = InputError("cannot open", where=path, found=piece.strerror or piece)
        raise told or piece from piece
    if len(piece) != end - start:
        raise InputError(
            "the file is cut short",
            where=path,
            expected=f"bytes {start:,} to {end:,}",
            found=f"{len(piece):,}",
        )
    return piece


def remove(path: str) -> None:
    """Removes a file or a folder with all it holds; nothing happens if it is not there."""
    fs, name = filesystem(path)
    with output_errors(path), store_errors(path) if is_store(fs) else contextlib.nullcontext():
        if exists(path):
            fs.rm(name, recursive=True)


def remove_leftover(path: str) -> None:
    """Removes what no reader looks at, as far as it can be: an engine's late attempt may still write into it."""
    with contextlib.suppress(WitError):
        remove(path)
