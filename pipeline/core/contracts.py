"""The tables that stages exchange: names, versions, columns, checks.

A contract is the only thing two stages share. It is stored in each Parquet footer as ``wit.contract =
name/version``; a reader that finds another contract, a missing column or a wrong type stops and says which
command makes the right table. More columns than the contract names are always allowed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pyarrow as pa

from pipeline.core.errors import ContractError

FOOTER_KEY = b"wit.contract"


@dataclass(frozen=True)
class Contract:
    """A table that other tools may rely on.

    Attributes:
        name: Name of the table.
        version: Raised when a column changes its meaning or goes.
        schema: Columns that every such table has, in this order; nullable where the contract says ``?``.
        made_by: The command that makes it, for messages.
    """

    name: str
    version: int
    schema: pa.Schema
    made_by: str

    @property
    def id(self) -> str:
        """``name/version`` as it stands in footers and manifests."""
        return f"{self.name}/{self.version}"

    def stamp(self, schema: pa.Schema | None = None) -> pa.Schema:
        """The schema with the contract's name in its metadata."""
        schema = self.schema if schema is None else schema
        return schema.with_metadata({**(schema.metadata or {}), FOOTER_KEY: self.id.encode()})

    def empty(self) -> pa.Table:
        """A table of this contract without rows."""
        return self.stamp().empty_table()

    def conform(self, table: pa.Table) -> pa.Table:
        """Orders columns, casts where nothing is lost, checks nulls, and stamps the table before it is written.

        Raises:
            ContractError: A column is missing, cannot be cast, or holds nulls where none may be.
        """
        columns: list[pa.ChunkedArray] = []
        fields: list[pa.Field] = []
        for field in self.schema:
            if field.name not in table.column_names:
                if not field.nullable:
                    raise ContractError(f"column {field.name!r} is missing", where=self.id)
                column = pa.chunked_array([pa.nulls(table.num_rows, field.type)])
            else:
                column = table.column(field.name)
                if not column.type.equals(field.type):
                    try:
                        column = column.cast(field.type)
                    except pa.ArrowException as error:
                        raise ContractError(
                            f"column {field.name!r} has the wrong type",
                            where=self.id,
                            expected=field.type,
                            found=table.schema.field(field.name).type,
                        ) from error
            if not field.nullable and column.null_count:
                raise ContractError(f"column {field.name!r} holds {column.null_count} nulls", where=self.id)
            columns.append(column)
            fields.append(field)
        for field in table.schema:
            if field.name not in self.schema.names:
                columns.append(table.column(field.name))
                fields.append(field)
        metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k.startswith(b"wit.")}
        return pa.Table.from_arrays(columns, schema=self.stamp(pa.schema(fields, metadata=metadata)))

    def check(self, schema: pa.Schema, *, where: str) -> None:
        """Checks a file's schema against the contract.

        Raises:
            ContractError: Another contract, a missing column or a wrong type.
        """
        hint = f"make it with `{self.made_by}`"
        found = (schema.metadata or {}).get(FOOTER_KEY)
        if found is None:
            raise ContractError("the file names no contract", where=where, expected=self.id, hint=hint)
        if found.decode(errors="replace") != self.id:
            raise ContractError(
                "another contract",
                where=where,
                expected=self.id,
                found=found.decode(errors="replace"),
                hint=hint,
            )
        for field in self.schema:
            if field.name not in schema.names:
                raise ContractError(
                    f"column {field.name!r} is missing",
                    where=where,
                    expected=f"{self.id} column {field.type}",
                    hint=hint,
                )
            if not _same_type(schema.field(field.name).type, field.type):
                raise ContractError(
                    f"column {field.name!r} has the wrong type",
                    where=where,
                    expected=field.type,
                    found=schema.field(field.name).type,
                    hint=hint,
                )


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    if found.equals(wanted):
        return True
    lists = (pa.types.is_list, pa.types.is_fixed_size_list)
    # embeddings/1 leaves the dimension open; Parquet readers may also return list items under another name.
    if any(f(found) for f in lists) and any(f(wanted) for f in lists):
        # Vectors may be stored at half precision; who reads them widens (`dedup.vectors`).
        if pa.types.is_float16(found.value_type) and pa.types.is_float32(wanted.value_type):
            return True
        return bool(_same_type(found.value_type, wanted.value_type))
    return False


