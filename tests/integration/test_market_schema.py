"""The schema over real exchanges' messages: Silver holds what Bronze holds, and a bar what Silver holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from stack.clickhouse import schema_files
from tests.comparer import connect_clickhouse
from tests.market import EPOCH, WIDTHS_S, Delivery, Market, bars, binance, coinbase, forget, kraken, message_id

CENT = Decimal("0.00000001")
INGESTION = ("ingestion_timestamp", "processed_at")


def first_day_us() -> int:
    """Return the start of a day that no retention of these tests reaches, in microseconds."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today - timedelta(days=3) - EPOCH) // timedelta(microseconds=1)


DAY_US = first_day_us()


@pytest.fixture(scope="module")
def markets(environment: dict[str, str]) -> Iterator[list[Market]]:
    made: list[Market] = []
    yield made
    if made:
        forget(made)


@pytest.fixture
def market(environment: dict[str, str], markets: list[Market]) -> Market:
    markets.append(Market(environment))
    return markets[-1]


def check_bars(market: Market) -> None:
    """Assert that every bar of every width is the bar that Silver's rows make."""
    silver = market.silver()
    for name, width_s in WIDTHS_S.items():
        found = market.rows(f"k2.ohlcv_{name}")
        assert sorted(found, key=lambda bar: (bar["exchange"], bar["canonical_symbol"], bar["window_start"])) == bars(
            silver, width_s
        )


# -- every bar equals its recomputation ------------------------------------------------------------------------------

MINUTE, DAY = 60_000_000, 86_400_000_000
EDGES = [
    edge + step for edge in (0, MINUTE, 5 * MINUTE, 15 * MINUTE, 60 * MINUTE, DAY) for step in (0, 1000, -1, -1000)
]
MOMENTS = st.sampled_from([moment for moment in EDGES if moment >= 0]) | st.integers(0, 2 * DAY)
PRICES = st.integers(1, 10**13).map(lambda units: str(Decimal(units).scaleb(-8)))
TRADES = st.tuples(st.sampled_from(["binance", "kraken", "coinbase"]), st.integers(1, 12), MOMENTS, PRICES, PRICES)
# Which trade of those sent before comes again, and with which price: its own or a corrected one.
AGAIN = st.tuples(st.integers(0, 1000), st.none() | PRICES)
BLOCKS = st.tuples(st.lists(TRADES, min_size=1, max_size=10), st.lists(AGAIN, max_size=6), st.booleans())


def _delivery(market: Market, exchange: str, number: int, at_us: int, price: str, quantity: str) -> Delivery:
    """Return a trade of the market; Binance cuts the moment to milliseconds."""
    at_us += DAY_US
    if exchange == "binance":
        return binance(f"{market.base}USDT", number, at_us, price, quantity, is_sell=bool(number % 2))
    if exchange == "coinbase":
        return coinbase(f"{market.base}-USD", number, at_us, price, quantity)
    return kraken(f"{market.base}/USD", number, (at_us, price, quantity, "b"), (at_us, quantity, price, "s"))


