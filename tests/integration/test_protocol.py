"""The one rule, on real ClickHouse, PostgreSQL and Iceberg: whatever happened, a run makes Iceberg equal the source."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from coldchain import proof, protocol
from coldchain.core.errors import (
    Fenced,
    ForeignFiles,
    LeaseHeld,
    ProofFailed,
    SourceShrank,
    StageGone,
    Superseded,
)
from coldchain.core.job import Stage
from coldchain.core.request import Request
from coldchain.core.windows import DAY_US, to_us
from coldchain.lake import head_of, live_files
from coldchain_spark import offload as driver
from coldchain_spark.datafile import data_file
from coldchain_spark.footer import split_tail
from coldchain_spark.slices import Slice
from coldchain_spark.stream import STREAM_SETTINGS, Streamed
from tests.lab import DAY, Lab, append_foreign, yesterday
from tests.reader import watching

QUARTER = timedelta(minutes=15)
START = yesterday()


def test_first_run_publishes_everything_and_the_second_moves_nothing(lab: Lab) -> None:
    lab.insert_many(START - timedelta(hours=2), 400, 60_000_000)  # over midnight
    first = lab.run()
    assert len(first.plan.windows) == 2, "one window a day"
    lab.check_equal(400)
    head = head_of(lab.lake.require(lab.spec.target))
    again = lab.run(run_key="test/again")
    assert again.work is None
    assert head_of(lab.lake.require(lab.spec.target)) == head


def test_an_empty_source_is_idle_and_has_no_watermark(lab: Lab) -> None:
    reading = lab.run()
    assert reading.work is None
    assert reading.watermark_us is None
    assert lab.ledger.lease(lab.name).holder is None, "an idle read gives the lease back"


def test_late_rows_replace_their_window_only(lab: Lab) -> None:
    lab.insert_many(START, 100, 60_000_000)
    lab.run(Request(lab.window(START, START + 2 * QUARTER), None))
    lab.run(run_key="test/rest")
    before = {s.segment_id: s for s in lab.ledger.segments(lab.name)}
    lab.insert([(START + timedelta(minutes=3), 9_999)])
    reading = lab.run(run_key="test/late")
    assert [(w.reason, w.window.start_us) for w in reading.plan.windows] == [
        ("changed", lab.window(START, START + QUARTER).start_us)
    ]
    lab.check_equal(101)
    kept = {s.segment_id for s in lab.ledger.segments(lab.name)} & before.keys()
    assert len(kept) == len(before) - 1, "every other segment stays as it is"


def test_a_correction_that_moves_a_row_to_another_window_changes_both(lab: Lab) -> None:
    lab.insert_many(START, 90, 60_000_000)
    for index in range(6):
        start = START + index * QUARTER
        lab.run(Request(lab.window(start, start + QUARTER), None), run_key=f"test/{index}")
    lab.check_equal(90)
    lab.execute(f"ALTER TABLE k2.{lab.name} DELETE WHERE seq = 5 SETTINGS mutations_sync = 2")
    lab.insert([(START + timedelta(minutes=50), 5)])
    reading = lab.run(run_key="test/moved")
    changed = [w for w in reading.plan.windows if w.reason == "changed"]
    assert len(changed) == 2
    lab.check_equal(90)


def test_a_null_that_becomes_a_value_is_found(lab: Lab) -> None:
    lab.insert([(START + timedelta(seconds=n), n) for n in range(30)])
    lab.run()
    lab.execute(f"ALTER TABLE k2.{lab.name} UPDATE note = '' WHERE note IS NULL SETTINGS mutations_sync = 2")
    reading = lab.run(run_key="test/null")
    assert reading.work is not None
    lab.check_equal(30)


def test_lost_rows_stop_the_table_until_a_person_approves_the_segment(lab: Lab) -> None:
    lab.insert_many(START, 30, 1_000_000)
    lab.run()
    (segment,) = [s for s in lab.ledger.segments(lab.name) if s.paths]
    lab.execute(f"ALTER TABLE k2.{lab.name} DELETE WHERE seq <= 10 SETTINGS mutations_sync = 2")
    with pytest.raises(SourceShrank, match=rf"segment={segment.segment_id}: the source holds 20 rows.*allow_shrink"):
        lab.read(run_key="test/shrunk")
    assert lab.ledger.lease(lab.name).holder is None, "a refused read gives the lease back"
    with pytest.raises(SourceShrank, match=rf'allow_shrink=\["{segment.segment_id}:20"\]'):
        lab.read(Request(None, None, allow_shrink={segment.segment_id: 21}), run_key="test/too much")
    lab.run(Request(None, None, allow_shrink={segment.segment_id: 20}), run_key="test/approved")
    lab.check_equal(20)


@pytest.mark.fault("F31", recovery="approval of the segment")
def test_a_window_that_became_empty_is_deleted(lab: Lab) -> None:
    """A snapshot that only deletes, once a person has approved the loss."""
    lab.insert_many(START, 30, 1_000_000)
    lab.run()
    (segment,) = [s for s in lab.ledger.segments(lab.name) if s.paths]
    with watching(lab):
        lab.execute(f"TRUNCATE TABLE k2.{lab.name}")
        lab.run(Request(None, None, allow_shrink={segment.segment_id: 0}), run_key="test/approved")
    table = lab.lake.require(lab.spec.target)
    assert live_files(table, head_of(table)) == {}
    assert {s.state for s in lab.ledger.segments(lab.name)} == {"empty"}
    lab.check_equal(0)


def test_rows_on_an_edge_belong_to_the_later_window(lab: Lab) -> None:
    edges = [START, START + QUARTER, START + 2 * QUARTER]
    lab.insert((edge, index) for index, edge in enumerate(edges))
    lab.run(Request(lab.window(START, START + QUARTER), None))
    table = lab.lake.require(lab.spec.target)
    assert sum(file.record_count for file in live_files(table, head_of(table)).values()) == 1
    lab.run(run_key="test/rest")
    lab.check_equal(3)


def test_older_rows_move_the_origin_back(lab: Lab) -> None:
    lab.insert_many(START, 10, 1_000_000)
    lab.run()
    lab.insert([(START - timedelta(days=20), 77)])
    lab.run(run_key="test/older")
    lab.check_equal(11)
    state = lab.ledger.state(lab.name)
    assert state.origin_us == lab.window(START - timedelta(days=20), START).start_us
    assert lab.run(run_key="test/again").work is None


def test_a_run_never_does_more_than_its_windows_and_the_next_goes_on(lab: Lab) -> None:
    lab.spec = lab.spec.__class__.from_json({**lab.spec.to_json(), "max_windows": 2})
    lab.insert((START - timedelta(days=n), n + 1) for n in range(5))
    counts = []
    for index in range(4):
        counts.append(len(lab.run(run_key=f"test/{index}").plan.windows))
    assert counts == [2, 2, 1, 0]
    lab.check_equal(5)


def test_plan_mode_says_what_would_move_and_moves_nothing(lab: Lab) -> None:
    lab.insert_many(START, 10, 1_000_000)
    reading = lab.read(Request(None, None, mode="plan"))
    assert "10 rows" in reading.sentence
    assert reading.work is None
    assert lab.ledger.segments(lab.name) == []
    assert lab.lake.load(lab.spec.target) is None
    assert lab.ledger.lease(lab.name).holder is None


@pytest.mark.parametrize(
    ("changes", "first"),
    [({}, 0), ({"retention_us": 30 * DAY_US}, 0), ({"retention_us": 3 * DAY_US, "seal_margin_us": 2 * DAY_US}, 1)],
    ids=["kept for ever", "far from the retention's end", "near it"],
)
def test_the_driver_compares_anew_only_where_something_is_published_or_soon_forgotten(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], first: int
) -> None:
    compared = []

    def watched(*args: Any) -> Any:
        compared.append(args)
        return protocol.compare(*args)

    monkeypatch.setattr(driver, "compare", watched)
    lab.spec = replace(lab.spec, **changes)
    lab.insert_many(START, 24, 3_600_000_000)
    lab.run()
    assert len(compared) == first
    lab.insert([(START + timedelta(hours=3), 99)])
    lab.run(run_key="test/late")
    assert len(compared) == first + (not first), "what is sealed by then is not planned at all"
    assert lab.compare().is_equal or first


def test_rows_that_come_between_reading_and_streaming_are_published_too(lab: Lab) -> None:
    lab.insert_many(START, 10, 3_600_000_000)
    reading = lab.read()
    lab.insert([(START + timedelta(hours=2), 99)])
    lab.offload(reading)
    lab.finish(reading)
    lab.check_equal(11)


def test_a_driver_that_tries_again_compares_anew(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.insert_many(START, 10, 3_600_000_000)
    reading = lab.read()
    lab.offload(reading)
    lab.insert([(START + timedelta(hours=2), 99)])
    compared = []
    monkeypatch.setattr(driver, "compare", lambda *args: compared.append(args) or protocol.compare(*args))
    lab.offload(reading)
    assert len(compared) == 1, "what it has read may be long ago"
    lab.finish(reading)
    lab.check_equal(11)


@pytest.mark.parametrize("change", ["emptied", "outgrown"])
def test_what_only_reading_can_cut_or_record_is_left_to_the_next_run(lab: Lab, change: str) -> None:
    """A window that lost all its rows after it was read, or holds more by now than a window may."""
    lab.spec = replace(lab.spec, max_window_rows=20)
    lab.insert_many(START - DAY, 10, 3_600_000_000)
    lab.insert_many(START, 10, 3_600_000_000, first=100)
    reading = lab.read()
    if change == "emptied":
        lab.execute(f"ALTER TABLE k2.{lab.name} DELETE WHERE seq >= 100 SETTINGS mutations_sync = 2")
    else:
        lab.insert_many(START, 30, 60_000_000, first=200)
    lab.offload(reading)
    lab.finish(reading)
    published = [s for s in lab.ledger.segments(lab.name) if s.state == "published"]
    assert [s.fingerprint.rows for s in published] == [10]
    lab.run(run_key="test/next")
    lab.check_equal(10 if change == "emptied" else 50)
    assert max(s.fingerprint.rows for s in lab.ledger.segments(lab.name)) <= 20


def test_a_second_run_waits_for_the_lease(lab: Lab) -> None:
    lab.insert_many(START, 10, 1_000_000)
    lab.read(run_key="test/one")
    with pytest.raises(LeaseHeld, match="held by test/one"):
        lab.read(run_key="test/two")


def test_a_zombie_driver_can_publish_nothing(lab: Lab) -> None:
    lab.insert_many(START, 10, 1_000_000)
    reading = lab.read()
    assert lab.offload(reading).outcome == "staged"
    turn = lab.turn()
    zombie = protocol.latest_stage(turn, reading.work, "staged")  # type: ignore[arg-type]
    assert zombie is not None
    assert lab.offload(reading).outcome == "staged"  # the retry, under a newer token
    turn.ledger.note(lab.name, zombie.token, turn.run_key, "staged", zombie.to_json())  # the zombie wakes up, late
    lab.finish(reading)
    with pytest.raises((Fenced, Superseded)):
        protocol.publish(turn, zombie, reading.work)  # type: ignore[arg-type]
    lab.check_equal(10)


def test_a_proof_counts_for_the_snapshot_that_it_looked_at(lab: Lab) -> None:
    """A driver that YARN starts again has the token of the first: what it stages is not what was proven."""
    lab.insert_many(START, 10, 1_000_000)
    reading = lab.read()
    lab.offload(reading)
    turn, work = lab.turn(), reading.work
    assert work is not None
    stage = protocol.latest_stage(turn, work, "staged")
    assert stage is not None
    proof.prove(turn, stage)
    assert lab.offload(reading, token=stage.token).outcome == "staged"
    turn.ledger.note(lab.name, stage.token, turn.run_key, "validated", {"snapshot_id": str(stage.snapshot_id)})
    with pytest.raises(StageGone, match=r"nothing validated by test/run .* clear the table's validate task"):
        protocol.latest_stage(turn, work, "validated")
    lab.finish(reading)
    lab.check_equal(10)


@pytest.mark.fault("F25", recovery="clear")
def test_every_task_cleared_alone_succeeds_once_all_is_published(lab: Lab) -> None:
    """A task that is cleared finds its work published, and leaves it alone."""
    lab.insert_many(START, 10, 1_000_000)
    reading = lab.run()
    turn, work = lab.turn(), reading.work
    assert work is not None
    with watching(lab):
        assert protocol.is_done(turn, work), "offload has nothing to do"
        assert protocol.latest_stage(turn, work, "staged") is None, "validate has nothing to do"
        assert protocol.latest_stage(turn, work, "validated") is None, "commit has nothing to do"
    lab.check_equal(10)


def test_commit_cleared_where_nothing_was_proven_says_what_to_clear(lab: Lab) -> None:
    lab.insert_many(START, 10, 1_000_000)
    reading = lab.read()
    with pytest.raises(StageGone, match="clear the table's offload task"):
        protocol.latest_stage(lab.turn(), reading.work, "staged")  # type: ignore[arg-type]
    lab.offload(reading)
    with pytest.raises(StageGone, match="clear the table's validate task"):
        protocol.latest_stage(lab.turn(), reading.work, "validated")  # type: ignore[arg-type]


def test_main_moved_after_staging_is_never_published_over(lab: Lab) -> None:
    lab.insert_many(START, 10, 1_000_000)
    lab.run()
    lab.insert([(START + timedelta(hours=1), 50)])
    reading = lab.read(run_key="test/two")
    lab.offload(reading, run_key="test/two")
    table = lab.lake.require(lab.spec.target)
    with table.transaction() as other, other.update_snapshot().fast_append():
        pass  # somebody else's commit
    with pytest.raises(Superseded, match="main moved"):
        lab.finish(reading, run_key="test/two")
    lab.run(run_key="test/three")
    lab.check_equal(11)


def test_main_rolled_back_behind_our_back_is_found_and_repaired(lab: Lab) -> None:
    lab.insert_many(START, 10, 1_000_000)
    lab.run()
    first = head_of(lab.lake.require(lab.spec.target))
    lab.insert([(START + timedelta(seconds=3, microseconds=7), 50)])
    lab.run(run_key="test/two")
    lab.lake.require(lab.spec.target).manage_snapshots().set_current_snapshot(snapshot_id=first).commit()
    lab.run(run_key="test/three")
    lab.check_equal(11)


def test_a_dropped_table_is_made_again(lab: Lab) -> None:
    lab.insert_many(START, 10, 1_000_000)
    lab.run()
    lab.lake.catalog.drop_table(lab.spec.target)
    lab.run(run_key="test/two")
    lab.check_equal(10)


@pytest.mark.parametrize("has_bounds", [True, False], ids=["by its bounds", "by its partition"])
def test_a_foreign_file_blocks_the_windows_that_it_touches_and_no_others(lab: Lab, has_bounds: bool) -> None:
    """It may hold its own day or hour; the day before and what comes later moves, and a person is told each time."""
    hour = timedelta(hours=1)
    for start in (START - DAY, START, START + 6 * hour):
        lab.insert_many(start, 10, 1_000_000, first=to_us(start))
        lab.run(Request(lab.window(start, start + hour), None), run_key=f"test/{start}")
    table = lab.lake.require(lab.spec.target)
    ours = head_of(table)
    append_foreign(table, lab.window(START, START + hour), has_bounds=has_bounds)
    words = r"window=\[.* holds 1 files that no segment owns, as .*part-00000\.parquet: nothing moves in the 1 windows"
    with pytest.raises(ForeignFiles, match=words):
        lab.run(run_key="test/idle")
    lab.insert([(START - DAY + timedelta(seconds=30), 1), (START + timedelta(seconds=30), 2)])
    lab.insert([(START + 6 * hour + timedelta(seconds=30), 3)])
    reading = lab.run(run_key="test/beside it")
    assert reading.work is not None
    assert re.search(words, reading.work.complaint)
    moved = {window.start_us for window, _ in reading.work.windows}
    assert to_us(START) not in moved
    assert (to_us(START + 6 * hour) in moved) is has_bounds, "without bounds its whole day is blocked"
    with pytest.raises(ForeignFiles, match=words):
        lab.run(run_key="test/again")
    # Somebody removes it, and what waited moves.
    table.refresh()
    with table.transaction() as other, other.update_snapshot().overwrite() as snapshot:
        (foreign,) = [f for f in live_files(table, head_of(table)).values() if "part-00000" in f.file_path]
        snapshot.delete_data_file(foreign)
    lab.run(run_key="test/healed")
    lab.check_equal(33)
    assert head_of(lab.lake.require(lab.spec.target)) != ours


def test_a_file_of_ours_that_no_segment_owns_blocks_the_table(lab: Lab) -> None:
    """It is not somebody else's: the ledger is an older one, or another table's."""
    lab.insert_many(START, 10, 1_000_000)
    lab.run()
    with lab.ledger._transaction() as cursor:
        cursor.execute("UPDATE coldchain.segments SET state = 'superseded', paths = '{}' WHERE table_id = "
                       "(SELECT table_id FROM coldchain.tables WHERE table_name = %s)", (lab.name,))  # fmt: skip
        cursor.execute("UPDATE coldchain.tables SET main_snapshot_id = 1 WHERE table_name = %s", (lab.name,))
    with pytest.raises(ForeignFiles, match="rebuild a ledger that was lost"):
        lab.read(run_key="test/two")


def test_a_lost_watermark_row_is_repaired_and_changes_nothing(lab: Lab) -> None:
    lab.insert_many(START, 10, 1_000_000)
    lab.run()
    with lab.ledger._transaction() as cursor:
        cursor.execute("DELETE FROM coldchain.offload_watermarks WHERE table_name = %s", (lab.name,))
    assert lab.run(run_key="test/two").work is None
    with lab.ledger._transaction() as cursor:
        cursor.execute(
            "SELECT last_offload_timestamp IS NOT NULL, last_offload_row_count FROM coldchain.offload_watermarks "
            "WHERE table_name = %s",
            (lab.name,),
        )
        assert cursor.fetchone() == (True, 10)


@pytest.mark.parametrize(
    ("checks", "words"),
    [({"not_null": ["symbol", "note"]}, "check not_null note is broken by 13 rows"),
     ({"unique": True}, r"check unique \(symbol, ts, seq\) is broken by 5 rows")],
)  # fmt: skip
def test_a_broken_check_keeps_a_window_unpublished(lab: Lab, checks: dict[str, object], words: str) -> None:
    lab.keep_doubles()
    lab.spec = lab.spec.__class__.from_json({**lab.spec.to_json(), "checks": checks})
    lab.insert_many(START, 40, 1_000_000)
    if "unique" in checks:
        lab.insert_many(START, 5, 1_000_000)
    reading = lab.read()
    lab.offload(reading)
    with pytest.raises(ProofFailed, match=words):
        lab.finish(reading)
    table = lab.lake.require(lab.spec.target)
    assert live_files(table, head_of(table)) == {}
    lab.ledger.release(lab.name, lab.ledger.lease(lab.name).token)
    lab.spec = lab.spec.__class__.from_json({**lab.spec.to_json(), "checks": {"not_null": ["symbol"]}})
    lab.run(run_key="test/without")
    assert sum(f.record_count for f in live_files(lab.lake.require(lab.spec.target),
               head_of(lab.lake.require(lab.spec.target))).values()) in (40, 45)  # fmt: skip


def rewritten(table: Table, file: Streamed, change: dict[str, Any]) -> DataFile:
    """Describe a file to Iceberg as the driver does, but for what is changed."""
    described = data_file(table, file)
    names = ["content", "file_path", "file_format", "partition", "record_count", "file_size_in_bytes",
             "lower_bounds", "upper_bounds"]  # fmt: skip
    kept = {name: getattr(described, name) for name in names}
    return DataFile.from_args(**kept | {"spec_id": table.metadata.default_spec_id} | change)


MISPLACED: list[tuple[dict[str, Any], str]] = (
    [({"partition": Record("BTCUSDT", to_us(START) // DAY_US)},
      r"lies in partition \['BTCUSDT'\], and holds rows of \[\['XRPETH'\]\]"),
     ({"partition": Record("XRPETH", to_us(START) // DAY_US - 1)}, r"lies in the day numbered \d+ since 1970"),
     ({"lower_bounds": {1: to_us(START + timedelta(seconds=1)).to_bytes(8, "little")}}, "has the bounds"),
     ({"upper_bounds": {1: to_us(START + timedelta(seconds=1)).to_bytes(8, "little")}}, "has the bounds")]
)  # fmt: skip


def test_a_file_that_readers_would_not_look_into_is_not_published(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal content is not enough: who prunes by partition or bounds must find it."""
    lab.spec = replace(lab.spec, partitioning=("symbol", "day(ts)"))
    lab.insert_many(START, 10, 1_000_000)
    reading = lab.read()
    for change, words in MISPLACED:
        with monkeypatch.context() as patch:
            patch.setattr("coldchain_spark.offload.data_file", partial(rewritten, change=change))
            lab.offload(reading)
        with pytest.raises(ProofFailed, match=words):
            lab.finish(reading)
    lab.offload(reading)
    lab.finish(reading)
    lab.check_equal(10)


