"""The DAG that the registry makes: shape, and what every task is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from airflow.sdk import DAG, DeadlineReference
from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from coldchain import deadline
from coldchain.core.errors import CommitUnknown, Fenced, LeaseHeld, Permanent, SourceShrank, Unavailable
from coldchain.dagfactory import build_maintenance_dag, build_offload_dag, build_shrink_dag, build_verify_dag, describe
from coldchain.failures import as_airflow_failures
from coldchain.registry import DEFAULT_PATH, BadTable, Registry, load_registry
from coldchain.ui.status import limit_s

REGISTRY = load_registry(DEFAULT_PATH)
STEPS = ["read_watermark", "offload", "validate", "commit"]


@pytest.fixture(scope="module")
def dag() -> DAG:
    """The DAG of the shipped registry."""
    return build_offload_dag(REGISTRY)


def test_every_table_has_its_four_tasks_in_order(dag: DAG) -> None:
    for table in REGISTRY.tables:
        ids = [f"{table.layer}.{table.name}.{step}" for step in STEPS]
        if table.spark_group:
            ids[1] = f"{table.layer}.offload_{table.spark_group}"
        for before, after in pairwise(ids):
            assert after in dag.get_task(before).downstream_task_ids


def test_a_shared_offload_runs_for_the_others_where_a_table_of_its_group_does_not(dag: DAG) -> None:
    shared = dag.get_task("gold.offload_ohlcv")
    bars = [table for table in REGISTRY.tables if table.layer == "gold"]
    assert [spec.name for spec in shared.specs] == [table.name for table in bars]
    assert shared.trigger_rule == "all_done"
    for table in bars:
        read, validate = (dag.get_task(f"gold.{table.name}.{step}") for step in ("read_watermark", "validate"))
        assert set(read.downstream) == {validate.task_id, f"gold.{table.name}.commit"}
        assert read.task_id in validate.upstream_task_ids, "a table whose read failed goes no further"
        assert validate.trigger_rule == "all_success"


def test_every_task_has_a_time_limit_a_pool_and_a_failure_callback(dag: DAG) -> None:
    for task in dag.tasks:
        if task.task_id == "every_table_done":
            continue
        assert task.execution_timeout is not None, task.task_id
        assert task.pool in ("coldchain_spark", "coldchain_clickhouse"), task.task_id
        assert task.on_failure_callback, task.task_id
        assert task.retries >= 3
    offload = dag.get_task("bronze.bronze_trades_binance.offload")
    assert offload.execution_timeout == timedelta(minutes=10)
    assert offload.durable is False, "durable makes Clear of a finished task a green no-op"


@pytest.mark.parametrize("build", [build_verify_dag, build_maintenance_dag], ids=lambda build: build.__name__)
def test_whoever_audits_or_tidies_a_table_tells_people_when_it_fails(build: Callable[[Registry], DAG]) -> None:
    told = {task.task_id: task.on_failure_callback for task in build(REGISTRY).tasks}
    assert len(told) == len(REGISTRY.tables) * (1 if build is build_verify_dag else 2)
    for task_id, callbacks in told.items():
        (callback,) = callbacks if isinstance(callbacks, list) else [callbacks]
        table, _, step = task_id.partition(".")
        assert (callback.table, callback.work) == (table, step or "verify")


def test_the_schedule_has_data_intervals_and_one_run_at_a_time(dag: DAG) -> None:
    assert type(dag.timetable).__name__ == "CronDataIntervalTimetable"
    assert dag.max_active_runs == 1
    assert dag.catchup is False


def test_a_bad_entry_takes_out_its_own_table_only(tmp_path: Path) -> None:
    text = DEFAULT_PATH.read_text(encoding="utf-8").replace(
        "partitioning: day(exchange_timestamp)", "partitioning: week", 1
    )
    path = tmp_path / "tables.yaml"
    path.write_text(text, encoding="utf-8")
    registry = load_registry(path)
    made = build_offload_dag(registry)
    ids = {task.task_id for task in made.tasks}
    assert "bronze.bronze_trades_binance.registry" in ids
    assert "bronze.bronze_trades_binance.offload" not in ids
    assert "bronze.bronze_trades_kraken.offload" in ids
    with pytest.raises(AirflowFailException, match=r"tables.yaml line \d+: table bronze_trades_binance: partitioning"):
        made.get_task("bronze.bronze_trades_binance.registry").execute({})
    assert "tables.yaml line" in (made.doc_md or ""), "the DAG's page says it too"


def test_a_registry_that_can_not_be_read_gives_a_dag_that_says_so(tmp_path: Path) -> None:
    made = build_offload_dag(load_registry(tmp_path / "missing.yaml"))
    assert [task.task_id for task in made.tasks] == ["bronze.registry.registry", "every_table_done"]


def test_layers_run_in_order_whatever_the_one_before_did() -> None:
    spec = REGISTRY.tables[0]
    silver = type(spec).from_json({**spec.to_json(), "name": "s", "layer": "silver", "target": "cold.s"})
    made = build_offload_dag(Registry((spec, silver)))
    read = made.get_task("silver.s.read_watermark")
    assert read.upstream_task_ids == {f"bronze.{spec.name}.commit"}
    assert read.trigger_rule == "all_done"
    assert made.get_task("every_table_done").trigger_rule == "none_failed"
    assert made.get_task("every_table_done").upstream_task_ids == {f"bronze.{spec.name}.commit", "silver.s.commit"}


def test_the_form_has_its_parameters(dag: DAG) -> None:
    assert set(dag.params) == {"tables", "start", "end", "mode", "allow_shrink"}
    assert dag.params.get_param("tables").schema["items"]["enum"] == [table.name for table in REGISTRY.tables]


def test_a_person_sees_approves_and_only_then_an_offload_is_triggered() -> None:
    made = build_shrink_dag(REGISTRY)
    assert made.schedule is None
    assert [task.task_id for task in made.topological_sort()] == ["show", "approve", "offload"]
    assert made.get_task("offload").upstream_task_ids == {"approve"}
    assert made.params.get_param("table").schema["enum"] == [table.name for table in REGISTRY.tables]


def test_a_disabled_table_has_no_tasks() -> None:
    spec = REGISTRY.tables[0]
    off = type(spec).from_json({**spec.to_json(), "enabled": False})
    assert describe(Registry((off,), (BadTable("b", "gold", ("why",)),)))[0].layer == "gold"


@pytest.mark.parametrize(
    ("error", "is_final"),
    [(Permanent("p"), True), (SourceShrank("p"), True), (Fenced("p"), True), (Unavailable("t"), False),
     (LeaseHeld("t"), False), (CommitUnknown("u"), False)],
)  # fmt: skip
def test_kinds_of_errors_decide_about_retries(error: Exception, is_final: bool) -> None:
    with pytest.raises(AirflowException) as caught, as_airflow_failures({}):
        raise error
    assert isinstance(caught.value, AirflowFailException) is is_final
    assert str(caught.value) == str(error)


def test_a_missing_connection_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this check the Spark provider silently submits to YARN."""
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    from coldchain import connections

    def missing(conn_id: str) -> None:
        raise AirflowNotFoundException(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(missing))
    with pytest.raises(Permanent, match="Airflow connection spark_default does not exist: add it"):
        connections.connection(connections.SPARK)


def test_a_scheduled_run_has_until_the_end_of_the_freshness_promise(dag: DAG) -> None:
    (alert,) = dag.deadline
    assert alert.reference == DeadlineReference.DAGRUN_LOGICAL_DATE
    most_s = max(limit_s(table) for table in REGISTRY.tables if table.grid_us <= 900_000_000)
    assert alert.interval == timedelta(seconds=most_s)
    assert import_string(alert.callback.path) is deadline.say_missed


@pytest.mark.parametrize(("run_type", "lines"), [("scheduled", 1), ("backfill", 0), ("manual", 0)])
def test_a_missed_deadline_is_said_of_scheduled_runs_alone(
    run_type: str, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    run = {"dag_id": "coldchain_offload", "dag_run_id": "r1", "run_type": run_type}
    asyncio.run(deadline.say_missed(context={"dag_run": run}))
    assert [record.getMessage().startswith("coldchain_offload run r1 has not ended") for record in caplog.records] == (
        [True] * lines
    )
