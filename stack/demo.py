"""The demonstration: real trades through the real scheduler, and an independent proof of the outcome."""

import subprocess
import sys
from typing import Any

from stack import follow, jars, lifecycle, prerequisites
from stack.airflow_api import AirflowApi
from stack.generate import load_generated
from stack.load import derived, load_shipped
from stack.progress import say, seconds_since_start
from stack.settings import ADMIN, component_env
from stack.state import CLONE, Stack

MAINTENANCE = "coldchain_maintenance"
ADOPTION = "coldchain_adopt"


def demonstrate(generated_rows: int = 0) -> bool:
    """Bring the stack up, load the trades, run the offload, prove the outcome; tell whether all of it holds."""
    stack, api = lifecycle.up()
    expected = load(stack, generated_rows)
    succeeded = follow.follow(api, follow.start_run(api, {}))
    report(stack, "status")
    holds = prove(stack, expected)
    farewell(api, stack)
    if not succeeded:
        say("The run failed: `make logs` shows the components' logs, the UI the tasks'")
    say(f"{'All of it holds' if holds and succeeded else 'NOT proven'} ({seconds_since_start():.0f} s)")
    return holds and succeeded


def load(stack: Stack, generated_rows: int) -> dict[str, int]:
    """Load everything; return the rows that each of the ten tables must hold, none of them zero."""
    rows = load_shipped(stack)
    for table, count in load_generated(stack, generated_rows).items():
        rows[table] += count
    return rows | derived(stack, rows)


def run(conf: dict[str, Any]) -> bool:
    """Trigger the offload and follow it; tell whether it succeeded."""
    stack, api = lifecycle.require_up()
    succeeded = follow.follow(api, follow.start_run(api, conf))
    report(stack, "status")
    return succeeded


def maintain(conf: dict[str, Any]) -> bool:
    """Trigger the maintenance and follow it; tell whether it succeeded."""
    _, api = lifecycle.require_up()
    return follow.follow(api, follow.start_run(api, conf, MAINTENANCE), MAINTENANCE)


def adopt(conf: dict[str, Any]) -> bool:
    """Trigger an adoption and follow it; print what became of the table, and tell whether it succeeded."""
    _, api = lifecycle.require_up()
    run_id = follow.start_run(api, conf, ADOPTION)
    succeeded = follow.follow(api, run_id, ADOPTION)
    if succeeded:
        say(api.result(ADOPTION, run_id, "adopt"))
    return succeeded


def report(stack: Stack, verb: str) -> int:
    """Print one of the package's own reports and return its exit code."""
    command = [sys.executable, "-m", "coldchain.report", verb]
    return subprocess.run(command, env=component_env(stack), cwd=stack.work, check=False).returncode


def second_proof(stack: Stack) -> int:
    """Let Spark SQL read every published table, compare it with ClickHouse by another sum, and return the exit code."""
    prerequisites.check_java()
    env = component_env(stack)
    env |= {"PYTHONPATH": f"{env['PYTHONPATH']}:{CLONE / 'spark'}", "SPARK_CONF_DIR": str(CLONE / "spark" / "conf")}
    command = ["spark-submit", "--master", "local[2]", "--driver-memory", "1g"]
    command += ["--driver-class-path", jars.resolve(env)]
    command.append(str(CLONE / "spark" / "jobs" / "verify_tables.py"))
    return subprocess.run(command, env=env, cwd=stack.work, check=False).returncode


def prove(stack: Stack, expected: dict[str, int]) -> bool:
    """Compare each table row by row and with the number of rows that were loaded; print a line per table."""
    command = [sys.executable, "-m", "tests.comparer", *(f"{table}={rows}" for table, rows in expected.items())]
    say("Comparing every row of Iceberg with ClickHouse, independently of the package's own proof")
    env = component_env(stack)
    env["PYTHONPATH"] = f"{CLONE}:{env['PYTHONPATH']}"
    return subprocess.run(command, env=env, cwd=stack.work, check=False).returncode == 0


def farewell(api: AirflowApi, stack: Stack) -> None:
    """Print where the UI is and who may enter."""
    say(f"Airflow: {api.url}  user: {ADMIN}  password: {stack.secrets['airflow_admin']}")


def conf_from(environment: dict[str, str]) -> dict[str, Any]:
    """Return a run's parameters from START, END, TABLES, MODE and ALLOW_SHRINK; commas or spaces part a list."""
    conf: dict[str, Any] = {}
    for name in ("START", "END", "MODE"):
        if environment.get(name):
            conf[name.lower()] = environment[name]
    if tables := environment.get("TABLES", "").replace(",", " ").split():
        conf["tables"] = tables
    if approvals := environment.get("ALLOW_SHRINK", "").replace(",", " ").split():
        conf["allow_shrink"] = approvals
    return conf
