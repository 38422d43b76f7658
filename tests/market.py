"""Trades as the three exchanges send them, straight into the landing tables; and the bars recomputed without SQL."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect

WIDTHS_S = {"1m": 60, "5m": 300, "15m": 900, "30m": 1800, "1h": 3600, "1d": 86_400}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message: its place in the topic, and what the exchange wrote."""

    exchange: str
    offset: int
    text: str
    partition: int = 0


class Market:
    """A base asset that nobody else trades, on all exchanges of the tests' own ClickHouse."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.base = f"T{uuid.uuid4().hex[:9].upper()}0"  # with USD, no last letter may make another quote
        self.url = environment["COLDCHAIN_CLICKHOUSE_URL"]
        address = urlsplit(self.url)
        self.client = clickhouse_connect.get_client(
            host=address.hostname or "",
            port=address.port or 0,
            username=environment["COLDCHAIN_LOADER_USER"],
            password=environment["COLDCHAIN_LOADER_PASSWORD"],
            tz_mode="schema",
        )

    def deliver(self, *deliveries: Delivery) -> None:
        """Insert the messages, one block for each exchange."""
        blocks: dict[str, list[list[Any]]] = defaultdict(list)
        for each in deliveries:
            blocks[each.exchange].append([each.text, each.offset, each.partition])
        for exchange, rows in blocks.items():
            names = ["message", "_offset", "_partition"]
            self.client.insert(f"k2.bronze_trades_{exchange}_queue", rows, column_names=names)

    def merge(self) -> None:
        """Let every merge happen that will ever happen."""
        for table in ("bronze_trades_binance", "bronze_trades_kraken", "bronze_trades_coinbase", "silver_trades"):
            self.client.command(f"OPTIMIZE TABLE k2.{table} FINAL")

    def rows(self, source: str, where: str = "1", columns: str = "*") -> list[dict[str, Any]]:
        """Read rows of this market; ``source`` may end with FINAL."""
        mine = f"position({'canonical_symbol' if 'bronze' not in source else 'symbol'}, '{self.base}') > 0"
        return list(self.client.query(f"SELECT {columns} FROM {source} WHERE {mine} AND {where}").named_results())

    def silver(self, where: str = "1") -> list[dict[str, Any]]:
        """Read Silver as a reader sees it."""
        return self.rows("k2.silver_trades FINAL", where)


def forget(markets: Sequence[Market]) -> None:
    """Leave nothing of some markets behind, in one mutation a table: other tests share the server."""
    bases = ", ".join(f"'{market.base}'" for market in markets)
    for table in ("bronze_trades_binance", "bronze_trades_kraken", "bronze_trades_coinbase", "silver_trades"):
        mine = f"multiSearchAny(symbol, [{bases}]) SETTINGS mutations_sync = 2"
        markets[0].client.command(f"ALTER TABLE k2.{table} DELETE WHERE {mine}")
    for market in markets:
        market.client.close()


def binance(symbol: str, trade_id: int, at_us: int, price: str, quantity: str, *, is_sell: bool = False) -> Delivery:
    """A Binance trade; the offset is the trade's id."""
    event = {"e": "trade", "E": at_us // 1000, "s": symbol, "t": trade_id, "p": price, "q": quantity}
    return Delivery("binance", trade_id, json.dumps({**event, "T": at_us // 1000, "m": is_sell, "M": True}))


def kraken(pair: str, offset: int, *trades: tuple[int, str, str, str]) -> Delivery:
    """A Kraken message of trades (microsecond, price, volume, side)."""
    listed = [
        [price, volume, f"{at_us // 1_000_000}.{at_us % 1_000_000:06d}", side, "l", ""]
        for at_us, price, volume, side in trades
    ]
    return Delivery("kraken", offset, json.dumps([337, listed, "trade", pair]))


def coinbase(product: str, trade_id: int, at_us: int, price: str, size: str, *, side: str = "buy") -> Delivery:
    """A Coinbase match; the offset is the trade's id."""
    moment = EPOCH + timedelta(microseconds=at_us)
    match = {"type": "match", "trade_id": trade_id, "sequence": 7 * trade_id, "product_id": product, "price": price}
    text = json.dumps({**match, "size": size, "side": side, "time": f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"})
    return Delivery("coinbase", trade_id, text)


def message_id(exchange: str, symbol: str, trade_id: str) -> uuid.UUID:
    """Return the id that Silver gives a trade."""
    return uuid.UUID(hashlib.md5(f"{exchange}|{symbol}|{trade_id}".encode()).hexdigest())


def bars(trades: Iterable[Mapping[str, Any]], width_s: int) -> list[dict[str, Any]]:
    """Recompute the bars of some Silver rows."""
    width = timedelta(seconds=width_s)
    cells: dict[tuple[str, str, datetime], list[Mapping[str, Any]]] = defaultdict(list)
    for trade in trades:
        start = EPOCH + (trade["timestamp"] - EPOCH) // width * width
        cells[trade["exchange"], trade["canonical_symbol"], start].append(trade)
    made = []
    for (exchange, symbol, start), cell in sorted(cells.items()):
        cell.sort(key=lambda trade: (trade["timestamp"], trade["trade_id"]))
        prices = [trade["price"] for trade in cell]
        made.append(
            {
                "exchange": exchange, "canonical_symbol": symbol, "window_start": start,
                "open": prices[0], "high": max(prices), "low": min(prices), "close": prices[-1],
                "open_time": cell[0]["timestamp"], "close_time": cell[-1]["timestamp"],
                "volume": sum((trade["quantity"] for trade in cell), Decimal(0)),
                "quote_volume": sum((trade["quote_volume"] for trade in cell), Decimal(0)),
                "trade_count": len(cell),
            }
        )  # fmt: skip
    return made
