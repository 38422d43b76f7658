"""Which stretch of time a run is asked for: every row of the table in `coldchain.core.request`, and bad input."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, strategies as st

from coldchain.core.errors import BadRequest
from coldchain.core.request import MAX_REQUEST_US, Request, make_request, parse_instant, windows_to_compare
from coldchain.core.windows import DAY_US, HOUR_US, MAX_US, MIN_US, MINUTE_US, Window, floor_us, format_us, to_us

QUARTER_US = 15 * MINUTE_US
TABLES = frozenset({"bronze_trades_binance", "bronze_trades_kraken"})


def moment(text: str) -> datetime:
    """Read a time of 10 February 2026, UTC."""
    return datetime.fromisoformat(f"2026-02-10T{text}+00:00")


def us(text: str) -> int:
    return to_us(moment(text))


def ask(
    run_type: str = "manual",
    interval: tuple[str, str] | None = None,
    logical: str | None = None,
    *,
    grid_us: int = QUARTER_US,
    **params: Any,
) -> Request:
    """Make a request; `interval` and `logical` are times of the day."""
    return make_request(
        run_type=run_type,
        data_interval=None if interval is None else (moment(interval[0]), moment(interval[1])),
        logical_date=None if logical is None else moment(logical),
        params=params,
        known_tables=TABLES,
        grid_us=grid_us,
    )


def test_start_and_end_ask_a_coarser_table_for_the_bars_that_end_between_them() -> None:
    params = {"start": "2026-02-10T10:15:00Z", "end": "2026-02-10T12:45:00Z"}
    hours = ask(grid_us=HOUR_US, **params)
    assert hours.window == Window(us("10:00"), us("12:00"))
    assert ask(grid_us=DAY_US, **params).is_idle


def test_a_scheduled_run_knows_when_no_bar_ends_in_it() -> None:
    runs = [("10:00", "10:15"), ("10:45", "11:00"), ("11:00", "11:15")]
    quarters = [ask("scheduled", run, run[0], grid_us=QUARTER_US).is_between_bars for run in runs]
    hours = [ask("scheduled", run, run[0], grid_us=HOUR_US).is_between_bars for run in runs]
    assert (quarters, hours) == ([False, False, False], [True, False, True])


# -- the table -------------------------------------------------------------------------------------------------------


def test_a_scheduled_run_goes_from_the_watermark_to_its_interval_s_end() -> None:
    request = ask("scheduled", ("10:00", "10:15"), "10:00")
    assert (request.window, request.until_us, request.is_idle) == (None, us("10:15"), False)


def test_a_scheduled_run_of_a_coarser_table_ends_at_its_last_closed_bar() -> None:
    assert ask("scheduled", ("10:00", "10:15"), "10:00", grid_us=HOUR_US).until_us == us("10:00")


def test_a_manual_run_without_dates_leaves_its_end_to_the_source_s_clock() -> None:
    request = ask("manual")
    assert (request.window, request.until_us, request.end_us) == (None, None, None)


@pytest.mark.parametrize("logical", ["10:07", "10:00", "10:14:59.999999"])
def test_airflow_s_inferred_interval_of_a_manual_run_is_not_what_a_person_asked_for(logical: str) -> None:
    request = ask("manual", ("09:45", "10:00"), logical)
    assert (request.window, request.until_us) == (None, None)


def test_the_inferred_interval_is_known_in_any_zone() -> None:
    zone = timezone(timedelta(hours=5, minutes=45))
    request = make_request(
        run_type="manual",
        data_interval=(moment("09:45").astimezone(zone), moment("10:00").astimezone(zone)),
        logical_date=moment("10:07").astimezone(zone),
        params={},
        known_tables=TABLES,
        grid_us=QUARTER_US,
    )
    assert request.window is None


@pytest.mark.parametrize("interval", [("09:30", "09:45"), ("09:30", "10:00"), ("10:00", "10:15")])
def test_an_interval_that_airflow_did_not_make_up_is_exact(interval: tuple[str, str]) -> None:
    assert ask("manual", interval, "10:07").window == Window(us(interval[0]), us(interval[1]))


def test_a_manual_run_whose_interval_is_one_instant_is_without_dates() -> None:
    request = ask("manual", ("10:00", "10:00"), "10:00")
    assert (request.window, request.until_us, request.is_idle) == (None, None, False)


def test_a_run_that_an_asset_triggered_is_as_a_manual_one() -> None:
    request = ask("asset_triggered", ("10:00", "10:15"), "10:15")
    assert (request.window, request.until_us) == (None, None)


def test_a_backfill_is_exactly_its_interval() -> None:
    request = ask("backfill", ("10:00", "10:15"), "10:00")
    assert request.window == Window(us("10:00"), us("10:15"))
    assert request.end_us == us("10:15")


def test_a_backfill_s_interval_is_exact_although_airflow_would_have_inferred_the_same() -> None:
    assert ask("backfill", ("10:00", "10:15"), "10:15").window == Window(us("10:00"), us("10:15"))


def test_of_a_coarser_table_each_bar_is_asked_for_by_the_interval_in_which_it_closes() -> None:
    asked = [
        ask("backfill", (start, end), start, grid_us=HOUR_US)
        for start, end in (("10:00", "10:15"), ("10:15", "10:30"), ("10:30", "10:45"), ("10:45", "11:00"))
    ]
    assert [request.is_idle for request in asked] == [True, True, True, False]
    assert asked[3].window == Window(us("10:00"), us("11:00"))
    assert not any(request.window for request in asked[:3])


@pytest.mark.parametrize("run_type", ["manual", "scheduled", "backfill"])
def test_dates_of_a_person_are_exact_whatever_the_run(run_type: str) -> None:
    request = ask(run_type, ("22:00", "22:15"), "22:00", start="2026-02-10T10:00:00Z", end="2026-02-10T11:30:00+00:00")
    assert request.window == Window(us("10:00"), us("11:30"))


def test_a_zone_other_than_utc_says_the_same() -> None:
    assert ask(start="2026-02-10T12:00:00+02:00", end="2026-02-10T05:15:00-05:00").window == Window(
        us("10:00"), us("10:15")
    )


def test_empty_parameters_are_no_parameters() -> None:
    request = ask(start="", end=None, tables=[], mode=None, allow_shrink=[])
    assert request == Request(None, None)
    assert request.wants("bronze_trades_kraken")


def test_named_tables_leave_the_others_alone() -> None:
    request = ask(tables=["bronze_trades_kraken"], mode="plan", allow_shrink=["17:20", "4:0"])
    assert request.wants("bronze_trades_kraken")
    assert not request.wants("bronze_trades_binance")
    assert (request.mode, request.allow_shrink) == ("plan", {17: 20, 4: 0})


# -- bad input -------------------------------------------------------------------------------------------------------

GOOD_START, GOOD_END = "2026-02-10T10:00:00Z", "2026-02-10T11:00:00Z"


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"begin": GOOD_START}, r"unknown parameter begin: allowed are tables, start, end, mode, allow_shrink"),
        ({"b": 1, "a": 2}, r"unknown parameter a, b: "),
        ({"start": GOOD_START}, r"start and end go together: give both, or neither"),
        ({"end": GOOD_END}, r"start and end go together"),
        ({"start": "2026-02-10T10:00:00", "end": GOOD_END}, r"'2026-02-10T10:00:00' .* naive time .* write the zone"),
        ({"start": "2026-02-10", "end": GOOD_END}, r"parameter start='2026-02-10' is not a time with a zone"),
        ({"start": "yesterday", "end": GOOD_END}, r"parameter start='yesterday' is not a time with a zone"),
        ({"start": 1_770_717_600, "end": GOOD_END}, r"parameter start=1770717600 is not a time"),
        ({"start": True, "end": GOOD_END}, r"parameter start=True is not a time"),
        ({"start": False, "end": GOOD_END}, r"parameter start=False is not a time"),
        ({"start": ["2026"], "end": GOOD_END}, r"parameter start=\['2026'\] is not a time"),
        ({"start": "2026-13-10T10:00:00Z", "end": GOOD_END}, r"start='2026-13-10T10:00:00Z' .* month"),
        ({"start": GOOD_END, "end": GOOD_START}, r"end=2026-02-10T10:00:00Z must come after start=.*11:00"),
        ({"start": GOOD_START, "end": GOOD_START}, r"must come after start="),
        ({"start": "2026-02-10T10:07:00Z", "end": GOOD_END}, r"10:07:00Z is not on the table's grid of 15"),
        ({"start": GOOD_START, "end": "2026-02-10T11:00:00.000001Z"}, r"parameter end=.* is not on the table's grid"),
        ({"start": "2016-02-10T00:00:00Z", "end": GOOD_END}, r"longer than 5 years: ask for it in parts"),
        ({"mode": "dry"}, r"parameter mode='dry' is not allowed: write one of normal, plan"),
        ({"mode": ["plan"]}, r"parameter mode=\['plan'\] is not allowed"),
        ({"mode": True}, r"parameter mode=True is not allowed"),
        ({"mode": False}, r"parameter mode=False is not allowed"),
        ({"mode": 0}, r"parameter mode=0 is not allowed"),
        ({"tables": ["bronze_trades_ftx"]}, r"names unknown bronze_trades_ftx: known are bronze_trades_b"),
        ({"tables": "bronze_trades_kraken"}, r"parameter tables='bronze_trades_kraken' must be a list"),
        ({"tables": [1]}, r"parameter tables=\[1\] must be a list of table names"),
        ({"tables": {"bronze_trades_kraken": 1}}, r"must be a list of table names"),
        ({"tables": ["BRONZE_TRADES_KRAKEN"]}, r"names unknown BRONZE_TRADES_KRAKEN"),
        ({"tables": ["x' OR 1=1"]}, r"names unknown x' OR 1=1"),
        ({"allow_shrink": 17}, r'parameter allow_shrink=17 must be a list of "segment:rows", such as \["17:20"\]'),
        ({"allow_shrink": "17"}, r"allow_shrink='17' must be a list"),
        ({"allow_shrink": [True]}, r"allow_shrink=\[True\] must be a list"),
        ({"allow_shrink": ["17"]}, r"must be a list"),
        ({"allow_shrink": [17]}, r"must be a list"),
        ({"allow_shrink": ["17:-1"]}, r"must be a list"),
        ({"allow_shrink": ["17:20\n"]}, r"must be a list"),
        ({"allow_shrink": ["17:20", "17:3"]}, r"names a segment twice"),
        ({"allow_shrink": ["1.0:1"]}, r"must be a list"),
        ({"allow_shrink": ["0:1"]}, r"must be a list"),
        ({"allow_shrink": ["-3:1"]}, r"must be a list"),
    ],
)  # fmt: skip
def test_a_bad_parameter_is_refused_by_name(params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence) as refused:
        ask(**params)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("1800-01-01T00:00:00Z", "1800-01-02T00:00:00Z"),
        ("2299-12-31T00:00:00Z", "2300-01-02T00:00:00Z"),
        ("9999-12-31T00:00:00Z", "9999-12-31T23:45:00Z"),
        ("0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00+13:00"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"),
        ("9999-12-31T23:45:00-14:00", "9999-12-31T23:45:00Z"),
    ],
)
def test_a_time_that_no_window_reaches_is_a_bad_request_too(start: str, end: str) -> None:
    with pytest.raises(BadRequest, match=r"parameter (start|end)="):
        ask(start=start, end=end)


@given(st.text(max_size=30) | st.integers() | st.floats() | st.booleans() | st.lists(st.text(max_size=3), max_size=2))
def test_whatever_is_given_as_a_time_is_a_time_or_a_bad_request(value: Any) -> None:
    try:
        instant = parse_instant("start", value)
    except BadRequest:
        return
    assert instant is None or MIN_US <= instant <= MAX_US


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(["tables", "start", "end", "mode", "allow_shrink", "x"]), JSON, max_size=4),
)
def test_any_json_as_parameters_is_understood_or_refused(params: dict[str, Any]) -> None:
    try:
        request = ask(**params)
    except BadRequest:
        return
    assert request.mode in ("normal", "plan")
    assert request.tables is None or request.tables <= TABLES


# -- what is compared ------------------------------------------------------------------------------------------------


def windows(request: Request, **changes: Any) -> tuple[list[Window], int]:
    """Windows to compare for a table of quarters whose every row up to 09:00 is published; it is 12:00:30."""
    values: dict[str, Any] = {
        "now_us": us("12:00:30"),
        "grid_us": QUARTER_US,
        "lateness_us": MINUTE_US,
        "late_horizon_us": 2 * HOUR_US,
        "origin_us": us("00:00"),
        "watermark_us": us("09:00"),
        "compared_to_us": us("09:00"),
        "last_rows_us": us("09:00"),
    }
    return windows_to_compare(request, **{**values, **changes})


UNTIL_TEN = Request(None, us("10:00"))


def test_a_scheduled_run_looks_back_over_the_late_horizon() -> None:
    assert windows(UNTIL_TEN) == ([Window(us("07:00"), us("10:00"))], us("10:00"))


def test_the_late_horizon_reaches_back_from_the_last_comparison_after_an_outage() -> None:
    assert windows(UNTIL_TEN, compared_to_us=us("06:00"), watermark_us=us("06:00"), last_rows_us=us("06:00"))[0] == [
        Window(us("04:00"), us("10:00"))
    ]


def test_a_comparison_further_than_this_run_goes_does_not_shorten_the_horizon() -> None:
    assert windows(UNTIL_TEN, compared_to_us=us("11:00"))[0] == [Window(us("08:00"), us("10:00"))]


def test_rows_that_came_after_a_long_silence_are_found_where_the_silence_began() -> None:
    """Empty windows were recorded while nothing arrived; what arrived late fills them, beyond the horizon."""
    asked = windows(UNTIL_TEN, watermark_us=us("09:45"), compared_to_us=us("09:45"), last_rows_us=us("03:15"))
    assert asked[0] == [Window(us("03:15"), us("10:00"))]


def test_a_watermark_that_fell_back_is_where_the_run_starts() -> None:
    assert windows(UNTIL_TEN, watermark_us=us("01:30"))[0] == [Window(us("01:30"), us("10:00"))]


def test_a_table_never_compared_starts_at_its_origin() -> None:
    never = {"watermark_us": None, "compared_to_us": None, "last_rows_us": None}
    assert windows(UNTIL_TEN, **never)[0] == [Window(us("00:00"), us("10:00"))]


def test_nothing_before_the_origin_is_compared() -> None:
    assert windows(UNTIL_TEN, origin_us=us("08:00"))[0] == [Window(us("08:00"), us("10:00"))]


def test_a_source_that_was_always_empty_is_not_compared() -> None:
    assert windows(UNTIL_TEN, origin_us=None)[0] == []
    assert windows(Request(Window(us("08:00"), us("09:00")), None), origin_us=None)[0] == []


def test_a_manual_run_ends_a_lateness_before_now_on_the_grid() -> None:
    """At 12:00:30, with a lateness of a minute, the quarter up to 12:00 is still left alone."""
    assert windows(Request(None, None))[1] == us("11:45")
    assert windows(Request(None, None), now_us=us("12:01"))[1] == us("12:00")


def test_no_run_looks_beyond_now() -> None:
    assert windows(Request(None, us("18:00")))[1] == us("12:00")
    assert windows(Request(Window(us("11:00"), us("18:00")), None))[0] == [Window(us("11:00"), us("12:00"))]
    assert windows(Request(Window(us("13:00"), us("18:00")), None))[0] == []


def test_an_exact_request_is_compared_and_nothing_else() -> None:
    asked = Request(Window(us("02:00"), us("02:15")), None)
    assert windows(asked, watermark_us=us("01:00"), last_rows_us=us("01:00")) == ([asked.window], us("02:15"))


def test_an_interval_in_which_no_bar_closes_compares_nothing() -> None:
    assert windows(Request(None, None, is_idle=True))[0] == []


OPTIONAL = st.none() | st.integers(-10 * DAY_US, 10 * DAY_US)


@given(
    request=st.builds(Request, st.none(), st.none() | st.integers(-5 * DAY_US, 15 * DAY_US)),
    now_us=st.integers(-DAY_US, 12 * DAY_US),
    grid_us=st.sampled_from([MINUTE_US, QUARTER_US, HOUR_US, DAY_US]),
    late_horizon_us=st.integers(0, 3 * DAY_US),
    origin_us=st.integers(-10, 10).map(lambda day: day * DAY_US),
    watermark_us=OPTIONAL,
    compared_to_us=OPTIONAL,
    last_rows_us=OPTIONAL,
)
def test_a_run_from_the_watermark_leaves_no_gap_and_stays_on_the_grid(
    request: Request,
    now_us: int,
    grid_us: int,
    late_horizon_us: int,
    origin_us: int,
    watermark_us: int | None,
    compared_to_us: int | None,
    last_rows_us: int | None,
) -> None:
    found, until_us = windows_to_compare(
        request,
        now_us=now_us,
        grid_us=grid_us,
        lateness_us=MINUTE_US,
        late_horizon_us=late_horizon_us,
        origin_us=origin_us,
        watermark_us=watermark_us,
        compared_to_us=compared_to_us,
        last_rows_us=last_rows_us,
    )
    assert until_us <= now_us
    assert until_us % grid_us == 0
    known = [origin_us if us is None else us for us in (watermark_us, last_rows_us)]
    compared = until_us if compared_to_us is None else min(until_us, compared_to_us)
    reach_us = max(origin_us, min(*known, compared - late_horizon_us))  # the watermark, the last rows, the horizon
    if not found:
        assert reach_us >= until_us
        return
    (window,) = found
    assert window.end_us == until_us
    assert window.start_us % grid_us == 0
    assert origin_us <= window.start_us <= reach_us


def test_five_years_are_enough_for_a_request() -> None:
    start = to_us(datetime(2020, 1, 1, tzinfo=UTC))
    end = floor_us(start + MAX_REQUEST_US, QUARTER_US)
    longest = ask(start=format_us(start), end=format_us(end))
    assert longest.window == Window(start, end)
