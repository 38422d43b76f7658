"""What must move? The first task of a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowSkipException, DownstreamTasksSkipped

from coldchain.core.errors import LeaseHeld
from coldchain.core.job import Work
from coldchain.core.table import TableSpec
from coldchain.failures import as_airflow_failures, run_key_of
from coldchain.triggers.table_ready import TableReadyTrigger

WAIT_LIMIT = timedelta(hours=2)


class WatermarkSensor(BaseSensorOperator):
    """Wait until a run's window has closed and the table is free, then plan; nothing to do skips the table's tasks.

    Deferrable: while it waits it takes neither a worker slot nor a pool slot. Returns the plan (`Work` as JSON).

    Args:
        spec: the table.
        known_tables: names that the parameter `tables` may hold.
        downstream: ids of the tasks to skip where nothing has to move.
        keeps_lease: whether the table stays taken until its offload.
    """

    def __init__(
        self,
        *,
        spec: TableSpec,
        known_tables: Sequence[str],
        downstream: Sequence[str],
        keeps_lease: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.known_tables = tuple(known_tables)
        self.downstream = tuple(downstream)
        self.keeps_lease = keeps_lease

    def execute(self, context: Any) -> Any:
        """Decide from the run's own data interval and parameters; defer where it is too early."""
        from coldchain.turns import request_of

        with as_airflow_failures():
            asked = request_of(self.spec, context, self.known_tables)
            if not asked.wants(self.spec.name):
                raise AirflowSkipException(f"parameter tables={sorted(asked.tables or ())} leaves {self.spec.name} out")
            ready_at = ((asked.end_us or 0) + self.spec.lateness_us) / 1e6
            is_scheduled = asked.window is None and asked.end_us is not None
            if is_scheduled and time.time() < ready_at:
                self._wait(context, ready_at)
            return self._read(context)

    def resume(self, context: Any, event: Any) -> Any:
        """Plan after the wait."""
        with as_airflow_failures():
            return self._read(context)

    def _wait(self, context: Any, ready_at: float) -> None:
        self.defer(
            trigger=TableReadyTrigger(self.spec.name, ready_at, run_key_of(context)),
            method_name="resume",
            timeout=WAIT_LIMIT,
        )

    def _read(self, context: Any) -> Any:
        from coldchain import connections, notify, protocol
        from coldchain.connections import NativeClickHouse
        from coldchain.source import Source
        from coldchain.turns import request_of, turn_of

        asked = request_of(self.spec, context, self.known_tables)
        turn = turn_of(self.spec, context)
        try:
            reading = protocol.read(turn, Source(NativeClickHouse(), self.spec), asked, keeps_lease=self.keeps_lease)
        except LeaseHeld as error:
            self.log.info("%s; waiting until it is free", error)
            return self._wait(context, time.time())
        self.log.info("%s", reading.sentence)
        for planned in reading.plan.windows:
            self.log.info("  %s %s: %s", planned.reason, planned.window, planned.fingerprint)
        if reading.work is None:
            if asked.mode == "normal":
                notify.working(turn.ledger, self.spec.name, turn.run_key, connections.senders)
            context["ti"].xcom_push(key="return_value", value=Work.nothing().to_json())
            raise DownstreamTasksSkipped(tasks=list(self.downstream))
        return reading.work.to_json()
