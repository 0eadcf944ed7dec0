"""Tar shards: equal samples give equal bytes.

Members are USTAR with fixed owner, mode and time, so a shard's bytes depend on its samples alone. The layout is
img2dataset's (``{key}.jpg``, ``{key}.txt``, ``{key}.json`` in a row), which webdataset reads as it is.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from pipeline.core import paths
from pipeline.core.errors import InputError


@dataclass(frozen=True)
class Sample:
    """One sample of a shard.

    Attributes:
        key: Common stem of its members; no dots.
        members: Bytes by extension, in the order they are stored.
    """

    key: str
    members: Mapping[str, bytes]


def shard_name(index: int) -> str:
    """Five digits, as img2dataset names shards."""
    return f"{index:05d}"


def sample_key(shard: int, row: int, *, rows_per_shard: int = 10_000) -> str:
    """img2dataset's key: shard number times the power of ten that holds a shard's rows, plus the row."""
    digits = max(1, len(str(max(1, rows_per_shard) - 1)))
    return f"{shard * 10**digits + row:0{5 + digits}d}"


def write_tar(file: IO[bytes], samples: Iterable[Sample]) -> int:
    """Writes samples to an open file and returns how many."""
    count = 0
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for extension, data in sample.members.items():
                info = tarfile.TarInfo(f"{sample.key}.{extension}")
                info.size = len(data)
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(data))
            count += 1
    return count


def write_shard(path: str, samples: Iterable[Sample]) -> int:
    """Writes a shard atomically and returns how many samples it holds."""
    with paths.open_atomic(path) as file:
        return write_tar(file, samples)


def read_shard(path: str) -> Iterator[Sample]:
    """Streams the samples of a shard.

    Raises:
        InputError: The tar is damaged or truncated; what came before has been yielded.
    """
    with paths.open_input(path, decompress=False) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|") as tar:
                key: str | None = None
                members: dict[str, bytes] = {}
                for info in tar:
                    if not info.isfile():
                        continue
                    stem, _, extension = info.name.rpartition("/")[2].partition(".")
                    if stem != key and key is not None:
                        yield Sample(key, members)
                        members = {}
                    key = stem
                    opened = tar.extractfile(info)
                    members[extension.lower()] = b"" if opened is None else opened.read()
                if key is not None:
                    yield Sample(key, members)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise InputError("damaged tar shard", where=path, found=str(error)) from error


def plain_members(path: str) -> dict[str, tuple[int, int]]:
    """Where the members of a shard begin and how long they are, by name, to read one without those before it.

    Only headers are read. What follows a header of another kind (long names, links) or a damaged one is left out:
    :func:`read_shard` reads those.
    """
    found: dict[str, tuple[int, int]] = {}
    with paths.open_input(path, decompress=False) as file:
        place = 0
        while True:
            file.seek(place)
            header = file.read(512)
            name, _, _ = header[:100].partition(b"\0")
            if len(header) < 512 or not name or header[156:157] not in (b"0", b"\0"):
                return found
            try:
                size = int(header[124:136].rstrip(b" \0"), 8)
            except ValueError:
                return found
            found[name.decode(errors="replace")] = (place + 512, size)
            place += 512 + -(-size // 512) * 512
