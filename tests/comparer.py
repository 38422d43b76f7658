"""The independent judge: whether the rows of an Iceberg table are those of its ClickHouse source, one by one.

It shares nothing with what it judges: ClickHouse gives its rows as Arrow over HTTP, pyiceberg scans `main` into
Arrow, values are brought to one form and counted as whole rows. No hash, no fingerprint, no Parquet reader of
ClickHouse.

As a program: ``python -m tests.comparer k2.bronze_trades_binance=12477 ...`` compares each table with the target that
the registry gives it, and its number of rows, by the variables of ``.run/env``; exit code 1 if anything differs, or if
there was nothing to compare.
"""

import os
import re
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, GreaterThanOrEqual, LessThan
from pyiceberg.table import Table

# Pieces of a day; of six hours where a day would be too much for the memory of a small machine.
PIECES = ((1_000_000, timedelta(days=1)), (1 << 63, timedelta(hours=6)))
SHOWN = 5
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WIDEST = 38
# What ClickHouse's Arrow gives as bare numbers or bytes, and Iceberg as text.
AS_TEXT = ("Enum", "UUID", "IPv4", "IPv6")
SECONDS = re.compile(r"^(Nullable\()?DateTime(?!64)")
REGISTRY = Path(__file__).parents[1] / "include" / "tables.yaml"


@dataclass(slots=True)
class Comparison:
    """What was found. A row is shown as a dict of its columns.

    Attributes:
        source_rows: Rows of the source in the window, under FINAL.
        target_rows: Rows of `main` in the window.
        missing: Rows of the source that the target lacks.
        doubled: Rows that the target holds more often than the source.
        foreign: Rows that only the target holds.
        differing: Rows with the same key on both sides and other values, as pairs (source, target).
        columns: Why the two can't be compared, where their columns are not the same.
    """

    source: str
    target: str
    source_rows: int = 0
    target_rows: int = 0
    missing_rows: int = 0
    doubled_rows: int = 0
    foreign_rows: int = 0
    missing: list[dict[str, Any]] = field(default_factory=list)
    doubled: list[dict[str, Any]] = field(default_factory=list)
    foreign: list[dict[str, Any]] = field(default_factory=list)
    differing: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    columns: str = ""

    @property
    def is_equal(self) -> bool:
        """Tell whether both sides hold the same rows."""
        return not (self.columns or self.missing_rows or self.doubled_rows or self.foreign_rows) and (
            self.source_rows == self.target_rows
        )

    def __str__(self) -> str:
        """Say the outcome, with the first few rows that differ."""
        if self.columns:
            return f"{self.target} can't be compared with {self.source}: {self.columns}"
        counts = f"{self.target}: {self.target_rows:,} rows in Iceberg, {self.source_rows:,} in {self.source}"
        if self.is_equal:
            return f"{counts}: every row is equal"
        lines = [
            f"{counts}: {self.missing_rows:,} missing, {self.doubled_rows:,} doubled, {self.foreign_rows:,} foreign"
        ]
        lines += [f"  differs: {ours}\n       is: {theirs}" for ours, theirs in self.differing]
        for kind in ("missing", "doubled", "foreign"):
            lines += [f"  {kind}: {row}" for row in getattr(self, kind)]
        return "\n".join(lines)


def connect_clickhouse(url: str, user: str, password: str) -> Any:
    """Connect to ClickHouse's HTTP address."""
    address = urlsplit(url)
    return clickhouse_connect.get_client(
        host=address.hostname or "", port=address.port or 8123, username=user, password=password
    )


def compare(
    client: Any,
    catalog: Catalog,
    *,
    source: str,
    target: str,
    event_time: str,
    start: datetime | None = None,
    end: datetime | None = None,
    key: Sequence[str] = (),
    final: bool = True,
) -> Comparison:
    """Compare all columns of all rows whose event time lies in ``[start, end)``.

    Args:
        client: From `connect_clickhouse`.
        catalog: Holds the target, ``namespace.name``.
        source: ``database.table``.
        target: Name in the catalog.
        event_time: The column by which the window, and the work, is cut.
        start: Inclusive; without it from the first row on.
        end: Exclusive; without it to the last row.
        key: Columns by which a missing and a foreign row are shown as one that differs.
        final: Read the source under FINAL; a view is read as it is in any case.
    """
    found = Comparison(source, target)
    table = catalog.load_table(target)
    types = source_types(client, source)
    final = final and not _is_view(client, source)
    found.columns = _column_problem(list(types), [each.name for each in table.schema().fields])
    if found.columns:
        return found
    reader = Sides(client, table, source, event_time, types, "FINAL" if final else "")
    rows: list[tuple[dict[str, Any], int, int]] = []
    for chunk_start, chunk_end in reader.chunks(start, end):
        rows += _count(found, reader.source_rows(chunk_start, chunk_end), reader.target_rows(chunk_start, chunk_end))
    if start is None and end is None and not found.columns:
        _compare_totals(found, reader)
    _explain(found, rows, key)
    return found


