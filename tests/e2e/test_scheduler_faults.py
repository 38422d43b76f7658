"""Workers, drivers, API server and scheduler that die under a real run: it recovers by itself, or by a clear.

Each test offloads one more late row of Binance's while something dies, and a reader watches; in the end all is equal.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from stack import process
from stack.airflow_api import AirflowApi, ApiError
from stack.state import Stack, find_state
from tests.comparer import compare, connect_clickhouse
from tests.e2e.test_scheduler import BINANCE, DAG, ENDED, STEPS, TABLES, Story, wait_for_backfill
from tests.processes import await_true, run_stack
from tests.reader import Reader, reading

OFFLOAD = f"bronze.{BINANCE}.offload"
pytestmark = pytest.mark.timeout(600)
(SPEC,) = (spec for spec in TABLES if spec.name == BINANCE)


class Scene:
    """A story in which things die."""

    def __init__(self, told: Story, reader: Reader, stack: Stack) -> None:
        self.told, self.reader, self.stack = told, reader, stack
        self.frozen: list[psutil.Process] = []

    def insert(self) -> None:
        """Insert a late row."""
        self.told.insert_copy(time.time_ns() // 1000)
        self.reader.look_at_source()

    def begin(self) -> str:
        """Insert a late row, and trigger a run of this table alone, when no scheduled one can take the row."""
        await_true(self._is_quiet, "the schedule to be quiet", 480)
        self.insert()
        return self.told.api.trigger(DAG, {"tables": [BINANCE]})

    def _is_quiet(self) -> bool:
        """Tell whether no run is active, and none is about to be: the schedule's begins right after the quarter."""
        return time.time() % 900 > 45 and not self.told.api.active_runs(DAG)

    def freeze_driver(self, run_id: str) -> psutil.Process:
        """Wait for a run's Spark driver, and freeze it."""
        driver = await_true(lambda: self._driver(run_id), "a Spark driver", 240)
        driver.suspend()
        self.frozen.append(driver)
        return driver

    def _driver(self, run_id: str) -> psutil.Process | None:
        known = {each.pid for each in self.frozen}
        for each in psutil.process_iter(["cmdline"]):
            words = each.info["cmdline"] or []
            is_driver = len(words) == 3 and words[1].endswith("offload_tables.py") and run_id in words[2]
            if is_driver and each.pid not in known:
                return each
        return None

    def wait(self, run_id: str) -> None:
        """Wait for a run's success; an API server that is away is waited for."""

        def is_over() -> bool:
            with suppress(ApiError):
                return self.told.api.run(DAG, run_id)["state"] in ENDED
            return False

        await_true(is_over, f"{run_id} to end", 420)
        assert self.told.api.run(DAG, run_id)["state"] == "success", self.told.failed(run_id)

    def tries(self, run_id: str) -> int:
        """Return how often the offload was tried."""
        return int(next(t["try_number"] for t in self.told.api.tasks(DAG, run_id) if t["task_id"] == OFFLOAD))

    def check_equal(self) -> None:
        """Assert that the table's rows are the source's, also once the zombies have ended, and that nothing is left."""
        for zombie in self.frozen:
            with suppress(psutil.Error):
                zombie.resume()
            await_true(lambda zombie=zombie: not zombie.is_running(), "the zombie to end")
        settings = self.told.settings
        client = connect_clickhouse(settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password)
        found = compare(
            client, self.told.catalog, source=SPEC.source, target=SPEC.target, event_time=SPEC.event_time, key=SPEC.key
        )
        client.close()
        assert found.is_equal, found
        assert self.told.ledger.publishing(BINANCE) == []


@pytest.fixture(scope="module")
def told(trades: dict[str, str], state: Path, api: AirflowApi) -> Iterator[Story]:
    """Unpause the DAG."""
    made = Story(trades, state)
    api.patch(f"/dags/{DAG}", {"is_paused": False})
    # Whatever tests before have left in days that no run without dates looks at.
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    made.trigger(tables=[BINANCE], start=made.oldest_day().isoformat(), end=(today + timedelta(days=1)).isoformat())
    yield made
    api.patch(f"/dags/{DAG}", {"is_paused": True})
    made.ledger.close()


