"""What a worker and its decoding process say to each other: frames over pipes, and results within them."""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import IO

from pipeline.fetch.images import Stored
from pipeline.fetch.policy import Refusal

_LENGTH = struct.Struct(">I")


def send(pipe: IO[bytes], data: bytes) -> None:
    """Writes one frame.

    Raises:
        OSError: Nobody reads any more.
    """
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes | None:
    """Reads one frame; ``None`` if the other side has gone."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    return data if len(data) == length else None


def packed(found: Stored | Refusal) -> bytes:
    """A result as bytes: its fields as a line of JSON, then the image."""
    if isinstance(found, Refusal):
        return json.dumps([found.reason, found.detail]).encode()
    fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "jpeg"}
    return json.dumps(fields).encode() + b"\n" + found.jpeg


def unpacked(data: bytes) -> Stored | Refusal:
    """The reverse of :func:`packed`."""
    line, _, jpeg = data.partition(b"\n")
    fields = json.loads(line)
    if isinstance(fields, list):
        return Refusal(*fields)
    return Stored(jpeg=jpeg, **fields | {"rights": tuple(fields["rights"])})
