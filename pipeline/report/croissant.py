"""``croissant.json``: the run's shards described in the Croissant 1.0 format (JSON-LD), for loaders and catalogues.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.core import paths
from pipeline.core.contracts import SHARDS
from pipeline.report.figures import Run

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "personalSensitiveInformation": "cr:personalSensitiveInformation",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
LICENSE = (
    "Unknown. Images and texts belong to whoever published them on the web; their licences were not recorded. "
    "The run's own tables add no rights to them."
)
# Hashing more than this would take longer than the rest of the report.
MAX_HASHED_BYTES = 2 << 30
IMAGES = "image-files"
CITATION = (
    "@inproceedings{radford2021clip, title={Learning Transferable Visual Models From Natural Language Supervision}, "
    "author={Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and "
    "Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and "
    "Krueger, Gretchen and Sutskever, Ilya}, booktitle={ICML}, year={2021}, "
    "note={The data set follows the construction of this paper's WIT (WebImageText); it is not that data set}}"
)
COLUMNS = {
    "key": "Stem of the sample's files in its tar.",
    "pair_id": "First 32 hex characters of sha256(url + NUL + text), both as found.",
    "url": "Where the image was fetched from.",
    "caption": "The text that came with the image, cleaned.",
    "status": "`success`, or what went wrong.",
    "error_message": "What went wrong, in words.",
    "width": "Width in pixels as stored.",
    "height": "Height in pixels as stored.",
    "original_width": "Width in pixels as found.",
    "original_height": "Height in pixels as found.",
    "sha256": "SHA-256 of the image as fetched.",
    "exif": "EXIF entries as JSON.",
    "http_status": "Status of the HTTP response.",
    "query_ids": "Every query that the text contains.",
    "query_id": "The query that the pair counts for.",
}


def card(run: Run) -> str:
    """The card's text; without fetched shards it describes the run and lists no files."""
    made = run.stages.get("shards")
    stages = list(run.stages.values())
    last = made or (stages[-1] if stages else None)
    tars = _tars(paths.list_files(run.part("shards"), suffixes=(".tar",))) if made else []
    listed = any(file["@id"] == IMAGES for file in tars)
    count = f"{made.rows:,} image-text pairs" if made else "no fetched image-text pairs yet"
    values: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "webimagetext-run",
        "description": (
            f"A WebImageText-style data set of {count}, gathered from web pages, matched against a list of queries and "
            "balanced over them. Not filtered beyond what the run's report names: it may hold wrong, offensive or "
            "personal content."
        ),
        "license": LICENSE,
        "citeAs": CITATION,
        "creator": {"@type": "sc:Organization", "name": "unknown: whoever ran webimagetext"},
        "url": "report.html",
        "keywords": ["image-text pairs", "WebImageText", "CLIP"],
        "isLiveDataset": False,
        "distribution": [_tables(), *tars] if made else [],
        "recordSet": [_pairs(), *([_images()] if listed else [])] if made else [],
    }
    if last is not None:
        # Words of the semantic-versioning kind are what the format asks for; the date tells runs apart.
        values["version"] = _semantic(last.version)
        values["datePublished"] = last.finished_at
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _semantic(version: str) -> str:
    parts = [p for p in version.split("+")[0].split(".") if p.isdigit()][:3]
    return ".".join([*parts, "0", "0", "0"][:3])


def _tables() -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "shard-tables",
        "description": "One Parquet table per shard, one row per pair that was tried.",
        "encodingFormat": "application/x-parquet",
        "includes": "shards/*.parquet",
    }


def _tars(tars: Sequence[str]) -> list[dict[str, Any]]:
    """The tars: one by one with their hashes where reading them all is quick, else as a set."""
    told = "One tar per shard with {key}.jpg, {key}.txt and {key}.json of each fetched pair."
    if sum(map(paths.size, tars)) > MAX_HASHED_BYTES:
        return [
            {
                "@type": "cr:FileSet",
                "@id": "shard-tars",
                "description": told,
                "encodingFormat": "application/x-tar",
                "includes": "shards/*.tar",
            }
        ]
    names = [file.rpartition("/")[2] for file in tars]
    listed: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": name,
            "description": told,
            "contentUrl": f"shards/{name}",
            "contentSize": f"{paths.size(file)} B",
            "encodingFormat": "application/x-tar",
            "sha256": _sha256(file),
        }
        for name, file in zip(names, tars, strict=True)
    ]
    images = {
        "@type": "cr:FileSet",
        "@id": IMAGES,
        "description": "The images inside the tars.",
        "containedIn": [{"@id": name} for name in names],
        "encodingFormat": "image/jpeg",
        "includes": "*.jpg",
    }
    return [*listed, images] if listed else []


def _sha256(file: str) -> str:
    digest = hashlib.sha256()
    with paths.open_input(file, decompress=False) as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _pairs() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "pairs",
        "name": "pairs",
        "description": f"Contract {SHARDS.id}: every pair that was tried; fetched ones have status `success`.",
        "key": {"@id": "pairs/key"},
        "field": [_field(field) for field in SHARDS.schema],
    }


def _field(field: pa.Field) -> dict[str, Any]:
    repeated = pa.types.is_list(field.type)
    kind = field.type.value_type if repeated else field.type
    made: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"pairs/{field.name}",
        "name": field.name,
        "description": COLUMNS[field.name],
        "dataType": "sc:URL"
        if field.name == "url"
        else "sc:Integer"
        if pa.types.is_integer(kind)
        else "sc:Text",
        "source": {"fileSet": {"@id": "shard-tables"}, "extract": {"column": field.name}},
    }
    if repeated:
        made["repeated"] = True
    return made


def _images() -> dict[str, Any]:
    files = {"fileSet": {"@id": IMAGES}}
    return {
        "@type": "cr:RecordSet",
        "@id": "images",
        "name": "images",
        "description": "The fetched images; `images/key` joins them with `pairs/key`.",
        "field": [
            {
                "@type": "cr:Field",
                "@id": "images/key",
                "name": "key",
                "description": COLUMNS["key"],
                "dataType": "sc:Text",
                "source": {
                    **files,
                    "extract": {"fileProperty": "filename"},
                    "transform": {"regex": r"^(?:.*/)?(\d+)\.jpg$"},
                },
            },
            {
                "@type": "cr:Field",
                "@id": "images/image",
                "name": "image",
                "description": "The image as stored.",
                "dataType": "sc:ImageObject",
                "source": {**files, "extract": {"fileProperty": "content"}},
            },
        ],
    }
