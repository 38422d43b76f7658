"""A real REST catalog: Iceberg's own server, made for tests of clients, over the catalog's PostgreSQL.

`org.apache.iceberg:iceberg-open-api:1.10.0:test-fixtures` and what it needs come from Maven Central by Ivy, which is
part of pyspark; the rest of its class path is Spark's.
"""

from __future__ import annotations

from pathlib import Path

import pyspark

ROOT = Path(__file__).parents[1]
SPARK_JARS = Path(pyspark.__file__).parent / "jars"
SERVER = "org.apache.iceberg.rest.RESTCatalogServer"
