"""A real REST catalog: Iceberg's own server, made for tests of clients, over the catalog's PostgreSQL.

`org.apache.iceberg:iceberg-open-api:1.10.0:test-fixtures` and what it needs come from Maven Central by Ivy, which is
part of pyspark; the rest of its class path is Spark's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyspark

from tests.processes import await_true, free_port

ROOT = Path(__file__).parents[1]
SPARK_JARS = Path(pyspark.__file__).parent / "jars"
SERVER = "org.apache.iceberg.rest.RESTCatalogServer"
