"""``MODEL_CARD.md``: what a checkpoint is, what it was trained on, how it scores, and what it saw of the tests.

Every number is read from a file: ``config.json``, the chain of manifests from the checkpoint to the first input,
``scores.json`` and ``overlap.json``. What no file says is named as not known. The sections are those of "Model Cards
for Model Reporting" (Mitchell et al., 2019).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core import manifest, paths
from pipeline.core.errors import InputError
from pipeline.core.evaluations import Score, overlaps_of, score_of
from pipeline.core.manifest import Manifest
from pipeline.core.scales import percent

NAME, TRAINED = "MODEL_CARD.md", "train"
SCORES, OVERLAPS = "scores.json", "overlap.json"
MAX_NAMES = 5
MAX_ROWS = 64  # of the chain that are listed; all of it is walked
# Reasons for which a page, an image or a pair was left out because somebody objected.
OBJECTIONS = (
    "page_opted_out", "robots_disallow", "optout_header", "optout_tdm", "optout_meta", "rights_flag", "takedown",
)  # fmt: skip
RIGHTS = (
    "Pictures and texts were found on the public web and belong to whoever published them; this project records marks "
    "of objection, not licences. Whether the weights may be used for a purpose has to be judged by who uses them."
)
USES = (
    "Research on image-text models and on the data that makes them: zero-shot classification and retrieval in the "
    "language of the training texts (English, unless the selection was told otherwise), and features for linear "
    "probes, each tried on the task at hand before it is relied on."
)
MISUSES = (
    "Deployment without such a trial; surveillance and recognising people; decisions about people; languages other "
    "than those of the training texts. The texts come from web pages, and their biases with them."
)


@dataclass(frozen=True)
class Link:
    """One folder or file in the chain from a checkpoint to what it came from.

    Attributes:
        name: Last part of its path.
        made: Its manifest, if it is a finished folder that can still be read.
        described: How the manifest of what was made from it names it.
        changed: It can be read, and is not what it was then.
    """

    name: str
    made: Manifest | None
    described: Mapping[str, Any]
    changed: bool = False

    @property
    def readable(self) -> bool:
        """Whether what was dropped here and before can be known; a raw file dropped nothing."""
        return "manifest_sha256" not in self.described or (self.made is not None and not self.changed)


def chain(folder: str) -> list[Link]:
    """What a finished folder was made from, nearest first, each once, as far as manifests can be read."""
    found: dict[str, Link] = {}
    waiting: deque[Mapping[str, Any]] = deque(_inputs(folder))
    while waiting:
        described = waiting.popleft()
        path = str(described.get("path", ""))
        if path in found:
            continue
        made = _manifest(path) if "manifest_sha256" in described else None
        changed = made is not None and made.sha256 != described["manifest_sha256"]
        found[path] = Link(path.rstrip("/").rpartition("/")[2], made, described, changed)
        if made is not None and not changed:
            waiting.extend(made.inputs)
    return list(found.values())


def _inputs(folder: str) -> Sequence[Mapping[str, Any]]:
    made = _manifest(folder)
    return made.inputs if made is not None else ()


def _manifest(folder: str) -> Manifest | None:
    try:
        return manifest.read(folder)
    except InputError:
        return None


def card(
    model: str, *, name: str, architecture: Mapping[str, Any], scores: Sequence[str] = (), overlaps: str | None = None,
    library: str | None = None,
) -> str:  # fmt: skip
    """The card's text.

    Args:
        model: Checkpoint folder; of somebody else's checkpoint nothing but the architecture is known.
        name: What to call the model.
        architecture: As ``config.json`` of our checkpoints holds it.
        scores: Folders with ``scores.json``, or such files.
        overlaps: Folder of ``wit dedup report``, or its ``overlap.json``.
        library: What loads the weights, for catalogues that read the card's first lines.

    Raises:
        InputError: A named file of scores or overlaps is missing or is none.
    """
    made, links = _manifest(model), chain(model)
    parts = [
        _front(library),
        f"# Model card: {_line(name)}\n",
        "Written from the files of the run; what they do not say is not known.\n",
        _details(made, architecture),
        f"## Intended use\n\n{USES}\n\nNot meant for: {MISUSES}\n",
        _data(made, links),
        _evaluation([_score(path) for path in scores]),
        _contamination(None if overlaps is None else _overlaps(overlaps)),
        _rights(made, links),
    ]
    return "\n".join(part for part in parts if part)


def _front(library: str | None) -> str:
    lines = ["---", "pipeline_tag: zero-shot-image-classification"]
    lines += [f"library_name: {library}"] if library else []
    return "\n".join([*lines, "---", ""])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _line(text: object, limit: int = 120) -> str:
    """A text that cannot break a table or a line of Markdown."""
    told = " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
    return told if len(told) <= limit else told[: limit - 1] + "…"


def _details(made: Manifest | None, architecture: Mapping[str, Any]) -> str:
    rows: list[tuple[str, object]] = []
    trained = made is not None and made.stage == TRAINED
    preset = architecture.get("model") or (made.config.get("model") if made is not None and trained else None)
    if preset is not None:
        rows.append(("preset", preset))
    if "vision_cfg" in architecture and "text_cfg" in architecture:
        rows += _geometry(architecture)
    if made is not None:
        rows += _training(made)
    listed = _table(["", ""], [[name, _line(value)] for name, value in rows]) if rows else ""
    told = (
        ""
        if made is not None
        else "\nHow it was trained is not known: no manifest of this project lies beside it.\n"
    )
    return f"## Model details\n\n{listed}{told}"


def _geometry(architecture: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    objective = architecture.get("objective", "contrastive")
    kind = "ResNet" if vision.get("patch_size") is None else f"ViT, patches of {vision['patch_size']} pixels"
    yield "image tower", f"{kind}; layers {vision.get('layers')}, width {vision.get('width')}"
    yield "image size", f"{vision.get('image_size')} pixels"
    words = f"{text.get('context_length')} tokens of {text.get('vocab_size')}"
    blocks = f"layers {text.get('layers')}, width {text.get('width')}, heads {text.get('heads')}"
    if objective == "bow_prediction":
        yield "text side", f"none: the image predicts a caption's words, of {text.get('vocab_size')} tokens"
    elif objective == "caption_lm":
        yield "text side", f"transformer that predicts the caption after the image; {blocks}, {words}"
    elif text.get("kind") == "cbow":
        yield "text tower", f"mean of the tokens' embeddings; width {text.get('width')}, {words}"
    else:
        yield "text tower", f"{text.get('kind', 'transformer')}; {blocks}, {words}"
    joint = "joint embedding" if objective == "contrastive" else "image embedding"
    yield joint, f"{architecture.get('embed_dim')} dimensions"
    yield "activation", "QuickGELU" if architecture.get("quick_gelu") else "GELU"


def _training(made: Manifest) -> Iterator[tuple[str, object]]:
    extra, config = made.extra, made.config
    for key, told in (("parameters", "parameters"), ("steps", "steps"), ("images_seen", "images seen"),
                      ("distinct_images", "different images")):  # fmt: skip
        if isinstance(extra.get(key), int):
            yield told, f"{extra[key]:,}"
    for key, told in (("batch_size", "batch"), ("precision", "precision"), ("objective", "objective"), ("seed", "seed"),
                      ("weights", "started from")):  # fmt: skip
        value = config.get(key)
        if value is not None:
            yield told, str(value).rstrip("/").rpartition("/")[2] if key == "weights" else value
    final = extra.get("final")
    if isinstance(final, Mapping) and isinstance(final.get("loss"), int | float):
        yield "last loss", f"{final['loss']:.4g}"
    yield "made by", f"webimagetext {made.version}, {made.engine}, finished {made.finished_at}"
    yield "configuration", f"sha256 {made.config_sha256}"
    yield "manifest", f"sha256 {made.sha256}"


def _data(made: Manifest | None, links: Sequence[Link]) -> str:
    if made is None:
        return "## Training data\n\nNot known.\n"
    table = _table(
        ["from", "made by", "rows", "dropped", "sha256 of the manifest or file"],
        [_chained(link) for link in links[:MAX_ROWS]],
    )
    more = f"\n… and {len(links) - MAX_ROWS:,} more\n" if len(links) > MAX_ROWS else ""
    return f"## Training data\n\n{_pairs(made, links)}\n\n{table}{more}"


def _pairs(made: Manifest, links: Sequence[Link]) -> str:
    """What the training was offered, of the checkpoint or of the nearest one that it was made from."""
    told = ""
    if made.stage != TRAINED:
        told = f"Not trained by this folder's command, `wit {_line(made.stage)}`. "
        near = (
            link
            for link in links
            if link.made is not None and not link.changed and link.made.stage == TRAINED
        )
        trained = next(near, None)
        if trained is None or trained.made is None:
            return f"{told}What it was trained on is not known."
        told, made = f"{told}Trained as {_line(trained.name)}. ", trained.made
    told += f"The shards offered {made.rows_in:,} image-text pairs, of which {made.rows:,} could be used."
    if made.dropped:
        told += f" Left out: {_reasons(made.dropped)}."
    seen = made.extra.get("images_seen")
    return f"{told} Images seen in training, with repeats: {seen:,}." if isinstance(seen, int) else told


def _chained(link: Link) -> list[str]:
    described = link.described
    sha = str(described.get("manifest_sha256") or described.get("sha256") or "–")
    if link.made is None or link.changed:
        size = f"{described['rows']:,}" if "rows" in described else f"{described.get('bytes', 0):,} bytes"
        why = "changed since" if link.changed else "not at hand" if "rows" in described else "–"
        return [_line(link.name), why, size, "–", sha]
    return [
        _line(link.name),
        f"`wit {_line(link.made.stage)}` {link.made.version}",
        f"{link.made.rows:,}",
        _reasons(link.made.dropped) or "–",
        sha,
    ]


def _reasons(dropped: Mapping[str, int]) -> str:
    listed = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{_line(reason)} {count:,}" for reason, count in listed if count)


def _evaluation(found: Sequence[Score]) -> str:
    if not found:
        return "## Evaluation\n\nNo scores were given.\n"
    rows = []
    for score in found:
        for metric, value in score.metrics.items():
            span, chance = score.intervals.get(metric), score.chance.get(metric)
            rows.append(
                [
                    _line(score.dataset, 60), _line(score.task, 40), f"{score.n:,}", _line(metric, 40),
                    percent(value), "–" if span is None else f"{percent(span[0])} – {percent(span[1])}",
                    "–" if chance is None else percent(chance),
                ]
            )  # fmt: skip
    heads = ["data set", "task", "n", "metric", "score", "95% interval", "chance"]
    return f"## Evaluation\n\n{_table(heads, rows)}"


def _contamination(found: Sequence[Mapping[str, Any]] | None) -> str:
    head = "## Contamination\n\n"
    if found is None:
        return f"{head}Not known: no overlap report was given (`wit dedup report`).\n"
    rows = []
    for row in found:
        cells = [f"{row['n_overlap']:,} of {row['n_all']:,} ({percent(row.get('contamination') or 0)})"]
        cells += [
            "–" if row.get(k) is None else f"{row[k]:.2%}" for k in ("acc_all", "acc_clean", "acc_overlap")
        ]
        gain = row.get("all_minus_clean")
        cells += [
            "–" if gain is None else f"{100 * gain:+.2f}",
            "yes" if row.get("significant_bonferroni") else "no",
        ]
        cells.append("yes" if row.get("reviewed") else "no")
        rows.append([_line(row["dataset"], 60), *cells])
    told = (
        "Evaluation pictures that a near-duplicate detector found among the training pictures. Significant: Overlap is "
        "more accurate than Clean by a one-tailed binomial test, after Bonferroni's correction. Reviewed: a person set "
        "the threshold."
    )
    heads = [
        "data set",
        "overlap",
        "All",
        "Clean",
        "Overlap",
        "All − Clean, points",
        "significant",
        "reviewed",
    ]
    return f"{head}{told}\n\n{_table(heads, rows)}"


def _rights(made: Manifest | None, links: Sequence[Link]) -> str:
    objected: dict[str, int] = {}
    for link in links:
        if link.made is not None and not link.changed:
            for reason in OBJECTIONS:
                if link.made.dropped.get(reason):
                    objected[reason] = objected.get(reason, 0) + link.made.dropped[reason]
    told = [f"Left out because somebody objected: {_reasons(objected)}."] if objected else []
    lost = [link.name for link in links if not link.readable]
    if made is None:
        told.append("Whether anything was left out because somebody objected is not known.")
    elif lost:
        names = ", ".join(_line(name) for name in lost[:MAX_NAMES])
        more = f" … and {len(lost) - MAX_NAMES:,} more" if len(lost) > MAX_NAMES else ""
        told.append(
            f"What was left out because somebody objected is not known for {names}{more}, nor for what they came from."
        )
    elif not objected:
        told.append("No objections were recorded in the manifests of the chain.")
    return "\n".join(["## Rights\n", RIGHTS, *told, ""])


def _score(path: str) -> Score:
    file, found = _json(path, SCORES)
    return score_of(found, where=file)


def _overlaps(path: str) -> list[dict[str, Any]]:
    file, found = _json(path, OVERLAPS)
    return overlaps_of(found, where=file)


def _json(path: str, name: str) -> tuple[str, Any]:
    file = path if path.endswith(".json") else paths.join(path, name)
    if not paths.exists(file):
        raise InputError("no such file", where=file)
    try:
        return file, json.loads(paths.read_bytes(file))
    except ValueError as error:
        raise InputError(f"not a {name}", where=file, found=str(error)) from error
