"""Quality checks: each is broken by what it is for, blocks or warns as the registry says, and leaves its finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from coldchain import proof
from coldchain.core import checks
from coldchain.core.checks import Counter
from coldchain.core.errors import ProofFailed
from coldchain.core.request import Request
from coldchain.core.table import TableSpec
from coldchain.core.windows import HOUR_US, MINUTE_US, Window, to_us
from coldchain.lake import head_of, live_files
from coldchain.registry import load_registry
from tests.lab import DAY, Lab, Steps, yesterday
from tests.market import Market, binance, forget

START = yesterday()
MINUTE = timedelta(minutes=1)

# The lab's rows: notes are NULL where seq % 3 == 0, ratios where seq is odd, small = seq % 100 - 50.
CASES = [
    ({"not_null": ["note"]}, "not_null note", 3, " by 3 rows"),
    ({"unique": True}, "unique (symbol, ts, seq)", 1, " by 1 rows"),
    ({"range": {"small": {"min": -48}}}, "range small (min -48)", 2, " by 2 rows"),
    ({"range": {"price": {"min": 0, "max": 1.25}}}, "range price (min 0 and max 1.25)", 11, " by 11 rows"),
    ({"range": {"ratio": {"max": 1}}}, "range ratio (max 1)", 2, " by 2 rows"),
    ({"accepted": {"symbol": ["BTC'USD", "ETH"]}}, "accepted symbol", 11, " by 11 rows"),
    ({"accepted": {"note": ["note 1", "note 2", "note 4"]}}, "accepted note", 4, " by 4 rows"),
    ({"monotonic": {"column": "seq", "by": ["symbol"]}}, "monotonic seq by symbol", 1, " by 1 rows"),
    ({"rows": {"min": 12}}, "rows", 96, ": 11 rows, allowed are 12 to any number"),
    ({"rows": {"max": 10}}, "rows", 1, ": 11 rows, allowed are 0 to 10"),
]


def fill(lab: Lab) -> None:
    """Insert ten rows, seq 1 to 10 a minute apart, and the first again at its own time: sequence 4 comes late."""
    lab.keep_doubles()
    lab.insert(
        (START + number * MINUTE, number) for number in (1, 2, 3, 5, 4, 6, 7, 8, 9, 10) for _ in [0] if number != 4
    )
    lab.insert([(START + 5.5 * MINUTE, 4)])
    lab.insert([(START + 1 * MINUTE, 1)])


def found(lab: Lab, event: str) -> list[dict[str, Any]]:
    """Return the checks that the newest event of a kind recorded."""
    return next(a.detail["checks"] for a in lab.ledger.attempts(lab.name, "test/run") if a.event == event)


@pytest.mark.parametrize(("wanted", "name", "broken", "words"), CASES, ids=[case[1] for case in CASES])
def test_a_broken_check_blocks_and_says_what_it_found(
    lab: Lab, wanted: dict[str, Any], name: str, broken: int, words: str
) -> None:
    lab.spec = replace(lab.spec, checks=wanted)
    fill(lab)
    reading = lab.read()
    lab.offload(reading)
    with pytest.raises(ProofFailed) as raised:
        lab.finish(reading)
    assert f"check {name} is broken{words}; nothing was published" in str(raised.value)
    table = lab.lake.require(lab.spec.target)
    assert live_files(table, head_of(table)) == {}
    (summary,) = found(lab, "failed")
    assert (summary["name"], summary["severity"], summary["broken"]) == (name, "block", broken)


@pytest.mark.parametrize(("wanted", "name", "broken", "words"), CASES, ids=[case[1] for case in CASES])
def test_a_check_that_only_warns_lets_the_window_pass_and_leaves_its_finding(
    lab: Lab, wanted: dict[str, Any], name: str, broken: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    lab.spec = replace(lab.spec, checks={**wanted, "warn": [*wanted]})
    fill(lab)
    lab.run()
    assert [s.fingerprint.rows for s in lab.ledger.segments(lab.name) if s.state == "published"] == [11]
    (summary,) = found(lab, "validated")
    assert (summary["name"], summary["severity"], summary["broken"]) == (name, "warn", broken)
    assert any(f"check {name} is broken{words}; published all the same" in text for text in caplog.messages)


@pytest.mark.parametrize("batch_rows", [1, 7, 1_000])
def test_a_count_that_may_be_too_high_is_counted_again_exactly(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    """As if every key shared its hash with another: what is unique passes, what is not is told as it is."""
    monkeypatch.setattr(proof, "BATCH_ROWS", batch_rows)
    colliding = partial(_collide, checks.row_counters)
    monkeypatch.setattr(checks, "row_counters", colliding)
    lab.spec = replace(lab.spec, checks={"unique": True})
    lab.keep_doubles()
    lab.insert_many(START - 3 * DAY, 24 * 4, HOUR_US)
    lab.run()
    assert [each["broken"] for each in found(lab, "validated")] == [0]
    assert sum(segment.fingerprint.rows for segment in lab.ledger.segments(lab.name)) == 24 * 4
    lab.insert([(START + MINUTE, 1), (START + MINUTE, 1)])
    with pytest.raises(ProofFailed, match=r"unique \(symbol, ts, seq\) is broken by 1 rows"):
        lab.run(run_key="test/doubled")


def _collide(original: Callable[[TableSpec], list[Counter]], spec: TableSpec) -> list[Counter]:
    return [replace(counter, expression="count()") for counter in original(spec)]


def test_checks_that_hold_pass_and_are_recorded(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.spec = replace(
        lab.spec,
        checks={
            "not_null": ["symbol", "price"],
            "unique": True,
            "range": {"price": {"min": 1.5, "max": 1.5}, "small": {"min": -50, "max": 49}},
            "accepted": {"symbol": ["XRPETH"]},
            "monotonic": {"column": "seq"},
            "rows": {"max": 15},
        },
    )
    lab.insert_many(START, 60, int(MINUTE_US))
    with caplog.at_level("INFO", logger="coldchain"):
        lab.run()
    rows, *others = [(each["broken"], each["windows"]) for each in found(lab, "validated")]
    assert others == [(0, 1)] * 7
    assert rows == (0, 96), "every window of the grid by itself, though all of the day was staged as one"
    assert sum("passed" in text and "block" in text for text in caplog.messages) == 8
    lab.check_equal(60)


@pytest.mark.parametrize("engine", ["MergeTree", "ReplacingMergeTree"])
def test_balance_compares_with_other_tables_in_the_same_window(lab: Lab, engine: str) -> None:
    other = f"{lab.name}_other"
    lab.execute(
        f"CREATE TABLE k2.{other} (at DateTime64(3, 'UTC'), amount Decimal(38, 8)) ENGINE = {engine} ORDER BY at"
    )
    lab.insert_many(START, 4, int(MINUTE_US))  # 1.5 each
    balance = {"tables": [f"k2.{other}"], "time": "at", "within": "9d"}
    lab.spec = replace(
        lab.spec, checks={"balance": {**balance, "sum": "price", "equals": "amount"}, "warn": ["balance"]}
    )
    at = to_us(START) // 1000
    for millis, amount in ((0, 5), (1, 1), (-1, 9), (-2, 9)):
        lab.execute(f"INSERT INTO k2.{other} VALUES (fromUnixTimestamp64Milli({at + millis}, 'UTC'), {amount})")
    lab.run()
    assert [each["broken"] for each in found(lab, "validated")] == [0], "6.00000000 equals 6"
    lab.spec = replace(lab.spec, checks={"balance": balance})
    lab.insert([(START + timedelta(minutes=9), 99)])
    reading = lab.read()
    lab.offload(reading)
    with pytest.raises(ProofFailed, match=rf"check balance rows is broken: rows 5, k2.{other} hold 2; nothing"):
        lab.finish(reading)
    lab.execute(f"DROP TABLE k2.{other} SYNC")


def test_what_the_other_tables_have_forgotten_is_not_compared(lab: Lab) -> None:
    checks = {"balance": {"tables": [lab.spec.source], "time": "ts", "within": "1h"}}
    lab.spec = replace(lab.spec, checks=checks)
    lab.insert_many(START, 4, int(MINUTE_US))
    lab.run()
    assert found(lab, "validated") == []


def test_a_trade_that_never_reached_silver_is_found(environment: dict[str, str]) -> None:
    """By the check `balance` as it is shipped: Silver is asked for what its three sources hold of the same window."""
    market = Market(environment)
    symbol, at_us = f"{market.base}USDT", to_us(START - timedelta(days=3, hours=5))
    market.deliver(*(binance(symbol, number, at_us + number * 1000, "1.5", "2") for number in (1, 2)))
    market.client.command(
        f"ALTER TABLE k2.silver_trades DELETE WHERE symbol = '{symbol}' AND trade_id = 'BINANCE-2' "
        "SETTINGS mutations_sync = 2"
    )
    name = f"silver_{market.base.lower()}"
    spec = replace(load_registry().table("silver_trades"), name=name, target=f"cold.{name}", depends_on=())
    steps = Steps(environment, spec)
    try:
        steps.run(Request(Window(at_us, at_us + 15 * MINUTE_US), None))
        events = steps.ledger.attempts(name, "test/run")
        (balance,) = [
            each for event in events if event.event == "validated" for each in event.detail["checks"]
            if each["kind"] == "balance"
        ]  # fmt: skip
        assert (balance["severity"], balance["windows"], balance["broken"]) == ("warn", 1, 1)
    finally:
        steps.ledger.close()
        forget([market])
