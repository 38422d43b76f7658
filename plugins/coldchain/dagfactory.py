"""The DAGs, generated from the registry at parse time: the offload is described as plain data first, then built.

A layer is a TaskGroup, in it a TaskGroup per table. Layers run in order, but a failure stops neither siblings nor
later layers: what a later table may read is capped by its upstreams' watermarks, not by their success.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import (
    DAG,
    AsyncCallback,
    CronDataIntervalTimetable,
    DeadlineAlert,
    DeadlineReference,
    Param,
    TaskGroup,
)
from airflow.sdk.definitions.param import ParamsDict

from coldchain import deadline
from coldchain.core.order import ACTIONS
from coldchain.core.request import APPROVAL, MODES
from coldchain.core.table import TableSpec
from coldchain.failures import RecordFailure, TellFailure
from coldchain.operators.adopt import AdoptOperator
from coldchain.operators.commit import WatermarkCommitOperator
from coldchain.operators.maintain import CompactOperator, TidyOperator
from coldchain.operators.offload import OffloadOperator
from coldchain.operators.recover import RecoverOperator
from coldchain.operators.refuse import RefuseOperator
from coldchain.operators.shrink import ShowShrunkOperator
from coldchain.operators.validate import IcebergValidateOperator
from coldchain.operators.verify import VerifyOperator
from coldchain.registry import LAYERS, BadTable, Registry
from coldchain.sensors.watermark import WatermarkSensor
from coldchain.store.ledger import COMPACT, REGISTRY, TIDY, VERIFY

AUDIT_MODES = ("due", "all", "deep")
STEPS = ("read_watermark", "offload", "validate", "commit")
OFFLOAD_DAG = "coldchain_offload"
SPARK_POOL, CLICKHOUSE_POOL = "coldchain_spark", "coldchain_clickhouse"


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What a layer's TaskGroup will hold."""

    layer: str
    tables: tuple[TableSpec, ...]
    bad: tuple[BadTable, ...]

    @property
    def groups(self) -> tuple[tuple[TableSpec, ...], ...]:
        """The tables by Spark application, in the registry's order: alone, or with the others of their spark_group."""
        by_application: dict[str, list[TableSpec]] = {}
        for table in self.tables:
            key = f"group {table.spark_group}" if table.spark_group else f"table {table.name}"
            by_application.setdefault(key, []).append(table)
        return tuple(tuple(tables) for tables in by_application.values())


def describe(registry: Registry) -> tuple[LayerPlan, ...]:
    """Group enabled tables and bad entries by layer, in order, leaving out empty layers."""
    plans = (
        LayerPlan(
            layer,
            tuple(table for table in registry.tables if table.layer == layer and table.enabled),
            tuple(bad for bad in registry.bad if bad.layer == layer),
        )
        for layer in LAYERS
    )
    return tuple(plan for plan in plans if plan.tables or plan.bad)


def task_id(table: TableSpec, step: str) -> str:
    """Name a table's task."""
    return f"{table.layer}.{table.name}.{step}"


