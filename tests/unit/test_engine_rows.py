"""What a table does to its rows by itself: which engines merge them, and when its TTLs take them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from coldchain.core.engine import Ttl, column_ttls, merges_rows, raw_complaint, retention_complaint, table_ttls
from coldchain.core.windows import DAY_US, HOUR_US, MINUTE_US, duration_text, duration_us
from tests.unit.engine import spec

MERGING = [
    f"{prefix}{kind}MergeTree"
    for kind in ("Replacing", "Summing", "Aggregating", "Collapsing", "VersionedCollapsing", "Graphite", "Coalescing")
    for prefix in ("", "Replicated", "Shared")
]
TABLE = "MergeTree PARTITION BY toYYYYMM(ts) ORDER BY (a, ts) TTL {} SETTINGS index_granularity = 8192"


@pytest.mark.parametrize("engine", MERGING)
def test_rows_that_are_not_merged_yet_are_not_read_raw(engine: str) -> None:
    said = raw_complaint(spec(), engine)
    assert said is not None
    assert f"table=t: k2.t is a {engine}, whose rows are not final" in said
    assert "write read: final, or read: select" in said
    assert [raw_complaint(replace(spec(), read=read), engine) for read in ("final", "select")] == [None, None]


@pytest.mark.parametrize(
    "engine", ["MergeTree", "ReplicatedMergeTree", "SharedMergeTree", "View", "Memory", "Log", "Distributed"]
)
def test_rows_that_stand_as_they_were_inserted_are_read_raw(engine: str) -> None:
    assert not merges_rows(engine)
    assert raw_complaint(spec(), engine) is None


# What follows TTL in system.tables, as ClickHouse 24.5 and 26.9 print it.
UNDERSTOOD = [
    ("ts + toIntervalDay(7)", [("rows", "ts", 7 * DAY_US)]),
    ("`ts` + toIntervalSecond(90)", [("rows", "ts", 90_000_000)]),
    ("toDateTime(ts) + toIntervalHour(36)", [("rows", "ts", 36 * HOUR_US)]),
    ("toDateTime(ts, 'UTC') + toIntervalWeek(2)", [("rows", "ts", 14 * DAY_US)]),
    ("toDateTime64(ts, 3, 'Asia/Tokyo') + toIntervalMinute(5)", [("rows", "ts", 5 * MINUTE_US)]),
    ("addDays(toDateTime(ts), 7)", [("rows", "ts", 7 * DAY_US)]),
    ("ts + INTERVAL 7 DAY DELETE", [("rows", "ts", 7 * DAY_US)]),
    ("ts + toIntervalMonth(1)", [("rows", "ts", 28 * DAY_US)]),
    ("ts + toIntervalMonth(13)", [("rows", "ts", (365 + 28) * DAY_US)]),
    ("ts + toIntervalQuarter(1)", [("rows", "ts", 89 * DAY_US)]),
    ("ts + toIntervalYear(2)", [("rows", "ts", 730 * DAY_US)]),
    ("toDate(ts) + toIntervalDay(7)", [("rows", "ts", 6 * DAY_US)]),
    ("toStartOfDay(ts) + toIntervalHour(25)", [("rows", "ts", HOUR_US)]),
    ("ts + toIntervalDay(3) TO VOLUME 'cold', ts + toIntervalDay(90)", [("rows", "ts", 90 * DAY_US)]),
    ("ts + toIntervalDay(3) TO DISK 'cold'", []),
    ("ts + toIntervalDay(2) RECOMPRESS CODEC(ZSTD(9)), ts + toIntervalDay(30)", [("rows", "ts", 30 * DAY_US)]),
    (
        "ts + toIntervalDay(7) WHERE s = 'a, TTL SETTINGS', ts + toIntervalDay(30)",
        [("some rows", "ts", 7 * DAY_US), ("rows", "ts", 30 * DAY_US)],
    ),
    ("ts + toIntervalDay(7) GROUP BY a SET v = any(v)", [("some rows", "ts", 7 * DAY_US)]),
]  # fmt: skip
NOT_UNDERSTOOD = [
    "ts",
    "toDateTime(ts) + (86400 * 3)",
    "ts + toIntervalDay(7 * 2)",
    "toDateTime(if(s = 'a', ts, b)) + toIntervalDay(5)",
    "toStartOfMonth(ts) + toIntervalMonth(1)",
    "toDate(ts) + toIntervalDay(1)",
    "ts + toIntervalFortnight(1)",
    "ts + toIntervalDay(7) - toIntervalHour(1)",
    "greatest(ts, b) + toIntervalDay(7)",
]


@pytest.mark.parametrize(("text", "wanted"), UNDERSTOOD)
def test_a_ttl_says_how_long_a_row_is_there_and_whole(text: str, wanted: list[tuple[str, str, int]]) -> None:
    found = table_ttls(TABLE.format(text))
    assert [(ttl.goes, ttl.column, ttl.after_us) for ttl in found] == wanted


@pytest.mark.parametrize("text", NOT_UNDERSTOOD)
def test_a_ttl_that_is_not_certain_is_told_as_such(text: str) -> None:
    (found,) = table_ttls(TABLE.format(text))
    assert (found.text, found.goes, found.after_us) == (text, "rows", None)


def test_what_is_no_ttl_of_a_table_is_not_taken_for_one() -> None:
    assert table_ttls("MergeTree ORDER BY (`TTL`, ts) SETTINGS index_granularity = 8192") == ()
    assert table_ttls("MergeTree ORDER BY (TTL, ts)") == ()
    assert table_ttls("") == ()


def test_columns_have_ttls_of_their_own() -> None:
    found = column_ttls([("v", "ts + toIntervalDay(1)"), ("w", ""), ("x", "b")])
    assert [(ttl.goes, ttl.column, ttl.after_us) for ttl in found] == [
        ("column v", "ts", DAY_US),
        ("column x", None, None),
    ]


WEEK, MONTH = Ttl("ts + 7d", "rows", "ts", 7 * DAY_US), Ttl("ts + 30d", "rows", "ts", 30 * DAY_US)
DAY, ODD, OTHER = Ttl("ts + 1d", "column v", "ts", DAY_US), Ttl("f(ts)", "rows"), Ttl("b + 1d", "rows", "b", DAY_US)


@pytest.mark.parametrize(
    ("retention", "ttls", "words"),
    [
        ("7d", [WEEK], None),
        ("167h", [WEEK], None),
        (None, [], None),
        ("7d", [], None),
        ("1d", [DAY, MONTH], None),
        ("9d", [ODD, OTHER], None),
        ("8d", [WEEK], r"retention=8d in the registry, but TTL ts \+ 7d of k2.t can take rows after 7d: write .* 7d"),
        (None, [WEEK], r"retention=null in the registry, but TTL ts \+ 7d of k2.t can take rows after 7d"),
        ("30d", [MONTH, DAY], r"retention=30d in the registry, but TTL ts \+ 1d of k2.t can take column v after 1d"),
        ("31d", [ODD, MONTH], r"but TTL ts \+ 30d"),
        (None, [ODD], r"k2.t has TTL f\(ts\), and no retention stands in the registry: write how long after its ts"),
        (None, [OTHER], "has TTL b .* and no retention"),
    ],
)
def test_a_retention_beyond_the_server_s_ttl_is_refused(
    retention: str | None, ttls: list[Ttl], words: str | None
) -> None:
    table = replace(spec(), retention_us=None if retention is None else duration_us(retention))
    said = retention_complaint(table, ttls)
    assert said is None if words is None else re.search(words, said or ""), said


def test_a_view_is_held_against_the_ttl_of_the_table_that_it_reaches() -> None:
    view = replace(spec(), extent=("k2.silver", "b"), retention_us=2 * DAY_US)
    said = retention_complaint(view, [OTHER, WEEK])
    assert said is not None
    assert "TTL b + 1d of k2.silver can take rows after 1d" in said


@pytest.mark.parametrize("text", ["1s", "90s", "15m", "36h", "7d"])
def test_a_duration_is_written_as_it_is_read(text: str) -> None:
    assert duration_text(duration_us(text)) == text
