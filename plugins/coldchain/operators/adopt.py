"""Adoption of a table that append-only jobs filled, as a person orders it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

from coldchain.core.table import TableSpec
from coldchain.failures import as_airflow_failures
from coldchain.operators.offload import submit
from coldchain.spark_submit import ROOT

APPLICATION = ROOT / "spark" / "jobs" / "adopt_table.py"
PARAMETERS = ("table", "reason", "allow_missing", "dry_run")


class AdoptOperator(SparkSubmitOperator):
    """Adopt one table, or say what would become of it; start no Spark where nothing is to be adopted.

    It may be killed, cleared and repeated at any time: it goes on from where it was.

    Args:
        specs: the tables of which the run's parameter `table` names one.
    """

    def __init__(self, *, specs: Sequence[TableSpec], **kwargs: Any) -> None:
        super().__init__(application=str(APPLICATION), name="coldchain-adopt", durable=False, **kwargs)
        self.specs = tuple(specs)

    def execute(self, context: Any) -> str:
        """Run the job under the run's parameters; return the sentence that says what became of the table."""
        from coldchain import connections, views
        from coldchain.adoption import look
        from coldchain.core.job import AdoptJob
        from coldchain.core.request import refuse_unknown
        from coldchain.lake import rows_of
        from coldchain.turns import turn_of

        params = context["params"]
        with as_airflow_failures(context):
            refuse_unknown(params, PARAMETERS)
        (spec,) = (spec for spec in self.specs if spec.name == params["table"])
        with as_airflow_failures(context):
            turn = turn_of(spec, context)
            turn.ledger.register(spec)
            ground = look(turn)
            if ground is None:
                said = f"{spec.name}: segments own every live file, nothing to adopt"
            else:
                token = f"adopt-{uuid.uuid4()}"
                job = AdoptJob(
                    spec, token, turn.run_key, params["reason"], params["dry_run"], params["allow_missing"],
                    rows_of(ground.old),
                )  # fmt: skip
                said = str(submit(self, context, APPLICATION, job.dumps(), turn, token, "recovered")["said"])
                if not params["dry_run"]:
                    views.keep(spec, turn.ledger, connections.views)
        self.log.info("%s", said)
        return said
