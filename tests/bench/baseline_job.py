"""The offload that people write today, run by spark-submit: one JDBC partition, cached, appended, watermark last.

What is measured against, so it gets every advantage that its kind allows: the table exists already, the rows are read
without FINAL and fetched 100,000 at a time without compression, one pass over the cached rows gives their number and
both maxima, its jars are on the class path (nothing is resolved or copied), and it checks nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import psycopg2
from pyspark.sql import SparkSession, functions

FIRST_SEQUENCE = 5_000_000_000  # of tests/bench/workload.py
_COLUMNS = (
    "exchange_timestamp, toInt64(sequence_number) AS sequence_number, toString(symbol) AS symbol, "
    "toString(side) AS side, price, quantity, quote_volume, event_time, toInt64(kafka_offset) AS kafka_offset, "
    "toInt32(kafka_partition) AS kafka_partition, ingestion_timestamp"
)


def main(source: str, target: str, end: str) -> int:
    """Offload what lies between the watermark and `end` to the Iceberg table; print what moved as JSON."""
    began = time.monotonic()
    spark = SparkSession.builder.appName(f"baseline-{target}").getOrCreate()
    spark.sparkContext.setLogLevel("WARN")
    marks = {"session": time.monotonic() - began}
    watermark = _watermark(source)
    rows = (
        spark.read.format("jdbc")
        .option("driver", "com.clickhouse.jdbc.ClickHouseDriver")
        .option("url", os.environ["BENCH_JDBC_URL"])
        .option("user", os.environ["BENCH_JDBC_USER"])
        .option("password", os.environ["BENCH_JDBC_PASSWORD"])
        .option("fetchsize", 100_000)
        .option(
            "dbtable",
            f"(SELECT {_COLUMNS} FROM {source} WHERE exchange_timestamp > toDateTime64('{watermark}', 6, 'UTC')"
            f" AND exchange_timestamp <= toDateTime64('{end}', 6, 'UTC')) AS rows",
        )
        .options(**_split())
        .load()
        .cache()
    )
    count, newest, sequence = rows.agg(
        functions.count("*"), functions.max("exchange_timestamp"), functions.max("sequence_number")
    ).first()
    marks["read"] = time.monotonic() - began
    rows.writeTo(target).append()
    marks["written"] = time.monotonic() - began
    rows.unpersist()
    _advance(source, newest, sequence, count)
    spark.stop()
    print(json.dumps({"rows": count, **marks}))
    return 0


def _split() -> dict[str, str]:
    """Return how the read is split over sequence numbers, which the workload numbers through; not at all for one."""
    partitions, rows = os.environ["BENCH_PARTITIONS"], int(os.environ["BENCH_ROWS"])
    if partitions == "1":
        return {}
    bounds = {"lowerBound": str(FIRST_SEQUENCE), "upperBound": str(FIRST_SEQUENCE + rows)}
    return {"partitionColumn": "sequence_number", "numPartitions": partitions, **bounds}


def _watermark(source: str) -> str:
    with _connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT last_offload_timestamp FROM bench_watermarks WHERE table_name = %s", (source,))
        row = cursor.fetchone()
    return row[0].strftime("%Y-%m-%d %H:%M:%S.%f") if row else "2000-01-01 00:00:00"


def _advance(source: str, newest: Any, sequence: int, rows: int) -> None:
    with _connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO bench_watermarks VALUES (%s, %s, %s, %s, now()) ON CONFLICT (table_name) DO UPDATE SET "
            "last_offload_timestamp = excluded.last_offload_timestamp, last_offload_row_count = "
            "excluded.last_offload_row_count, last_offload_max_sequence = excluded.last_offload_max_sequence, "
            "updated_at = excluded.updated_at",
            (source, newest, sequence, rows),
        )


def _connect() -> Any:
    return psycopg2.connect(os.environ["BENCH_WATERMARK_URI"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
