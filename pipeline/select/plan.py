"""``wit plan``: how large a selection would be, before it is paid for.

The balance is not estimated but done, on arrays, once for each cap; only a sample's numbers are scaled: a sample of a
share s of the URLs is balanced with s times the cap, and its counts are divided by s. What a selection costs follows
from its pairs and a few stated assumptions (:class:`Costs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pipeline.core import manifest, paths, scaling
from pipeline.core.answers import aligned
from pipeline.core.contracts import SHARDS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.progress import duration
from pipeline.core.scaling import Prices
from pipeline.select.balance import Balanced, choose_cap, choose_sample
from pipeline.select.pool import NO_HOST, Pool

CAPS: Final = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
ROUGH: Final = 20
"""Pairs per query below which a sample's plan is a per cent or more too low: full and empty queries even out less."""
WEBTEXT_WORDS: Final = 6_700_000_000
"""WebText is 40 GB of text (Radford et al. 2019), some 6 bytes a word; the paper (2.2): WIT has about as many words."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a pair costs: assumptions, unless finished shards were measured.

    Attributes:
        image_bytes: Bytes of a shard per picture (27,000: LAION-400M's shards, 270 MB for 10,000 at 256 pixels).
        download_bytes: Bytes of a download (93,000: img2dataset's 1,350 pictures a second through 1 Gbit/s).
        success: Share of pairs whose picture is got.
        host_gap_s: Least time between the starts of two requests to one host, as in ``wit fetch``.
        mbit_per_s: Bandwidth.
        measured: The shards that the first and the third were measured on.
    """

    image_bytes: float = 27_000
    download_bytes: float = 93_000
    success: float = 1.0
    host_gap_s: float = 1.0
    mbit_per_s: float = 1_000
    measured: str | None = None

    def __post_init__(self) -> None:
        for name in ("image_bytes", "download_bytes", "mbit_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if not self.host_gap_s >= 0:
            raise ValueError(f"host_gap_s={self.host_gap_s} must be 0 or more")

    def measured_on(self, folder: str) -> Costs:
        """The same with bytes and success as some finished shards have them.

        Raises:
            InputError: The folder is missing, unfinished, holds no shards or no picture.
        """
        found = manifest.read(folder, made_by=SHARDS.made_by, contract=SHARDS.id)
        if not found.rows:
            raise InputError("no picture to measure", where=folder)
        size = sum(paths.size(file) for file in paths.list_files(folder, suffixes=(".tar",)))
        return replace(
            self, image_bytes=size / found.rows, success=found.rows / found.rows_in, measured=folder
        )


def scaled(pool: Pool, cap: int) -> int:
    """The cap that a sample is balanced with.

    Raises:
        UsageError: The sample is too small for the cap.
    """
    if cap * pool.share < 1:
        raise UsageError(
            "--sample is too small for this cap",
            found=f"{pool.share:g} x {cap:,} = {pool.share * cap:.2g} pairs per query",
            expected="at least 1, better 100",
        )
    return max(1, round(cap * pool.share))


def balanced(pool: Pool, cap: int, mode: str) -> Balanced:
    """The balance of a pool with a cap that is scaled already."""
    if mode == "cap":
        return choose_cap(pool.wishes, pool.rank, cap=cap)
    return choose_sample(pool.wishes, pool.pair, cap=cap)


def ladder(pool: Pool, caps: Sequence[int], *, target: int | None) -> list[int | None]:
    """The caps to plan for: those that were asked for, or some that can be told; ``None`` is no cap.

    Raises:
        InputError: A folder of pairs was made with a smaller cap.
    """
    most = pool.made_with
    for cap in caps:
        if most is not None and cap > most:
            raise InputError(
                f"the folder lacks what its cap of {most:,} turned away",
                expected=f"a cap of at most {most:,}",
                found=f"{cap:,}",
                hint="plan from --candidates, or select once with a larger cap",
            )
    if caps or target is not None:
        return [*dict.fromkeys(sorted(caps))]
    told = [cap for cap in CAPS if cap * pool.share >= 1]
    return [*told, None] if most is None else [*(cap for cap in told if cap < most), most]


def estimate(
    pool: Pool, cap: int | None, mode: str, costs: Costs, prices: Prices | None = None
) -> dict[str, Any]:
    """What a selection with this cap would be.

    Args:
        pool: What it chooses from.
        cap: Most pairs per query; ``None`` keeps all.
        mode: ``cap`` or ``sample``.
        costs: What a pair costs.
        prices: What the stages' machines cost.
    """
    matched = pool.wishes.matched
    most = max(1, int(matched.max(initial=0)))
    limit = most if cap is None else scaled(pool, cap)
    found = balanced(pool, limit, mode)
    kept = found.query_id >= 0
    # A folder of pairs lacks those that its own cap turned away, but says how many queries did so.
    capped = pool.capped if cap is not None and cap == pool.made_with else int(found.capped.sum())
    asked = np.flatnonzero(kept & (pool.host != NO_HOST))
    urls = asked[np.unique(pool.url[asked], return_index=True)[1]]
    by_host = np.bincount(pool.host[urls], minlength=1)
    largest = int(by_host.max())
    whole = 1 / pool.share
    pairs, words, downloads = int(kept.sum()), int(pool.words[kept].sum()), len(urls)
    stages = scaling.costs(
        candidates=pool.read * whole,
        urls=downloads * whole,
        pictures=len(asked) * whole * costs.success,
        prices=prices or Prices(),
    )
    return {
        "cap": cap,
        "pairs": round(pairs * whole),
        "head_share": float(matched[matched > limit].sum() / max(1, matched.sum())),
        "queries_capped": capped,
        "words": round(words * whole),
        "words_of_webtext": words * whole / WEBTEXT_WORDS,
        "not_fetchable": round((pairs - len(asked)) * whole),
        "urls": round(downloads * whole),
        "bytes": round(len(asked) * whole * costs.success * costs.image_bytes),
        "largest_host": pool.hosts[int(by_host.argmax())] if largest else None,
        "largest_host_urls": round(largest * whole),
        "hours_largest_host": largest * whole * costs.host_gap_s / 3600,
        "hours_bandwidth": downloads * whole * costs.download_bytes * 8 / (costs.mbit_per_s * 1e6) / 3600,
        "stages": [scaling.as_dict(stage) for stage in stages],
    }


def solve(pool: Pool, target: int, mode: str) -> int:
    """The least cap that keeps so many pairs; more room never loses a pair, so it is found by halving.

    Raises:
        InputError: There are not so many pairs.
    """
    low = 1
    high = max(1, int(pool.wishes.matched.max(initial=0)))
    if pool.made_with is not None:
        high = min(high, pool.made_with)
    wanted = target * pool.share

    def kept(cap: int) -> int:
        return int((balanced(pool, cap, mode).query_id >= 0).sum())

    if (most := kept(high)) < wanted:
        raise InputError(
            "no cap keeps so many pairs",
            expected=f"{target:,} pairs",
            found=f"{round(most / pool.share):,}",
            hint="extract more candidates"
            if pool.made_with is None
            else "plan from --candidates, or select once with a larger cap",
        )
    while low < high:
        middle = (low + high) // 2
        if kept(middle) < wanted:
            low = middle + 1
        else:
            high = middle
    # The least whole number that is scaled back to at least this.
    return max(1, int(np.ceil(low / pool.share)))


def text(found: Mapping[str, Any]) -> str:
    """A plan as lines without an end; the last two columns are hours of `wit fetch`, whichever is longer."""
    share, costs = found["share"], found["assumed"]
    matched = f"{found['queries_matched']:,} of {found['queries']:,} queries matched"
    counts = f"{found['read']:,} candidates read, {found['eligible']:,} pairs to balance"
    lines = [f"{counts}, {matched}, mode {found['mode']}"]
    if share < 1:
        lines.append(
            f"a sample of {share:.3%} of the candidates: it is balanced with {share:.3g} times the cap, "
            "counts and hours are scaled up"
        )
        least = min((plan["cap"] for plan in found["plans"] if plan["cap"] is not None), default=0)
        if 0 < least * share < ROUGH:
            lines.append(
                f"cap {least:,} leaves a query {max(1, round(least * share))} pairs in the sample: "
                "expect it some per cent too low"
            )
    head = (
        "cap",
        "pairs",
        "head share",
        "capped",
        "words",
        "of WebText",
        "size",
        "largest host",
        "bandwidth",
    )
    rows = [head, *(_row(plan) for plan in found["plans"])]
    lines += ["", *aligned(rows, words=0)]
    for plan in found["plans"]:
        if plan.get("target"):
            lines.append(f"cap {plan['cap']:,} is the least that keeps {plan['target']:,} pairs")
    last = found["plans"][-1]
    if last["largest_host"]:
        lines += ["", f"largest host: {last['largest_host']}, {last['largest_host_urls']:,} URLs"]
    picture = f"{costs['image_bytes']:,.0f} bytes a picture, {costs['success']:.1%} of the pairs get one"
    if costs["measured"]:
        lines.append(f"measured on {costs['measured']}: {picture}")
    lines.append(
        f"assumed: {'' if costs['measured'] else f'{picture}, '}{costs['download_bytes']:,.0f} bytes a download, "
        f"{costs['host_gap_s']:g} s between requests to a host, {costs['mbit_per_s']:,.0f} Mbit/s"
    )
    chosen = next((plan for plan in found["plans"] if plan.get("target")), last)
    return "\n".join([*lines, "", *_stages(chosen, found["prices"])])


def _stages(plan: Mapping[str, Any], prices: Mapping[str, float]) -> list[str]:
    """What the stages of one plan would take, as lines."""
    head = ("", "size", "core-hours", "on the way", "worker", "alone", "dollars")
    rows = [
        (
            stage["stage"],
            f"{stage['units']:,.0f} {stage['unit']}",
            f"{stage['core_hours']:,.2f}",
            _size(stage["way_bytes"]),
            _size(1e6 * stage["worker_mb"]),
            f"{stage['serial_hours']:,.2f}" if stage["serial_hours"] else "",
            f"{stage['dollars']:,.2f}",
        )
        for stage in plan["stages"]
    ]
    cap = "no cap" if plan["cap"] is None else f"cap {plan['cap']:,}"
    machines = f"${prices['core_hour']:g} a core-hour with 4 GB, ${prices['way_gb']:g} a GB on the way"
    return [
        f"the stages at {cap}, by measured rates (docs/scale.md); alone: hours in which one worker is at work",
        "",
        *aligned([head, *rows], words=2),
        "",
        f"assumed: {machines}, {scaling.EVALUATION_PICTURES:,} evaluation pictures",
    ]


def _row(plan: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "none" if plan["cap"] is None else f"{plan['cap']:,}",
        f"{plan['pairs']:,}",
        f"{plan['head_share']:.1%}",
        f"{plan['queries_capped']:,}",
        f"{plan['words']:,}",
        f"{plan['words_of_webtext']:.2%}",
        _size(plan["bytes"]),
        duration(3600 * plan["hours_largest_host"]),
        duration(3600 * plan["hours_bandwidth"]),
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