@dataclass(slots=True)
class Sides:
    """Reads both sides of one table, whole or in pieces of event time, in the same form; `main` as it was loaded."""

    client: Any
    table: Table
    source: str
    event_time: str
    types: dict[str, str]
    final: str

    def chunks(self, start: datetime | None, end: datetime | None) -> Iterator[tuple[datetime, datetime]]:
        """Yield the pieces of the window in which either side has a row."""
        rows = self.client.query(f"SELECT count() FROM {self.source}").result_rows[0][0]
        piece_width = next(piece for most, piece in PIECES if rows < most)
        width = piece_width // timedelta(microseconds=1)
        numbers = self._source_chunks(width, start, end) | self._target_chunks(width)
        for number in sorted(numbers):
            chunk_start = EPOCH + timedelta(microseconds=number * width)
            piece = (
                max(chunk_start, start or chunk_start),
                min(chunk_start + piece_width, end or chunk_start + piece_width),
            )
            if piece[0] < piece[1]:
                yield piece

    def source_rows(self, start: datetime | None = None, end: datetime | None = None) -> pa.Table:
        """Read the source's rows of ``[start, end)``, or all of them."""
        columns = ", ".join(_expression(name, kind) for name, kind in self.types.items())
        condition = self._window(start, end) if start and end else "true"
        statement = f"SELECT {columns} FROM {self.source} {self.final} WHERE {condition}"
        settings = {"output_format_arrow_string_as_string": 1, "output_format_arrow_low_cardinality_as_dictionary": 0}
        return _canonical(self.client.query_arrow(statement, settings=settings), list(self.types))

    def target_rows(self, start: datetime | None = None, end: datetime | None = None) -> pa.Table:
        """Read the target's rows of ``[start, end)``, or all of them."""
        window: BooleanExpression = AlwaysTrue()
        if start and end:
            bounds = [self._literal(each) for each in (start, end)]
            window = And(GreaterThanOrEqual(self.event_time, bounds[0]), LessThan(self.event_time, bounds[1]))
        rows = self.table.scan(row_filter=window).to_arrow()
        return _canonical(rows, list(self.types), [name for name, kind in self.types.items() if "UUID" in kind])

    def totals(self) -> tuple[int, int]:
        """Count all rows of both sides, those without an event time too."""
        rows = self.client.query(f"SELECT count() FROM {self.source} {self.final}").result_rows[0][0]
        return rows, self.table.scan(selected_fields=(self.event_time,)).to_arrow().num_rows

    def _source_chunks(self, width: int, start: datetime | None, end: datetime | None) -> set[int]:
        moment = f"toUnixTimestamp64Micro(toDateTime64({self.event_time}, 6, 'UTC'))"
        statement = f"SELECT DISTINCT intDiv({moment} - positiveModulo({moment}, {width}), {width}) FROM {self.source}"
        condition = self._window(start, end) if start and end else f"isNotNull({self.event_time})"
        return {row[0] for row in self.client.query(f"{statement} WHERE {condition}").result_rows}

    def _target_chunks(self, width: int) -> set[int]:
        times = self.table.scan(selected_fields=(self.event_time,)).to_arrow()[self.event_time]
        micros = times.cast(pa.timestamp("us", times.type.tz)).cast(pa.int64()).drop_null()
        numbers = pc.unique(pc.floor(pc.divide(micros.cast(pa.float64()), float(width))))
        return {int(number) for number in numbers.to_pylist()}

    def _window(self, start: datetime, end: datetime) -> str:
        bounds = [
            f"fromUnixTimestamp64Micro({(each - EPOCH) // timedelta(microseconds=1)}, 'UTC')" for each in (start, end)
        ]
        moment = f"toDateTime64({self.event_time}, 6, 'UTC')"
        return f"{moment} >= {bounds[0]} AND {moment} < {bounds[1]}"

    def _literal(self, moment: datetime) -> str:
        is_zoned = str(self.table.schema().find_type(self.event_time)) == "timestamptz"
        return (moment if is_zoned else moment.replace(tzinfo=None)).isoformat(timespec="microseconds")


def source_types(client: Any, source: str) -> dict[str, str]:
    """Return the type of every column."""
    return {row[0]: row[1] for row in client.query(f"DESCRIBE TABLE {source}").result_rows}


