"""What compaction may put together: whatever the segments are, nothing is lost, mixed, split or sealed early."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, strategies as st

from coldchain.core.compaction import (
    Batch,
    FileSize,
    Limits,
    SnapshotAge,
    choose,
    dead_branches,
    expired_snapshots,
)
from coldchain.core.fingerprint import EMPTY, Fingerprint, total
from coldchain.core.plan import Segment
from coldchain.core.windows import DAY_US, HOUR_US, Window

HOURS = 24 * 5
LIMITS = Limits("day", closed_before_us=HOURS * HOUR_US, sealed_before_us=None, max_rows=1_000, min_files_saved=1)


def segment(
    number: int, start: int, hours: int = 1, rows: int = 10, state: str = "published", version: str = "v"
) -> Segment:
    window = Window(start * HOUR_US, (start + hours) * HOUR_US)
    found = Fingerprint(rows, number) if state == "published" else EMPTY
    buckets = {window.start_us: found} if state == "published" else {}
    paths = (f"/w/{number}",) if state == "published" else ()
    return Segment(number, window, found, version, state, HOUR_US, buckets, paths)


@st.composite
def ledgers(draw: st.DrawFn) -> list[Segment]:
    """Disjoint segments of five days, in any state, with gaps."""
    made, at, number = list[Segment](), 0, 1
    while at < HOURS:
        at += draw(st.sampled_from([0, 0, 0, 0, 1, 7]))
        hours = draw(st.integers(1, 3))
        if at % 24 + hours > 24:
            hours = 24 - at % 24
        if at + hours > HOURS:
            break
        state = draw(st.sampled_from(["published"] * 6 + ["empty", "expired"]))
        version = draw(st.sampled_from(["v", "v", "v", "older"]))
        made.append(segment(number, at, hours, draw(st.integers(1, 400)), state, version))
        at, number = at + hours, number + 1
    return made


def files_of(segments: Sequence[Segment]) -> dict[str, FileSize]:
    return {path: FileSize((), 1_000) for each in segments for path in each.paths}


@given(
    segments=ledgers(),
    closed=st.integers(0, HOURS),
    sealed=st.none() | st.integers(0, HOURS),
    unit=st.sampled_from(["day", "month"]),
)
def test_batches_hold_whole_adjacent_segments_of_one_kind(
    segments: list[Segment], closed: int, sealed: int | None, unit: str
) -> None:
    sealed_us = None if sealed is None else sealed * HOUR_US
    limits = Limits(unit, closed * HOUR_US, sealed_us, max_rows=1_000, min_files_saved=1)
    batches = choose(segments, files_of(segments), limits)
    for before, after in pairwise(batches):
        assert before.window.end_us <= after.window.start_us
    for batch in batches:
        for one, other in pairwise(batch.segments):
            assert one.window.end_us == other.window.start_us, "adjacent: nothing that was never looked at is covered"
        held = [each for each in batch.segments if each.state == "published"]
        assert {each.state for each in batch.segments} <= {"published", "empty"}
        assert batch.segments[0] in held
        assert batch.segments[-1] in held
        assert len({each.version for each in held}) == 1
        assert batch.fingerprint == total(each.fingerprint for each in held) == total(batch.buckets.values())
        assert batch.fingerprint.rows <= 1_000 or len(held) == 1
        assert batch.window.end_us <= closed * HOUR_US
        assert batch.files.keys() == {path for each in held for path in each.paths}
        assert batch.saved(limits.target_bytes) >= 1
        if sealed_us is not None:
            seals = {each.window.start_us < sealed_us for each in held}
            assert len(seals) == 1, "nothing is sealed that was not"
        if unit == "day" or (sealed_us is not None and batch.window.start_us >= sealed_us):
            assert batch.window.start_us // DAY_US == (batch.window.end_us - 1) // DAY_US


@given(segments=ledgers())
def test_once_is_enough(segments: list[Segment]) -> None:
    """What was put together leaves nothing to put together."""
    batches = choose(segments, files_of(segments), LIMITS)
    gone = {each.segment_id for batch in batches for each in batch.segments}
    made = [
        Segment(1_000 + at, b.window, b.fingerprint, b.version, "published", b.grid_us, b.buckets, (f"/w/new{at}",))
        for at, b in enumerate(batches)
    ]
    after = [each for each in segments if each.segment_id not in gone] + made
    rows = sum(each.fingerprint.rows for each in segments)
    assert sum(each.fingerprint.rows for each in after) == rows
    assert choose(after, files_of(after), LIMITS) == []


def test_a_segment_with_a_file_that_main_does_not_hold_is_left_alone() -> None:
    segments = [segment(number, number) for number in range(1, 7)]
    files = files_of(segments)
    del files["/w/3"]
    assert [[s.segment_id for s in b.segments] for b in choose(segments, files, LIMITS)] == [[1, 2], [4, 5, 6]]


def test_every_partition_is_written_by_itself() -> None:
    segments = [segment(number, number) for number in range(1, 5)]
    files = {f"/w/{number}": FileSize(("a" if number % 2 else "b",), 600) for number in range(1, 5)}
    (batch,) = choose(segments, files, LIMITS)
    assert batch.partitions == {("a",): ("/w/1", "/w/3"), ("b",): ("/w/2", "/w/4")}
    assert batch.parts_of(("a",), target_bytes=1_000) == 2
    assert batch.saved(1_000) == 0
    assert batch.saved(2_000) == 2


def test_files_that_are_large_already_stay() -> None:
    segments = [segment(number, number) for number in range(1, 7)]
    files = {path: FileSize((), 300 << 20) for path in files_of(segments)}
    assert choose(segments, files, LIMITS) == []


@given(
    made=st.lists(st.integers(0, 100), min_size=1, max_size=12),
    head=st.integers(0, 11),
    tag=st.integers(0, 11),
    limit=st.integers(0, 100),
    keep=st.integers(1, 4),
)
def test_no_snapshot_goes_that_a_ref_or_a_reader_needs(
    made: list[int], head: int, tag: int, limit: int, keep: int
) -> None:
    snapshots = [SnapshotAge(number, number - 1 if number else None, at) for number, at in enumerate(made)]
    heads = {"main": head % len(made), "mine": tag % len(made)}
    gone = set(expired_snapshots(snapshots, heads, "main", limit, keep))
    newest = range(heads["main"], max(-1, heads["main"] - keep), -1)
    assert not gone & {*newest, *heads.values()}
    assert all(made[number] < limit for number in gone)
    left = {each.snapshot_id for each in snapshots} - gone - {*newest, *heads.values()}
    assert all(made[number] >= limit for number in left)


def test_only_branches_of_dead_attempts_go() -> None:
    refs = {"main": 1, "coldchain-e-1": 2, "coldchain-e-2": 3, "coldchain-e-3": 4, "theirs": 2}
    made = {1: 0, 2: 10, 3: 50, 4: 10}
    assert dead_branches(refs, made, "coldchain-", "coldchain-e-3", 40) == ["coldchain-e-1"]


def test_a_batch_says_what_it_is() -> None:
    batch = Batch((segment(1, 0), segment(2, 1, state="empty"), segment(3, 2)), {"/w/1": FileSize((), 1)})
    assert batch.window == Window(0, 3 * HOUR_US)
    assert batch.fingerprint == Fingerprint(20, 4)
    assert (batch.version, batch.grid_us) == ("v", HOUR_US)
