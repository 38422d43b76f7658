"""Maintenance on the real services: fewer files, fewer snapshots, no orphans, and not one row changed on the way."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coldchain.core.errors import ProofFailed, Superseded
from coldchain.core.request import Request
from coldchain.core.windows import DAY_US, Window, to_us
from coldchain.lake import MAIN, branch_name, file_name, head_of, live_files, owner_of
from coldchain.maintenance import batches_of, tidy
from coldchain_spark import compact as compaction
from coldchain_spark.compact import Compacted, compact_table
from tests.lab import Lab, append_foreign, yesterday

DAY = yesterday() - timedelta(days=9)
HOUR = timedelta(hours=1)


def in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def compact(lab: Lab, limit: int = 30, **more: Any) -> Compacted:
    return compact_table(lab.spec, f"maintenance/{uuid.uuid4().hex}", lab.settings, in_turn, limit, **more)


def fill(lab: Lab, hours: Sequence[int] = range(24), rows: int = 20) -> None:
    """Publish hours of a day that is long closed, a segment each."""
    for hour in hours:
        lab.insert_many(DAY + hour * HOUR, rows, 60_000_000, first=1000 * hour + 1)
        lab.run(Request(lab.window(DAY + hour * HOUR, DAY + (hour + 1) * HOUR), None), run_key=f"test/{hour}")


def files(lab: Lab) -> dict[str, Any]:
    table = lab.lake.require(lab.spec.target)
    return dict(live_files(table, head_of(table)))


def test_a_day_becomes_one_file_and_one_segment_and_stays_equal(lab: Lab) -> None:
    fill(lab)
    before = lab.ledger.state(lab.name).watermark_us
    assert len(files(lab)) == 24
    done = compact(lab)
    assert (done.batches, done.files_before, done.files_after, done.rows) == (1, 24, 1, 480)
    (path,) = files(lab)
    owner = owner_of(path)
    assert owner is not None
    (segment,) = [s for s in lab.ledger.segments(lab.name) if s.state == "published"]
    assert owner.window == segment.window == lab.window(DAY, DAY + 24 * HOUR)
    assert segment.paths == (path,)
    assert len(segment.buckets) == 48, "20 minutes of every hour hold rows: two buckets of a quarter each"
    assert lab.ledger.state(lab.name).watermark_us == before
    assert lab.ledger.lease(lab.name).holder is None
    lab.check_equal(480)
    assert compact(lab).batches == 0, "there is nothing left to put together"
    assert lab.read(run_key="test/after").work is None, "nothing has to move because of it"


def test_a_late_row_replaces_the_compacted_day(lab: Lab) -> None:
    fill(lab, range(6))
    compact(lab)
    lab.insert([(DAY + timedelta(hours=2, minutes=59), 9_999)])
    lab.run(Request(lab.window(DAY + 2 * HOUR, DAY + 3 * HOUR), None), run_key="test/late")
    lab.check_equal(121)
    assert len(files(lab)) == 1


def test_empty_windows_inside_come_along_and_gaps_do_not(lab: Lab) -> None:
    fill(lab, [0, 1, 2, 4, 5])  # hour 3 was never asked for
    for hour in (6, 7):
        lab.run(Request(lab.window(DAY + hour * HOUR, DAY + (hour + 1) * HOUR), None), run_key=f"test/e{hour}")
    fill(lab, [8, 9, 10])
    done = compact(lab)
    assert done.batches == 1
    held = {(s.window, s.state) for s in lab.ledger.segments(lab.name)}
    assert (lab.window(DAY + 4 * HOUR, DAY + 11 * HOUR), "published") in held
    assert (lab.window(DAY, DAY + 1 * HOUR), "published") in held, "three files are not worth it"
    lab.check_equal(160)


def test_files_stay_near_the_target(lab: Lab) -> None:
    fill(lab, range(12), rows=50)
    largest = max(file.file_size_in_bytes for file in files(lab).values())
    done = compact(lab, target_bytes=largest * 6)
    assert done.files_before == 12
    assert 1 < done.files_after <= 3
    lab.check_equal(600)


def test_what_another_version_made_or_somebody_else_touched_is_left_alone(lab: Lab) -> None:
    fill(lab, range(6))
    append_foreign(lab.lake.require(lab.spec.target), lab.window(DAY + 5 * HOUR, DAY + 6 * HOUR))
    with pytest.raises(Exception, match="no segment owns"):
        lab.run(Request(lab.window(DAY + 5 * HOUR, DAY + 6 * HOUR), None), run_key="test/blocked")
    assert [batch.window for batch in batches_of(lab.turn("maintenance/1"))] == [lab.window(DAY, DAY + 5 * HOUR)]


def test_a_file_that_rotted_is_not_compacted_away(lab: Lab) -> None:
    fill(lab, range(6))
    before = files(lab)
    path = Path(sorted(before)[3])
    other = Path(sorted(before)[4])
    path.write_bytes(other.read_bytes())
    head = head_of(lab.lake.require(lab.spec.target))
    with pytest.raises(ProofFailed, match=r"its 6 files no longer hold what was proven .* run DAG coldchain_verify"):
        compact(lab)
    assert head_of(lab.lake.require(lab.spec.target)) == head
    table = lab.lake.require(lab.spec.target)
    assert set(table.metadata.refs) == {MAIN}
    written = {each for each in Path(path).parent.iterdir() if each.suffix == ".parquet"}
    assert written == {Path(each) for each in before}, "what it wrote is gone again"
    assert lab.ledger.lease(lab.name).holder is None


def test_what_changed_in_the_ledger_meanwhile_is_not_published_over(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a release forgot to look: the last check before publication asks for content that equals what is there."""
    fill(lab, range(6))

    real = compaction.StagedSegment

    def lying(**values: Any) -> Any:
        return real(**{**values, "replaces": values["replaces"][:-1]})

    monkeypatch.setattr(compaction, "StagedSegment", lying)
    monkeypatch.setattr(compaction, "prove_content", lambda *_: None)
    with pytest.raises(Superseded, match="is not what was compacted any more"):
        compact(lab)
    lab.check_equal(120)


