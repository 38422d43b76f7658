"""What facts mean for a person."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from coldchain.core.windows import DAY_US, HOUR_US, MINUTE_US
from coldchain.registry import load_registry
from coldchain.ui import status
from coldchain.ui.queries import Facts, SegmentRow

NOW = datetime(2026, 2, 10, 12, 7, tzinfo=UTC)
SPEC = replace(load_registry().tables[0], grid_us=15 * MINUTE_US, lateness_us=MINUTE_US, retention_us=7 * DAY_US)


def facts(**changes: Any) -> Facts:
    """A healthy table: published up to noon."""
    made: dict[str, Any] = dict.fromkeys(Facts.__slots__)
    made |= {
        "name": SPEC.name, "state": "success", "failures": 0, "rows_today": 0, "bytes_today": 0, "covered_above_s": 0.0,
        "expired": 0, "publishing": 0, "foreign_files": 0, "unequal": 0, "last_event": "committed",
        "origin": NOW - timedelta(days=3),
        "watermark": datetime(2026, 2, 10, 12, tzinfo=UTC),
    }  # fmt: skip
    return Facts(**(made | changes))


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "on time"),
        ({"watermark": NOW - timedelta(minutes=31)}, "on time"),
        ({"watermark": NOW - timedelta(minutes=31, seconds=1)}, "late"),
        ({"state": "failed"}, "failed"),
        ({"expired": 1}, "expired"),
        ({"expired": 1, "state": "failed"}, "failed"),
        ({"state": "failed", "failed_kind": "SchemaDrift"}, "drifted"),
        ({"state": "failed", "failed_kind": "ProofFailed"}, "quarantined"),
        ({"state": "failed", "failed_kind": "Unavailable", "unequal": 2}, "failed"),
        ({"failed_kind": "SchemaDrift"}, "on time"),  # it has succeeded since
        ({"unequal": 2}, "differs"),
        ({"foreign_files": 1, "watermark": NOW - timedelta(days=1)}, "blocked"),
        ({"state": "running"}, "running"),
        ({"watermark": None, "origin": None}, "on time"),  # the source is empty
        ({"watermark": None}, "late"),
        ({"last_event": None}, "never run"),
    ],
)
def test_a_table_is_in_one_state(changes: dict[str, Any], state: str) -> None:
    assert status.judge(SPEC, facts(**changes), NOW).state == state


def test_a_bar_is_late_by_its_own_grid() -> None:
    hourly = replace(SPEC, grid_us=HOUR_US)
    assert status.limit_s(hourly) == 3600 + 60 + 900
    assert status.judge(hourly, facts(watermark=NOW - timedelta(minutes=75)), NOW).state == "on time"
    minutely = replace(SPEC, grid_us=MINUTE_US)
    assert status.limit_s(minutely) == 900 + 60 + 900, "the schedule is what makes it wait"


def test_headroom_is_what_is_left_of_the_retention() -> None:
    late = facts(watermark=NOW - timedelta(days=6, hours=1))
    assert status.judge(SPEC, late, NOW).headroom_s == 23 * 3600
    # A grid of a day makes a table of a short retention lag without being late.
    daily = replace(SPEC, grid_us=DAY_US, retention_us=2 * DAY_US)
    row = status.judge(daily, facts(watermark=NOW - timedelta(hours=24, minutes=10)), NOW)
    assert row.state == "at risk"
    assert status.judge(replace(SPEC, retention_us=None), late, NOW).headroom_s is None


def test_windows_that_are_due_and_holes_are_counted_on_the_grid() -> None:
    row = status.judge(SPEC, facts(watermark=NOW - timedelta(hours=2, minutes=7)), NOW)
    assert (row.windows_pending, row.windows_missing) == (8, 0)
    row = status.judge(
        SPEC,
        facts(watermark=datetime(2026, 2, 10, 10, tzinfo=UTC), covered_above_s=3600.0,
              end_above=datetime(2026, 2, 10, 11, 30, tzinfo=UTC)),
        NOW,
    )  # fmt: skip
    assert (row.windows_pending, row.windows_missing) == (4, 2)


def test_days_show_segments_and_what_is_between_them() -> None:
    day = datetime(2026, 2, 10, tzinfo=UTC)

    def segment(start_h: float, end_h: float, rows: int) -> SegmentRow:
        start, end = (day + timedelta(hours=hours) for hours in (start_h, end_h))
        return SegmentRow(1, start, end, "published" if rows else "empty", rows, "5", "v", 1, 1, 77, day)

    found = status.table_cells(
        SPEC, facts(origin=day), [segment(-2, 3, 10), segment(4, 6, 0)], day, day + timedelta(days=1), NOW
    )
    kinds = [(cell.kind, round(cell.x * 0.24, 2), round((cell.x + cell.width) * 0.24, 2)) for cell in found]
    assert kinds == [
        ("published", 0, 3), ("missing", 3, 4), ("empty", 4, 6), ("missing", 6, 11.75), ("pending", 11.75, 12),
    ]  # fmt: skip
    assert "10 rows, fingerprint 5, snapshot 77" in found[0].said
    assert status.rows_of(found, day, day + timedelta(days=1)) == [("2026-02-10", found)]
