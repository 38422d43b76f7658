"""Import once, in the scheduler, what every task needs: the task processes that it forks find it there.

Only libraries, never this package: what is deployed while the scheduler runs must be what the next task runs. A
listener of the plugin; does nothing unless COLDCHAIN_PRELOAD is 1, which belongs into the environment of a scheduler
with LocalExecutor and of nobody else.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

from airflow.listeners import hookimpl

VARIABLE = "COLDCHAIN_PRELOAD"
LIBRARIES = (
    "airflow.sdk.execution_time.task_runner",
    "airflow.providers.apache.spark.operators.spark_submit",
    "airflow_clickhouse_plugin.hooks.clickhouse",
    "psycopg2.extras",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.pyarrow",
)

log = logging.getLogger(__name__)


@hookimpl
def on_starting(component: Any) -> None:
    """Import the libraries; one that can't be imported is the task's to complain about."""
    if os.environ.get(VARIABLE) != "1":
        return
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except Exception as error:
            log.warning("%s was not imported ahead: %s", name, error)