def pair_id(url: str, text: str) -> str:
    """First 32 hex characters of sha256(url + NUL + text), both as stored; lone surrogates count as ``?``."""
    return hashlib.sha256(f"{url}\0{text}".encode(errors="replace")).hexdigest()[:32]


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_STRINGS = pa.list_(pa.field("element", pa.string()))
_IDS = pa.list_(pa.field("element", pa.int32()))

QUERIES = Contract(
    "queries",
    1,
    pa.schema(
        [
            _required("query_id", pa.int32()),
            _required("query", pa.string()),
            _required("sources", _STRINGS),  # a subset of word, bigram, title, synset
            pa.field("count", pa.int64()),
            pa.field("pmi", pa.float64()),
            pa.field("views", pa.int64()),
            pa.field("synsets", _STRINGS),
        ]
    ),
    made_by="wit queries",
)

CANDIDATES = Contract(
    "candidates",
    1,
    pa.schema(
        [
            _required("pair_id", pa.string()),
            _required("url", pa.string()),
            _required("text", pa.string()),
            _required("text_source", pa.string()),
            pa.field("page_url", pa.string()),
            pa.field("page_language", pa.string()),
            _required("rights", _STRINGS),
            _required("origin", pa.string()),
            pa.field("origin_offset", pa.int64()),
        ]
    ),
    made_by="wit candidates",
)

PAIRS = Contract(
    "pairs",
    1,
    pa.schema(
        [
            *CANDIDATES.schema,
            _required("language", pa.string()),
            _required("language_score", pa.float64()),
            _required("query_ids", _IDS),
            _required("query_id", pa.int32()),
        ]
    ),
    made_by="wit select",
)

QUERY_COUNTS = Contract(
    "query-counts",
    1,
    pa.schema(
        [
            _required("query_id", pa.int32()),
            _required("matched", pa.int64()),
            _required("selected", pa.int64()),
        ]
    ),
    made_by="wit select",
)

SHARDS = Contract(
    "shards",
    1,
    pa.schema(
        [
            _required("key", pa.string()),
            _required("pair_id", pa.string()),
            _required("url", pa.string()),
            _required("caption", pa.string()),
            _required("status", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("original_width", pa.int32()),
            pa.field("original_height", pa.int32()),
            pa.field("sha256", pa.string()),
            pa.field("exif", pa.string()),
            pa.field("http_status", pa.int32()),
            _required("query_ids", _IDS),
            _required("query_id", pa.int32()),
        ]
    ),
    made_by="wit fetch",
)

EMBEDDINGS = Contract(
    "embeddings",
    1,
    pa.schema(
        [
            _required("id", pa.string()),
            _required("dataset", pa.string()),
            pa.field("label", pa.string()),
            # fixed_size_list[d] in files, of float32 or, with --half, of float16
            _required("embedding", pa.list_(pa.field("element", pa.float32()))),
        ]
    ),
    made_by="wit dedup embed",
)

NEIGHBOURS = Contract(
    "neighbours",
    1,
    pa.schema(
        [
            _required("eval_dataset", pa.string()),
            _required("eval_id", pa.string()),
            _required("rank", pa.int16()),
            _required("pair_id", pa.string()),
            _required("similarity", pa.float32()),
        ]
    ),
    made_by="wit dedup search",
)

GROUPS = Contract(
    "groups",
    1,
    pa.schema(
        [
            _required("pair_id", pa.string()),
            _required("group", pa.string()),  # the smallest pair_id of the group
            _required("similarity", pa.float32()),  # to the most similar other picture of the group
            _required("keep", pa.bool_()),  # true for one picture of each group
        ]
    ),
    made_by="wit dedup groups",
)

PREDICTIONS = Contract(
    "predictions",
    1,
    pa.schema(
        [
            _required("eval_dataset", pa.string()),
            _required("eval_id", pa.string()),
            _required("correct", pa.bool_()),
        ]
    ),
    made_by="wit evaluate",
)

DROPPED = Contract(
    "dropped",
    1,
    pa.schema(
        [
            _required("stage", pa.string()),
            _required("reason", pa.string()),
            _required("id", pa.string()),
            pa.field("detail", pa.string()),
        ]
    ),
    made_by="any stage",
)

ALL = {
    c.id: c
    for c in (
        QUERIES, CANDIDATES, PAIRS, QUERY_COUNTS, SHARDS, EMBEDDINGS, NEIGHBOURS, GROUPS, PREDICTIONS, DROPPED,
    )
}  # fmt: skip