def _is_view(client: Any, source: str) -> bool:
    database, _, name = source.partition(".")
    statement = "SELECT engine FROM system.tables WHERE database = {database:String} AND name = {name:String}"
    rows = client.query(statement, parameters={"database": database, "name": name}).result_rows
    return bool(rows) and rows[0][0] == "View"


def _column_problem(source: list[str], target: list[str]) -> str:
    only = [f"only in ClickHouse: {', '.join(sorted(set(source) - set(target)))}" if set(source) - set(target) else ""]
    only.append(f"only in Iceberg: {', '.join(sorted(set(target) - set(source)))}" if set(target) - set(source) else "")
    return "; ".join(filter(None, only))


def _type_problem(source: pa.Schema, target: pa.Schema) -> str:
    pairs = [(name, source.field(name).type, target.field(name).type) for name in source.names]
    return "; ".join(
        f"{name} is {ours} in ClickHouse, {theirs} in Iceberg" for name, ours, theirs in pairs if ours != theirs
    )


def _expression(name: str, kind: str) -> str:
    if any(word in kind for word in AS_TEXT):
        return f"toString({name}) AS {name}"
    # Arrow would get a bare number.
    return f"toDateTime64({name}, 6, 'UTC') AS {name}" if SECONDS.search(kind) else name


def _canonical(rows: pa.Table, names: Sequence[str], uuids: Sequence[str] = ()) -> pa.Table:
    """Bring a table to the form in which equal values are equal, whichever side they come from.

    ``uuids`` names columns whose 16 bytes, where they are bytes, are a UUID.
    """
    return pa.table({n: _canonical_column(_uuid_text(rows[n]) if n in uuids else rows[n]) for n in names})


def _uuid_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return UUIDs as text, whether Iceberg holds them as its own type (Arrow's extension or 16 bytes) or as text."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
    if not pa.types.is_fixed_size_binary(column.type):
        return column
    values = [None if value is None else str(uuid.UUID(bytes=value)) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(values, pa.large_string())])


def _canonical_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _canonical_column(column.cast(kind.value_type))
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
    if pa.types.is_boolean(kind):
        return column.cast(pa.int8()).cast(pa.int64())
    if pa.types.is_integer(kind):
        return column.cast(pa.decimal128(WIDEST, 0))
    if pa.types.is_decimal(kind):
        return column.cast(pa.decimal128(WIDEST, kind.scale))
    if pa.types.is_floating(kind):
        return _float_bits(column)
    if pa.types.is_large_string(kind) or pa.types.is_string(kind):
        return column.cast(pa.large_string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return column.cast(pa.large_binary())
    if pa.types.is_date(kind):
        return column.cast(pa.date32()).cast(pa.int32())
    if _is_list_of_text(kind) or (pa.types.is_map(kind) and _is_text(kind.key_type) and _is_text(kind.item_type)):
        return pa.chunked_array([_joined(chunk) for chunk in column.chunks], pa.large_string())
    return pa.chunked_array(
        [pa.array([None if v is None else _text(v) for v in column.to_pylist()], pa.large_string())]
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list_of_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)


def _joined(chunk: pa.Array) -> pa.Array:
    """Return each list, or each map in the order of its pairs, as one text: what `_text` does, without Python a row."""
    whole = pa.concat_arrays([chunk])
    if pa.types.is_map(chunk.type):
        values = pc.binary_join_element_wise(_quoted(whole.keys), _quoted(whole.items), _large(": "))
    else:
        values = _quoted(whole.values)
    offsets = pc.subtract(whole.offsets, whole.offsets[0]).cast(pa.int64())
    lists = pa.LargeListArray.from_arrays(offsets, values.slice(whole.offsets[0].as_py(), offsets[-1].as_py()))
    joined = pc.binary_join(lists, _large(", "))
    return pc.if_else(chunk.is_valid(), joined, _large(None))


def _quoted(values: pa.Array) -> pa.Array:
    """Quote each text so that no text can look like two, and NULL like none."""
    escaped = pc.replace_substring(pc.replace_substring(values.cast(pa.large_string()), "\\", "\\\\"), '"', '\\"')
    quoted = pc.binary_join_element_wise(_large('"'), escaped, _large('"'), _large(""))
    return pc.fill_null(quoted, _large("NULL"))


def _large(text: str | None) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


def _float_bits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return floats by their bits, every NaN as one: NaN equals NaN here, and -0.0 is not 0.0."""
    wide = column.cast(pa.float64())
    whole = pc.if_else(pc.is_nan(wide), pa.scalar(float("nan")), wide)
    return pa.chunked_array([chunk.view(pa.int64()) for chunk in whole.chunks], pa.int64())


def _text(value: Any) -> str:
    """Return a nested value in one spelling; a map keeps the order of its pairs."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(each) for each in value) + "]"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    return repr(value)