@pytest.fixture
def scene(told: Story, state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Watch the table, once nobody is at work; whatever died is alive again in the end."""
    await_true(lambda: not told.api.active_runs(DAG), "the runs of before to end", 480)
    monkeypatch.setenv("COLDCHAIN_STATE", str(state))
    stack = find_state()
    assert stack is not None
    with reading(told.settings, SPEC) as reader:
        made = Scene(told, reader, stack)
        yield made
        for each in made.frozen:
            with suppress(psutil.Error):
                each.kill()
    run_stack(state, "up")


def worker_of(driver: psutil.Process) -> psutil.Process:
    """Return the task's process: the one that started spark-submit."""
    submit = driver.parent()
    while "SparkSubmit" in " ".join(submit.parent().cmdline()):
        submit = submit.parent()
    return submit.parent()


@pytest.mark.fault("F24", recovery="retry")
@pytest.mark.parametrize("driver_is", ["alive", "frozen until the retry has published"])
def test_a_killed_worker_s_driver_lives_on(scene: Scene, driver_is: str) -> None:
    """Try 2 publishes; the Spark driver of try 1 is at work beside it, or wakes up later, and publishes nothing."""
    run_id = scene.begin()
    driver = scene.freeze_driver(run_id)
    worker_of(driver).send_signal(signal.SIGKILL)
    if driver_is == "alive":
        driver.resume()
    scene.wait(run_id)
    assert scene.tries(run_id) == 2
    scene.check_equal()


@pytest.mark.fault("F25", recovery="clear")
def test_a_task_that_is_cleared_while_it_runs(scene: Scene) -> None:
    """Its process ends, it runs again, and what the first driver does when it wakes up concerns nobody."""
    run_id = scene.begin()
    scene.freeze_driver(run_id)
    scene.told.clear(run_id, OFFLOAD, downstream=True)
    scene.wait(run_id)
    scene.check_equal()


@pytest.mark.fault("F42", recovery="none needed")
def test_an_api_server_that_is_away_for_a_while(scene: Scene, state: Path) -> None:
    """Tasks and drivers wait for it or do without it (and without who serves the metrics): no try is lost."""
    run_id = scene.begin()
    driver = scene.freeze_driver(run_id)
    process.stop(scene.stack, ["airflow-api-server"], how=signal.SIGKILL)
    driver.resume()
    await_true(lambda: not driver.is_running(), "the driver to end without an API server")
    run_stack(state, "up")
    scene.wait(run_id)
    assert scene.tries(run_id) == 1
    scene.check_equal()


@pytest.mark.fault("F24", recovery="retry")
def test_a_scheduler_that_is_killed_and_started_again(scene: Scene, state: Path) -> None:
    """Its workers and their drivers die with it; its successor takes the run over and ends it."""
    run_id = scene.begin()
    scene.freeze_driver(run_id)
    process.stop(scene.stack, ["airflow-scheduler"], how=signal.SIGKILL)
    run_stack(state, "up")
    scene.wait(run_id)
    scene.check_equal()


@pytest.mark.fault("F26", recovery="none needed")
def test_two_backfills_and_other_runs_at_once(scene: Scene) -> None:
    """Airflow lets one backfill of a DAG run at a time, beside other runs; whoever comes first moves a window, once."""
    told = scene.told
    day = told.oldest_day()
    scene.insert()
    scheduled = await_true(lambda: scheduled_run(told), "a run of the schedule")
    began = datetime.now(UTC)
    told.reset(scheduled, *(f"bronze.{BINANCE}.{step}" for step in STEPS))
    exact = {"start": day.isoformat(), "end": (day + timedelta(days=4)).isoformat(), "tables": [BINANCE]}
    runs = [told.api.trigger(DAG, exact), told.api.trigger(DAG, {"tables": [BINANCE]})]
    start = day + timedelta(hours=2)
    first = backfill(told, start, start)
    with pytest.raises(ApiError) as refused:
        backfill(told, start, start)
    assert refused.value.status == 409
    wait_for_backfill(told, first)
    wait_for_backfill(told, backfill(told, start, start + timedelta(minutes=15)))
    assert set(told.wait([*runs, scheduled])) == {"success"}
    lived = told.api.run(DAG, scheduled)
    assert lived["run_type"] == "scheduled"
    assert datetime.fromisoformat(lived["start_date"]) >= began, "the schedule took no part"
    scene.check_equal()


def scheduled_run(told: Story) -> str | None:
    """Return the newest run of the schedule that has ended."""
    found = told.api.get(f"/dags/{DAG}/dagRuns", run_type="scheduled", order_by="-run_after", limit=20)["dag_runs"]
    return next((str(run["dag_run_id"]) for run in found if run["state"] in ENDED), None)


def backfill(told: Story, start: datetime, end: datetime) -> int:
    """Start a backfill of the table; logical dates, both included. Return its id."""
    made = told.api.post(
        "/backfills",
        {"dag_id": DAG, "from_date": start.isoformat(), "to_date": end.isoformat(), "max_active_runs": 2,
         "run_backwards": False, "reprocess_behavior": "completed", "dag_run_conf": {"tables": [BINANCE]}},
    )  # fmt: skip
    return int(made["id"])
