"""The page's sections on the data: the funnel, the balance, sample pairs, what the pairs are like."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping

from pipeline.core import charts
from pipeline.core.charts import Axis, Marker, Series
from pipeline.report import figures
from pipeline.report.figures import FUNNEL, AbsentError, Run
from pipeline.report.markup import highlighted, panels, picture, plural, shown, table
from pipeline.report.samples import Pair, dropped_examples, sample_pairs

# Folder -> what the step does, what comes in, what goes out.
STEPS = {
    "candidates": ("Read the pages", "found on the pages", "candidates with a usable URL and text"),
    "pairs": ("Clean, match queries, balance", "candidates", "pairs selected"),
    "shards": ("Fetch the images", "pairs", "pairs with an image"),
    "checkpoint": ("Train", "pairs with an image", "pairs trained on"),
}
MAX_BARS = 8
LANGUAGE_NAMES = {"und": "undetermined"}
SOURCE_NAMES = {"alt": "alt text", "title": "title", "figcaption": "figure caption", "caption": "caption"}


def funnel(run: Run) -> str:
    """Each step's rows in, rows out and every reason for a drop, on one scale."""
    steps = [(name, run.stages[name]) for name in FUNNEL if name in run.stages]
    if not steps:
        raise AbsentError("not part of this run")
    top = max(made.rows_in for _, made in steps) or 1
    return f'<ol class="funnel">{"".join(_step(run, name, top) for name, _ in steps)}</ol>'


def _step(run: Run, name: str, top: int) -> str:
    title, comes, goes = STEPS[name]
    made = run.stages[name]
    lost = sum(made.dropped.values())
    reasons = "".join(
        f"<li><span>{_words(reason)}</span><b>{count:,}</b></li>"
        for reason, count in sorted(made.dropped.items(), key=lambda item: (-item[1], item[0]))
        if count
    )
    listed = f'<ul class="reasons">{reasons}</ul>{_examples(run, name)}' if reasons else ""
    share = f"{charts.percent(made.rows / made.rows_in)} kept" if made.rows_in else "nothing came in"
    return (
        f'<li><div class="head"><strong>{title}</strong><span><b>{made.rows_in:,}</b> {comes} '
        f"<i>→</i> <b>{made.rows:,}</b> {goes}</span></div>"
        f'<div class="flow" role="img" aria-label="{share}">'
        f'<span class="kept" style="width:{made.rows / top:.3%}"></span>'
        f'<span class="lost" style="width:{lost / top:.3%}"></span><em>{share}</em></div>'
        + (listed or '<p class="quiet">Nothing was dropped here.</p>')
        + "</li>"
    )


def _words(reason: str) -> str:
    return shown(reason.replace("_", " ").replace("-", " "), 60)


def _examples(run: Run, name: str) -> str:
    found = dropped_examples(run, name)
    rows = "".join(
        f"<dt>{_words(reason)}</dt><dd>{'; '.join(f'<q>{shown(text, 90)}</q>' for text in found[reason])}</dd>"
        for reason in sorted(found, key=lambda r: (-run.stages[name].dropped.get(r, 0), r))
    )
    return f'<details><summary>Examples</summary><dl class="examples">{rows}</dl></details>' if rows else ""


def balance(run: Run) -> str:
    """Rank against count before and after balancing, and the most frequent queries."""
    found = figures.balance(run)
    if not found.matched:
        raise AbsentError("no text held a query")
    cap = (
        [Marker(found.cap, f"cap: {found.cap:,} per query")]
        if found.cap and found.cap <= 4 * found.matched[0]
        else []
    )
    chart = charts.line_chart(
        [
            Series(name="before: texts that hold the query", points=figures.by_rank(found.matched)),
            Series(name="after: pairs that count for it", points=figures.by_rank(found.selected)),
        ],
        title="How often each query occurs",
        x=Axis(label="rank of the query (most frequent first)", log=True),
        y=Axis(label="texts or pairs", log=True),
        across=cap,
        height=330,
    )
    before, after = found.head_share()
    listed = f" of the list's {found.queries:,}" if found.queries else ""
    head = max(1, round(len(found.matched) * 0.01))
    told = (
        f"<p>{plural(len(found.matched), 'query', 'queries')}{listed} occur in the texts. The most frequent 1% "
        f"({plural(head, 'query', 'queries')}) hold {charts.percent(before)} of all matches and "
        f"{charts.percent(after)} of the selected pairs."
    )
    if found.capped is not None and found.cap:
        reached = plural(found.capped, "query", "queries") if found.capped else "No query"
        told += f" {reached} reached the cap of {found.cap:,}."
    told += " A pair may hold several queries; it counts for one of them.</p>"
    rows = [[shown(q, 40), f"{matched:,}", f"{selected:,}"] for q, matched, selected in found.top]
    top = table(["most frequent queries", "texts with it", "pairs counted"], rows, numeric=(1, 2))
    return f'{told}<div class="two"><div class="panel">{chart}</div><div class="panel">{top}</div></div>'


