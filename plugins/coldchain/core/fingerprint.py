"""Fingerprints: what makes two sets of rows comparable by content, whatever their order.

`hash` is the sum modulo 2^64 of cityHash64 over the canonical columns of each row. Sums of UInt64 wrap silently in
ClickHouse, which is what makes a day's fingerprint the sum of its segments'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coldchain.core.canonical import invalid_text
from coldchain.core.sql import Query, comma, in_windows, quote, quote_table
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column
from coldchain.core.windows import Window

HASH_MODULUS = 2**64


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Number of rows and sum of their hashes modulo 2^64."""

    rows: int
    hash: int

    def __add__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint(self.rows + other.rows, (self.hash + other.hash) % HASH_MODULUS)

    def __str__(self) -> str:
        return f"{self.rows:,} rows, hash {self.hash:016x}"


EMPTY = Fingerprint(0, 0)

# Bucket start in microseconds -> fingerprint; buckets without rows are left out.
Buckets = Mapping[int, Fingerprint]


def total(fingerprints: Iterable[Fingerprint]) -> Fingerprint:
    """Add fingerprints of disjoint sets of rows."""
    result = EMPTY
    for fingerprint in fingerprints:
        result += fingerprint
    return result


def within(buckets: Buckets, window: Window) -> dict[int, Fingerprint]:
    """Select the buckets that start in a window."""
    return {start: buckets[start] for start in sorted(buckets) if window.start_us <= start < window.end_us}


def version(columns: Sequence[Column]) -> str:
    """Name the columns, canonical types and hash expressions that a fingerprint is made with (12 hex digits)."""
    text = json.dumps([(column.name, column.clickhouse, column.nullable, column.hash) for column in columns])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def row_hash(columns: Sequence[Column]) -> str:
    """Build the hash of one row over canonical columns, in field-id order; never NULL."""
    return f"cityHash64({comma(column.hash for column in columns)})"


def canonical_rows(
    table: TableSpec, columns: Sequence[Column], windows: Sequence[Window], partition: Sequence[str] = ()
) -> Query:
    """Build the SELECT of the canonical rows of some windows, in field-id order, as every reader of the source does.

    Args:
        table: the table.
        columns: its canonical columns.
        windows: half-open, in event time.
        partition: the text of the partition columns, for rows of one Iceberg partition only.
    """
    condition = in_windows(quote(table.event_time), windows)
    source = relation(table, windows)
    # An alias of a column's own name would otherwise be used in WHERE, and hide the column's index.
    selected = comma(f"{column.select} AS {quote(column.name)}" for column in columns)
    values = {f"p{index}": value for index, value in enumerate(partition)}
    of = "".join(
        f" AND {quote(name)} = {{p{index}:String}}"
        for index, (name, _) in enumerate(zip(table.partition_columns, partition, strict=False))
    )
    text = f"SELECT {selected} FROM {source.text} WHERE {condition.text}{of}"
    return Query(
        f"{text} SETTINGS prefer_column_name_to_alias = 1", {**condition.parameters, **source.parameters, **values}
    )


def relation(table: TableSpec, windows: Sequence[Window]) -> Query:
    """Build what stands behind FROM: the table, its FINAL, or the registry's own SELECT.

    That SELECT may limit what it reads by `{start_us:Int64}` and `{end_us:Int64}`, the hull of the windows.
    """
    if table.read == "select":
        hull = {
            "start_us": min((w.start_us for w in windows), default=0),
            "end_us": max((w.end_us for w in windows), default=0),
        }
        return Query(f"({table.select})", {**hull})
    return Query(quote_table(table.source) + (" FINAL" if table.read == "final" else ""), {})


def bucket_of(event_time: str) -> str:
    """Build the start of an event time's bucket; floor division also before 1970 (intDiv rounds towards zero)."""
    micros = f"toUnixTimestamp64Micro({quote(event_time)})"
    return f"{micros} - positiveModulo({micros}, {{grid:Int64}})"


_TOTALS = "count() AS `rows`, sum({row_hash}) AS `hash`, countIf(isNull({row_hash})) AS `unhashed`"


def source_buckets(
    table: TableSpec, columns: Sequence[Column], windows: Sequence[Window], grid_us: int, partition: Sequence[str] = ()
) -> Query:
    """Build `(bucket start in us, rows, hash, rows without a hash)` per non-empty bucket of the source.

    `partition` is the text of the partition columns, for rows of one Iceberg partition only.
    """
    rows = canonical_rows(table, columns, windows, partition)
    text = (
        f"SELECT {bucket_of(table.event_time)} AS `bucket`, {_TOTALS.format(row_hash=row_hash(columns))}"
        f" FROM ({rows.text}) GROUP BY `bucket` ORDER BY `bucket`"
    )
    return Query(text, {**rows.parameters, "grid": grid_us})


def file_buckets(
    table: TableSpec, columns: Sequence[Column], relation: str, grid_us: int, counters: Sequence[Query] = ()
) -> Query:
    """Build what Parquet files hold, read with explicit types, per file and bucket.

    `(path, bucket, rows, hash, unhashed, invalid text rows, first event time in us, last, partition columns' values,
    counts)`: of the values, each an array of texts, two at most, for a file should hold rows of one; of the counters,
    each an expression that counts some rows of a bucket, an array in their order.
    """
    texts = [each for column in columns for each in invalid_text(column.value, quote(column.name))]
    invalid = f"countIf({' OR '.join(texts)})" if texts else "0"
    micros = f"toUnixTimestamp64Micro({quote(table.event_time)})"
    values = comma(f"toString({quote(name)})" for name in table.partition_columns)
    text = (
        f"SELECT _path, {bucket_of(table.event_time)} AS `bucket`, {_TOTALS.format(row_hash=row_hash(columns))},"
        f" {invalid} AS `invalid`, min({micros}), max({micros}),"
        f" groupUniqArray(2)(CAST([{values}], 'Array(String)')),"
        f" CAST([{comma(counter.text for counter in counters)}], 'Array(UInt64)')"
        f" FROM {relation} GROUP BY _path, `bucket` ORDER BY _path, `bucket`"
    )
    bound = {name: value for counter in counters for name, value in counter.parameters.items()}
    return Query(text, {"grid": grid_us, **bound})


def structure(columns: Sequence[Column]) -> str:
    """Build the explicit structure for reading Parquet of these columns."""
    return comma(column.structure for column in columns)
