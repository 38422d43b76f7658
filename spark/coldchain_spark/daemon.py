"""Spark's Python daemon that has imported what its workers need before it forks them: `spark.python.daemon.module`.

A worker that imports by itself takes 1.2 s of a core and 90 MB that it shares with nobody (pyiceberg 0.12, pyarrow 26).
"""

import pyiceberg.io.pyarrow  # noqa: F401  the FileIO of a folder and of S3 alike
from pyspark.daemon import manager

import coldchain_spark.stream  # noqa: F401

if __name__ == "__main__":
    manager()  # type: ignore[no-untyped-call]