def _count(found: Comparison, source: pa.Table, target: pa.Table) -> list[tuple[dict[str, Any], int, int]]:
    """Add one piece to what was found; return the rows that differ, with how often each side holds them."""
    found.source_rows += source.num_rows
    found.target_rows += target.num_rows
    found.columns = _type_problem(source.schema, target.schema)
    if found.columns:
        return []
    if _sorted(source).equals(_sorted(target)):
        return []
    sides = [_with_side(source, 1, 0), _with_side(target, 0, 1)]
    grouped = pa.concat_tables(sides).group_by(source.column_names).aggregate([("_source", "sum"), ("_target", "sum")])
    unequal = grouped.filter(pc.not_equal(grouped["_source_sum"], grouped["_target_sum"]))
    rows = []
    for row in unequal.to_pylist():
        ours, theirs = row.pop("_source_sum"), row.pop("_target_sum")
        found.missing_rows += max(ours - theirs, 0)
        found.doubled_rows += max(theirs - ours, 0) if ours else 0
        found.foreign_rows += 0 if ours else theirs
        rows.append((row, ours, theirs))
    return rows


def _sorted(rows: pa.Table) -> pa.Table:
    """Sort by every column, so that equal sets of rows become equal tables: much faster than counting each row."""
    return rows.sort_by([(name, "ascending") for name in rows.column_names]).combine_chunks()


def _with_side(rows: pa.Table, ours: int, theirs: int) -> pa.Table:
    for name, value in (("_source", ours), ("_target", theirs)):
        rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.int32()))
    return rows


def _explain(found: Comparison, rows: list[tuple[dict[str, Any], int, int]], key: Sequence[str]) -> None:
    """Keep the first few rows of each kind; a missing and a foreign row of one key are one that differs."""
    foreign = {tuple(row[name] for name in key): row for row, ours, _theirs in rows if not ours} if key else {}
    for row, ours, theirs in rows:
        other = foreign.get(tuple(row[name] for name in key)) if key and ours and not theirs else None
        if other is not None:
            found.differing.append((row, other))
        kind = found.missing if ours > theirs else found.doubled if ours else found.foreign
        kind.append(row)
    for kept in (found.missing, found.doubled, found.foreign, found.differing):
        del kept[SHOWN:]


def _compare_totals(found: Comparison, reader: Sides) -> None:
    """Include rows that no piece of time holds: without an event time."""
    source, target = reader.totals()
    if (source, target) != (found.source_rows, found.target_rows):
        found.columns = (
            f"{source - found.source_rows} rows of ClickHouse and {target - found.target_rows} of Iceberg "
            f"came in between or have no {reader.event_time}"
        )


def main(arguments: Sequence[str]) -> int:
    """Compare each ``source=rows`` and print a line for it."""
    env = os.environ
    client = connect_clickhouse(
        env["COLDCHAIN_CLICKHOUSE_URL"], env["COLDCHAIN_CLICKHOUSE_USER"], env["COLDCHAIN_CLICKHOUSE_PASSWORD"]
    )
    address = {"type": "sql", "uri": env["COLDCHAIN_CATALOG_URI"], "warehouse": env["COLDCHAIN_WAREHOUSE"]}
    catalog = load_catalog("coldchain", **address)
    registry = _registry(Path(env.get("COLDCHAIN_REGISTRY") or REGISTRY))
    outcomes = [_judge(client, catalog, registry, *argument.partition("=")[::2]) for argument in arguments]
    return 0 if outcomes and all(outcomes) else 1


def _registry(path: Path) -> dict[str, dict[str, Any]]:
    """Read the registry's entries by source, as plain YAML."""
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {entry["source"]: {**whole.get("defaults", {}), **entry} for entry in whole["tables"]}


def _judge(client: Any, catalog: Catalog, registry: dict[str, dict[str, Any]], source: str, expected: str) -> bool:
    entry = registry.get(source)
    if entry is None:
        print(f"{source} is not in the registry: nothing keeps it")
        return False
    target = entry["target"]
    if not catalog.table_exists(target):
        print(f"{target} does not exist in the catalog")
        return False
    is_final = entry.get("read", "final") == "final"
    found = compare(
        client,
        catalog,
        source=source,
        target=target,
        event_time=entry["event_time"],
        key=entry["key"],
        final=is_final,
    )
    print(found)
    if found.target_rows != int(expected):
        print(f"{target} holds {found.target_rows:,} rows and {int(expected):,} were loaded")
    return found.is_equal and found.target_rows == int(expected) > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
