"""The baseline: its table, its watermark, its jars, and the command that runs it."""

from __future__ import annotations

from pathlib import Path

import psycopg2
from pyiceberg.catalog import Catalog
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import DayTransform
from pyiceberg.types import DecimalType, IcebergType, IntegerType, LongType, NestedField, StringType, TimestamptzType

from stack import jars
from stack.settings import postgres_uri
from stack.state import Stack, write_private

APPLICATION = Path(__file__).with_name("baseline_job.py")
PACKAGES = ("com.clickhouse:clickhouse-jdbc:0.9.4", *jars.ICEBERG)
DRIVER_MEMORY = "2g"
_COLUMNS: dict[str, IcebergType] = {
    "exchange_timestamp": TimestamptzType(),
    "sequence_number": LongType(),
    "symbol": StringType(),
    "side": StringType(),
    "price": DecimalType(38, 8),
    "quantity": DecimalType(38, 8),
    "quote_volume": DecimalType(38, 8),
    "event_time": TimestamptzType(),
    "kafka_offset": LongType(),
    "kafka_partition": IntegerType(),
    "ingestion_timestamp": TimestamptzType(),
}


def prepare(stack: Stack, catalog: Catalog, target: str) -> None:
    """Make the empty Iceberg table, partitioned and compressed as Coldchain's, and forget the watermark.

    Without a sort order or distribution: Spark would then sort and shuffle, which costs it time.
    """
    columns = (
        NestedField(number, name, kind, required=False) for number, (name, kind) in enumerate(_COLUMNS.items(), 1)
    )
    catalog.create_namespace_if_not_exists(target.rpartition(".")[0])
    catalog.create_table(
        target,
        Schema(*columns),
        partition_spec=PartitionSpec(PartitionField(1, 1000, DayTransform(), "exchange_timestamp_day")),
        properties={
            "write.parquet.compression-codec": "zstd",
            "write.parquet.compression-level": "3",
            "write.distribution-mode": "none",
        },
    )
    connection = psycopg2.connect(_watermark_uri(stack))
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS bench_watermarks (table_name text PRIMARY KEY, last_offload_timestamp "
            "timestamptz, last_offload_max_sequence bigint, last_offload_row_count bigint, updated_at timestamptz)"
        )
        cursor.execute("DELETE FROM bench_watermarks")
    connection.close()


def command(
    stack: Stack, folder: Path, jars: str, source: str, target: str, end: str
) -> tuple[list[str], dict[str, str]]:
    """Return spark-submit's arguments, and what its environment needs besides; secrets go into a private file."""
    catalog = "spark.sql.catalog.coldchain"
    configuration = {
        "spark.driver.extraClassPath": jars,
        "spark.driver.memory": DRIVER_MEMORY,
        "spark.ui.enabled": "false",
        "spark.log.level": "WARN",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        catalog: "org.apache.iceberg.spark.SparkCatalog",
        f"{catalog}.type": "jdbc",
        f"{catalog}.uri": f"jdbc:postgresql://127.0.0.1:{stack.ports['postgres']}/iceberg",
        f"{catalog}.jdbc.user": "iceberg",
        f"{catalog}.jdbc.password": stack.secrets["iceberg"],
        f"{catalog}.jdbc.schema-version": "V1",
        f"{catalog}.warehouse": str(stack.warehouse),
    }
    properties = folder / "baseline.conf"
    write_private(properties, "".join(f"{name} {value}\n" for name, value in configuration.items()))
    argv = ["spark-submit", "--master", "local[2]", "--properties-file", str(properties), str(APPLICATION)]
    argv += [source, f"coldchain.{target}", end]
    environment = {
        # Driver 0.9.4 works only with answers that are not compressed.
        "BENCH_JDBC_URL": f"jdbc:clickhouse://127.0.0.1:{stack.ports['clickhouse_http']}/k2?compress=0",
        "BENCH_WATERMARK_URI": _watermark_uri(stack),
        # The driver sets settings of its own, which the profile of Coldchain's reader refuses.
        "BENCH_JDBC_USER": "loader",
        "BENCH_JDBC_PASSWORD": stack.secrets["clickhouse_loader"],
    }
    return argv, environment


def _watermark_uri(stack: Stack) -> str:
    return postgres_uri(stack, "coldchain_owner", "coldchain").replace("+psycopg2", "")
