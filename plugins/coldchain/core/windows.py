"""Half-open windows of event time, in whole microseconds since 1970 UTC, and the algebra over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
_DURATIONS_US = {"s": 1_000_000, "m": MINUTE_US, "h": HOUR_US, "d": DAY_US}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What timestamptz, DateTime64(6) and Python's datetime can all hold.
MIN_US = -2_208_988_800_000_000  # 1900-01-01
MAX_US = 10_413_792_000_000_000  # 2300-01-01


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """The half-open interval `[start_us, end_us)`; never empty, within 1900 to 2300."""

    start_us: int
    end_us: int

    def __post_init__(self) -> None:
        if not MIN_US <= self.start_us < self.end_us <= MAX_US:
            raise ValueError(f"not a window: start_us={self.start_us} end_us={self.end_us}; start must come before end")

    def __str__(self) -> str:
        return f"[{format_us(self.start_us)}, {format_us(self.end_us)})"

    def overlaps(self, other: Window) -> bool:
        """Tell whether the two share an instant; windows that only touch do not."""
        return self.start_us < other.end_us and other.start_us < self.end_us

    def covers(self, other: Window) -> bool:
        """Tell whether every instant of `other` lies in this window."""
        return self.start_us <= other.start_us and other.end_us <= self.end_us


def steps(window: Window, step_us: int) -> Iterator[Window]:
    """Cut a window at the multiples of a step."""
    start_us = window.start_us
    while start_us < window.end_us:
        end_us = min(floor_us(start_us, step_us) + step_us, window.end_us)
        yield Window(start_us, end_us)
        start_us = end_us


def duration_us(text: str) -> int:
    """Read a duration such as `15m` or `7d`, in microseconds."""
    return int(text[:-1]) * _DURATIONS_US[text[-1]]


def duration_text(us: int) -> str:
    """Write a duration of whole seconds, in microseconds, as `duration_us` reads it."""
    unit = next((unit for unit, size in reversed(_DURATIONS_US.items()) if us % size == 0), "s")
    return f"{us // _DURATIONS_US[unit]}{unit}"


def to_us(moment: datetime) -> int:
    """Convert an aware datetime to microseconds since 1970, exactly; a naive one raises ValueError."""
    if moment.tzinfo is None:
        raise ValueError(f"naive time {moment.isoformat()}: write the zone, for example {moment.isoformat()}Z")
    return (moment - EPOCH) // timedelta(microseconds=1)


def to_datetime(us: int) -> datetime:
    """Convert microseconds since 1970 to an aware datetime in UTC, exactly."""
    return EPOCH + timedelta(microseconds=us)


def format_us(us: int) -> str:
    """Write an instant as ISO 8601 in UTC, without a fraction where there is none."""
    return to_datetime(us).isoformat().replace("+00:00", "Z")


def floor_us(us: int, grid_us: int) -> int:
    """Round down to a multiple of the grid, also before 1970."""
    return us - us % grid_us


def ceil_us(us: int, grid_us: int) -> int:
    """Round up to a multiple of the grid, also before 1970."""
    return us + -us % grid_us


def merge(windows: Iterable[Window]) -> list[Window]:
    """Sort, and join what overlaps or touches."""
    merged: list[Window] = []
    for window in sorted(windows):
        if merged and window.start_us <= merged[-1].end_us:
            merged[-1] = Window(merged[-1].start_us, max(merged[-1].end_us, window.end_us))
        else:
            merged.append(window)
    return merged


def subtract(wanted: Iterable[Window], done: Iterable[Window]) -> list[Window]:
    """Return what `wanted` covers and `done` does not, sorted and merged."""
    gaps = []
    covered = merge(done)
    position = 0
    for window in merge(wanted):
        start = window.start_us
        while position < len(covered) and covered[position].end_us <= start:
            position += 1
        at = position
        while at < len(covered) and covered[at].start_us < window.end_us:
            if start < covered[at].start_us:
                gaps.append(Window(start, covered[at].start_us))
            start = covered[at].end_us
            at += 1
        if start < window.end_us:
            gaps.append(Window(start, window.end_us))
    return gaps


def next_day_us(us: int) -> int:
    """Return the first midnight UTC after the instant."""
    return floor_us(us, DAY_US) + DAY_US


def next_month_us(us: int) -> int:
    """Return the first start of a month, UTC, after the instant."""
    moment = to_datetime(us)
    year, month = divmod(moment.year * 12 + moment.month, 12)
    return to_us(datetime(year, month + 1, 1, tzinfo=UTC))


def window_of_partition(unit: str, number: int) -> Window | None:
    """Return the window of Iceberg's time partition, counted from 1970; `unit` is its transform. None: not by time."""
    if unit == "day":
        return Window(number * DAY_US, (number + 1) * DAY_US)
    if unit == "month":
        start_us = to_us(datetime(1970 + number // 12, number % 12 + 1, 1, tzinfo=UTC))
        return Window(start_us, next_month_us(start_us))
    return None


NEXT_EDGE = {"day": next_day_us, "month": next_month_us}


def split_at_partitions(window: Window, unit: str) -> Iterator[Window]:
    """Cut a window at the edges of Iceberg's time partitions; `unit` is `day` or `month`."""
    start = window.start_us
    while start < window.end_us:
        end = min(NEXT_EDGE[unit](start), window.end_us)
        yield Window(start, end)
        start = end
