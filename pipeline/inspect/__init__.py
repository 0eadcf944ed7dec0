"""``wit inspect``: what a finished table holds, what is doubtful in it, and why something is or is not there."""

from pipeline.inspect.command import COMMANDS

__all__ = ["COMMANDS"]
