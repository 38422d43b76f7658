"""No secret leaves its place: after real runs of the scheduler, good and bad, all that can be looked at is searched.

The passwords that the stack generated are the canaries: every service's, Airflow's own keys, the metrics token.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from coldchain.core.windows import MINUTE_US, floor_us, to_datetime, to_us
from stack import clickhouse
from stack.airflow_api import AirflowApi
from stack.state import Stack
from tests.canary import ArgumentWatch, Canaries, files_below, of_stack, open_files, rows_of
from tests.market import Market, kraken

ROOT = Path(__file__).parents[2]
DAG, TABLE = "coldchain_offload", "bronze_trades_kraken"
STEPS = ("read_watermark", "offload", "validate", "commit")
# A scheduler on a shared machine may take its time: limits are there to end what hangs.
pytestmark = pytest.mark.timeout(900)


@dataclass
class Told:
    """The stack, what it must keep to itself, and the arguments of all processes during one run."""

    environment: dict[str, str]
    state: Path
    api: AirflowApi
    canaries: Canaries
    run_id: str = ""
    arguments: ArgumentWatch | None = None

    def await_state(self, run_id: str, *wanted: str, limit_s: float = 700) -> str:
        """Wait until a run is in one of some states."""
        deadline = time.monotonic() + limit_s
        while (found := self.api.run(DAG, run_id)["state"]) not in wanted:
            assert time.monotonic() < deadline, f"{run_id} is {found}"
            time.sleep(0.5)
        return str(found)

    def task(self, run_id: str, step: str) -> dict[str, Any]:
        """Return a task of the table."""
        tasks = {task["task_id"]: task for task in self.api.tasks(DAG, run_id)}
        return tasks[f"bronze.{TABLE}.{step}"]

    def get(self, path: str, token: str) -> bytes:
        """GET a page of the API server as a browser or a scraper does."""
        request = urllib.request.Request(self.api.url + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())


def deliver(environment: dict[str, str]) -> datetime:
    """Let one trade happen two hours ago, and return the start of its window."""
    start_us = floor_us(to_us(datetime.now(UTC)) - 120 * MINUTE_US, 15 * MINUTE_US)
    market = Market(environment)
    market.deliver(kraken(f"{market.base}/USD", 1, (start_us + MINUTE_US, "2", "3", "b")))
    market.client.close()
    return to_datetime(start_us)


def trigger(told: Told) -> str:
    """Ask for the window of a new trade, which must move then."""
    start = deliver(told.environment)
    end = start + timedelta(minutes=15)
    return told.api.trigger(DAG, {"tables": [TABLE], "start": start.isoformat(), "end": end.isoformat()})


@pytest.fixture(scope="module")
def told(trades: dict[str, str], state: Path, api: AirflowApi) -> Iterator[Told]:
    """Move a trade through all four steps, with an eye on the arguments of every process."""
    made = Told(trades, state, api, of_stack(state))
    api.patch(f"/dags/{DAG}", {"is_paused": False})
    for run_id in api.active_runs(DAG):  # what unpausing started would take the trade
        made.await_state(run_id, "success", "failed")
    for _ in range(3):
        with ArgumentWatch() as made.arguments:
            made.run_id = trigger(made)
            assert made.await_state(made.run_id, "success", "failed") == "success"
        if (states := {made.task(made.run_id, step)["state"] for step in STEPS}) == {"success"}:
            break  # else a scheduled run was there first
    assert states == {"success"}
    yield made
    api.patch(f"/dags/{DAG}", {"is_paused": True})


def test_no_process_has_one_in_its_arguments(told: Told) -> None:
    assert told.arguments is not None
    seen = b"\n".join(told.arguments.seen)
    for process in (b"SparkSubmit", b"offload_tables.py", b"airflow scheduler", b"postgres -D", b"clickhouse_server"):
        assert process in seen, f"{process!r} was not seen: the search is worth nothing"
    assert told.canaries.found_in(told.arguments.places()) == []


def test_no_log_has_one(told: Told) -> None:
    home = Path(told.environment["AIRFLOW_HOME"])
    logs = dict(files_below(home / "logs", "*.log"))
    assert any(told.run_id in name and "offload" in name for name in logs)
    assert told.canaries.found_in(logs.items()) == []
    assert told.canaries.found_in(files_below(told.state / "logs")) == []
    shown = {step: told.api.log(DAG, told.run_id, f"bronze.{TABLE}.{step}", 1) for step in STEPS}
    assert told.canaries.found_in((step, json.dumps(events).encode()) for step, events in shown.items()) == []


@pytest.mark.parametrize("database", ["airflow", "coldchain", "iceberg"])
def test_no_row_of_a_database_has_one(told: Told, database: str) -> None:
    """XCom, rendered templates, serialized DAGs and asset events are rows too."""
    rows = dict(rows_of(told.environment["COLDCHAIN_PG_SUPERUSER_URI"], database))
    known = {
        "airflow": (
            "public.xcom",
            "public.rendered_task_instance_fields",
            "public.serialized_dag",
            "public.asset_event",
        ),
        "coldchain": ("coldchain.attempts", "coldchain.segments", "coldchain.versions"),
        "iceberg": ("public.iceberg_tables",),
    }[database]
    for table in known:
        assert rows[f"{database}.{table}"], table
    assert told.canaries.found_in(rows.items()) == []


def test_iceberg_s_metadata_has_none(told: Told) -> None:
    metadata = dict(files_below(Path(told.environment["COLDCHAIN_WAREHOUSE"]), f"{TABLE}/metadata/*"))
    assert any(b"coldchain" in data and name.endswith(".json") for name, data in metadata.items())
    assert told.canaries.found_in(metadata.items()) == []


def test_no_page_shows_one(told: Told) -> None:
    login = json.dumps({"username": told.api.user, "password": told.api.password}).encode()
    request = urllib.request.Request(f"{told.api.url}/auth/token", login, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        token = json.loads(answer.read())["access_token"]
    run, task = quote(told.run_id, safe=""), quote(f"bronze.{TABLE}.offload", safe="")
    below = f"/api/v2/dags/{DAG}/dagRuns/{run}/taskInstances"
    pages = {
        path: told.get(path, token)
        for path in (
            "/coldchain/", f"/coldchain/tables/{TABLE}", "/coldchain/api/tables", f"/coldchain/api/tables/{TABLE}",
            "/coldchain/metrics", below, f"{below}/{task}", "/api/v2/connections", "/api/v2/dags",
            f"{below}/{quote(f'bronze.{TABLE}.read_watermark', safe='')}/xcomEntries/return_value",
            "/api/v2/importErrors", "/api/v2/assets/events", f"/api/v2/dagSources/{DAG}",
        )
    }  # fmt: skip
    pages["the metrics, by their token"] = told.get("/coldchain/metrics", told.environment["COLDCHAIN_METRICS_TOKEN"])
    assert TABLE.encode() in pages["/coldchain/api/tables"]
    assert b"coldchain_rows_published_total" in pages["the metrics, by their token"]
    assert told.canaries.found_in(pages.items()) == []


def test_no_file_that_others_may_read_has_one(told: Told) -> None:
    assert told.canaries.found_in(open_files(told.state)) == []
    private = [told.state / "env", told.state / "state.json", Path(told.environment["AIRFLOW_HOME"], "passwords.json")]
    private += (told.state / "clickhouse" / ".clickhouse-local").glob("*.xml")
    assert len(private) >= 5
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}


def test_a_run_that_fails_says_why_and_not_with_what(told: Told) -> None:
    """ClickHouse refuses the password, then it is gone; the run fails for good. The next one heals it."""
    kept = json.loads((told.state / "state.json").read_text())
    stack = Stack(told.state, Path(kept["postgres_home"]), kept["ports"], kept["secrets"])
    other = {**stack.secrets, "clickhouse_coldchain": "another password, which nobody sends"}
    run_id = ""
    with ArgumentWatch() as arguments:
        try:
            clickhouse.halt(stack)
            clickhouse.launch(replace(stack, secrets=other))
            clickhouse.await_ready(stack)
            run_id = trigger(told)
            _await_tries(told, run_id, 1)
            clickhouse.halt(stack)
            assert told.await_state(run_id, "success", "failed") == "failed"
        finally:
            clickhouse.halt(stack)
            clickhouse.launch(stack)
            clickhouse.await_ready(stack)
    log = "\n".join(
        str(told.api.log(DAG, run_id, f"bronze.{TABLE}.read_watermark", attempt))
        for attempt in range(1, told.task(run_id, "read_watermark")["try_number"] + 1)
    )
    assert "refuses the user or password of connection coldchain_clickhouse" in log
    assert "check that it is up and that connection coldchain_clickhouse is right" in log
    (_, attempts) = next(
        each for each in rows_of(told.environment["COLDCHAIN_PG_SUPERUSER_URI"], "coldchain") if "attempts" in each[0]
    )
    assert run_id.encode() in attempts
    assert b"check that it is up" in attempts, "the ledger has the sentence too"
    assert told.canaries.found_in([("the log", log.encode()), ("coldchain.attempts", attempts)]) == []
    assert told.canaries.found_in(arguments.places()) == []
    test_no_log_has_one(told)
    test_no_row_of_a_database_has_one(told, "airflow")


def _await_tries(told: Told, run_id: str, tries: int) -> None:
    deadline = time.monotonic() + 240
    while True:
        task = told.task(run_id, "read_watermark")
        if task["try_number"] > tries or (task["try_number"] == tries and task["state"] == "up_for_retry"):
            return
        assert time.monotonic() < deadline, task
        time.sleep(0.3)
