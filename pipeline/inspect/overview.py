"""What a query list holds: queries by source, overlaps, and the entries next to each source's cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inspect.listed import NUMBERS, QueryList
from queries import runners_up
from queries.bigrams import npmi
from queries.merge import SOURCES


def examine(listed: QueryList, *, top: int) -> dict[str, Any]:
    """The overview.

    Args:
        listed: The list.
        top: How many entries on each side of a cut.
    """
    return {
        "asked": _asked(listed),
        "sources": _sources(listed),
        "overlaps": _overlaps(listed),
        "borderline": {source: borderline(listed, source, top) for source in NUMBERS},
    }


def _asked(listed: QueryList) -> dict[str, Any]:
    """The numbers that the list was made with; what its maker did not say is left out."""
    found = {
        name: listed.config.get(name) for name in ("preset", "size", "min_count", "pmi_min", "views_min")
    }
    found["bigram_min_count"] = listed.thresholds.get("bigram_min_count")
    found["corpus_tokens"] = listed.manifest.extra.get("corpus_tokens")
    return {name: value for name, value in found.items() if value is not None}


def _sources(listed: QueryList) -> list[dict[str, Any]]:
    return [
        {
            "source": source,
            "queries": int(listed.having(source).sum()),
            "alone": int((listed.sources == 1 << place).sum()),
        }
        for place, source in enumerate(SOURCES)
    ]


def _overlaps(listed: QueryList) -> list[dict[str, Any]]:
    """Every set of sources that some query has, the most frequent first."""
    counts = np.bincount(listed.sources, minlength=1 << len(SOURCES))
    return [
        {"sources": [s for place, s in enumerate(SOURCES) if mask >> place & 1], "queries": int(counts[mask])}
        for mask in sorted(range(len(counts)), key=lambda m: (-counts[m], m))
        if counts[mask]
    ]


def borderline(listed: QueryList, source: str, top: int) -> dict[str, Any]:
    """The last entries that a source brought in and the first that stayed out.

    Args:
        listed: The list.
        source: ``word``, ``bigram`` or ``title``; synsets have no cut.
        top: How many of each.

    Returns:
        ``measure``; ``last_in``, weakest first; ``first_out``, strongest first, or ``None`` where the folder holds no
        side table of the source.
    """
    measure = listed.measure(source)
    values = listed.numbers(measure)
    least = listed.thresholds.get(measure)
    # Weaker entries are there because another source brought them in.
    own = listed.having(source) & (values >= (-np.inf if least is None else least))
    rows = np.flatnonzero(own)
    rows = rows[np.lexsort((rows, values[rows]))][:top]
    shown = listed.table.take(pa.array(rows)).select(["query", "count", "pmi", "views"]).to_pylist()
    last_in = [{k: v for k, v in row.items() if k in _shown(source)} for row in shown]
    return {"measure": measure, "last_in": last_in, "first_out": _first_out(listed, source, top)}


def _shown(source: str) -> tuple[str, ...]:
    return {"word": ("query", "count"), "bigram": ("query", "count", "pmi"), "title": ("query", "views")}[
        source
    ]


def _first_out(listed: QueryList, source: str, top: int) -> list[dict[str, Any]] | None:
    found = listed.left_out(f"{source}s")
    if found is None:
        return None
    table, _ = found
    measure = listed.measure(source)
    if source == "title":
        # A title beyond the cut may still be a query that another source brought in.
        inside = pc.is_in(pc.utf8_lower(table["title"]), value_set=listed.table["query"].combine_chunks())
        of_article = pc.equal(table["state"], runners_up.ARTICLE)
        table = table.filter(pc.and_(of_article, pc.invert(inside)))
    if source == "bigram":
        enough = pc.greater_equal(table["count"], listed.thresholds.get("bigram_min_count") or 1)
        table = table.filter(enough) if pc.any(enough).as_py() else table
        if measure == "npmi":
            share = npmi(
                table["pmi"].to_numpy(), table["count"].to_numpy(), listed.manifest.extra["corpus_tokens"]
            )
            table = table.append_column("npmi", pa.array(share))
    name = table.column_names[0]
    best = table.sort_by([(measure, "descending"), (name, "ascending")]).slice(0, top)
    return list(best.rename_columns({name: "query"}).select(list(_shown(source))).to_pylist())
