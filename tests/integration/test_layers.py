"""Layers: a table is never ahead of what it is made of; views, own SELECTs and partitions by text are sources too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coldchain import protocol
from coldchain.core.errors import SchemaDrift
from coldchain.core.request import Request
from coldchain.core.windows import HOUR_US, MINUTE_US, to_us
from coldchain.lake import head_of, live_files
from tests.lab import Lab, yesterday

QUARTER, HOUR = timedelta(minutes=15), timedelta(hours=1)
START = yesterday()

BARS = """
    SELECT symbol, toStartOfInterval(ts, INTERVAL 1 HOUR, 'UTC') AS window_start, argMin(price, (ts, seq)) AS open,
           max(price) AS high, sum(price) AS total, count() AS trades
    FROM k2.{name} FINAL GROUP BY symbol, window_start
"""
BAR: dict[str, Any] = {
    "event_time": "window_start",
    "sequence": "trades",
    "key": ("symbol", "window_start"),
    "sort_order": ("symbol", "window_start"),
    "partitioning": ("month(window_start)",),
    "read": "raw",
    "grid_us": HOUR_US,
    "types": {"trades": "long"},
}

MakeLab = Callable[..., Lab]


@pytest.fixture
def make_lab(environment: dict[str, str], tmp_path: Path) -> Iterator[MakeLab]:
    """Make tables of the test's own, with changes to their specs."""
    made: list[Lab] = []

    def make(**changes: Any) -> Lab:
        made.append(Lab(environment, tmp_path / f"lab{len(made)}", **changes))
        return made[-1]

    yield make
    for each in made:
        each.ledger.close()
        each.execute(f"DROP VIEW IF EXISTS k2.{each.name}_bars")
        each.execute(f"DROP TABLE k2.{each.name} SYNC")


def until(moment: Any) -> Request:
    """Ask as a scheduled run whose interval ends then."""
    return Request(None, to_us(moment))


@pytest.fixture
def bars(lab: Lab) -> Iterator[Lab]:
    """Make the lab's spec that of hourly bars, as a view over its table."""
    view = f"k2.{lab.name}_bars"
    lab.execute(f"CREATE VIEW {view} AS {BARS.format(name=lab.name)}")
    lab.spec = replace(lab.spec, source=view, extent=(f"k2.{lab.name}", "ts"), **BAR)
    yield lab
    lab.execute(f"DROP VIEW {view}")


def test_a_bar_is_moved_once_it_has_closed(bars: Lab) -> None:
    bars.insert_many(START, 150, int(MINUTE_US))
    bars.run(until(START + HOUR + QUARTER))
    assert [s.window for s in bars.ledger.segments(bars.name)] == [bars.window(START, START + HOUR)]
    bars.run(until(START + 3 * HOUR), run_key="test/2")
    bars.check_equal(3)


def test_a_late_trade_changes_its_bar_and_no_other(bars: Lab) -> None:
    bars.insert_many(START, 180, int(MINUTE_US))
    for hour in range(1, 4):
        bars.run(until(START + hour * HOUR), run_key=f"test/{hour}")
    before = {s.segment_id for s in bars.ledger.segments(bars.name)}
    bars.insert([(START + HOUR + timedelta(seconds=1), 9_999)], price="77")
    reading = bars.run(until(START + 4 * HOUR), run_key="test/late")
    assert [w.window for w in reading.plan.windows] == [bars.window(START + HOUR, START + 2 * HOUR)]
    assert len(before & {s.segment_id for s in bars.ledger.segments(bars.name)}) == 2
    bars.check_equal(3)