def aged(lab: Lab, days: int) -> int:
    """The moment `days` after now, by which everything is that old."""
    return time.time_ns() // 1000 + days * DAY_US


def test_old_snapshots_go_and_the_newest_stay(lab: Lab) -> None:
    fill(lab, range(6))
    table = lab.lake.require(lab.spec.target)
    assert len(table.metadata.snapshots) == 7
    said = tidy(lab.turn("maintenance/1"), aged(lab, 8), is_dry=True)
    assert said is not None
    assert (said.snapshots, len(lab.lake.require(lab.spec.target).metadata.snapshots)) == (4, 7)
    young = tidy(lab.turn("maintenance/1"), aged(lab, 6), is_dry=False)
    assert young is not None
    assert young.snapshots == 0, "six days old"
    done = tidy(lab.turn("maintenance/1"), aged(lab, 8), is_dry=False)
    assert done is not None
    assert (done.snapshots, done.kept_snapshots, done.data_files) == (4, 3, 6)
    lab.check_equal(120)
    assert lab.read(run_key="test/after").work is None
    fill(lab, [7])
    lab.check_equal(140)


def test_a_dead_attempt_s_branch_and_files_go_and_a_live_one_s_stay(lab: Lab) -> None:
    fill(lab, range(2))
    lab.insert_many(DAY + 3 * HOUR, 5, 60_000_000, first=90_001)
    asked = Request(lab.window(DAY + 3 * HOUR, DAY + 4 * HOUR), None)
    lab.offload(lab.read(asked, "test/dead"), "test/dead")
    lab.give_up("test/dead")
    dead = {name for name in lab.lake.require(lab.spec.target).metadata.refs if name != MAIN}
    assert len(dead) == 1
    recent = tidy(lab.turn("maintenance/1"), aged(lab, 0), is_dry=False)
    assert recent is not None
    assert (recent.branches, recent.orphans) == (0, 0), "it may still be validated"
    done = tidy(lab.turn("maintenance/1"), aged(lab, 8), is_dry=False)
    assert done is not None
    assert (done.branches, done.orphans >= 1) == (1, True)
    assert set(lab.lake.require(lab.spec.target).metadata.refs) == {MAIN}
    folder = Path(next(iter(files(lab)))).parent
    assert {str(path) for path in folder.iterdir() if path.suffix == ".parquet"} == set(files(lab))
    lab.run(asked, run_key="test/again")
    lab.check_equal(45)


@pytest.mark.fault("F36", recovery="none needed")
def test_only_old_files_with_our_names_go(lab: Lab) -> None:
    """Of what nothing needs, our own maintenance takes what is older than three days and bears a name of ours."""
    fill(lab, range(2))
    folder = Path(next(iter(files(lab)))).parent
    window = Window(to_us(DAY), to_us(DAY + HOUR))
    token = f"{uuid.uuid4()}-1"
    orphan, fresh = (folder / file_name(window, token, uuid.uuid4().hex) for _ in range(2))
    theirs = folder / "part-00000-theirs.parquet"
    for path in (orphan, fresh, theirs):
        path.write_bytes(b"PAR1")
    week_ago = time.time() - 7 * 86_400
    for path in (orphan, theirs):
        os.utime(path, (week_ago, week_ago))
    done = tidy(lab.turn("maintenance/1"), aged(lab, 0), is_dry=False)
    assert done is not None
    assert (done.orphans, done.unknown_files) == (1, 1)
    assert (orphan.exists(), fresh.exists(), theirs.exists()) == (False, True, True)
    lab.check_equal(40)


def test_what_an_older_snapshot_still_needs_is_no_orphan(lab: Lab) -> None:
    """A reader of last week's snapshot finds its files for as long as the snapshot is there."""
    fill(lab, range(6))
    snapshot_id = head_of(lab.lake.require(lab.spec.target))
    compact(lab)
    done = tidy(lab.turn("maintenance/1"), aged(lab, 6), is_dry=False)
    assert done is not None
    assert done.orphans == 0
    table = lab.lake.require(lab.spec.target)
    assert table.scan(snapshot_id=snapshot_id).to_arrow().num_rows == 120
    assert branch_name("") not in table.metadata.refs
