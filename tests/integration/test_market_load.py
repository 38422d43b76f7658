"""`make load`: what is shipped and generated arrives whole in all ten tables, and again changes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest

from tests.conftest import read_environment
from tests.processes import run_stack

SYMBOLS = "SELECT exchange, symbol, count() FROM k2.silver_trades FINAL GROUP BY ALL ORDER BY ALL"
SHIPPED = [("binance", "XRPETH", 12_477), ("kraken", "BCH/EUR", 585)]
BARS = ("1m", "5m", "15m", "30m", "1h", "1d")


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """A stack of its own: other tests' trades would be counted with the loader's."""
    with tempfile.TemporaryDirectory(prefix="coldchain-load-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        try:
            yield Path(folder)
        finally:
            run_stack(Path(folder), "down")


def _query(state: Path, statement: str) -> list[Any]:
    environment = read_environment(state)
    client = clickhouse_connect.get_client(
        host="127.0.0.1",
        port=int(environment["COLDCHAIN_CLICKHOUSE_URL"].rpartition(":")[2]),
        username=environment["COLDCHAIN_LOADER_USER"],
        password=environment["COLDCHAIN_LOADER_PASSWORD"],
    )
    try:
        rows = (
            list(client.query(statement).result_rows) if statement.startswith("SELECT") else client.command(statement)
        )
        return rows if isinstance(rows, list) else []
    finally:
        client.close()


def test_everything_arrives_once(state: Path) -> None:
    said = run_stack(state, "load").stdout
    assert "k2.silver_trades: 16,064 rows" in said
    assert "loaded 3,000 generated trades of BTC-USD, ETH-USD" in said
    counts = _query(state, SYMBOLS)
    assert [row for row in counts if row[:2] in (("binance", "XRPETH"), ("kraken", "BCH/EUR"))] == SHIPPED
    assert ("kraken", "XBT/USD", 2) in counts
    assert sum(number for exchange, _symbol, number in counts if exchange == "coinbase") == 3_000
    bitcoin = "SELECT DISTINCT exchange, symbol FROM k2.silver_trades WHERE canonical_symbol = 'BTC/USD' ORDER BY ALL"
    assert _query(state, bitcoin) == [("coinbase", "BTC-USD"), ("kraken", "XBT/USD")]
    totals = "SELECT sum(quantity), sum(quote_volume), count() FROM k2.silver_trades FINAL"
    for name in BARS:
        sums = f"SELECT sum(volume), sum(quote_volume), sum(trade_count) FROM k2.ohlcv_{name}"
        assert _query(state, sums) == _query(state, totals)


def test_again_loads_nothing_and_messages_that_come_again_change_nothing(state: Path) -> None:
    run_stack(state, "load")
    stable = (
        "SELECT count(), sum(cityHash64(message_id, price, quantity, quote_volume, side, timestamp, vendor_data)) "
        "FROM k2.silver_trades FINAL"
    )
    before = _query(state, stable)
    assert "nothing to load" in run_stack(state, "load").stdout
    assert _query(state, "SELECT count() FROM k2.silver_trades") == [(16_064,)]
    # Bronze alone forgets: the loader sends every message again, and Silver has them all already.
    for exchange in ("binance", "kraken", "coinbase"):
        _query(state, f"TRUNCATE TABLE k2.bronze_trades_{exchange}")
    assert "loaded 12,477 shipped trades" in run_stack(state, "load").stdout
    assert _query(state, stable) == before


def test_silver_is_filled_from_a_bronze_that_was_there_before(state: Path) -> None:
    run_stack(state, "load")
    _query(state, "TRUNCATE TABLE k2.silver_trades")
    assert "k2.silver_trades: 16,064 rows" in run_stack(state, "load").stdout


def test_a_stream_flows_into_silver_beside_the_shipped_trades(state: Path) -> None:
    assert "k2.silver_trades: 36,064 rows" in run_stack(state, "load", ROWS="20000").stdout
    assert "nothing to generate" in run_stack(state, "load").stdout
    counts = {row[:2]: row[2] for row in _query(state, SYMBOLS)}
    assert [(*key, counts[key]) for key in (("binance", "XRPETH"), ("kraken", "BCH/EUR"))] == SHIPPED
