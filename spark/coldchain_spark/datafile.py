"""Make Iceberg's DataFile from a stamped footer, without reading the file again."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
from pyiceberg.conversions import from_bytes
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.typedef import Record
from pyiceberg.types import DecimalType, DoubleType, FloatType, IntegerType, LongType

from coldchain.core.errors import ProofFailed, Transient
from coldchain_spark.footer import MAGIC, seal
from coldchain_spark.stream import Streamed


def data_file(table: Table, file: Streamed) -> DataFile:
    """Describe a file to Iceberg: sizes, counts, bounds and partition, from its footer.

    Raises:
        ProofFailed: a bound of a text column is not valid UTF-8; what is between the bounds, the proof looks at.
    """
    schema = table.schema()
    metadata = pq.read_metadata(io.BytesIO(MAGIC + seal(file.footer)))
    try:
        statistics = data_file_statistics_from_parquet_metadata(
            parquet_metadata=metadata,
            stats_columns=compute_statistics_plan(schema, table.metadata.properties),
            parquet_column_mapping=parquet_path_to_id_mapping(schema),
        )
    except UnicodeDecodeError:
        raise ProofFailed(
            f"table={'.'.join(table.name())} window={file.slice.window}: text that is not valid UTF-8; Iceberg's "
            "readers would break on it: clean the source, or hold the column as binary (types in the registry)"
        ) from None
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=file.path,
        file_format=FileFormat.PARQUET,
        partition=_partition(file, statistics.partition(table.spec(), schema)),
        file_size_in_bytes=file.size_bytes,
        sort_order_id=None,  # docs/decisions/0031: readers that trust it answer wrongly
        spec_id=table.metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
        **_with_both_zeros(schema, statistics.to_serialized_dict()),
    )


def _partition(file: Streamed, inferred: Record) -> Record:
    """Return the partition: its columns' text as the slice was asked for, and the time as the footer's bounds say.

    A footer need not hold bounds of long text, and may hold them shortened; where they are there, they must agree.
    """
    known = file.slice.partition
    said = [inferred[index] for index in range(len(known))]
    if any(text is not None and text != value for text, value in zip(said, known, strict=True)):
        raise Transient(f"{file.path} holds partition {said}, {list(known)} was asked for: the task is tried again")
    return Record(*known, *(inferred[index] for index in range(len(known), len(inferred))))


def _with_both_zeros(schema: Schema, described: dict[str, Any]) -> dict[str, Any]:
    """Let a bound that is zero stand for both zeros, as Parquet's readers do with its statistics.

    To Iceberg -0.0 is less than 0.0; to ClickHouse, whose bound is the one that came first, and to SQL they are equal.
    """
    for field in schema.fields:
        if not isinstance(field.field_type, FloatType | DoubleType):
            continue
        form = "<f" if isinstance(field.field_type, FloatType) else "<d"
        for bounds, narrow in (("lower_bounds", 0.0), ("upper_bounds", -0.0)):
            held = described[bounds]
            if held.get(field.field_id) == struct.pack(form, narrow):
                held[field.field_id] = struct.pack(form, -narrow)
    return described


def max_sequence(table: Table, column: str, files: Sequence[Streamed]) -> int | None:
    """Return the largest sequence number of some files, from their bounds; None where there are none."""
    field = table.schema().find_field(column)
    if not isinstance(field.field_type, IntegerType | LongType | DecimalType | FloatType | DoubleType):
        return None  # a text's bounds are cut short
    bounds = [(data_file(table, file).upper_bounds or {}).get(field.field_id) for file in files]
    return max((int(from_bytes(field.field_type, bound)) for bound in bounds if bound is not None), default=None)
