"""What one job may ask of ClickHouse: queries at once, threads of each, their priority."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from coldchain.clickhouse import HttpClickHouse
from coldchain.core.sql import Query
from coldchain_spark.runner import DRIVER_STREAMS, SMALL_ROWS, TABLES_AT_ONCE, make_mapper, tables_at_once
from tests.faults.test_executors import files_of, go_on
from tests.faults.test_kills import START
from tests.lab import Lab
from tests.processes import await_true, stopped_children

DAYS, BOUND, CORES = 4, 2, 4
ROWS = SMALL_ROWS // DAYS + 10_000
LOAD = {"max_threads": 1, "priority": 7}


def test_executors_stream_no_more_at_once_than_is_allowed(lab: Lab) -> None:
    """There are cores for all slices, and yet only so many are begun; each query is of the threads and priority."""
    for day in range(DAYS):
        lab.execute(
            f"INSERT INTO k2.{lab.name} SELECT toDateTime64('{START - timedelta(days=day):%Y-%m-%d} 00:00:00', 6, "
            f"'UTC') + intDiv(number, 20), number, 'S', 1.5, NULL, NULL, 1, true, '2026-01-01', 1 FROM numbers({ROWS})"
        )
    assert lab.step("read").returncode == 0
    load = {f"COLDCHAIN_CLICKHOUSE_{name.upper()}": str(value) for name, value in LOAD.items()}
    job = lab.submit(
        failpoint="stream.amid_file=stop",
        master=f"local[{CORES},4]",
        COLDCHAIN_CLICKHOUSE_MAX_QUERIES=str(BOUND),
        **load,
    )
    seen = watch_queries(lab, job)
    time.sleep(2)  # the others would have begun by now
    assert len(files_of(lab)) == BOUND
    said = go_on(job)
    assert job.returncode == 0, said
    lab.steps(since="validate")
    lab.check_equal(DAYS * ROWS)
    assert seen, "the watch saw no query"
    assert {(threads, priority) for _, threads, priority in seen} == {(str(LOAD["max_threads"]), str(LOAD["priority"]))}
    assert max(count for count, _, _ in seen) <= BOUND


def watch_queries(lab: Lab, job: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
    """Look at the server's queries on the table until slices are frozen: how many at once, threads, priority."""
    seen: list[tuple[int, str, str]] = []
    watch = Query(
        "SELECT query_id, Settings['max_threads'], Settings['priority'] FROM system.processes "
        "WHERE query LIKE {pattern:String} AND user = {user:String} AND query_id != queryID()",
        {"pattern": f"%{lab.name}%", "user": lab.settings.clickhouse_user},
    )

    def is_frozen() -> bool:
        assert job.poll() is None, job.communicate()
        found = lab.loader(watch)
        seen.extend((len(found), threads, priority) for _, threads, priority in found)
        return len(list(stopped_children(job.pid))) == BOUND

    await_true(is_frozen, "slices to freeze")
    return seen


def test_a_query_arrives_with_threads_and_priority(lab: Lab) -> None:
    """The offload's user may set both, within the profile's limits."""
    client = HttpClickHouse.of(replace(lab.settings, **LOAD))
    asked = Query("SELECT toString(getSetting('max_threads')), toString(getSetting('priority'))", {})
    assert client(asked) == [("1", "7")]


@pytest.mark.parametrize("bound", [0, 1, 2, 3, 4, 6, 50])
def test_a_small_job_keeps_the_bound_over_all_its_tables(bound: int) -> None:
    """Every table asks as many at once as it streams, or one."""
    with make_mapper(0, bound) as (_, streams):
        assert 1 <= streams <= DRIVER_STREAMS
        assert streams * tables_at_once(0, bound) <= (bound or DRIVER_STREAMS * TABLES_AT_ONCE)


@pytest.mark.parametrize(("cores", "bound", "streams"), [(2, 0, 2), (16, 0, 16), (4, 3, 3), (2, 8, 2), (1, 1, 1)])
def test_on_one_machine_a_large_job_keeps_the_bound_and_the_master_s_cores(
    cores: int, bound: int, streams: int
) -> None:
    """One table at a time, in as many threads of the driver as the local master has cores."""
    with make_mapper(SMALL_ROWS + 1, bound, local_cores=cores) as (mapper, found):
        assert found * tables_at_once(SMALL_ROWS + 1, bound) == streams
        assert mapper(lambda item: item + 1, [1, 2, 3]) == [2, 3, 4]
