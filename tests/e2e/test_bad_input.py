"""Bad input through real doors, REST, the command line and the tasks behind them: no run, or one that writes nothing.

What a run may have written is told by its own attempts, so that a scheduled run beside it disturbs nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coldchain.core.errors import UnknownTable
from coldchain.registry import load_registry
from coldchain.settings import Settings
from coldchain.store.ledger import Attempt
from coldchain.store.postgres import PostgresLedger
from stack.airflow_api import AirflowApi
from stack.follow import await_dag
from tests.bad_input import PARAMS, Params

DAG = "coldchain_offload"
TABLES = [table.name for table in load_registry().tables]
# A scheduler on a shared machine may take its time: limits are there to end what hangs.
pytestmark = pytest.mark.timeout(600)


class Doors:
    """The ways in, and what stands behind them."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.api = AirflowApi(environment["AIRFLOW_URL"], environment["AIRFLOW_USER"], environment["AIRFLOW_PASSWORD"])
        self.ledger = PostgresLedger.from_uri(Settings.from_environment(environment).ledger_uri)

    def own_runs(self) -> set[str]:
        """Name the runs that somebody asked for."""
        runs = self.api.get(f"/dags/{DAG}/dagRuns", limit=100, order_by="-id")["dag_runs"]
        return {run["dag_run_id"] for run in runs if run["run_type"] in ("manual", "backfill")}

    def attempts(self, table: str, run_id: str) -> list[Attempt]:
        """Read a run's events for a table; none for a table that no run has ever taken."""
        try:
            return self.ledger.attempts(table, f"{DAG}/{run_id}")
        except UnknownTable:
            return []

    def post(self, body: str, path: str = f"/dags/{DAG}/dagRuns") -> tuple[int, str]:
        """POST a text as it is, which need not be JSON that anybody would write; return status and answer."""
        login = json.dumps({"username": self.api.user, "password": self.api.password})
        token = json.loads(self._send("/auth/token", login, {})[1])["access_token"]
        return self._send(f"/api/v2{path}", body, {"Authorization": f"Bearer {token}"})

    def _send(self, path: str, body: str, headers: dict[str, str]) -> tuple[int, str]:
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.api.url + path, body.encode(), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Airflow's command line."""
        cli = Path(sys.prefix) / "bin" / "airflow"
        environment = {**os.environ, **self.environment, "PATH": f"{cli.parent}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(
            [str(cli), *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
        )

    def refused(self) -> float:
        """Read how many runs were refused for a parameter that nobody knows, as a scraper does."""
        token = self.environment["COLDCHAIN_METRICS_TOKEN"]
        url = f"{self.api.url}/coldchain/metrics"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
        found = re.search(r'^coldchain_bad_input_rejected_total\{reason="unknown",source="params"\} (\S+)$', text, re.M)
        assert found, text
        return float(found[1])


@pytest.fixture(scope="module")
def doors(airflow: dict[str, str]) -> Iterator[Doors]:
    """Unpause the DAG: a run of a paused one would wait for ever, and refuse nothing."""
    made = Doors(airflow)
    await_dag(made.api, DAG)
    made.api.patch(f"/dags/{DAG}", {"is_paused": False})
    yield made
    made.api.patch(f"/dags/{DAG}", {"is_paused": True})
    made.ledger.close()


def body(conf: dict[str, Any], **more: Any) -> str:
    return json.dumps({"logical_date": None, "conf": conf, **more})


def deep(levels: int) -> str:
    return f'{{"logical_date": null, "conf": {{"x": {"[" * levels}{"]" * levels}}}}}'


@pytest.mark.parametrize("case", [case for case in PARAMS if case.by == "form"], ids=lambda case: str(case.number))
def test_rest_refuses_it_and_names_the_parameter(doors: Doors, case: Params) -> None:
    before = doors.own_runs()
    status, said = doors.post(body(case.conf))
    assert status in (400, 422)
    assert re.search("|".join(case.conf), said), said[:500]
    assert doors.own_runs() == before


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        ('{"logical_date": null, "conf": {"mode": "plan", "mode": "force"}}', {400}),
        (deep(100_000), {400}),
        (deep(900), {400, 500}),  # Airflow's own limit: it can't answer what it could read
        (body({"x": "\0"}), {422}), (body({"x": float("nan")}), {422}), (body({"x": "\ud800"}), {422}),
        ('{"logical_date": null, "conf": [1]}', {422}), ('{"logical_date": null, "conf": {', {400, 422}),
        (body({}, dag_run_id="../../etc/passwd"), {400}), (body({}, dag_run_id="a'; DROP TABLE x--"), {400}),
        (body({}, dag_run_id="{{ var.value.x }}"), {400}), (body({}, dag_run_id="$(id)"), {400}),
    ],
    ids=["40 equal keys", "42 deep", "42 less deep", "10 NUL", "49 NaN", "65 half a character", "a list", "no JSON",
         "5 run id", "1 run id", "22 run id", "24 run id"],
)  # fmt: skip
def test_rest_refuses_what_no_form_would_send(doors: Doors, text: str, statuses: set[int]) -> None:
    before = doors.own_runs()
    status, _ = doors.post(text)
    assert status in statuses
    assert doors.own_runs() == before
    assert doors.api.health()["scheduler"]["status"] == "healthy"


