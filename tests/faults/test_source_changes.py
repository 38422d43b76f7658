"""The source moves under a run, or was not what it seemed: every window that is published is one that it held."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from coldchain.core.errors import LeaseHeld, SourceShrank, Transient
from coldchain.core.request import Request
from coldchain.core.windows import MINUTE_US, to_us
from tests.faults.test_kills import START, check_files, prepare
from tests.lab import DAY, STEPS, Lab
from tests.reader import watching

HOUR = timedelta(hours=1)
POINTS = {
    "take.after_heal": "read",
    "offload.before_stream": "offload",
    "stream.after_file": "offload",
    "offload.after_stream": "offload",
    "validate.before_prove": "validate",
    "publish.before_move": "commit",
}


def go_on(lab: Lab, verb: str, done: subprocess.CompletedProcess[str]) -> None:
    """Let a run go on after a step; one that asks for another try gets it, and then the next run has the table."""
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode == 0:
        rest = STEPS[STEPS.index(verb) + 1 :]
        if rest and lab.work() is not None:
            lab.steps(since=rest[0])
    else:
        assert done.returncode == Transient.exit_code, done
        lab.give_up()
    lab.steps(run_key="test/next")


@pytest.mark.fault("F07", recovery="next run")
@pytest.mark.parametrize("point", POINTS)
def test_rows_that_come_while_a_window_is_moved(lab: Lab, point: str) -> None:
    """What is published is what the source held at one moment; the next run at the latest finds the rows that came."""
    prepare(lab)
    with watching(lab):
        verb = POINTS[point]
        for step in STEPS[: STEPS.index(verb)]:
            assert lab.step(step).returncode == 0
        process = lab.start(verb, failpoint=f"{point}=stop")
        process.await_stop()
        lab.insert([(START + timedelta(seconds=3, microseconds=9), 901)])
        lab.insert([(START - DAY + timedelta(seconds=3, microseconds=9), 902)])
        lab.insert([(START + 5 * HOUR, 903)])
        process.resume()
        go_on(lab, verb, process.wait())
    lab.check_equal(35)
    check_files(lab)
    assert lab.run(run_key="test/idle").work is None


@pytest.mark.fault("F08", recovery="next run")
@pytest.mark.parametrize("change", ["merge", "mutation", "correction"])
@pytest.mark.parametrize("point", ["offload.before_stream", "stream.after_file", "validate.before_prove"])
def test_parts_that_are_rewritten_while_a_window_is_moved(lab: Lab, point: str, change: str) -> None:
    """A merge changes nothing; changed values are published whole or not at all, by the next run at the latest."""
    prepare(lab)
    lab.insert([(START, 1)], price="7.5")  # a correction that a merge will fold
    with watching(lab):
        verb = POINTS[point]
        for step in STEPS[: STEPS.index(verb)]:
            assert lab.step(step).returncode == 0
        process = lab.start(verb, failpoint=f"{point}=stop")
        process.await_stop()
        if change == "merge":
            lab.execute(f"OPTIMIZE TABLE k2.{lab.name} FINAL")
        elif change == "mutation":
            lab.execute(f"ALTER TABLE k2.{lab.name} UPDATE price = price + 1 WHERE seq = 3 SETTINGS mutations_sync = 2")
        else:
            lab.insert([(START + timedelta(seconds=1), 2)], price="9.5")
        process.resume()
        done = process.wait()
        assert change != "merge" or done.returncode == 0, done
        go_on(lab, verb, done)
    lab.check_equal(32)
    check_files(lab)
    assert lab.run(run_key="test/idle").work is None


@pytest.mark.fault("F09", recovery="next run")
def test_a_replica_that_lags_behind(lab: Lab) -> None:
    """What it has not heard of yet is not deleted, and comes once it has caught up."""
    prepare(lab)
    behind = f"{lab.name}_behind"
    lab.execute(f"CREATE TABLE k2.{behind} AS k2.{lab.name}")
    lab.execute(f"INSERT INTO k2.{behind} SELECT * FROM k2.{lab.name} WHERE ts < '{START:%Y-%m-%d}' OR seq < 16")
    spec = lab.spec
    try:
        with watching(lab) as reader:
            reader.look_at_source(f"k2.{behind}")
            lab.spec = replace(spec, source=f"k2.{behind}")
            run = lab.run(run_key="test/behind")
            assert run.work is not None, "what is new there is moved"
            assert "the source holds 15 rows" in run.work.complaint, "and then the task fails over what is missing"
            lab.execute(f"INSERT INTO k2.{behind} SELECT * FROM k2.{lab.name} WHERE ts >= '{START:%Y-%m-%d}'")
            lab.run(run_key="test/caught up")
            lab.check_equal(32)
    finally:
        lab.spec = spec
        lab.execute(f"DROP TABLE k2.{behind} SYNC")
    assert lab.run(run_key="test/idle").work is None


@pytest.mark.fault("F25", recovery="clear")
def test_an_old_run_that_is_cleared_moves_nothing_back(lab: Lab) -> None:
    """Its tasks succeed, by themselves and in turn; rows that came since stay, and so does the watermark."""
    lab.insert_many(START, 20, 1_000_000)
    lab.steps(run_key="test/old")
    prepare_more = [(START + timedelta(seconds=1, microseconds=5 + n), 100 + n) for n in range(7)]
    lab.insert(prepare_more)
    lab.insert([(START + 3 * HOUR, 300)])
    lab.steps(run_key="test/new")
    watermark_us = lab.ledger.state(lab.name).watermark_us
    with watching(lab) as reader:
        for verb in reversed(STEPS):
            done = lab.step(verb, run_key="test/old")
            assert done.returncode == 0, done.stderr
        lab.steps(run_key="test/old")
        assert len(reader.seen) == 1, "main has not moved"
    assert (lab.ledger.state(lab.name).watermark_us or 0) >= (watermark_us or 0)
    lab.check_equal(28)


@pytest.mark.fault("F28", recovery="next run")
@pytest.mark.parametrize(
    "said",
    ["now() + interval '1 day'", "now() - interval '9 days'", "NULL", "'20000-01-01'", "'0044-03-15 BC'", "'infinity'",
     "'-infinity'"],
)  # fmt: skip
def test_a_watermark_row_that_somebody_wrote(lab: Lab, said: str) -> None:
    """It is derived from the segments: the next run repairs it, and skips or repeats nothing for it."""
    prepare(lab)
    with watching(lab):
        with lab.ledger._transaction() as cursor:
            cursor.execute(
                f"UPDATE coldchain.offload_watermarks SET last_offload_timestamp = {said} WHERE table_name = %s",
                (lab.name,),
            )
        lab.run(run_key="test/next")
    lab.check_equal(32)
    watermark_us = lab.ledger.state(lab.name).watermark_us
    with lab.ledger._transaction() as cursor:
        cursor.execute(
            "SELECT last_offload_timestamp FROM coldchain.offload_watermarks WHERE table_name = %s", (lab.name,)
        )
        assert to_us(cursor.fetchone()[0]) == watermark_us


@pytest.mark.fault("F29", recovery="next run")
def test_late_rows_are_found_by_the_next_run(lab: Lab) -> None:
    """Their window is replaced whole, in the snapshot in which the old one leaves."""
    prepare(lab)
    with watching(lab) as reader:
        lab.run(run_key="test/next")
    assert len(reader.seen) == 2
    lab.check_equal(32)


@pytest.mark.fault("F30", recovery="none needed")
def test_a_partition_that_the_source_s_ttl_drops_stays_in_iceberg(lab: Lab) -> None:
    """Near the TTL's edge nothing is replaced any more, and what comes later moves on."""
    lab.insert_many(START - DAY, 20, 1_000_000)
    lab.run(run_key="test/before")
    with watching(lab):
        lab.execute(f"ALTER TABLE k2.{lab.name} DROP PARTITION {START - DAY:%Y%m%d}")
        lab.execute(f"INSERT INTO k2.{lab.name} (ts, seq, symbol) VALUES ('{START:%Y-%m-%d} 01:00:00', 900, 'A')")
        now_us = to_us(datetime.now(UTC))
        lab.spec = replace(lab.spec, retention_us=now_us - to_us(START - DAY + 6 * HOUR))
        lab.run(run_key="test/next")
    found = lab.compare()
    assert (found.target_rows, found.foreign_rows, found.missing_rows) == (21, 20, 0), "what was published stays"


