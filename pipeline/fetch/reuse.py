"""Images and answers that another run has fetched already: ours, or a folder that img2dataset made.

Nothing is copied here: a row says where in the other folder's tar an image begins and how long it is. An image of
ours that was stored with the same settings is taken byte for byte. Any other goes through the decoder, and is
fetched again if the other folder kept fewer pixels, or another part of the picture, than is asked for now.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pipeline.core import manifest, paths, tables
from pipeline.core.config import decisive
from pipeline.core.contracts import SHARDS
from pipeline.core.errors import ContractError, InputError, UsageError
from pipeline.fetch import ledger
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.images import Stored, resized, sniff
from pipeline.fetch.policy import Target, parse_url
from pipeline.fetch.staging import ROW, Row

ITSELF: Final = "itself"  # name of the folder that is being fetched again
REMOVED: Final = "removed"  # status of a row that a takedown emptied
# What only decides which pairs are in shards, and how they are cut.
_LAYOUT: Final = frozenset({"rows_per_shard", "bytes_per_shard", "drop_duplicates", "top_up"})
# What can only change whether a URL is asked for and answered, never an image that is there.
_DOWNLOAD: Final = frozenset(
    {
        "allow_address", "contact", "also_obey", "connect_timeout_s", "read_timeout_s", "deadline_s",
        "max_body_bytes", "max_redirects", "retries", "backoff_base_s", "backoff_cap_s", "retry_after_cap_s",
        "crawl_delay_cap_s", "breaker_failures", "min_rate_bytes_s", "min_rate_grace_s", "max_per_host", "tdmrep",
    }
)  # fmt: skip
# Failures that no setting of ours could have changed.
_FINAL_ANYWHERE: Final = frozenset({"http_4xx", "dns_nxdomain", "empty_body", "not_image"})
# What img2dataset says of pages that are gone; whatever else it says is worth asking again.
_GONE: Final = re.compile(r"HTTP Error (404|410|451)\b")
_ENDINGS: Final = frozenset({"jpg", "jpeg", "png", "webp"})
_BY_US = (
    "phash", "exif", "sha256", "width", "height", "original_width", "original_height", "http_status",
    "image_rights", "image_score",
)  # fmt: skip
_ANSWERED = ("bytes", "http_status", "final_url", "content_type", "etag", "last_modified")


@dataclass(frozen=True)
class Source:
    """A folder to take images and answers from.

    Attributes:
        path: The folder.
        ours: Whether we made it.
        ready: Its images are stored as we would store them now.
        same: Its failures are ours too: it was fetched under the same settings.
        name: What rows call it.
    """

    path: str
    ours: bool
    ready: bool
    same: bool
    name: str


def check_apart(path: str, out: str) -> None:
    """Refuses to reuse the output folder itself, which is cleared before anything is taken from it.

    Raises:
        UsageError: Both are one folder.
    """
    one, other = (os.path.realpath(paths.filesystem(p)[1]) for p in (path, out))
    if one == other:
        raise UsageError("--reuse names the output folder", where=path, hint="use --retry to fetch it again")


def open_source(path: str, config: FetchConfig, *, itself: bool = False) -> Source:
    """Looks at a folder to reuse.

    Raises:
        InputError: It is not there, unfinished, or holds no shards.
        ContractError: It is finished, but holds something else.
    """
    if not paths.is_folder(path):
        raise InputError("no such folder to reuse", where=path, hint="check the path")
    if not paths.exists(paths.join(path, manifest.NAME)):
        if not _parquet_files(path):
            raise InputError(
                "the folder holds nothing to reuse", where=path,
                expected="a folder of `wit fetch` or of img2dataset with files like 00000.parquet",
            )  # fmt: skip
        return Source(path, ours=False, ready=False, same=False, name=path)
    found = manifest.read(path, made_by=SHARDS.made_by, contract=SHARDS.id)
    different = set(differences(found.config, config))
    return Source(
        path,
        ours=True,
        ready=not different - _DOWNLOAD,
        same=not different,
        name=ITSELF if itself else path,
    )


def differences(made: Mapping[str, Any], config: FetchConfig) -> list[str]:
    """Settings that may change what becomes of a URL and are not those that a folder was made with."""
    defaults = decisive(FetchConfig())
    now = decisive(config)
    return [name for name in now if name not in _LAYOUT and now[name] != made.get(name, defaults[name])]


def _parquet_files(folder: str) -> list[str]:
    root = folder.rstrip("/")
    return [
        f
        for f in paths.list_files(folder, suffixes=(".parquet",))
        if f.rsplit("/", 1)[0] == root and f.rsplit("/", 1)[1].partition(".")[0].isdigit()
    ]


@dataclass(frozen=True)
class KnownFile:
    """One file of a source, for one worker to read."""

    source: Source
    file: str
    is_ledger: bool = False


def known_files(sources: Sequence[Source]) -> list[KnownFile]:
    """Every file that says something on URLs."""
    found = []
    for source in sources:
        found += [KnownFile(source, file) for file in _parquet_files(source.path)]
        if source.ours:
            found += [KnownFile(source, file, is_ledger=True) for file in ledger.files_of(source.path)]
    return found


def read_known(element: KnownFile, config: FetchConfig) -> Iterator[pa.Table]:
    """Rows like :data:`~pipeline.fetch.staging.ROW` with their ``host``; images have a place, answers have none."""
    rows = _read_answers(element) if element.is_ledger else _read_images(element, config)
    held: list[Row] = []
    for row in rows:
        target = parse_url(row["fetch_url"])
        if isinstance(target, Target):
            held.append(row | {"fetch_url": target.url, "host": target.host})
        if len(held) >= tables.BATCH_ROWS:
            yield pa.Table.from_pylist(held, schema=KNOWN)
            held = []
    if held:
        yield pa.Table.from_pylist(held, schema=KNOWN)


KNOWN = pa.schema([*ROW, pa.field("host", pa.string())])


def _read_answers(element: KnownFile) -> Iterator[Row]:
    names = [n for n in ROW.names if n in ledger.LEDGER.schema.names]
    for batch in tables.read_batches([element.file], columns=[*names, "retryable"]):
        for row in batch.to_pylist():
            final = row["reason"] is not None and not row.pop("retryable")
            if row["reason"] is None or (final and (element.source.same or row["reason"] in _FINAL_ANYWHERE)):
                yield {**dict.fromkeys(ROW.names), **row, "source": element.source.name}


def _read_images(element: KnownFile, config: FetchConfig) -> Iterator[Row]:
    place = _places(element.file.removesuffix(".parquet"))
    schema = tables.read_schema(element.file)
    for name in ("url", "key", "status"):
        if name not in schema.names:
            raise ContractError(
                f"column {name!r} is missing", where=element.file, expected="a table of img2dataset"
            )
    columns = ["url", "key", "status", *(n for n in (*_BY_US, "error_message") if n in schema.names)]
    for batch in tables.read_batches([element.file], columns=columns):
        for found in batch.to_pylist():
            row = dict.fromkeys(ROW.names) | {name: found.get(name) for name in _BY_US}
            row |= {"fetch_url": found["url"], "source": element.source.name}
            if found["status"] != "success":
                gone = None if element.source.ours else _GONE.match(found.get("error_message") or "")
                if gone:
                    yield row | {
                        "reason": "http_4xx",
                        "detail": gone[1],
                        "http_status": int(gone[1]),
                        "sha256": None,
                    }
                continue
            where = place.get(str(found["key"]))
            if where is None:
                continue  # the tar was cut off: this image is asked for again
            if not element.source.ready:
                if not fits(row, config):
                    continue
                row |= dict.fromkeys(("width", "height", "image_score"))
            if not element.source.ours:
                row |= {"http_status": None}
            yield row | dict(zip(("bodies", "offset", "length"), where, strict=True))


def _places(stem: str) -> dict[str, tuple[str, int, int]]:
    """File, offset and length of each key's image: in a tar, or in a folder of files, beside its table."""
    tar, folder = f"{stem}.tar", stem
    if paths.exists(tar):
        return {key: (tar, *place) for key, place in tar_places(tar).items()}
    if paths.is_folder(folder):
        files = [f for f in paths.list_files(folder) if f.rpartition(".")[2].lower() in _ENDINGS]
        return {f.rpartition("/")[2].partition(".")[0]: (f, 0, paths.size(f)) for f in files}
    raise InputError(
        "the images of this table are missing", where=f"{stem}.parquet",
        expected=f"{stem}.tar or a folder {stem}/",
        hint="of img2dataset's output formats, webdataset and files can be reused",
    )  # fmt: skip