def test_another_codec_is_not_published(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.insert_many(START, 10, 1_000_000)
    reading = lab.read()
    monkeypatch.setitem(STREAM_SETTINGS, "output_format_parquet_compression_method", "lz4")
    lab.offload(reading)
    with pytest.raises(ProofFailed, match="is compressed by LZ4, not by ZSTD"):
        lab.finish(reading)


def read_footer(path: str) -> Streamed:
    """Describe a file as the stream that wrote it would."""
    data = Path(path).read_bytes()
    _, footer = split_tail(data)
    return Streamed(Slice(None, None, 0), path, len(data), 0, footer)  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["lost", "doubled", "other window", "changed value"])
@pytest.mark.fault("F16", recovery="clear")
def test_the_proof_fails_when_the_stage_is_not_the_source(lab: Lab, damage: str) -> None:
    """The proof can fail: each way in which a stage could lie is refused before main moves."""
    lab.insert_many(START, 40, 60_000_000)
    reading = lab.read()
    lab.offload(reading)
    turn = lab.turn()
    stage = protocol.latest_stage(turn, reading.work, "staged")  # type: ignore[arg-type]
    assert stage is not None
    data = stage.to_json()
    segment = data["segments"][0]
    if damage == "lost":
        segment["paths"] = []
    elif damage == "doubled":
        segment["rows"] *= 2
    elif damage == "other window":
        segment["window"][0] += 900_000_000
    else:
        segment["hash"] = str(int(segment["hash"]) ^ 1)
    with watching(lab):
        with pytest.raises(ProofFailed, match=f"table={lab.name}"):
            proof.prove(turn, Stage.from_json(data))
        proof.prove(turn, stage)
