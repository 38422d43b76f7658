"""Where slices are streamed: on Spark's executors, or in the driver where they would gain nothing.

Starting a SparkContext and forking its Python workers cost some 5 s and 300 MB; a plan of some 100,000 rows is streamed
in less than that, and with a local master the executors are the driver's own machine: ClickHouse does the work, and a
thread that hands bytes on does it as well as a process.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

SMALL_ROWS = 500_000
DRIVER_STREAMS = 2
TABLES_AT_ONCE = 3  # each waits for its services more than it computes
PROGRESS_S = 5.0
# Spark's own leaves `credential` out (4.1). Also in spark/conf, for what spark-submit shows before this is read.
REDACTED = "(?i)secret|password|token|access[.]?key|credential"

log = logging.getLogger(__name__)


def configure_logging() -> None:
    """Log to stderr, one line an event; libraries only when they warn."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("coldchain_spark").setLevel(logging.INFO)
    logging.getLogger("coldchain").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def tables_at_once(rows: int, max_queries: int) -> int:
    """Return how many tables of a job are worked on together; a large plan has the executors to itself."""
    return min(TABLES_AT_ONCE, max_queries or TABLES_AT_ONCE) if rows <= SMALL_ROWS else 1


@contextmanager
def make_mapper(
    rows: int, max_queries: int = 0, *, local_cores: int = 0
) -> Iterator[tuple[Callable[[Any, Sequence[Any]], list[Any]], int]]:
    """Yield a mapper and the number of slices that run at once. A SparkContext, if wanted, starts in the background.

    Args:
        rows: of all tables of the job.
        max_queries: that the job may have ClickHouse work on at once; 0: as many as this machine has cores. A table
            asks nothing else while its slices are streamed, so that the bound holds for the job with all its tables.
        local_cores: of a local master: a plan of any size is streamed by so many threads of the driver, or by
            `max_queries` where that is less. 0: large ones are the executors'.
    """
    if streams := DRIVER_STREAMS if rows <= SMALL_ROWS else local_cores:
        if max_queries:
            streams = max(1, min(streams, max_queries // tables_at_once(rows, max_queries)))
        yield lambda function, items: _map_in_driver(function, items, streams), streams
        return
    streams = max_queries or os.cpu_count() or 2
    context: Future[Any] = ThreadPoolExecutor(1, thread_name_prefix="spark").submit(_start_spark, streams)
    try:
        yield lambda function, items: _map_on_executors(context.result(), function, items, streams), streams
    finally:
        context.result().stop()


def _start_spark(streams: int) -> Any:
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()  # or a SparkConf is blind to what spark-submit was told (pyspark 4.1)
    # No SQL session, no UI: no row passes through the JVM. Failed streams are retried by ourselves; Spark's own
    # retries cover lost executors.
    conf = SparkConf().set("spark.ui.enabled", "false").set("spark.python.worker.reuse", "true")
    conf.set("spark.speculation", "false")  # the twin of a slow task is a query too many
    conf.setIfMissing("spark.redaction.regex", REDACTED)
    is_local = conf.get("spark.master", "").startswith("local")  # elsewhere the daemon finds no code of ours yet
    if is_local:
        conf.setIfMissing("spark.python.daemon.module", "coldchain_spark.daemon")
    context = SparkContext(conf=conf)
    context.setLogLevel("ERROR")
    if is_local:  # the workers are there by the time that the driver knows what to do
        context.parallelize(range(streams), streams).foreach(_nothing)
    return context


def _nothing(_: int) -> None:
    pass


def _map_in_driver(function: Callable[[Any], Any], items: Sequence[Any], streams: int) -> list[Any]:
    with ThreadPoolExecutor(streams) as pool:
        return _collected(pool.map(function, items), len(items))


def _map_on_executors(context: Any, function: Callable[[Any], Any], items: Sequence[Any], streams: int) -> list[Any]:
    """Run each item as a Spark job of one task, so many at once: no cluster has a setting that bounds one stage."""

    def run(item: Any) -> Any:
        return context.parallelize([item], 1).map(function).collect()[0]

    with ThreadPoolExecutor(streams) as pool:
        return _collected(pool.map(run, items), len(items))


def _collected(results: Iterator[Any], number: int) -> list[Any]:
    """Collect the results as they come, and say how far it is."""
    last = time.monotonic()
    done: list[Any] = []
    for result in results:
        done.append(result)
        if time.monotonic() - last > PROGRESS_S:
            last = time.monotonic()
            log.info("streamed %d of %d slices", len(done), number)
    return done