def pairs(run: Run) -> str:
    """A mosaic of sample pairs with the query each counts for."""
    return f'<div class="mosaic">{"".join(_pair(p) for p in sample_pairs(run))}</div>'


def _pair(one: Pair) -> str:
    query = shown(one.query, 40) if one.query is not None else f"query {one.query_id}"
    more = f" <small>+ {one.matches - 1:,} more</small>" if one.matches > 1 else ""
    return (
        f"<figure>{picture(one.picture, one.caption)}<figcaption>{highlighted(one.caption, one.query)}"
        f'</figcaption><p class="chip">{query}{more}</p></figure>'
    )


def contents(run: Run) -> str:
    """Languages, text sources, text lengths, hosts and image sizes."""
    drawn: list[str] = []
    problem: AbsentError | None = None
    for part in (_texts, _images):
        try:
            drawn += part(run)
        except AbsentError as error:
            problem = error
    if not drawn and problem:
        raise problem
    return panels(drawn, kind="columns")


def _texts(run: Run) -> list[str]:
    found = figures.texts(run)
    drawn = [
        _bars(found.languages, "Languages of the pairs", names=LANGUAGE_NAMES),
        _bars(found.sources, "Where the text stood on the page", colour=2, names=SOURCE_NAMES),
    ]
    if found.dropped_languages:
        drawn.append(
            _bars(
                found.dropped_languages,
                "Languages of candidates dropped for theirs",
                colour=1,
                names=LANGUAGE_NAMES,
            )
        )
    drawn.append(_bars(found.hosts, "Hosts of the images"))
    median = figures.quantile(found.words, 0.5)
    words = Marker(median, f"median {median:,.0f}")
    longest = max(10.0, figures.quantile(found.words, 0.99) + 1)
    drawn.append(
        charts.histogram(
            found.words,
            title="Length of the texts",
            x=Axis(label="words (last bar: all longer)", low=0, high=longest),
            y_label="pairs",
            markers=[words],
        )
    )
    return drawn


def _images(run: Run) -> list[str]:
    found = figures.sizes(run)
    if not found.stored:
        return []
    drawn = []
    for counted, title in ((found.original, "Images as found"), (found.stored, "Images as stored")):
        if counted:
            median = figures.quantile(counted, 0.5)
            drawn.append(
                charts.histogram(
                    counted,
                    title=title,
                    x=Axis(
                        label="shorter side in pixels (last bar: all larger)",
                        low=0,
                        high=max(1.0, figures.quantile(counted, 0.99)),
                    ),
                    markers=[Marker(median, f"median {median:,.0f}")],
                )
            )
    return drawn


def _bars(
    counts: Counter[str], title: str, *, colour: int = 0, names: Mapping[str, str] | None = None
) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    total, rest = sum(counts.values()), sum(count for _, count in ranked[MAX_BARS:])
    note = f"{len(ranked) - MAX_BARS:,} more make up {charts.percent(rest / total)}" if rest else ""
    rows = [((names or {}).get(name, name), count) for name, count in ranked[:MAX_BARS]]
    return charts.bar_chart(rows, title=title, total=total, colour=colour, note=note)


def note(run: Run) -> str:
    """What the run's maker says about it, if anything."""
    # Single line ends are where an editor wrapped the text; empty lines part paragraphs.
    paragraphs = [" ".join(p.split()) for p in run.note.split("\n\n")]
    told = "".join(f"<p>{html.escape(p)}</p>" for p in paragraphs if p)
    return f'<aside class="note">{told}</aside>' if told else ""
