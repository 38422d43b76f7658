"""The folder is the tier: every test gets its marker. One stack of its own serves all tiers that need one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports Airflow: it makes files in its home, of which each process of a parallel run has its own.
os.environ.setdefault(
    "AIRFLOW_HOME",
    str(Path(__file__).parents[1] / "build" / f"airflow-home-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"),
)

from tests.lab import Lab
from tests.processes import run_stack

pytest_plugins = ("tests.fault_matrix",)

ROOT = Path(__file__).parents[1]
TIERS = ("unit", "integration", "e2e", "faults", "bench")
FIRST, LONGEST_FIRST = ("test_scheduler.py", "test_elsewhere.py"), ("faults", "e2e", "integration", "unit", "bench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier; in a parallel run the longest file goes to one process, the next tier to the other.

    Two Airflows at once are in each other's way on two cores, and three more so: the file that starts one more goes to
    the process that has none yet.
    """
    for item in items:
        if _tier(item) in TIERS:
            item.add_marker(_tier(item))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (_place(Path(item.path).name), LONGEST_FIRST.index(_tier(item))))


def _place(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _tier(item: pytest.Item) -> str:
    return Path(item.path).relative_to(Path(__file__).parent).parts[0]


def read_environment(state: Path) -> dict[str, str]:
    """Read the env file that the stack wrote."""
    text = (state / "env").read_text()
    return dict(re.findall(r"^export (\w+)='(.*)'$", text, flags=re.MULTILINE))


@pytest.fixture(scope="session")
def state() -> Iterator[Path]:
    """Give the tests' own stack a folder; whatever it started is stopped at the end. COLDCHAIN_TEST_STATE keeps one."""
    if kept := os.environ.get("COLDCHAIN_TEST_STATE"):
        yield Path(kept)
        return
    with tempfile.TemporaryDirectory(prefix="coldchain-test-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user where the tests run as root
        try:
            yield Path(folder)
        finally:
            run_stack(Path(folder), "down")


@pytest.fixture(scope="session")
def environment(state: Path) -> dict[str, str]:
    """Start PostgreSQL and ClickHouse, and return the variables of the stack's env file."""
    run_stack(state, "services")
    return read_environment(state)


@pytest.fixture(scope="session")
def airflow(state: Path) -> dict[str, str]:
    """Start Airflow as well, and return the variables of the stack's env file."""
    run_stack(state, "up")
    return read_environment(state)


@pytest.fixture
def lab(environment: dict[str, str], tmp_path: Path) -> Iterator[Lab]:
    """Make a source table of the test's own."""
    made = Lab(environment, tmp_path / "lab")
    yield made
    made.ledger.close()
    made.execute(f"DROP TABLE k2.{made.name} SYNC")
