"""The same DAG where nothing is on this machine's disk: a Spark cluster, a REST catalog, an object store."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyiceberg.catalog import Catalog, load_catalog

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.sql import Query
from coldchain.lake import head_of, live_files
from coldchain.registry import load_registry
from coldchain.settings import CATALOG_NAME, Settings
from coldchain_spark.runner import SMALL_ROWS
from stack import process
from stack.airflow_api import AirflowApi
from stack.follow import DAG_ID, follow, start_run
from stack.package import write_zip
from stack.settings import component_env
from stack.state import Stack, find_state
from tests.cluster import Cluster, standalone
from tests.comparer import compare, connect_clickhouse
from tests.conftest import read_environment
from tests.integration.test_object_storage import store  # noqa: F401
from tests.processes import run_stack
from tests.rest_server import serving

SPEC = load_registry().table("bronze_trades_kraken")
ROWS = SMALL_ROWS + 20_000  # more than the driver streams itself
SECRET = "a-secret-of-the-rest-catalog"
WAREHOUSE = "s3://cold/elsewhere"

pytestmark = pytest.mark.timeout(900)


@dataclass
class Elsewhere:
    """A stack whose scheduler was told of another Spark, catalog and warehouse."""

    api: AirflowApi
    settings: Settings
    loader: HttpClickHouse
    cluster: Cluster
    stack: Stack

    @property
    def catalog(self) -> Catalog:
        """The REST catalog."""
        return load_catalog(CATALOG_NAME, **self.settings.catalog_properties)

    def run(self) -> None:
        """Run the table's tasks and those alone."""
        run_id = start_run(self.api, {"tables": [SPEC.name]})
        assert follow(self.api, run_id), [t for t in self.api.tasks(DAG_ID, run_id) if t["state"] == "failed"]

    def insert(self, start: datetime, rows: int, first: int) -> None:
        """Insert trades over six hours."""
        statement = (
            f"INSERT INTO {SPEC.source} SELECT toDateTime64({{at:String}}, 6, 'UTC') + number % 21600, "
            "{first:UInt64} + number, 'XBT/USD', if(number % 2, 'buy', 'sell'), toDecimal128(90000 + number % 9, 8), "
            "toDecimal128(1, 8), toDecimal128(90000, 8), now64(6), {first:UInt64} + number, 0, now64(6) "
            "FROM numbers({rows:UInt64})"
        )
        values = {"at": f"{start:%Y-%m-%d %H:%M:%S}", "first": first, "rows": rows}
        for _ in self.loader.stream(Query(statement, values), {}):
            pass

    def check_equal(self, rows: int) -> None:
        """Assert that every row is there once, by the independent comparer."""
        settings = self.settings
        client = connect_clickhouse(settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password)
        found = compare(client, self.catalog, source=SPEC.source, target=SPEC.target, event_time=SPEC.event_time)
        client.close()
        assert found.is_equal, found
        assert found.target_rows == rows


@pytest.fixture(scope="module")
def elsewhere(store: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:  # noqa: F811
    """Start a stack of its own, and its scheduler once more with other connections."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with (
        tempfile.TemporaryDirectory(prefix="coldchain-test-", ignore_cleanup_errors=True) as home,
        pytest.MonkeyPatch.context() as patch,
        standalone(folder / "spark") as cluster,
    ):
        state = Path(home)
        state.chmod(0o755)  # PostgreSQL runs as another user where the tests run as root
        run_stack(state, "up")
        try:
            environment = read_environment(state)
            patch.setenv("COLDCHAIN_STATE", home)
            stack = find_state()
            assert stack is not None
            with serving(folder, environment["COLDCHAIN_CATALOG_URI"], WAREHOUSE, store) as address:
                process.stop(stack, ["airflow-scheduler"])
                code = write_zip(folder / "coldchain.zip")
                connections = {
                    "COLDCHAIN_ICEBERG": {"conn_type": "generic", "login": "coldchain", "password": SECRET,
                                          "extra": {"type": "rest", "uri": address, **store}},
                    "SPARK_DEFAULT": {"conn_type": "spark", "host": "spark://127.0.0.1", "port": cluster.port,
                                      "extra": {"py_files": str(code),
                                                "conf": {"spark.executor.memory": "500m",
                                                         "spark.driver.host": "127.0.0.1"}}},
                }  # fmt: skip
                more = {f"AIRFLOW_CONN_{name}": json.dumps(form) for name, form in connections.items()}
                command = [str(Path(sys.prefix) / "bin" / "airflow"), "scheduler", "--skip-serve-logs"]
                more |= {"PYSPARK_PYTHON": sys.executable, "COLDCHAIN_PRELOAD": "1"}
                process.start(stack, "airflow-scheduler", command, {**component_env(stack), **more})
                settings = replace(
                    Settings.from_environment(environment),
                    catalog_uri=address,
                    warehouse="",
                    storage=store,
                    catalog_access={"credential": f"coldchain:{SECRET}"},
                )
                api = AirflowApi(*(environment[f"AIRFLOW_{name}"] for name in ("URL", "USER", "PASSWORD")))
                login = (environment[f"COLDCHAIN_LOADER_{name}"] for name in ("USER", "PASSWORD"))
                loader = HttpClickHouse(settings.clickhouse_url, *login)
                yield Elsewhere(api, settings, loader, cluster, stack)
        finally:
            run_stack(state, "down")


def test_rows_and_late_rows_end_equal_and_nothing_is_left_here(elsewhere: Elsewhere) -> None:
    """Executors stream the rows, and all of them again with the late ones; both are published, and no key is told."""
    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    elsewhere.insert(start, ROWS, 1_000_000)
    elsewhere.run()
    elsewhere.check_equal(ROWS)
    executors = list(elsewhere.cluster.folder.glob("daemon-*/work/app-*/*/stderr"))
    assert executors, "the cluster's workers ran an executor"
    elsewhere.insert(start + timedelta(hours=1), 10, 9_000_000)
    elsewhere.run()
    elsewhere.check_equal(ROWS + 10)
    table = elsewhere.catalog.load_table(SPEC.target)
    assert all(path.startswith(f"{WAREHOUSE}/") for path in live_files(table, head_of(table)))
    assert list(elsewhere.stack.warehouse.rglob("*.parquet")) == []
    secrets = [SECRET, elsewhere.settings.storage["s3.secret-access-key"]]
    said = [path.read_text(errors="replace") for path in elsewhere.stack.airflow_home.rglob("*.log")]
    said += [path.read_text(errors="replace") for path in executors]
    assert not [secret for secret in secrets if secret in "".join(said)]
