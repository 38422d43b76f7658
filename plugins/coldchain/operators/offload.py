"""Stage the plan: a SparkSubmitOperator whose application streams ClickHouse's Parquet to the warehouse."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk.exceptions import AirflowException

from coldchain.core.errors import EXIT_KINDS, ColdchainError, Transient
from coldchain.core.table import TableSpec
from coldchain.failures import as_airflow_failures

ROOT = Path(__file__).parents[3]
APPLICATION = ROOT / "spark" / "jobs" / "offload_tables.py"
SPARK_CONF = ROOT / "spark" / "conf"


class OffloadOperator(SparkSubmitOperator):
    """Take the table under a new token and run the offload job for what read_watermark planned.

    Every try has a token of its own: a driver that outlives its worker can write to its own branch only, and can
    publish nothing. `durable=False`, or Clear of a finished task would be a green no-op (Spark provider 6.3.4).

    Args:
        spec: the table.
        read_task_id: the task whose plan is staged.
    """

    def __init__(self, *, spec: TableSpec, read_task_id: str, **kwargs: Any) -> None:
        super().__init__(application=str(APPLICATION), name=f"coldchain-{spec.name}", durable=False, **kwargs)
        self.spec = spec
        self.read_task_id = read_task_id

    def execute(self, context: Any) -> None:
        """Run spark-submit with the job as its argument and the secrets in its environment."""
        from coldchain import connections, protocol
        from coldchain.core.job import JobSpec, JobTable
        from coldchain.turns import turn_of, work_of

        with as_airflow_failures():
            work = work_of(context, self.read_task_id)
            turn = turn_of(self.spec, context)
            if work is None or protocol.is_done(turn, work):
                self.log.info("%s: all that the plan wanted is published already", self.spec.name)
                return
            connections.connection(connections.SPARK)  # without it the provider would silently submit to YARN
            token = protocol.take(turn)
            turn.ledger.note(self.spec.name, token, turn.run_key, "started")
            job = JobSpec((JobTable(self.spec, token, turn.run_key, work),))
            self.application_args = [job.dumps()]
            # Set here, not in __init__: rendered fields are stored where the UI shows them.
            self.env_vars = {**connections.settings().to_environment(), **_python_environment()}
            try:
                super().execute(context)
            except AirflowException as error:
                raise self._explain(turn, token, error) from None

    def _explain(self, turn: Any, token: str, error: AirflowException) -> ColdchainError:
        """Return the job's own sentence where it left one, as the kind that its exit code names."""
        match = re.search(r"Error code is: (\d+)", str(error))
        kind = EXIT_KINDS.get(int(match[1]), Transient) if match else Transient
        for attempt in turn.ledger.attempts(self.spec.name, turn.run_key):
            if attempt.token == token and attempt.event in ("failed", "fenced"):
                return kind(attempt.detail["error"])
        last = str(error).splitlines()[-1] if match else str(error)
        return kind(f"table={self.spec.name}: the Spark application ended with exit code {match[1] if match else '?'} "
                    f"and left no word: {last[-500:]}")  # fmt: skip


def _python_environment() -> dict[str, str]:
    """Let driver and executors import the package, and Spark find its lean configuration."""
    paths = [str(ROOT / "plugins"), str(ROOT / "spark"), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    if "SPARK_CONF_DIR" not in os.environ:
        environment["SPARK_CONF_DIR"] = str(SPARK_CONF)
    return environment
