"""Executors and drivers under a real spark-submit: killed, run twice, or failing; one copy of each row comes of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from coldchain import protocol
from coldchain.core.job import JobTable
from coldchain.core.plan import Segment
from coldchain.lake import head_of, live_files
from coldchain.spark_submit import LOCAL_CORES
from coldchain_spark.offload import offload_table
from coldchain_spark.runner import SMALL_ROWS
from tests.faults.test_kills import START, check_files, prepare
from tests.lab import Lab
from tests.processes import await_true, stopped_children
from tests.reader import watching

MANY = SMALL_ROWS + 20_000  # more than the driver streams itself: Spark's Python workers do


def insert_many(lab: Lab) -> None:
    """Insert rows over seven hours."""
    lab.execute(
        f"INSERT INTO k2.{lab.name} SELECT toDateTime64('{START:%Y-%m-%d} 00:00:00', 6, 'UTC') + intDiv(number, 20), "
        "number, concat('S', toString(number % 3)), toDecimal64(number % 1000, 8) / 7, "
        "if(number % 5 = 0, NULL, toString(number)), number / 3, number % 100, number % 2, '2026-01-01', 1 "
        f"FROM numbers({MANY})"
    )


def files_of(lab: Lab) -> set[str]:
    """Return the data files that are there, whoever knows them."""
    data = Path(lab.lake.require(lab.spec.target).location()) / "data"
    return {str(path) for path in data.rglob("*.parquet")}


def check_one_segment(lab: Lab) -> Segment:
    """Assert that all rows are published, once, in one segment of several files, and return it."""
    (segment,) = [s for s in lab.ledger.segments(lab.name) if s.paths]
    assert len(segment.paths) > 1
    lab.check_equal(MANY)
    check_files(lab)
    return segment


@pytest.mark.fault("F10", recovery="Spark's own")
def test_an_executor_that_is_killed_leaves_one_copy(lab: Lab) -> None:
    """Spark runs the task again; only the files that tasks returned are committed, and what died is an orphan."""
    insert_many(lab)
    with watching(lab):
        assert lab.step("read").returncode == 0
        job = lab.submit(failpoint="stream.after_file=stop", master="local[2,4]")
        first = await_true(lambda: next(stopped_children(job.pid), None), "an executor to freeze")
        os.kill(first, signal.SIGKILL)
        said = go_on(job)
        assert job.returncode == 0, said
        lab.steps(since="validate")
    segment = check_one_segment(lab)
    assert files_of(lab) > set(segment.paths), "what the killed one wrote is an orphan"


def go_on(job: subprocess.Popen[str]) -> str:
    """Let whoever freezes go on, until the job has ended; return what it said."""

    def is_over() -> bool:
        for pid in stopped_children(job.pid):
            os.kill(pid, signal.SIGCONT)
        return job.poll() is not None

    await_true(is_over, "the Spark job to end")
    output, errors = job.communicate()
    return output + errors


def test_on_one_machine_the_driver_streams_a_large_plan_too(lab: Lab) -> None:
    """It asks for no executors: there is no master at the address."""
    insert_many(lab)
    with watching(lab):
        assert lab.step("read").returncode == 0
        job = lab.submit(master="spark://127.0.0.1:9", **{LOCAL_CORES: "2"})
        output, errors = job.communicate(timeout=120)
        assert job.returncode == 0, output + errors
        lab.steps(since="validate")
    assert files_of(lab) == set(check_one_segment(lab).paths)


@pytest.mark.fault("F10", recovery="none needed")
def test_a_slice_that_is_streamed_twice_is_committed_once(lab: Lab) -> None:
    """A speculative duplicate of a task writes a file of its own; what the driver was not given is an orphan."""
    prepare(lab)

    def twice(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        for item in items:
            function(item)
        return [function(item) for item in items]

    with watching(lab):
        reading = lab.read()
        assert reading.work is not None
        token = protocol.take(lab.turn())
        lab.ledger.note(lab.name, token, "test/run", "started")
        outcome = offload_table(JobTable(lab.spec, token, "test/run", reading.work), lab.settings, twice, 2)
        assert outcome.outcome == "staged", outcome
        lab.finish(reading)
    lab.check_equal(32)
    check_files(lab)
    mine = {path for path in files_of(lab) if token in path}
    assert len(mine) == 2 * sum(len(s.paths) for s in lab.ledger.segments(lab.name))


@pytest.mark.fault("F11", recovery="retry")
def test_a_killed_spark_driver_leaves_main_alone(lab: Lab) -> None:
    """The driver dies in its JVM's company; what it wrote are orphans, and the retry writes anew."""
    prepare(lab)
    with watching(lab):
        assert lab.step("read").returncode == 0
        job = lab.submit(failpoint="offload.before_stage=kill")
        said = go_on(job)
        assert job.returncode != 0, said
        assert lab.compare().target_rows == 20
        lab.steps(since="offload")
    lab.check_equal(32)
    check_files(lab)


@pytest.mark.fault("F11", recovery="next run")
def test_a_failed_driver_removes_what_it_wrote(lab: Lab) -> None:
    """No file is left that nobody knows, and those of `main` stay."""
    prepare(lab)
    with watching(lab):
        assert lab.step("read").returncode == 0
        done = lab.step("offload", failpoint="offload.before_stage=raise")
        assert done.returncode == 75, done.stderr
        table = lab.lake.require(lab.spec.target)
        assert files_of(lab) == live_files(table, head_of(table)).keys()
        lab.run(run_key="test/run")
    lab.check_equal(32)