# Without shrinking: each try costs a second, and an example is short as it is.
@settings(
    max_examples=15, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(blocks=st.lists(BLOCKS, min_size=1, max_size=4))
def test_every_bar_is_what_silver_makes_of_it(
    environment: dict[str, str], markets: list[Market], blocks: list[Any]
) -> None:
    """Trades come in any order, late, twice and corrected (the same number and moment, another price)."""
    market = Market(environment)
    markets.append(market)
    sent: list[tuple[Any, ...]] = []
    expected: dict[tuple[Any, ...], tuple[Decimal, Decimal]] = {}
    for new, again, is_merged in blocks:
        sent += new
        old = [(sent[index % len(sent)], price) for index, price in again]
        trades = [*new, *((*trade[:3], price or trade[3], trade[4]) for trade, price in old)]
        market.deliver(*(_delivery(market, *trade) for trade in trades))
        for trade in trades:
            expected.update(_expected(*trade))
        if is_merged:
            market.merge()
    found = {
        (row["exchange"], int(row["trade_id"].partition("-")[2]), _us(row["timestamp"]) - DAY_US): row
        for row in market.silver()
    }
    assert {key: (row["price"], row["quantity"]) for key, row in found.items()} == expected
    for row in found.values():
        exact = row["price"] * row["quantity"]
        assert row["quote_volume"] == exact.quantize(CENT, ROUND_HALF_UP)
    check_silver_is_bronze(market)
    check_bars(market)
    market.merge()
    check_bars(market)


def _expected(exchange: str, number: int, at_us: int, price: str, quantity: str) -> dict[tuple[Any, ...], Any]:
    """Return price and quantity of the Silver rows that a delivery makes, by exchange, number and moment."""
    values = (Decimal(price), Decimal(quantity))
    if exchange == "kraken":
        first = number << 16
        return {(exchange, first, at_us): values, (exchange, first + 1, at_us): values[::-1]}
    return {(exchange, number, at_us // 1000 * 1000 if exchange == "binance" else at_us): values}


def _us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def check_silver_is_bronze(market: Market) -> None:
    """Assert that of every trade the same delivery survives in both layers."""
    bronze = {
        (exchange, row["symbol"], row["exchange_timestamp"], row["sequence_number"]): [
            row[name] for name in ("price", "quantity", "quote_volume", "kafka_offset", "ingestion_timestamp")
        ]
        for exchange in ("binance", "kraken", "coinbase")
        for row in market.rows(f"k2.bronze_trades_{exchange} FINAL")
    }
    silver = {
        (row["exchange"], row["symbol"], row["timestamp"], int(row["trade_id"].partition("-")[2])): [
            row[name] for name in ("price", "quantity", "quote_volume", "platform_sequence", "ingestion_timestamp")
        ]
        for row in market.silver()
    }
    assert silver == bronze


def test_the_same_offset_in_two_partitions_is_two_messages(market: Market) -> None:
    """Kraken numbers nothing, and its topic has three partitions: none of their trades may take another's place."""
    pair = f"{market.base}/EUR"
    market.deliver(
        *(replace(kraken(pair, 7, (DAY_US, "1.5", "2", "b"), (DAY_US, "1.6", "2", "s")), partition=n) for n in (0, 1)),
        replace(kraken(pair, 7, (DAY_US + 1, "1.5", "2", "b")), partition=2),
        replace(kraken(pair, (1 << 38) - 1, (DAY_US, "1.7", "2", "b")), partition=511),
    )
    market.merge()
    numbers = [(n << 54) + (7 << 16) + index for n, index in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))]
    wanted = [*numbers, (511 << 54) + (((1 << 38) - 1) << 16)]
    assert sorted(row["sequence_number"] for row in market.rows("k2.bronze_trades_kraken FINAL")) == wanted
    assert wanted[-1] < 2**63, "the registry holds it as a long"
    silver = market.silver()
    assert sorted(row["trade_id"] for row in silver) == sorted(f"KRAKEN-{number}" for number in wanted)
    assert len({row["message_id"] for row in silver}) == len(wanted)


@pytest.mark.parametrize(("partition", "offset"), [(512, 7), (0, 1 << 38)])
def test_a_place_that_has_no_number_of_its_own_is_refused(market: Market, partition: int, offset: int) -> None:
    with pytest.raises(DatabaseError, match="too large for a sequence number"):
        market.deliver(replace(kraken(f"{market.base}/EUR", offset, (DAY_US, "1.5", "2", "b")), partition=partition))
    assert market.rows("k2.bronze_trades_kraken") == []


def test_what_comes_twice_changes_nothing_but_when_it_came(market: Market) -> None:
    trades = [
        binance(f"{market.base}USDT", 1, DAY_US, "1.5", "2"),
        kraken(f"{market.base}/EUR", 1, (DAY_US, "1.5", "2", "b"), (DAY_US, "1.5", "2", "b")),
        coinbase(f"{market.base}-USD", 1, DAY_US, "1.5", "2"),
    ]
    market.deliver(*trades)
    before, bars_before = market.silver(), market.rows("k2.ohlcv_1m")
    market.deliver(*trades)
    market.deliver(*trades)

    def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [{name: value for name, value in row.items() if name not in INGESTION} for row in rows]
        return sorted(kept, key=lambda row: row["trade_id"])

    assert len(before) == 4
    assert timeless(market.silver()) == timeless(before)
    assert sorted(map(str, market.rows("k2.ohlcv_1m"))) == sorted(map(str, bars_before))


def test_a_correction_moves_the_bar_back(market: Market) -> None:
    """What an incremental view can't do: subtract what it has counted."""
    symbol = f"{market.base}USDT"
    market.deliver(binance(symbol, 1, DAY_US, "10", "1"), binance(symbol, 2, DAY_US + 1000, "99", "5"))
    market.deliver(binance(symbol, 2, DAY_US + 1000, "11", "1"))
    (bar,) = market.rows("k2.ohlcv_1d")
    assert [bar[name] for name in ("open", "high", "low", "close", "volume", "trade_count")] == [10, 11, 10, 11, 2, 2]


# -- what Silver says of a trade -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exchange", "symbol", "canonical", "currency"),
    [
        ("binance", "{}USDT", "{}/USDT", "USDT"),
        ("binance", "{}FDUSD", "{}/FDUSD", "FDUSD"),
        ("binance", "{}TUSD", "{}/TUSD", "TUSD"),
        ("binance", "{}USD", "{}/USD", "USD"),
        ("binance", "{}BTC", "{}/BTC", "BTC"),
        ("binance", "USDT{}BNB", "USDT{}/BNB", "BNB"),
        ("binance", "{}QQQ", "{}QQQ", ""),
        ("kraken", "{}/USD", "{}/USD", "USD"),
        ("kraken", "XBT/{}", "BTC/{}", "{}"),
        ("kraken", "{}/XBT", "{}/BTC", "BTC"),
        ("kraken", "XDG/{}", "DOGE/{}", "{}"),
        ("kraken", "AXBT/{}", "AXBT/{}", "{}"),
        ("kraken", "{}", "{}", ""),
        ("coinbase", "{}-USD", "{}/USD", "USD"),
        ("coinbase", "BTC-{}", "BTC/{}", "{}"),
        ("coinbase", "{}-PERP-INTX", "{}/PERP/INTX", ""),
    ],
)
def test_a_symbol_becomes_canonical(market: Market, exchange: str, symbol: str, canonical: str, currency: str) -> None:
    symbol, canonical, currency = (each.format(market.base) for each in (symbol, canonical, currency))
    market.deliver(
        {
            "binance": binance(symbol, 1, DAY_US, "1", "1"),
            "kraken": kraken(symbol, 1, (DAY_US, "1", "1", "b")),
            "coinbase": coinbase(symbol, 1, DAY_US, "1", "1"),
        }[exchange]
    )
    (row,) = market.silver()
    assert (row["symbol"], row["canonical_symbol"], row["currency"]) == (symbol, canonical, currency)
    assert row["validation_errors"] == ([] if currency else ["symbol_not_recognised"])
    assert row["is_valid"] == bool(currency)


