"""The life of an output folder: refuse, skip, resume or make it; the manifest comes last and must add up.

While a stage works its folder holds ``unfinished.json``; when it is done that file gives way to
``manifest.json``. A killed stage therefore leaves a folder that no reader trusts and that the same command
starts again.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.core import manifest, paths, tables, worklog
from pipeline.core.config import config_sha256, decisive, resolve
from pipeline.core.errors import OutputError, StageFailedError
from pipeline.core.manifest import Manifest
from pipeline.core.options import RunOptions as RunOptions

MARKER = "unfinished.json"
OWNED = ("part-*.parquet", "dropped/*", ".*.tmp")
MEND = "dropped/ there names them: mend the input"


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage's body reports when its files are written.

    Attributes:
        rows: Rows written.
        rows_in: Rows that came in, counted where they came in; must equal rows + dropped.
        dropped: Rows dropped by reason; ``None`` counts them from ``dropped/``.
        engine: What ran it.
        extra: Stage-specific manifest entries.
        damaged: What of the input was damaged, by what was wrong, and of how many; for stages whose rows are not
            records of their input.
    """

    rows: int
    rows_in: int
    dropped: Mapping[str, int] | None = None
    engine: str = "local"
    extra: Mapping[str, Any] = field(default_factory=dict)
    damaged: tuple[Mapping[str, int], int] | None = None


def run_stage(
    body: Callable[[str], StageResult],
    *,
    stage: str,
    contract: str,
    config: Any,
    inputs: Sequence[str],
    out: str,
    options: RunOptions,
    owned: Sequence[str] = (),
    resumable: bool = False,
    damage: Collection[str] = (),
    mend: str = MEND,
) -> Manifest | None:
    """Runs a stage's body into an output folder and writes its manifest.

    Args:
        body: Gets the folder, writes files into it, returns what it did.
        stage: The command's name, as ``select`` or ``dedup search``.
        contract: ``name/version`` of the result.
        config: The stage's configuration dataclass.
        inputs: Paths the stage reads; their identity is recorded and compared on a re-run.
        out: Output folder.
        options: How to run.
        owned: Name patterns, relative to the folder, of files the stage makes beside parts and ``dropped/``.
        resumable: Keep the files of an unfinished run with the same configuration and inputs: the body goes on
            from them.
        damage: Drop reasons that say that input was damaged or could not be had; all others are filters and policy.
            ``options.max_bad_fraction`` is about these.
        mend: What to do when too much is.

    Returns:
        The manifest, of this run or of the finished folder that made it unnecessary; ``None`` for a dry run.

    Raises:
        OutputError: The folder belongs to something else, or cannot be written.
        StageFailedError: Rows in are not rows out plus dropped, or more is damaged than the options allow.
    """
    described = [manifest.describe(path) for path in inputs]
    if options.dry_run:
        _print_plan(stage, contract, config, described, out)
        return None
    patterns = (*OWNED, *owned)
    sha = config_sha256(config)
    done = _finished(out, stage, sha, config, described, options)
    if done is not None:
        if not options.quiet:
            print(f"{stage}: already done, nothing to do: {out}", file=sys.stderr)
        return done
    marker = json.loads(unfinished_marker(stage, config, described))
    _prepare(out, marker, patterns, resumable=resumable)
    started, began = manifest.now(), time.monotonic()
    worklog.begin(stage, out)
    with paths.output_errors(out):
        result = body(out)
        if not paths.exists(paths.join(out, "dropped")):
            dropped: Mapping[str, int] = result.dropped or {}
        else:
            dropped = tables.count_dropped(out) if result.dropped is None else result.dropped
        _check_sum(stage, out, result, dropped)
        lost = result.damaged or ({r: dropped[r] for r in damage if r in dropped}, result.rows_in)
        check_damage(stage, out, *lost, options.max_bad_fraction, mend)
        finished = Manifest(
            contract=contract,
            stage=stage,
            rows=result.rows,
            rows_in=result.rows_in,
            dropped=dict(sorted(dropped.items())),
            inputs=described,
            config=resolve(config),
            config_sha256=sha,
            version=manifest.version(),
            engine=result.engine,
            started_at=started,
            finished_at=manifest.now(),
            extra=result.extra,
        )
        paths.write_bytes(paths.join(out, manifest.NAME), finished.to_json().encode())
        paths.remove(paths.join(out, MARKER))
    worklog.say(
        stage, ends=out, rows_in=finished.rows_in, rows_out=finished.rows, **finished.dropped,
        seconds=time.monotonic() - began,
    )  # fmt: skip
    if not options.quiet:
        print(closing_table(finished, out), file=sys.stderr)
    return finished


def unfinished_marker(stage: str, config: Any, described: Sequence[Mapping[str, Any]]) -> bytes:
    """What ``unfinished.json`` says: an equal one lets a resumable stage go on.

    Args:
        stage: The command's name.
        config: Its configuration.
        described: Its inputs, of :func:`pipeline.core.manifest.describe`.
    """
    inputs = [manifest.identity(d) for d in described]
    marker = {"stage": stage, "config_sha256": config_sha256(config), "inputs": inputs}
    return (json.dumps(marker, sort_keys=True) + "\n").encode()


