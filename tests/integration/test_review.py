"""Found by reading: sequences that lose, double or hold up rows. Each test states what should be so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

import coldchain_spark.offload as driver
from coldchain import connections, protocol
from coldchain.clickhouse import HttpClickHouse
from coldchain.core.errors import ColdchainError, Permanent, SourceMoving
from coldchain.core.job import JobTable
from coldchain.core.request import Request
from coldchain.core.windows import DAY_US, HOUR_US, MINUTE_US, to_us
from coldchain.failures import RecordFailure
from coldchain.lake import head_of
from coldchain_spark.offload import Outcome, offload_table
from coldchain_spark.stream import Failed
from tests.lab import Lab, yesterday

QUARTER = timedelta(minutes=15)
HOUR = timedelta(hours=1)
START = yesterday()

Streamer = Callable[[Any], Any]
Around = Callable[[Streamer, Sequence[Any]], list[Any]]


def until(moment: Any, **changes: Any) -> Request:
    """Ask as a scheduled run does whose interval ends then."""
    return Request(None, to_us(moment), **changes)


def offload(lab: Lab, reading: protocol.Reading, around: Around, run_key: str = "test/run") -> Outcome:
    """Run the offload job with a mapper of the test's own: the source changes, or a slice fails, while it runs."""
    turn = lab.turn(run_key)
    token = protocol.take(turn)
    turn.ledger.note(lab.name, token, run_key, "started")
    assert reading.work is not None
    return offload_table(JobTable(lab.spec, token, run_key, reading.work), lab.settings, around, 2)