def test_a_side_is_the_taker_s_on_every_exchange(market: Market) -> None:
    """Binance says whether the buyer was the maker, Kraken the taker's side, Coinbase the maker's."""
    base = market.base
    market.deliver(
        binance(f"{base}USDT", 1, DAY_US, "1", "1", is_sell=True),
        binance(f"{base}USDT", 2, DAY_US, "1", "1", is_sell=False),
        kraken(f"{base}/USD", 1, (DAY_US, "1", "1", "s"), (DAY_US, "1", "1", "b"), (DAY_US, "1", "1", "?")),
        coinbase(f"{base}-USD", 1, DAY_US, "1", "1", side="buy"),
        coinbase(f"{base}-USD", 2, DAY_US, "1", "1", side="sell"),
        coinbase(f"{base}-USD", 3, DAY_US, "1", "1", side=""),
    )
    sides = {row["trade_id"]: row["side"] for row in market.silver()}
    assert sides == {
        "BINANCE-1": "SELL", "BINANCE-2": "BUY",
        "KRAKEN-65536": "SELL", "KRAKEN-65537": "BUY", "KRAKEN-65538": "UNKNOWN",
        "COINBASE-1": "SELL", "COINBASE-2": "BUY", "COINBASE-3": "UNKNOWN",
    }  # fmt: skip
    unknown = market.silver("side = 'UNKNOWN'")
    assert [row["validation_errors"] for row in unknown] == [["side_unknown"]] * 2
    bronze = market.rows("k2.bronze_trades_coinbase FINAL")
    assert {row["sequence_number"]: row["side"] for row in bronze} == {1: "buy", 2: "sell", 3: ""}


