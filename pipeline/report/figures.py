"""What a run's folder says about itself, as numbers: every function reads one part of it.

A part may be missing, unfinished or damaged: then the function raises, and the page says so in that place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core import manifest, paths, tables
from pipeline.core.contracts import PAIRS, QUERIES, QUERY_COUNTS, SHARDS
from pipeline.core.errors import InputError
from pipeline.core.manifest import Manifest

# In the order of the work; `*` stands for one folder per data set.
FOLDERS = (
    "queries", "candidates", "pairs", "shards", "detector", "embeddings/*", "neighbours", "checkpoint",
    "scores/*", "overlaps",
)  # fmt: skip
FUNNEL = ("candidates", "pairs", "shards", "checkpoint")
MAX_HOSTS = 100_000
CURVE_POINTS = 300
MAX_NOTE_CHARS = 4_000


class AbsentError(InputError):
    """A part that this run does not have."""


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        folder: Path or URL.
        stages: Manifests of finished parts by their folder's name within the run, in the order of the work.
        problems: Why a part cannot be used, by its folder's name.
        note: What the run's maker wants said at the top.
    """

    folder: str
    stages: Mapping[str, Manifest]
    problems: Mapping[str, str]
    note: str

    def part(self, name: str) -> str:
        """Path of a finished part.

        Raises:
            AbsentError: The run has no such part.
            InputError: It is unfinished or damaged.
        """
        if name in self.problems:
            raise InputError(self.problems[name])
        if name not in self.stages:
            raise AbsentError("not part of this run")
        return paths.join(self.folder, name)

    def below(self, name: str) -> list[str]:
        """Names of the data sets of a part that has one folder for each.

        Raises:
            AbsentError: The run has none.
            InputError: All are unfinished or damaged.
        """
        found = [stage.partition("/")[2] for stage in self.stages if stage.startswith(f"{name}/")]
        if not found:
            for problem, why in self.problems.items():
                if problem.startswith(f"{name}/"):
                    raise InputError(why)
            raise AbsentError("not part of this run")
        return found


def open_run(folder: str) -> Run:
    """Reads the manifests and the note of a run's folder.

    Raises:
        InputError: The folder is missing or holds nothing of a run.
    """
    if not paths.is_folder(folder):
        raise InputError(
            "no such folder", where=folder, hint="make one with `wit run RUN.toml` or `wit demo`"
        )
    stages: dict[str, Manifest] = {}
    problems: dict[str, str] = {}
    for name in _expanded(folder):
        try:
            stages[name] = manifest.read(paths.join(folder, name))
        except InputError as error:
            problems[name] = f"{name}: {error.what}"
    if not stages and not problems:
        raise InputError(
            "the folder holds nothing of a run",
            where=folder,
            expected="folders such as " + ", ".join(FOLDERS[:4]),
            hint="make one with `wit run RUN.toml` or `wit demo`",
        )
    note = paths.join(folder, "note.txt")
    text = paths.read_bytes(note).decode(errors="replace") if paths.exists(note) else ""
    return Run(folder, stages, problems, text.strip()[:MAX_NOTE_CHARS])


def _expanded(folder: str) -> Iterator[str]:
    for name in FOLDERS:
        if name.endswith("/*"):
            parent = paths.join(folder, name[:-2])
            if paths.is_folder(parent):
                fs, root = paths.filesystem(parent)
                inner = sorted(
                    p.rstrip("/").rpartition("/")[2] for p in fs.ls(root, detail=False) if fs.isdir(p)
                )
                yield from (f"{name[:-2]}/{one}" for one in inner)
        elif paths.is_folder(paths.join(folder, name)):
            yield name


@dataclass(frozen=True)
class Balance:
    """Matches per query before and pairs per query after balancing.

    Attributes:
        cap: Most pairs a query may count, if the run says.
        matched: Texts that hold each query, most frequent first; queries without a match are left out.
        selected: Pairs that count for each query, most frequent first.
        queries: Length of the query list, if the run has it.
        capped: Queries over the cap.
        top: Query, matched and selected of the most frequent queries.
    """

    cap: int | None
    matched: list[int]
    selected: list[int]
    queries: int | None
    capped: int | None
    top: list[tuple[str, int, int]]

    def head_share(self, share: float = 0.01) -> tuple[float, float]:
        """Which fraction of matches and of pairs the most frequent ``share`` of queries holds."""
        return _head(self.matched, share), _head(self.selected, share)


def _head(counts: Sequence[int], share: float) -> float:
    return sum(counts[: max(1, round(len(counts) * share))]) / max(1, sum(counts))


def balance(run: Run, *, top: int = 12) -> Balance:
    """Reads ``pairs/query-counts.parquet``."""
    folder = run.part("pairs")
    file = paths.join(folder, "query-counts.parquet")
    QUERY_COUNTS.check(tables.read_schema(file), where=file)
    counts = tables.read_files([file]).sort_by([("matched", "descending"), ("query_id", "ascending")])
    counts = counts.filter(pc.greater(counts["matched"], 0))
    made = run.stages["pairs"]
    listed = run.stages.get("queries")
    cap = made.config.get("cap")
    first = counts.slice(0, top).to_pylist()
    names = query_names(run, [r["query_id"] for r in first])
    return Balance(
        cap=cap if isinstance(cap, int) else None,
        matched=counts["matched"].to_pylist(),
        selected=sorted((n for n in counts["selected"].to_pylist() if n), reverse=True),
        queries=listed.rows if listed else None,
        capped=made.extra.get("queries_capped"),
        top=[
            (names.get(r["query_id"], f"query {r['query_id']}"), r["matched"], r["selected"]) for r in first
        ],
    )


