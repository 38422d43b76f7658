"""Maintenance killed anywhere: readers see the same rows all the time, and the next one finishes what it began."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pyarrow as pa
import pytest

from coldchain.core.request import Request
from coldchain.lake import MAIN, head_of, live_files
from tests.faults.test_kills import KILLED, check_files
from tests.lab import Lab, yesterday

DAY = yesterday() - timedelta(days=9)
HOUR = timedelta(hours=1)
RUN = "maintenance/run"

# Failpoint -> the step that meets it.
POINTS = {
    "take.after_claim": "compact",
    "compact.after_take": "compact",
    "stream.amid_file": "compact",
    "compact.after_write": "compact",
    "stage.after_branch": "compact",
    "compact.after_stage": "compact",
    "publish.before_begin": "compact",
    "publish.after_begin": "compact",
    "publish.before_move": "compact",
    "publish.after_move": "compact",
    "publish.after_record": "compact",
    "compact.after_publish": "compact",
    "expire.before_commit": "tidy",
    "orphans.amid_removal": "tidy",
}
ROWS = {"expire.before_commit": ("F35",), "orphans.amid_removal": ("F36", "F41")}  # of the fault table
CASES = [
    pytest.param(point, marks=[pytest.mark.fault(*ROWS[point], recovery="next run")] if point in ROWS else [])
    for point in POINTS
]


def prepare(lab: Lab) -> None:
    """Publish seven hours of a closed day, and leave what a dead attempt leaves: a branch and a file."""
    for hour in range(7):
        lab.insert_many(DAY + hour * HOUR, 10, 60_000_000, first=100 * hour + 1)
        lab.run(Request(lab.window(DAY + hour * HOUR, DAY + (hour + 1) * HOUR), None), run_key=f"test/{hour}")
    lab.insert_many(DAY + 8 * HOUR, 5, 60_000_000, first=9_001)
    lab.offload(lab.read(Request(lab.window(DAY + 8 * HOUR, DAY + 9 * HOUR), None), "test/dead"), "test/dead")
    lab.give_up("test/dead")


@contextmanager
def unchanged(lab: Lab) -> Iterator[None]:
    """Look at `main` all the time: every row that was there is there once, as it was, and no other."""
    wanted = rows(lab)
    over, odd, looks = threading.Event(), list[pa.Table](), list[int]()

    def look() -> None:
        while not over.wait(0.05):
            if not (found := rows(lab)).equals(wanted):
                odd.append(found)
            looks.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert odd == []
    assert len(looks) > 3


def rows(lab: Lab) -> pa.Table:
    return lab.lake.require(lab.spec.target).scan().to_arrow().sort_by("seq").combine_chunks()


@pytest.mark.parametrize("point", CASES)
def test_killed_maintenance_heals(lab: Lab, point: str) -> None:
    """Readers see the same rows all the while; the next maintenance ends what was begun, and no live file is gone."""
    prepare(lab)
    step = POINTS[point]
    with unchanged(lab):
        if step == "tidy":
            assert lab.step("compact", run_key=RUN).returncode == 0
        done = lab.step(step, run_key=RUN, failpoint=f"{point}=kill")
        assert done.returncode == KILLED, f"the fault did not fire: {done.stdout}{done.stderr}"
        lab.let_lease_end()
        for again in ("compact", "tidy"):
            done = lab.step(again, run_key=RUN)
            assert done.returncode == 0, done.stderr + done.stdout
    check_files(lab)
    table = lab.lake.require(lab.spec.target)
    assert len(live_files(table, head_of(table))) == 1
    assert set(table.metadata.refs) == {MAIN}
    assert lab.ledger.publishing(lab.name) == []
    lab.run(Request(lab.window(DAY, DAY + 24 * HOUR), None), run_key="test/after")
    lab.check_equal(75)


def test_an_offload_gets_the_table_between_two_days(lab: Lab) -> None:
    """Compaction holds the lease for one day at a time: who wants it in between is served after that day."""
    for day in range(2):
        for hour in range(6):
            start = DAY + timedelta(days=day) + hour * HOUR
            lab.insert_many(start, 5, 60_000_000, first=1000 * day + 100 * hour + 1)
            lab.run(Request(lab.window(start, start + HOUR), None), run_key=f"test/{day}-{hour}")
    running = lab.start("compact", run_key=RUN, failpoint="compact.after_publish=sleep:3,compact.after_take=sleep:3")
    deadline = time.monotonic() + 60
    while lab.ledger.lease(lab.name).holder != RUN:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lab.insert([(DAY + timedelta(days=4), 90_001)])
    window = lab.window(DAY + timedelta(days=4), DAY + timedelta(days=5))
    while True:
        assert time.monotonic() < deadline
        done = lab.step("read", run_key="test/between", window=window)
        if done.returncode == 0:
            break
    lab.steps(run_key="test/between", since="offload")
    assert running.wait().returncode == 0
    days = [s for s in lab.ledger.segments(lab.name) if s.state == "published"]
    assert len(days) == 3, "both days are one segment each, and the late one"
    lab.check_equal(61)


def test_a_compaction_that_was_overtaken_publishes_nothing(lab: Lab) -> None:
    """Frozen past its lease while a late row replaces an hour of its day: what it wrote are orphans."""
    prepare(lab)
    running = lab.start("compact", run_key=RUN, failpoint="compact.after_stage=stop")
    running.await_stop()
    lab.let_lease_end()
    lab.insert([(DAY + timedelta(hours=3, minutes=59), 9_900)])
    lab.run(Request(lab.window(DAY + 3 * HOUR, DAY + 4 * HOUR), None), run_key="test/late")
    running.resume()
    done = running.wait()
    assert done.returncode != 0
    assert "overtaken" in done.stdout, done.stdout
    lab.run(Request(lab.window(DAY, DAY + 24 * HOUR), None), run_key="test/after")
    lab.check_equal(76)
    assert lab.step("compact", run_key="maintenance/next").returncode == 0
    lab.check_equal(76)
