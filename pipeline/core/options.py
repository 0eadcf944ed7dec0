"""How a command runs, as opposed to what it computes; light, because every command line needs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a stage, as opposed to what it computes.

    Attributes:
        overwrite: Replace a finished folder made with another configuration.
        dry_run: Print the plan and do nothing.
        quiet: No progress line and no closing table.
        max_bad_fraction: Share of the rows in that may be damaged; ``None``: any.
        beam: Options right of ``--``, for Beam's ``PipelineOptions``.
    """

    overwrite: bool = False
    dry_run: bool = False
    quiet: bool = False
    max_bad_fraction: float | None = None
    beam: tuple[str, ...] = ()