def test_a_backfill_with_bad_parameters_makes_no_run(doors: Doors) -> None:
    before = doors.own_runs()
    asked = {"dag_id": DAG, "from_date": "2026-02-10T00:00:00Z", "to_date": "2026-02-10T01:00:00Z",
             "max_active_runs": 1, "run_backwards": False, "dag_run_conf": {"mode": "force"}}  # fmt: skip
    status, said = doors.post(json.dumps(asked), "/backfills")
    assert status in (400, 422), said[:500]
    assert "force" in said
    assert doors.own_runs() == before


@pytest.mark.parametrize(
    ("conf", "words"),
    [('{"tables": ["t; DROP TABLE x--"]}', "tables"), ('{"mode": "force"}', "mode"), ('{"mode": ', "JSON|Expecting")],
    ids=["1", "48", "no JSON"],
)
def test_the_command_line_refuses_it(doors: Doors, conf: str, words: str) -> None:
    before = doors.own_runs()
    done = doors.command("dags", "trigger", DAG, "--conf", conf)
    assert done.returncode != 0
    assert re.search(words, done.stdout + done.stderr), done.stderr[-1000:]
    assert doors.own_runs() == before


def test_what_comes_past_the_form_is_refused_by_every_task_and_counted_once(doors: Doors) -> None:
    """41, 42, 48: a megabyte, nested values and a flag that nobody knows, by the command line's own door."""
    before = doors.refused()
    nested = json.loads("[" * 50 + "]" * 50)  # at 200 Airflow's own processes fail (README, Limits)
    conf = {"force_publish": True, "x": "y" * 1_000_000, "deep": nested, "z" * 100_000: 1}
    run_id = doors.api.trigger(DAG, conf)
    deadline = time.monotonic() + 480
    while (state := doors.api.run(DAG, run_id)["state"]) not in ("failed", "success"):
        assert time.monotonic() < deadline, f"{run_id} is {state}"
        time.sleep(1)
    assert state == "failed"
    tasks = {task["task_id"]: task for task in doors.api.tasks(DAG, run_id)}
    for name in TABLES:
        (read,) = (task for key, task in tasks.items() if key.endswith(f".{name}.read_watermark"))
        assert (read["state"], read["try_number"]) == ("failed", 1), "no retry can mend it"
        told = doors.attempts(name, run_id)
        assert {attempt.event for attempt in told} <= {"failed"}, "nothing was begun, so nothing was written"
        for attempt in told:
            assert re.match(r"unknown parameter deep, force_publish, x, z+\.\.\.", attempt.detail["error"])
            assert len(attempt.detail["error"]) < 500
    assert doors.refused() == before + 1
