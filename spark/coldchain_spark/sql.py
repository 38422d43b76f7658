"""A Spark SQL session over the same Iceberg catalog. It reads, and maintains; it never commits an offload."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from pyspark.sql import SparkSession

from coldchain.settings import CATALOG_NAME, Settings


@contextmanager
def open_session(settings: Settings) -> Iterator[SparkSession]:
    """Open a session; the catalog's password is set inside the process, and is in no argument."""
    uri = urlsplit(settings.catalog_uri)
    catalog = f"spark.sql.catalog.{CATALOG_NAME}"
    options = {
        catalog: "org.apache.iceberg.spark.SparkCatalog",
        f"{catalog}.type": "jdbc",
        f"{catalog}.uri": f"jdbc:postgresql://{uri.hostname}:{uri.port or 5432}{uri.path}"
        + (f"?{uri.query}" if uri.query else ""),
        f"{catalog}.jdbc.user": unquote(uri.username or ""),
        f"{catalog}.jdbc.password": unquote(uri.password or ""),
        f"{catalog}.jdbc.schema-version": "V1",
        f"{catalog}.warehouse": settings.warehouse,
        f"{catalog}.cache-enabled": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.caseSensitive": "true",
        "spark.sql.shuffle.partitions": "4",
    }
    extensions = "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions"
    session = SparkSession.builder.appName("coldchain").config("spark.sql.extensions", extensions).getOrCreate()
    try:
        # Once it runs: where Python launches the JVM, what the builder gets stands in the list of processes.
        for name, value in options.items():
            session.conf.set(name, value)
        yield session
    finally:
        session.stop()
