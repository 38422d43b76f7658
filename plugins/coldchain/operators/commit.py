"""Publish what was proven, and advance the watermark."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, BaseOperator

from coldchain.core.job import Stage
from coldchain.core.table import TableSpec
from coldchain.core.windows import format_us
from coldchain.failures import as_airflow_failures, releasing


class WatermarkCommitOperator(BaseOperator):
    """Move `main` to the proven snapshot by compare-and-set and record it; emit the table's Asset event.

    A commit that is tried or cleared again repeats the event of what its run published: the try that published may have
    died before Airflow heard of it. Where others published there is none.

    The table's view over hot and cold follows, where there is to be one; the commit stands whatever becomes of it.

    Args:
        spec: the table.
        read_task_id: the task whose plan is published.
    """

    def __init__(self, *, spec: TableSpec, read_task_id: str, **kwargs: Any) -> None:
        self.asset = Asset(name=spec.target, uri=f"coldchain://{spec.target.replace('.', '/')}")
        super().__init__(outlets=[self.asset], **kwargs)
        self.spec = spec
        self.read_task_id = read_task_id

    def execute(self, context: Any) -> None:
        """Publish this run's proven stage; succeed where it is published already."""
        from coldchain import connections, notify, protocol, views
        from coldchain.turns import turn_of, work_of

        with as_airflow_failures(context):
            work, turn = work_of(context, self.read_task_id), turn_of(self.spec, context)
            stage = protocol.latest_stage(turn, work, "validated")
            if stage is None:
                self.log.info("%s: everything is published already", self.spec.name)
                self._tell(context, protocol.published_stage(turn))
                protocol.finish_idle(turn)
                views.keep(self.spec, turn.ledger, connections.views)
                work.check_whole()
                notify.working(turn.ledger, self.spec.name, turn.run_key, connections.senders)
                return
        with as_airflow_failures(context), releasing(context, turn, stage.token):
            watermark_us = protocol.publish(turn, stage, work)
            rows = sum(segment.fingerprint.rows for segment in stage.segments)
            until = "none" if watermark_us is None else format_us(watermark_us)
            self.log.info("%s: %s rows in %d windows are published, watermark %s", self.spec.name, f"{rows:,}",
                          len(stage.segments), until)  # fmt: skip
            self._tell(context, stage)
            views.keep(self.spec, turn.ledger, connections.views)
            work.check_whole()
            notify.working(turn.ledger, self.spec.name, turn.run_key, connections.senders)

    def _tell(self, context: Any, stage: Stage | None) -> None:
        """Let the task's success emit an event that says what the stage published, or none."""
        if stage is None:
            # Airflow 3.3 registers an event for every outlet of a task that succeeds, with or without an extra.
            context["task"].outlets = []
        else:
            context["outlet_events"][self.asset].extra = stage.to_event()
