"""Configuration: frozen dataclasses filled from TOML tables, with strict keys and a stable hash.

A stage's configuration is a frozen, keyword-only dataclass whose field names carry their units and whose defaults
are the paper's numbers. ``--set table.key=value`` overrides one value. The resolved configuration and its hash are
written beside every output. Fields made with :func:`input_paths` name inputs: they are recorded but not hashed,
because the manifest follows inputs by their content, not by where they lie.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import ConfigError, InputError

ConfigT = TypeVar("ConfigT")


def input_paths() -> Any:
    """A field for input paths: any number, not part of the configuration's hash."""
    return dataclasses.field(default=(), metadata={"input": True})


def input_path() -> Any:
    """A field for one optional input path, not part of the configuration's hash."""
    return dataclasses.field(default=None, metadata={"input": True})


def unhashed(default: Any) -> Any:
    """A field that cannot change the result (worker counts, addresses of a local test server, …)."""
    return dataclasses.field(default=default, metadata={"unhashed": True})


def read_toml(path: str | Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        InputError: The file is missing or unreadable.
        ConfigError: It is not TOML.
    """
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InputError(
            "cannot read the configuration file", where=path, found=error.strerror or error
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("not a TOML file", where=path, found=str(error)) from error


def override(table: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Applies ``--set a.b=value`` assignments to a nested table and returns the new table.

    The value is read as a TOML value; what is not TOML is taken as a plain string.
    """
    result = _deep_copy(table)
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not key.strip():
            raise ConfigError("cannot read --set", expected="table.key=value", found=repr(assignment))
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            value = text
        *tables, last = key.strip().split(".")
        place = result
        for name in tables:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ConfigError("--set goes through a value that is not a table", where=key)
        place[last] = value
    return result


def _deep_copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _deep_copy(v) if isinstance(v, Mapping) else v for k, v in table.items()}


def from_table(cls: type[ConfigT], table: Mapping[str, Any], *, where: str) -> ConfigT:
    """Fills a configuration dataclass from a TOML table.

    Args:
        cls: A frozen dataclass.
        table: Keys and values as ``tomllib`` gives them.
        where: Name of the table or file for messages.

    Raises:
        ConfigError: Unknown key (with the nearest known one), wrong type, missing key, or a value that the
            dataclass's own ``__post_init__`` refuses with ``ValueError``.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            raise unknown_key(key, fields, where=where)
        values[key] = _convert(value, hints[key], where=f"{where}.{key}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError("a key is missing", where=where, found=str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error), where=where) from error


def unknown_key(key: str, known: typing.Iterable[str], *, where: str) -> ConfigError:
    """The error for a key nobody knows, naming the nearest known one."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return ConfigError(f"unknown key {key!r}", where=where, hint=hint)


def _convert(value: Any, hint: Any, *, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            if option is type(None):
                if value is None:
                    return None
                continue
            try:
                return _convert(value, option, where=where)
            except ConfigError:
                continue
        raise _wrong_type(value, hint, where)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError("unknown value", where=where, expected=_names(args), found=repr(value))
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _wrong_type(value, hint, where)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(v, args[0], where=f"{where}[{i}]") for i, v in enumerate(value))
        if len(args) != len(value):
            raise ConfigError("wrong number of values", where=where, expected=len(args), found=len(value))
        return tuple(_convert(v, a, where=where) for v, a in zip(value, args, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong_type(value, hint, where)
        return {str(k): _convert(v, args[1], where=f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise _wrong_type(value, "a table", where)
        return from_table(hint, value, where=where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any:
        return value
    if isinstance(value, bool) and hint is not bool:
        raise _wrong_type(value, hint, where)
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise _wrong_type(value, hint, where)


def _names(values: Sequence[Any]) -> str:
    return "one of " + ", ".join(map(str, values))


def _wrong_type(value: Any, hint: Any, where: str) -> ConfigError:
    name = getattr(hint, "__name__", str(hint)) if not typing.get_origin(hint) else str(hint)
    return ConfigError(
        "wrong type of value", where=where, expected=name, found=f"{type(value).__name__} {value!r}"
    )


def resolve(config: Any) -> dict[str, Any]:
    """The whole configuration as JSON-ready values, defaults included."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config), sort_keys=True)))


def decisive(config: Any) -> dict[str, Any]:
    """The part of a resolved configuration that can change the result: no inputs, no worker counts."""
    resolved = resolve(config)
    _remove_unhashed(type(config), resolved)
    return resolved


def config_sha256(config: Any) -> str:
    """SHA-256 (64 hex characters) of :func:`decisive`."""
    resolved = decisive(config)
    return hashlib.sha256(json.dumps(resolved, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _remove_unhashed(cls: Any, resolved: dict[str, Any]) -> None:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.metadata.get("input") or field.metadata.get("unhashed"):
            resolved.pop(field.name, None)
        elif dataclasses.is_dataclass(hints[field.name]) and isinstance(resolved.get(field.name), dict):
            _remove_unhashed(hints[field.name], resolved[field.name])
