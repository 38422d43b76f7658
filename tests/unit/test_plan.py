"""The planner: wanted minus done, plus what changed, and nothing else, whatever happened before."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, note, settings, strategies as st

from coldchain.core.fingerprint import EMPTY, Fingerprint, total, within
from coldchain.core.plan import (
    CHANGED,
    NEW,
    Plan,
    Rules,
    Segment,
    comparison_grid_us,
    make_plan,
    requested_window,
    widen,
)
from coldchain.core.windows import DAY_US, HOUR_US, MINUTE_US, Window, merge, subtract, to_us
from tests.unit.world import DAYS, GRID_US, World, at, instants, rules, wanted_windows, worlds

ANY_RULES = st.builds(
    lambda **changes: rules(**changes),
    partition_unit=st.sampled_from(["day", "month"]),
    max_windows=st.integers(1, 12),
    max_window_rows=st.integers(1, 8),
    allow_shrink=st.dictionaries(st.integers(1, 12), st.integers(0, 9)),
)
FEWER = settings(max_examples=50)  # every example has a past of up to three runs
T0 = to_us(datetime(2026, 2, 10, tzinfo=UTC))


@st.composite
def cases(draw: st.DrawFn) -> tuple[World, list[Window], Rules]:
    """A world, what a run wants of it, and the rules of the table, with or without a retention."""
    world = draw(worlds())
    note(world.describe())
    forgotten = draw(st.none() | st.integers(0, DAYS * DAY_US).map(lambda us: world.base_us + us))
    sealed = None if forgotten is None else forgotten + draw(st.integers(0, DAY_US))
    allowed = replace(draw(ANY_RULES), forgotten_before_us=forgotten, sealed_before_us=sealed)
    return world, draw(wanted_windows(world.base_us)), allowed


def everything_new(plan: Plan) -> list[Window]:
    return [w.window for w in plan.windows if not w.replaces] + [*plan.empty, *plan.expired]


def differing(world: World, wanted: list[Window], version: str) -> set[int]:
    """Which segments that the run touches no longer hold what the source holds, row by row."""
    touched = [s for s in world.segments if any(s.window.overlaps(w) for w in wanted)]
    return {
        s.segment_id
        for s in touched
        if world.content(s.window) != s.fingerprint or (s.version != version and world.content(s.window).rows)
    }


# -- what a plan covers ----------------------------------------------------------------------------------------------


@FEWER
@given(cases())
def test_a_plan_covers_exactly_what_is_missing(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    plan = world.plan(wanted, replace(allowed, max_windows=1_000))
    missing = subtract(widen(wanted, world.segments), [s.window for s in world.segments])
    assert merge(everything_new(plan)) == missing


@FEWER
@given(cases())
def test_a_plan_takes_up_exactly_the_segments_that_changed(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    plan = world.plan(wanted, replace(allowed, max_windows=1_000))
    replaced = [segment_id for w in plan.windows for segment_id in w.replaces]
    named = [*replaced, *plan.sealed, *(s.segment_id for s in plan.shrunk)]
    assert len(named) == len(set(named)), "a segment is replaced, sealed or shrunk: one of them"
    windows = {s.window: s.segment_id for s in world.segments}
    held = {windows[window] for window in plan.deferred if window in windows}
    assert not held or plan.shrunk, "a change waits only for a loss that nobody approved"
    assert held.isdisjoint(named)
    assert held.union(named) == differing(world, wanted, allowed.version)


@FEWER
@given(cases())
def test_nothing_in_a_plan_overlaps(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    plan = world.plan(wanted, allowed)
    windows = sorted([*(w.window for w in plan.windows), *plan.empty, *plan.expired, *plan.deferred])
    assert not [one for one, other in pairwise(windows) if one.overlaps(other)]


@FEWER
@given(cases())
def test_a_segment_is_replaced_whole_or_left_alone(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    plan = world.plan(wanted, allowed)
    by_id = {s.segment_id: s.window for s in world.segments}
    for planned in plan.windows:
        assert [by_id[i] for i in planned.replaces] in ([], [planned.window])
        assert (planned.reason == CHANGED) == bool(planned.replaces)
        touched = {s.segment_id for s in world.segments if s.window.overlaps(planned.window)}
        assert touched == set(planned.replaces), "what a window overlaps is exactly what it replaces"
    for window in (*plan.empty, *plan.expired):
        assert not [s for s in world.segments if s.window.overlaps(window)]


@FEWER
@given(cases())
def test_a_planned_window_carries_what_the_source_holds_there(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    plan = world.plan(wanted, allowed)
    for planned in plan.windows:
        assert planned.fingerprint == world.content(planned.window)
    for window in (*plan.empty, *plan.expired):
        assert world.content(window) == EMPTY
    assert plan.rows == sum(world.content(w.window).rows for w in plan.windows)


# -- what it respects ------------------------------------------------------------------------------------------------


@FEWER
@given(cases())
def test_new_windows_lie_in_one_partition_and_on_the_grid(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    length = len("2026-02-10" if allowed.partition_unit == "day" else "2026-02")
    for window in everything_new(world.plan(wanted, allowed)):
        assert at(window.start_us)[:length] == at(window.end_us - 1)[:length]
        assert window.start_us % GRID_US == window.end_us % GRID_US == 0


@FEWER
@given(cases())
def test_a_new_window_holds_no_more_rows_than_allowed_unless_one_bucket_does(
    case: tuple[World, list[Window], Rules],
) -> None:
    world, wanted, allowed = case
    for planned in world.plan(wanted, allowed).windows:
        if planned.reason == NEW and planned.fingerprint.rows > allowed.max_window_rows:
            assert len(world.buckets([planned.window], GRID_US)) == 1


@FEWER
@given(cases())
def test_rows_are_not_cut_up_where_they_fit(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    plan = world.plan(wanted, replace(allowed, max_windows=1_000, max_window_rows=1_000))
    new = sorted(w.window for w in plan.windows if w.reason == NEW)
    for one, other in pairwise(new):
        if one.end_us == other.start_us:
            assert other.start_us % DAY_US == 0, "a window of few rows is cut at partitions only"


@FEWER
@given(cases())
def test_a_run_does_the_oldest_windows_first_and_defers_the_rest(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    plan = world.plan(wanted, allowed)
    everything = world.plan(wanted, replace(allowed, max_windows=1_000))
    assert [w.window for w in everything.windows] == sorted(w.window for w in everything.windows)
    first, later = everything.windows[: allowed.max_windows], everything.windows[allowed.max_windows :]
    assert plan.windows[: allowed.max_windows] == first
    # What may be the two ends of a moved row goes together, above the limit too; only changed windows can be that.
    assert all(w in later and w.replaces for w in plan.windows[allowed.max_windows :])
    assert {*plan.deferred, *(w.window for w in plan.windows)} == {
        *everything.deferred,
        *(w.window for w in first + later),
    }
    assert (plan.empty, plan.expired, plan.sealed) == (everything.empty, everything.expired, everything.sealed)


@FEWER
@given(cases())
def test_sealed_segments_are_never_replaced(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    plan = world.plan(wanted, allowed)
    starts = {s.segment_id: s.window.start_us for s in world.segments}
    sealed_before_us = allowed.sealed_before_us
    if sealed_before_us is None:
        assert plan.sealed == ()
        return
    touched = [i for w in plan.windows for i in w.replaces] + [s.segment_id for s in plan.shrunk]
    assert all(starts[segment_id] >= sealed_before_us for segment_id in touched)
    assert all(starts[segment_id] < sealed_before_us for segment_id in plan.sealed)


@FEWER
@given(cases())
def test_what_the_source_forgot_is_expired_and_what_it_never_had_is_empty(
    case: tuple[World, list[Window], Rules],
) -> None:
    world, wanted, allowed = case
    plan = world.plan(wanted, allowed)
    edge_us = allowed.forgotten_before_us
    assert all(edge_us is not None and window.start_us < edge_us for window in plan.expired)
    assert all(edge_us is None or window.start_us >= edge_us for window in plan.empty)


def test_a_day_that_the_source_began_to_forget_is_expired() -> None:
    two_days = [Window(T0, T0 + 2 * DAY_US)]
    for forgotten_us, expired, empty in ((T0, 0, 2), (T0 + 1, 1, 2), (T0 + DAY_US, 1, 1), (T0 + DAY_US + 1, 2, 1)):
        plan = make_plan(two_days, [], {}, rules(forgotten_before_us=forgotten_us))
        assert (len(plan.expired), len(plan.empty)) == (expired, empty), at(forgotten_us)


def test_old_changes_come_before_newer_windows_and_newer_changes_after_older_ones() -> None:
    plan = compare([published(1, 1, 10)], source(5, 20, 5, 5), max_window_rows=5, max_windows=3)
    assert [(w.reason, w.window.start_us) for w in plan.windows] == [
        (NEW, T0),
        (CHANGED, T0 + GRID_US),
        (NEW, T0 + 2 * GRID_US),
    ]
    assert plan.deferred == (Window(T0 + 3 * GRID_US, T0 + DAY_US),)


# -- doing it --------------------------------------------------------------------------------------------------------


def until_done(world: World, wanted: list[Window], allowed: Rules) -> int:
    """Plan and apply until nothing is left; return how many runs it took."""
    for runs in range(200):
        plan = world.plan(wanted, allowed)
        if not (plan.windows or plan.empty or plan.expired):
            assert not plan.deferred or plan.shrunk, "what is left waits for a person"
            return runs
        world.apply(plan, allowed)
    raise AssertionError(f"planning does not come to an end:\n{world.describe()}")


@FEWER
@given(cases())
def test_planning_after_applying_the_plan_gives_nothing(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    allowed = replace(allowed, max_windows=1_000)
    first = world.plan(wanted, allowed)
    world.apply(first, allowed)
    again = world.plan(wanted, allowed)
    assert again.windows == again.empty == again.expired == ()
    assert not again.deferred or again.shrunk, "only what may hold lost rows still waits, for a person"
    assert again.sealed == first.sealed
    assert {s.segment_id for s in again.shrunk} <= {s.segment_id for s in first.shrunk}


@FEWER
@given(cases())
def test_runs_of_few_windows_come_to_the_same_end_as_one_of_many(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    allowed = replace(allowed, allow_shrink=dict.fromkeys(range(1_000), 0))
    other = World(world.base_us, list(world.rows), list(world.segments), world.next_id)
    planned = len(world.plan(wanted, replace(allowed, max_windows=1_000)).windows)
    runs = until_done(world, wanted, allowed)
    until_done(other, wanted, replace(allowed, max_windows=1_000))
    assert runs <= max(1, -(-planned // allowed.max_windows))
    assert {(s.window, s.fingerprint, s.state) for s in world.segments} == {
        (s.window, s.fingerprint, s.state) for s in other.segments
    }


@FEWER
@given(cases())
def test_afterwards_the_ledger_holds_what_the_source_holds(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    allowed = replace(allowed, allow_shrink=dict.fromkeys(range(1_000), 0), sealed_before_us=None)
    until_done(world, wanted, allowed)
    done = [s for s in world.segments if any(s.window.overlaps(w) for w in wanted)]
    for window in wanted:
        assert subtract([window], [s.window for s in done]) == []
    for segment in done:
        assert segment.fingerprint == world.content(segment.window)
        assert segment.fingerprint == total(segment.buckets.values())


@FEWER
@given(cases())
def test_what_a_run_was_not_asked_for_stays_as_it_is(case: tuple[World, list[Window], Rules]) -> None:
    world, wanted, allowed = case
    untouched = [s for s in world.segments if not any(s.window.overlaps(w) for w in wanted)]
    until_done(world, wanted, replace(allowed, allow_shrink=dict.fromkeys(range(1_000), 0)))
    assert [s for s in untouched if s not in world.segments] == []


@FEWER
@given(cases(), st.data())
def test_one_changed_row_moves_its_segment_and_no_other(
    case: tuple[World, list[Window], Rules], data: st.DataObject
) -> None:
    world, _, allowed = case
    everything = [world.whole]
    allowed = replace(allowed, max_windows=1_000, sealed_before_us=None, allow_shrink=dict.fromkeys(range(1_000), 0))
    until_done(world, everything, allowed)
    us = data.draw(instants(world.base_us))
    world.rows.append((us, 1))
    (home,) = [s for s in world.segments if s.window.start_us <= us < s.window.end_us]
    plan = world.plan(everything, allowed)
    assert [w.replaces for w in plan.windows] == [(home.segment_id,)]
    assert plan.empty == plan.expired == plan.shrunk == ()


# -- a grid that was changed -----------------------------------------------------------------------------------------


@FEWER
@given(st.data(), st.sampled_from([HOUR_US, 2 * HOUR_US, 4 * HOUR_US, 8 * HOUR_US, 12 * HOUR_US, DAY_US]))
def test_a_changed_grid_moves_nothing_that_is_equal(data: st.DataObject, grid_us: int) -> None:
    world = data.draw(worlds())
    world.segments = [s for s in world.segments if s.version == "v1"]
    before = rules(max_window_rows=3, allow_shrink=dict.fromkeys(range(1_000), 0))
    until_done(world, [world.whole], before)
    after = world.plan([world.whole], replace(before, grid_us=grid_us))
    assert after == Plan()


@FEWER
@given(st.data(), st.sampled_from([HOUR_US, 2 * HOUR_US, 4 * HOUR_US, 8 * HOUR_US, 12 * HOUR_US, DAY_US]))
def test_a_changed_grid_still_finds_every_difference(data: st.DataObject, grid_us: int) -> None:
    world = data.draw(worlds())
    allowed = rules(grid_us=grid_us, allow_shrink=dict.fromkeys(range(1_000), 0))
    wanted = data.draw(wanted_windows(world.base_us, grid_us))
    plan = world.plan(wanted, allowed)
    assert {i for w in plan.windows for i in w.replaces} == differing(world, wanted, "v1")
    until_done(world, wanted, allowed)


def test_the_comparison_cuts_at_every_edge_there_ever_was() -> None:
    old = Segment(1, Window(T0, T0 + 45 * MINUTE_US), EMPTY, "v1", grid_us=15 * MINUTE_US)
    assert comparison_grid_us(HOUR_US, [old]) == 15 * MINUTE_US
    assert comparison_grid_us(10 * MINUTE_US, [old]) == 5 * MINUTE_US
    assert comparison_grid_us(HOUR_US, []) == HOUR_US


@pytest.mark.parametrize(
    "odd",
    [
        Segment(1, Window(T0 + 5 * MINUTE_US, T0 + HOUR_US), EMPTY, "v1", grid_us=HOUR_US),
        Segment(1, Window(T0, T0 + 5 * MINUTE_US), EMPTY, "v1", grid_us=HOUR_US),
        Segment(1, Window(T0, T0 + HOUR_US), EMPTY, "v1", grid_us=5 * MINUTE_US),
    ],
    ids=["start", "end", "buckets"],
)
def test_one_odd_edge_is_enough_to_refine_the_comparison(odd: Segment) -> None:
    assert comparison_grid_us(15 * MINUTE_US, [odd]) == 5 * MINUTE_US


# -- widening --------------------------------------------------------------------------------------------------------


@given(worlds(), st.data())
def test_widening_takes_in_whole_segments_and_nothing_else(world: World, data: st.DataObject) -> None:
    wanted = data.draw(wanted_windows(world.base_us))
    widened = widen(wanted, world.segments)
    touched = [s.window for s in world.segments if any(s.window.overlaps(w) for w in wanted)]
    assert widened == merge([*wanted, *touched])
    for segment in world.segments:
        covered = any(w.covers(segment.window) for w in widened)
        assert covered or not any(w.overlaps(segment.window) for w in widened), "a segment is in or out, never cut"


def test_a_request_is_widened_to_the_grid() -> None:
    quarter = 15 * MINUTE_US
    assert requested_window(T0 + 1, T0 + quarter + 1, quarter) == Window(T0, T0 + 2 * quarter)
    assert requested_window(T0, T0 + quarter, quarter) == Window(T0, T0 + quarter)
    assert requested_window(-1, 1, quarter) == Window(-quarter, quarter)


# -- rows that went away ---------------------------------------------------------------------------------------------


def published(segment_id: int, quarter: int, rows: int, quarters: int = 1) -> Segment:
    """A segment with as many rows in each of its quarter hours."""
    start = T0 + quarter * GRID_US
    buckets = {start + n * GRID_US: Fingerprint(rows, rows) for n in range(quarters) if rows}
    window = Window(start, start + quarters * GRID_US)
    return Segment(segment_id, window, total(buckets.values()), "v1", "published", GRID_US, buckets)


def source(*rows: int) -> dict[int, Fingerprint]:
    """The source's rows per bucket; their hashes differ from any other number of rows."""
    return {T0 + n * GRID_US: Fingerprint(count, count) for n, count in enumerate(rows) if count}


