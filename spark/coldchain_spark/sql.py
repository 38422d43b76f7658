"""A Spark SQL session over the same Iceberg catalog. It reads, and maintains; it never commits an offload."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from pyspark.sql import SparkSession

from coldchain.core.production import is_rest
from coldchain.settings import CATALOG_NAME, Settings


def catalog_options(settings: Settings) -> dict[str, str]:
    """Return the catalog's properties in Iceberg's own words for Java; they hold its password."""
    if is_rest(settings.catalog_uri):
        # With one authority for all that the JVM trusts there is no property for it: see its javax.net.ssl.trustStore.
        return {name: value for name, value in settings.catalog_properties.items() if isinstance(value, str)}
    uri = urlsplit(settings.catalog_uri)
    query = f"?{uri.query}" if uri.query else ""
    return {
        "type": "jdbc",
        "uri": f"jdbc:postgresql://{uri.hostname}:{uri.port or 5432}{uri.path}{query}",
        "jdbc.user": unquote(uri.username or ""),
        "jdbc.password": unquote(uri.password or ""),
        "jdbc.schema-version": "V1",
        "warehouse": settings.warehouse,
    }


@contextmanager
def open_session(settings: Settings) -> Iterator[SparkSession]:
    """Open a session; the catalog's password is set inside the process, and is in no argument."""
    catalog = f"spark.sql.catalog.{CATALOG_NAME}"
    options = {
        catalog: "org.apache.iceberg.spark.SparkCatalog",
        **{f"{catalog}.{name}": value for name, value in catalog_options(settings).items()},
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