def tar_places(path: str) -> dict[str, tuple[int, int]]:
    """Offset and size of each key's image in a tar; of a truncated tar those that are wholly there."""
    places: dict[str, tuple[int, int]] = {}
    size = paths.size(path)
    with paths.open_input(path, decompress=False) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    key, _, ending = info.name.rpartition("/")[2].partition(".")
                    whole = info.offset_data + info.size <= size
                    if info.isfile() and whole and ending.lower() in _ENDINGS:
                        places[key] = (info.offset_data, info.size)
        except (tarfile.TarError, EOFError):
            pass
    return places


def final_size(original: tuple[int, int], config: FetchConfig) -> tuple[int, int]:
    """Size that an image of this size is stored with."""
    side = config.image_size
    squares = config.resize_mode in ("center_crop", "border")
    by = min(original) if config.resize_mode == "center_crop" else max(original)
    if squares and not (config.resize_only_if_bigger and by < side):
        return side, side
    return resized(original, config)


def fits(row: Row, config: FetchConfig) -> bool:
    """Whether a stored image can still become what is asked for: the whole picture, and enough pixels of it."""
    sizes = [row[name] for name in ("width", "height", "original_width", "original_height")]
    if any(size is None for size in sizes):
        return True  # nothing says that it was changed
    width, height, original_width, original_height = sizes
    original = (original_width, original_height)
    if (width, height) == final_size(original, config):
        return True
    wanted = resized(original, config)
    if width < min(wanted[0], original_width) or height < min(wanted[1], original_height):
        return False
    # One pixel of rounding on either side.
    return bool(abs(width * original_height - height * original_width) <= max(original))