def compare(segments: list[Segment], now: dict[int, Fingerprint], **changes: object) -> Plan:
    return make_plan([Window(T0, T0 + DAY_US)], segments, now, rules(**changes))


FULL_DAY = [published(1, 0, 10), published(2, 1, 10), published(3, 2, 10), published(4, 3, 10)]


def test_lost_rows_are_not_replaced_and_are_named() -> None:
    plan = compare(FULL_DAY, source(10, 7, 10, 10))
    assert plan.windows == ()
    (shrunk,) = plan.shrunk
    assert (shrunk.segment_id, shrunk.window) == (2, FULL_DAY[1].window)
    assert (shrunk.published.rows, shrunk.source.rows) == (10, 7)


def test_rows_that_moved_to_another_segment_are_no_loss() -> None:
    plan = compare(FULL_DAY, source(10, 7, 13, 10))
    assert [w.replaces for w in plan.windows] == [(2,), (3,)]
    assert plan.shrunk == ()


def test_a_net_loss_is_judged_over_all_windows() -> None:
    plan = compare(FULL_DAY, source(10, 7, 12, 10))
    assert [s.segment_id for s in plan.shrunk] == [2]
    assert plan.windows == (), "what gained rows may hold what the other lost: published alone it would be there twice"
    assert plan.deferred == (FULL_DAY[2].window,)


