"""Every step killed before and after what it makes durable: a retry or the next run converges, unseen by readers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from coldchain.lake import Lake, head_of, live_files
from tests.lab import Lab, yesterday

START = yesterday()
KILLED = -9

READ = ["read.after_take", "read.before_record"]
OFFLOAD = ["offload.after_stream", "offload.before_stage", "offload.after_stage"]
VALIDATE = ["validate.before_prove", "validate.after_prove"]
COMMIT = [
    "publish.before_begin",
    "publish.after_begin",
    "publish.before_move",
    "publish.after_move",
    "publish.after_record",
]


@contextmanager
def watched(lab: Lab, allowed: set[int]) -> Iterator[None]:
    """Read `main` all the time; any number of rows that was never proven fails the test."""
    seen: set[int] = set()
    stop = threading.Event()
    lake = Lake(lab.settings.catalog_properties)

    def look() -> None:
        while not stop.wait(0.05):
            table = lake.load(lab.spec.target)
            if table is not None:
                seen.add(sum(file.record_count for file in live_files(table, head_of(table)).values()))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()
    assert seen <= allowed, f"a reader saw {seen - allowed} rows"


def prepare(lab: Lab) -> None:
    """Publish 20 rows, then add 7 late ones and 5 of another window: 32 in all, one replacement and one new window."""
    lab.insert_many(START, 20, 1_000_000)
    lab.run(run_key="test/before")
    lab.insert_many(START + timedelta(seconds=1, microseconds=5), 7, 1_000_000, first=100)
    lab.insert_many(START - timedelta(days=1), 5, 1_000_000, first=200)


@pytest.mark.parametrize("point", READ + VALIDATE + COMMIT)
@pytest.mark.parametrize("recovery", ["retry", "next run"])
def test_a_killed_task_converges(lab: Lab, point: str, recovery: str) -> None:
    prepare(lab)
    verb = {"read": "read", "validate": "validate", "publish": "commit"}[point.partition(".")[0]]
    with watched(lab, {20, 32}):
        for step in ("read", "offload", "validate", "commit"):
            if step == "offload":
                reading = lab.read(run_key="test/run")
                lab.offload(reading, run_key="test/run")
                continue
            done = lab.step(step, failpoint=f"{point}=kill" if step == verb else "")
            if step == verb:
                assert done.returncode == KILLED, f"the fault did not fire: {done.stderr}"
                break
            assert done.returncode == 0, done.stderr
        recover(lab, verb, recovery)
    lab.check_equal(32)
    assert lab.run(run_key="test/idle").work is None
    assert lab.ledger.publishing(lab.name) == []


def recover(lab: Lab, verb: str, recovery: str) -> None:
    """Do what Airflow or a person does: run the killed task and what follows again, or wait for the next run."""
    if recovery == "next run":
        with lab.ledger._transaction() as cursor:  # five minutes go by
            cursor.execute(
                "UPDATE coldchain.leases SET expires_at = '-infinity' WHERE table_id = "
                "(SELECT table_id FROM coldchain.tables WHERE table_name = %s)",
                (lab.name,),
            )
        lab.run(run_key="test/next")
        return
    order = ("read", "offload", "validate", "commit")
    for step in order[order.index(verb) :]:
        if step == "read":
            assert lab.step("read").returncode == 0
        elif step == "offload":
            lab.offload(lab.read(run_key="test/run"), run_key="test/run")
        else:
            done = lab.step(step)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("point", OFFLOAD)
def test_a_killed_spark_driver_leaves_main_alone_and_its_retry_converges(lab: Lab, point: str) -> None:
    prepare(lab)
    with watched(lab, {20, 32}):
        assert lab.step("read").returncode == 0
        done = lab.step("offload", failpoint=f"{point}=kill")
        assert done.returncode != 0, "the fault did not fire"
        assert lab.compare().target_rows == 20
        for step in ("offload", "validate", "commit"):
            done = lab.step(step)
            assert done.returncode == 0, done.stderr
    lab.check_equal(32)


def test_a_failed_driver_removes_what_it_wrote(lab: Lab) -> None:
    prepare(lab)
    assert lab.step("read").returncode == 0
    done = lab.step("offload", failpoint="offload.before_stage=raise")
    assert done.returncode == 75, done.stderr
    table = lab.lake.require(lab.spec.target)
    kept = {path.rpartition("/")[2] for path in live_files(table, head_of(table))}
    data = lab.lake.require(lab.spec.target).location() + "/data"
    assert {path.name for path in Path(data).rglob("*.parquet")} == kept
    lab.run(run_key="test/run")
    lab.check_equal(32)


def test_slices_on_executors_give_the_same_rows(lab: Lab) -> None:
    """More rows than the driver streams itself: Spark's Python workers write several files a segment."""
    lab.execute(
        f"INSERT INTO k2.{lab.name} SELECT toDateTime64('{START:%Y-%m-%d} 00:00:00', 6, 'UTC') + intDiv(number, 20), "
        "number, concat('S', toString(number % 3)), toDecimal64(number % 1000, 8) / 7, "
        "if(number % 5 = 0, NULL, toString(number)), number / 3, number % 100, number % 2, '2026-01-01', 1 "
        "FROM numbers(1200000)"
    )
    lab.steps()
    (segment,) = [s for s in lab.ledger.segments(lab.name) if s.paths]
    assert len(segment.paths) > 1
    lab.check_equal(1_200_000)
