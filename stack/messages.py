"""Trades as the raw messages that their exchanges send: pure functions.

Binance's and Kraken's are shipped, and nothing is invented but what the files lack: Kraken's side and order type
alternate, and an event happens when its trade does. Coinbase's are generated, and so is Kraken's one message of
XBT/USD, which shows Kraken's own name for bitcoin: the same every time for the same day.
"""

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from random import Random
from uuid import UUID

BINANCE_SYMBOL = "XRPETH"
KRAKEN_SYMBOL = "BCH/EUR"
KRAKEN_CHANNEL = 337
KRAKEN_BITCOIN = "XBT/USD"
COINBASE_TRADES = 3_000
COINBASE_SEED = 20260210
# Price, step of its walk and first trade id of each product.
COINBASE_PRODUCTS = {
    "BTC-USD": (Decimal("88501.20"), Decimal("4.31"), 940_112_004),
    "ETH-USD": (Decimal("2491.10"), Decimal("0.37"), 731_005_617),
}
# Kraken's sequence number has 16 bits for the place in a message; a few keep several messages in one second.
TRADES_PER_MESSAGE = 3


@dataclass(frozen=True, slots=True)
class BinanceTrade:
    """One row of the Binance file; decimals stay text."""

    trade_id: int
    time_ms: int
    side: str
    price: str
    quantity: str


@dataclass(frozen=True, slots=True)
class KrakenTrade:
    """One row of the Kraken file; decimals stay text."""

    time_s: int
    price: str
    volume: str


@dataclass(frozen=True, slots=True)
class Message:
    """A raw message and its place in the (only) partition of its topic."""

    offset: int
    text: str


def read_binance(path: Path) -> list[BinanceTrade]:
    """Read the shipped Binance trades, in the order of the file."""
    return [
        BinanceTrade(int(row["trade_id"]), int(row["time_ms"]), row["side"], row["price"], row["quantity"])
        for row in _read(path)
    ]


def read_kraken(path: Path) -> list[KrakenTrade]:
    """Read the shipped Kraken trades, in the order of the file."""
    return [KrakenTrade(int(row["time_s"]), row["price"], row["volume"]) for row in _read(path)]


def shift_between(last_s: float, last_day: date) -> timedelta:
    """Return the whole days that move a time (seconds since 1970) onto ``last_day``, UTC."""
    return last_day - datetime.fromtimestamp(last_s, UTC).date()


def binance_messages(trades: Sequence[BinanceTrade], shift: timedelta) -> list[Message]:
    """Return one message per trade, offsets from 0.

    ``m`` (the buyer is the maker) is what makes a trade a sell.
    """
    shift_ms = shift // timedelta(milliseconds=1)
    return [Message(offset, _binance_text(trade, trade.time_ms + shift_ms)) for offset, trade in enumerate(trades)]


def kraken_messages(trades: Sequence[KrakenTrade], shift: timedelta) -> list[Message]:
    """Return messages of one to three trades of the same second, offsets from 0."""
    shift_s = shift // timedelta(seconds=1)
    rows = [
        [trade.price, trade.volume, f"{trade.time_s + shift_s}.000000", "bs"[i % 2], "ml"[i // 2 % 2], ""]
        for i, trade in enumerate(trades)
    ]
    texts = [
        json.dumps([KRAKEN_CHANNEL, batch, "trade", KRAKEN_SYMBOL], separators=(",", ":"))
        for _second, group in groupby(rows, key=lambda row: row[2])
        for batch in _batches(list(group))
    ]
    return [Message(offset, text) for offset, text in enumerate(texts)]


def kraken_bitcoin_message(day: date, offset: int) -> Message:
    """Return a generated message of two XBT/USD trades of one microsecond, at noon of the day."""
    at = f"{_epoch_us(day) // 1_000_000 + 12 * 3600}.123456"
    trades = [["88500.10000", "0.01000000", at, "b", "m", ""], ["88500.20000", "0.02500000", at, "s", "l", ""]]
    text = json.dumps([KRAKEN_CHANNEL, trades, "trade", KRAKEN_BITCOIN], separators=(",", ":"))
    return Message(offset, text)


def coinbase_messages(day: date) -> list[Message]:
    """Return generated messages of the `matches` channel, in order of time over the day, offsets from 0.

    A product's trade ids follow one another; `sequence` skips what the channel does not show, as the real one does.
    """
    random = Random(COINBASE_SEED)
    prices = {product: price for product, (price, _step, _first) in COINBASE_PRODUCTS.items()}
    ids = {product: first for product, (_price, _step, first) in COINBASE_PRODUCTS.items()}
    made = []
    sequence = 50_000_000_000
    for offset, at_us in enumerate(sorted(random.randrange(86_400_000_000) for _ in range(COINBASE_TRADES))):
        product = random.choice(tuple(COINBASE_PRODUCTS))
        prices[product] += random.randint(-3, 3) * COINBASE_PRODUCTS[product][1]
        ids[product] += 1
        sequence += random.randint(1, 40)
        match = {
            "type": "match",
            "trade_id": ids[product],
            "maker_order_id": str(UUID(int=random.getrandbits(128), version=4)),
            "taker_order_id": str(UUID(int=random.getrandbits(128), version=4)),
            "side": random.choice(("buy", "sell")),
            "size": str(Decimal(random.randint(1, 150_000_000)).scaleb(-8)),
            "price": str(prices[product]),
            "product_id": product,
            "sequence": sequence,
            "time": _iso(_epoch_us(day) + at_us),
        }
        made.append(Message(offset, json.dumps(match, separators=(",", ":"))))
    return made


def as_rows(messages: Sequence[Message]) -> bytes:
    """Return messages as rows of a landing table, one JSON object a line."""
    lines = (json.dumps({"message": m.text, "_offset": m.offset, "_partition": 0}) for m in messages)
    return "\n".join(lines).encode()


def _binance_text(trade: BinanceTrade, time_ms: int) -> str:
    event = {
        "e": "trade",
        "E": time_ms,
        "s": BINANCE_SYMBOL,
        "t": trade.trade_id,
        "p": trade.price,
        "q": trade.quantity,
        "T": time_ms,
        "m": trade.side == "sell",
        "M": True,
    }
    return json.dumps(event, separators=(",", ":"))


def _epoch_us(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp()) * 1_000_000


def _iso(moment_us: int) -> str:
    whole = datetime.fromtimestamp(moment_us // 1_000_000, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{moment_us % 1_000_000:06d}Z"


def _batches(rows: list[list[str]]) -> Iterator[list[list[str]]]:
    for start in range(0, len(rows), TRADES_PER_MESSAGE):
        yield rows[start : start + TRADES_PER_MESSAGE]


def _read(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
