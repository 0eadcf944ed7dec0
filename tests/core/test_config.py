from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.core.config import (
    config_sha256,
    from_table,
    input_path,
    input_paths,
    override,
    read_toml,
    resolve,
    unhashed,
)
from pipeline.core.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    cap: int = 20_000
    mode: Literal["cap", "sample"] = "cap"
    name: str | None = None
    sizes: tuple[int, ...] = (1, 2)
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    images: tuple[str, ...] = input_paths()
    detector: str | None = input_path()
    threads: int = unhashed(1)

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"cap must be at least 1, is {self.cap}")


def test_values_are_taken_and_converted() -> None:
    table = {"cap": 5, "sizes": [3, 4], "inner": {"rate": 2}, "name": "x"}
    made = from_table(Settings, table, where="[select]")
    assert made == Settings(cap=5, sizes=(3, 4), inner=Inner(rate=2.0), name="x")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"capp": 1}, "did you mean 'cap'"),
        ({"zzzzz": 1}, "known keys: cap"),
        ({"cap": "5"}, "expected int, found str '5'"),
        ({"cap": True}, "expected int, found bool True"),
        ({"flag": 1}, "expected bool"),
        ({"mode": "both"}, "expected one of cap, sample"),
        ({"sizes": "12"}, "wrong type"),
        ({"sizes": [1, "2"]}, r"sizes\[1\]"),
        ({"inner": {"rat": 1}}, "did you mean 'rate'"),
        ({"inner": 3}, "expected a table"),
        ({"cap": 0}, "cap must be at least 1, is 0"),
    ],
)
def test_wrong_tables_are_refused_with_the_mend(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_table(Settings, table, where="[select]")
    assert "[select]" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_set_reads_toml_values_and_plain_words() -> None:
    table = override({"select": {"cap": 1}}, ["select.cap=7", "select.name=word", "fetch.sizes=[1, 2]"])
    assert table == {"select": {"cap": 7, "name": "word"}, "fetch": {"sizes": [1, 2]}}


@pytest.mark.parametrize("assignment", ["cap", "=3", "a.b.c=1"])
def test_set_refuses_what_it_cannot_place(assignment: str) -> None:
    with pytest.raises(ConfigError):
        override({"a": {"b": 1}}, [assignment])


def test_hash_follows_the_result_and_nothing_else() -> None:
    base = config_sha256(Settings())
    assert config_sha256(Settings(images=("a",), detector="d", threads=8)) == base
    assert config_sha256(Settings(cap=1)) != base
    assert config_sha256(Settings(inner=Inner(rate=0.1))) != base
    assert resolve(Settings(images=("a",)))["images"] == ["a"]


def test_hash_is_stable_between_versions() -> None:
    # sha256 of {"rate":0.5}: a finished run must stay recognisable after an update.
    assert config_sha256(Inner()) == hashlib.sha256(b'{"rate":0.5}').hexdigest()


def test_files_that_are_not_toml(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("a = = 1")
    with pytest.raises(ConfigError, match="not a TOML file"):
        read_toml(bad)
    with pytest.raises(InputError, match="cannot read"):
        read_toml(tmp_path / "none.toml")