def by_rank(counts: Sequence[int]) -> list[tuple[float, float]]:
    """``(rank, count)`` points, thinned evenly on a logarithmic rank."""
    last = len(counts)
    if last <= CURVE_POINTS:
        ranks: Iterable[int] = range(1, last + 1)
    else:
        ranks = sorted({round(last ** (i / CURVE_POINTS)) for i in range(CURVE_POINTS + 1)})
    return [(float(rank), float(counts[rank - 1])) for rank in ranks]


def query_names(run: Run, wanted: Sequence[int]) -> dict[int, str]:
    """Texts of some queries, empty where the run holds no query list."""
    try:
        files = tables.part_files(run.part("queries"), QUERIES)
    except InputError:
        return {}
    ids = pa.array(sorted(set(wanted)), pa.int32())
    found: dict[int, str] = {}
    for batch in tables.read_batches(files, columns=["query_id", "query"]):
        kept = batch.filter(pc.is_in(batch["query_id"], value_set=ids))
        found.update(zip(kept["query_id"].to_pylist(), kept["query"].to_pylist(), strict=True))
    return found


@dataclass(frozen=True)
class Texts:
    """Where the pairs' texts come from and what they are like.

    Attributes:
        languages: Pairs by language.
        dropped_languages: Dropped candidates by language, where the run says.
        sources: Pairs by kind of text.
        hosts: Pairs by the host of their image.
        words: Texts by their number of words.
    """

    languages: Counter[str]
    dropped_languages: Counter[str]
    sources: Counter[str]
    hosts: Counter[str]
    words: Counter[float]


def texts(run: Run) -> Texts:
    """Counts languages, text sources, hosts and lengths over ``pairs/``, batch by batch."""
    folder = run.part("pairs")
    languages, sources, hosts = Counter[str](), Counter[str](), Counter[str]()
    words: Counter[float] = Counter()
    columns = ["language", "text_source", "url", "text"]
    for batch in tables.read_batches(tables.part_files(folder, PAIRS), columns=columns):
        for counter, name in ((languages, "language"), (sources, "text_source")):
            counter.update({e["values"].as_py(): e["counts"].as_py() for e in batch[name].value_counts()})
        hosts.update(map(host, batch["url"].to_pylist()))
        words.update(float(len(t.split())) for t in batch["text"].to_pylist())
        if len(hosts) > MAX_HOSTS:
            # Memory stays bounded; a host this rare is far from the list's top.
            hosts = Counter(dict(hosts.most_common(MAX_HOSTS // 2)))
    return Texts(languages, _dropped_languages(folder), sources, hosts, words)


def host(url: str) -> str:
    """A URL's host in lower case, with its port if it names one; ``(unreadable)`` where there is none."""
    try:
        parts = urlsplit(url)
        if not parts.hostname:
            return "(unreadable)"
        return parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    except ValueError:
        return "(unreadable)"


def _dropped_languages(folder: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    inner = paths.join(folder, "dropped")
    if not paths.exists(inner):
        return counts
    for batch in tables.read_batches(
        paths.list_files(inner, suffixes=(".parquet",)), columns=["reason", "detail"]
    ):
        kept = batch.filter(pc.match_substring_regex(batch["reason"], "language|english"))
        for detail in kept["detail"].to_pylist():
            code = re.match(r"\W*(?:language\W+)?([a-z]{2,3}(?:-[a-z]+)?)\b", detail or "", re.IGNORECASE)
            counts[code[1].lower() if code else "unknown"] += 1
    return counts


def shard_files(run: Run) -> list[str]:
    """The Parquet files of the shards, one per shard."""
    folder = run.part("shards")
    files = [
        f
        for f in paths.list_files(folder, suffixes=(".parquet",))
        if re.fullmatch(r"\d+\.parquet", f[len(folder.rstrip("/")) + 1 :])
    ]
    for file in files:
        SHARDS.check(tables.read_schema(file), where=file)
    return files


@dataclass(frozen=True)
class Sizes:
    """Sizes of the images as found and as stored: the shorter side in pixels, and width over height."""

    original: Counter[float]
    stored: Counter[float]
    aspects: Counter[float]


def sizes(run: Run) -> Sizes:
    """Counts the sizes of the fetched images."""
    original, stored, aspects = Counter[float](), Counter[float](), Counter[float]()
    columns = ["status", "width", "height", "original_width", "original_height"]
    for batch in tables.read_batches(shard_files(run), columns=columns):
        kept = batch.filter(pc.equal(batch["status"], "success"))
        for counter, names in ((stored, columns[1:3]), (original, columns[3:])):
            shorter = pc.min_element_wise(kept[names[0]], kept[names[1]], skip_nulls=False).drop_null()
            counter.update({float(e["values"].as_py()): e["counts"].as_py() for e in shorter.value_counts()})
        widths, heights = kept["original_width"].to_pylist(), kept["original_height"].to_pylist()
        aspects.update(round(w / h, 1) for w, h in zip(widths, heights, strict=True) if w and h)
    return Sizes(original, stored, aspects)


def quantile(counted: Mapping[float, int], share: float) -> float:
    """The value below or at which a share of what was counted lies."""
    passed, wanted = 0, share * sum(counted.values())
    for value in sorted(counted):
        passed += counted[value]
        if passed >= wanted:
            return value
    return 0.0
