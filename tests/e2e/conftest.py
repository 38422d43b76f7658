"""The running stack with its trades, for every test through Airflow; and as a person at a shell has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.sql import Query
from coldchain.settings import Settings
from stack.airflow_api import AirflowApi
from stack.follow import DAG_ID, await_dag
from stack.state import Stack, find_state
from tests.conftest import read_environment
from tests.processes import run_stack
from tests.watch import Shell

TABLE = "bronze_trades_kraken"


@pytest.fixture(scope="session")
def airflow(state: Path) -> dict[str, str]:
    """Start Airflow with a deadline that no scheduled run can keep: test_status_page.py sees it missed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLDCHAIN_DEADLINE_MINUTES", "1")
        run_stack(state, "up")
    return read_environment(state)


@pytest.fixture(scope="session")
def trades(airflow: dict[str, str], state: Path) -> dict[str, str]:
    """Load the shipped trades, where nobody has, into the running stack whose variables are returned."""
    source = HttpClickHouse.of(Settings.from_environment(airflow))
    if source(Query(f"SELECT count() FROM k2.{TABLE}", {})) == [(0,)]:
        run_stack(state, "load")
    return airflow


@pytest.fixture(scope="session")
def api(trades: dict[str, str]) -> AirflowApi:
    """Airflow's API, once Airflow knows the offload."""
    made = AirflowApi(trades["AIRFLOW_URL"], trades["AIRFLOW_USER"], trades["AIRFLOW_PASSWORD"])
    await_dag(made, DAG_ID)
    return made


@pytest.fixture(scope="module")
def shell(trades: dict[str, str], state: Path) -> Shell:
    """A person's shell on the stack."""
    return Shell(state, TABLE)


@pytest.fixture(scope="module")
def stack(airflow: dict[str, str], state: Path) -> Stack:
    """The stack, as its own commands know it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLDCHAIN_STATE", str(state))
        found = find_state()
    assert found is not None
    return found
