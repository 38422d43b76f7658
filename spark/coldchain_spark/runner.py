"""Where slices are streamed: on Spark's executors, or in the driver where a plan is too small to fork workers for.

Forking the first Python worker and starting a SparkContext cost about 5 s; a plan of some 100,000 rows is streamed
in less than that.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

SMALL_ROWS = 500_000
DRIVER_STREAMS = 2
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


@contextmanager
def make_mapper(rows: int) -> Iterator[tuple[Callable[[Any, Sequence[Any]], list[Any]], int]]:
    """Yield a mapper and the number of slices that run at once. A SparkContext, if wanted, starts in the background."""
    if rows <= SMALL_ROWS:
        yield _map_in_driver, DRIVER_STREAMS
        return
    context: Future[Any] = ThreadPoolExecutor(1, thread_name_prefix="spark").submit(_start_spark)
    try:
        yield lambda function, items: _map_on_executors(context.result(), function, items), os.cpu_count() or 2
    finally:
        context.result().stop()


def _start_spark() -> Any:
    from pyspark import SparkConf, SparkContext

    # No SQL session, no UI: no row passes through the JVM. Failed streams are retried by ourselves; Spark's own
    # retries cover lost executors.
    conf = SparkConf().set("spark.ui.enabled", "false").set("spark.python.worker.reuse", "true")
    conf.setIfMissing("spark.redaction.regex", REDACTED)
    context = SparkContext(conf=conf)
    context.setLogLevel("ERROR")
    return context


def _map_in_driver(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(DRIVER_STREAMS) as pool:
        return list(pool.map(function, items))


def _map_on_executors(context: Any, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    if not items:
        return []
    done = threading.Event()
    watcher = threading.Thread(target=_report, args=(context, done), daemon=True)
    watcher.start()
    try:
        context.setJobGroup("coldchain", f"stream {len(items)} slices")
        return list(context.parallelize(items, len(items)).map(function).collect())
    finally:
        done.set()


def _report(context: Any, done: threading.Event) -> None:
    """Say how far the streaming is, every few seconds."""
    tracker = context.statusTracker()
    while not done.wait(PROGRESS_S):
        for stage_id in tracker.getActiveStageIds():
            if (stage := tracker.getStageInfo(stage_id)) is not None:
                log.info("streamed %d of %d slices", stage.numCompletedTasks, stage.numTasks)
