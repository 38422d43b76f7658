"""Start Spark and run one Python task, as the offload does: `stack.class_archive` keeps the classes that this loads."""

from __future__ import annotations

from pyspark import SparkContext

if __name__ == "__main__":
    context = SparkContext()
    context.parallelize([0], 1).foreach(print)
    context.stop()
