"""A table as append-only jobs leave it: laid out as the bench's baseline lays it out, appended to by pyiceberg."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
    schema_to_pyarrow,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BooleanType,
    DecimalType,
    DoubleType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)

from coldchain.core.windows import DAY_US, to_us
from tests.lab import Lab

# Of the lab's columns `day` is left out, whole numbers are longs, and every column is optional, as Spark's JDBC has it.
COLUMNS: dict[str, IcebergType] = {
    "ts": TimestamptzType(),
    "seq": LongType(),
    "symbol": StringType(),
    "price": DecimalType(38, 8),
    "note": StringType(),
    "ratio": DoubleType(),
    "small": IntegerType(),
    "is_maker": BooleanType(),
    "version": LongType(),
    "batch": StringType(),  # of the baseline's own
}


def make(lab: Lab) -> Table:
    """Make the empty table under the lab's target."""
    fields = (NestedField(number, name, kind, required=False) for number, (name, kind) in enumerate(COLUMNS.items(), 1))
    lab.lake.catalog.create_namespace_if_not_exists("cold")
    return lab.lake.catalog.create_table(
        lab.spec.target,
        Schema(*fields),
        partition_spec=PartitionSpec(PartitionField(1, 1000, DayTransform(), "ts_day")),
    )


def row(moment: datetime, seq: int, *, version: int = 1, price: str = "1.5", **other: Any) -> dict[str, Any]:
    """Build a row as the lab's `insert` writes it."""
    return {
        "ts": moment, "seq": seq, "symbol": "XRPETH", "price": Decimal(price).quantize(Decimal("0.00000001")),
        "note": None if seq % 3 == 0 else f"note {seq}", "ratio": None if seq % 2 else seq / 7,
        "small": seq % 100 - 50, "is_maker": bool(seq % 2), "version": version, "batch": "b1", **other,
    }  # fmt: skip


def append(table: Table, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows of one day, as a run of the baseline does: to a folder and a file named as Spark does."""
    table.refresh()
    schema, held = table.schema(), list(rows)
    moment = held[0]["ts"]
    folder = Path(table.location().removeprefix("file://")) / "data" / f"ts_day={moment and moment.date()}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"00000-1-{uuid.uuid4()}-0-00001.parquet"
    pq.write_table(pa.Table.from_pylist(held, schema=schema_to_pyarrow(schema)), path)
    statistics = data_file_statistics_from_parquet_metadata(
        parquet_metadata=pq.read_metadata(path),
        stats_columns=compute_statistics_plan(schema, table.metadata.properties),
        parquet_column_mapping=parquet_path_to_id_mapping(schema),
    )
    file = DataFile.from_args(
        content=DataFileContent.DATA, file_path=str(path), file_format=FileFormat.PARQUET,
        partition=Record(moment and to_us(moment) // DAY_US), file_size_in_bytes=path.stat().st_size,
        sort_order_id=None, spec_id=table.metadata.default_spec_id, equality_ids=None, key_metadata=None,
        **statistics.to_serialized_dict(),
    )  # fmt: skip
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as snapshot:
        snapshot.append_data_file(file)
