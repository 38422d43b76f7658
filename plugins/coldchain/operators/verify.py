"""Compare what was published with its source, again, by content."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from coldchain.core.table import TableSpec
from coldchain.failures import as_airflow_failures
from coldchain.store.ledger import VERIFY


class VerifyOperator(BaseOperator):
    """Audit one table: the segments that nobody compared for longest, all of them, or a sample row by row.

    Args:
        spec: the table.
    """

    def __init__(self, *, spec: TableSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec

    def execute(self, context: Any) -> str:
        """Audit in the mode that the run's parameters ask for; return the sentence that says what was found."""
        from coldchain import connections, notify
        from coldchain.audit import audit
        from coldchain.clickhouse import HttpClickHouse
        from coldchain.core.request import refuse_unknown
        from coldchain.turns import turn_of

        params = context["params"]
        with as_airflow_failures(context):
            refuse_unknown(params, ("tables", "mode"))
        if params["tables"] and self.spec.name not in params["tables"]:
            raise AirflowSkipException(f"parameter tables={params['tables']} leaves {self.spec.name} out")
        with as_airflow_failures(context):
            client, turn = HttpClickHouse.of(connections.settings()), turn_of(self.spec, context)
            found = audit(turn, client, params["mode"])
            if found.is_whole:
                notify.working(turn.ledger, self.spec.name, turn.run_key, connections.senders, VERIFY)
            return found.sentence(self.spec.name)