def plain(function: Streamer, items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def main_rows(lab: Lab) -> int:
    return lab.compare().target_rows


def two_segments(lab: Lab, rows: int = 15) -> None:
    """Publish the first two quarter hours as a segment each."""
    lab.insert_many(START, 2 * rows, 15 * MINUTE_US // rows)
    lab.run(Request(lab.window(START, START + QUARTER), None), run_key="test/first")
    lab.run(Request(lab.window(START + QUARTER, START + 2 * QUARTER), None), run_key="test/second")
    assert main_rows(lab) == 2 * rows


def test_rows_lost_while_a_segment_is_streamed_are_not_taken_for_the_truth(lab: Lab) -> None:
    """The shrink guard must also judge what a second round of streaming finds."""
    lab.insert_many(START, 100, 1_000_000)
    lab.run()
    lab.insert([(START + timedelta(minutes=5), 5_000)])  # one late row: the segment is planned
    reading = lab.read(run_key="test/late")
    calls: list[int] = []

    def truncated(function: Streamer, items: Sequence[Any]) -> list[Any]:
        if not calls:
            calls.append(1)
            done = plain(function, items)
            # The source loses 100 rows of 101, once they were streamed.
            lab.execute(f"ALTER TABLE k2.{lab.name} DELETE WHERE seq > 1 SETTINGS mutations_sync = 2")
            return done
        return plain(function, items)

    outcome = offload(lab, reading, truncated, "test/late")
    if outcome.outcome == "staged":
        lab.finish(reading, "test/late")
    assert main_rows(lab) >= 100, f"100 published rows are gone from main, and nobody approved it: {outcome}"


def test_a_row_that_moves_while_its_old_window_is_streamed_stays_visible(lab: Lab) -> None:
    """It moves into a window that the plan left out, for it was equal: the two must change together."""
    two_segments(lab)
    lab.insert([(START + timedelta(minutes=2, seconds=1), 5_000)])  # late: the first window is planned, not the second
    reading = lab.read(run_key="test/late")
    assert len(reading.plan.windows) == 1
    calls: list[int] = []

    def moving(function: Streamer, items: Sequence[Any]) -> list[Any]:
        done = plain(function, items)
        if not calls:
            calls.append(1)
            lab.execute(f"ALTER TABLE k2.{lab.name} DELETE WHERE seq = 3 SETTINGS mutations_sync = 2")
            lab.insert([(START + QUARTER + timedelta(seconds=7), 3)])
        return done

    outcome = offload(lab, reading, moving, "test/late")
    if outcome.outcome == "staged":
        lab.finish(reading, "test/late")
        assert main_rows(lab) >= 31, "30 rows were published and one came: the moved one is in neither window of main"


def test_a_row_that_moves_into_a_window_that_keeps_changing_stays_visible(lab: Lab) -> None:
    """A plan's windows go together or not at all where they pay for each other's losses."""
    two_segments(lab)
    lab.execute(f"ALTER TABLE k2.{lab.name} DELETE WHERE seq = 3 SETTINGS mutations_sync = 2")
    lab.insert([(START + QUARTER + timedelta(seconds=7), 3)])
    reading = lab.read(run_key="test/moved")
    assert len(reading.plan.windows) == 2
    more = iter(range(6_000, 7_000))

    def busy(function: Streamer, items: Sequence[Any]) -> list[Any]:
        done = plain(function, items)
        lab.insert([(START + QUARTER + timedelta(seconds=9), next(more))])  # the second window keeps changing
        return done

    outcome = offload(lab, reading, busy, "test/moved")
    if outcome.outcome == "staged":
        lab.finish(reading, "test/moved")
        assert main_rows(lab) >= 30, "the moved row left its old window, and its new one was not published"


def test_a_row_that_moves_into_a_deferred_window_does_not_stop_the_table(lab: Lab) -> None:
    """read_watermark judges a loss over the whole comparison, the driver over the plan: they must agree."""
    two_segments(lab)
    lab.spec = replace(lab.spec, max_windows=1)
    lab.execute(f"ALTER TABLE k2.{lab.name} DELETE WHERE seq = 3 SETTINGS mutations_sync = 2")
    lab.insert([(START + QUARTER + timedelta(seconds=7), 3)])
    for attempt in range(3):
        reading = lab.read(run_key=f"test/{attempt}")
        if reading.work is None:
            break
        outcome = lab.offload(reading, run_key=f"test/{attempt}")
        assert outcome.outcome == "staged", outcome.message
        lab.finish(reading, run_key=f"test/{attempt}")
        assert main_rows(lab) >= 30, "the moved row is in neither window of main"
    lab.check_equal(30)


def test_a_coarser_grid_does_not_hide_rows_from_the_driver(lab: Lab) -> None:
    """Only read_watermark sees the old segments' edges; the driver compares on the new grid and finds nothing."""
    lab.insert_many(START, 60, MINUTE_US)
    lab.run(until(START + 3 * QUARTER), run_key="test/fine")  # the last edge: a quarter to one
    lab.spec = replace(lab.spec, grid_us=HOUR_US)
    reading = lab.read(until(START + HOUR), run_key="test/coarse")
    assert [w.fingerprint.rows for w in reading.plan.windows] == [15]
    outcome = lab.offload(reading, run_key="test/coarse")
    assert (outcome.outcome, outcome.rows) == ("staged", 15), "nothing moves, and the run is green, for ever"


def test_a_segment_that_a_rollback_brought_back_is_compared_however_old(lab: Lab) -> None:
    lab.spec = replace(lab.spec, late_horizon_us=HOUR_US)
    lab.insert_many(START, 6 * 60, MINUTE_US)
    lab.run(until(START + HOUR), run_key="test/one")
    first = head_of(lab.lake.require(lab.spec.target))
    lab.insert([(START + timedelta(minutes=3, seconds=1), 5_000)])  # a late row, found and published
    lab.run(until(START + HOUR + QUARTER), run_key="test/two")
    lab.run(until(START + 6 * HOUR), run_key="test/three")
    lab.check_equal(361)
    lab.lake.require(lab.spec.target).manage_snapshots().set_current_snapshot(snapshot_id=first).commit()
    for attempt in range(3):
        lab.run(until(START + 6 * HOUR), run_key=f"test/after-{attempt}")
    lab.check_equal(361)


def test_a_run_of_no_bar_does_not_count_as_a_comparison(lab: Lab) -> None:
    """A backfill's quarter hour in which no hour ends compares nothing: late rows must still be found afterwards."""
    lab.spec = replace(lab.spec, late_horizon_us=HOUR_US, grid_us=HOUR_US)
    lab.insert_many(START, 4 * 60, MINUTE_US)
    lab.run(until(START + 4 * HOUR), run_key="test/one")
    before = lab.ledger.state(lab.name).compared_to_us
    lab.insert([(START + 3 * HOUR + timedelta(seconds=1), 5_000)])  # late by less than the horizon, while paused
    lab.read(Request(None, None, is_idle=True), run_key="test/backfill")
    after = lab.ledger.state(lab.name).compared_to_us
    lab.run(until(START + 12 * HOUR), run_key="test/two")
    lab.check_equal(241)
    assert after == before, "nothing was compared"


def test_one_row_older_than_the_retention_does_not_hold_the_watermark_for_ever(lab: Lab) -> None:
    lab.spec = replace(lab.spec, retention_us=7 * DAY_US)
    lab.insert_many(START, 60, MINUTE_US)
    assert lab.run(until(START + HOUR), run_key="test/one").watermark_us is not None
    lab.insert([(START - timedelta(days=20), 5_000)])  # a replayed row; a merge would drop it sooner or later
    lab.run(until(START + 2 * HOUR), run_key="test/two")
    lab.execute(f"ALTER TABLE k2.{lab.name} DELETE WHERE seq = 5000 SETTINGS mutations_sync = 2")
    for attempt in range(2):
        with contextlib.suppress(ColdchainError):
            lab.run(until(START + 3 * HOUR), run_key=f"test/after-{attempt}")
    watermark_us = lab.ledger.state(lab.name).watermark_us
    assert watermark_us is not None
    assert watermark_us >= to_us(START + 2 * HOUR), "days that never held a row are `expired`, which nothing undoes"


def test_a_replacing_table_whose_event_time_is_outside_its_key_is_refused(lab: Lab) -> None:
    """FINAL reads by window: the old version's partition is read without the new one's (DESIGN: refused)."""
    lab.execute(f"DROP TABLE k2.{lab.name} SYNC")
    lab.execute(
        f"CREATE TABLE k2.{lab.name} (ts DateTime64(6, 'UTC'), seq UInt64, symbol String, version UInt64) "
        "ENGINE = ReplacingMergeTree(version) PARTITION BY toYYYYMMDD(ts) ORDER BY (symbol, seq)"
    )
    lab.spec = replace(lab.spec, key=("symbol", "seq"), sort_order=("symbol", "seq"))

    def put(moment: Any, version: int) -> None:
        values = f"(fromUnixTimestamp64Micro({to_us(moment)}, 'UTC'), 1, 'a', {version})"
        lab.execute(f"INSERT INTO k2.{lab.name} VALUES {values}")

    def day(n: int) -> Request:
        return Request(lab.window(START + timedelta(days=n), START + timedelta(days=n + 1)), None)

    try:
        put(START - timedelta(days=1), 1)
        lab.run(day(-1), run_key="test/one")
        put(START, 2)  # corrected into the next day: FINAL over the table shows one row
        lab.run(day(0), run_key="test/two")
        with contextlib.suppress(Permanent):
            lab.run(day(-1), run_key="test/three")
    except Permanent:
        return
    assert main_rows(lab) == 1, "one row in the source (FINAL), two in Iceberg, both proven"


def test_a_replacing_table_is_not_read_as_its_rows_stand(lab: Lab) -> None:
    """Versions that are not merged yet would be proven as rows, and after the next merge the source has shrunk."""
    lab.insert([(START, 1)])
    lab.insert([(START, 1)], price="2")
    final, lab.spec = lab.spec, replace(lab.spec, read="raw")
    with pytest.raises(Permanent, match=rf"k2\.{lab.name} is a ReplacingMergeTree, .* write read: final"):
        lab.run()
    assert lab.lake.load(lab.spec.target) is None
    lab.spec = final
    lab.run(run_key="test/final")
    lab.check_equal(1)


def test_a_retention_that_the_server_does_not_keep_is_refused(lab: Lab) -> None:
    """Windows that the TTL has emptied would be recorded as windows without rows."""
    lab.insert([(START, 1)])
    lab.execute(f"ALTER TABLE k2.{lab.name} MODIFY TTL toDateTime(ts) + INTERVAL 3 DAY")
    with pytest.raises(Permanent, match=r"retention=null in the registry, but TTL toDateTime\(ts\) \+ .* write .* 3d"):
        lab.run()
    lab.execute(f"ALTER TABLE k2.{lab.name} MODIFY COLUMN note Nullable(String) TTL toDateTime(ts) + INTERVAL 2 DAY")
    lab.spec = replace(lab.spec, retention_us=3 * DAY_US)
    with pytest.raises(Permanent, match=r"retention=3d in the registry, .* can take column note after 2d"):
        lab.run(run_key="test/column")
    lab.spec = replace(lab.spec, retention_us=2 * DAY_US)
    lab.run(run_key="test/kept")
    lab.check_equal(1)


def test_the_driver_refuses_a_truncating_profile_too(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only read_watermark looks at the profile; the offload task may run hours later, or be cleared alone."""
    lab.insert_many(START, 100, 1_000_000)
    reading = lab.read()
    settings = lab.settings
    loader = lab.environment["COLDCHAIN_LOADER_USER"], lab.environment["COLDCHAIN_LOADER_PASSWORD"]

    class Truncating(HttpClickHouse):
        def _response(self, text: str, parameters: Any, options: Any) -> Any:
            hidden = {"additional_table_filters": f"{{'k2.{lab.name}': 'seq > 60'}}"}
            return super()._response(text, parameters, {**options, **hidden})

    made = Truncating(settings.clickhouse_url, *loader)
    monkeypatch.setattr(driver, "HttpClickHouse", lambda *_: made)
    monkeypatch.setattr("coldchain_spark.stream.HttpClickHouse", lambda *_: made)
    outcome = offload(lab, reading, plain)
    if outcome.outcome == "staged":
        lab.finish(reading)
    assert outcome.outcome == "failed", f"{main_rows(lab)} of 100 rows are published as proven"


def test_one_window_that_keeps_changing_does_not_hold_up_the_others(lab: Lab) -> None:
    lab.insert([(START - timedelta(days=n, seconds=-1), n) for n in range(3)])
    reading = lab.read()
    assert len(reading.plan.windows) == 3
    hot = reading.plan.windows[-1].window

    def busy(function: Streamer, items: Sequence[Any]) -> list[Any]:
        # What stream_slice returns after three tries in which rows came.
        return [Failed(SourceMoving, "rows came") if item.segment == hot else function(item) for item in items]

    outcome = offload(lab, reading, busy)
    assert (outcome.outcome, outcome.windows) == ("staged", 2), outcome.message


def test_a_late_failure_callback_leaves_the_lease_of_a_later_try_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The DAG processor calls it minutes after a worker died; a person may have cleared the run by then."""
    lab.insert_many(START, 10, 1_000_000)
    reading = lab.read(run_key="dag/run")
    protocol.take(lab.turn("dag/run"))  # try 1 of offload; its worker dies
    token = protocol.take(lab.turn("dag/run"))  # cleared: try 2 is at work
    monkeypatch.setattr(connections, "ledger", lambda: lab.ledger)
    run = SimpleNamespace(dag_id="dag", run_id="run")
    RecordFailure(lab.name)({"dag_run": run, "task_instance": SimpleNamespace(task_id="offload", try_number=1)})
    assert reading.work is not None
    assert lab.ledger.lease(lab.name).token == token
    assert lab.ledger.lease(lab.name).holder == "dag/run", "the lease of a task at work was given away"


def test_a_commit_whose_twin_published_succeeds(lab: Lab) -> None:
    """Two tries of one commit share the token; the loser finds main at its own snapshot: that is success."""
    lab.insert_many(START, 10, 1_000_000)
    reading = lab.read()
    lab.offload(reading)
    turn, work = lab.turn(), reading.work
    assert work is not None
    stage = protocol.latest_stage(turn, work, "staged")
    assert stage is not None
    turn.ledger.note(lab.name, stage.token, turn.run_key, "validated", {"snapshot_id": str(stage.snapshot_id)})
    begin = lab.ledger.begin_publish

    def slow(*arguments: Any) -> None:
        lab.ledger.begin_publish = begin  # type: ignore[method-assign]
        protocol.publish(turn, stage, work)  # the twin is faster, from here to its end
        begin(*arguments)

    lab.ledger.begin_publish = slow  # type: ignore[method-assign]
    protocol.publish(turn, stage, work)
    lab.check_equal(10)


def test_a_release_that_only_renames_the_version_does_not_stop_the_table(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal fingerprints of another version: read plans them, `is_done` waves them through, for ever."""
    lab.spec = replace(lab.spec, max_windows=2)
    two_segments(lab)
    monkeypatch.setattr("coldchain.core.fingerprint.version", lambda columns: "another")
    lab.insert([(START + 3 * QUARTER, 5_000)])  # a new row, after as many old windows as a run takes
    for attempt in range(4):
        run_key = f"test/{attempt}"
        reading = lab.read(run_key=run_key)
        if reading.work is None:
            break
        turn = lab.turn(run_key)
        if protocol.is_done(turn, reading.work):  # what the offload, validate and commit tasks do
            assert protocol.latest_stage(turn, reading.work, "validated") is None
            protocol.finish_idle(turn)
            continue
        assert lab.offload(reading, run_key).outcome == "staged"
        lab.finish(reading, run_key)
    assert main_rows(lab) == 31, "four green runs, and the new row never moves"


def test_columns_in_another_order_do_not_stop_the_table(lab: Lab) -> None:
    """The canonical columns are in field-id order, whatever an ALTER does to the source's."""
    lab.insert_many(START, 10, 1_000_000)
    lab.run()
    lab.insert([(START + timedelta(hours=1), 50)])
    lab.execute(f"ALTER TABLE k2.{lab.name} MODIFY COLUMN note Nullable(String) AFTER version")
    lab.run(run_key="test/two")
    lab.check_equal(11)


def test_a_commit_that_finds_no_plan_does_not_call_itself_done(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """read_watermark was cleared alone: its XCom is gone until it ends, and its new token has the lease."""
    from coldchain import turns
    from coldchain.operators.commit import WatermarkCommitOperator

    lab.insert_many(START, 10, 1_000_000)
    lab.offload(lab.read(run_key="dag/run"), run_key="dag/run")
    protocol.take(lab.turn("dag/run"))  # the cleared read_watermark is at work
    monkeypatch.setattr(turns, "turn_of", lambda spec, context: lab.turn("dag/run"))
    context = {"ti": SimpleNamespace(xcom_pull=lambda task_ids: None), "outlet_events": {}}
    operator = WatermarkCommitOperator(task_id="commit", spec=lab.spec, read_task_id="read_watermark")
    with pytest.raises(Exception, match="clear"):
        operator.execute(context)
    assert lab.ledger.lease(lab.name).holder == "dag/run"
