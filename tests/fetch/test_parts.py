"""Parts of images: whole, whatever an engine does with attempts at them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.fetch import parts
from pipeline.fetch.client import Answer
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.decode import Decoder
from pipeline.fetch.images import Stored
from pipeline.fetch.policy import Refusal, Target, parse_url
from pipeline.fetch.staging import Bodies, GroupStaging


class Slow(Decoder):
    """Makes each body a picture of that name, but for those that take too long this time."""

    def __init__(self, late: bytes, while_decoding: Callable[[], object] = lambda: None) -> None:
        super().__init__(FetchConfig())
        self.late, self.while_decoding = late, while_decoding

    def decode(self, bodies: Iterable[bytes]) -> Iterator[Stored | Refusal]:
        for body in list(bodies):
            if body == self.late:
                self.while_decoding()
                yield Refusal("decode_error", "killed: time")
            else:
                yield Stored(b"picture of " + body, 8, 8, 8, 8, "{}")


def staged(work: Path) -> str:
    """A part of three bodies; returns its name."""
    targets = [t for t in (parse_url(f"http://h.example/{n}") for n in "abc") if isinstance(t, Target)]
    answers = ((t, Answer(http_status=200, body=t.path[1:].encode())) for t in targets)
    assert sum(GroupStaging(str(work), 1, 0).write(answers)) == 3
    (name,) = parts.undecoded(str(work))
    return name


def images_of(work: Path, name: str) -> dict[str, bytes]:
    rows = pq.read_table(work / "decoded" / f"{name}.parquet").to_pylist()
    with Bodies(str(work)) as bodies:
        return {r["fetch_url"][-1]: bodies.read(r) for r in rows if r["reason"] is None}


def test_attempts_at_one_part_never_mix_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, config = str(tmp_path), FetchConfig()
    name = staged(tmp_path)

    def dies(*given: Any) -> None:
        raise KeyboardInterrupt

    def other_attempt() -> None:
        assert parts.decode_part(name, work, config, Slow(b"b")) == 2
        monkeypatch.setattr(parts, "write_parquet", dies)

    # The first attempt publishes its images after the other one is done, and dies before its index is there.
    with pytest.raises(KeyboardInterrupt):
        parts.decode_part(name, work, config, Slow(b"a", other_attempt))
    assert images_of(tmp_path, name) == {"a": b"picture of a", "c": b"picture of c"}
    monkeypatch.undo()
    assert parts.decode_part(name, work, config, Slow(b"c")) == 0, "it is done"
    assert parts.undecoded(work) == []
