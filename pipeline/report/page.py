"""The page itself: headline, key figures, sections in the order of the work, nothing loaded from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Callable
from importlib import resources

from pipeline.core import charts, model_card, paths
from pipeline.core.errors import InputError
from pipeline.report import croissant, data_sections, figures, result_sections, results
from pipeline.report.figures import AbsentError, Run
from pipeline.report.markup import shown

# Not even a hostile caption that slipped through could load or run anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# Anchor, title, what it shows, how it is made.
SECTIONS: tuple[tuple[str, str, str, Callable[[Run], str]], ...] = (
    (
        "funnel", "From web pages to training pairs",
        "Every row that came in went out or was dropped for a reason; bars share one scale.",
        data_sections.funnel,
    ),
    (
        "balance", "Balancing over queries",
        "A few queries occur everywhere. Each may count only so many pairs, so that rare things are seen too.",
        data_sections.balance,
    ),
    (
        "pairs", "Sample pairs",
        "Drawn by lot, one per query where possible. Marked: the query that the pair counts for.",
        data_sections.pairs,
    ),
    (
        "contents", "What the pairs are like",
        "Counted over all selected pairs and fetched images.",
        data_sections.contents,
    ),
    (
        "leaks", "Evaluation pictures found in the training set",
        ("A detector trained to see through resizing, cropping and recompression compared every evaluation picture "
        "with every training picture."),
        result_sections.leaks,
    ),
    ("training", "Training", "Thin: as logged. Thick: running mean.", result_sections.training),
    (
        "zero-shot", "Scores of the model",
        "Zero-shot: the model knows the classes by their names alone, put into prompts; it never saw these labels.",
        result_sections.zero_shot,
    ),
    (
        "overlap", "Did the leaks help?",
        ("All: every picture. Overlap: those found in the training set. Clean: the rest. One-tailed binomial test of "
        "Overlap's accuracy against Clean's, with a Clopper-Pearson interval on Overlap."),
        result_sections.overlap,
    ),
    (
        "provenance", "Where it all comes from",
        "What made each part, with what, and how long it took.",
        result_sections.provenance,
    ),
)  # fmt: skip


def write(run_folder: str) -> str:
    """Writes ``report.html``, ``croissant.json`` and, of a trained model, ``MODEL_CARD.md``; returns the page's path.

    Raises:
        InputError: The folder is missing or holds nothing of a run.
        OutputError: The folder cannot be written.
    """
    run = figures.open_run(run_folder)
    page = paths.join(run_folder, "report.html")
    paths.write_bytes(page, render(run).encode())
    paths.write_bytes(paths.join(run_folder, "croissant.json"), croissant.card(run).encode())
    if "checkpoint" in run.stages:
        paths.write_bytes(paths.join(run_folder, model_card.NAME), _model_card(run).encode())
    return page


def _model_card(run: Run) -> str:
    """The checkpoint's card, with those scores and overlaps that can be read."""
    names = (part.removeprefix("scores/") for part in run.stages if part.startswith("scores/"))
    scores = [name for name in names if _reads(results.score, run, name)]
    overlaps = run.part("overlaps") if _reads(results.overlaps, run) else None
    config = paths.join(run.part("checkpoint"), "config.json")
    try:
        architecture = results.read_json(config)
    except InputError:
        architecture = {}
    folder = run.folder.rstrip("/").rpartition("/")[2]
    return model_card.card(
        run.part("checkpoint"), name=str(architecture.get("model", folder)), architecture=architecture,
        scores=[run.part(f"scores/{name}") for name in scores], overlaps=overlaps,
    )  # fmt: skip


def _reads(reader: Callable[..., object], *given: object) -> bool:
    try:
        reader(*given)
    except InputError:
        return False
    return True


def render(run: Run) -> str:
    """The whole page."""
    style = charts.STYLE + resources.files("pipeline.report").joinpath("style.css").read_text("utf-8")
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _, _ in SECTIONS)
    body = "".join(_section(run, *one) for one in SECTIONS)
    card = f" · Model card: <code>{model_card.NAME}</code>" if "checkpoint" in run.stages else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(_title(run))}</title><style>{style}</style></head><body>"
        f'<header><p class="over">webimagetext · report of a run</p><h1>{html.escape(_title(run))}</h1>'
        f'<p class="lead">{_lead(run)}</p>{data_sections.note(run)}{_tiles(run)}<nav>{links}</nav></header>'
        f"<main>{body}</main><footer>Captions and pictures come from the pages that were read and belong to their "
        f"owners. Data card: <code>croissant.json</code>{card}</footer></body></html>\n"
    )


def _section(run: Run, anchor: str, title: str, told: str, made: Callable[[Run], str]) -> str:
    try:
        inside = f'<p class="told">{told}</p>{made(run)}'
    except AbsentError as error:
        inside = f'<p class="quiet">{_sentence(error)}</p>'
    except InputError as error:
        inside = f'<p class="problem">This part could not be read. {_sentence(error)}</p>'
    return f'<section id="{anchor}"><h2>{title}</h2>{inside}</section>'


def _sentence(error: InputError) -> str:
    line = str(error)
    return shown(line[:1].upper() + line[1:], 400) + "."


def _title(run: Run) -> str:
    for part, what in (
        ("shards", "image–text pairs"),
        ("pairs", "selected pairs"),
        ("candidates", "candidates"),
    ):
        if part in run.stages:
            return f"{run.stages[part].rows:,} {what} from the web"
    return "A run's results"


def _lead(run: Run) -> str:
    pairs = run.stages.get("pairs")
    cap = pairs.config.get("cap") if pairs else None
    most = f", at most {cap:,} pairs for each query" if isinstance(cap, int) else ""
    return (
        "A data set built like WIT (WebImageText), the training set of CLIP: pictures from web pages with the text "
        f"that stood beside them, kept if the text holds a query of a long list{most}."
    )


def _tiles(run: Run) -> str:
    tiles: list[tuple[str, str, str]] = []
    for part, name, more in (
        ("candidates", "candidates", "image URLs with a text"),
        ("pairs", "selected pairs", ""),
        ("shards", "fetched pairs", "image and text in shards"),
    ):
        if part in run.stages:
            tiles.append((f"{run.stages[part].rows:,}", name, more or _matched(run)))
    try:
        for score in results.scores(run)[:2]:
            top1, chance = score.metrics.get("top1"), score.chance.get("top1")
            if top1 is not None:
                against = f"{top1 / chance:,.0f}× chance ({charts.percent(chance)})" if chance else score.task
                tiles.append((charts.percent(top1), f"top-1 on {score.dataset}", against))
    except InputError:
        pass
    try:
        for row in results.overlaps(run)[:2]:
            share = f"{charts.percent(row.get('contamination') or 0)} of {row['dataset']}"
            tiles.append((f"{row.get('n_overlap', 0):,}", "leaks found", share))
    except InputError:
        pass
    cells = "".join(
        f"<div><dt>{shown(name, 60)}</dt><dd>{shown(value, 30)}</dd><p>{shown(more, 80)}</p></div>"
        for value, name, more in tiles
    )
    return f'<dl class="tiles">{cells}</dl>' if tiles else ""


def _matched(run: Run) -> str:
    matched = run.stages["pairs"].extra.get("queries_matched")
    return f"for {matched:,} queries" if isinstance(matched, int) else "texts that hold a query"