@pytest.mark.fault("F30", recovery="approval of the segment")
def test_a_partition_that_the_source_lost_waits_for_a_person(lab: Lab) -> None:
    """The segment is named and not replaced, run after run, until a person approves it by its id."""
    lab.insert_many(START, 20, 1_000_000)
    lab.run(run_key="test/before")
    with watching(lab) as reader:
        lab.execute(f"ALTER TABLE k2.{lab.name} DROP PARTITION {START:%Y%m%d}")
        for attempt in range(2):
            with pytest.raises(SourceShrank, match="the source holds 0 rows") as refused:
                lab.read(run_key=f"test/{attempt}")
            lab.let_lease_end()
        assert len(reader.seen) == 1
        (segment,) = [s.segment_id for s in lab.ledger.segments(lab.name) if s.paths]
        assert f'allow_shrink=["{segment}:0"]' in str(refused.value)
        lab.run(Request(None, None, allow_shrink={segment: 0}), run_key="test/approved")
    lab.check_equal(0)


@pytest.mark.fault("F31", recovery="none needed")
def test_empty_windows_move_the_watermark_and_make_no_snapshot(lab: Lab) -> None:
    """A source without rows, and hours without rows, are recorded and cost nothing."""
    lab.insert_many(START, 20, 1_000_000)
    lab.run(run_key="test/before")
    before = lab.ledger.state(lab.name).watermark_us or 0
    with watching(lab) as reader:
        until_us = to_us(START + DAY)
        reading = lab.run(Request(None, until_us), run_key="test/next")
        assert reading.work is None
        assert (lab.ledger.state(lab.name).watermark_us or 0) >= max(before, until_us)
    assert len(reader.seen) == 1
    lab.check_equal(20)