def test_every_segment_that_lost_rows_is_named_at_once() -> None:
    plan = compare(FULL_DAY, source(9, 9, 0, 10))
    assert [s.segment_id for s in plan.shrunk] == [1, 2, 3]
    assert plan.shrunk[2].source == EMPTY


def test_a_loss_is_approved_by_the_segment_s_id_alone() -> None:
    plan = compare(FULL_DAY, source(9, 9, 10, 10), allow_shrink={2: 9})
    assert [w.replaces for w in plan.windows] == [(2,)]
    assert [s.segment_id for s in plan.shrunk] == [1]
    assert compare(FULL_DAY, source(9, 10, 10, 10), allow_shrink={3: 9}).shrunk[0].segment_id == 1


def test_an_approval_is_void_where_the_source_lost_more_since() -> None:
    plan = compare(FULL_DAY, source(9, 8, 10, 10), allow_shrink={1: 9, 2: 9})
    assert [w.replaces for w in plan.windows] == [(1,)]
    assert [(s.segment_id, s.source.rows) for s in plan.shrunk] == [(2, 8)]


def test_changed_rows_are_no_loss() -> None:
    now = {**source(10, 10, 10, 10), T0: Fingerprint(10, 77)}
    plan = compare(FULL_DAY, now)
    assert [w.replaces for w in plan.windows] == [(1,)]