def build_offload_dag(registry: Registry) -> DAG:
    """Build `coldchain_offload`. Never raises over the registry's content."""
    plans = describe(registry)
    names = [table.name for plan in plans for table in plan.tables]
    with DAG(
        dag_id=OFFLOAD_DAG,
        description="Makes Iceberg equal to ClickHouse, window by window, and proves it before a reader sees it",
        # Explicit: a bare cron string has no data interval in Airflow 3. The plan starts at the watermark, so runs that
        # were missed are not made up for.
        schedule=CronDataIntervalTimetable("*/15 * * * *", timezone="UTC"),
        start_date=datetime(2020, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        # A run without a logical date, as a person triggers it, has no deadline.
        deadline=DeadlineAlert(
            DeadlineReference.DAGRUN_LOGICAL_DATE, deadline.LIMIT, AsyncCallback(deadline.say_missed)
        ),
        tags=["coldchain", *(plan.layer for plan in plans)],
        default_args=_default_args(),
        doc_md=_doc(registry),
    ) as dag:
        before: list[Any] = []
        lasts: list[Any] = []
        for plan in plans:
            firsts, ends = _build_layer(plan, names)
            for first in firsts:
                before >> first
            lasts += ends
            before = ends
        if lasts:
            # Leaves decide a run's state, and a later layer may succeed where an earlier one failed.
            finish = EmptyOperator(task_id="every_table_done", trigger_rule="none_failed")
            lasts >> finish
    # Set last: every task made before it would copy them whole, which was 4/5 of the parse time of 500 tables.
    dag.params = ParamsDict(_params(names))
    return dag


def build_recover_dag(registry: Registry) -> DAG:
    """Build `coldchain_recover`: one task a table, started by a person only."""
    tables = [table for plan in describe(registry) for table in plan.tables]
    with DAG(
        dag_id="coldchain_recover",
        description="Rebuilds the ledger from Iceberg, compares all once more, accepts what the source forgot",
        schedule=None,
        start_date=datetime(2020, 1, 1, tzinfo=UTC),
        max_active_runs=1,
        tags=["coldchain"],
        default_args={**_default_args(), "retries": 0},
        doc_md=_RECOVER_DOC,
    ) as dag:
        for table in tables:
            RecoverOperator(
                task_id=table.name, spec=table, pool=CLICKHOUSE_POOL, execution_timeout=timedelta(minutes=30),
                doc_md=_table_doc(table),
            )  # fmt: skip
    dag.params = ParamsDict(_recover_params([table.name for table in tables]))
    return dag


def build_verify_dag(registry: Registry) -> DAG:
    """Build `coldchain_verify`: one task a table, every hour, each with as much as one run may read."""
    tables = [table for plan in describe(registry) for table in plan.tables]
    with DAG(
        dag_id="coldchain_verify",
        description="Compares what was published with its source again, every segment within a day",
        schedule="7 * * * *",
        start_date=datetime(2020, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        tags=["coldchain"],
        default_args=_default_args(),
        doc_md=_VERIFY_DOC,
    ) as dag:
        for table in tables:
            VerifyOperator(
                task_id=table.name, spec=table, pool=CLICKHOUSE_POOL, execution_timeout=timedelta(minutes=30),
                doc_md=_table_doc(table), on_failure_callback=TellFailure(table.name, VERIFY),
            )  # fmt: skip
    mode = Param("due", enum=list(AUDIT_MODES), title="Mode", description="See the DAG's documentation.")
    dag.params = ParamsDict({"tables": _tables_param([table.name for table in tables]), "mode": mode})
    return dag


def build_maintenance_dag(registry: Registry) -> DAG:
    """Build `coldchain_maintenance`: a TaskGroup a table, every night; what one table's does holds up no other."""
    tables = [table for plan in describe(registry) for table in plan.tables]
    with DAG(
        dag_id="coldchain_maintenance",
        description="Puts small files together, drops old snapshots, dead branches and orphaned files",
        schedule="45 2 * * *",
        start_date=datetime(2020, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        tags=["coldchain"],
        default_args=_default_args(),
        doc_md=_MAINTENANCE_DOC,
    ) as dag:
        for table in tables:
            with TaskGroup(table.name, tooltip=table.target):
                compact = CompactOperator(
                    task_id="compact", spec=table, pool=SPARK_POOL, execution_timeout=timedelta(hours=2),
                    doc_md=_table_doc(table), on_failure_callback=TellFailure(table.name, COMPACT),
                )  # fmt: skip
                # What compaction could not do today is no reason to keep old snapshots.
                tidy = TidyOperator(
                    task_id="tidy", spec=table, execution_timeout=timedelta(hours=1), trigger_rule="all_done",
                    doc_md=_table_doc(table), on_failure_callback=TellFailure(table.name, TIDY),
                )  # fmt: skip
            compact >> tidy
    dag.params = ParamsDict(
        {
            "tables": _tables_param([table.name for table in tables]),
            "days": Param(
                30, type="integer", minimum=1, maximum=1000, title="Days",
                description="At most so many days, or parts of them, a table: the oldest first.",
            ),
            "dry_run": Param(False, type="boolean", title="Dry run", description="Say what would be done, do nothing."),
        }
    )  # fmt: skip
    return dag


_MAINTENANCE_DOC = """# Maintenance

No row changes here. `compact` puts the files of closed days together, where that saves at least four: the new files are
staged on a branch, read back, and published only if they hold exactly what the old ones were proven to hold. `tidy`
drops branches of attempts that nobody continues (24 h), snapshots older than 7 days (never the newest 3), and files
that no snapshot needs (3 days).

It may be interrupted, cleared and repeated at any time. An offload waits for one day of its table at most."""


_VERIFY_DOC = """# Verify

Every published segment is compared again by content within a day: its files hold what was proven, and the source holds
the same. In every run, every file of the table must exist. What the source can give again, the next offload repairs;
what it can't fails the task, by name.

- `due`: segments that nobody compared for 20 hours, the oldest first, at most 50 million rows a table and run. What is
  known to be unequal is due at once, and takes half of that at most.
- `all`: every segment, up to the same limit.
- `deep`: ten segments at random, up to the same limit, and of each a bucket row by row: at most about 100,000 rows."""


def build_shrink_dag(registry: Registry) -> DAG:
    """Build `coldchain_shrink`: show, ask, and trigger the offload; started by a person only."""
    # More than half of what this module would take to import, each time that any file of DAGs is parsed.
    from airflow.providers.standard.operators.hitl import ApprovalOperator
    from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator

    tables = [table for plan in describe(registry) for table in plan.tables]
    with DAG(
        dag_id="coldchain_shrink",
        description="Asks a person whether segments of which the source lost rows may be replaced",
        schedule=None,
        start_date=datetime(2020, 1, 1, tzinfo=UTC),
        tags=["coldchain"],
        default_args={**_default_args(), "retries": 0},
        doc_md=_SHRINK_DOC,
        render_template_as_native_obj=True,
    ) as dag:
        show = ShowShrunkOperator(
            task_id="show", specs=tables, pool=CLICKHOUSE_POOL, execution_timeout=timedelta(minutes=5)
        )
        approve = ApprovalOperator(
            task_id="approve",
            subject="May these segments of {{ params.table }} shrink?",
            body="{{ ti.xcom_pull(task_ids='show')['text'] }}",
            response_timeout=timedelta(days=3),
        )
        offload = TriggerDagRunOperator(
            task_id="offload",
            trigger_dag_id=OFFLOAD_DAG,
            conf="{{ ti.xcom_pull(task_ids='show')['conf'] }}",  # type: ignore[arg-type]
            wait_for_completion=True,
            deferrable=True,
            poke_interval=5,
        )
        show >> approve >> offload
    names = [table.name for table in tables]
    dag.params = ParamsDict({"table": Param(enum=names, type="string", title="Table"), **_window_params()})
    return dag


def build_adopt_dag(registry: Registry) -> DAG:
    """Build `coldchain_adopt`: one task, for the table that the run names; started by a person only."""
    tables = [table for plan in describe(registry) for table in plan.tables]
    with DAG(
        dag_id="coldchain_adopt",
        description="Makes a table that append-only jobs filled one of Coldchain's: every row once, and proven",
        schedule=None,
        start_date=datetime(2020, 1, 1, tzinfo=UTC),
        max_active_runs=1,
        tags=["coldchain"],
        default_args=_default_args(),
        doc_md=_ADOPT_DOC,
    ) as dag:
        AdoptOperator(task_id="adopt", specs=tables, pool=SPARK_POOL, execution_timeout=timedelta(hours=12))
    dag.params = ParamsDict(
        {
            "table": Param(enum=[table.name for table in tables], type="string", title="Table"),
            "reason": _reason_param(),
            "allow_missing": Param(
                0, type="integer", minimum=0, title="Allow missing",
                description="So many keys may stay in the old table alone: the source should hold them and does not.",
            ),
            "dry_run": _dry_param(),
        }
    )  # fmt: skip
    return dag


_ADOPT_DOC = """# Adopt

For a table that append-only jobs filled: rows that are there twice, late ones that are missing, files of which nobody
knows where they come from. **Stop what writes to it first.**

A new table is built beside it: what the source still holds is offloaded as by any run; what it has begun to forget is
kept from the old table, every key once (the source's row where it has one, else the newest version, else what was
appended last). Then every key of the old table is looked up in the new one, and the names change: readers find the new
table, the old one stays as it is under `<target>__before_adoption`.

Begin with `dry_run`, which reads and counts, and changes nothing. A run that died, or failed, is run again and goes
on."""

_SHRINK_DOC = """# Shrink

An offload never replaces a segment of which the source lost rows: it fails with `SourceShrank`.
Find out first why rows are gone.

To accept it, trigger this DAG for the table: `show` lists the segments with both fingerprints, `approve` asks for a
decision (the run's *Required actions*), `offload` triggers a run that may replace exactly these, as they were shown."""

_RECOVER_DOC = """# Recover

Nothing here moves or deletes a row: the ledger is corrected, and the next offload asks the source for what is missing.

- `rebuild`: the ledger was lost, or restored from an older dump. What `main` holds is taken back into it.
- `reset`: compare all that the source still holds once more. Harmless: what is equal is left alone.
- `accept`: give up expired `segments` (the source forgot them before they were moved): the watermark passes them. Or
  those that `main` has lost and the source can't give again, all or none of them.
- `register`: the catalog lost the table, or was restored from an older dump. It is put back as the ledger left it.
- `recreate`: the table is gone and shall be: the ledger forgets it, the next run makes it of what the source holds.

Begin with `dry_run`, which says what would be done. The reason is kept in the ledger."""


def _recover_params(names: Sequence[str]) -> dict[str, Param]:
    return {
        "action": Param("rebuild", enum=list(ACTIONS), title="Action", description="See the DAG's documentation."),
        "tables": _tables_param(names),
        "segments": Param(
            [],
            type="array",
            items={"type": "integer", "minimum": 1},
            title="Segments",
            description="For accept: ids of expired segments, or of those that main has lost.",
        ),
        "reason": _reason_param(),
        "dry_run": _dry_param(),
    }


def _reason_param() -> Param:
    return Param(type="string", minLength=5, maxLength=500, title="Reason", description="Kept in the ledger.")


def _dry_param() -> Param:
    return Param(True, type="boolean", title="Dry run", description="Say what would be done, change nothing.")


def _tables_param(names: Sequence[str]) -> Param:
    return Param(
        [],
        type="array",
        items={"type": "string", "enum": list(names)} if names else {"type": "string"},
        examples=list(names),
        uniqueItems=True,
        title="Tables",
        description="Only these tables; none means all.",
    )


def _default_args() -> dict[str, Any]:
    # An API server that restarts costs a try; 3 tries a minute apart outlast it.
    delay = timedelta(seconds=int(os.environ.get("COLDCHAIN_RETRY_SECONDS", "60")))
    return {"owner": "coldchain", "retries": 3, "retry_delay": delay}


def _params(names: Sequence[str]) -> dict[str, Param]:
    return {
        "tables": _tables_param(names),
        **_window_params(),
        "mode": Param(
            "normal", enum=list(MODES), title="Mode", description="plan: say what would move, and move nothing."
        ),
        "allow_shrink": Param(
            [],
            type="array",
            items={"type": "string", "pattern": f"^{APPROVAL}$"},
            title="Allow shrink",
            description="Segments that may be replaced although the source holds fewer rows, each with the rows that "
            "it must still hold: 17:20.",
        ),
    }  # fmt: skip


def _window_params() -> dict[str, Param]:
    when = "ISO 8601 with a zone, on the quarter hour, such as 2026-02-10T00:00:00Z"
    moment: dict[str, Any] = {"type": ["null", "string"], "format": "date-time"}
    return {
        "start": Param(None, title="Start", description=f"With end: exactly this stretch. {when}.", **moment),
        "end": Param(None, title="End", description=f"Not included. {when}.", **moment),
    }


def _build_layer(plan: LayerPlan, names: Sequence[str]) -> tuple[list[Any], list[Any]]:
    firsts, ends = [], []
    with TaskGroup(plan.layer, tooltip=f"Tables of the {plan.layer} layer, in parallel"):
        for group in plan.groups:
            reads = [_build_read(table, names, len(group) > 1) for table in group]
            shared = _build_offload(group) if len(group) > 1 else None
            firsts += reads
            ends += [_build_rest(table, read, shared) for table, read in zip(group, reads, strict=True)]
        for bad in plan.bad:
            with TaskGroup(bad.name, tooltip="The registry's entry can't be used"):
                refuse = RefuseOperator(
                    task_id="registry", name=bad.name, problems=bad.problems, retries=0, trigger_rule="all_done",
                    doc_md="\n".join(f"- {problem}" for problem in bad.problems),
                    on_failure_callback=TellFailure(bad.name, REGISTRY),
                )  # fmt: skip
            firsts.append(refuse)
            ends.append(refuse)
    return firsts, ends


def _of(table: TableSpec) -> dict[str, Any]:
    return {"spec": table, "on_failure_callback": RecordFailure(table.name), "doc_md": _table_doc(table)}


def _build_read(table: TableSpec, names: Sequence[str], is_grouped: bool) -> WatermarkSensor:
    # What a table that has nothing to move skips; the offload of a group goes on for its other tables.
    own = STEPS[2:] if is_grouped else STEPS[1:]
    with TaskGroup(table.name, tooltip=f"{table.source} to {table.target}"):
        return WatermarkSensor(
            task_id="read_watermark",
            known_tables=names,
            downstream=[task_id(table, step) for step in own],
            keeps_lease=not is_grouped,
            pool=CLICKHOUSE_POOL,
            trigger_rule="all_done",
            execution_timeout=timedelta(minutes=5),
            **_of(table),
        )


def _build_offload(group: Sequence[TableSpec]) -> OffloadOperator:
    """Build the offload of one table, or the one that the tables of a spark_group share."""
    is_shared = len(group) > 1
    return OffloadOperator(
        task_id=f"offload_{group[0].spark_group}" if is_shared else "offload",
        specs=group,
        read_task_ids=[task_id(table, "read_watermark") for table in group],
        pool=SPARK_POOL,
        execution_timeout=timedelta(minutes=10),
        on_failure_callback=[RecordFailure(table.name) for table in group],
        trigger_rule="all_done" if is_shared else "all_success",
        doc_md="\n\n".join(_table_doc(table) for table in group),
    )


def _build_rest(table: TableSpec, read: WatermarkSensor, shared: OffloadOperator | None) -> WatermarkCommitOperator:
    later: dict[str, Any] = {**_of(table), "read_task_id": task_id(table, "read_watermark"), "pool": CLICKHOUSE_POOL}
    with read.task_group or TaskGroup(table.name):
        offload = shared or _build_offload([table])
        validate = IcebergValidateOperator(task_id="validate", execution_timeout=timedelta(minutes=10), **later)
        commit = WatermarkCommitOperator(task_id="commit", execution_timeout=timedelta(minutes=5), **later)
    read >> offload >> validate >> commit
    if shared is not None:
        read >> validate  # the shared offload runs although a read failed: that table goes no further
    return commit


def _table_doc(table: TableSpec) -> str:
    retention = "for ever" if table.retention_us is None else f"{table.retention_us / 86_400_000_000:g} days"
    return (
        f"### {table.name}\n\n`{table.source}` to `{table.target}`, by `{table.event_time}`, on a grid of "
        f"{table.grid_us // 60_000_000} minutes; late rows are found {table.late_horizon_us / 3_600_000_000:g} h back; "
        f"the source keeps rows {retention}.\n\n"
        "Any of its tasks may be cleared at any time, alone or with what follows: a window that is published is left "
        "alone, any other is staged, proven, and published by replacing it whole."
    )


def _doc(registry: Registry) -> str:
    problems = "".join(f"\n- {problem}" for problem in registry.problems)
    broken = f"\n\n**Entries of the registry that can't be used:**\n{problems}" if problems else ""
    return (
        "# Offload\n\nA run makes Iceberg equal to ClickHouse over the windows that it is asked for. Scheduled: from "
        "each table's watermark to the end of the data interval. Triggered without dates: up to now. Backfill, or "
        "`start` and `end`: exactly that stretch. `mode=plan` says what would move and moves nothing.\n\n"
        "To recover from a failure, clear the failed task, or wait for the next run: both converge." + broken
    )
