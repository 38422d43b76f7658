"""A task's view of its table: the turn and the plan, from Airflow's context. Imported inside tasks only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from coldchain import connections
from coldchain.core.errors import StageGone
from coldchain.core.job import Work
from coldchain.core.request import Request, make_request
from coldchain.core.table import TableSpec
from coldchain.failures import run_key_of
from coldchain.lake import Lake
from coldchain.reconciling import Turn


def turn_of(spec: TableSpec, context: Any) -> Turn:
    """Build the turn of a run; nothing is opened yet, and only the ledger's connection is looked up."""
    lake = Lake(lambda: connections.settings().catalog_properties)
    return Turn(spec, run_key_of(context), connections.ledger(), lake)


def request_of(spec: TableSpec, context: Any, known_tables: Iterable[str]) -> Request:
    """Decide what the run is asked for; BadRequest names a bad parameter."""
    run = context["dag_run"]
    start, end = run.data_interval_start, run.data_interval_end
    return make_request(
        run_type=str(getattr(run.run_type, "value", run.run_type)),
        data_interval=(start, end) if start is not None and end is not None else None,
        logical_date=run.logical_date,
        params=dict(context["params"]),
        known_tables=frozenset(known_tables),
        grid_us=spec.grid_us,
    )


def work_of(context: Any, read_task_id: str) -> Work:
    """Return what read_watermark planned in this run; no windows where it found nothing to move.

    Raises:
        StageGone: it has left no plan: it is running, was cleared, or failed.
    """
    data = context["ti"].xcom_pull(task_ids=read_task_id)
    if data is None:
        raise StageGone(f"{read_task_id} has left no plan in this run: clear it with everything downstream")
    return Work.from_json(data)