def test_a_loss_in_one_bucket_is_seen_although_rows_were_added_in_new_windows() -> None:
    plan = compare(FULL_DAY[:3], source(10, 9, 10, 500))
    assert [s.segment_id for s in plan.shrunk] == [2]
    assert [w.reason for w in plan.windows] == [NEW]


def test_a_row_that_moved_inside_its_segment_is_no_loss() -> None:
    """A correction of one row's time by minutes must not need a person, however long the segment is."""
    day = published(1, 0, 10, quarters=4)
    plan = compare([day], {**source(9, 11, 10, 10), T0 + GRID_US: Fingerprint(11, 5_000)})
    assert plan.shrunk == ()
    assert [w.replaces for w in plan.windows] == [(1,)]


def test_sealed_segments_lose_rows_without_a_word_but_are_named() -> None:
    plan = compare(FULL_DAY, source(0, 3, 10, 10), sealed_before_us=T0 + 2 * GRID_US)
    assert plan.sealed == (1, 2)
    assert plan.windows == plan.shrunk == ()


def test_a_sealed_segment_s_rows_don_t_pay_for_another_s_loss() -> None:
    plan = compare(FULL_DAY, source(90, 9, 10, 10), sealed_before_us=T0 + GRID_US)
    assert plan.sealed == (1,)
    assert [s.segment_id for s in plan.shrunk] == [2]


