"""Object stores (``s3://``, ``gs://``, …): what differs from a disk.

A store has no folders, no rename and no append; an object is there, whole, when its upload is closed. Its failures
(throttled, unreachable, refused) are errors of their own, :class:`~pipeline.core.errors.StoreError`: an ``OSError`` in
the middle of a file would be taken for a damaged record, and the record lost.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, Final

from pipeline.core.errors import StoreError, WitError

PROTOCOLS: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"})
# Where the exceptions of stores' clients are defined: what they raise is often no OSError.
_CLIENTS: Final = frozenset({"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure"})
_ACCESS: Final = "check the credentials and what they may do with this bucket"
_AGAIN: Final = (
    "the store's own retries are spent: run the same command again, it goes on from what is finished"
)


def is_store(fs: Any) -> bool:
    """Whether an fsspec file system is an object store."""
    names = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not PROTOCOLS.isdisjoint(names)


def failure(error: BaseException, where: str) -> StoreError | None:
    """The error of ours for a store's, as one line; ``None`` if it is something else."""
    client = type(error).__module__.partition(".")[0] in _CLIENTS
    if isinstance(error, WitError) or not (client or isinstance(error, OSError)):
        return None
    found = f"{type(error).__name__}: {error}"[:300]
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return StoreError("the store refuses access", where=where, found=found, hint=_ACCESS)
    if isinstance(error, FileNotFoundError):
        return StoreError("the store has no such bucket or object", where=where, found=found)
    return StoreError("the store failed", where=where, found=found, hint=_AGAIN)


@contextlib.contextmanager
def store_errors(where: str) -> Iterator[None]:
    """Turns what a store's client raises into one clear line."""
    try:
        yield
    except Exception as error:
        told = failure(error, where)
        if told is None:
            raise
        raise told from error


class StoreFile(io.RawIOBase):
    """A store's open file; what fails is told as the store's failure.

    Args:
        file: As fsspec opened it, for reading or for writing.
        path: For messages.
    """

    def __init__(self, file: Any, path: str) -> None:
        super().__init__()
        self._file, self._path = file, path

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return bool(self._file.readable())

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return bool(self._file.writable())

    def seekable(self) -> bool:
        """Whether one can seek: only when reading."""
        return bool(self._file.seekable())

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from where the file stands."""
        with store_errors(self._path):
            return bytes(self._file.read(-1 if size is None else size))

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer as far as there are bytes."""
        with store_errors(self._path):
            return int(self._file.readinto(buffer))

    def write(self, data: Any) -> int:
        """Adds bytes to the upload."""
        with store_errors(self._path):
            return int(self._file.write(data))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Where the file stands."""
        return int(self._file.tell())

    def close(self) -> None:
        """Ends reading, or publishes what was written."""
        if not self.closed:
            try:
                with store_errors(self._path):
                    self._file.close()
            except BaseException:
                self.discard()
                raise
            super().close()

    def discard(self) -> None:
        """Gives up an upload: nothing appears, and no part of it stays in the store if it can still be told so."""
        with contextlib.suppress(Exception):
            self._file.discard()
        # fsspec's files publish what they hold when they are collected, unless they are closed.
        self._file.closed = True
        super().close()
