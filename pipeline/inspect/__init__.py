"""``wit inspect``, ``wit why``: what finished tables hold, what is doubtful in them, why something is (not) there."""

from pipeline.inspect.command import COMMANDS

__all__ = ["COMMANDS"]
