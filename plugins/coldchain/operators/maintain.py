"""Maintenance of one Iceberg table: put small files together, and drop what nothing needs any more."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from coldchain.core.table import TableSpec
from coldchain.failures import as_airflow_failures
from coldchain.operators.offload import submit
from coldchain.spark_submit import ROOT
from coldchain.store.ledger import COMPACT, TIDY

if TYPE_CHECKING:
    from coldchain.store.postgres import PostgresLedger

APPLICATION = ROOT / "spark" / "jobs" / "compact_table.py"
PARAMETERS = ("tables", "days", "dry_run")
KEPT_DAYS = 90  # of what the ledger may forget; the database keeps 30 whatever is asked


def _asked(context: Any, table: str) -> dict[str, Any]:
    """Return the run's parameters; skip a table that they leave out."""
    from coldchain.core.request import refuse_unknown

    params = dict(context["params"])
    with as_airflow_failures(context):
        refuse_unknown(params, PARAMETERS)
    if params["tables"] and table not in params["tables"]:
        raise AirflowSkipException(f"parameter tables={params['tables']} leaves {table} out")
    return params


class CompactOperator(SparkSubmitOperator):
    """Put a table's closed days together, each under a lease of its own; start no Spark where none is worth it.

    Args:
        spec: the table.
    """

    def __init__(self, *, spec: TableSpec, **kwargs: Any) -> None:
        super().__init__(application=str(APPLICATION), name=f"coldchain-compact-{spec.name}", durable=False, **kwargs)
        self.spec = spec

    def execute(self, context: Any) -> dict[str, Any]:
        """Say what would be put together, do it unless it is a dry run, and return what was done."""
        from coldchain import connections, notify
        from coldchain.core.job import CompactJob
        from coldchain.maintenance import batches_of
        from coldchain.turns import turn_of

        params = _asked(context, self.spec.name)
        with as_airflow_failures(context):
            turn = turn_of(self.spec, context)
            turn.ledger.register(self.spec)
            batches = batches_of(turn)
            for batch in batches[: params["days"]]:
                self.log.info("%s: %s: %d files of %d segments, %s rows", self.spec.name, batch.window,
                              len(batch.files), len(batch.segments), f"{batch.fingerprint.rows:,}")  # fmt: skip
            token = f"compact-{uuid.uuid4()}"
            if params["dry_run"] or not batches:
                said = {"batches": 0, "left": len(batches)}
                if not params["dry_run"]:
                    turn.ledger.note(self.spec.name, token, turn.run_key, "compacted", said)
                    notify.working(turn.ledger, self.spec.name, turn.run_key, connections.senders, COMPACT)
                return said
            rows = max(batch.fingerprint.rows for batch in batches[: params["days"]])
            job = CompactJob(self.spec, token, turn.run_key, params["days"], rows)
            done = submit(self, context, APPLICATION, job.dumps(), turn, token, "compacted")
            notify.working(turn.ledger, self.spec.name, turn.run_key, connections.senders, COMPACT)
            return done


class TidyOperator(BaseOperator):
    """Drop a table's dead branches, old snapshots, orphaned files and old events, then make its view anew.

    Args:
        spec: the table.
    """

    def __init__(self, *, spec: TableSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec

    def execute(self, context: Any) -> dict[str, Any] | None:
        """Tidy, or say what would be dropped; return the counts."""
        from coldchain import connections, notify, views
        from coldchain.maintenance import tidy
        from coldchain.turns import turn_of

        params = _asked(context, self.spec.name)
        with as_airflow_failures(context):
            turn = turn_of(self.spec, context)
            done = tidy(turn, time.time_ns() // 1000, is_dry=params["dry_run"])
            if done is None:
                self.log.info("%s: there is no table yet", self.spec.name)
                return None
            self.log.info("%s: %s", self.spec.name, done.sentence(is_dry=params["dry_run"]))
            if not params["dry_run"]:
                turn.ledger.note(self.spec.name, f"tidy-{uuid.uuid4()}", turn.run_key, "tidied", done.to_json())
                self._forget(connections.ledger())
                views.keep(self.spec, turn.ledger, connections.views)
                notify.working(turn.ledger, self.spec.name, turn.run_key, connections.senders, TIDY)
            return done.to_json()

    def _forget(self, book: PostgresLedger) -> None:
        """Let the ledger drop what is old: of this table, and the messages and refused runs, which are of none."""
        events, segments = book.forget(self.spec.name, KEPT_DAYS)
        rejections, incidents = book.forget_messages(KEPT_DAYS)
        self.log.info("%s: %d events and %d superseded segments were older than %d days, and dropped; of all tables %d "
                      "refused runs and %d incidents", self.spec.name, events, segments, KEPT_DAYS, rejections,
                      incidents)  # fmt: skip
