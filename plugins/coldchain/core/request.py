"""Which stretch of time a run is asked for: decided from its own data interval and parameters, never from `now()`.

| run                                   | asked for                                                    |
|---------------------------------------|--------------------------------------------------------------|
| scheduled                             | from the watermark to `data_interval_end`, plus late horizon |
| manual without dates                  | the same, up to `floor(now - lateness, grid)`                |
| backfill, or manual with start / end  | exactly `[start, end)`                                       |
| cleared, retried                      | the same as the first time                                   |
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from coldchain.core.errors import BadRequest
from coldchain.core.windows import MAX_US, MIN_US, MINUTE_US, Window, floor_us, format_us, to_us

PARAMETERS = ("tables", "start", "end", "mode", "allow_shrink")
MODES = ("normal", "plan")
APPROVAL = r"[1-9][0-9]{0,17}:[0-9]{1,18}"  # segment id, rows that the source must still hold
QUARTER_US = 15 * MINUTE_US
MAX_REQUEST_US = 5 * 366 * 86_400_000_000
LONGEST_QUOTE = 200


@dataclass(frozen=True, slots=True)
class Request:
    """What a run is asked for. `window` is exact; without one the run goes from the watermark to `until_us`.

    `until_us` is None for a manual run without dates: the source's clock decides, once it is asked.
    """

    window: Window | None
    until_us: int | None
    tables: frozenset[str] | None = None
    mode: str = "normal"
    allow_shrink: Mapping[int, int] = field(default_factory=dict)  # by segment: rows that the source must still hold
    is_idle: bool = False
    is_between_bars: bool = False  # a scheduled run in whose interval no bar of the table's grid ends

    @property
    def end_us(self) -> int | None:
        """The instant before which the run does not look, or None for 'now'."""
        return self.window.end_us if self.window else self.until_us

    def wants(self, table: str) -> bool:
        """Tell whether the run's parameters name the table, or none."""
        return self.tables is None or table in self.tables


_QUOTING = reprlib.Repr()
_QUOTING.maxstring = _QUOTING.maxother = LONGEST_QUOTE


def shown(value: Any) -> str:
    """Quote what was given, but neither at length nor in depth: a sentence goes into logs, ledger and messages."""
    return _QUOTING.repr(value)


def _listed(names: Iterable[str]) -> str:
    return shown(", ".join(sorted(names)))[1:-1]


