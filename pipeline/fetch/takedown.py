"""``wit shards drop``: what someone asked to be taken down leaves a finished folder of shards.

Of a pair that goes, nothing stays but its ``pair_id`` (a hash, so that no later run brings it back), its place in
its shard, the query that it counted for, and the reason: no image, caption, address, hash or EXIF, neither in
shards nor in the ledger. Only shards that hold such pairs are written again.

The manifest is put aside first and written again last, so a takedown that was killed leaves a folder that nobody
reads until the same command has ended it; and the request lies beside it until then.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from pipeline.core import manifest, paths, tables, tars
from pipeline.core.contracts import SHARDS
from pipeline.core.errors import InputError, UsageError
from pipeline.core.options import RunOptions
from pipeline.core.stage import MARKER, clear
from pipeline.fetch import ledger, retry
from pipeline.fetch.hooks import read_deny_list as read_sums
from pipeline.fetch.policy import Target, parse_url
from pipeline.fetch.reuse import REMOVED
from pipeline.fetch.shards import stats_file, taken_down, write_rows
from pipeline.fetch.summary import summarise
from pipeline.text.safety import DenyList, read_deny_list

FOLDER: Final = ".takedown"
STAGE: Final = "shards drop"
_REQUEST: Final = "request.json"
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to go.

    Attributes:
        reason: For people; stays in the rows.
        date: Day of the request.
        ids: ``pair_id``.
        hosts: Lines of a deny list; image, page and where redirects led all count.
        sha256: Of images as fetched.
        urls: Addresses that redirected to ``hosts``, by the ledger.
    """

    reason: str
    date: str
    ids: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    def matcher(self) -> Callable[[Mapping[str, Any]], bool]:
        """Tells whether a row of ``shards/1`` has to go."""
        ids, hashes, urls = set(self.ids), set(self.sha256), set(self.urls)
        listed = DenyList(self.hosts) if self.hosts else None

        def goes(row: Mapping[str, Any]) -> bool:
            if row["status"] == REMOVED:
                return False
            if row["pair_id"] in ids or row["sha256"] in hashes or (urls and fetch_url(row["url"]) in urls):
                return True
            addresses = (row["url"], row.get("page_url"))
            return listed is not None and any(listed.entry(url) is not None for url in addresses if url)

        return goes

    def by(self) -> list[str]:
        """Which lists were given."""
        return [name for name in ("ids", "hosts", "sha256") if getattr(self, name)]


def fetch_url(url: str) -> str | None:
    """The URL as the ledger spells it."""
    found = parse_url(url)
    return found.url if isinstance(found, Target) else None


def main(args: argparse.Namespace, options: RunOptions) -> None:
    """Runs ``wit shards drop``.

    Raises:
        UsageError: No list was given.
        InputError: A list cannot be read, or the folder is not there.
        ContractError: The folder holds something else.
    """
    out = str(args.shards)
    if under_way(out):
        earlier = read_request(out)
        finish(out, earlier, options)
    elif not paths.exists(paths.join(out, manifest.NAME)) and paths.exists(paths.join(out, MARKER)):
        raise InputError("the folder is unfinished", where=out, hint=f"finish it with `{SHARDS.made_by}`")
    found = manifest.read(out, made_by=SHARDS.made_by, contract=SHARDS.id)
    request = with_redirects(out, request_of(args))
    held = survey(out, found, request)
    if options.dry_run or not (held.pairs or held.ledger):
        _tell(f"{STAGE}: {held.pairs:,} pairs in {len(held.shards):,} shards match: {out}", options)
        return
    begin(out, request)
    finish(out, request, options)


def request_of(args: argparse.Namespace) -> Request:
    """Reads the lists that the user gave.

    Raises:
        UsageError: None was given.
        InputError: A line is not what the list is for.
    """
    if not (args.ids or args.hosts or args.sha256):
        raise UsageError("nothing to take down", expected="--ids FILE, --hosts FILE or --sha256 FILE")
    if args.hosts:
        read_deny_list(args.hosts)
    return Request(
        reason=" ".join((args.reason or "").split()),
        date=manifest.now()[:10],
        ids=tuple(_lines(args.ids)),
        hosts=tuple(_lines(args.hosts)),
        sha256=tuple(sorted(read_sums(args.sha256))) if args.sha256 else (),
    )


def _lines(path: str | None) -> list[str]:
    if path is None:
        return []
    with paths.open_input(path) as file:
        text = file.read().decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def with_redirects(out: str, request: Request) -> Request:
    """Adds the addresses whose redirects led to one of the hosts."""
    if not request.hosts:
        return request
    listed = DenyList(request.hosts)
    urls = [
        url
        for batch in tables.read_batches(ledger.files_of(out), columns=["fetch_url", "final_url"])
        for url, final in zip(*map(pa.Array.to_pylist, batch.columns), strict=True)
        if final is not None and final != url and listed.entry(final) is not None
    ]
    return dataclasses.replace(request, urls=tuple(urls))


@dataclass(frozen=True)
class Held:
    """What of a request a folder holds.

    Attributes:
        shards: Numbers of the shards to write again.
        pairs: Rows that go.
        ledger: URLs that leave the ledger: nothing that stays has them.
    """

    shards: tuple[int, ...]
    pairs: int
    ledger: frozenset[str]


