"""The algebra of windows, against the plainest model there is: a window is the set of its instants."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import example, given, strategies as st

from coldchain.core.windows import (
    DAY_US,
    HOUR_US,
    MAX_US,
    MIN_US,
    MINUTE_US,
    Window,
    ceil_us,
    floor_us,
    format_us,
    merge,
    next_day_us,
    next_month_us,
    split_at_partitions,
    subtract,
    to_datetime,
    to_us,
)

GRIDS = st.sampled_from([1, MINUTE_US, 15 * MINUTE_US, HOUR_US, DAY_US])
INSTANTS = st.integers(MIN_US, MAX_US)
UNITS = st.sampled_from(["day", "month"])


@st.composite
def small_windows(draw: st.DrawFn) -> Window:
    """Windows so small that all their instants can be listed; on both sides of 1970."""
    start = draw(st.integers(-30, 30))
    return Window(start, start + draw(st.integers(1, 12)))


@st.composite
def long_windows(draw: st.DrawFn, longest_us: int = 500 * DAY_US) -> Window:
    """Windows anywhere in the range, up to some length, that start and end anywhere in a day."""
    start = draw(st.integers(MIN_US, MAX_US - 1))
    return Window(start, draw(st.integers(start + 1, min(MAX_US, start + longest_us))))


LISTS = st.lists(small_windows(), max_size=8)


def instants(*windows: Window) -> set[int]:
    return {us for window in windows for us in range(window.start_us, window.end_us)}


def is_normal(windows: list[Window]) -> bool:
    """Sorted, and no two overlap or touch."""
    return all(before.end_us < after.start_us for before, after in pairwise(windows))


@given(small_windows(), small_windows())
def test_overlap_is_a_shared_instant(one: Window, other: Window) -> None:
    assert one.overlaps(other) == bool(instants(one) & instants(other))
    assert one.overlaps(other) == other.overlaps(one)


@given(small_windows(), small_windows())
def test_covering_is_holding_every_instant(one: Window, other: Window) -> None:
    assert one.covers(other) == (instants(other) <= instants(one))


def test_windows_that_touch_share_nothing() -> None:
    assert not Window(0, 5).overlaps(Window(5, 9))
    assert not Window(5, 9).overlaps(Window(0, 5))


@given(LISTS)
def test_merge_keeps_every_instant_and_is_normal(windows: list[Window]) -> None:
    merged = merge(windows)
    assert instants(*merged) == instants(*windows)
    assert is_normal(merged)
    assert merge(merged) == merged
    assert merge(reversed(windows)) == merged


@given(LISTS, LISTS)
def test_subtract_is_the_difference_and_is_normal(wanted: list[Window], done: list[Window]) -> None:
    gaps = subtract(wanted, done)
    assert instants(*gaps) == instants(*wanted) - instants(*done)
    assert is_normal(gaps)


@given(LISTS, LISTS)
def test_what_was_subtracted_and_the_rest_make_the_whole(wanted: list[Window], done: list[Window]) -> None:
    gaps = subtract(wanted, done)
    assert merge([*gaps, *subtract(wanted, gaps)]) == merge(wanted)
    assert subtract(wanted, [*done, *gaps]) == []


def test_subtract_takes_iterators() -> None:
    assert subtract(iter([Window(0, 9)]), (Window(s, s + 1) for s in (2, 4))) == [
        Window(0, 2),
        Window(3, 4),
        Window(5, 9),
    ]


@given(INSTANTS, GRIDS)
@example(-1, DAY_US)
@example(MIN_US, DAY_US)
def test_floor_and_ceil_are_the_nearest_multiples(us: int, grid_us: int) -> None:
    down, up = floor_us(us, grid_us), ceil_us(us, grid_us)
    assert down % grid_us == up % grid_us == 0
    assert us - grid_us < down <= us <= up < us + grid_us
    assert up - down in (0, grid_us)


@given(INSTANTS)
@example(-1)
@example(0)
def test_the_next_day_is_the_next_midnight(us: int) -> None:
    tomorrow = to_datetime(us).date() + timedelta(days=1)
    assert to_datetime(next_day_us(us)) == datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=UTC)


@given(INSTANTS)
@example(to_us(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)))
@example(to_us(datetime(1999, 12, 1, tzinfo=UTC)))
@example(to_us(datetime(2024, 2, 29, 12, tzinfo=UTC)))
@example(MIN_US)
def test_the_next_month_is_as_many_days_away_as_the_calendar_says(us: int) -> None:
    now = to_datetime(us)
    first = datetime(now.year, now.month, 1, tzinfo=UTC)
    days = calendar.monthrange(now.year, now.month)[1]
    assert to_datetime(next_month_us(us)) == first + timedelta(days=days)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2023-12-31T23:59:59.999999+00:00", "2024-01-01T00:00:00Z"),
        ("2024-01-01T00:00:00+00:00", "2024-02-01T00:00:00Z"),
        ("2024-02-28T00:00:00+00:00", "2024-03-01T00:00:00Z"),
        ("1969-12-15T00:00:00+00:00", "1970-01-01T00:00:00Z"),
        ("1901-11-30T00:00:00+00:00", "1901-12-01T00:00:00Z"),
    ],
)
def test_months_end_where_people_expect(moment: str, expected: str) -> None:
    assert format_us(next_month_us(to_us(datetime.fromisoformat(moment)))) == expected


def partition(us: int, unit: str) -> tuple[int, ...]:
    """Name the partition of an instant without the code under test."""
    moment = to_datetime(us)
    return (moment.year, moment.month, moment.day)[: 3 if unit == "day" else 2]


@given(long_windows(), UNITS)
@example(Window(-1, 1), "day")
@example(Window(-1, 1), "month")
@example(Window(0, DAY_US), "day")
def test_parts_make_the_window_and_each_lies_in_one_partition(window: Window, unit: str) -> None:
    parts = list(split_at_partitions(window, unit))
    assert (parts[0].start_us, parts[-1].end_us) == (window.start_us, window.end_us)
    assert all(before.end_us == after.start_us for before, after in pairwise(parts))
    assert all(partition(part.start_us, unit) == partition(part.end_us - 1, unit) for part in parts)


@given(long_windows(), UNITS)
def test_nothing_is_cut_more_than_it_must_be(window: Window, unit: str) -> None:
    partitions = [partition(part.start_us, unit) for part in split_at_partitions(window, unit)]
    assert len(set(partitions)) == len(partitions)


def test_an_unknown_partition_unit_is_refused() -> None:
    with pytest.raises(KeyError, match="week"):
        list(split_at_partitions(Window(0, 1), "week"))


@given(INSTANTS)
def test_an_instant_survives_the_way_through_datetime(us: int) -> None:
    assert to_us(to_datetime(us)) == us


@given(
    st.datetimes(datetime(1900, 1, 2), datetime(2299, 12, 30)),
    st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
def test_a_zone_only_says_the_same_instant_in_another_way(moment: datetime, zone: timezone) -> None:
    aware = moment.replace(tzinfo=zone)
    assert to_us(aware) == to_us(aware.astimezone(UTC))


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"naive time 2026-02-10T00:00:00: write the zone"):
        to_us(datetime(2026, 2, 10))


@pytest.mark.parametrize(
    ("start_us", "end_us"), [(0, 0), (1, 0), (MIN_US - 1, 0), (0, MAX_US + 1), (MAX_US, MAX_US), (-5, -5)]
)
def test_an_empty_reversed_or_unreachable_window_can_not_be_made(start_us: int, end_us: int) -> None:
    with pytest.raises(ValueError, match="start must come before end"):
        Window(start_us, end_us)


def test_the_whole_range_is_a_window() -> None:
    whole = Window(MIN_US, MAX_US)
    assert str(whole) == "[1900-01-01T00:00:00Z, 2300-01-01T00:00:00Z)"


def test_a_fraction_is_written_only_where_there_is_one() -> None:
    assert str(Window(-1, 1_500_000)) == "[1969-12-31T23:59:59.999999Z, 1970-01-01T00:00:01.500000Z)"
