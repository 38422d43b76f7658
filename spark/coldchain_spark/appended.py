"""Read a table that somebody else wrote, as Iceberg says: by field id, whatever the columns of its files are called.

pyiceberg reads it, not ClickHouse's engine: that goes by names, and a column that was renamed since would be NULL in
silence. One snapshot is read, by its metadata file, so that every executor sees the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, GreaterThanOrEqual, LessThan
from pyiceberg.io.pyarrow import ArrowScan, schema_to_pyarrow
from pyiceberg.table import DataScan, StaticTable

from coldchain.core.adoption import ORDER
from coldchain.core.windows import Window, to_datetime
from coldchain.lake import normalised


@dataclass(frozen=True, slots=True)
class Appended:
    """A snapshot of a table, picklable: `properties` are the catalog's, for its files' store."""

    location: str
    snapshot_id: int
    event_time: str
    properties: dict[str, str] = field(repr=False)

    def _scan(self, names: Sequence[str], where: BooleanExpression) -> DataScan:
        table = StaticTable.from_metadata(self.location, self.properties)
        return table.scan(row_filter=where, selected_fields=tuple(names), snapshot_id=self.snapshot_id)

    def _batches(self, scan: DataScan) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Yield the rows file by file, with the file's path."""
        arrow = ArrowScan(scan.table_metadata, scan.io, scan.projection(), scan.row_filter, scan.case_sensitive)
        for task in scan.plan_files():
            for batch in arrow.to_record_batches([task]):
                yield normalised(task.file.file_path), batch

    def counts(self, grid_us: int) -> tuple[dict[int, int], int]:
        """Count the rows by start of grid bucket; return also how many have no event time, and so no bucket."""
        found: Counter[int] = Counter()
        without = 0
        for _, batch in self._batches(self._scan([self.event_time], AlwaysTrue())):
            column = batch.column(self.event_time)
            without += column.null_count
            times = pc.cast(column.drop_null(), pa.int64()).to_numpy(zero_copy_only=False)
            starts, rows = np.unique(times // grid_us, return_counts=True)
            found.update(dict(zip((starts * grid_us).tolist(), rows.tolist(), strict=True)))
        return dict(found), without

    def copy(self, names: Sequence[str], window: Window, orders: dict[str, int], path: Path) -> None:
        """Copy the rows of a window to a local Parquet file, each with the order in which its file was appended."""
        start, end = (to_datetime(us).isoformat() for us in (window.start_us, window.end_us))
        where = And(
            GreaterThanOrEqual(self.event_time, start),  # type: ignore[call-arg, arg-type]
            LessThan(self.event_time, end),  # type: ignore[call-arg, arg-type]
        )
        scan = self._scan(names, where)
        schema = schema_to_pyarrow(scan.projection(), include_field_ids=False)
        whole = schema.append(pa.field(ORDER, pa.int64()))
        with pq.ParquetWriter(path, whole) as writer:
            for file, batch in self._batches(scan):
                rows: Any = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
                writer.write_table(rows.append_column(ORDER, pa.repeat(orders[file], batch.num_rows)))