def refuse_unknown(params: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuse parameters that nobody reads: Airflow takes any, and a word that is misspelt would widen what is done."""
    if unknown := set(params) - set(allowed):
        raise BadRequest(f"unknown parameter {_listed(unknown)}: allowed are {', '.join(allowed)}", "unknown")


def parse_instant(name: str, value: Any) -> int | None:
    """Read a parameter as an ISO 8601 instant with a zone, in microseconds; BadRequest says what is wrong with it."""
    if value is None or value == "":
        return None
    try:
        instant_us = to_us(datetime.fromisoformat(value))
    except (TypeError, ValueError) as error:
        raise BadRequest(
            f"parameter {name}={shown(value)} is not a time with a zone, such as 2026-02-10T00:00:00Z: "
            f"{str(error)[:LONGEST_QUOTE]}",
            name,
        ) from None
    if not MIN_US <= instant_us <= MAX_US:
        raise BadRequest(
            f"parameter {name}={shown(value)} must lie between {format_us(MIN_US)} and {format_us(MAX_US)}", name
        )
    return instant_us


def _parse_window(start: int | None, end: int | None, grid_us: int) -> Window | None:
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise BadRequest(
            "parameters start and end go together: give both, or neither", "start" if start is None else "end"
        )
    if end <= start:
        raise BadRequest(f"parameter end={format_us(end)} must come after start={format_us(start)}", "end")
    if end - start > MAX_REQUEST_US:
        raise BadRequest(f"[{format_us(start)}, {format_us(end)}) is longer than 5 years: ask for it in parts", "start")
    step_us = min(grid_us, QUARTER_US)  # one request serves tables of every grid
    for name, value in (("start", start), ("end", end)):
        if value % step_us:
            minutes = step_us // 60_000_000
            raise BadRequest(
                f"parameter {name}={format_us(value)} is not on the table's grid of {minutes} minutes", name
            )
    return Window(start, end)


def _is_inferred(logical_date: datetime | None, start: datetime, end: datetime) -> bool:
    """Tell whether Airflow made up the interval of a manual run: the last complete quarter hour before it."""
    if logical_date is None:
        return False
    quarter = timedelta(minutes=15)
    last = logical_date.astimezone(UTC) - (logical_date.astimezone(UTC) - datetime.min.replace(tzinfo=UTC)) % quarter
    return (start, end) == (last - quarter, last)


def make_request(
    *,
    run_type: str,
    data_interval: tuple[datetime, datetime] | None,
    logical_date: datetime | None,
    params: Mapping[str, Any],
    known_tables: frozenset[str],
    grid_us: int,
) -> Request:
    """Decide what a run is asked for.

    Args:
        run_type: Airflow's: `scheduled`, `manual`, `backfill` or `asset_triggered`.
        data_interval: the run's own, None for a run without a logical date.
        logical_date: the run's own.
        params: `tables`, `start`, `end`, `mode`, `allow_shrink`; all optional, no others.
        known_tables: names of the registry.
        grid_us: the table's grid.

    Raises:
        BadRequest: naming the parameter, its value and what is allowed.
    """
    refuse_unknown(params, PARAMETERS)
    mode = "normal" if params.get("mode") in (None, "") else params["mode"]
    if mode not in MODES:
        raise BadRequest(f"parameter mode={shown(mode)} is not allowed: write one of {', '.join(MODES)}", "mode")
    window = _parse_window(
        parse_instant("start", params.get("start")), parse_instant("end", params.get("end")), grid_us
    )
    until_us, is_idle, is_between_bars = None, False, False
    if window is None and data_interval is not None:
        start, end = data_interval
        is_exact = run_type == "backfill" or (run_type == "manual" and not _is_inferred(logical_date, start, end))
        if is_exact and start < end:
            window = Window(to_us(start), to_us(end))
        elif run_type == "scheduled":
            until_us = floor_us(to_us(end), grid_us)
            is_between_bars = until_us == floor_us(to_us(start), grid_us)
    if window is not None:
        closed = floor_us(window.start_us, grid_us), floor_us(window.end_us, grid_us)
        is_idle = closed[0] == closed[1]  # no bar of a coarser grid ends in it
        window = None if is_idle else Window(*closed)
    return Request(
        window=window,
        until_us=until_us,
        tables=_parse_tables(params.get("tables"), known_tables),
        mode=mode,
        allow_shrink=_parse_approvals(params.get("allow_shrink")),
        is_idle=is_idle,
        is_between_bars=is_between_bars,
    )


def _parse_tables(value: Any, known: frozenset[str]) -> frozenset[str] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise BadRequest(
            f"parameter tables={shown(value)} must be a list of table names, such as {sorted(known)[:1]}", "tables"
        )
    if unknown := set(value) - known:
        raise BadRequest(
            f"parameter tables names unknown {_listed(unknown)}: known are {', '.join(sorted(known))}", "tables"
        )
    return frozenset(value)


def _parse_approvals(value: Any) -> dict[int, int]:
    if value is None:
        return {}
    if not isinstance(value, list) or not all(isinstance(each, str) and re.fullmatch(APPROVAL, each) for each in value):
        raise BadRequest(
            f'parameter allow_shrink={shown(value)} must be a list of "segment:rows", such as ["17:20"]: segments that '
            "may shrink, each with the rows that the source must still hold",
            "allow_shrink",
        )
    approvals = {int(number): int(rows) for number, rows in (each.split(":") for each in value)}
    if len(approvals) < len(value):
        raise BadRequest(f"parameter allow_shrink={shown(value)} names a segment twice", "allow_shrink")
    return approvals


def end_us(request: Request, now_us: int, grid_us: int, lateness_us: int) -> int:
    """Return the instant, on the grid, up to which a run looks, as far as upstreams let it."""
    wanted_us = now_us - lateness_us if request.end_us is None else request.end_us
    return floor_us(min(wanted_us, now_us), grid_us)


def windows_to_compare(
    request: Request,
    *,
    now_us: int,
    grid_us: int,
    lateness_us: int,
    late_horizon_us: int,
    origin_us: int | None,
    watermark_us: int | None,
    compared_to_us: int | None,
    last_rows_us: int | None,
    upstream_us: int | None = None,
) -> tuple[list[Window], int]:
    """Decide what a run compares with the source, before widening to whole segments, and up to where.

    The late horizon reaches back from the last comparison, and at least to where a trailing run of empty windows
    starts, so that rows that arrived while nothing looked are found.

    Args:
        request: what the run is asked for.
        now_us: the source's clock; it caps every run, and decides only the manual run without dates.
        grid_us: the table's grid; both ends of what is returned lie on it.
        lateness_us: how long after a window's end a manual run leaves it alone.
        late_horizon_us: how far back late rows are found.
        origin_us: day of the oldest row ever seen; None for a source that was always empty.
        watermark_us: everything before it is done.
        compared_to_us: end of the last comparison of which every finding is published.
        last_rows_us: end of the last published window that holds rows.
        upstream_us: up to where the tables that this one is made of are published; None where there are none.
    """
    until_us = end_us(request, now_us, grid_us, lateness_us)
    if upstream_us is not None:
        until_us = floor_us(min(until_us, upstream_us), grid_us)
    if request.is_idle or origin_us is None:
        return [], until_us
    if request.window is not None:
        start_us = max(request.window.start_us, origin_us)  # nothing is older than the origin
    else:
        start_us = min(until_us, compared_to_us if compared_to_us is not None else origin_us) - late_horizon_us
        start_us = min(start_us, *(us if us is not None else origin_us for us in (watermark_us, last_rows_us)))
        start_us = floor_us(max(origin_us, start_us), grid_us)
    return ([Window(start_us, until_us)] if start_us < until_us else []), until_us