def survey(out: str, made: manifest.Manifest, request: Request) -> Held:
    """Looks through all rows without changing anything."""
    goes = request.matcher()
    shards, pairs, gone, stay = [], 0, set(request.urls), set[str]()
    for shard in range(len(made.extra["shards"])):
        rows = _records(out, shard)
        going = [row for row in rows if goes(row)]
        gone |= {url for row in going if (url := fetch_url(row["url"])) is not None}
        pairs += len(going)
        if going or not paths.exists(stats_file(out, shard)):
            shards.append(shard)
    if gone:
        for shard in range(len(made.extra["shards"])):
            staying = (
                row["url"] for row in _records(out, shard) if row["status"] != REMOVED and not goes(row)
            )
            stay |= {url for one in staying if (url := fetch_url(one)) in gone and url is not None}
    return Held(tuple(shards), pairs, frozenset(gone - stay))


def _records(out: str, shard: int) -> list[Record]:
    found: list[Record] = tables.read_files(
        [paths.join(out, f"{tars.shard_name(shard)}.parquet")]
    ).to_pylist()
    return found


def under_way(out: str) -> bool:
    """Whether a takedown has begun in a folder and not ended."""
    aside = paths.join(out, FOLDER, manifest.NAME)
    return not paths.exists(paths.join(out, manifest.NAME)) and paths.exists(aside)


def begin(out: str, request: Request) -> None:
    """Writes the request down and puts the manifest aside: nobody reads the folder until :func:`finish`."""
    paths.remove(paths.join(out, FOLDER))
    paths.write_bytes(paths.join(out, FOLDER, _REQUEST), json.dumps(dataclasses.asdict(request)).encode())
    paths.write_bytes(paths.join(out, MARKER), json.dumps({"stage": STAGE}).encode())
    retry.move_file(out, manifest.NAME, FOLDER)


def read_request(out: str) -> Request:
    """The request of a takedown that is under way."""
    values: dict[str, Any] = json.loads(paths.read_bytes(paths.join(out, FOLDER, _REQUEST)))
    lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    return Request(reason=values["reason"], date=values["date"], **lists)


def finish(out: str, request: Request, options: RunOptions) -> None:
    """Does what was begun; each step is the same when it is done again."""
    made = manifest.read(paths.join(out, FOLDER))
    held = survey(out, made, request)
    # The ledger first: a shard that has been written again no longer knows its addresses.
    for file in ledger.files_of(out):
        table = tables.read_files([file])
        keep = [url not in held.ledger for url in table.column("fetch_url").to_pylist()]
        if not all(keep):
            tables.write_table(file, table.filter(pa.array(keep)), ledger.LEDGER)
    goes = request.matcher()
    for shard in held.shards:
        paths.remove(stats_file(out, shard))  # a shard without it is not finished
        rewrite(out, shard, goes, request.reason)
    clear(out, (".*.tmp", f"{ledger.FOLDER}/.*.tmp", "dropped/*"))  # a killed one may have left images there
    listed = summarise(out, len(made.extra["shards"]))
    done = _described(out, made, request, listed)
    paths.write_bytes(paths.join(out, manifest.NAME), done.to_json().encode())
    paths.remove(paths.join(out, MARKER))
    paths.remove(paths.join(out, FOLDER))
    entry = done.extra["takedowns"][-1]
    told = f"{STAGE}: {entry['pairs']:,} pairs, {entry['images']:,} of them with an image, are gone: {out}"
    if missing := len(set(request.ids) - _ids(out, request)):
        told += f"\n  {missing:,} ids are in no shard"
    _tell(told, options)


def _ids(out: str, request: Request) -> set[str]:
    files = [f for f in paths.list_files(out, suffixes=(".parquet",)) if Path(f).stem.isdigit()]
    batches = tables.read_batches(files, columns=["pair_id"])
    return {pair for batch in batches for pair in batch.column(0).to_pylist()} & set(request.ids)


def rewrite(out: str, shard: int, goes: Callable[[Mapping[str, Any]], bool], reason: str) -> None:
    """Writes a shard again without the images and records that go; what stays keeps its key and its bytes."""
    stem = paths.join(out, tars.shard_name(shard))
    write_rows(out, shard, _staying(_records(out, shard), tars.read_shard(f"{stem}.tar"), goes, reason))


def _staying(
    rows: Iterable[Record],
    samples: Iterator[tars.Sample],
    goes: Callable[[Mapping[str, Any]], bool],
    reason: str,
) -> Iterator[tuple[Record, bytes | None]]:
    for row in rows:
        if goes(row):
            yield taken_down(row, reason), None
        elif row["status"] != "success":
            yield row, None
        else:
            found = next((s for s in samples if s.key == row["key"]), None)
            if found is None:
                raise InputError("a sample is missing from its tar", where=row["key"])
            yield row, found.members["jpg"]


def _described(
    out: str, made: manifest.Manifest, request: Request, listed: list[dict[str, Any]]
) -> manifest.Manifest:
    """The manifest as it is now: it adds up again, and says what went when and why."""
    dropped = tables.count_dropped(out)
    rows = sum(shard["rows"] for shard in listed)
    entry = {
        "reason": request.reason,
        "date": request.date,
        "by": request.by(),
        "pairs": dropped.get("takedown", 0) - made.dropped.get("takedown", 0),
        "images": made.rows - rows,
    }
    extra = {**made.extra, "shards": listed, "takedowns": [*made.extra.get("takedowns", []), entry]}
    if ledger.files_of(out):
        kept = {
            "bytes_downloaded": made.extra.get("bytes_downloaded", 0)
        }  # what went was downloaded all the same
        extra |= ledger.totals(out) | kept
    return dataclasses.replace(made, rows=rows, dropped=dropped, extra=extra)


def _tell(text: str, options: RunOptions) -> None:
    if not options.quiet:
        sys.stderr.write(f"{text}\n")
