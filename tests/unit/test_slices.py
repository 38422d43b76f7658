"""Slices: together they are the segment, apart they share nothing, and none is larger than it must be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from coldchain.core.windows import DAY_US, Window
from coldchain_spark.slices import MAX_SLICE_ROWS, MIN_SLICE_ROWS, STEP_US, Slice, cut, slice_rows

STEPS = 30


@st.composite
def segments(draw: st.DrawFn) -> tuple[Window, dict[int, int]]:
    """A segment on either side of 1970, and the rows of its steps and of some steps around it."""
    first = draw(st.integers(-STEPS, STEPS))
    window = Window(first * STEP_US, (first + draw(st.integers(1, STEPS))) * STEP_US)
    steps = st.integers(first - 3, first + STEPS + 3).map(lambda step: step * STEP_US)
    return window, draw(st.dictionaries(steps, st.integers(1, 50), max_size=STEPS))


def rows_in(counts: dict[int, int], window: Window) -> int:
    return sum(rows for step, rows in counts.items() if window.start_us <= step < window.end_us)


@given(segments(), st.integers(1, 200))
def test_slices_cover_the_segment_once(case: tuple[Window, dict[int, int]], limit: int) -> None:
    window, counts = case
    slices = cut(window, rows_in(counts, window), counts, limit)
    assert (slices[0].window.start_us, slices[-1].window.end_us) == (window.start_us, window.end_us)
    assert all(before.window.end_us == after.window.start_us for before, after in pairwise(slices))
    assert {part.segment for part in slices} == {window}


@given(segments(), st.integers(1, 200))
def test_each_slice_says_how_many_rows_it_holds(case: tuple[Window, dict[int, int]], limit: int) -> None:
    window, counts = case
    slices = cut(window, rows_in(counts, window), counts, limit)
    assert [part.rows for part in slices] == [rows_in(counts, part.window) for part in slices]
    assert sum(part.rows for part in slices) == rows_in(counts, window)


@given(segments(), st.integers(1, 200))
def test_only_a_single_step_is_larger_than_the_limit(case: tuple[Window, dict[int, int]], limit: int) -> None:
    window, counts = case
    for part in cut(window, rows_in(counts, window), counts, limit):
        steps = [step for step in counts if part.window.start_us <= step < part.window.end_us]
        assert part.rows <= limit or len(steps) == 1


@given(segments(), st.integers(1, 200))
def test_two_neighbours_would_not_have_fitted_into_one(case: tuple[Window, dict[int, int]], limit: int) -> None:
    window, counts = case
    slices = cut(window, rows_in(counts, window), counts, limit)
    for before, after in pairwise(slices):
        assert before.rows + counts[after.window.start_us] > limit


def test_a_small_segment_is_one_slice_and_needs_no_counts() -> None:
    window = Window(0, DAY_US)
    assert cut(window, 10, {}, 10) == [Slice(window, window, 10)]


def test_a_segment_whose_rows_went_away_meanwhile_is_still_one_slice() -> None:
    window = Window(0, DAY_US)
    assert cut(window, 11, {}, 10) == [Slice(window, window, 0)]


def test_rows_of_one_instant_stay_together() -> None:
    window = Window(0, 10 * STEP_US)
    slices = cut(window, 102, {0: 1, 5 * STEP_US: 100, 6 * STEP_US: 1}, 2)
    assert [part.rows for part in slices] == [1, 100, 1]


def test_a_slice_is_filled_up_to_its_limit() -> None:
    counts = {step * STEP_US: 2 for step in range(5)}
    assert [part.rows for part in cut(Window(0, 5 * STEP_US), 10, counts, 4)] == [4, 4, 2]


@pytest.mark.parametrize(
    ("rows", "cores", "expected"),
    [
        (0, 2, MIN_SLICE_ROWS),
        (20_000, 2, MIN_SLICE_ROWS),
        (3_868_363, 2, 967_091),
        (4_000_001, 4, 500_001),
        (100_000_000, 2, MAX_SLICE_ROWS),
    ],
)
def test_a_slice_is_half_a_core_s_share_within_bounds(rows: int, cores: int, expected: int) -> None:
    assert slice_rows(rows, cores) == expected


@given(st.integers(0, 10**10), st.integers(1, 64))
def test_slices_of_that_size_make_two_rounds_at_most_unless_the_bounds_say_otherwise(rows: int, cores: int) -> None:
    size = slice_rows(rows, cores)
    assert MIN_SLICE_ROWS <= size <= MAX_SLICE_ROWS
    if MIN_SLICE_ROWS < size < MAX_SLICE_ROWS:
        assert -(-rows // size) <= 2 * cores
