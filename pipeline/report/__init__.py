"""The report of a run: one self-contained page and a Croissant data card."""

from pipeline.report.command import COMMANDS, write_report

__all__ = ["COMMANDS", "write_report"]
