"""Airflow's components as processes of their own: api-server, scheduler, dag-processor, triggerer."""

import json
import subprocess
import sys
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stack import process
from stack.airflow_api import AirflowApi
from stack.errors import StackError
from stack.progress import say
from stack.settings import ADMIN, component_env
from stack.state import Stack, write_private

# Component, its arguments, and its name in the health report. The log servers are left out: they would listen on every
# interface, and the API server reads the same folder.
COMPONENTS = {
    "api-server": ((), "metadatabase"),
    "scheduler": (("--skip-serve-logs",), "scheduler"),
    "dag-processor": ((), "dag_processor"),
    "triggerer": (("--skip-serve-logs",), "triggerer"),
}
NAMES = tuple(f"airflow-{component}" for component in COMPONENTS)
MIGRATION = "airflow-migrate"
# Name, slots, description: so that one machine isn't overrun.
POOLS = (
    ("coldchain_spark", 2, "Spark applications at once"),
    ("coldchain_clickhouse", 4, "Tasks that ask ClickHouse at once"),
)


def begin_migration(stack: Stack) -> None:
    """Start making Airflow's tables unless this version has made them; PostgreSQL must answer."""
    marker = _marker(stack)
    if marker.exists() or process.find(stack, MIGRATION):
        return
    say("Airflow: making its tables (once)")
    migrate = ["/bin/sh", "-c", '"$0" db migrate && : > "$1"', _airflow(), str(marker)]
    process.start(stack, MIGRATION, migrate, component_env(stack))


def launch(stack: Stack) -> None:
    """Start every component that does not run, after the migration."""
    process.await_exit(stack, MIGRATION, "`airflow db migrate`", patience_s=180)
    if not _marker(stack).exists():
        raise StackError(f"`airflow db migrate` failed: see {stack.logs / f'{MIGRATION}.log'}.")
    write_private(stack.airflow_home / "passwords.json", json.dumps({ADMIN: stack.secrets["airflow_admin"]}))
    for component, (arguments, _reported) in COMPONENTS.items():
        name = f"airflow-{component}"
        if not process.find(stack, name):
            more = {"COLDCHAIN_PRELOAD": "1"} if component == "scheduler" else {}
            process.start(stack, name, [_airflow(), component, *arguments], {**component_env(stack), **more})


def await_ready(stack: Stack, patience_s: float = 120.0) -> AirflowApi:
    """Wait until the API answers and every component has reported since this command began; see to the pools."""
    api = AirflowApi.of(stack)
    waiting = {component: reported for component, (_arguments, reported) in COMPONENTS.items()}
    deadline, announced = time.monotonic() + patience_s, time.monotonic()
    say("Airflow: waiting for " + ", ".join(waiting))
    while waiting:
        health = api.health()
        for component in [name for name, reported in waiting.items() if _is_healthy(stack, name, health.get(reported))]:
            del waiting[component]
            say(f"Airflow: {component} is up")
        _check_components(stack, deadline, waiting)
        if waiting and time.monotonic() - announced > 10:
            announced = time.monotonic()
            say("Airflow: still waiting for " + ", ".join(waiting))
        time.sleep(0.25 if waiting else 0)
    for name, slots, description in POOLS:
        _ensure_pool(api, name, slots, description)
    return api


def halt(stack: Stack) -> None:
    """Stop all components together; running tasks are asked to end first."""
    process.stop(stack, [*NAMES, MIGRATION])


def run_cli(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one `airflow` command against this stack."""
    return subprocess.run(
        [_airflow(), *arguments], env=component_env(stack), cwd=stack.work, capture_output=True, text=True, check=False
    )


def _is_healthy(stack: Stack, component: str, report: dict[str, Any] | None) -> bool:
    """Tell whether the report is good and not left over from the component's predecessor."""
    if not report or report.get("status") != "healthy":
        return False
    beat = next((value for key, value in report.items() if key.startswith("latest_") and value), None)
    if beat is None:
        return component == "api-server"
    record = stack.pids / f"airflow-{component}.json"
    return record.exists() and datetime.fromisoformat(beat).timestamp() >= record.stat().st_mtime


def _check_components(stack: Stack, deadline: float, waiting: dict[str, str]) -> None:
    for name in NAMES:
        if not process.find(stack, name):
            lines = "; ".join(process.last_lines(stack.logs / f"{name}.log", 3))
            raise StackError(f"{name} has ended ({lines}): see {stack.logs / f'{name}.log'}.")
    if time.monotonic() > deadline and waiting:
        raise StackError(f"Airflow's {', '.join(waiting)} did not get healthy: see `make logs` and {stack.logs}.")


def _ensure_pool(api: AirflowApi, name: str, slots: int, description: str) -> None:
    if name not in {pool["name"] for pool in api.get("/pools", limit=100)["pools"]}:
        api.post("/pools", {"name": name, "slots": slots, "description": description, "include_deferred": False})


def _marker(stack: Stack) -> Path:
    return stack.airflow_home / f"migrated-{version('apache-airflow')}"


def _airflow() -> str:
    return str(Path(sys.prefix) / "bin" / "airflow")
