"""What the loader knows before it loads: whose rows are whose, how many there must be, and when it is too late."""

from datetime import UTC, date, datetime, timedelta

import pytest

from stack import load
from stack.errors import StackError
from stack.generate import streams
from stack.load import STREAM_OFFSET

LAST_DAY = date(2026, 2, 9)
BAR_S = {"1m": 60, "5m": 300, "15m": 900, "30m": 1800, "1h": 3600, "1d": 86400}


def test_the_feeds_hold_what_is_promised() -> None:
    feeds = [load._binance(LAST_DAY), *load._kraken(LAST_DAY), load._coinbase(LAST_DAY)]
    assert [(feed.table, feed.symbols, feed.trades) for feed in feeds] == [
        ("k2.bronze_trades_binance", ("XRPETH",), 12_477),
        ("k2.bronze_trades_kraken", ("BCH/EUR",), 585),
        ("k2.bronze_trades_kraken", ("XBT/USD",), 2),
        ("k2.bronze_trades_coinbase", ("BTC-USD", "ETH-USD"), 3_000),
    ]
    assert all(feed.first.date() > LAST_DAY - load.RETENTION / 2 for feed in feeds), "far from every retention"


def test_no_two_messages_of_a_topic_share_an_offset_and_the_stream_comes_after_them() -> None:
    for feeds in ([load._binance(LAST_DAY)], load._kraken(LAST_DAY), [load._coinbase(LAST_DAY)]):
        offsets = [message.offset for feed in feeds for message in feed.messages]
        assert offsets == list(range(len(offsets)))
        assert len(offsets) < STREAM_OFFSET


def test_a_feed_s_rows_are_told_from_the_stream_s_of_the_same_symbol() -> None:
    bitcoin = load._kraken(LAST_DAY)[1]
    assert set(bitcoin.symbols) <= set(streams(1000)[1].symbols)
    assert bitcoin.condition == f"symbol IN ('XBT/USD') AND kafka_offset < {STREAM_OFFSET}"


def test_the_widths_of_the_bars_are_their_names() -> None:
    assert load.BARS == BAR_S


def test_rows_that_would_expire_at_once_are_refused() -> None:
    load.refuse_expired("k2.t", datetime.now(UTC) - timedelta(days=6))
    with pytest.raises(StackError, match=r"k2\.t has lost rows .* older than its retention of 7 days"):
        load.refuse_expired("k2.t", datetime.now(UTC) - timedelta(days=7))


@pytest.mark.parametrize("present", [0, 584, 586])
def test_a_lost_or_doubled_trade_is_named(present: int) -> None:
    load.check_loaded("k2.t", 585, 585)
    with pytest.raises(StackError, match=rf"k2\.t holds {present} rows after 585 trades"):
        load.check_loaded("k2.t", present, 585)
