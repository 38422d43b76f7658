"""ClickHouse's own engine in this process (chdb): what the type map and the fingerprints are tried on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from pyiceberg.schema import index_by_name

from coldchain.clickhouse import render
from coldchain.core.fingerprint import file_buckets, row_hash, source_buckets, structure
from coldchain.core.sql import Query
from coldchain.core.table import TableSpec
from coldchain.core.typemap import Column, canonical_column
from coldchain.core.windows import DAY_US, MAX_US, MIN_US, MINUTE_US, Window
from coldchain.lake import iceberg_schema
from coldchain_spark import stream
from coldchain_spark.slices import Slice
from coldchain_spark.stream import STREAM_SETTINGS, rows_query

EVER = Window(MIN_US, MAX_US)


class Engine:
    """Runs statements in one session; tables live in memory, in database `k2`."""

    def __init__(self) -> None:
        from chdb.session import Session

        self._session = Session()
        self.execute("CREATE DATABASE IF NOT EXISTS k2 ENGINE = Memory")

    def close(self) -> None:
        """End the session and remove its folder."""
        self._session.cleanup()

    def execute(self, statement: str, output: str = "Null") -> bytes:
        """Run a statement as it is."""
        return bytes(self._session.query(statement, output).bytes())

    def __call__(self, query: Query) -> list[tuple[Any, ...]]:
        """Run a query as the source's client does: values are bound, large integers stay exact."""
        values = {name: render(value) for name, value in query.parameters.items()}
        text = f"{query.text} FORMAT JSONCompact"
        if " SETTINGS " in query.text:
            text = f"SELECT * FROM ({query.text}) FORMAT JSONCompact"
        body = self._session.query(
            f"{text} SETTINGS output_format_json_quote_64bit_integers = 0", "JSONCompact", params=values
        )
        return [tuple(row) for row in json.loads(body.bytes())["data"]]

    def lines(self, query: Query) -> list[str]:
        """Run a query and return its text, line by line."""
        values = {name: render(value) for name, value in query.parameters.items()}
        return bytes(self._session.query(query.text, "TSVRaw", params=values).bytes()).decode().splitlines()

    def make(self, columns: str, rows: Iterable[str], name: str = "t") -> None:
        """Make table `k2.<name>` anew with rows written as ClickHouse values."""
        self.execute(f"DROP TABLE IF EXISTS k2.{name}")
        settings = "SETTINGS allow_suspicious_low_cardinality_types = 1"
        self.execute(f"CREATE TABLE k2.{name} ({columns}) ENGINE = Memory {settings}")
        if values := ", ".join(rows):
            self.execute(f"INSERT INTO k2.{name} VALUES {values}")

    def columns(self, name: str = "t", types: dict[str, str] | None = None) -> tuple[Column, ...]:
        """Map a table's columns as the server names them."""
        rows = self(
            Query(
                f"SELECT name, type FROM system.columns WHERE database = 'k2' AND table = '{name}' ORDER BY position",
                {},
            )
        )
        return tuple(canonical_column(column, kind, (types or {}).get(column)) for column, kind in rows)

    def source(self, columns: Sequence[Column], spec: TableSpec, grid_us: int = DAY_US) -> list[tuple[Any, ...]]:
        """Fingerprint a table: `(bucket, rows, hash, unhashed)`."""
        return self(source_buckets(spec, columns, [EVER], grid_us))

    def hashes(self, columns: Sequence[Column], spec: TableSpec) -> list[int | None]:
        """Hash each row over some of its columns, in order of event time."""
        selected = ", ".join(f"{column.select} AS `{column.name}`" for column in columns)
        rows = f"(SELECT {selected} FROM {spec.source} ORDER BY {spec.event_time})"
        return [row[0] for row in self(Query(f"SELECT {row_hash(columns)} FROM {rows}", {}))]

    def write(self, columns: Sequence[Column], spec: TableSpec, path: Path) -> None:
        """Write a table's canonical rows as the offload streams them, field ids included."""
        query = rows_query(spec, columns, Slice(EVER, EVER, 0))
        made = self.parquet(replace(query, text=query.text.removesuffix(" FORMAT Parquet")), STREAM_SETTINGS)
        path.write_bytes(stamped(made, columns))

    def parquet(self, query: Query, settings: Mapping[str, Any]) -> bytes:
        """Run a query that ends with settings of its own, and return its rows as Parquet."""
        values = {name: render(value) for name, value in query.parameters.items()}
        text = f"{query.text}, {_settings(settings)} FORMAT Parquet"
        return bytes(self._session.query(text, "Parquet", params=values).bytes())

    def parquet_of(self, select: str, settings: Mapping[str, Any]) -> bytes:
        """Run a plain SELECT and return its rows as Parquet."""
        return self.execute(f"{select} SETTINGS {_settings(settings)} FORMAT Parquet", "Parquet")

    def files(
        self, columns: Sequence[Column], spec: TableSpec, path: Path, grid_us: int = DAY_US
    ) -> list[tuple[Any, ...]]:
        """Fingerprint a Parquet file as the proof does: `(path, bucket, rows, hash, unhashed, invalid)`."""
        declared = structure(columns).replace("'", "\\'")
        rows = self(file_buckets(spec, columns, f"file('{path}', Parquet, '{declared}')", grid_us))
        return [row[:6] for row in rows]


def stamped(file: bytes, columns: Sequence[Column]) -> bytes:
    """Give a file its field ids and marks as the stream does."""
    out = BytesIO()
    stream._copy([file], out, index_by_name(iceberg_schema(columns)), stream._marked(columns))
    return out.getvalue()


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in settings.items())


def spec(name: str = "t", event_time: str = "ts") -> TableSpec:
    """A table of the engine as the registry would describe it."""
    return TableSpec(
        name=name,
        layer="bronze",
        source=f"k2.{name}",
        target=f"cold.{name}",
        event_time=event_time,
        sequence="seq",
        key=(event_time,),
        read="raw",
        partitioning=(f"day({event_time})",),
        sort_order=(event_time,),
        grid_us=15 * MINUTE_US,
        lateness_us=MINUTE_US,
        late_horizon_us=DAY_US,
        retention_us=None,
        seal_margin_us=0,
        max_windows=96,
        max_window_rows=1_000_000,
        max_plan_rows=150_000_000,
        change_detection="fingerprint",
    )