def test_rows_that_come_where_there_were_none_replace_the_empty_segment() -> None:
    empty = Segment(9, Window(T0, T0 + DAY_US), EMPTY, "v0", "empty", GRID_US)
    assert compare([empty], {}) == Plan(), "no rows are no rows by any version"
    plan = compare([empty], source(0, 5))
    assert [(w.replaces, w.fingerprint.rows, w.reason) for w in plan.windows] == [((9,), 5, CHANGED)]


def test_a_fingerprint_of_another_version_is_made_again() -> None:
    old = [replace(s, version="v0") for s in FULL_DAY]
    assert len(compare(old, source(10, 10, 10, 10)).windows) == 4


def test_segments_outside_what_is_wanted_are_left_alone() -> None:
    tomorrow = replace(FULL_DAY[0], segment_id=8, window=Window(T0 + DAY_US, T0 + 2 * DAY_US))
    assert compare([*FULL_DAY, tomorrow], source(10, 10, 10, 10)) == Plan()


def test_nothing_wanted_is_nothing_to_do() -> None:
    assert make_plan([], FULL_DAY, source(1, 2, 3, 4), rules()) == Plan()


@pytest.mark.parametrize("size", [1, 3, 7, 8, 11])
def test_a_stretch_is_cut_before_the_bucket_that_would_exceed_the_limit(size: int) -> None:
    plan = compare([], source(4, 4, 4, 4), max_window_rows=size)
    rows = [w.fingerprint.rows for w in plan.windows]
    assert rows == ([8, 8] if size >= 8 else [4, 4, 4, 4])
    assert plan.windows[0].window.start_us == T0
    assert plan.windows[-1].window.end_us == T0 + DAY_US


def test_rows_on_an_edge_belong_to_the_later_window() -> None:
    buckets = {T0: Fingerprint(1, 1), T0 + GRID_US: Fingerprint(2, 2)}
    assert within(buckets, Window(T0, T0 + GRID_US)) == {T0: Fingerprint(1, 1)}
    assert within(buckets, Window(T0 + GRID_US, T0 + 2 * GRID_US)) == {T0 + GRID_US: Fingerprint(2, 2)}
