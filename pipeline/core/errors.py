"""The one exception tree.

Every error a user can meet says, in one line: what went wrong, where, what was expected and what was found,
and what to do next. The command line prints that line and nothing else (a traceback only with ``--debug``).
"""

from __future__ import annotations


class WitError(Exception):
    """Base of all errors that this project raises on purpose; ``str()`` is one line for a person.

    Args:
        what: What went wrong, without a full stop.
        where: File, folder, key or flag that it is about.
        expected: What should have been there.
        found: What was there instead.
        hint: The next command or change that mends it.
    """

    exit_status = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.found, self.hint = what, where, expected, found, hint
        parts = [what if where is None else f"{where}: {what}"]
        if expected is not None:
            parts.append(f"expected {expected}")
        if found is not None:
            parts.append(f"found {found}")
        line = ", ".join(parts)
        if hint:
            line += f"; {hint}"
        super().__init__(" ".join(line.split()))

    def __reduce__(self) -> tuple[object, ...]:
        # Beam workers send exceptions across processes; keyword-only arguments need help to be pickled.
        fields = (self.what, self.where, self.expected, self.found, self.hint)
        return (_rebuild, (type(self), *map(_plain, fields)))


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str) else str(value)


def _rebuild(kind: type[WitError], what: str, *rest: str | None) -> WitError:
    where, expected, found, hint = rest
    return kind(what, where=where, expected=expected, found=found, hint=hint)


class UsageError(WitError):
    """The command line or a configuration file is wrong (exit status 2)."""

    exit_status = 2


class ConfigError(UsageError):
    """A configuration key is unknown, has the wrong type or an impossible value."""


class InputError(WitError):
    """An input is missing, unreadable or not what it claims to be."""


class ContractError(InputError):
    """A table does not follow the contract that its reader needs."""


class UnfinishedInputError(InputError):
    """An input folder has no ``manifest.json``: the stage that makes it has not finished."""


class OutputError(WitError):
    """The output folder cannot be used: read-only, full, foreign files, or another configuration's result."""


class StoreError(WitError):
    """An object store refused, throttled or did not answer: no fault of the data, so no record is dropped for it."""


class StageFailedError(WitError):
    """A stage ran and failed for a reason that is not in its inputs or outputs alone."""
