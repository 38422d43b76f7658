"""The running stack as a person at a shell has it, its trades loaded; for runbooks, and whatever comes last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.sql import Query
from coldchain.settings import Settings
from stack.state import Stack, find_state
from tests.watch import ROOT, Shell

TABLE = "bronze_trades_kraken"


@pytest.fixture(scope="module")
def shell(airflow: dict[str, str], state: Path) -> Shell:
    """A person's shell on the stack, whose trades are loaded where no test before has."""
    settings = Settings.from_environment(airflow)
    source = HttpClickHouse.of(settings)
    if source(Query(f"SELECT count() FROM k2.{TABLE}", {})) == [(0,)]:
        environment = {**os.environ, "COLDCHAIN_STATE": str(state), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "stack", "load"], cwd=ROOT, env=environment, check=True, timeout=120)
    return Shell(state, TABLE)


@pytest.fixture(scope="module")
def stack(airflow: dict[str, str], state: Path) -> Stack:
    """The stack, as its own commands know it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLDCHAIN_STATE", str(state))
        found = find_state()
    assert found is not None
    return found
