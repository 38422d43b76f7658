"""The offload through a real Airflow scheduler, on the shipped registry and the shipped trades.

One story, told in order, over all ten tables: backfill, first run, idle run, late rows, clearing, triggering twice, a
table that fails, a lost file, wrong parameters. After every chapter the independent comparer decides, row by row.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg2
import pytest
from pyiceberg.catalog import load_catalog

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.request import Request
from coldchain.core.sql import Query
from coldchain.core.windows import Window, to_us
from coldchain.lake import head_of, live_files
from coldchain.registry import load_registry
from coldchain.settings import Settings
from coldchain.store.postgres import PostgresLedger
from stack import process
from stack.airflow_api import AirflowApi, ApiError
from stack.state import Stack
from tests.comparer import compare, connect_clickhouse
from tests.lab import Steps, append_foreign
from tests.processes import await_true
from tests.sinks import taking_posts

ROOT = Path(__file__).parents[2]
DAG = "coldchain_offload"
BINANCE, KRAKEN = "bronze_trades_binance", "bronze_trades_kraken"
STEPS = ("read_watermark", "offload", "validate", "commit")
TABLES = load_registry().tables
ENDED = {"success", "failed"}
# A scheduler on a shared machine may take its time: limits are there to end what hangs.
pytestmark = pytest.mark.timeout(900)


class Story:
    """The stack of the tests, as a person at the UI and at the databases sees it."""

    def __init__(self, environment: dict[str, str], state: Path) -> None:
        self.environment = environment
        self.state = state
        self.settings = Settings.from_environment(environment)
        self.api = AirflowApi(environment["AIRFLOW_URL"], environment["AIRFLOW_USER"], environment["AIRFLOW_PASSWORD"])
        self.ledger = PostgresLedger.from_uri(self.settings.ledger_uri)
        self.catalog = load_catalog("coldchain", **self.settings.catalog_properties)
        self.loader = HttpClickHouse(
            self.settings.clickhouse_url, environment["COLDCHAIN_LOADER_USER"], environment["COLDCHAIN_LOADER_PASSWORD"]
        )

    def wait(self, run_ids: Sequence[str], limit_s: float = 480, dag: str = DAG) -> list[str]:
        """Wait until runs have ended; return their states."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            states = [self.api.run(dag, run_id)["state"] for run_id in run_ids]
            if all(state in ENDED for state in states):
                return states
            time.sleep(0.5)
        raise AssertionError(f"{run_ids} did not end within {limit_s} s: {states}")

    def trigger(self, **conf: Any) -> str:
        """Trigger a run without a logical date, and wait for its success."""
        run_id = self.api.trigger(DAG, conf)
        assert self.wait([run_id]) == ["success"]
        return run_id

    def states(self, run_id: str, table: str) -> dict[str, str]:
        """Return a table's task states by step."""
        tasks = {task["task_id"]: task["state"] for task in self.api.tasks(DAG, run_id)}
        return {step: tasks[f"bronze.{table}.{step}"] for step in STEPS}

    def said(self, run_id: str, table: str) -> str:
        """Return what the first try of a table's read_watermark wrote to its log."""
        (layer,) = (spec.layer for spec in TABLES if spec.name == table)
        return str(self.api.log(DAG, run_id, f"{layer}.{table}.read_watermark", 1))

    def failed(self, run_id: str) -> set[str]:
        """Return the tasks of a run that failed, or could not start because another had."""
        return {
            task["task_id"] for task in self.api.tasks(DAG, run_id) if task["state"] in ("failed", "upstream_failed")
        }

    def clear(self, run_id: str, *task_ids: str, downstream: bool = False) -> None:
        """Clear tasks of a run (all of them without names) and wait until it has succeeded again."""
        self.reset(run_id, *task_ids, downstream=downstream)
        assert self.wait([run_id]) == ["success"]

    def reset(self, run_id: str, *task_ids: str, downstream: bool = False) -> None:
        """Clear tasks of a run, and don't wait for them."""
        body: dict[str, Any] = {
            "dry_run": False, "dag_run_id": run_id, "only_failed": False, "include_downstream": downstream,
            "reset_dag_runs": True,
        }  # fmt: skip
        if task_ids:
            body["task_ids"] = list(task_ids)
        cleared = self.api.post(f"/dags/{DAG}/clearTaskInstances", body)
        assert cleared["total_entries"] >= max(1, len(task_ids))

    def scheduled(self, dag: str) -> str:
        """Wait for the run that unpausing a DAG starts, which is that of the last complete interval; its id."""
        deadline = time.monotonic() + 240
        while not (runs := self.api.get(f"/dags/{dag}/dagRuns", run_type=["scheduled"])["dag_runs"]):
            assert time.monotonic() < deadline, f"unpausing {dag} started no run"
            time.sleep(0.5)
        return str(runs[0]["dag_run_id"])

    def returned(self, dag: str, run_id: str, task_id: str) -> Any:
        """Return what a task returned."""
        task = f"/dags/{dag}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}"
        return self.api.get(f"{task}/xcomEntries/return_value")["value"]

    def scheduler_said(self, pattern: str) -> bool:
        """Tell whether a line of the scheduler's log matches."""
        return re.search(pattern, (self.state / "logs" / "airflow-scheduler.log").read_text()) is not None

    def cli(self, *arguments: str) -> str:
        """Run Airflow's command line; return what it printed."""
        cli = Path(sys.prefix) / "bin" / "airflow"
        environment = {**os.environ, **self.environment, "PATH": f"{cli.parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run([str(cli), *arguments], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def heads(self) -> list[int]:
        """Return `main`'s snapshot of every table."""
        return [self.catalog.load_table(spec.target).current_snapshot().snapshot_id for spec in TABLES]

    def files(self, target: str) -> int:
        """Count the live data files of a table."""
        table = self.catalog.load_table(target)
        return len(live_files(table, head_of(table)))

    def check_equal(self, binance: int) -> None:
        """Assert that every table holds exactly the source's rows, and Binance's so many."""
        client = connect_clickhouse(
            self.settings.clickhouse_url, self.settings.clickhouse_user, self.settings.clickhouse_password
        )
        try:
            rows = {}
            for spec in TABLES:
                found = compare(
                    client, self.catalog, source=spec.source, target=spec.target, event_time=spec.event_time,
                    final=spec.read == "final",
                )  # fmt: skip
                assert found.is_equal, found
                rows[spec.name] = found.target_rows
            assert min(rows.values()) > 0, "an empty table is never proven equal"
            assert rows[BINANCE] == binance
            assert rows["silver_trades"] == sum(count for name, count in rows.items() if name.startswith("bronze"))
        finally:
            client.close()

    def insert_copy(self, sequence: int, where: str = "1", limit: int = 1) -> None:
        """Insert rows into Binance's table that look like its newest ones, with sequence numbers of their own."""
        statement = (
            f"INSERT INTO k2.{BINANCE} SELECT * REPLACE ({sequence} + rowNumberInAllBlocks() AS sequence_number, "
            f"now64(6) AS ingestion_timestamp) FROM (SELECT * FROM k2.{BINANCE} FINAL WHERE {where} "
            f"ORDER BY exchange_timestamp DESC LIMIT {limit})"
        )
        self.execute(statement)

    def insert_kraken(self, sequence: int) -> None:
        """Insert a row into Kraken's table that looks like its newest one."""
        self.execute(
            f"INSERT INTO k2.{KRAKEN} SELECT * REPLACE ({sequence} AS sequence_number, "
            f"now64(6) AS ingestion_timestamp) FROM k2.{KRAKEN} ORDER BY exchange_timestamp DESC LIMIT 1"
        )

    def set_retention(self, days: int) -> None:
        """Let Binance's table forget after so many days; 7 are the registry's."""
        self.execute(f"ALTER TABLE k2.{BINANCE} MODIFY TTL toDateTime(exchange_timestamp) + INTERVAL {days} DAY")

    def forget_newest_empty(self, table: str) -> None:
        """Take the newest stretch without rows, which reaches up to the last run's end, out of the ledger."""
        uri = self.environment["COLDCHAIN_PG_SUPERUSER_URI"].replace("+psycopg2", "").rpartition("/")[0]
        connection = psycopg2.connect(f"{uri}/coldchain")
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM coldchain.segments WHERE segment_id = (SELECT segment_id FROM coldchain.segments JOIN "
                "coldchain.tables USING (table_id) WHERE table_name = %s AND state = 'empty' "
                'ORDER BY upper("window") DESC LIMIT 1)',
                (table,),
            )
            assert cursor.rowcount == 1
        connection.close()

    def delete(self, where: str) -> None:
        """Delete rows of Binance's table, as somebody might who should not."""
        self.execute(f"ALTER TABLE k2.{BINANCE} DELETE WHERE {where} SETTINGS mutations_sync = 2")

    def execute(self, statement: str) -> None:
        """Run a statement as the loader."""
        for _ in self.loader.stream(Query(statement, {}), {}):
            pass

    def oldest_day(self) -> datetime:
        """Return the first day of Binance's trades."""
        ((day,),) = self.loader(Query(f"SELECT toString(toDate(min(exchange_timestamp))) FROM k2.{BINANCE}", {}))
        return datetime.fromisoformat(day).replace(tzinfo=UTC)


@pytest.fixture(scope="module")
def story(trades: dict[str, str], state: Path, api: AirflowApi) -> Iterator[Story]:
    """Unpause the DAG."""
    told = Story(trades, state)
    api.patch(f"/dags/{DAG}", {"is_paused": False})
    yield told
    api.patch(f"/dags/{DAG}", {"is_paused": True})
    told.ledger.close()


def backfill(story: Story, start: datetime, end: datetime, **more: Any) -> list[str]:
    """Start a backfill by REST, and return its runs' ids once all have ended."""
    made = story.api.post(
        "/backfills",
        {"dag_id": DAG, "from_date": start.isoformat(), "to_date": end.isoformat(), "max_active_runs": 2,
         "run_backwards": False, "dag_run_conf": {}, **more},
    )  # fmt: skip
    return wait_for_backfill(story, made["id"])


def wait_for_backfill(story: Story, backfill_id: int) -> list[str]:
    """Wait until a backfill has completed, and return its runs' ids."""
    deadline = time.monotonic() + 600
    while story.api.get(f"/backfills/{backfill_id}")["completed_at"] is None:
        assert time.monotonic() < deadline, "the backfill did not end"
        time.sleep(1)
    runs = story.api.get(f"/dags/{DAG}/dagRuns", limit=100, order_by="-id")["dag_runs"]
    return [run["dag_run_id"] for run in runs if run["run_type"] == "backfill"]


def test_1_a_backfill_beside_the_schedule_moves_every_interval_once(story: Story) -> None:
    start = story.oldest_day() + timedelta(hours=1)
    last = start + timedelta(minutes=15 * 3)  # logical dates, both included: 4 intervals, an hour
    runs = backfill(story, start, last)
    assert len(runs) == 4
    assert set(story.wait(runs)) == {"success"}
    end = last + timedelta(minutes=15)
    ((rows,),) = story.loader(
        Query(
            f"SELECT count() FROM k2.{BINANCE} FINAL WHERE exchange_timestamp >= "
            "fromUnixTimestamp64Micro({s:Int64}, 'UTC') AND exchange_timestamp < "
            "fromUnixTimestamp64Micro({e:Int64}, 'UTC')",
            {"s": int(start.timestamp() * 1e6), "e": int(end.timestamp() * 1e6)},
        )
    )
    # Unpausing also started the scheduled run of the last interval, beside the backfill's two at a time: whoever
    # came first moved a window, and it is there once.
    times = story.catalog.load_table(f"cold.{BINANCE}").scan().to_arrow()["exchange_timestamp"].to_pylist()
    assert sum(start <= moment < end for moment in times) == rows > 0


def test_2_the_first_run_fills_what_the_backfill_left(story: Story) -> None:
    story.trigger()
    story.check_equal(12_477)
    for spec in TABLES:
        _, events = story.ledger.last_published(spec.name)
        found = [check for event in events if event.event == "validated" for check in event.detail["checks"]]
        balances = [each for each in found if each["kind"] == "balance"]
        assert bool(balances) == ("balance" in spec.checks), f"{spec.name}: the layer before was asked: {found}"
        assert all(each["windows"] > 0 == each["broken"] for each in balances), (spec.name, balances)


def test_2b_each_commit_rewrote_its_table_s_view(story: Story) -> None:
    analyst = HttpClickHouse(story.settings.clickhouse_url, "analyst", story.environment["COLDCHAIN_ANALYST_PASSWORD"])
    for spec in TABLES:
        proven = story.ledger.proven(spec.name)
        assert proven.base is not None
        ((text,),) = analyst(Query(f"SHOW CREATE VIEW k2_all.{spec.name}", {}))
        assert proven.base.metadata_location.rpartition("/")[2] in text
        ((shown,),) = analyst(Query(f"SELECT count() FROM k2_all.{spec.name}", {}))
        final = " FINAL" if spec.read == "final" else ""
        assert [(shown,)] == story.loader(Query(f"SELECT count() FROM {spec.source}{final}", {}))


def test_3_an_idle_run_costs_one_task_a_table_and_no_spark(story: Story) -> None:
    before = story.heads()
    run_id = story.trigger()
    for table in (BINANCE, KRAKEN):
        assert story.states(run_id, table) == {
            "read_watermark": "success", "offload": "skipped", "validate": "skipped", "commit": "skipped",
        }  # fmt: skip
        assert f"{table}: nothing to move, watermark " in story.said(run_id, table), "a skip says why"
    assert story.heads() == before


def test_3b_what_tasks_are_forked_from_has_imported_their_libraries(story: Story, stack: Stack) -> None:
    """Or each of them would import these for itself; nobody else pays for it."""

    def has_them(pid: int) -> bool:
        mapped = " ".join(region.path for region in psutil.Process(pid).memory_maps())
        return all(f"/{library}/" in mapped for library in ("pyarrow", "psycopg2"))

    running = {name: process.find(stack, f"airflow-{name}") for name in ("scheduler", "dag-processor")}
    assert all(running.values())
    scheduler, other = (found.pid for found in running.values() if found is not None)
    workers = [child.pid for child in psutil.Process(scheduler).children() if "LocalExecutor" in child.cmdline()[0]]
    assert workers
    assert all(map(has_them, workers))
    assert not has_them(other)


def test_4_late_rows_and_corrections_are_found(story: Story) -> None:
    story.insert_copy(900_000_001, limit=40)
    story.insert_copy(900_000_900, where="toHour(exchange_timestamp) = 1", limit=5)
    story.trigger()
    story.check_equal(12_522)


def test_5_plan_mode_says_and_moves_nothing(story: Story) -> None:
    story.insert_copy(900_001_001)
    before = story.heads()
    run_id = story.trigger(mode="plan", tables=[BINANCE])
    assert story.heads() == before
    assert "1 of them replace what is published" in story.said(run_id, BINANCE)
    assert story.states(run_id, KRAKEN)["read_watermark"] == "skipped"


@pytest.fixture(scope="module")
def working_run(story: Story) -> str:
    """A run that moved something: the row that plan mode left."""
    run_id = story.trigger()
    assert set(story.states(run_id, BINANCE).values()) == {"success"}
    return run_id


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("downstream", [False, True], ids=["alone", "with downstream"])
def test_6_any_task_can_be_cleared(story: Story, working_run: str, step: str, downstream: bool) -> None:
    before = story.heads()
    story.clear(working_run, f"bronze.{BINANCE}.{step}", downstream=downstream)
    assert story.heads() == before, "what is published is left alone"
    story.check_equal(12_523)


def test_7_a_whole_run_can_be_cleared(story: Story, working_run: str) -> None:
    story.insert_copy(900_002_001)
    story.clear(working_run)
    story.check_equal(12_524)


def test_8_two_runs_at_once_and_an_exact_stretch_converge(story: Story) -> None:
    story.insert_copy(900_003_001, limit=3)
    start = story.oldest_day()
    conf = {"start": start.isoformat(), "end": (start + timedelta(days=1)).isoformat()}
    runs = [story.api.trigger(DAG, {}), story.api.trigger(DAG, conf), story.api.trigger(DAG, {})]
    assert set(story.wait(runs)) == {"success"}
    story.check_equal(12_527)


def test_8b_a_table_that_fails_takes_out_itself_alone(story: Story) -> None:
    """In Bronze by its TTL, in Gold by a foreign file: siblings move, and Silver too, as far as all of Bronze is.

    What the file touches is blocked, and the rest of its table moves. The newest stretch of Binance's is forgotten, as
    if the run's end had come after it.
    """
    table = story.catalog.load_table("cold.gold_ohlcv_5m")
    ours = table.current_snapshot().snapshot_id
    append_foreign(table)
    story.insert_copy(900_003_901)
    story.insert_kraken(900_003_901)
    story.set_retention(6)
    story.forget_newest_empty(BINANCE)
    run_id = story.api.trigger(DAG, {})
    assert story.wait([run_id]) == ["failed"]
    failed = {task for task in story.failed(run_id) if not task.startswith("gold.gold_ohlcv_5m.")}
    assert failed == {"every_table_done", *(f"bronze.{BINANCE}.{step}" for step in STEPS)}
    # Whether the late row's window is one of the blocked decides which of its tasks complains.
    assert "gold.gold_ohlcv_5m.commit" in story.failed(run_id)
    assert (
        "retention=7d in the registry, but TTL" in story.ledger.attempts(BINANCE, f"{DAG}/{run_id}")[0].detail["error"]
    )
    assert set(story.states(run_id, KRAKEN).values()) == {"success"}
    assert f"; it waits for {BINANCE}, which is published up to " in story.said(run_id, "silver_trades")
    client = connect_clickhouse(
        story.settings.clickhouse_url, story.settings.clickhouse_user, story.settings.clickhouse_password
    )
    (spec,) = (spec for spec in TABLES if spec.name == "gold_ohlcv_1m")
    found = compare(client, story.catalog, source=spec.source, target=spec.target, event_time=spec.event_time)
    assert found.is_equal, found
    events = story.ledger.attempts("gold_ohlcv_5m", f"{DAG}/{run_id}")
    assert "holds 1 files that no segment owns" in events[0].detail["error"]
    story.catalog.load_table("cold.gold_ohlcv_5m").manage_snapshots().set_current_snapshot(snapshot_id=ours).commit()
    story.set_retention(7)
    story.clear(run_id, f"bronze.{BINANCE}.read_watermark", "gold.gold_ohlcv_5m.read_watermark", downstream=True)
    story.check_equal(12_528)


@pytest.mark.parametrize("answer", ["Reject", "Approve"])
def test_8c_a_person_decides_whether_a_segment_may_shrink(story: Story, answer: str) -> None:
    """The offload refuses to lose a row; the approval task shows both fingerprints, and stands for exactly these."""
    mine = "sequence_number = 900003901"
    if answer == "Reject":
        story.delete(mine)
    run_id = story.api.trigger(DAG, {"tables": [BINANCE]})
    assert story.wait([run_id]) == ["failed"]
    error = story.ledger.attempts(BINANCE, f"{DAG}/{run_id}")[0].detail["error"]
    approval = error.rpartition('allow_shrink=["')[2].partition('"')[0]
    before = story.heads()
    story.api.patch("/dags/coldchain_shrink", {"is_paused": False})
    asked = story.api.trigger("coldchain_shrink", {"table": BINANCE})
    task = f"/dags/coldchain_shrink/dagRuns/{quote(asked, safe='')}/taskInstances/approve"
    deadline = time.monotonic() + 240
    while story.api.get(task)["state"] != "awaiting_input":
        assert time.monotonic() < deadline, story.api.tasks("coldchain_shrink", asked)
        time.sleep(0.5)
    # Airflow 3.3.2 fails a task that is answered before its scheduler has noticed that it waits.
    while not story.scheduler_said(f"state success .*task_id='approve', run_id='{re.escape(asked)}'"):
        assert time.monotonic() < deadline, "the scheduler did not notice that the task waits"
        time.sleep(0.5)
    shown = story.api.get(f"{task}/-1/hitlDetails")["body"]
    assert f"| {approval.partition(':')[0]} | " in shown, shown
    assert shown.count(f" {int(approval.partition(':')[2]):,} rows, hash ") == 1, shown
    story.api.patch(f"{task}/-1/hitlDetails", {"chosen_options": [answer], "params_input": {}})
    assert story.wait([asked], dag="coldchain_shrink") == ["success"]
    if answer == "Reject":
        assert story.heads() == before
        return
    assert story.heads() != before
    story.insert_copy(900_003_901)  # it comes again, for the chapters to come
    story.trigger()
    story.check_equal(12_528)


def test_8d_a_dag_that_follows_silver_reads_what_was_published(story: Story) -> None:
    """Also when the commit is cleared: it repeats its event, for the try that published may have died unheard."""
    story.api.patch("/dags/coldchain_example", {"is_paused": False})
    story.insert_copy(900_003_902, limit=3)
    offload = story.trigger()
    counts, extras = followed(story, 1)
    assert sum(counts.values()) == sum(extra["rows"] for extra in extras) > 3, "a window is published whole"
    assert all(window["bytes"] > 0 for extra in extras for window in extra["windows"])
    story.clear(offload, "silver.silver_trades.commit")
    counts, (again,) = followed(story, 2)
    assert again in extras
    assert sum(counts.values()) == again["rows"]
    story.api.patch("/dags/coldchain_example", {"is_paused": True})
    told = story.api.get("/assets/events", source_dag_id=DAG, limit=1000)["asset_events"]
    assert {bool(event["extra"].get("snapshot_id")) for event in told} == {True}, "each says what was published"
    story.check_equal(12_531)


def followed(story: Story, count: int) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Wait for so many runs of the example; return what the newest counted, and the events that it read."""
    deadline = time.monotonic() + 240
    while len(runs := story.api.get("/dags/coldchain_example/dagRuns", order_by="-id")["dag_runs"]) < count:
        assert time.monotonic() < deadline, f"only {len(runs)} events of Silver started the example"
        time.sleep(0.5)
    run_id = runs[0]["dag_run_id"]
    assert story.wait([run_id], dag="coldchain_example") == ["success"]
    events = story.api.get(f"/dags/coldchain_example/dagRuns/{quote(run_id, safe='')}/upstreamAssetEvents")
    counts = story.returned("coldchain_example", run_id, "count_trades")
    return counts, [event["extra"] for event in events["asset_events"]]


def test_8e_maintenance_puts_closed_days_together_and_changes_no_row(story: Story) -> None:
    """Unpausing runs the last night's; before, a dry run on the command line says what it would do."""
    dag, asked = "coldchain_maintenance", [KRAKEN]
    (spec,) = (spec for spec in TABLES if spec.name == KRAKEN)
    day, hours, steps = story.oldest_day() - timedelta(days=1), range(6), Steps(story.environment, spec)
    for hour in hours:  # small files of a closed day
        start = day + timedelta(hours=hour)
        story.execute(
            f"INSERT INTO {spec.source} SELECT * REPLACE (toDateTime64('{start:%Y-%m-%d %H:%M:%S}', 6, 'UTC') AS "
            f"exchange_timestamp, {900_005_000 + hour} AS sequence_number) FROM {spec.source} LIMIT 1"
        )
        steps.run(Request(Window(to_us(start), to_us(start + timedelta(hours=1))), None), run_key=f"test/{hour}")
    story.trigger()
    heads, files = story.heads(), story.files(spec.target)
    said = story.cli("dags", "test", dag, "--conf", json.dumps({"tables": asked, "dry_run": True}))
    assert re.search(rf"{KRAKEN}: .*: [0-9]+ files of [0-9]+ segments", said), said
    assert story.heads() == heads
    story.api.patch(f"/dags/{dag}", {"is_paused": False})
    assert story.wait([story.scheduled(dag)], dag=dag) == ["success"]
    assert story.files(spec.target) <= files - 4
    heads = story.heads()
    run_id = story.api.trigger(dag, {"tables": asked})
    assert story.wait([run_id], dag=dag) == ["success"]
    states = {task["task_id"]: task["state"] for task in story.api.tasks(dag, run_id)}
    assert {task for task, state in states.items() if state == "success"} == {
        f"{table}.{step}" for table in asked for step in ("compact", "tidy")
    }
    assert story.heads() == heads, "nothing is left to put together"
    story.api.patch(f"/dags/{dag}", {"is_paused": True})
    story.check_equal(12_531)
    story.trigger()
    assert story.heads() == heads, "nothing has to move"


def test_8f_the_audit_names_a_file_that_is_gone_and_people_are_told_until_it_is_back(story: Story) -> None:
    dag, hook = "coldchain_verify", "/connections/coldchain_notify_webhook"
    while story.api.active_runs(DAG):
        time.sleep(0.5)
    story.api.patch(f"/dags/{DAG}", {"is_paused": True})  # or a run of the schedule might bring it back too soon
    path = [path for segment in story.ledger.segments(KRAKEN) for path in segment.paths][-1]
    Path(path).unlink()
    with taking_posts() as (port, got, _):
        form = {"connection_id": hook.rpartition("/")[2], "conn_type": "http", "password": f"http://127.0.0.1:{port}/"}
        story.api.post("/connections", form)
        story.api.patch(f"/dags/{dag}", {"is_paused": False})
        asked = story.api.trigger(dag, {"tables": [KRAKEN], "mode": "all"})
        runs = [story.scheduled(dag), asked]
        assert story.wait(runs, dag=dag) == ["failed", "failed"], "nothing is due, but every file must exist"
        for run_id in runs:
            assert [task["task_id"] for task in story.api.tasks(dag, run_id) if task["state"] == "failed"] == [KRAKEN]
        story.api.patch(f"/dags/{DAG}", {"is_paused": False})
        story.trigger()
        story.check_equal(12_531)
        for mode in ("all", "deep"):
            run_id = story.api.trigger(dag, {"tables": [KRAKEN], "mode": mode})
            assert story.wait([run_id], dag=dag) == ["success"]
            assert story.returned(dag, run_id, KRAKEN).endswith("rows compared by content: all equal")
        story.api._authorised("DELETE", f"/api/v2{hook}", None)
    story.api.patch(f"/dags/{dag}", {"is_paused": True})
    assert [message["subject"] for message in got] == [
        f"Coldchain: verify of {KRAKEN} is failing (Damaged)", f"Coldchain: verify of {KRAKEN} is working again",
    ]  # fmt: skip
    assert f"{path} is gone: the next run writes it anew" in got[0]["said"]
    assert got[0]["run"] in {f"{dag}/{run_id}" for run_id in runs}


def test_8g_a_person_corrects_the_ledger_by_the_dag_and_says_why(story: Story) -> None:
    """A dry run records nothing; applied, the reason is in the ledger."""
    dag, why = "coldchain_recover", "rows came after an outage"
    story.api.patch(f"/dags/{dag}", {"is_paused": False})
    for is_dry, events in ((True, []), (False, [("reset", {"reason": why})])):
        order = {"action": "reset", "tables": [BINANCE], "reason": why, "dry_run": is_dry}
        await_true(lambda: story.ledger.lease(BINANCE).holder is None, "a scheduled run to end with the table")
        run_id = story.api.trigger(dag, order)
        assert story.wait([run_id], dag=dag) == ["success"]
        found = story.ledger.attempts(BINANCE, f"{dag}/{run_id}")
        assert [(attempt.event, attempt.detail) for attempt in found] == events
    story.api.patch(f"/dags/{dag}", {"is_paused": True})


def test_9_a_backfill_by_cli_reprocesses_completed_scheduled_runs(story: Story) -> None:
    """Scheduled runs appear on the quarter hour; unpausing made the one of the last complete interval."""
    scheduled = story.api.get(f"/dags/{DAG}/dagRuns", limit=100, run_type=["scheduled"], order_by="-id")["dag_runs"]
    assert scheduled, "unpausing starts the run of the last complete interval"
    run = scheduled[0]
    story.wait([run["dag_run_id"]])
    story.insert_copy(900_004_001)
    day = story.oldest_day()
    date = run["logical_date"]
    story.cli("backfill", "create", "--dag-id", DAG, "--from-date", date, "--to-date", date, "--reprocess-behavior",
              "completed", "--max-active-runs", "1")  # fmt: skip
    newest = story.api.get("/backfills", dag_id=DAG, order_by="-id")["backfills"][0]
    wait_for_backfill(story, newest["id"])
    again = story.api.run(DAG, run["dag_run_id"])
    assert again["run_type"] == "backfill", "Airflow turns the scheduled run into the backfill's"
    assert again["data_interval_end"] == run["data_interval_end"]
    assert again["state"] == "success"
    # The late row lies outside that interval: an exact run over its day takes it.
    yesterday = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    story.trigger(start=day.isoformat(), end=yesterday.isoformat())
    story.check_equal(12_532)


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"tables": ["nonsense"]}, "nonsense"),
        ({"mode": "force"}, "force"),
        ({"allow_shrink": ["1"]}, "allow_shrink"),
    ],
)
def test_a_wrong_parameter_is_refused_before_a_run_exists(story: Story, conf: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words) as refused:
        story.api.trigger(DAG, conf)
    assert refused.value.status in (400, 422)


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ("2026-02-10T00:15:00Z", "2026-02-10T00:00:00Z", "must come after start"),
        ("2026-02-30T00:00:00Z", "2026-03-10T00:00:00Z", "parameter start='2026-02-30T00:00:00Z' is not a time"),
    ],
)
def test_a_wrong_stretch_fails_with_a_sentence_and_writes_nothing(
    story: Story, start: str, end: str, words: str
) -> None:
    before = story.heads()
    run_id = story.api.trigger(DAG, {"start": start, "end": end, "tables": [KRAKEN]})
    assert story.wait([run_id]) == ["failed"]
    assert story.states(run_id, KRAKEN)["read_watermark"] == "failed"
    task = next(t for t in story.api.tasks(DAG, run_id) if t["task_id"] == f"bronze.{KRAKEN}.read_watermark")
    assert task["try_number"] == 1, "no retry can mend it"
    events = story.ledger.attempts(KRAKEN, f"{DAG}/{run_id}")
    assert words in events[0].detail["error"], "the failure callback wrote it down"
    assert story.heads() == before
    story.trigger()
    story.check_equal(12_532)