def test_between_two_bars_neither_source_nor_catalog_is_asked(bars: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    bars.insert_many(START, 90, int(MINUTE_US))
    quiet = replace(until(START + HOUR), is_between_bars=True)
    assert bars.run(quiet, run_key="test/first").work is not None, "what is missing is moved all the same"
    monkeypatch.setattr(bars, "client", None)
    monkeypatch.setattr(bars, "lake", None)
    reading = bars.read(quiet, run_key="test/quiet")
    assert reading.work is None
    assert "no bar ends in this run" in reading.sentence
    with pytest.raises(AttributeError):
        bars.read(until(START + HOUR), run_key="test/loud")


def test_a_select_of_ones_own_reads_an_aggregating_table(lab: Lab) -> None:
    lab.execute(
        f"CREATE TABLE k2.{lab.name}_agg (symbol String, window_start DateTime('UTC'), "
        "total AggregateFunction(sum, Decimal(38, 8)), trades SimpleAggregateFunction(sum, UInt64)) "
        "ENGINE = AggregatingMergeTree ORDER BY (symbol, window_start)"
    )
    lab.spec = replace(
        lab.spec,
        **BAR
        | {
            "read": "select",
            "source": f"k2.{lab.name}_agg",
            "select": f"SELECT symbol, window_start, sumMerge(total) AS total, sum(trades) AS trades "
            f"FROM k2.{lab.name}_agg WHERE window_start >= fromUnixTimestamp64Micro({{start_us:Int64}}, 'UTC') "
            "AND window_start < fromUnixTimestamp64Micro({end_us:Int64}, 'UTC') GROUP BY symbol, window_start",
        },
    )

    def insert(bar: int, price: str) -> None:
        lab.execute(
            f"INSERT INTO k2.{lab.name}_agg SELECT 'XRPETH', toDateTime({to_us(START + bar * HOUR) // 10**6}, 'UTC'), "
            f"sumState(toDecimal128('{price}', 8)), 1"
        )

    insert(0, "1.5")
    insert(0, "2.25")
    insert(1, "3")
    lab.run()
    (first,) = lab.lake.require(lab.spec.target).scan(limit=1).to_arrow().sort_by("window_start").to_pylist()
    assert (str(first["total"]), first["trades"]) == ("3.75000000", 2)
    insert(1, "4")
    lab.run(run_key="test/again")
    rows = lab.lake.require(lab.spec.target).scan().to_arrow().sort_by("window_start").to_pylist()
    assert [(str(row["total"]), row["trades"]) for row in rows] == [("3.75000000", 2), ("7.00000000", 2)]
    lab.execute(f"DROP TABLE k2.{lab.name}_agg")


# -- partitions by text ----------------------------------------------------------------------------------------------

LONG = "a symbol that is longer than what Iceberg keeps of a bound"


def test_files_lie_in_one_partition_each(make_lab: MakeLab) -> None:
    lab = make_lab(partitioning=("symbol", "day(ts)"))
    symbols = ["XRPETH", "BTC'USD", LONG]
    for number, symbol in enumerate(symbols):
        lab.insert_many(START - 2 * HOUR, 240, int(MINUTE_US), first=1000 * number + 1) if number else None
        lab.insert(((START + timedelta(minutes=n), 10_000 + n) for n in range(30)), symbol=symbol.replace("'", "\\'"))
    lab.run()
    lab.check_equal(2 * 240 + 3 * 30)
    table = lab.lake.require(lab.spec.target)
    files = live_files(table, head_of(table)).values()
    assert sorted({file.partition[0] for file in files}) == sorted(symbols)
    for file in files:
        assert file.partition[1] == (to_us(START) // (24 * HOUR_US)) or file.partition[0] == "XRPETH"
    rows = table.scan(row_filter=f"symbol == '{LONG}'").to_arrow()
    assert set(rows["symbol"].to_pylist()) == {LONG}
    assert len(rows) == 30


def test_a_late_row_of_a_new_symbol_replaces_its_segment_in_every_partition(make_lab: MakeLab) -> None:
    lab = make_lab(partitioning=("symbol", "day(ts)"))
    lab.insert_many(START, 60, int(MINUTE_US))
    lab.run()
    lab.insert([(START + timedelta(minutes=7), 500)], symbol="NEW")
    lab.run(run_key="test/late")
    lab.check_equal(61)


def test_a_partitioning_that_changed_in_the_registry_is_refused_by_name(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.insert_many(START, 10, int(MINUTE_US))
    lab.run()
    lab.spec = replace(lab.spec, partitioning=("symbol", "month(ts)"))
    with pytest.raises(SchemaDrift, match=r"the registry partitions by symbol, month\(ts\), .* by day\(ts\); nothing"):
        lab.read(run_key="test/other")


def test_a_column_that_is_not_text_can_not_partition(make_lab: MakeLab) -> None:
    lab = make_lab(partitioning=("note", "day(ts)"))
    with pytest.raises(SchemaDrift, match="partitioning by note needs a String"):
        lab.read()


def test_a_table_of_a_group_is_free_between_read_and_offload(lab: Lab) -> None:
    """Its offload begins when all of its group are read: two runs that each kept some would wait for each other."""
    lab.insert_many(START, 10, int(MINUTE_US))
    reading = protocol.read(lab.turn(), lab.source(), Request(None, None), keeps_lease=False)
    assert reading.work is not None
    assert lab.ledger.lease(lab.name).holder is None
    lab.offload(reading)
    lab.finish(reading)
    lab.check_equal(10)


# -- upstreams -------------------------------------------------------------------------------------------------------


def test_a_table_is_never_ahead_of_what_it_is_made_of(make_lab: MakeLab) -> None:
    upstream = make_lab()
    lab = make_lab(depends_on=(upstream.name,))
    for each in (upstream, lab):
        each.insert_many(START, 240, int(MINUTE_US))
    reading = lab.run()
    assert reading.work is None
    assert f"it waits for {upstream.name}, which has never been offloaded" in reading.sentence
    upstream.run(until(START + HOUR))
    reading = lab.run(until(START + 2 * HOUR), run_key="test/2")
    assert f"it waits for {upstream.name}, which is published up to" in reading.sentence
    assert lab.ledger.state(lab.name).watermark_us == to_us(START + HOUR)
    upstream.run(run_key="test/rest")
    reading = lab.run(run_key="test/3")
    assert "waits" not in reading.sentence
    lab.check_equal(240)


def test_the_slowest_of_several_upstreams_counts(make_lab: MakeLab) -> None:
    fast, slow, empty = make_lab(), make_lab(), make_lab()
    lab = make_lab(depends_on=(fast.name, slow.name, empty.name))
    for each in (fast, slow, lab):
        each.insert_many(START, 240, int(MINUTE_US))
    fast.run()
    slow.run(until(START + 2 * HOUR))
    assert "has never been offloaded" in lab.run().sentence, "an empty table counts once it has been looked at"
    empty.run()
    reading = lab.run(run_key="test/2")
    assert f"it waits for {slow.name}" in reading.sentence
    assert lab.ledger.state(lab.name).watermark_us == to_us(START + 2 * HOUR)


def test_a_backfill_needs_only_its_own_stretch_of_its_upstreams(make_lab: MakeLab) -> None:
    upstream, empty = make_lab(), make_lab()
    lab = make_lab(depends_on=(upstream.name, empty.name))
    for each in (upstream, lab):
        each.insert_many(START, 240, int(MINUTE_US))
    asked = Request(lab.window(START + 2 * HOUR, START + 3 * HOUR), None)
    for each in (upstream, empty, lab):
        each.run(asked)
    assert [s.window for s in lab.ledger.segments(lab.name)] == [asked.window]
    farther = Request(lab.window(START + 2 * HOUR, START + 4 * HOUR), None)
    reading = lab.read(farther, run_key="test/farther")
    assert reading.work is None
    assert "it waits for" in reading.sentence


def test_a_gap_of_an_upstream_caps_at_its_start(make_lab: MakeLab) -> None:
    upstream = make_lab()
    lab = make_lab(depends_on=(upstream.name,))
    for each in (upstream, lab):
        each.insert_many(START, 240, int(MINUTE_US))
    upstream.run(Request(upstream.window(START, START + HOUR), None), run_key="test/1")
    upstream.run(Request(upstream.window(START + 2 * HOUR, START + 4 * HOUR), None), run_key="test/2")
    asked = Request(lab.window(START, START + 4 * HOUR), None)
    assert protocol.upstream_us(lab.turn(), asked) == (to_us(START + HOUR), upstream.name)
