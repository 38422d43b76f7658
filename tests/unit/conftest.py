"""How property tests run: no deadline (machines are shared), and the same examples every time where CI is set."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.unit.engine import Engine

settings.register_profile(
    "coldchain",
    max_examples=100,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("coldchain")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Start ClickHouse's engine in this process, once."""
    made = Engine()
    yield made
    made.close()
