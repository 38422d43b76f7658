"""What a person orders for one table's ledger."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from coldchain.core.table import TableSpec
from coldchain.failures import as_airflow_failures


class RecoverOperator(BaseOperator):
    """Rebuild a table's ledger from Iceberg, reset its comparison, or accept what the source forgot.

    Args:
        spec: the table.
    """

    def __init__(self, *, spec: TableSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec

    def execute(self, context: Any) -> str:
        """Carry the order of the run's parameters out; return the sentence that says what was, or would be, done."""
        from coldchain.core.order import PARAMETERS, Order
        from coldchain.core.request import refuse_unknown
        from coldchain.recovery import carry_out
        from coldchain.turns import turn_of

        params = context["params"]
        with as_airflow_failures(context):
            refuse_unknown(params, PARAMETERS)
        if params["tables"] and self.spec.name not in params["tables"]:
            raise AirflowSkipException(f"parameter tables={params['tables']} leaves {self.spec.name} out")
        with as_airflow_failures(context):
            order = Order(params["action"], params["reason"], tuple(params["segments"]), is_dry=params["dry_run"])
            said = carry_out(turn_of(self.spec, context), order)
        self.log.info("%s", said)
        return said
