"""Trades become each exchange's own messages: the shipped ones whole, the generated ones always the same."""

import hashlib
import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from stack import messages
from stack.messages import BinanceTrade, KrakenTrade

DATA = Path(__file__).parents[2] / "include" / "data"
LAST_DAY = date(2026, 2, 9)


@pytest.fixture(scope="module")
def binance() -> list[BinanceTrade]:
    return messages.read_binance(DATA / "binance_xrpeth_trades.csv.gz")


@pytest.fixture(scope="module")
def kraken() -> list[KrakenTrade]:
    return messages.read_kraken(DATA / "kraken_bcheur_trades.csv.gz")


def test_the_files_hold_what_is_promised(binance: list[BinanceTrade], kraken: list[KrakenTrade]) -> None:
    assert len(binance) == 12_477
    assert len({trade.trade_id for trade in binance}) == 12_477
    assert len(kraken) == 585
    assert len({trade.time_s for trade in kraken}) == 340


def test_a_binance_message_has_the_exchange_s_own_form() -> None:
    trade = BinanceTrade(13519807, 1570752011620, "sell", "0.00141342", "23.00000000")
    (message,) = messages.binance_messages([trade], timedelta(0))
    assert message.offset == 0
    assert message.text == (
        '{"e":"trade","E":1570752011620,"s":"XRPETH","t":13519807,"p":"0.00141342","q":"23.00000000",'
        '"T":1570752011620,"m":true,"M":true}'
    )


def test_a_buy_is_a_trade_whose_buyer_was_not_the_maker() -> None:
    (message,) = messages.binance_messages([BinanceTrade(1, 0, "buy", "1", "1")], timedelta(0))
    assert json.loads(message.text)["m"] is False


def test_binance_keeps_every_trade_with_offsets_from_zero(binance: list[BinanceTrade]) -> None:
    made = messages.binance_messages(binance, timedelta(days=1))
    assert [message.offset for message in made] == list(range(12_477))
    kept = [json.loads(message.text) for message in made]
    assert [(each["t"], each["p"], each["q"]) for each in kept] == [(t.trade_id, t.price, t.quantity) for t in binance]
    assert {each["T"] - trade.time_ms for each, trade in zip(kept, binance, strict=True)} == {86_400_000}


def test_kraken_trades_of_one_second_share_messages_of_at_most_three() -> None:
    trades = [KrakenTrade(100, str(price), "1.5") for price in range(4)] + [KrakenTrade(101, "9", "2")]
    made = [json.loads(message.text) for message in messages.kraken_messages(trades, timedelta(0))]
    assert made == [
        [337, [["0", "1.5", "100.000000", "b", "m", ""], ["1", "1.5", "100.000000", "s", "m", ""],
               ["2", "1.5", "100.000000", "b", "l", ""]], "trade", "BCH/EUR"],
        [337, [["3", "1.5", "100.000000", "s", "l", ""]], "trade", "BCH/EUR"],
        [337, [["9", "2", "101.000000", "b", "m", ""]], "trade", "BCH/EUR"],
    ]  # fmt: skip


def test_kraken_keeps_every_trade_under_a_sequence_number_of_its_own(kraken: list[KrakenTrade]) -> None:
    made = messages.kraken_messages(kraken, timedelta(0))
    keys = [(m.offset << 16) + index for m in made for index, _trade in enumerate(json.loads(m.text)[1])]
    assert len(set(keys)) == 585
    parsed = [(trade[0], trade[1], trade[2]) for m in made for trade in json.loads(m.text)[1]]
    assert Counter(parsed) == Counter((t.price, t.volume, f"{t.time_s}.000000") for t in kraken)


@pytest.mark.parametrize(
    "moment", ["2019-10-13T00:00:00+00:00", "2019-10-13T23:59:59.999+00:00", "2026-02-09T12:00:00+00:00"]
)
def test_a_shift_is_of_whole_days_and_ends_on_the_day(moment: str) -> None:
    last = datetime.fromisoformat(moment)
    shift = messages.shift_between(last.timestamp(), LAST_DAY)
    assert shift % timedelta(days=1) == timedelta(0)
    assert (last + shift).astimezone(UTC).date() == LAST_DAY


def test_rows_for_a_landing_table_carry_offset_and_partition(kraken: list[KrakenTrade]) -> None:
    made = messages.kraken_messages(kraken[:2], timedelta(0))
    rows = [json.loads(line) for line in messages.as_rows(made).splitlines()]
    assert rows == [{"message": m.text, "_offset": m.offset, "_partition": 0} for m in made]


def test_coinbase_s_matches_are_the_same_for_the_same_day() -> None:
    made = messages.coinbase_messages(LAST_DAY)
    assert made == messages.coinbase_messages(LAST_DAY)
    digest = hashlib.sha256("\n".join(message.text for message in made).encode()).hexdigest()
    assert digest == "fb1085652c04b49cadd2b45b5ea5c70c0a0ee9c7cb725c4025ea0fe00e6929f4"


def test_coinbase_s_messages_have_the_exchange_s_own_form() -> None:
    made = messages.coinbase_messages(LAST_DAY)
    matches = [json.loads(message.text) for message in made]
    assert len(matches) == messages.COINBASE_TRADES
    assert [message.offset for message in made] == list(range(len(made)))
    names = "type trade_id maker_order_id taker_order_id side size price product_id sequence time"
    assert list(matches[0]) == names.split()
    assert {each["type"] for each in matches} == {"match"}
    assert {each["side"] for each in matches} == {"buy", "sell"}
    assert all(Decimal(each["price"]) > 0 and Decimal(each["size"]) > 0 for each in matches)
    assert all("E" not in each["size"] for each in matches), "no exponent: the exchange writes plain decimals"


def test_coinbase_s_trades_are_numbered_by_product_and_lie_within_the_day() -> None:
    matches = [json.loads(message.text) for message in messages.coinbase_messages(LAST_DAY)]
    times = [datetime.fromisoformat(each["time"]) for each in matches]
    assert times == sorted(times)
    assert {moment.date() for moment in times} == {LAST_DAY}
    assert any(moment.microsecond % 1000 for moment in times)
    sequences = [each["sequence"] for each in matches]
    assert sequences == sorted(set(sequences))
    for product, (_price, _step, first) in messages.COINBASE_PRODUCTS.items():
        ids = [each["trade_id"] for each in matches if each["product_id"] == product]
        assert ids == list(range(first + 1, first + 1 + len(ids)))
        assert len(ids) > 1000


def test_kraken_s_generated_message_names_bitcoin_its_own_way() -> None:
    message = messages.kraken_bitcoin_message(LAST_DAY, 375)
    _channel, trades, kind, pair = json.loads(message.text)
    assert (message.offset, kind, pair) == (375, "trade", "XBT/USD")
    assert len(trades) == 2
    at = datetime(2026, 2, 9, 12, tzinfo=UTC).timestamp()
    assert {trade[2] for trade in trades} == {f"{int(at)}.123456"}
