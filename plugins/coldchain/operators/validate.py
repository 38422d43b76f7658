"""Prove that what was staged equals the source."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperator

from coldchain.core.table import TableSpec
from coldchain.failures import as_airflow_failures, releasing


class IcebergValidateOperator(BaseOperator):
    """Read the staged snapshot back with ClickHouse's own engine, compare it by content, and record that it is proven.

    Args:
        spec: the table.
        read_task_id: the task whose plan was staged.
    """

    def __init__(self, *, spec: TableSpec, read_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.read_task_id = read_task_id

    def execute(self, context: Any) -> None:
        """Prove this run's stage; succeed where nothing is left to prove."""
        from coldchain import failpoint, proof, protocol
        from coldchain.connections import VALIDATOR, NativeClickHouse
        from coldchain.turns import turn_of, work_of

        with as_airflow_failures():
            work, turn = work_of(context, self.read_task_id), turn_of(self.spec, context)
            stage = protocol.latest_stage(turn, work, "staged")
            if stage is None:
                self.log.info("%s: nothing staged that is not published already", self.spec.name)
                return
        with as_airflow_failures(), releasing(context, turn, stage.token):
            client = NativeClickHouse(VALIDATOR) if "balance" in self.spec.checks else None
            summaries = proof.prove(turn, stage, client)
            failpoint.hit("validate.after_prove")
            found = {"snapshot_id": str(stage.snapshot_id), "checks": [summary.to_json() for summary in summaries]}
            turn.ledger.note(self.spec.name, stage.token, turn.run_key, "validated", found)
            failpoint.hit("validate.after_record")
