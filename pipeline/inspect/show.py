"""The inspection as aligned text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.answers import aligned

_FINDINGS = {
    "never_match": "never match",
    "same_to_matching": "same to the matching as another query",
    "lower_case_only": "match captions in lower case only",
    "offensive": "offensive by the word list",
    "disambiguated": 'titles that end in "(…)"',
    "short": "one or two characters",
    "numbers": "numbers only",
}
_TITLES = {"count": "count", "pmi": "PMI", "npmi": "NPMI", "views": "views"}


def text(found: Mapping[str, Any]) -> str:
    """Everything that was found, as lines without an end."""
    if "why" in found:
        return "\n".join(line for one in found["why"] for line in _answer(one))
    asked = (f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in found["asked"].items())
    lines = [f"{found['folder']}: {found['queries']:,} queries", ", ".join(asked), ""]
    lines += aligned(
        [
            ("source", "queries", "alone"),
            *((s["source"], f"{s['queries']:,}", f"{s['alone']:,}") for s in found["sources"]),
        ]
    )
    lines += ["", "overlaps"]
    lines += aligned(
        [(" + ".join(o["sources"]) or "none of these", f"{o['queries']:,}") for o in found["overlaps"]]
    )
    for source, border in found["borderline"].items():
        lines += _borderline(source, border)
    return "\n".join([*lines, *_doctor(found["doctor"], found["matching"], found["queries"])])


def life(found: Mapping[str, Any]) -> str:
    """What happened to a pair, or to all pairs of a URL, as lines without an end."""
    lines = []
    for pair in found["pairs"]:
        lines += ["", f"{pair['pair_id']}  {pair['url'] or ''}".rstrip()]
        width = max((len(stage["stage"]) for stage in pair["stages"]), default=0)
        for stage in pair["stages"]:
            lines.append(f"  {stage['stage']:<{width}}  {stage['outcome']}")
            lines += [f"  {'':<{width}}    {reason}" for reason in stage["reasons"]]
    if found["lost"]:
        lines += ["", f"{found['asked']}: dropped before it became a pair"]
        lines += [
            f"  {row['reason']}" + (f": {row['detail']}" if row["detail"] else "") for row in found["lost"]
        ]
    return "\n".join(lines[1:])


def _answer(one: Mapping[str, Any]) -> list[str]:
    where = f"in the list as query {one['query_id']:,}" if one["in_list"] else "not in the list"
    return [f"{one['text']!r}: {where}", *(f"  {reason}" for reason in one["reasons"])]


def _borderline(source: str, border: Mapping[str, Any]) -> list[str]:
    if not border["last_in"] and not border["first_out"]:
        return []
    lines = ["", f"{source}s next to the cut, by {_TITLES[border['measure']]}"]
    sides = [("last in", border["last_in"]), ("first out", border["first_out"] or [])]
    rows = [row for _, side in sides for row in side]
    columns = [name for name in rows[0] if name != "query"]
    table = [("", "", *(_TITLES[c] for c in columns))]
    for name, side in sides:
        table += [
            (name if not n else "", row["query"], *(_number(row[c]) for c in columns))
            for n, row in enumerate(side)
        ]
    lines += aligned(table, words=2)
    if border["first_out"] is None:
        lines.append("  first out: unknown, the folder has no counts/ of this source")
    return lines


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def _doctor(doctor: Mapping[str, Any], matching: str, queries: int) -> list[str]:
    lines = ["", f"doctor, {matching} matching"]
    lines += aligned(
        [
            (title, f"{doctor[name]['count']:,}", f"{doctor[name]['count'] / max(queries, 1):.2%}")
            for name, title in _FINDINGS.items()
            if name in doctor
        ]
    )
    for name, title in _FINDINGS.items():
        if name not in doctor:
            continue
        examples = doctor[name]["examples"]
        if examples:
            lines += ["", f"{title}, as", *(f"  {_example(e)}" for e in examples)]
    return lines


def _example(example: str | Sequence[str] | Mapping[str, str]) -> str:
    if isinstance(example, str):
        return example
    if isinstance(example, Mapping):
        return f"{example['query']}  ({example['why']})"
    return " = ".join(example)
