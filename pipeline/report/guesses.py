"""What the model guessed: pictures with their five best guesses (as the paper's Figure 21), and what it mixes up."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass

from pipeline.core import charts, tables
from pipeline.core.contracts import PREDICTIONS
from pipeline.report import samples
from pipeline.report.figures import AbsentError, Run
from pipeline.report.markup import picture, plain, plural, shown
from pipeline.report.samples import Prediction

MATRIX_CLASSES = 24  # a matrix of more classes cannot be read
LISTED = 14
_CELL, _LABELS, _MARGIN = 26, 128, 4


@dataclass(frozen=True)
class Confusion:
    """How often each class was taken for each.

    Attributes:
        counts: Pictures by (truth, prediction).
        totals: Pictures by truth.
    """

    counts: Counter[tuple[str, str]]
    totals: Counter[str]

    def classes(self) -> list[str]:
        """All classes that occur, as truth or as guess, by name."""
        return sorted({name for pair in self.counts for name in pair})

    def mixed_up(self) -> list[tuple[str, str, int]]:
        """Truth, prediction and count of mistakes made at least twice, most frequent first."""
        wrong = [(t, p, n) for (t, p), n in self.counts.items() if t != p and n > 1]
        return sorted(wrong, key=lambda row: (-row[2], row[0], row[1]))


def confusion(run: Run, dataset: str) -> Confusion:
    """Counts an evaluation's predictions by class.

    Raises:
        AbsentError: The run kept no labels beside the predictions.
    """
    files = tables.part_files(run.part(f"scores/{dataset}"), PREDICTIONS)
    if not {"label", "predicted"} <= set(tables.read_schema(files[0]).names):
        raise AbsentError("the predictions carry no labels")
    names = samples.class_names(run, dataset)
    found = Confusion(Counter(), Counter())
    for batch in tables.read_batches(files, columns=["label", "predicted"]):
        for truth, guess in zip(batch["label"].to_pylist(), batch["predicted"].to_pylist(), strict=True):
            pair = (names.get(truth, str(truth)), names.get(guess, str(guess)))
            found.counts[pair] += 1
            found.totals[pair[0]] += 1
    return found


def section(run: Run, dataset: str) -> str:
    """The mosaic of one evaluation's predictions and its confusions; nothing where no labels were kept."""
    try:
        found = samples.sample_predictions(run, dataset)
        mixed = confusion(run, dataset)
    except AbsentError:
        return ""
    drawn = ""
    for kind, total, listed in (("right", found.rights, found.right), ("wrong", found.wrongs, found.wrong)):
        if listed:
            which = f"{len(listed)} of {plural(total, f'{kind} answer')}, drawn by lot"
            cards = "".join(map(card, listed))
            drawn += f'<h3>{shown(dataset, 60)}: {which}</h3><div class="mosaic guesses">{cards}</div>'
    return drawn + _confused(dataset, mixed)


def card(one: Prediction) -> str:
    """A picture, its truth, and the best guesses as bars; the right one has its own colour and a tick."""
    sign, kind = ("✓", "right") if one.correct else ("✗", "wrong")
    place = f" <small>guess {one.rank:,}</small>" if one.rank and not one.correct else ""
    truth = f'<p class="truth"><b class="sign">{sign} {kind}</b> {shown(one.truth, 60)}{place}</p>'
    if one.guesses:
        told = f'<ol class="bars">{"".join(_bar(name, share, name == one.truth) for name, share in one.guesses)}</ol>'
    else:
        told = "" if one.correct else f'<p class="guess">taken for {shown(one.predicted, 60)}</p>'
    return f'<figure class="{kind}">{picture(one.picture, one.truth)}<figcaption>{truth}{told}</figcaption></figure>'


def _bar(name: str, share: float, right: bool) -> str:
    mark = ' class="true"' if right else ""
    tick = "✓ " if right else ""
    return (
        f'<li{mark}><span class="bar" style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></span>'
        f'<span class="name">{tick}{shown(name, 48)}</span><b>{charts.percent(share)}</b></li>'
    )


def _confused(dataset: str, found: Confusion) -> str:
    classes = found.classes()
    if 2 <= len(classes) <= MATRIX_CLASSES:
        return f'<div class="panel narrow">{matrix(dataset, classes, found)}</div>'
    listed = found.mixed_up()[:LISTED]
    if not listed:
        return ""
    rows = [(f"{plain(t, 40)} → {plain(p, 40)}", float(n)) for t, p, n in listed]
    wrong = sum(n for (t, p), n in found.counts.items() if t != p)
    title = f"{plain(dataset, 60)}: most often mixed up (truth → guess)"
    chart = charts.bar_chart(
        rows, title=title, total=float(wrong), colour=1, note="Shares of all wrong answers."
    )
    return f'<div class="panel narrow">{chart}</div>'


def matrix(dataset: str, classes: list[str], found: Confusion) -> str:
    """A confusion matrix: rows are truths, columns first guesses, shade the share of the row."""
    side = _CELL * len(classes)
    drawn = []
    for i, truth in enumerate(classes):
        y = _LABELS + i * _CELL
        drawn.append(
            f'<text class="strong" x="{_LABELS - 6}" y="{y + _CELL / 2 + 4}" text-anchor="end">{_label(truth)}</text>'
            f'<text class="strong" transform="translate({_LABELS + i * _CELL + _CELL / 2 + 4} {_LABELS - 6}) '
            f'rotate(-60)">{_label(truth)}</text>'
        )
        for j, guess in enumerate(classes):
            count, total = found.counts[truth, guess], found.totals[truth]
            if count:
                x, colour = _LABELS + j * _CELL, "var(--c3)" if i == j else "var(--c2)"
                told = f"{html.escape(plain(truth, 60))} → {html.escape(plain(guess, 60))}: {count:,} of {total:,}"
                drawn.append(
                    f'<rect x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" '
                    f'style="fill:{colour};opacity:{0.15 + 0.85 * count / total:.2f}"><title>{told}</title></rect>'
                    f'<text class="cell" x="{x + _CELL / 2}" y="{y + _CELL / 2 + 4}" text-anchor="middle">'
                    f"{count}</text>"
                )
    box = f'<rect class="frame" x="{_LABELS}" y="{_LABELS}" width="{side}" height="{side}"/>'
    size = _LABELS + side + _MARGIN
    title = f"{plain(dataset, 60)}: confusion (rows: truth, columns: first guess)"
    label = html.escape(title)
    body = (
        f'<svg viewBox="0 0 {size + 60} {size}" role="img" aria-label="{label}">{"".join(drawn)}{box}</svg>'
    )
    return charts.figure(title, f'<div class="matrix" style="max-width:{size + 60}px">{body}</div>')


def _label(name: str) -> str:
    told = html.escape(plain(name, 60))
    short = html.escape(plain(name, 15))
    return f"{short}<title>{told}</title>"
