"""Read tables with Spark SQL: `python -m tests.read_by_spark`, in a process of its own: pyspark leaves sockets open.

Takes lines of `<table> <path>`, writes the table's rows as an Arrow file to the path, and answers `done` or an error.
"""

from __future__ import annotations

import sys

import pyarrow as pa

from coldchain.settings import CATALOG_NAME, Settings
from coldchain_spark.sql import open_session

if __name__ == "__main__":
    with open_session(Settings.from_environment()) as spark:
        for line in sys.stdin:
            target, path = line.split()
            try:
                rows = spark.table(f"{CATALOG_NAME}.{target}").toArrow()
                with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
                    writer.write_table(rows)
                print("done", flush=True)
            except Exception as error:
                print(repr(error)[:2000].replace("\n", " "), flush=True)