@pytest.mark.fault("F38", recovery="none needed")
@pytest.mark.parametrize("skew_s", [3600, -3600])
def test_a_worker_whose_clock_is_wrong(lab: Lab, monkeypatch: pytest.MonkeyPatch, skew_s: int) -> None:
    """The source's clock says what has closed, the database's who holds a lease: no row of the future is published."""
    lab.insert_many(START, 20, 1_000_000)
    soon = datetime.now(UTC) + timedelta(minutes=30)
    lab.insert([(soon, 900)])
    now, now_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + skew_s)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + skew_s * 1_000_000_000)
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        with watching(lab):
            lab.read(run_key="test/holder")
            with pytest.raises(LeaseHeld, match="held by test/holder for another"):
                lab.read(run_key="test/other")
            lab.run(run_key="test/holder")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert lab.compare().target_rows == 20, "the row of the future waits"
    assert (lab.ledger.state(lab.name).watermark_us or 0) <= to_us(datetime.now(UTC))


@pytest.mark.fault("F38", recovery="none needed")
def test_hours_that_a_zone_skips_or_repeats(lab: Lab) -> None:
    """Windows are of UTC: the nights of summer time hold as many as any other, on workers of any zone."""
    spring, autumn = datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)
    for night in (spring, autumn):
        lab.insert_many(night, 24, 10 * MINUTE_US, first=night.month * 1000)
    with watching(lab):
        lab.steps(TZ="Europe/Berlin")
        lab.insert([(autumn + timedelta(minutes=75, microseconds=1), 1), (spring + timedelta(minutes=75), 2)])
        exact = lab.window(spring, autumn + DAY)
        for step in STEPS:
            done = lab.step(step, run_key="test/backfill", window=exact, TZ="America/New_York")
            assert done.returncode == 0, done.stderr + done.stdout
    lab.check_equal(50)


@pytest.mark.fault("F39", recovery="next runs")
def test_a_table_that_was_paused_catches_up_within_bounds(lab: Lab) -> None:
    """A run moves at most its windows; each takes the next ones, and together they miss none."""
    lab.spec = replace(lab.spec, max_windows=2)
    lab.insert_many(START - 4 * DAY, 5, 1_000_000)
    lab.run(Request(None, to_us(START - 3 * DAY)), run_key="test/before the pause")
    for day in range(4):
        lab.insert_many(START - day * DAY, 5, 1_000_000, first=100 * day)
    runs = 0
    with watching(lab):
        while (reading := lab.run(run_key=f"test/{runs}")).work is not None:
            assert 0 < len(reading.work.windows) <= 2
            runs += 1
            assert runs < 10
    assert runs == 2
    lab.check_equal(25)