def _check_sum(stage: str, out: str, result: StageResult, dropped: Mapping[str, int]) -> None:
    total = result.rows + sum(dropped.values())
    if total != result.rows_in:
        raise StageFailedError(
            f"{stage}: rows do not add up",
            where=out,
            expected=f"{result.rows_in:,} in = rows out + dropped",
            found=f"{result.rows:,} + {sum(dropped.values()):,} ({dict(dropped)})",
            hint="this is a defect of the stage: please report it",
        )


def check_damage(
    stage: str, out: str, damaged: Mapping[str, int], of: int, most: float | None, mend: str = MEND
) -> None:
    """Stops a stage whose input was damaged more than allowed; its folder stays unfinished.

    Args:
        stage: The command's name.
        out: Its folder.
        damaged: Records by what was wrong.
        of: Records that came in.
        most: Share that may be damaged; ``None``: any.
        mend: What to do when more is.

    Raises:
        StageFailedError: More are.
    """
    total = sum(damaged.values())
    if most is None or total <= most * of:
        return
    reason, times = min(damaged.items(), key=lambda item: (-item[1], item[0]))
    raise StageFailedError(
        f"{stage}: too much of the input is damaged or could not be had",
        where=out,
        expected=f"at most {most:.2%} of {of:,}",
        found=f"{total:,} ({total / of:.2%}), most of them {reason} ({times:,})",
        hint=f"{mend}, or run again with a larger --max-bad-fraction",
    )


def _finished(
    out: str, stage: str, sha: str, config: Any, described: Sequence[Mapping[str, Any]], options: RunOptions
) -> Manifest | None:
    if not paths.exists(paths.join(out, manifest.NAME)):
        return None
    found = manifest.read(out)
    if found.stage != stage:
        raise OutputError(
            "the folder holds the result of another command",
            where=out,
            expected=f"wit {stage}",
            found=f"wit {found.stage}",
            hint="choose another --out folder",
        )
    same_inputs = [manifest.identity(i) for i in found.inputs] == [manifest.identity(i) for i in described]
    if found.config_sha256 == sha and same_inputs:
        return found
    if options.overwrite:
        return None
    what = _differences(found, config)
    if not same_inputs:
        what.append("other inputs")
    raise OutputError(
        "the folder is finished, but with another configuration or other inputs",
        where=out,
        found=", ".join(what) or "another version's configuration",
        hint="pass --overwrite to replace it or choose another --out folder",
    )


def _differences(found: Manifest, config: Any) -> list[str]:
    now = decisive(config)
    changed = [key for key in now if now[key] != found.config.get(key)]
    return [f"{key} was {found.config.get(key)!r}, is {now[key]!r}" for key in changed[:3]]


def _prepare(out: str, marker: Mapping[str, Any], patterns: Sequence[str], *, resumable: bool) -> None:
    marker_path, manifest_path = paths.join(out, MARKER), paths.join(out, manifest.NAME)
    before: Mapping[str, Any] | None = None
    if paths.exists(out):
        if not paths.is_folder(out):
            raise OutputError("a file stands where the output folder should be", where=out)
        if paths.exists(marker_path):
            try:
                before = json.loads(paths.read_bytes(marker_path))
            except ValueError:
                before = {}
            stage = before.get("stage", marker["stage"])
            if stage != marker["stage"]:
                raise OutputError(
                    f"the folder holds an unfinished `wit {stage}`",
                    where=out,
                    hint="choose another --out folder",
                )
        elif not paths.exists(manifest_path) and paths.list_files(out):
            raise OutputError(
                "the folder is not empty and was not made by this command",
                where=out,
                hint="choose an empty or new --out folder",
            )
    paths.make_folder(out)
    with paths.output_errors(out):
        if not (resumable and before == dict(marker)):
            # Until all is cleared the marker is one that no run has: killed here, the next run clears again, whatever
            # its configuration. It stands before the old manifest goes: a folder with neither would be a stranger's.
            _write_marker(marker_path, {"stage": marker["stage"], "clearing": True})
            paths.remove(manifest_path)
            clear(out, patterns)
            _write_marker(marker_path, marker)


def _write_marker(path: str, marker: Mapping[str, Any]) -> None:
    paths.write_bytes(path, (json.dumps(marker, sort_keys=True) + "\n").encode())


def clear(out: str, patterns: Sequence[str]) -> None:
    """Removes files of a folder whose relative names match a pattern; everything else stays."""
    fs, root = paths.filesystem(out)
    for name in paths.find(out):
        relative = name[len(root) :].lstrip("/")
        if any(fnmatch.fnmatch(relative, pattern) for pattern in patterns):
            fs.rm(name)


def _print_plan(
    stage: str, contract: str, config: Any, described: Sequence[Mapping[str, Any]], out: str
) -> None:
    lines = [f"wit {stage}: would write {contract} to {out}"]
    for item in described:
        size = f"{item['rows']:,} rows" if "rows" in item else f"{item['bytes']:,} bytes"
        lines.append(f"  reads  {item['path']}  ({size})")
    lines += [f"  {key} = {value!r}" for key, value in resolve(config).items()]
    print("\n".join(lines))


def closing_table(done: Manifest, out: str) -> str:
    """What came in, went out and was dropped, by reason, and where the result is."""
    lines = [f"{done.stage}: {done.rows_in:,} in, {done.rows:,} out, {sum(done.dropped.values()):,} dropped"]
    width = max((len(r) for r in done.dropped), default=0)
    for reason, count in sorted(done.dropped.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"    {reason:<{width}}  {count:>12,}")
    lines.append(f"  -> {out}")
    return "\n".join(lines)