def as_it_is(body: bytes, found: Stored, config: FetchConfig) -> bytes | None:
    """A JPEG that needs no change, so that it is not encoded twice; ``None`` if it does need one."""
    if sniff(body) != "jpeg":
        return None
    with Image.open(io.BytesIO(body), formats=["JPEG"]) as image:
        plain = image.mode == "RGB" and not image.getexif() and "icc_profile" not in image.info
        same = image.size == (found.width, found.height) == final_size(image.size, config)
    return body if plain and same else None


def known_rows(wanted: set[str], images: Sequence[pa.Table], answers: Sequence[pa.Table]) -> pa.Table:
    """Rows for those of some URLs that need not be asked for.

    Args:
        wanted: URLs.
        images: Tables of :data:`KNOWN` from shards: rows have a place, or a reason.
        answers: Tables of :data:`KNOWN` from ledgers.
    """
    said: dict[tuple[str, str | None], Row] = {}
    failed: dict[str, Row] = {}
    for row in _chosen(wanted, answers):
        said.setdefault((row["fetch_url"], row["source"]), row)
        if row["reason"] is not None:
            failed.setdefault(row["fetch_url"], row)
    made: dict[str, Row] = {}
    for row in _chosen(wanted, images):
        if row["reason"] is not None:
            failed.setdefault(row["fetch_url"], row)
        elif row["fetch_url"] not in made:
            answer = said.get((row["fetch_url"], row["source"]), {})
            made[row["fetch_url"]] = row | {name: answer[name] for name in _ANSWERED if name in answer}
    for url, row in failed.items():
        made.setdefault(url, row | {"offset": 0, "length": 0})
    return pa.Table.from_pylist([made[url] for url in sorted(made)], schema=ROW)


def _chosen(wanted: set[str], chunks: Sequence[pa.Table]) -> list[Row]:
    """The rows of some URLs, in an order that does not depend on arrival."""
    if not chunks:
        return []
    chosen = pa.array(sorted(wanted), pa.string())
    joined = pa.concat_tables(chunks)
    joined = joined.filter(pc.is_in(joined.column("fetch_url"), value_set=chosen))
    order = ("fetch_url", "source", "reason", "bodies", "offset")
    rows: list[Row] = joined.sort_by([(name, "ascending") for name in order]).select(ROW.names).to_pylist()
    return rows


def removed_ids(sources: Sequence[Source]) -> dict[str, str]:
    """Pairs that were taken down in a source, with the reason: they stay down."""
    found: dict[str, str] = {}
    for source in sources:
        if not source.ours:
            continue
        for file in _parquet_files(source.path):
            with paths.open_input(file, decompress=False) as opened:
                rows = pq.read_table(
                    opened, columns=["pair_id", "error_message"], filters=[("status", "=", REMOVED)]
                )
            for row in rows.to_pylist():
                found[row["pair_id"]] = row["error_message"].partition(": ")[2]
    return found


def described(sources: Sequence[Source], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """What the manifest says of sources: their identity, not where they lie, and how many URLs came from each."""
    return [
        {
            "name": source.path.rstrip("/").rpartition("/")[2],
            **({"manifest_sha256": manifest.read(source.path).sha256} if source.ours else {}),
            "urls": counts.get(source.path, 0),
        }
        for source in sources
        if source.name != ITSELF
    ]
