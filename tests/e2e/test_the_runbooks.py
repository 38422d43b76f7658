"""Every command of every runbook runs, on a real stack; two alerts fire at Airflow's own endpoint, and end.

Named to come late: it moves all that other tests left, and it stops and starts Airflow's API server.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stack import process
from stack.airflow_api import AirflowApi
from stack.state import Stack
from tests.prometheus import Prometheus, scraping
from tests.watch import Shell, alerts, blocks_of, needs_prometheus

pytestmark = pytest.mark.timeout(900)
DAG, TABLE = "coldchain_offload", "bronze_trades_kraken"
RAN: set[str] = set()  # blocks that have succeeded: several runbooks share some
DOWN, NOTHING = ("ColdchainExporterDown", ""), ("ColdchainNoRuns", "")


@pytest.fixture(scope="module")
def prometheus(airflow: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrape Airflow's own API server. A run counts as missing after a minute, not after half an hour."""
    endpoint, token = f"{airflow['AIRFLOW_URL']}/coldchain/metrics", airflow["COLDCHAIN_METRICS_TOKEN"]
    with scraping(endpoint, token, tmp_path_factory.mktemp("prometheus"), NoRuns="== 1) + 900=>== 1) - 840") as opened:
        yield opened


@needs_prometheus
def test_a_dead_api_server_and_a_paused_dag_are_seen_and_the_runbooks_help(
    prometheus: Prometheus, shell: Shell, stack: Stack, api: AirflowApi
) -> None:
    prometheus.wait(for_none={DOWN})
    api.patch(f"/dags/{DAG}", {"is_paused": True})
    process.stop(stack, ["airflow-api-server"])
    prometheus.wait(for_all={DOWN})
    *diagnosis, resolution = blocks_of(DOWN[0])
    assert "metrics: 000" in shell.check(*diagnosis)
    shell.check(resolution)
    prometheus.wait(for_none={DOWN})
    assert "metrics: 200" in shell.check(*diagnosis)

    prometheus.wait(for_all={NOTHING})
    assert api.get(f"/dags/{DAG}")["is_paused"]
    shell.check(*blocks_of(NOTHING[0]))
    assert not api.get(f"/dags/{DAG}")["is_paused"]
    prometheus.wait(for_none={NOTHING})
    RAN.update(*(blocks_of(name) for name, _ in (DOWN, NOTHING)))


@pytest.mark.parametrize("name", alerts())
def test_every_block_of_a_runbook_succeeds_on_a_healthy_stack(name: str, shell: Shell) -> None:
    blocks = [block for block in blocks_of(name) if block not in RAN]
    shell.check(*blocks)
    RAN.update(blocks)