def test_every_column_of_a_trade(market: Market) -> None:
    at_us = DAY_US + 123_456
    market.deliver(
        binance(f"{market.base}USDT", 7, at_us, "1.25", "2", is_sell=True),
        kraken(f"{market.base}/EUR", 9, (at_us, "1.25", "2", "b"), (at_us, "1.25", "2", "s")),
        coinbase(f"{market.base}-USD", 11, at_us, "1.25", "2"),
    )
    rows = {row["trade_id"]: row for row in market.silver()}
    assert sorted(rows) == ["BINANCE-7", "COINBASE-11", "KRAKEN-589824", "KRAKEN-589825"]
    for trade_id, row in rows.items():
        exchange = trade_id.partition("-")[0].lower()
        moment = EPOCH + timedelta(microseconds=at_us // 1000 * 1000 if exchange == "binance" else at_us)
        assert row["message_id"] == message_id(exchange, row["symbol"], trade_id)
        assert (row["exchange"], row["asset_class"]) == (exchange, "crypto")
        assert (row["timestamp"], row["timestamp"].utcoffset()) == (moment, timedelta(0))
        assert (row["price"], row["quantity"], row["quote_volume"]) == (Decimal("1.25"), 2, Decimal("2.5"))
        assert moment < row["ingestion_timestamp"] <= row["processed_at"]
        assert (row["is_valid"], row["validation_errors"]) == (True, [])
    numbers = {name: (row["source_sequence"], row["platform_sequence"]) for name, row in rows.items()}
    assert numbers == {
        "BINANCE-7": (7, 7), "COINBASE-11": (11, 11), "KRAKEN-589824": (None, 9), "KRAKEN-589825": (None, 9),
    }  # fmt: skip
    assert {name: row["trade_conditions"] for name, row in rows.items() if row["trade_conditions"]} == {
        "BINANCE-7": ["buyer_is_maker"]
    }
    assert rows["BINANCE-7"]["vendor_data"] == {
        "symbol": f"{market.base}USDT", "side": "sell", "event_time_ms": str(at_us // 1000), "kafka_partition": "0",
    }  # fmt: skip
    assert rows["KRAKEN-589825"]["vendor_data"] == {
        "pair": f"{market.base}/EUR", "side": "s", "message_index": "1", "kafka_partition": "0",
    }  # fmt: skip
    assert rows["COINBASE-11"]["vendor_data"] == {
        "product_id": f"{market.base}-USD", "maker_side": "buy", "kafka_partition": "0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("price", "quantity", "product"),
    [
        ("0.00000001", "0.5", "0.00000001"),
        ("0.00000001", "0.49999999", "0"),
        ("1.00000001", "1.00000001", "1.00000002"),
        ("0.12345678", "0.00000005", "0.00000001"),
        ("99999999999.99999999", "3.00000003", "300000002999.99999997"),
    ],
)
def test_quote_volume_is_rounded_half_up(market: Market, price: str, quantity: str, product: str) -> None:
    market.deliver(coinbase(f"{market.base}-USD", 1, DAY_US, price, quantity))
    (row,) = market.silver()
    assert row["quote_volume"] == Decimal(product)
    assert row["quote_volume"] == (Decimal(price) * Decimal(quantity)).quantize(CENT, ROUND_HALF_UP)


def test_a_row_that_can_not_be_right_is_kept_marked_and_counted(market: Market) -> None:
    market.deliver(
        binance(f"{market.base}USDT", 1, DAY_US, "0", "-1"), binance(f"{market.base}USDT", 2, DAY_US, "5", "1")
    )
    errors = {row["trade_id"]: (row["is_valid"], row["validation_errors"]) for row in market.silver()}
    assert errors == {
        "BINANCE-1": (False, ["price_not_positive", "quantity_not_positive"]), "BINANCE-2": (True, [])
    }  # fmt: skip
    (bar,) = market.rows("k2.ohlcv_1h")
    assert (bar["low"], bar["volume"], bar["trade_count"]) == (0, 0, 2)


def test_the_channel_s_other_messages_are_no_trades(market: Market) -> None:
    texts = [
        '{"type":"subscriptions","channels":[{"name":"matches","product_ids":["X"]}]}',
        f'{{"type":"heartbeat","product_id":"{market.base}-USD","last_trade_id":1,"time":"2026-02-10T00:00:00.000000Z"}}',
        coinbase(f"{market.base}-USD", 5, DAY_US, "1", "1").text.replace('"match"', '"last_match"'),
    ]
    market.deliver(*(Delivery("coinbase", offset, text) for offset, text in enumerate(texts)))
    market.deliver(coinbase(f"{market.base}-USD", 5, DAY_US, "1", "1"))
    (row,) = market.silver()
    assert row["source_sequence"] == 5


# -- the tables themselves -------------------------------------------------------------------------------------------


def test_the_schema_applied_again_changes_nothing(market: Market) -> None:
    market.deliver(binance(f"{market.base}USDT", 1, DAY_US, "1", "1"))
    statement = "SELECT name, uuid, create_table_query FROM system.tables WHERE database = 'k2' ORDER BY name"
    before = market.client.query(statement).result_rows
    for file in schema_files("embedded"):
        market.client.command(file.read_text())
    assert market.client.query(statement).result_rows == before
    assert len(market.silver()) == 1


def test_the_offload_s_user_reads_every_table_and_view_and_changes_none(
    environment: dict[str, str], market: Market
) -> None:
    market.deliver(binance(f"{market.base}USDT", 1, DAY_US, "1", "1"))
    client = connect_clickhouse(
        market.url, environment["COLDCHAIN_CLICKHOUSE_USER"], environment["COLDCHAIN_CLICKHOUSE_PASSWORD"]
    )
    for source in ("silver_trades", *(f"ohlcv_{name}" for name in WIDTHS_S)):
        statement = f"SELECT count() FROM k2.{source} WHERE canonical_symbol = '{market.base}/USDT'"
        assert client.query(statement).result_rows == [(1,)]
    for statement in (
        "DROP VIEW k2.ohlcv_1m",
        "INSERT INTO k2.silver_trades (trade_id) VALUES ('x')",
        "SELECT * FROM k2.bronze_trades_kraken_queue",
    ):
        with pytest.raises(Exception, match=r"readonly|privileges"):
            client.command(statement)
    client.close()


@pytest.mark.parametrize("name", WIDTHS_S)
def test_a_condition_on_a_bar_s_start_reads_only_its_days(market: Market, name: str) -> None:
    days = 5
    market.deliver(*(binance(f"{market.base}USDT", n, DAY_US - n * DAY, "1", "1") for n in range(days)))
    start = EPOCH + timedelta(microseconds=DAY_US)
    bounds = f"window_start >= '{start:%F %T}' AND window_start < '{start + timedelta(days=1):%F %T}'"
    explain = f"EXPLAIN indexes = 1 SELECT * FROM k2.ohlcv_{name} WHERE {bounds}"
    plan = [row[0] for row in market.client.query(explain).result_rows]
    parts = next(line for line in plan if line.strip().startswith("Parts: ") and "/" in line).split()[1]
    read, there = (int(number) for number in parts.split("/"))
    assert 0 < read <= there - (days - 1)
    assert any("in [" in line and "Condition" in line for line in plan)
